package ledger

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/postgres"
)

// Sum shows whether the ledger adds up. All amounts are rupiah.
type Sum struct {
	Balances int64 // of all accounts
	Holds    int64 // of PENDING reservations
	Funded   int64 // money that came in, minus money that went out

	Pending       int64 // reservations that hold money
	AccountsOff   int64 // accounts whose balance differs from their fundings, payments and holds
	OutcomesOff   int64 // reservations whose payment row contradicts them, is missing, or came too early
	KeysUnclaimed int64 // payments without a reservation
}

// Err describes the difference. It is nil if everything adds up.
func (s Sum) Err() error {
	if s.Balances+s.Holds == s.Funded && s.AccountsOff == 0 && s.OutcomesOff == 0 && s.KeysUnclaimed == 0 {
		return nil
	}
	return fmt.Errorf("the ledger does not add up: balances %d + holds %d, funded %d; %d accounts, %d outcomes and %d payments are off",
		s.Balances, s.Holds, s.Funded, s.AccountsOff, s.OutcomesOff, s.KeysUnclaimed)
}

const (
	// movedSQL calculates each account's balance from its fundings, payments and holds.
	movedSQL = `
moved AS (
	SELECT account_id, sum(amount) AS amount FROM (
		SELECT account_id, amount_idr AS amount FROM fundings
		UNION ALL
		SELECT sender_id, -amount_idr FROM reservations WHERE status IN ('PENDING', 'COMMITTED')
		UNION ALL
		SELECT receiver_id, amount_idr FROM reservations WHERE status = 'COMMITTED') m
	GROUP BY account_id
)`
	accountOffSQL = `coalesce(a.balance_idr, 0) <> coalesce(m.amount, 0)`
	outcomeOffSQL = `
p.status IS DISTINCT FROM CASE r.status WHEN 'COMMITTED' THEN 'SUCCESS' WHEN 'ROLLEDBACK' THEN 'FAILED' END
OR (p.payment_id IS NOT NULL AND (p.sender_id, p.receiver_id, p.amount_idr) IS DISTINCT FROM (r.sender_id, r.receiver_id, r.amount_idr))`

	// One statement uses one snapshot, so it can run while payments are made.
	sumSQL = `WITH ` + movedSQL + `
SELECT (SELECT coalesce(sum(balance_idr), 0)::bigint FROM wallet_accounts),
	(SELECT coalesce(sum(amount_idr), 0)::bigint FROM reservations WHERE status = 'PENDING'),
	(SELECT coalesce(sum(amount_idr), 0)::bigint FROM fundings),
	(SELECT count(*) FROM reservations WHERE status = 'PENDING'),
	(SELECT count(*) FROM wallet_accounts a FULL JOIN moved m USING (account_id) WHERE ` + accountOffSQL + `),
	(SELECT count(*) FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id WHERE ` + outcomeOffSQL + `),
	(SELECT count(*) FROM payments p LEFT JOIN reservations r ON r.reservation_id = p.payment_id
	 WHERE r.idempotency_key IS DISTINCT FROM p.idempotency_key)`

	// It also lists payments of exactly the missing or surplus amount, because an operator checks
	// these first.
	accountsOffSQL = `WITH ` + movedSQL + `, off AS (
	SELECT account_id, coalesce(a.balance_idr, 0) AS balance, coalesce(m.amount, 0)::bigint AS should
	FROM wallet_accounts a FULL JOIN moved m USING (account_id)
	WHERE ` + accountOffSQL + ` ORDER BY account_id LIMIT $1
)
SELECT account_id, balance, should, ARRAY(
	SELECT r.idempotency_key FROM reservations r
	WHERE r.amount_idr = abs(off.balance - off.should) AND off.account_id IN (r.sender_id, r.receiver_id)
	ORDER BY r.reservation_id DESC LIMIT 3)
FROM off`

	outcomesOffSQL = `
SELECT r.idempotency_key, r.reservation_id, CASE
	WHEN p.payment_id IS NULL THEN 'is ' || r.status || ' and has no outcome row'
	WHEN r.status = 'PENDING' THEN 'is PENDING and has an outcome row: ' || p.status
	WHEN p.status IS DISTINCT FROM CASE r.status WHEN 'COMMITTED' THEN 'SUCCESS' ELSE 'FAILED' END
		THEN 'is ' || r.status || ' and its outcome row says ' || p.status
	ELSE 'its outcome row has other parties or another amount' END
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id WHERE ` + outcomeOffSQL + `
UNION ALL
SELECT p.idempotency_key, p.payment_id, 'has an outcome row, ' || p.status || ', and no claim of this key'
FROM payments p LEFT JOIN reservations r ON r.reservation_id = p.payment_id
WHERE r.idempotency_key IS DISTINCT FROM p.idempotency_key
LIMIT $1`
)

// ReadSum adds up the ledger.
func ReadSum(ctx context.Context, q postgres.Querier) (Sum, error) {
	var s Sum
	err := q.QueryRow(ctx, sumSQL).Scan(&s.Balances, &s.Holds, &s.Funded, &s.Pending, &s.AccountsOff, &s.OutcomesOff, &s.KeysUnclaimed)
	if err != nil {
		return s, fmt.Errorf("add the ledger up: %w", err)
	}
	return s, nil
}

// AccountOff is an account whose balance differs from its fundings, payments and holds.
type AccountOff struct {
	ID              string
	Balance, Should int64    // rupiah
	Payments        []string // up to three keys of payments with the amount of the difference
}

// ReadAccountsOff lists up to limit of these accounts.
func ReadAccountsOff(ctx context.Context, q postgres.Querier, limit int) ([]AccountOff, error) {
	rows, err := q.Query(ctx, accountsOffSQL, limit)
	if err != nil {
		return nil, fmt.Errorf("list accounts that are off: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[AccountOff])
}

// OutcomeOff is a payment whose two rows contradict each other.
type OutcomeOff struct {
	Key     string
	ID      uuid.UUID
	Problem string
}

// ReadOutcomesOff lists up to limit of these payments.
func ReadOutcomesOff(ctx context.Context, q postgres.Querier, limit int) ([]OutcomeOff, error) {
	rows, err := q.Query(ctx, outcomesOffSQL, limit)
	if err != nil {
		return nil, fmt.Errorf("list outcomes that are off: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[OutcomeOff])
}
