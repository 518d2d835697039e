-- +goose NO TRANSACTION
-- +goose Up

-- The tables check what clients are told about a payment: FAILED never has the reason committed, a
-- claim has a whole fingerprint, and the amount as sent is never negative. Each statement is its
-- own transaction: adding a constraint NOT VALID locks the table only for a moment, and validating
-- it does not block writers.

-- Before this, callers of RollbackReservation could use this reason.
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
