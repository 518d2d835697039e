-- +goose NO TRANSACTION
-- +goose Up

ALTER TABLE balances VALIDATE CONSTRAINT balances_available;
ALTER TABLE balances VALIDATE CONSTRAINT balances_held;
ALTER TABLE balances VALIDATE CONSTRAINT balances_position;
ALTER TABLE transfers VALIDATE CONSTRAINT transfers_account;

-- Entries of what was booked before there were entries. Each step is a transaction of its own, and
-- payments go on. A payment or transfer that has its entries already is passed over: a step may be
-- repeated.
-- +goose StatementBegin
CREATE OR REPLACE PROCEDURE book_earlier(step integer) LANGUAGE plpgsql AS $$
DECLARE
    last    uuid := '00000000-0000-0000-0000-000000000000';
    upto    uuid;
    lastid  text := '';
    uptoid  text;
BEGIN
    LOOP
        SELECT reservation_id INTO upto FROM reservations WHERE reservation_id > last ORDER BY reservation_id OFFSET step - 1 LIMIT 1;
        upto := coalesce(upto, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
        INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date)
        SELECT leg.account, 'IDR', p.decided_at, r.reservation_id, 'payment', leg.amount, (p.decided_at AT TIME ZONE 'UTC')::date
        FROM reservations r JOIN payments p ON p.payment_id = r.reservation_id,
            LATERAL (VALUES (r.sender_id, -r.amount_idr), (r.receiver_id, r.amount_idr)) AS leg(account, amount)
        WHERE r.reservation_id > last AND r.reservation_id <= upto AND r.status = 'COMMITTED' AND r.debit_currency IS NULL
        ON CONFLICT DO NOTHING;
        COMMIT;
        EXIT WHEN upto = 'ffffffff-ffff-ffff-ffff-ffffffffffff';
        last := upto;
    END LOOP;
    LOOP
        SELECT max(transfer_id) INTO uptoid FROM (
            SELECT transfer_id FROM transfers WHERE transfer_id > lastid ORDER BY transfer_id LIMIT step) page;
        EXIT WHEN uptoid IS NULL;
        WITH booked AS (
            UPDATE transfers SET booked_at = created_at
            WHERE transfer_id > lastid AND transfer_id <= uptoid AND booked_at IS NULL
            RETURNING transfer_id, account_id, amount, created_at
        ), added AS (
            INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date)
            SELECT leg.account, 'IDR', created_at, md5(transfer_id)::uuid, CASE WHEN booked.amount > 0 THEN 'funding' ELSE 'withdrawal' END,
                leg.amount, (created_at AT TIME ZONE 'UTC')::date
            FROM booked, LATERAL (VALUES (account_id, booked.amount), ('OUTSIDE', -booked.amount)) AS leg(account, amount)
        )
        UPDATE balances SET available = available - coalesce((SELECT sum(amount) FROM booked), 0)
        WHERE account_id = 'OUTSIDE' AND currency = 'IDR';
        COMMIT;
        lastid := uptoid;
    END LOOP;
END $$;
-- +goose StatementEnd
CALL book_earlier(1000);
DROP PROCEDURE book_earlier(integer);

-- +goose Down
SELECT 1;
