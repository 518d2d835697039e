-- +goose Up

-- What a client notes with its payment; null for nothing. Without a default no row is written anew.
ALTER TABLE reservations ADD COLUMN IF NOT EXISTS metadata jsonb;

CREATE OR REPLACE VIEW payment_history AS
SELECT r.reservation_id AS payment_id, r.idempotency_key, r.sender_id, r.receiver_id,
       r.currency_input, r.amount_minor, r.rate, r.rate_id, r.rate_time, r.amount_idr, r.rule_set, r.tx_date,
       r.status AS reservation_status, p.status, p.reason,
       r.accepted_at, r.created_at AS reserved_at, r.deadline, p.decided_at, r.metadata
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id;

-- +goose Down
DROP VIEW payment_history;
CREATE VIEW payment_history AS
SELECT r.reservation_id AS payment_id, r.idempotency_key, r.sender_id, r.receiver_id,
       r.currency_input, r.amount_minor, r.rate, r.rate_id, r.rate_time, r.amount_idr, r.rule_set, r.tx_date,
       r.status AS reservation_status, p.status, p.reason,
       r.accepted_at, r.created_at AS reserved_at, r.deadline, p.decided_at
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id;
ALTER TABLE reservations DROP COLUMN metadata;
