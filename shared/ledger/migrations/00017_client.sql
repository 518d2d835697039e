-- +goose NO TRANSACTION
-- +goose Up

-- An idempotency key belongs to the client that uses it: two clients may use the same key. Releases before this one name
-- no client, so their claims are in the scope of the empty name, where a key is unique as before.
ALTER TABLE reservations ADD COLUMN IF NOT EXISTS client text NOT NULL DEFAULT '';

CREATE OR REPLACE VIEW payment_history AS
SELECT r.reservation_id AS payment_id, r.idempotency_key, r.sender_id, r.receiver_id,
       r.currency_input, r.amount_minor, r.rate, r.rate_id, r.rate_time, r.amount_idr, r.rule_set, r.tx_date,
       r.status AS reservation_status, p.status, p.reason,
       r.accepted_at, r.created_at AS reserved_at, r.deadline, p.decided_at, r.metadata,
       coalesce(r.debit_currency, 'IDR') AS debit_currency, coalesce(r.debit_minor, r.amount_idr) AS debit_minor,
       coalesce(r.credit_currency, 'IDR') AS credit_currency, coalesce(r.credit_minor, r.amount_idr) AS credit_minor, r.exchange, r.quote_id,
       r.client
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id;

-- Keys stay unique all the time: the constraint goes when the index is there, and a valid index is never dropped here.
-- +goose StatementBegin
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('reservations_key') AND NOT indisvalid) THEN
        DROP INDEX reservations_key; -- an interrupted run has left it
    END IF;
END $$;
-- +goose StatementEnd
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS reservations_key ON reservations (idempotency_key, client);
ALTER TABLE reservations DROP CONSTRAINT IF EXISTS reservations_idempotency_key_key;

-- +goose Down
-- Two clients may have the same key by now, so the constraint can't come back.
SELECT 1;
