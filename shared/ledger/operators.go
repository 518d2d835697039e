package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// The reads of operators' commands, apart from the checks in sum.go.

const (
	keptClaimsSQL = `
SELECT r.idempotency_key, r.reservation_id, r.fingerprint, r.attempt_id, r.status, coalesce(p.reason, '')
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id WHERE starts_with(r.idempotency_key, $1)`

	datedClaimsSQL = `
SELECT r.idempotency_key, r.reservation_id, r.fingerprint, r.attempt_id, r.status, coalesce(p.reason, ''),
	r.accepted_at, p.decided_at
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id WHERE r.created_at >= $1`
)

// ReadClaims returns the claims of all keys that begin with prefix, by their keys. It reads every
// claim.
func ReadClaims(ctx context.Context, q postgres.Querier, prefix string) (map[string]Claim, error) {
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

// DatedClaim is a claim with its times.
type DatedClaim struct {
	Claim
	Key      string
	Accepted time.Time // by the gateway's clock; zero if the caller did not send it
	Decided  time.Time // zero while PENDING
}

// EachClaim reads the claims that were made since a time. It calls take for each claim while it
// reads.
func EachClaim(ctx context.Context, q postgres.Querier, since time.Time, take func(DatedClaim)) error {
	rows, err := q.Query(ctx, datedClaimsSQL, since)
	if err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var c DatedClaim
		var accepted, decided pgtype.Timestamptz
		if c.Claim, err = scanClaim(rows, &c.Key, &accepted, &decided); err != nil {
			return fmt.Errorf("read the ledger: %w", err)
		}
		c.Accepted, c.Decided = accepted.Time, decided.Time
		take(c)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	return nil
}

// Overdue is a reservation that still holds money after its deadline.
type Overdue struct {
	Key      string
	Deadline time.Time
}

// ReadOverdue lists the reservations whose deadline was before a time, the oldest deadline first.
func ReadOverdue(ctx context.Context, q postgres.Querier, before time.Time) ([]Overdue, error) {
	rows, err := q.Query(ctx, `SELECT idempotency_key, deadline FROM reservations WHERE status = 'PENDING' AND deadline < $1 ORDER BY deadline`, before)
	if err != nil {
		return nil, fmt.Errorf("list overdue holds: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Overdue])
}

// ReadKeys reads the idempotency keys of reservations, in the order of their ids.
func ReadKeys(ctx context.Context, q postgres.Querier, reservations []uuid.UUID) ([]string, error) {
	rows, err := q.Query(ctx, `SELECT idempotency_key FROM reservations WHERE reservation_id = ANY($1) ORDER BY reservation_id`, reservations)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	return keys, nil
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
SELECT EXISTS (SELECT FROM fx_rates), EXISTS (SELECT FROM risk_rules),
	EXISTS (SELECT FROM transfers WHERE account_id <> '` + payment.LiquidityAccount + `'),
	(SELECT count(*) FROM balances WHERE account_id = '` + payment.LiquidityAccount + `' AND (available <> 0 OR held <> 0 OR position_limit IS NOT NULL))`

// ReadSeeded reports whether the ledger is new or in use.
func ReadSeeded(ctx context.Context, q postgres.Querier) (s Seeded, err error) {
	if err = q.QueryRow(ctx, seededSQL).Scan(&s.Rates, &s.Rules, &s.Fundings, &s.Liquidity); err != nil {
		return s, fmt.Errorf("check whether the ledger is new: %w", err)
	}
	return s, nil
}
