-- +goose NO TRANSACTION
-- +goose Up

-- An event that could not be delivered may have several records in Kafka: in payments.deadletter, in payments.parked,
-- and again after each redrive. They are one letter. letter_id identifies it, and ordinal numbers its actions from 1.
-- Each number is taken once, so only one of two operators who act at the same time succeeds. Actions of earlier releases
-- have no letter_id. NOT_SENT takes back a REDRIVEN whose event was certainly not sent.
ALTER TABLE dead_letter_actions ADD COLUMN IF NOT EXISTS letter_id text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS ordinal integer NOT NULL DEFAULT 0;

ALTER TABLE dead_letter_actions DROP CONSTRAINT IF EXISTS dead_letter_actions_action_check,
    DROP CONSTRAINT IF EXISTS dead_letter_actions_known, ADD CONSTRAINT dead_letter_actions_known
    CHECK (action IN ('REDRIVEN', 'DISCARDED', 'NOT_SENT')) NOT VALID;
ALTER TABLE dead_letter_actions VALIDATE CONSTRAINT dead_letter_actions_known;

DROP INDEX CONCURRENTLY IF EXISTS dead_letter_actions_once;
CREATE UNIQUE INDEX CONCURRENTLY dead_letter_actions_once ON dead_letter_actions (letter_id, ordinal) WHERE letter_id <> '';

-- /status asks again and again which places of a topic have an action.
DROP INDEX CONCURRENTLY IF EXISTS dead_letter_actions_place;
CREATE INDEX CONCURRENTLY dead_letter_actions_place ON dead_letter_actions (topic, partition, record_offset);

-- +goose Down
-- What operators did is not thrown away. The earlier release leaves the columns empty.
SELECT 1;
