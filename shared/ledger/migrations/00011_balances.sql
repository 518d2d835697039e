-- +goose Up

-- The table of accounts becomes the table of balances: the row of an account that was there is its
-- balance in rupiah. Earlier releases find the table under its old name as a view, and go on.

-- Nobody else has these names.
-- +goose StatementBegin
DO $$
DECLARE taken text;
BEGIN
    SELECT string_agg(account_id, ', ') INTO taken FROM accounts WHERE account_id IN ('LIQUIDITY', 'SPREAD', 'OUTSIDE') AND NOT internal;
    IF taken IS NOT NULL THEN
        RAISE EXCEPTION 'the accounts % have names that are the house''s own now: move their money to accounts of other names, and set their account_id', taken;
    END IF;
END $$;
-- +goose StatementEnd

-- The holds are looked for before the tables are locked. No reservation of an older id holds money.
-- +goose StatementBegin
DO $$
DECLARE oldest uuid;
BEGIN
    SELECT reservation_id INTO oldest FROM reservations WHERE status = 'PENDING' ORDER BY reservation_id LIMIT 1;
    -- Reservations that are made from now on have ids of about this time.
    oldest := least(oldest, (lpad(to_hex(floor(extract(epoch FROM clock_timestamp() - interval '5 minutes') * 1000)::bigint), 12, '0')
        || '00000000000000000000')::uuid);
    PERFORM set_config('pgw.oldest_hold', oldest::text, true);
END $$;
-- +goose StatementEnd

-- In the order in which payments and fundings use them.
LOCK TABLE reservations IN SHARE ROW EXCLUSIVE MODE;
LOCK TABLE fundings IN ACCESS EXCLUSIVE MODE;
LOCK TABLE wallet_accounts IN ACCESS EXCLUSIVE MODE;

DROP TRIGGER copy_profile ON wallet_accounts;
DROP FUNCTION copy_profile();
ALTER TABLE fundings DROP CONSTRAINT fundings_account_id_fkey;
ALTER TABLE wallet_accounts DROP CONSTRAINT wallet_accounts_pkey;
ALTER TABLE wallet_accounts RENAME TO balances;
ALTER TABLE balances RENAME COLUMN currency TO home_currency;
ALTER TABLE balances RENAME COLUMN balance_currency TO currency;
ALTER TABLE balances ALTER COLUMN home_currency SET DEFAULT 'IDR';
ALTER TABLE balances RENAME COLUMN balance_idr TO available;
ALTER TABLE balances RENAME COLUMN daily_limit_idr TO daily_limit;
ALTER TABLE balances RENAME COLUMN spent_today_idr TO spent_today;
ALTER TABLE balances ADD PRIMARY KEY USING INDEX balances_pkey;
ALTER TABLE balances
    ADD COLUMN held           bigint NOT NULL DEFAULT 0, -- by PENDING reservations
    ADD COLUMN position       bigint NOT NULL DEFAULT 0, -- of LIQUIDITY: what exchanges have brought it, less what they took and hold
    ADD COLUMN position_limit bigint; -- of LIQUIDITY: how far the position may fall below 0; null: no limit
-- Only the world outside owes.
ALTER TABLE balances DROP CONSTRAINT wallet_accounts_balance_idr_check;
ALTER TABLE balances ADD CONSTRAINT balances_available CHECK (available >= 0 OR account_id = 'OUTSIDE') NOT VALID;
ALTER TABLE balances ADD CONSTRAINT balances_held CHECK (held >= 0) NOT VALID;
ALTER TABLE balances ADD CONSTRAINT balances_position CHECK (position_limit >= 0 AND position >= -position_limit) NOT VALID;

UPDATE balances b SET held = h.amount FROM (
    SELECT sender_id, sum(amount_idr)::bigint AS amount FROM reservations
    WHERE reservation_id >= current_setting('pgw.oldest_hold')::uuid AND status = 'PENDING' GROUP BY sender_id) h
WHERE b.account_id = h.sender_id AND b.currency = 'IDR';

ALTER TABLE fundings RENAME TO transfers;
ALTER TABLE transfers RENAME COLUMN funding_id TO transfer_id;
ALTER TABLE transfers RENAME COLUMN amount_idr TO amount;
ALTER TABLE transfers
    ADD COLUMN currency  text NOT NULL DEFAULT 'IDR',
    ADD COLUMN booked_at timestamptz; -- when its entries were booked; null: by an earlier release
ALTER TABLE transfers ADD CONSTRAINT transfers_account FOREIGN KEY (account_id) REFERENCES accounts NOT VALID;

INSERT INTO accounts (account_id, owner, internal) VALUES
    ('LIQUIDITY', 'House liquidity', true), ('SPREAD', 'House income from exchange', true), ('OUTSIDE', 'The world outside', true);
INSERT INTO balances (account_id, owner, internal, currency) VALUES
    ('LIQUIDITY', 'House liquidity', true, 'IDR'), ('SPREAD', 'House income from exchange', true, 'IDR'), ('OUTSIDE', 'The world outside', true, 'IDR');

-- What earlier releases read and write. The columns owner, home_currency, internal, profile_at and
-- profile_event of balances are theirs alone; contract.sql takes them away.
CREATE VIEW wallet_accounts AS
SELECT account_id, owner, home_currency AS currency, status, internal, available AS balance_idr, daily_limit AS daily_limit_idr,
       spent_day, spent_today AS spent_today_idr, started_minute, started_count, profile_at, updated_at, profile_event
FROM balances WHERE currency = 'IDR' AND account_id NOT IN ('LIQUIDITY', 'SPREAD', 'OUTSIDE');
CREATE VIEW fundings AS
SELECT transfer_id AS funding_id, account_id, amount AS amount_idr, note, created_at, source FROM transfers WHERE currency = 'IDR' AND account_id <> 'LIQUIDITY';

-- Earlier releases keep no holds and write no entries. Where they change a reservation or add a
-- transfer, these do. This release fills debit_currency, ended_at and booked_at, and is left alone.
-- +goose StatementBegin
CREATE FUNCTION reserved_earlier() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE balances SET held = held + NEW.amount_idr WHERE account_id = NEW.sender_id AND currency = 'IDR';
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER reserved_earlier AFTER INSERT ON reservations FOR EACH ROW
    WHEN (NEW.status = 'PENDING' AND NEW.debit_currency IS NULL) EXECUTE FUNCTION reserved_earlier();

-- An earlier release can't end a payment that is not in rupiah. Its statement passes over the payment, which
-- stays PENDING for this release.
-- +goose StatementBegin
CREATE FUNCTION leave_to_newer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER leave_to_newer BEFORE UPDATE OF status ON reservations FOR EACH ROW
    WHEN (OLD.status = 'PENDING' AND NEW.status <> 'PENDING' AND NEW.ended_at IS NULL
        AND (NEW.debit_currency <> 'IDR' OR NEW.credit_currency <> 'IDR')) EXECUTE FUNCTION leave_to_newer();

-- +goose StatementBegin
CREATE FUNCTION ended_earlier() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE balances SET held = held - NEW.amount_idr WHERE account_id = NEW.sender_id AND currency = 'IDR';
    IF NEW.status = 'COMMITTED' THEN
        INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date)
        VALUES (NEW.sender_id, 'IDR', now(), NEW.reservation_id, 'payment', -NEW.amount_idr, (now() AT TIME ZONE 'UTC')::date),
            (NEW.receiver_id, 'IDR', now(), NEW.reservation_id, 'payment', NEW.amount_idr, (now() AT TIME ZONE 'UTC')::date);
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER ended_earlier AFTER UPDATE OF status ON reservations FOR EACH ROW
    WHEN (OLD.status = 'PENDING' AND NEW.status <> 'PENDING' AND NEW.ended_at IS NULL) EXECUTE FUNCTION ended_earlier();

-- +goose StatementBegin
CREATE FUNCTION funded_earlier() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date)
    SELECT account, 'IDR', now(), md5(NEW.transfer_id)::uuid, CASE WHEN NEW.amount > 0 THEN 'funding' ELSE 'withdrawal' END, amount,
        (now() AT TIME ZONE 'UTC')::date
    FROM (VALUES (NEW.account_id, NEW.amount), ('OUTSIDE', -NEW.amount)) AS leg(account, amount);
    UPDATE transfers SET booked_at = now() WHERE transfer_id = NEW.transfer_id;
    UPDATE balances SET available = available - NEW.amount WHERE account_id = 'OUTSIDE' AND currency = 'IDR';
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER funded_earlier AFTER INSERT ON transfers FOR EACH ROW
    WHEN (NEW.booked_at IS NULL) EXECUTE FUNCTION funded_earlier();

-- Profiles that this release sets are shown to earlier releases.
-- +goose StatementBegin
CREATE FUNCTION show_profile() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE balances SET owner = NEW.owner, home_currency = NEW.home_currency, internal = NEW.internal,
        profile_at = NEW.profile_at, profile_event = NEW.profile_event
    WHERE account_id = NEW.account_id AND currency = 'IDR';
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER show_profile AFTER INSERT OR UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION show_profile();

-- The rights that the roles have on the tables of the same names before.
-- +goose StatementBegin
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['pgw_ledger', 'pgw_reader'] LOOP
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('GRANT SELECT ON balances, transfers, accounts, entries, wallet_accounts, fundings TO %I', name);
        END IF;
    END LOOP;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgw_ledger') THEN
        GRANT INSERT ON balances, wallet_accounts TO pgw_ledger;
        GRANT UPDATE ON balances TO pgw_ledger;
        GRANT UPDATE (owner, currency, status, balance_idr, daily_limit_idr, spent_day, spent_today_idr, started_minute, started_count, profile_at,
            profile_event, updated_at) ON wallet_accounts TO pgw_ledger;
        GRANT INSERT ON transfers, fundings, entries TO pgw_ledger;
        GRANT UPDATE (booked_at) ON transfers TO pgw_ledger;
    END IF;
END $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
DO $$ BEGIN RAISE EXCEPTION 'balances in other currencies would be lost'; END $$;
-- +goose StatementEnd
