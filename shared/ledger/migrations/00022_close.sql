-- +goose NO TRANSACTION
-- +goose Up

-- The refund that closes a payment gives what is left of both sides. If its receiver has given everything back in earlier
-- parts, that is nothing: debit_minor is 0. The old constraint is dropped when the new one holds.
ALTER TABLE reservations DROP CONSTRAINT IF EXISTS reservations_moves, ADD CONSTRAINT reservations_moves CHECK (
    (debit_currency IS NULL) = (credit_currency IS NULL) AND (debit_currency IS NULL) = (debit_minor IS NULL)
    AND (debit_currency IS NULL) = (credit_minor IS NULL) AND credit_minor > 0
    AND (debit_minor > 0 OR parent_id IS NOT NULL AND debit_minor = 0)
    AND (debit_currency = credit_currency) = (mid_minor IS NULL)
    AND (mid_minor >= credit_minor OR parent_id IS NOT NULL AND mid_minor >= 0)
    AND (debit_currency <> credit_currency OR debit_minor = credit_minor)) NOT VALID;
ALTER TABLE reservations VALIDATE CONSTRAINT reservations_moves;
ALTER TABLE reservations DROP CONSTRAINT IF EXISTS reservations_amounts;

-- What rounding left of a captured part differs from what it left of the whole. So the capture of a part also changes
-- the remainder of the exchange.
CREATE OR REPLACE TRIGGER amounts_only_fall BEFORE UPDATE OF amount_idr, debit_minor, credit_minor, mid_minor, exchange ON reservations
    FOR EACH ROW WHEN (OLD.status <> 'PENDING' OR OLD.authorized_minor IS NULL OR OLD.hold_seconds IS NULL
        OR NEW.amount_idr > OLD.amount_idr OR NEW.debit_minor >= OLD.debit_minor OR NEW.credit_minor > OLD.credit_minor
        OR NEW.mid_minor > OLD.mid_minor OR NEW.exchange - 'mid_minor' - 'remainder' IS DISTINCT FROM OLD.exchange - 'mid_minor' - 'remainder')
    EXECUTE FUNCTION amounts_only_fall();

-- +goose Down
-- Refunds that closed a payment stay. The earlier release changes no remainder.
SELECT 1;
