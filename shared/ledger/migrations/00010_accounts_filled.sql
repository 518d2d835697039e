-- +goose NO TRANSACTION
-- +goose Up

ALTER TABLE reservations VALIDATE CONSTRAINT reservations_moved;

-- Profiles are copied in steps, each a transaction of its own, while accounts are opened and changed:
-- the trigger copies those. A step that finds a profile copied already leaves it.
-- +goose StatementBegin
CREATE OR REPLACE PROCEDURE copy_profiles(step integer) LANGUAGE plpgsql AS $$
DECLARE
    last text := '';
    upto text;
BEGIN
    LOOP
        SELECT max(account_id) INTO upto FROM (
            SELECT account_id FROM wallet_accounts WHERE account_id > last ORDER BY account_id LIMIT step) page;
        EXIT WHEN upto IS NULL;
        INSERT INTO accounts (account_id, owner, home_currency, status, internal, profile_at, profile_event, updated_at)
        SELECT account_id, owner, currency, status, internal, profile_at, profile_event, updated_at FROM wallet_accounts
        WHERE account_id > last AND account_id <= upto ORDER BY account_id FOR SHARE
        ON CONFLICT (account_id) DO NOTHING;
        COMMIT;
        last := upto;
    END LOOP;
END $$;
-- +goose StatementEnd
CALL copy_profiles(1000);
DROP PROCEDURE copy_profiles(integer);

DROP INDEX CONCURRENTLY IF EXISTS balances_pkey;
CREATE UNIQUE INDEX CONCURRENTLY balances_pkey ON wallet_accounts (account_id, balance_currency);

-- +goose Down
DROP INDEX IF EXISTS balances_pkey;
