-- +goose Up

-- The database's clock decides which rates and which rules are the newest. Replicas' clocks did so before: what one of them
-- put into the future would stay in force for ever.
UPDATE fx_rates SET effective_at = now() WHERE effective_at > now();
UPDATE risk_rules SET created_at = now() WHERE created_at > now();
-- The rules in force stay in force: so far they were the ones with the highest id.
UPDATE risk_rules SET created_at = greatest(now(), (SELECT max(created_at) FROM risk_rules)) + interval '1 microsecond'
WHERE rule_set = (SELECT rule_set FROM risk_rules ORDER BY rule_set DESC LIMIT 1)
    AND EXISTS (SELECT FROM risk_rules other WHERE (other.created_at, other.rule_set) > (risk_rules.created_at, risk_rules.rule_set));
CREATE INDEX risk_rules_newest ON risk_rules (created_at DESC, rule_set DESC);

-- Replicas' clocks made the ids of reservations, and set the mark: the next sweep looks at all of them once more.
UPDATE sweep_state SET swept_to = 'epoch';

-- +goose Down
DROP INDEX risk_rules_newest;
