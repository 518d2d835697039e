-- +goose NO TRANSACTION
-- +goose Up

-- What a client can be told of a payment is checked where it is kept: FAILED never goes with committed, a claim has a
-- whole fingerprint, and an amount as sent is never negative. Each statement is a transaction of its own: adding a
-- constraint NOT VALID locks the table for a moment only, and validating it lets writers go on.

-- Callers of RollbackReservation could name this reason before.
UPDATE payments SET reason = 'rolled_back' WHERE status = 'FAILED' AND reason = 'committed';

ALTER TABLE payments DROP CONSTRAINT IF EXISTS payments_status_reason, ADD CONSTRAINT payments_status_reason
    CHECK ((status = 'SUCCESS') = (reason = 'committed') AND reason <> '') NOT VALID;
ALTER TABLE payments VALIDATE CONSTRAINT payments_status_reason;

ALTER TABLE reservations DROP CONSTRAINT IF EXISTS reservations_fingerprint, ADD CONSTRAINT reservations_fingerprint
    CHECK (octet_length(fingerprint) = 16) NOT VALID;
ALTER TABLE reservations VALIDATE CONSTRAINT reservations_fingerprint;

ALTER TABLE reservations DROP CONSTRAINT IF EXISTS reservations_amount_minor, ADD CONSTRAINT reservations_amount_minor
    CHECK (amount_minor >= 0) NOT VALID;
ALTER TABLE reservations VALIDATE CONSTRAINT reservations_amount_minor;

-- +goose Down
ALTER TABLE reservations DROP CONSTRAINT reservations_amount_minor, DROP CONSTRAINT reservations_fingerprint;
ALTER TABLE payments DROP CONSTRAINT payments_status_reason;
