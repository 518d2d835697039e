-- +goose NO TRANSACTION
-- +goose Up

-- The prices at which money is exchanged: bid is what the house pays for one unit of base, and ask is what it takes for
-- one. Both are null for a rate without a spread: its bid and ask are the rate itself, which is in the middle. Each
-- statement is its own transaction, so that no lock is held while the constraint is validated.
ALTER TABLE fx_rates ADD COLUMN IF NOT EXISTS bid numeric, ADD COLUMN IF NOT EXISTS ask numeric;

ALTER TABLE fx_rates DROP CONSTRAINT IF EXISTS fx_rates_spread, ADD CONSTRAINT fx_rates_spread
    CHECK ((bid IS NULL) = (ask IS NULL) AND bid > 0 AND bid <= rate AND rate <= ask) NOT VALID;
ALTER TABLE fx_rates VALIDATE CONSTRAINT fx_rates_spread;

-- +goose Down
ALTER TABLE fx_rates DROP CONSTRAINT fx_rates_spread, DROP COLUMN ask, DROP COLUMN bid;
