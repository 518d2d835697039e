-- +goose Up

-- Webhooks: the addresses at which clients want to be told what became of their payments. Only the function webhooks
-- reads and writes these tables.
CREATE TABLE IF NOT EXISTS webhook_endpoints (
    endpoint_id   uuid        PRIMARY KEY,
    client        text        NOT NULL, -- whose it is; empty: of all callers without a client
    url           text        NOT NULL CHECK (url <> ''),
    types         text[]      NOT NULL DEFAULT '{}', -- the events that it gets; empty: all
    format        text        NOT NULL CHECK (format IN ('webhook', 'cloudevents')),
    thin          boolean     NOT NULL DEFAULT false, -- its events name the payment and do not describe it
    note          text        NOT NULL DEFAULT '', -- what it is for, in the client's words
    status        text        NOT NULL CHECK (status IN ('ENABLED', 'DISABLED')),
    reason        text        NOT NULL DEFAULT '', -- why it is disabled: by_client, gone, failing
    failing_since timestamptz, -- since then every attempt has failed; null: the last one succeeded
    version       uuid        NOT NULL DEFAULT gen_random_uuid(), -- another after each change
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    disabled_at   timestamptz
);
CREATE INDEX IF NOT EXISTS webhook_endpoints_of ON webhook_endpoints (client, created_at, endpoint_id);

-- The secrets that sign, encrypted by WEBHOOK_SECRET_KEYS. While a secret is rotated there are two.
CREATE TABLE IF NOT EXISTS webhook_secrets (
    secret_id   uuid        PRIMARY KEY,
    endpoint_id uuid        NOT NULL REFERENCES webhook_endpoints ON DELETE CASCADE,
    kind        text        NOT NULL CHECK (kind IN ('v1', 'v1a')),
    key_id      text        NOT NULL, -- which of WEBHOOK_SECRET_KEYS
    sealed      bytea       NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz -- null: it is the current one
);
CREATE INDEX IF NOT EXISTS webhook_secrets_of ON webhook_secrets (endpoint_id);

-- What happened to a client's payments. The id depends only on what happened, so an event that Kafka delivers twice
-- is one row.
CREATE TABLE IF NOT EXISTS webhook_events (
    event_id    text        PRIMARY KEY,
    client      text        NOT NULL,
    type        text        NOT NULL,
    payment_key text        NOT NULL DEFAULT '', -- empty: it is not about a payment
    sequence    integer     NOT NULL DEFAULT 0, -- the place of the event in the life of the payment
    data        text        NOT NULL, -- JSON
    happened_at timestamptz NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX IF NOT EXISTS webhook_events_in_order ON webhook_events (client, payment_key, sequence) WHERE payment_key <> '';
CREATE INDEX IF NOT EXISTS webhook_events_oldest ON webhook_events (created_at);

-- One row for each endpoint and event. A function that sends a PENDING one moves due_at into the future first; if the
-- function dies, the row is due again then. WITHHELD: the endpoint was disabled.
CREATE TABLE IF NOT EXISTS webhook_deliveries (
    endpoint_id uuid        NOT NULL REFERENCES webhook_endpoints ON DELETE CASCADE,
    event_id    text        NOT NULL REFERENCES webhook_events ON DELETE CASCADE,
    status      text        NOT NULL CHECK (status IN ('PENDING', 'DELIVERED', 'FAILED', 'WITHHELD')),
    tries       integer     NOT NULL DEFAULT 0, -- attempts since it was made or sent again, for the schedule
    attempts    integer     NOT NULL DEFAULT 0, -- all attempts
    due_at      timestamptz NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at    timestamptz, -- null while it is PENDING
    PRIMARY KEY (endpoint_id, event_id)
);
CREATE INDEX IF NOT EXISTS webhook_deliveries_due ON webhook_deliveries (endpoint_id, due_at) WHERE status = 'PENDING';
CREATE INDEX IF NOT EXISTS webhook_deliveries_newest ON webhook_deliveries (endpoint_id, created_at DESC, event_id);
CREATE INDEX IF NOT EXISTS webhook_deliveries_of ON webhook_deliveries (event_id);

CREATE TABLE IF NOT EXISTS webhook_attempts (
    endpoint_id uuid        NOT NULL,
    event_id    text        NOT NULL,
    number      integer     NOT NULL, -- from 1
    at          timestamptz NOT NULL,
    code        integer     NOT NULL, -- the HTTP status; 0: there was no answer
    result      text        NOT NULL, -- delivered, or why not
    micros      bigint      NOT NULL, -- how long it took
    answer      text        NOT NULL, -- the first bytes of the answer, or what went wrong
    PRIMARY KEY (endpoint_id, event_id, number),
    FOREIGN KEY (endpoint_id, event_id) REFERENCES webhook_deliveries ON DELETE CASCADE
);

-- +goose Down
-- What clients were told is not thrown away. The earlier release does not know the tables.
SELECT 1;
