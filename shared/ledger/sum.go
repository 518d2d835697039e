package ledger

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// Sum shows whether the ledger adds up. The amounts are of the balances in rupiah.
type Sum struct {
	Balances int64 // of all accounts, except the world outside
	Holds    int64 // of PENDING reservations
	Funded   int64 // money that came in, minus money that went out

	Pending       int64 // reservations that hold money
	AccountsOff   int64 // balances that differ from their entries, or whose holds differ from the reservations
	CurrenciesOff int64 // currencies whose balances and holds, with the world outside, do not sum to zero
	BookedOff     int64 // payments and transfers whose entries differ from them
	OutcomesOff   int64 // reservations whose payment row contradicts them, is missing, or came too early
	KeysUnclaimed int64 // payments without a reservation
}

// Err describes the difference. It is nil if everything adds up.
func (s Sum) Err() error {
	if s.Balances+s.Holds == s.Funded && s.AccountsOff+s.CurrenciesOff+s.BookedOff+s.OutcomesOff+s.KeysUnclaimed == 0 {
		return nil
	}
	return fmt.Errorf("the ledger does not add up: balances %d + holds %d, funded %d; %d balances, %d currencies, %d bookings, %d outcomes and %d payments are off",
		s.Balances, s.Holds, s.Funded, s.AccountsOff, s.CurrenciesOff, s.BookedOff, s.OutcomesOff, s.KeysUnclaimed)
}

const (
	// shouldSQL calculates each balance from its entries, and its holds from the reservations.
	shouldSQL = `
should AS (
	SELECT account_id, currency, sum(amount)::bigint AS amount, sum(held)::bigint AS held FROM (
		SELECT account_id, currency, amount, 0 AS held FROM entries
		UNION ALL
		SELECT leg.account_id, leg.currency, 0, leg.held
		FROM (SELECT ` + movedSQL + ` FROM reservations r WHERE r.status = 'PENDING') p, ` + legsSQL + ` WHERE leg.held > 0) m
	GROUP BY account_id, currency
)`
	accountOffSQL = `
coalesce(b.available + b.held, 0) <> coalesce(s.amount, 0) OR coalesce(b.held, 0) <> coalesce(s.held, 0)`

	// bookedOffSQL lists the transactions whose entries are not those of their payment or transfer.
	bookedOffSQL = `
booked_off AS (
	SELECT transaction_id FROM (
		SELECT p.reservation_id AS transaction_id, leg.account_id, leg.currency, leg.kind, leg.amount, p.decided_at AS booked_at
		FROM (SELECT ` + movedSQL + `, o.decided_at FROM reservations r LEFT JOIN payments o ON o.payment_id = r.reservation_id
			WHERE r.status = 'COMMITTED') p, ` + legsSQL + `
		UNION ALL
		SELECT md5(t.transfer_id)::uuid, leg.account_id, t.currency, CASE WHEN t.amount > 0 THEN 'funding' ELSE 'withdrawal' END, leg.amount, t.booked_at
		FROM transfers t, LATERAL (SELECT t.account_id, t.amount UNION ALL SELECT '` + payment.OutsideAccount + `', -t.amount) leg
	) w FULL JOIN entries e USING (transaction_id, account_id, currency, kind, amount, booked_at)
	WHERE w.transaction_id IS NULL OR e.transaction_id IS NULL
	GROUP BY transaction_id
)`
	outcomeOffSQL = `
p.status IS DISTINCT FROM CASE r.status WHEN 'COMMITTED' THEN 'SUCCESS' WHEN 'ROLLEDBACK' THEN 'FAILED' END
OR (p.payment_id IS NOT NULL AND (p.sender_id, p.receiver_id, p.amount_idr) IS DISTINCT FROM (r.sender_id, r.receiver_id, r.amount_idr))`

	// One statement uses one snapshot, so it can run while payments are made.
	sumSQL = `WITH ` + shouldSQL + `, ` + bookedOffSQL + `
SELECT (SELECT coalesce(sum(available), 0)::bigint FROM balances WHERE currency = 'IDR' AND account_id <> '` + payment.OutsideAccount + `'),
	(SELECT coalesce(sum(held), 0)::bigint FROM balances WHERE currency = 'IDR'),
	(SELECT coalesce(sum(amount), 0)::bigint FROM transfers WHERE currency = 'IDR'),
	(SELECT count(*) FROM reservations WHERE status = 'PENDING'),
	(SELECT count(*) FROM balances b FULL JOIN should s USING (account_id, currency) WHERE ` + accountOffSQL + `),
	(SELECT count(*) FROM (SELECT FROM balances GROUP BY currency HAVING sum(available + held) <> 0) c),
	(SELECT count(*) FROM booked_off),
	(SELECT count(*) FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id WHERE ` + outcomeOffSQL + `),
	(SELECT count(*) FROM payments p LEFT JOIN reservations r ON r.reservation_id = p.payment_id
	 WHERE r.idempotency_key IS DISTINCT FROM p.idempotency_key)`

	// It also lists payments of exactly the missing or surplus amount, because an operator checks
	// these first.
	accountsOffSQL = `WITH ` + shouldSQL + `, off AS (
	SELECT account_id, currency, coalesce(b.available + b.held, 0) AS balance, coalesce(s.amount, 0) AS should,
		coalesce(b.held, 0) AS held, coalesce(s.held, 0) AS should_hold
	FROM balances b FULL JOIN should s USING (account_id, currency)
	WHERE ` + accountOffSQL + ` ORDER BY account_id, currency LIMIT $1
)
SELECT account_id, currency, balance, should, held, should_hold, ARRAY(
	SELECT r.idempotency_key FROM reservations r
	WHERE abs(off.balance - off.should) IN (coalesce(r.debit_minor, r.amount_idr), coalesce(r.credit_minor, r.amount_idr))
		AND off.account_id IN (r.sender_id, r.receiver_id)
	ORDER BY r.reservation_id DESC LIMIT 3)
FROM off`

	bookingsOffSQL = `WITH ` + bookedOffSQL + `
SELECT coalesce(r.idempotency_key, ''), coalesce(t.transfer_id, ''), coalesce(t.account_id, ''), o.transaction_id
FROM booked_off o LEFT JOIN reservations r ON r.reservation_id = o.transaction_id
LEFT JOIN transfers t ON md5(t.transfer_id)::uuid = o.transaction_id LIMIT $1`

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
	err := q.QueryRow(ctx, sumSQL).Scan(&s.Balances, &s.Holds, &s.Funded, &s.Pending, &s.AccountsOff, &s.CurrenciesOff, &s.BookedOff,
		&s.OutcomesOff, &s.KeysUnclaimed)
	if err != nil {
		return s, fmt.Errorf("add the ledger up: %w", err)
	}
	return s, nil
}

// AccountOff is a balance that differs from its entries, or whose holds differ from the reservations.
// Amounts are in minor units.
type AccountOff struct {
	ID               string
	Currency         string
	Balance, Should  int64    // with what is held
	Held, ShouldHold int64    // for payments that are not decided
	Payments         []string // up to three keys of payments with the amount of the difference
}

// BookingOff is a payment or a transfer whose entries differ from it. If entries belong to neither,
// only the transaction's id is set.
type BookingOff struct {
	Key         string // of the payment
	Transfer    string // the transfer's id
	Account     string // of the transfer
	Transaction uuid.UUID
}

// ReadBookingsOff lists up to limit of these.
func ReadBookingsOff(ctx context.Context, q postgres.Querier, limit int) ([]BookingOff, error) {
	rows, err := q.Query(ctx, bookingsOffSQL, limit)
	if err != nil {
		return nil, fmt.Errorf("list bookings that are off: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[BookingOff])
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
