package ledger

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// Finish ends one reservation: it pays the receiver, or returns the held funds.
type Finish struct {
	ReservationID uuid.UUID
	Key           string         // a commit fails if the reservation has another key; empty: any
	RollBack      payment.Reason // the reason to roll back; empty: commit
}

// Finished is the result of one Finish.
type Finished struct {
	Done    bool  // this call ended the reservation
	Claim   Claim // the current state; the zero Claim if the reservation does not exist
	Overdue bool  // it is PENDING, and past its deadline by the database's clock
}

// house is a SQL condition: the balance is one of the house's that many payments share. Such a
// balance is locked after all others, for the shortest time.
const house = `account_id IN ('` + payment.LiquidityAccount + `', '` + payment.SpreadAccount + `', '` + payment.OutsideAccount + `', '` +
	payment.SettlementAccount + `')`

// movedSQL names what a reservation moves. Reservations of earlier releases move rupiah.
const movedSQL = `r.reservation_id, r.sender_id, r.receiver_id, coalesce(r.debit_currency, 'IDR') AS debit_currency,
		coalesce(r.debit_minor, r.amount_idr) AS debit_minor, coalesce(r.credit_currency, 'IDR') AS credit_currency,
		coalesce(r.credit_minor, r.amount_idr) AS credit_minor, r.mid_minor, r.parent_id`

// refundsSQL locks the payments whose refunds end, in the order of their ids. back is what their
// senders get of these refunds, and given is what their receivers give.
const (
	refundsSQL = `refunds AS MATERIALIZED (
	SELECT m.reservation_id, g.back, g.given FROM (` + ofParentsSQL + ` ORDER BY parent_id
	) g CROSS JOIN LATERAL (SELECT reservation_id FROM reservations WHERE reservation_id = g.parent_id FOR NO KEY UPDATE) m
)`
	refundsUnlockedSQL = `refunds AS MATERIALIZED (
	SELECT parent_id AS reservation_id, back, given FROM (` + ofParentsSQL + `) g
)`
	ofParentsSQL = `
		SELECT parent_id, sum(credit_minor)::bigint AS back, sum(debit_minor)::bigint AS given FROM done WHERE parent_id IS NOT NULL
		GROUP BY parent_id`
)

// inOrderSQL selects the changes of balances in the order in which these are locked, after the
// payments of refunds. lockBalanceSQL locks the balance of one change. The lock stands in a LATERAL
// subquery: so the rows are locked in the order of the changes, whatever the plan, and Citus sends
// the node correct SQL.
const (
	inOrderSQL     = `SELECT * FROM changes WHERE (SELECT count(*) FROM refunds) >= 0 ORDER BY ` + house + `, account_id, currency`
	lockBalanceSQL = `SELECT FROM balances WHERE account_id = c.account_id AND currency = c.currency FOR NO KEY UPDATE`
)

// hereSQL is for an INSERT … SELECT that reads only CTEs or arrays. It names a table, so that Citus
// runs the statement on the node that has the tables. Otherwise Citus sends the CTEs' rows to all
// nodes, and commits in two phases. Such a statement sets every column whose default is not a
// constant.
//
// Any other INSERT … SELECT of this package has ON CONFLICT or RETURNING, also where nobody needs
// what it returns. Without them Citus copies the rows to the table, and what the table refuses is
// then an internal error instead of a constraint's, which says whether the same transaction may
// succeed later.
const hereSQL = `(SELECT count(*) FROM sweep_state) here`

// endedSQL marks a refund as ended by a release that counts refunds: see 00018_refunds.sql.
const endedSQL = `refunded_minor = CASE WHEN r.parent_id IS NULL THEN r.refunded_minor ELSE 0 END`

// legsSQL turns what movedSQL names into the entries of a committed payment or refund, as Legs of a
// payment.Record does. held is the part of an amount that the balance held for it. Only a refund's spread
// can be negative: SPREAD then holds it.
const legsSQL = `LATERAL (
		SELECT sender_id AS account_id, debit_currency AS currency, -debit_minor AS amount, debit_minor AS held,
			CASE WHEN parent_id IS NULL THEN 'payment' ELSE 'refund' END AS kind WHERE debit_minor <> 0
		UNION ALL SELECT receiver_id, credit_currency, credit_minor, 0, CASE WHEN parent_id IS NULL THEN 'payment' ELSE 'refund' END
		UNION ALL SELECT '` + payment.LiquidityAccount + `', debit_currency, debit_minor, 0, 'exchange' WHERE mid_minor IS NOT NULL AND debit_minor <> 0
		UNION ALL SELECT '` + payment.LiquidityAccount + `', credit_currency, -mid_minor, mid_minor, 'exchange' WHERE mid_minor <> 0
		UNION ALL SELECT '` + payment.SpreadAccount + `', credit_currency, mid_minor - credit_minor, greatest(0, credit_minor - mid_minor), 'spread'
			WHERE mid_minor <> credit_minor
	) leg`

// A statement that ends reservations locks them in the order of their ids, then the payments of the
// refunds among them in the same order, and then balances in the
// order of their accounts and currencies, the house's last. So two transactions never wait for each
// other in a circle, and balances are locked only for the last part of the statement. The statement
// states the order (ORDER BY ... FOR NO KEY UPDATE), so the order does not depend on the plan.
var (
	// This is a compare-and-set. If a commit, a rollback and a sweep run for one reservation, only
	// one of them finds it PENDING. The database's clock decides whether the deadline has passed.
	// The statement may wait for the balances, so it checks the deadline and the receivers again
	// after the wait. If a check fails, an outcome gets no status, which fails the batch. The batch
	// runs again, and then refuses the reservations concerned. The entries get their time when all
	// balances are locked. Only a capture ($3) pays from an authorized payment. A wallet hold is captured
	// by a plain commit, because that is how callers of wallet have always done it.
	commitSQL = &form{
		one: `
WITH held AS MATERIALIZED (
	SELECT r.reservation_id, c.key FROM (SELECT * FROM unnest($1::uuid[], $2::text[]) AS c(id, key) ORDER BY id) c CROSS JOIN LATERAL (
		SELECT reservation_id FROM reservations WHERE reservation_id = c.id AND status = 'PENDING' AND (c.key = '' OR c.key = idempotency_key)
			AND ($3 OR authorized_minor IS NULL OR receiver_id = '` + payment.SettlementAccount + `')
		FOR NO KEY UPDATE) r
), done AS (
	UPDATE reservations r SET status = 'COMMITTED', ended_at = now(), ` + endedSQL + ` FROM held h
	WHERE r.reservation_id = h.reservation_id AND r.status = 'PENDING' AND r.deadline >= statement_timestamp()
		AND EXISTS (SELECT FROM balances b WHERE b.account_id = r.receiver_id AND b.currency = coalesce(r.credit_currency, 'IDR')
			AND b.status = 'ACTIVE')
	RETURNING ` + committedSQL + `
), ` + refundsSQL + `, refunded AS (` + countRefundedSQL + `
), ` + legChangesSQL + `, locked AS MATERIALIZED (
	SELECT c.*, clock_timestamp() AS at FROM (` + inOrderSQL + `) c CROSS JOIN LATERAL (` + lockBalanceSQL + `) b
), booked AS MATERIALIZED (
	SELECT max(at) AS at FROM locked
), moved AS (` + payBalancesSQL + `
	FROM locked l WHERE b.account_id = l.account_id AND b.currency = l.currency AND (b.status = 'ACTIVE' OR NOT l.paid)
	RETURNING 1
), entered AS (` + enterLegsSQL + `
), outcome AS (` + recordCommitsSQL + `
)
SELECT reservation_id, asked FROM done`,

		rows: `
WITH held AS MATERIALIZED (
	SELECT * FROM unnest($1::uuid[], $2::text[]) AS c(reservation_id, key)
), payees AS MATERIALIZED (
	SELECT DISTINCT receiver_id AS account_id, coalesce(credit_currency, 'IDR') AS currency FROM reservations WHERE reservation_id = ANY($1)
), active AS MATERIALIZED (
	SELECT b.account_id, b.currency FROM payees p JOIN balances b ON b.account_id = p.account_id AND b.currency = p.currency WHERE b.status = 'ACTIVE'
), done AS (
	UPDATE reservations r SET status = 'COMMITTED', ended_at = now(), ` + endedSQL + ` FROM held h
	WHERE r.reservation_id = h.reservation_id AND r.status = 'PENDING' AND r.deadline >= statement_timestamp()
		AND (h.key = '' OR h.key = r.idempotency_key)
		AND ($3 OR r.authorized_minor IS NULL OR r.receiver_id = '` + payment.SettlementAccount + `')
		AND (r.receiver_id, coalesce(r.credit_currency, 'IDR')) IN (SELECT account_id, currency FROM active)
	RETURNING ` + committedSQL + `
), ` + refundsUnlockedSQL + `, refunded AS (` + countRefundedSQL + `
), ` + legChangesSQL + `, moved AS (` + payBalancesSQL + `
	FROM changes l WHERE b.account_id = l.account_id AND b.currency = l.currency AND (b.status = 'ACTIVE' OR NOT l.paid)
	RETURNING 1
), booked AS MATERIALIZED (
	SELECT clock_timestamp() AS at FROM (SELECT count(*) FROM moved) m, ` + hereSQL + `
), entered AS (` + enterLegsSQL + `
	RETURNING 1
), outcome AS (` + recordCommitsSQL + `
	RETURNING 1
)
SELECT reservation_id, asked FROM done`,
	}

	// A hold of today that is rolled back does not count against today's limit any more. A refund never
	// counts against it. Only an operation and the sweep ($4) end an authorized payment, because they tell
	// its client. A wallet hold is rolled back as callers of wallet have always done it.
	rollBackSQL = &form{
		one: `
WITH held AS MATERIALIZED (
	SELECT r.reservation_id, c.reason FROM (SELECT * FROM unnest($1::uuid[], $2::text[]) AS c(id, reason) ORDER BY id) c CROSS JOIN LATERAL (
		SELECT reservation_id FROM reservations WHERE reservation_id = c.id AND status = 'PENDING'
			AND ($4 OR authorized_minor IS NULL OR receiver_id = '` + payment.SettlementAccount + `')
		FOR NO KEY UPDATE) r
), done AS (` + rollBackRowsSQL + `
	RETURNING ` + rolledBackSQL + `
), ` + refundsSQL + `, refunded AS (` + uncountRefundsSQL + `
), changes AS (` + returnedSQL + `
), locked AS MATERIALIZED (
	SELECT c.* FROM (` + inOrderSQL + `) c CROSS JOIN LATERAL (` + lockBalanceSQL + `) b
), returned AS (` + returnToBalancesSQL + `
	FROM locked l WHERE b.account_id = l.account_id AND b.currency = l.currency
), outcome AS (` + recordRollBacksSQL + `
)
SELECT reservation_id, reason FROM done`,

		rows: `
WITH held AS MATERIALIZED (
	SELECT * FROM unnest($1::uuid[], $2::text[]) AS c(reservation_id, reason)
), done AS (` + rollBackRowsSQL + `
		AND ($4 OR r.authorized_minor IS NULL OR r.receiver_id = '` + payment.SettlementAccount + `')
	RETURNING ` + rolledBackSQL + `
), ` + refundsUnlockedSQL + `, refunded AS (` + uncountRefundsSQL + `
), changes AS MATERIALIZED (` + returnedSQL + `
), returned AS (` + returnToBalancesSQL + `
	FROM changes l WHERE b.account_id = l.account_id AND b.currency = l.currency
), outcome AS (` + recordRollBacksSQL + `
	RETURNING 1
)
SELECT reservation_id, reason FROM done`,
	}
)

// The parts of commitSQL.
const (
	committedSQL = movedSQL + `, r.idempotency_key, r.currency_input, r.amount_idr, r.deadline, h.key AS asked`

	countRefundedSQL = `
	UPDATE reservations m SET refunding_minor = m.refunding_minor - f.back, refunded_minor = coalesce(m.refunded_minor, 0) + f.back
	FROM refunds f WHERE m.reservation_id = f.reservation_id`

	legChangesSQL = `legs AS MATERIALIZED (
	SELECT d.reservation_id, leg.* FROM done d, ` + legsSQL + `
), changes AS (
	SELECT account_id, currency, sum(amount + held)::bigint AS available, sum(held)::bigint AS held,
		(sum(amount) FILTER (WHERE kind = 'exchange' AND held = 0))::bigint AS position, bool_or(kind IN ('payment', 'refund') AND amount > 0) AS paid
	FROM legs GROUP BY account_id, currency
)`

	payBalancesSQL = `
	UPDATE balances b SET available = b.available + l.available, held = b.held - l.held,
		position = b.position + coalesce(l.position, 0), updated_at = now()`

	enterLegsSQL = `
	INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date)
	SELECT account_id, currency, at, reservation_id, kind, amount, (at AT TIME ZONE 'UTC')::date FROM legs, booked, ` + hereSQL

	recordCommitsSQL = `
	INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason, decided_at)
	SELECT reservation_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr,
		CASE WHEN (SELECT count(*) FROM moved) = (SELECT count(*) FROM changes) AND deadline >= at THEN 'SUCCESS' END, 'committed', at
	FROM done, booked, ` + hereSQL
)

// The parts of rollBackSQL.
const (
	rollBackRowsSQL = `
	UPDATE reservations r SET status = 'ROLLEDBACK', untold = $3, ended_at = now(), ` + endedSQL + ` FROM held h
	WHERE r.reservation_id = h.reservation_id AND r.status = 'PENDING'`

	rolledBackSQL = movedSQL + `, r.idempotency_key, r.currency_input, r.amount_idr, r.created_at, r.ended_at, h.reason`

	uncountRefundsSQL = `
	UPDATE reservations m SET refunding_minor = m.refunding_minor - f.back, returned_minor = m.returned_minor - f.given
	FROM refunds f WHERE m.reservation_id = f.reservation_id`

	returnedSQL = `
	SELECT leg.account_id, leg.currency, sum(leg.held)::bigint AS held, today.day,
		coalesce(sum(leg.held) FILTER (WHERE leg.kind = 'payment' AND floor(extract(epoch FROM created_at) / 86400) = today.day), 0)::bigint AS of_day,
		coalesce(sum(leg.held) FILTER (WHERE leg.kind = 'exchange'), 0)::bigint AS position
	FROM done, (SELECT floor(extract(epoch FROM now()) / 86400)::int AS day) today, ` + legsSQL + `
	WHERE leg.held > 0 GROUP BY leg.account_id, leg.currency, today.day`

	returnToBalancesSQL = `
	UPDATE balances b
	SET available = b.available + l.held, held = b.held - l.held, position = b.position + l.position, updated_at = now(),
		spent_today = CASE WHEN b.spent_day = l.day THEN greatest(0, b.spent_today - l.of_day) ELSE b.spent_today END`

	recordRollBacksSQL = `
	INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason, decided_at)
	SELECT reservation_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, 'FAILED', reason, ended_at
	FROM done, ` + hereSQL
)

var standingSQL = &form{
	one: `
SELECT ` + standingColumns + `
FROM reservations r ` + outcomeOf + `
WHERE r.reservation_id = ANY($1::uuid[]) AND ` + postgres.ReplicatedSQL,
	rows: `
WITH found AS MATERIALIZED (
	SELECT r.* FROM reservations r WHERE r.reservation_id = ANY($1::uuid[]) AND ` + postgres.ReplicatedSQL + `
)` + outcomesOfFoundSQL + `
SELECT ` + standingColumns + `
FROM found r LEFT JOIN outcomes p ON p.payment_id = r.reservation_id`,
}

const standingColumns = claimColumns + `,
	r.status = 'PENDING' AND r.deadline < clock_timestamp()`

// finishAll ends a batch of reservations. All commits are one statement, and so one transaction.
// All rollbacks are another. One reservation may have calls in both: the rollback then ends it if the
// commit was refused. Then finishAll reads the state of the reservations that this batch could not
// end. So after a rollback without an error, the reservation has ended, unless it is an authorized payment.
func (l *Ledger) finishAll(ctx context.Context, calls []Finish) ([]Finished, error) {
	return l.finish(ctx, calls, byCall, l.locks.recent())
}

// finish is finishOn on a connection of the pool. It waits only briefly for locks if brief is set.
func (l *Ledger) finish(ctx context.Context, calls []Finish, by ending, brief bool) (finished []Finished, err error) {
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	if brief {
		return l.finishBriefly(ctx, conn, calls, by)
	}
	alone := asItIs
	if postgres.Citus(conn.Conn()) {
		alone = func(run func() error) error { return l.transact(ctx, conn, false, run) }
	}
	finished, err = finishOn(ctx, conn, calls, by, again(ctx, alone))
	return finished, backoff.Permanent(err) // each transaction has been tried often enough
}

// again runs a transaction again when it lost against another one. What a transaction before it has
// done stays known: that a call ended a reservation would otherwise look like an earlier call's doing.
func again(ctx context.Context, alone func(func() error) error) func(func() error) error {
	return func(run func() error) error {
		_, err := retry(ctx, func() (struct{}, error) { return struct{}{}, alone(run) })
		return err
	}
}

// finishBriefly is finishOn in a transaction that waits only briefly for locks.
func (l *Ledger) finishBriefly(ctx context.Context, conn *pgxpool.Conn, calls []Finish, by ending) (finished []Finished, err error) {
	err = l.transact(ctx, conn, true, func() error {
		finished, err = finishOn(ctx, conn, calls, by, asItIs)
		return err
	})
	return finished, err
}

// asItIs runs a statement without anything around it.
func asItIs(run func() error) error { return run() }

// ending says who rolls back.
type ending struct {
	authorized bool // authorized payments too
	untold     bool // the rollbacks are marked, so that a sweep publishes their results
}

var (
	byCall      = ending{}
	byOperation = ending{authorized: true}
	bySweep     = ending{authorized: true, untold: true}
)

// finishOn is finishAll on a connection. There may be a transaction. Without one, each statement
// that ends reservations must be a transaction of its own, because the next one locks other
// reservations: alone runs it.
func finishOn(ctx context.Context, q postgres.Querier, calls []Finish, by ending, alone func(func() error) error) ([]Finished, error) {
	order := make([]int, 0, len(calls)) // has only the first of several equal calls
	first := make(map[Finish]int, len(calls))
	for i, c := range calls {
		if _, seen := first[c]; !seen {
			first[c] = i
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(i, j int) int { return bytes.Compare(calls[i].ReservationID[:], calls[j].ReservationID[:]) })
	var commits, rollbacks []pgtype.UUID
	var keys, reasons []string
	for _, i := range order {
		c := calls[i]
		id := pgUUID(c.ReservationID)
		if c.RollBack == "" {
			commits, keys = append(commits, id), append(keys, c.Key)
		} else {
			rollbacks, reasons = append(rollbacks, id), append(reasons, string(c.RollBack))
		}
	}

	finished := make([]Finished, len(calls))
	// end runs a statement, and notes the calls that ended a reservation. asked makes such a call from
	// its reservation and the statement's second column.
	end := func(asked func(uuid.UUID, string) Finish, statement *form, args ...any) error {
		var ended []Finish
		err := alone(func() error {
			rows, err := statement.query(ctx, q, args...)
			if err != nil {
				return err
			}
			ended, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Finish, error) {
				var id uuid.UUID
				var text string
				err := row.Scan(&id, &text)
				return asked(id, text), err
			})
			return err
		})
		if err != nil {
			return err
		}
		for _, c := range ended {
			claim := Claim{ReservationID: c.ReservationID, Status: payment.Committed, Reason: payment.ReasonCommitted}
			if c.RollBack != "" {
				claim.Status, claim.Reason = payment.RolledBack, c.RollBack
			}
			finished[first[c]] = Finished{Done: true, Claim: claim}
		}
		return nil
	}
	if len(commits) > 0 {
		if err := end(commitOf, commitSQL, commits, keys, false); err != nil {
			return nil, fmt.Errorf("commit a batch of %d: %w", len(commits), err)
		}
	}
	if len(rollbacks) > 0 {
		if err := end(rollBackOf, rollBackSQL, rollbacks, reasons, by.untold, by.authorized); err != nil {
			return nil, fmt.Errorf("roll back a batch of %d: %w", len(rollbacks), err)
		}
	}
	return finished, readStanding(ctx, q, calls, finished)
}

func commitOf(id uuid.UUID, key string) Finish { return Finish{ReservationID: id, Key: key} }

func rollBackOf(id uuid.UUID, reason string) Finish {
	return Finish{ReservationID: id, RollBack: payment.Reason(reason)}
}

func readStanding(ctx context.Context, q postgres.Querier, calls []Finish, finished []Finished) error {
	var ids []pgtype.UUID
	for i, f := range finished {
		if !f.Done {
			ids = append(ids, pgUUID(calls[i].ReservationID))
		}
	}
	if len(ids) == 0 {
		return nil
	}
	rows, err := standingSQL.query(ctx, q, ids)
	if err != nil {
		return fmt.Errorf("read reservations: %w", err)
	}
	defer rows.Close()
	standing := map[uuid.UUID]Finished{}
	for rows.Next() {
		var f Finished
		if f.Claim, err = scanClaim(rows, &f.Overdue); err != nil {
			return fmt.Errorf("read reservations: %w", err)
		}
		standing[f.Claim.ReservationID] = f
	}
	for i := range finished {
		if !finished[i].Done {
			finished[i] = standing[calls[i].ReservationID]
		}
	}
	return rows.Err()
}
