-- +goose Up

-- The database's clock decides which rates and rules are the newest. Before this, the replicas'
-- clocks did, and a row that one of them dated in the future would have stayed the newest for ever.
UPDATE fx_rates SET effective_at = now() WHERE effective_at > now();
UPDATE risk_rules SET created_at = now() WHERE created_at > now();
-- The current rules stay current. So far these were the rules with the highest id.
UPDATE risk_rules SET created_at = greatest(now(), (SELECT max(created_at) FROM risk_rules)) + interval '1 microsecond'
WHERE rule_set = (SELECT rule_set FROM risk_rules ORDER BY rule_set DESC LIMIT 1)
    AND EXISTS (SELECT FROM risk_rules other WHERE (other.created_at, other.rule_set) > (risk_rules.created_at, risk_rules.rule_set));
CREATE INDEX risk_rules_newest ON risk_rules (created_at DESC, rule_set DESC);

-- Replicas' clocks made the ids of reservations and set swept_to. So the next sweep reads all
-- reservations once more.
UPDATE sweep_state SET swept_to = 'epoch';

-- +goose Down
DROP INDEX risk_rules_newest;
