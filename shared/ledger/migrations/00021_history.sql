-- +goose Up

-- Refunds and authorized payments, for people.
CREATE OR REPLACE VIEW payment_history AS
SELECT r.reservation_id AS payment_id, r.idempotency_key, r.sender_id, r.receiver_id,
       r.currency_input, r.amount_minor, r.rate, r.rate_id, r.rate_time, r.amount_idr, r.rule_set, r.tx_date,
       r.status AS reservation_status, p.status, p.reason,
       r.accepted_at, r.created_at AS reserved_at, r.deadline, p.decided_at, r.metadata,
       coalesce(r.debit_currency, 'IDR') AS debit_currency, coalesce(r.debit_minor, r.amount_idr) AS debit_minor,
       coalesce(r.credit_currency, 'IDR') AS credit_currency, coalesce(r.credit_minor, r.amount_idr) AS credit_minor, r.exchange, r.quote_id,
       r.client, r.parent_id AS refund_of, r.refunded_minor, r.refunding_minor, r.note, r.authorized_minor
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id;

-- +goose Down
-- The earlier release does not look at the new columns.
SELECT 1;
