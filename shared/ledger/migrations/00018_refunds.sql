-- +goose NO TRANSACTION
-- +goose Up

-- A refund is a reservation with a payment: parent_id. What refunds have given back, and what is on its way, is counted in
-- the payment's row. All new columns are null for a payment without refunds, so it costs nothing more.
ALTER TABLE reservations
    ADD COLUMN IF NOT EXISTS parent_id       uuid,   -- of a refund: the payment
    ADD COLUMN IF NOT EXISTS note            text,   -- of a refund: why, in the client's words
    ADD COLUMN IF NOT EXISTS refunded_minor  bigint, -- what the sender has got back, in the debit currency; of a refund: see below
    ADD COLUMN IF NOT EXISTS refunding_minor bigint, -- what refunds on their way hold for the sender
    ADD COLUMN IF NOT EXISTS returned_minor  bigint; -- what the receiver gave for both, in the credit currency

-- Two refunds at once can't give back more than was paid, whoever writes the row.
ALTER TABLE reservations DROP CONSTRAINT IF EXISTS reservations_refunded, ADD CONSTRAINT reservations_refunded CHECK (
    refunded_minor >= 0 AND refunding_minor >= 0 AND returned_minor >= 0
    AND coalesce(refunded_minor, 0) + coalesce(refunding_minor, 0) <= coalesce(debit_minor, amount_idr)
    AND coalesce(returned_minor, 0) <= coalesce(credit_minor, amount_idr)) NOT VALID;
ALTER TABLE reservations VALIDATE CONSTRAINT reservations_refunded;

-- At the rate of now, what a refund gives back may be worth less than its sender gets. The old constraint is dropped
-- when the new one holds.
ALTER TABLE reservations DROP CONSTRAINT IF EXISTS reservations_amounts, ADD CONSTRAINT reservations_amounts CHECK (
    (debit_currency IS NULL) = (credit_currency IS NULL) AND (debit_currency IS NULL) = (debit_minor IS NULL)
    AND (debit_currency IS NULL) = (credit_minor IS NULL) AND debit_minor > 0 AND credit_minor > 0
    AND (debit_currency = credit_currency) = (mid_minor IS NULL)
    AND (mid_minor >= credit_minor OR parent_id IS NOT NULL AND mid_minor >= 0)
    AND (debit_currency <> credit_currency OR debit_minor = credit_minor)) NOT VALID;
ALTER TABLE reservations VALIDATE CONSTRAINT reservations_amounts;
ALTER TABLE reservations DROP CONSTRAINT IF EXISTS reservations_moved;

-- The refunds of a payment. Only refunds are in it.
DROP INDEX CONCURRENTLY IF EXISTS reservations_refunds;
CREATE INDEX CONCURRENTLY reservations_refunds ON reservations (parent_id, reservation_id) WHERE parent_id IS NOT NULL;

-- Earlier releases count no refunds. So they can't end one: their statements pass over it, and it stays PENDING for this
-- release, which sets refunded_minor of the refund itself to 0 when it ends it.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION leave_refund_to_newer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END $$;
-- +goose StatementEnd
DROP TRIGGER IF EXISTS leave_refund_to_newer ON reservations;
CREATE TRIGGER leave_refund_to_newer BEFORE UPDATE OF status ON reservations FOR EACH ROW
    WHEN (OLD.parent_id IS NOT NULL AND OLD.status = 'PENDING' AND NEW.status <> 'PENDING' AND NEW.refunded_minor IS NULL)
    EXECUTE FUNCTION leave_refund_to_newer();

-- The right to count, for a ledger whose roles exist already.
-- +goose StatementBegin
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgw_ledger') THEN
        GRANT UPDATE (refunded_minor, refunding_minor, returned_minor) ON reservations TO pgw_ledger;
    END IF;
END $$;
-- +goose StatementEnd

-- +goose Down
-- Refunds are not thrown away. The earlier release leaves the columns empty.
SELECT 1;
