-- +goose Up

-- What operators changed in accounts, rates, rules and liquidity, with who and why. The things
-- themselves are in their own tables. Changes without a known operator, such as those of a bank's
-- events, are not here.
CREATE TABLE operator_changes (
    change_id  uuid        PRIMARY KEY,
    kind       text        NOT NULL CHECK (kind <> ''), -- account, funding, rate, rules, liquidity
    subject    text        NOT NULL CHECK (subject <> ''), -- the account, the pair, the rule set, the currency
    detail     jsonb       NOT NULL DEFAULT '{}', -- what it was changed to
    operator   text        NOT NULL CHECK (operator <> ''), -- who ordered it
    note       text        NOT NULL DEFAULT '', -- why
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX operator_changes_of ON operator_changes (subject, changed_at DESC, change_id DESC);
CREATE INDEX operator_changes_newest ON operator_changes (changed_at DESC, change_id DESC);

-- +goose Down
-- +goose StatementBegin
DO $$ BEGIN RAISE EXCEPTION 'what operators did is not thrown away: drop the database by hand'; END $$;
-- +goose StatementEnd
