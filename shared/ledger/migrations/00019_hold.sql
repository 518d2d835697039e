-- +goose NO TRANSACTION
-- +goose Up

-- What an authorized payment held, in the debit currency, and for how long it may hold it at most. Null: the payment
-- is captured at once. If less was captured, the amounts of the row are those, and authorized_minor stays.
-- A wallet hold has no hold_seconds, and a payment that was refused no authorized_minor.
ALTER TABLE reservations ADD COLUMN IF NOT EXISTS authorized_minor bigint, ADD COLUMN IF NOT EXISTS hold_seconds bigint;

-- Nobody captures more than was held.
ALTER TABLE reservations DROP CONSTRAINT IF EXISTS reservations_authorized, ADD CONSTRAINT reservations_authorized
    CHECK (authorized_minor >= coalesce(debit_minor, amount_idr) AND coalesce(hold_seconds, 1) > 0) NOT VALID;
ALTER TABLE reservations VALIDATE CONSTRAINT reservations_authorized;

-- The amounts of a payment never change, except when less of an authorized payment is captured than was held. Statements
-- that do not set amounts do not fire this.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION amounts_only_fall() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE insufficient_privilege USING MESSAGE = 'the amounts of a payment never change, except that less of an authorized one is captured';
END $$;
-- +goose StatementEnd
CREATE OR REPLACE TRIGGER amounts_only_fall BEFORE UPDATE OF amount_idr, debit_minor, credit_minor, mid_minor, exchange ON reservations
    FOR EACH ROW WHEN (OLD.status <> 'PENDING' OR OLD.authorized_minor IS NULL OR OLD.hold_seconds IS NULL
        OR NEW.amount_idr > OLD.amount_idr OR NEW.debit_minor >= OLD.debit_minor OR NEW.credit_minor > OLD.credit_minor
        OR NEW.mid_minor > OLD.mid_minor OR NEW.exchange - 'mid_minor' IS DISTINCT FROM OLD.exchange - 'mid_minor')
    EXECUTE FUNCTION amounts_only_fall();

-- The payments that hold money for a capture, and those whose expiry is not published yet. The sweep finds the
-- expired ones by the primary key. Other payments have no row, and so the index costs them nothing.
CREATE TABLE IF NOT EXISTS authorizations (
    expires_at     timestamptz NOT NULL, -- the reservation's deadline
    reservation_id uuid        NOT NULL,
    amount_idr     bigint      NOT NULL CHECK (amount_idr > 0),
    PRIMARY KEY (expires_at, reservation_id)
);

-- The captures, voids and cancellations, with their outcomes. A row is added in the transaction that moves the
-- money, and never changes. A cancellation of a settled payment is FAILED with payment_settled here: the refund that
-- it becomes is a reservation.
CREATE TABLE IF NOT EXISTS operations (
    client          text        NOT NULL, -- whose key it is; empty: that of all callers without a client
    idempotency_key text        NOT NULL CHECK (idempotency_key <> ''),
    kind            text        NOT NULL CHECK (kind IN ('capture', 'void', 'cancel')),
    fingerprint     bytea       NOT NULL CHECK (octet_length(fingerprint) = 16),
    attempt_id      text        NOT NULL,
    reservation_id  uuid        NOT NULL, -- of the payment
    amount_minor    bigint      NOT NULL CHECK (amount_minor >= 0), -- what was captured or given back, in the debit currency
    status          text        NOT NULL CHECK (status IN ('SUCCESS', 'FAILED')),
    reason          text        NOT NULL CHECK (reason <> ''),
    note            text        NOT NULL, -- why, in the client's words
    accepted_at     timestamptz,
    decided_at      timestamptz NOT NULL,
    PRIMARY KEY (client, idempotency_key),
    CHECK ((status = 'SUCCESS') = (reason IN ('committed', 'duplicate_idempo')))
);

-- +goose Down
-- +goose StatementBegin
DO $$ BEGIN RAISE EXCEPTION 'authorized payments would be lost'; END $$;
-- +goose StatementEnd
