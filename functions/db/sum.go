package db

import (
	"context"
	"fmt"

	"pgw/shared/postgres"
)

// Sum is the ledger's own proof, in rupiah.
type Sum struct {
	Balances int64 // of all accounts
	Holds    int64 // PENDING
	Funded   int64 // what came in, less what went out

	Pending       int64 // reservations that hold money
	AccountsOff   int64 // whose balance is not what their funding, payments and holds make
	OutcomesOff   int64 // reservations whose payment row says otherwise, or is missing, or stands too soon
	KeysUnclaimed int64 // payments without their reservation
}

// Err says what does not add up; nil when all does.
func (s Sum) Err() error {
	if s.Balances+s.Holds == s.Funded && s.AccountsOff == 0 && s.OutcomesOff == 0 && s.KeysUnclaimed == 0 {
		return nil
	}
	return fmt.Errorf("the ledger does not add up: balances %d + holds %d, funded %d; %d accounts, %d outcomes and %d payments are off",
		s.Balances, s.Holds, s.Funded, s.AccountsOff, s.OutcomesOff, s.KeysUnclaimed)
}

// One statement is one snapshot, so it can be taken while payments are being made.
const sumSQL = `
WITH moved AS (
	SELECT account_id, sum(amount) AS amount FROM (
		SELECT account_id, amount_idr AS amount FROM fundings
		UNION ALL
		SELECT sender_id, -amount_idr FROM reservations WHERE status IN ('PENDING', 'COMMITTED')
		UNION ALL
		SELECT receiver_id, amount_idr FROM reservations WHERE status = 'COMMITTED') m
	GROUP BY account_id
)
SELECT (SELECT coalesce(sum(balance_idr), 0)::bigint FROM wallet_accounts),
	(SELECT coalesce(sum(amount_idr), 0)::bigint FROM reservations WHERE status = 'PENDING'),
	(SELECT coalesce(sum(amount_idr), 0)::bigint FROM fundings),
	(SELECT count(*) FROM reservations WHERE status = 'PENDING'),
	(SELECT count(*) FROM wallet_accounts a FULL JOIN moved m USING (account_id) WHERE coalesce(a.balance_idr, 0) <> coalesce(m.amount, 0)),
	(SELECT count(*) FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id
	 WHERE p.status IS DISTINCT FROM CASE r.status WHEN 'COMMITTED' THEN 'SUCCESS' WHEN 'ROLLEDBACK' THEN 'FAILED' END),
	(SELECT count(*) FROM payments p LEFT JOIN reservations r ON r.reservation_id = p.payment_id
	 WHERE r.idempotency_key IS DISTINCT FROM p.idempotency_key)`

// ReadSum adds the ledger up.
func ReadSum(ctx context.Context, q postgres.Querier) (Sum, error) {
	var s Sum
	err := q.QueryRow(ctx, sumSQL).Scan(&s.Balances, &s.Holds, &s.Funded, &s.Pending, &s.AccountsOff, &s.OutcomesOff, &s.KeysUnclaimed)
	if err != nil {
		return s, fmt.Errorf("add the ledger up: %w", err)
	}
	return s, nil
}
