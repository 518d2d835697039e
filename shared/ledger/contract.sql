-- This takes away what only releases before refunds use. `pgw migrate --contract` runs it, when none of them runs any
-- more. It may be repeated. It locks tables for a moment only.

DROP TRIGGER IF EXISTS reserved_earlier ON reservations;
DROP TRIGGER IF EXISTS ended_earlier ON reservations;
DROP TRIGGER IF EXISTS leave_to_newer ON reservations;
DROP TRIGGER IF EXISTS leave_refund_to_newer ON reservations;
DROP TRIGGER IF EXISTS funded_earlier ON transfers;
DROP TRIGGER IF EXISTS show_profile ON accounts;
DROP FUNCTION IF EXISTS reserved_earlier(), ended_earlier(), leave_to_newer(), leave_refund_to_newer(), funded_earlier(), show_profile();
DROP VIEW IF EXISTS fundings;

-- wallet_accounts stays, for those who read it.
DROP VIEW IF EXISTS wallet_accounts;
CREATE VIEW wallet_accounts AS
SELECT account_id, available AS balance_idr, updated_at FROM balances WHERE currency = 'IDR' AND account_id NOT IN ('LIQUIDITY', 'SPREAD', 'OUTSIDE');
ALTER TABLE balances
    DROP COLUMN IF EXISTS owner,
    DROP COLUMN IF EXISTS home_currency,
    DROP COLUMN IF EXISTS internal,
    DROP COLUMN IF EXISTS profile_at,
    DROP COLUMN IF EXISTS profile_event;
UPDATE schema_support SET oldest_release = greatest(oldest_release, 18);
