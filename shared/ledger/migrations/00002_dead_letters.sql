-- +goose Up

-- The actions of operators on dead letters. The letters themselves are in Kafka, which keeps them
-- until their retention ends and cannot mark them. So an action names its letter by topic,
-- partition and offset.
CREATE TABLE dead_letter_actions (
    action_id     uuid        PRIMARY KEY,
    topic         text        NOT NULL CHECK (topic <> ''),
    partition     integer     NOT NULL CHECK (partition >= 0),
    record_offset bigint      NOT NULL CHECK (record_offset >= 0),
    event_id      text        NOT NULL DEFAULT '',
    event_key     text        NOT NULL DEFAULT '',
    action        text        NOT NULL CHECK (action IN ('REDRIVEN', 'DISCARDED')),
    operator      text        NOT NULL CHECK (operator <> ''), -- who did it
    note          text        NOT NULL DEFAULT '', -- why
    acted_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letter_actions_of ON dead_letter_actions (topic, action_id);

-- +goose Down
-- +goose StatementBegin
DO $$ BEGIN RAISE EXCEPTION 'what operators did is not thrown away: drop the database by hand'; END $$;
-- +goose StatementEnd
