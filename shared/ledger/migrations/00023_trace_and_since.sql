-- +goose Up

-- The trace of the attempt that claimed the key, so that a payment leads to its trace. Null: it was not traced.
-- A null takes no place in a row, and no index has the column.
ALTER TABLE reservations ADD COLUMN IF NOT EXISTS trace_id uuid;

CREATE OR REPLACE VIEW payment_history AS
SELECT r.reservation_id AS payment_id, r.idempotency_key, r.sender_id, r.receiver_id,
       r.currency_input, r.amount_minor, r.rate, r.rate_id, r.rate_time, r.amount_idr, r.rule_set, r.tx_date,
       r.status AS reservation_status, p.status, p.reason,
       r.accepted_at, r.created_at AS reserved_at, r.deadline, p.decided_at, r.metadata,
       coalesce(r.debit_currency, 'IDR') AS debit_currency, coalesce(r.debit_minor, r.amount_idr) AS debit_minor,
       coalesce(r.credit_currency, 'IDR') AS credit_currency, coalesce(r.credit_minor, r.amount_idr) AS credit_minor, r.exchange, r.quote_id,
       r.client, r.parent_id AS refund_of, r.refunded_minor, r.refunding_minor, r.note, r.authorized_minor,
       replace(r.trace_id::text, '-', '') AS trace_id
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id;

-- Since when payments were to be compared with their events. Null: as far back as the topics go, or it is not known.
ALTER TABLE verdicts ADD COLUMN IF NOT EXISTS since timestamptz;

-- +goose Down
-- The earlier release does not look at the new columns.
SELECT 1;
