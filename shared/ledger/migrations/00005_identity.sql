-- +goose Up

-- Of two profiles with the same time, the one with the greater profile_event wins, in any order of
-- arrival.
ALTER TABLE wallet_accounts ADD COLUMN profile_event text COLLATE "C" NOT NULL DEFAULT '';
-- The source of the funding event. Older rows have none: an id of theirs with a second # may belong
-- to either of two events.
ALTER TABLE fundings ADD COLUMN source text NOT NULL DEFAULT '';
-- A time in the future is refused now. Accounts that such a time has frozen before can change
-- again.
UPDATE wallet_accounts SET profile_at = now() WHERE profile_at > now() + interval '1 minute';

-- +goose Down
ALTER TABLE fundings DROP COLUMN source;
ALTER TABLE wallet_accounts DROP COLUMN profile_event;
