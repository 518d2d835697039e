package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// The reads of operators' commands, apart from the checks in sum.go.

const (
	keptClaimsSQL = `
SELECT ` + claimColumns + `
FROM reservations r ` + outcomeOf + ` WHERE starts_with(r.idempotency_key, $1)`
)

// ReadClaims returns the claims of all keys that begin with prefix, in no order. It reads every claim.
func ReadClaims(ctx context.Context, q postgres.Querier, prefix string) ([]Claim, error) {
	rows, err := q.Query(ctx, keptClaimsSQL, prefix)
	if err != nil {
		return nil, fmt.Errorf("read claims: %w", err)
	}
	claims, err := collectClaims(rows)
	if err != nil {
		return nil, fmt.Errorf("read claims: %w", err)
	}
	return claims, nil
}

var (
	eachRecordSQL = recordForm(`FROM reservations r `+outcomeHere+`
WHERE r.reservation_id >= $1`, "")

	recordsSQL = recordForm(`FROM reservations r `+outcomeHere+`
WHERE r.idempotency_key = ANY($1)`, "")
)

// EachRecord reads the payments that were reserved since a time, in no order. It calls take for each
// one while it reads, and keeps none. The zero time means all.
func EachRecord(ctx context.Context, q postgres.Querier, since time.Time, take func(payment.Record) error) error {
	// Ids begin with the time of the database, so the index finds the newer payments.
	from := uuid.Nil
	if !since.IsZero() {
		from = firstID(since.Add(-time.Second))
	}
	rows, err := eachRecordSQL.query(ctx, q, from)
	if err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		rec, err := scanRecord(rows)
		if err == nil {
			err = take(rec)
		}
		if err != nil {
			return fmt.Errorf("read the ledger: %w", err)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	return nil
}

// ReadRecords reads the payments of keys, of all clients, in no order.
func ReadRecords(ctx context.Context, q postgres.Querier, keys []string) ([]payment.Record, error) {
	rows, err := recordsSQL.query(ctx, q, keys)
	if err != nil {
		return nil, fmt.Errorf("read payments: %w", err)
	}
	records, err := pgx.CollectRows(rows, scanRecord)
	if err != nil {
		return nil, fmt.Errorf("read payments: %w", err)
	}
	return records, nil
}

// KeptOperation is a capture, a void or a cancellation as the ledger keeps it.
type KeptOperation struct {
	// Operation names the payment as its client did. Its Minor is what was moved, in the payment's debit
	// currency, and 0 if nothing was: the ledger keeps no amount that its client has asked for.
	payment.Operation
	Claimed   payment.Fingerprint // of what its client sent
	Reason    payment.Reason
	DecidedAt time.Time
	Ref       string // of the payment

	// How the payment is now. Without a state, the ledger has no such payment.
	State  payment.ReservationStatus
	Ended  payment.Reason
	Debits int64
}

var (
	operationsSinceSQL = operations(`WHERE o.decided_at >= $1`)
	operationsSQL      = operations(`WHERE (o.client, o.idempotency_key) IN (SELECT * FROM unnest($1::text[], $2::text[]))`)
)

// operations makes the statement that reads the operations o of a WHERE clause.
func operations(where string) *form {
	const columns = `
SELECT o.client, o.idempotency_key, o.kind, o.fingerprint, o.attempt_id, o.reservation_id::text, o.amount_minor, o.reason, o.note, o.accepted_at, o.decided_at,
	coalesce(r.idempotency_key, ''), coalesce(r.client, ''), coalesce(r.debit_currency, 'IDR'), coalesce(r.debit_minor, 0), coalesce(r.status, ''), coalesce(p.reason, '')
`
	return &form{
		one: columns + `FROM operations o LEFT JOIN reservations r ON r.reservation_id = o.reservation_id LEFT JOIN payments p ON p.payment_id = o.reservation_id
` + where,

		// A payment may be on another node than its operation.
		rows: `
WITH found AS MATERIALIZED (
	SELECT o.* FROM operations o ` + where + `
), ends AS MATERIALIZED (
	SELECT r.reservation_id, r.idempotency_key, r.client, r.debit_currency, r.debit_minor, r.status
	FROM reservations r WHERE r.reservation_id IN (SELECT reservation_id FROM found)
), outcomes AS MATERIALIZED (
	SELECT p.payment_id, p.reason FROM payments p WHERE p.payment_id IN (SELECT reservation_id FROM found)
)` + columns + `FROM found o LEFT JOIN ends r ON r.reservation_id = o.reservation_id LEFT JOIN outcomes p ON p.payment_id = o.reservation_id`,
	}
}

// EachOperation reads the captures, voids and cancellations since a time, as EachRecord reads payments.
func EachOperation(ctx context.Context, q postgres.Querier, since time.Time, take func(KeptOperation) error) error {
	return readOperations(ctx, q, take, operationsSinceSQL, since)
}

// ReadOperations reads the captures, voids and cancellations of keys, in no order.
func ReadOperations(ctx context.Context, q postgres.Querier, keys []payment.ScopedKey) (found []KeptOperation, err error) {
	clients, texts := make([]string, len(keys)), make([]string, len(keys))
	for i, key := range keys {
		clients[i], texts[i] = key.Client, key.Key
	}
	err = readOperations(ctx, q, func(o KeptOperation) error {
		found = append(found, o)
		return nil
	}, operationsSQL, clients, texts)
	return found, err
}

func readOperations(ctx context.Context, q postgres.Querier, take func(KeptOperation) error, statement *form, args ...any) error {
	rows, err := statement.query(ctx, q, args...)
	if err != nil {
		return fmt.Errorf("read operations: %w", err)
	}
	var o KeptOperation
	var of payment.ScopedKey
	_, err = pgx.ForEachRow(rows, []any{&o.Client, &o.Key, &o.Kind, fingerprint{&o.Claimed}, &o.AttemptID, &o.Ref, &o.Minor, &o.Reason, &o.Note,
		zeroTime{&o.AcceptedAt}, &o.DecidedAt, &of.Key, &of.Client, asText{&o.Currency}, &o.Debits, &o.State, &o.Ended}, func() error {
		kept := o
		kept.Operation = o.On(of)
		return take(kept)
	})
	if err != nil {
		return fmt.Errorf("read operations: %w", err)
	}
	return nil
}

// Transfer is money that came from outside, or that went there if the amount is negative.
type Transfer struct {
	ID        string // of the event, with its source; it begins with SeedPrefix if an operator has set a balance
	AccountID string
	Currency  string
	Minor     int64
	Note      string
	Created   time.Time
}

// EachTransfer reads the transfers since a time, as EachRecord reads payments.
func EachTransfer(ctx context.Context, q postgres.Querier, since time.Time, take func(Transfer) error) error {
	rows, err := q.Query(ctx, `SELECT transfer_id, account_id, currency, amount, note, created_at FROM transfers WHERE created_at >= $1`, since)
	if err != nil {
		return fmt.Errorf("read transfers: %w", err)
	}
	var t Transfer
	_, err = pgx.ForEachRow(rows, []any{&t.ID, &t.AccountID, &t.Currency, &t.Minor, &t.Note, &t.Created}, func() error { return take(t) })
	if err != nil {
		return fmt.Errorf("read transfers: %w", err)
	}
	return nil
}

// ReadTransfers returns which of these transfers exist.
func ReadTransfers(ctx context.Context, q postgres.Querier, ids []string) ([]string, error) {
	rows, err := q.Query(ctx, `SELECT transfer_id FROM transfers WHERE transfer_id = ANY($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("read transfers: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// Overdue is a reservation that still holds money after its deadline.
type Overdue struct {
	Key      string
	Deadline time.Time
}

// ReadOverdue lists up to limit reservations whose deadline was before a time, the oldest deadline first.
// It counts all of them.
func ReadOverdue(ctx context.Context, q postgres.Querier, before time.Time, limit int) (overdue []Overdue, all int64, err error) {
	rows, err := q.Query(ctx, `SELECT idempotency_key, deadline, count(*) OVER () FROM reservations
WHERE status = 'PENDING' AND deadline < $1 ORDER BY deadline LIMIT $2`, before, limit)
	if err != nil {
		return nil, 0, fmt.Errorf("list overdue holds: %w", err)
	}
	var o Overdue
	_, err = pgx.ForEachRow(rows, []any{&o.Key, &o.Deadline, &all}, func() error {
		overdue = append(overdue, o)
		return nil
	})
	return overdue, all, err
}

// Counts are how many rows the ledger has.
type Counts struct{ Accounts, Claims, Fundings int64 }

// ReadCounts counts the ledger's rows. This takes a while in a large ledger.
func ReadCounts(ctx context.Context, q postgres.Querier) (c Counts, err error) {
	err = q.QueryRow(ctx, `SELECT (SELECT count(*) FROM accounts), (SELECT count(*) FROM reservations), (SELECT count(*) FROM transfers)`).
		Scan(&c.Accounts, &c.Claims, &c.Fundings)
	if err != nil {
		return c, fmt.Errorf("count the ledger's rows: %w", err)
	}
	return c, nil
}

// Seeded reports which data the ledger has at least one of.
type Seeded struct {
	Rates, Rules, Fundings bool
	Liquidity              int // the currencies in which the house has money or a limit
}

const seededSQL = `
SELECT EXISTS (SELECT 1 FROM fx_rates), EXISTS (SELECT 1 FROM risk_rules),
	EXISTS (SELECT 1 FROM transfers WHERE account_id <> '` + payment.LiquidityAccount + `'),
	(SELECT count(*) FROM balances WHERE account_id = '` + payment.LiquidityAccount + `' AND (available <> 0 OR held <> 0 OR position_limit IS NOT NULL))`

// ReadSeeded reports whether the ledger is new or in use.
func ReadSeeded(ctx context.Context, q postgres.Querier) (s Seeded, err error) {
	if err = q.QueryRow(ctx, seededSQL).Scan(&s.Rates, &s.Rules, &s.Fundings, &s.Liquidity); err != nil {
		return s, fmt.Errorf("check whether the ledger is new: %w", err)
	}
	return s, nil
}
