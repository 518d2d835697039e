-- +goose Up

-- One row for each account. balance_idr is the money that can be spent. A hold is subtracted from
-- it when the hold is made. Updates that settle payments change no indexed column, and the fill
-- factor leaves room for the new row version on the same page, so they are heap-only.
CREATE TABLE wallet_accounts (
    account_id      text        PRIMARY KEY CHECK (account_id <> ''),
    owner           text        NOT NULL DEFAULT '',
    currency        text        NOT NULL DEFAULT 'IDR', -- the owner's own currency; balances are rupiah
    status          text        NOT NULL DEFAULT 'ACTIVE' CHECK (status IN ('ACTIVE', 'BLOCKED')),
    internal        boolean     NOT NULL DEFAULT false, -- an account of the house
    balance_idr     bigint      NOT NULL DEFAULT 0 CHECK (balance_idr >= 0),
    daily_limit_idr bigint      NOT NULL DEFAULT 0 CHECK (daily_limit_idr >= 0), -- for a UTC day; 0: no limit
    spent_day       integer     NOT NULL DEFAULT 0, -- days since 1970, UTC
    spent_today_idr bigint      NOT NULL DEFAULT 0 CHECK (spent_today_idr >= 0), -- held or paid on spent_day
    started_minute  integer     NOT NULL DEFAULT 0, -- minutes since 1970, UTC
    started_count   integer     NOT NULL DEFAULT 0, -- payments held in started_minute
    profile_at      timestamptz NOT NULL DEFAULT '-infinity', -- time of the newest account.opened that was applied
    updated_at      timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- Money that came in from outside, or was taken out (negative). The primary key makes each funding
-- event count once.
CREATE TABLE fundings (
    funding_id text        PRIMARY KEY,
    account_id text        NOT NULL REFERENCES wallet_accounts,
    amount_idr bigint      NOT NULL CHECK (amount_idr <> 0),
    note       text        NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX fundings_account ON fundings (account_id);

-- The claims: one row for every idempotency key that reached the ledger, for ever. A PENDING row
-- holds the sender's money. A refused payment is ROLLEDBACK from the start. No index contains
-- status, so the one update in a row's life stays heap-only. The sweep finds old rows by the
-- primary key, which is ordered by time (UUIDv7).
CREATE TABLE reservations (
    reservation_id  uuid        PRIMARY KEY,
    idempotency_key text        NOT NULL UNIQUE,
    fingerprint     bytea       NOT NULL,
    attempt_id      text        NOT NULL DEFAULT '',
    sender_id       text        NOT NULL,
    receiver_id     text        NOT NULL,
    amount_idr      bigint      NOT NULL CHECK (amount_idr > 0),
    currency_input  text        NOT NULL,
    amount_minor    bigint      NOT NULL DEFAULT 0, -- as sent, in minor units of currency_input; 0: unknown
    rate            numeric     CHECK (rate > 0), -- null: the caller converted the amount
    rate_id         text        NOT NULL DEFAULT '',
    rate_time       timestamptz,
    rule_set        text        NOT NULL DEFAULT '',
    tx_date         text        NOT NULL DEFAULT '',
    status          text        NOT NULL CHECK (status IN ('PENDING', 'COMMITTED', 'ROLLEDBACK')),
    untold          boolean     NOT NULL DEFAULT false, -- rolled back by a sweep, and the result is not published yet
    accepted_at     timestamptz,
    deadline        timestamptz NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CHECK (sender_id <> receiver_id OR status = 'ROLLEDBACK')
) WITH (fillfactor = 70);

-- The outcomes: one row for every decided key. It has the reservation's id, so a reservation cannot
-- have two outcomes.
CREATE TABLE payments (
    payment_id      uuid        PRIMARY KEY,
    idempotency_key text        NOT NULL,
    sender_id       text        NOT NULL,
    receiver_id     text        NOT NULL,
    currency_input  text        NOT NULL,
    amount_idr      bigint      NOT NULL CHECK (amount_idr > 0),
    status          text        NOT NULL CHECK (status IN ('SUCCESS', 'FAILED')),
    reason          text        NOT NULL,
    decided_at      timestamptz NOT NULL DEFAULT now()
);

-- Everything that is known about a payment, for people.
CREATE VIEW payment_history AS
SELECT r.reservation_id AS payment_id, r.idempotency_key, r.sender_id, r.receiver_id,
       r.currency_input, r.amount_minor, r.rate, r.rate_id, r.rate_time, r.amount_idr, r.rule_set, r.tx_date,
       r.status AS reservation_status, p.status, p.reason,
       r.accepted_at, r.created_at AS reserved_at, r.deadline, p.decided_at
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id;

-- All rates, past and present. The newest rate of a pair is the current one.
CREATE TABLE fx_rates (
    rate_id      uuid        PRIMARY KEY,
    base         text        NOT NULL,
    quote        text        NOT NULL,
    rate         numeric     NOT NULL CHECK (rate > 0),
    effective_at timestamptz NOT NULL DEFAULT now(),
    CHECK (base <> quote)
);
CREATE INDEX fx_rates_newest ON fx_rates (base, quote, effective_at DESC, rate_id DESC);

-- All rule sets, past and present. The newest is the current one.
CREATE TABLE risk_rules (
    rule_set   uuid        PRIMARY KEY,
    rules      jsonb       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- All payments reserved before swept_to are decided, and their results are published. One row.
CREATE TABLE sweep_state (
    only_row boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    swept_to timestamptz NOT NULL
);
INSERT INTO sweep_state (swept_to) VALUES ('epoch');

-- Captured wallet holds are paid to this account.
INSERT INTO wallet_accounts (account_id, owner, internal) VALUES ('SETTLEMENT', 'House settlement', true);

-- +goose Down
-- +goose StatementBegin
DO $$ BEGIN RAISE EXCEPTION 'the ledger is not thrown away: drop its database by hand'; END $$;
-- +goose StatementEnd
