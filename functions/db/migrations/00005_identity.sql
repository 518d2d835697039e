-- +goose Up

-- Of two profiles of the same instant the greater event wins, in whatever order they come.
ALTER TABLE wallet_accounts ADD COLUMN profile_event text COLLATE "C" NOT NULL DEFAULT '';
-- The source of the event that funded. Rows of before have none: an id of theirs that holds a second # may be of
-- either of two events.
ALTER TABLE fundings ADD COLUMN source text NOT NULL DEFAULT '';
-- A time that lies ahead is refused now. What one has frozen before goes on.
UPDATE wallet_accounts SET profile_at = now() WHERE profile_at > now() + interval '1 minute';

-- +goose Down
ALTER TABLE fundings DROP COLUMN source;
ALTER TABLE wallet_accounts DROP COLUMN profile_event;
