-- +goose Up

-- The first of three steps to balances in every currency. It only adds. The next file fills what this
-- one makes, and 00011 lets the ledger use it. Earlier releases go on all the time.

-- Who an account is. What it has stands in balances.
CREATE TABLE accounts (
    account_id    text        PRIMARY KEY CHECK (account_id <> ''),
    owner         text        NOT NULL DEFAULT '',
    home_currency text        NOT NULL DEFAULT 'IDR', -- the owner's own currency
    status        text        NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'BLOCKED')),
    internal      boolean     NOT NULL DEFAULT false, -- an account of the house
    profile_at    timestamptz NOT NULL DEFAULT '-infinity', -- time of the newest account.opened that was applied
    profile_event text        COLLATE "C" NOT NULL DEFAULT '',
    updated_at    timestamptz NOT NULL DEFAULT now()
);

-- The books: every movement of money is two or more entries that sum to zero in each currency. Entries
-- are only added. The primary key is also the order of a statement: an entry gets its time while the
-- balance is locked, so entries of a balance never appear before older ones.
CREATE TABLE entries (
    account_id     text        NOT NULL,
    currency       text        NOT NULL,
    booked_at      timestamptz NOT NULL, -- of a payment: when it was decided
    transaction_id uuid        NOT NULL, -- of a payment: its id; of a transfer: the MD5 of its id
    kind           text        NOT NULL CHECK (kind IN ('payment', 'exchange', 'spread', 'funding', 'withdrawal', 'refund', 'residue')),
    amount         bigint      NOT NULL CHECK (amount <> 0), -- minor units; negative: the account pays
    value_date     date        NOT NULL, -- the UTC day for which it counts
    PRIMARY KEY (account_id, currency, booked_at, transaction_id, kind)
);

-- +goose StatementBegin
CREATE FUNCTION entries_are_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'entries are only added: book another one';
END $$;
-- +goose StatementEnd
CREATE TRIGGER entries_are_final BEFORE UPDATE OR DELETE OR TRUNCATE ON entries EXECUTE FUNCTION entries_are_final();

-- What is moved, and its price. Earlier releases leave all of it null: then amount_idr is moved, between
-- balances in rupiah.
ALTER TABLE reservations
    ADD COLUMN debit_currency  text,
    ADD COLUMN debit_minor     bigint,
    ADD COLUMN credit_currency text,
    ADD COLUMN credit_minor    bigint,
    ADD COLUMN mid_minor       bigint, -- what LIQUIDITY pays, in the credit currency; null: nothing is exchanged
    ADD COLUMN exchange        jsonb,  -- the price, for people and for reconcile
    ADD COLUMN quote_id        uuid,
    ADD COLUMN ended_at        timestamptz; -- when it was committed or rolled back; null: PENDING, or by an earlier release
ALTER TABLE reservations ADD CONSTRAINT reservations_moved CHECK (
    (debit_currency IS NULL) = (credit_currency IS NULL) AND (debit_currency IS NULL) = (debit_minor IS NULL)
    AND (debit_currency IS NULL) = (credit_minor IS NULL) AND debit_minor > 0 AND credit_minor > 0
    AND (debit_currency = credit_currency) = (mid_minor IS NULL) AND mid_minor >= credit_minor
    AND (debit_currency <> credit_currency OR debit_minor = credit_minor)) NOT VALID;

CREATE OR REPLACE VIEW payment_history AS
SELECT r.reservation_id AS payment_id, r.idempotency_key, r.sender_id, r.receiver_id,
       r.currency_input, r.amount_minor, r.rate, r.rate_id, r.rate_time, r.amount_idr, r.rule_set, r.tx_date,
       r.status AS reservation_status, p.status, p.reason,
       r.accepted_at, r.created_at AS reserved_at, r.deadline, p.decided_at, r.metadata,
       coalesce(r.debit_currency, 'IDR') AS debit_currency, coalesce(r.debit_minor, r.amount_idr) AS debit_minor,
       coalesce(r.credit_currency, 'IDR') AS credit_currency, coalesce(r.credit_minor, r.amount_idr) AS credit_minor, r.exchange, r.quote_id
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id;

-- Firm prices. A quote is used at most once.
CREATE TABLE quotes (
    quote_id        uuid        PRIMARY KEY,
    client          text        NOT NULL, -- who asked; empty if clients have no names
    sender_id       text        NOT NULL,
    receiver_id     text        NOT NULL,
    currency_input  text        NOT NULL, -- of the fixed side
    amount_minor    bigint      NOT NULL CHECK (amount_minor > 0),
    debit_currency  text        NOT NULL,
    debit_minor     bigint      NOT NULL CHECK (debit_minor > 0),
    credit_currency text        NOT NULL,
    credit_minor    bigint      NOT NULL CHECK (credit_minor > 0),
    amount_idr      bigint      NOT NULL CHECK (amount_idr > 0),
    exchange        jsonb, -- null: nothing is exchanged
    rate            numeric,
    rate_id         text        NOT NULL DEFAULT '',
    rate_time       timestamptz,
    created_at      timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    used_by         uuid -- the reservation that used it
);
CREATE INDEX quotes_of_client ON quotes (client, expires_at);

-- Profiles that earlier releases set reach accounts at once. The next file copies the others.
-- +goose StatementBegin
CREATE FUNCTION copy_profile() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO accounts (account_id, owner, home_currency, status, internal, profile_at, profile_event, updated_at)
    VALUES (NEW.account_id, NEW.owner, NEW.currency, NEW.status, NEW.internal, NEW.profile_at, NEW.profile_event, now())
    ON CONFLICT (account_id) DO UPDATE
    SET owner = excluded.owner, home_currency = excluded.home_currency, status = excluded.status, internal = excluded.internal,
        profile_at = excluded.profile_at, profile_event = excluded.profile_event, updated_at = excluded.updated_at;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER copy_profile
    AFTER INSERT OR UPDATE OF owner, currency, status, internal, profile_at, profile_event ON wallet_accounts
    FOR EACH ROW EXECUTE FUNCTION copy_profile();

-- The currency of the balance: the next file makes an index with it.
ALTER TABLE wallet_accounts ADD COLUMN balance_currency text NOT NULL DEFAULT 'IDR';

-- Earlier releases open and fund accounts meanwhile, so they need the new tables' rights at once.
-- +goose StatementBegin
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgw_ledger') THEN
        GRANT SELECT, INSERT, UPDATE ON accounts TO pgw_ledger;
    END IF;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP TRIGGER copy_profile ON wallet_accounts;
DROP FUNCTION copy_profile();
ALTER TABLE wallet_accounts DROP COLUMN balance_currency;
