-- Who may do what. A user that may make roles runs this after each migration. It may be repeated.
--
--   pgw_owner   owns the tables: for migrations
--   pgw_ledger  writes: for db. It deletes nothing but the rows of holds that have ended. Outcomes,
--               operations, fundings, rates and rules are only added
--   pgw_reader  reads: for fx, wallet, risk, and people
--   pgw_webhooks  reads and writes the tables of webhooks, and nothing else; the others don't read them
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['pgw_owner', 'pgw_ledger', 'pgw_reader', 'pgw_webhooks'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN -- another database of this server has just made it
            END;
        END IF;
    END LOOP;
    -- The user that migrates acts as the owner.
    IF NOT pg_has_role(current_user, 'pgw_owner', 'MEMBER') THEN
        EXECUTE format('GRANT pgw_owner TO %I', current_user);
    END IF;
    -- For all objects, those of now and those of later migrations.
    EXECUTE 'GRANT USAGE, CREATE ON SCHEMA public TO pgw_owner';
    FOR name IN SELECT c.oid::regclass::text FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND pg_get_userbyid(c.relowner) <> 'pgw_owner' LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO pgw_owner', name);
    END LOOP;
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END $$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, pgw_ledger, pgw_reader, pgw_webhooks;
GRANT USAGE ON SCHEMA public TO pgw_ledger, pgw_reader, pgw_webhooks;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO pgw_ledger, pgw_reader;

-- Rows of webhooks are deleted when their endpoint is, or when they are old: they are no part of the books.
REVOKE ALL ON webhook_endpoints, webhook_secrets, webhook_events, webhook_deliveries, webhook_attempts FROM pgw_ledger, pgw_reader;
GRANT SELECT, INSERT, UPDATE, DELETE ON webhook_endpoints, webhook_secrets, webhook_events, webhook_deliveries, webhook_attempts TO pgw_webhooks;
GRANT SELECT ON goose_db_version, schema_support TO pgw_webhooks;

-- Tables of later migrations can be read, and added to by db, before this file is run again.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO pgw_ledger, pgw_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT INSERT ON TABLES TO pgw_ledger;

GRANT INSERT ON accounts, balances, transfers, entries, quotes, reservations, payments, fx_rates, risk_rules, dead_letter_actions, operator_changes,
    operations, authorizations TO pgw_ledger;
-- Everything about an account except its name and whether it belongs to the house.
GRANT UPDATE (owner, home_currency, status, profile_at, profile_event, updated_at) ON accounts TO pgw_ledger;
-- Everything about a balance except whose it is and its currency. Entries are only added.
GRANT UPDATE (status, available, held, daily_limit, spent_day, spent_today, started_minute, started_count, position, position_limit, updated_at)
    ON balances TO pgw_ledger;
-- A reservation's parties never change. Its amounts only fall, if a part of an authorized payment is captured: a trigger
-- refuses any other change. What refunds give back is counted.
GRANT UPDATE (status, untold, ended_at, amount_idr, debit_minor, credit_minor, mid_minor, exchange, refunded_minor, refunding_minor,
    returned_minor) ON reservations TO pgw_ledger;
GRANT DELETE ON authorizations TO pgw_ledger;
GRANT UPDATE (used_by) ON quotes TO pgw_ledger;
GRANT UPDATE (swept_to, swept_at, pending, held_idr, oldest_pending_at) ON sweep_state TO pgw_ledger;
-- A new verdict takes the place of the oldest.
GRANT INSERT, UPDATE ON verdicts TO pgw_ledger;

-- What earlier releases need while they run on this schema: see 00011_balances.sql.
DO $$ BEGIN
    IF EXISTS (SELECT FROM information_schema.columns WHERE table_schema = 'public' AND table_name = 'balances' AND column_name = 'profile_event') THEN
        GRANT INSERT ON wallet_accounts TO pgw_ledger;
        GRANT UPDATE (owner, currency, status, balance_idr, daily_limit_idr, spent_day, spent_today_idr, started_minute, started_count, profile_at,
            profile_event, updated_at) ON wallet_accounts TO pgw_ledger;
        GRANT INSERT ON fundings TO pgw_ledger;
        GRANT UPDATE (owner, home_currency, internal, profile_at, profile_event) ON balances TO pgw_ledger;
        GRANT UPDATE (booked_at) ON transfers TO pgw_ledger;
    END IF;
END $$;
