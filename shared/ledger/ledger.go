// Package ledger owns the database: its schema, and all SQL on accounts, fundings, reservations,
// payments, rates, rules, the sweep's mark and the actions on dead letters. Pure decisions are next
// to the SQL that uses them.
//
//   - A Ledger writes, and serves the clients' reads. Only db has one.
//   - A Reader needs only the right to read. fx, wallet and risk have one.
//   - The functions named Read and Each use a connection or a snapshot of the caller. Operators'
//     commands use them.
//   - Migrate, Roles and CheckSchema keep the schema (UPGRADES.md).
//
// Amounts are whole rupiah, unless a name says minor units. Times are by the database's clock,
// unless a comment says otherwise. An error is one of this package (errors.go), a context's error,
// or a database error, which shared/postgres classifies.
package ledger

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"pgw/shared/batch"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// maxTries is how often a batch is run that conflicts with another transaction.
const maxTries = 6

// Claim is the ledger's state of one idempotency key.
type Claim struct {
	ReservationID uuid.UUID // zero: there is no claim
	Fingerprint   payment.Fingerprint
	AttemptID     string
	Status        payment.ReservationStatus
	Reason        payment.Reason // empty while PENDING
}

// Reserved is the result of one reserve.
type Reserved struct {
	Claim
	Replay  bool  // the claim was made by an earlier attempt
	Balance int64 // the sender's, after this call decided; 0 if the key was claimed before
}

// Mismatch reports whether the key belongs to another request.
func (r Reserved) Mismatch(req payment.Payment) bool { return r.Fingerprint != req.Fingerprint() }

// Outcome returns the payment's outcome. If its key belongs to another payment, the ledger keeps
// nothing for it, and the outcome is a refusal.
func (r Reserved) Outcome(p payment.Payment) payment.Outcome {
	if r.Mismatch(p) {
		out := payment.Decline(payment.IdempotencyMismatch)
		out.Replay = true
		return out
	}
	return payment.Standing(r.Status, r.Reason, r.ReservationID.String(), r.Replay)
}

// reserve is the call for one payment. If refuse is set, the refusal is recorded and nothing is
// held.
type reserve struct {
	payment.Payment
	refuse payment.Reason
}

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
	Key     string
	Overdue bool // it is PENDING, and past its deadline by the database's clock
}

// Config configures a Ledger.
type Config struct {
	URL  string // of the database, for a user with the right to write
	Name string // of the function, for application_name in pg_stat_activity

	BatchMax     int           // payments in one transaction
	BatchLanes   int           // transactions of one kind at the same time
	QueueMax     int           // the most calls that wait for a batch; further calls get ErrFull
	BatchTimeout time.Duration // the time limit of one batch with all its waits; 0 means batch.DefaultTimeout
	LockTimeout  time.Duration // the longest wait for a locked row; 0 means the time limit of a statement
	ReadTimeout  time.Duration // the time limit of one read with its wait for a connection; 0 means 5 s

	Now        func() time.Time      // the process's clock, used only to measure its difference from the database's; nil means time.Now
	Log        *slog.Logger          // nil means slog.Default
	Registerer prometheus.Registerer // nil: there are no metrics
}

// spareConns are connections for all other calls: settings, accounts and the sweep.
const spareConns = 4

// Ledger writes accounts, reservations, payments and everything else in the database. Calls that
// arrive at the same time share a transaction. Make it with Open; end it with Close.
type Ledger struct {
	pool     *pgxpool.Pool
	reads    *reads
	reserves *batch.Batcher[reserve, Reserved]
	finishes *batch.Batcher[Finish, Finished]
	rules    *postgres.Cached[payment.Rules]
	locks    seenLocks
	accepted prometheus.Histogram // nil: there are no metrics
	log      *slog.Logger
}

// Open makes a ledger on a database. It connects on first use. An error names DATABASE_URL.
func Open(cfg Config) (*Ledger, error) {
	// Each lane of both kinds uses one connection while it works.
	pool, err := postgres.Open(postgres.Config{
		URL: cfg.URL, Name: cfg.Name, Lookups: true, MaxConns: int32(2*cfg.BatchLanes + spareConns),
		LockTimeout: cfg.LockTimeout, Now: cfg.Now, Registerer: cfg.Registerer,
	})
	if err != nil {
		return nil, err
	}
	reading, err := postgres.Open(postgres.Config{
		URL: cfg.URL, Name: cfg.Name, Pool: "reads", Lookups: true, MaxConns: maxRows + maxLists, ReadOnly: true, Registerer: cfg.Registerer,
	})
	if err != nil {
		pool.Close()
		return nil, err
	}
	l := &Ledger{pool: pool, reads: newReads(reading, cmp.Or(cfg.ReadTimeout, readTimeout)), log: cmp.Or(cfg.Log, slog.Default())}
	l.rules = postgres.NewCached(l.readRules, l.log)
	if cfg.Registerer != nil {
		l.accepted = acceptedAge(cfg.Registerer)
		l.locks.measure(cfg.Registerer)
	}
	bounds := batch.Config{Max: cfg.BatchMax, Lanes: cfg.BatchLanes, Queue: cfg.QueueMax, Timeout: cfg.BatchTimeout, Registerer: cfg.Registerer}
	bounds.Kind = "reserve"
	l.reserves = batch.New(bounds, servePatiently(l, serve(l.reserveAll), l.reserveFree))
	bounds.Kind = "finish"
	l.finishes = batch.New(bounds, servePatiently(l, serve(l.finishAll), l.finishFree))
	return l, nil
}

// Ready returns the reason why the ledger can't work: the database does not answer, or its schema
// does not fit this release.
func (l *Ledger) Ready(ctx context.Context) error { return CheckSchema(ctx, l.pool, KnownSchema()) }

// Run reads the rules that the ledger enforces itself again and again, until ctx ends.
func (l *Ledger) Run(ctx context.Context) error { return l.rules.Run(ctx) }

// Close serves the calls that have been accepted, until ctx ends, and closes the connections.
func (l *Ledger) Close(ctx context.Context) error {
	err := errors.Join(l.reserves.Close(ctx), l.finishes.Close(ctx))
	l.pool.Close()
	l.reads.pool.Close()
	return err
}

// serve runs a batch as one transaction, and repeats it after a conflict with another transaction.
// If the database refuses a value, the whole transaction fails. Then serve runs each call in a
// transaction of its own, and one bad row does not fail the other calls.
func serve[C, R any](run func(context.Context, []C) ([]R, error)) batch.Func[C, R] {
	return func(ctx context.Context, calls []C) []batch.Result[R] {
		results := make([]batch.Result[R], len(calls))
		values, err := runTransaction(ctx, calls, run)
		bad := len(calls) > 1 && postgres.BadData(err)
		for i := range calls {
			if err == nil {
				results[i].Value = values[i]
			} else if bad {
				single, failed := runTransaction(ctx, calls[i:i+1], run)
				if failed == nil {
					results[i].Value = single[0]
				}
				if results[i].Err = failed; postgres.LockTimeout(failed) {
					// One such wait is enough. servePatiently runs the rest without the locked
					// rows.
					bad, err = false, failed
				}
			} else {
				results[i].Err = err
			}
		}
		return results
	}
}

func runTransaction[C, R any](ctx context.Context, calls []C, run func(context.Context, []C) ([]R, error)) ([]R, error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = 2 * time.Millisecond
	return backoff.Retry(ctx, func() ([]R, error) {
		values, err := run(ctx, calls)
		if err != nil && !postgres.Transient(err) {
			return nil, backoff.Permanent(err)
		}
		return values, err
	}, backoff.WithBackOff(wait), backoff.WithMaxTries(maxTries))
}

const (
	// Senders are locked in the order of their ids, so two batches never wait for each other in a
	// circle. With NO KEY, other transactions can still write rows that refer to the account.
	lockSendersSQL = `
SELECT account_id, balance_idr, status, daily_limit_idr, spent_day, spent_today_idr, started_minute, started_count
FROM wallet_accounts WHERE account_id = ANY($1) AND NOT internal ORDER BY account_id FOR NO KEY UPDATE`

	// The time is read after the wait for the senders' locks. This one clock decides about
	// deadlines, days and minutes, and makes the ids.
	clockSQL = `SELECT clock_timestamp()`

	// Of pgw's own accounts, only the one that receives holds can be a receiver.
	receiversSQL = `
SELECT account_id, status FROM wallet_accounts
WHERE account_id = ANY($1) AND (NOT internal OR account_id = '` + payment.SettlementAccount + `')`

	// Claims are read after the senders are locked. A transaction that claimed one of these keys
	// for the same sender has ended by then, and this statement's snapshot shows its claim. A
	// transaction for another sender may still claim a key after this read. Then the insert fails
	// on the unique key, and the batch runs again.
	claimsSQL = `
SELECT r.idempotency_key, r.reservation_id, r.fingerprint, r.attempt_id, r.status, coalesce(p.reason, '')
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id
WHERE r.idempotency_key = ANY($1)`

	insertRefusedSQL = `
INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason)
SELECT id, key, sender, receiver, currency, amount, 'FAILED', reason
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[])
	AS c(id, key, sender, receiver, currency, amount, reason)`

	// lockSendersSQL has locked the rows, so the calculated values can be written directly.
	debitSQL = `
UPDATE wallet_accounts a
SET balance_idr = d.balance, spent_day = d.day, spent_today_idr = d.spent,
	started_minute = d.minute, started_count = d.count, updated_at = now()
FROM unnest($1::text[], $2::bigint[], $3::int[], $4::bigint[], $5::int[], $6::int[])
	AS d(id, balance, day, spent, minute, count)
WHERE a.account_id = d.id`
)

// sender is an account that the batch has locked, with the number of payments it started in a
// minute.
type sender struct {
	payment.Account
	minute, started int32
	debited         bool
}

// reserveAll decides about a batch in one transaction of two round trips.
func (l *Ledger) reserveAll(ctx context.Context, calls []reserve) ([]Reserved, error) {
	rules, err := l.rules.Get(ctx)
	if err != nil {
		return nil, fmt.Errorf("reserve: %w", err)
	}
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("reserve: %w", err)
	}
	defer conn.Release()
	senders, blocked, claims, now, err := l.lockForReserve(ctx, conn, calls, lockSendersSQL)
	if err == nil {
		var decided []Reserved
		decided, fresh := decide(calls, senders, blocked, claims, now, rules.VelocityPerMin)
		if err = writeReserved(ctx, conn, calls, decided, fresh, senders, now); err == nil {
			l.observeAccepted(calls, fresh, now)
			return decided, nil
		}
	}
	// pgxpool sees the transaction status, and drops a connection whose rollback fails.
	postgres.RollBack(ctx, conn)
	return nil, fmt.Errorf("reserve a batch of %d: %w", len(calls), err)
}

// lockForReserve begins the transaction and reads the data for decide. lockSQL locks the senders.
func (l *Ledger) lockForReserve(ctx context.Context, conn *pgxpool.Conn, calls []reserve, lockSQL string) (
	senders map[string]*sender, blocked map[string]bool, claims map[string]Claim, now time.Time, err error,
) {
	keys, from, to := make([]string, len(calls)), make([]string, len(calls)), make([]string, len(calls))
	for i, c := range calls {
		keys[i], from[i], to[i] = c.Key, c.Sender, c.Receiver
	}
	senders, blocked = map[string]*sender{}, map[string]bool{}

	b := &pgx.Batch{}
	b.Queue("BEGIN")
	if lockSQL != lockSendersSQL || l.locks.recent() {
		b.Queue(briefSQL)
	}
	b.Queue(receiversSQL, distinct(to)).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var id string
			var status payment.AccountStatus
			if err := rows.Scan(&id, &status); err != nil {
				return err
			}
			blocked[id] = status != payment.Active
		}
		return rows.Err()
	})
	b.Queue(lockSQL, distinct(from)).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			s := &sender{}
			var status payment.AccountStatus
			if err := rows.Scan(&s.ID, &s.Balance, &status, &s.DailyLimit, &s.Day, &s.SpentToday, &s.minute, &s.started); err != nil {
				return err
			}
			s.Blocked = status != payment.Active
			senders[s.ID] = s
		}
		return rows.Err()
	})
	b.Queue(claimsSQL, distinct(keys)).Query(func(rows pgx.Rows) (err error) {
		claims, err = collectClaims(rows)
		return err
	})
	b.Queue(clockSQL).QueryRow(func(row pgx.Row) error { return row.Scan(&now) })
	err = conn.SendBatch(ctx, b).Close()
	return senders, blocked, claims, now, err
}

// scanClaim reads a claim's columns, and the further columns after them.
func scanClaim(rows pgx.Rows, key *string, more ...any) (Claim, error) {
	var c Claim
	var fingerprint []byte
	if err := rows.Scan(append([]any{key, &c.ReservationID, &fingerprint, &c.AttemptID, &c.Status, &c.Reason}, more...)...); err != nil {
		return c, err
	}
	if copy(c.Fingerprint[:], fingerprint) != len(c.Fingerprint) {
		return c, fmt.Errorf("reservation %s has a fingerprint of %d bytes", c.ReservationID, len(fingerprint))
	}
	return c, nil
}

// collectClaims returns claims by their keys.
func collectClaims(rows pgx.Rows) (map[string]Claim, error) {
	defer rows.Close()
	claims := map[string]Claim{}
	for rows.Next() {
		var key string
		c, err := scanClaim(rows, &key)
		if err != nil {
			return nil, err
		}
		claims[key] = c
	}
	return claims, rows.Err()
}

// decide decides about the calls one after the other. Each call sees the balances and claims that
// the calls before it left, so decide changes senders and claims. Apart from that and from the new
// ids, it is pure. fresh lists the calls that make a new claim. now is the database's time.
func decide(calls []reserve, senders map[string]*sender, blocked map[string]bool, claims map[string]Claim, now time.Time, velocity uint32) (decided []Reserved, fresh []int) {
	decided = make([]Reserved, len(calls))
	for i, c := range calls {
		claim, seen := claims[c.Key]
		if !seen {
			claim = Claim{
				ReservationID: idAt(now, len(fresh)), Fingerprint: c.Fingerprint(), AttemptID: c.AttemptID, Status: payment.Pending,
			}
			s := senders[c.Sender]
			claim.Reason = c.refuse
			if claim.Reason == "" {
				claim.Reason = hold(c.Payment, s, blocked, now, velocity)
			}
			if claim.Reason != "" {
				claim.Status = payment.RolledBack
			}
			claims[c.Key] = claim
			fresh = append(fresh, i)
			decided[i].Claim = claim
			if s != nil {
				decided[i].Balance = s.Balance
			}
			continue
		}
		decided[i].Claim = claim
		// Without an attempt's id, a redelivery can't be distinguished from a second attempt.
		decided[i].Replay = c.AttemptID == "" || c.AttemptID != claim.AttemptID
	}
	return decided, fresh
}

// hold subtracts the funds from the sender, or returns the reason for a refusal. The sender is
// locked, so simultaneous payments can't exceed the velocity limit. Risk only reads the count, so
// it would accept all of them.
func hold(r payment.Payment, s *sender, blocked map[string]bool, now time.Time, velocity uint32) payment.Reason {
	var from, to *payment.Account
	if s != nil {
		from = &s.Account
	}
	if isBlocked, exists := blocked[r.Receiver]; exists {
		to = &payment.Account{ID: r.Receiver, Blocked: isBlocked}
	}
	r.Deadline = payment.ClampDeadline(r.Deadline, now)
	var before payment.Account
	if s != nil {
		before = s.Account
	}
	if reason := payment.Reserve(r, from, to, now); reason != "" {
		return reason
	}
	if minute := int32(now.Unix() / 60); s.minute != minute {
		s.minute, s.started = minute, 0
	}
	if velocity > 0 && int64(s.started) >= int64(velocity) {
		s.Account = before
		return payment.RiskVelocity
	}
	s.started++
	s.debited = true
	return ""
}

func writeReserved(ctx context.Context, conn *pgxpool.Conn, calls []reserve, decided []Reserved, fresh []int, senders map[string]*sender, now time.Time) error {
	b := &pgx.Batch{}
	if len(fresh) > 0 {
		queueClaims(b, calls, decided, fresh, now)
		queueRefusals(b, calls, decided, fresh)
		queueDebits(b, senders)
	}
	b.Queue("COMMIT")
	return conn.SendBatch(ctx, b).Close()
}

func queueClaims(b *pgx.Batch, calls []reserve, decided []Reserved, fresh []int, now time.Time) {
	// Claims are inserted in the order of their keys, because two batches that claim the same two
	// keys must not wait for each other.
	slices.SortFunc(fresh, func(i, j int) int {
		if calls[i].Key < calls[j].Key {
			return -1
		}
		return 1
	})
	rows := make([]row, len(fresh))
	for at, i := range fresh {
		p, claim := calls[i].Payment, decided[i].Claim
		p.Deadline = payment.ClampDeadline(p.Deadline, now)
		rows[at] = row{payment.Record{
			Payment: p, Outcome: payment.Outcome{State: claim.Status}, Claimed: claim.Fingerprint, ReservedAt: now,
		}, claim.ReservationID}
	}
	queueReservations(b, rows)
}

func queueRefusals(b *pgx.Batch, calls []reserve, decided []Reserved, fresh []int) {
	var ids []pgtype.UUID
	var keys, from, to, currencies, reasons []string
	var amounts []int64
	for _, i := range fresh {
		r, claim := calls[i].Payment, decided[i].Claim
		if claim.Reason == "" {
			continue
		}
		ids = append(ids, pgtype.UUID{Bytes: claim.ReservationID, Valid: true})
		keys, from, to = append(keys, r.Key), append(from, r.Sender), append(to, r.Receiver)
		currencies, amounts = append(currencies, r.Currency.String()), append(amounts, r.AmountIDR)
		reasons = append(reasons, string(claim.Reason))
	}
	if len(ids) > 0 {
		b.Queue(insertRefusedSQL, ids, keys, from, to, currencies, amounts, reasons)
	}
}

func queueDebits(b *pgx.Batch, senders map[string]*sender) {
	var ids []string
	var balances, spent []int64
	var days, minutes, started []int32
	for _, s := range senders {
		if s.debited {
			ids, balances = append(ids, s.ID), append(balances, s.Balance)
			days, spent = append(days, s.Day), append(spent, s.SpentToday)
			minutes, started = append(minutes, s.minute), append(started, s.started)
		}
	}
	if len(ids) > 0 {
		b.Queue(debitSQL, ids, balances, days, spent, minutes, started)
	}
}

// A statement that ends reservations locks them in the order of their ids, and then accounts in the
// order of their ids. So two transactions never wait for each other in a circle, and accounts are
// locked only for the last part of the statement. The statement states the order (ORDER BY ... FOR
// NO KEY UPDATE), so the order does not depend on the plan.
const (
	// This is a compare-and-set. If a commit, a rollback and a sweep run for one reservation, only
	// one of them finds it PENDING. The database's clock decides whether the deadline has passed.
	// The statement may wait for the accounts, so it checks the deadline and the receivers again
	// after the wait. If a check fails, an outcome gets no status, which fails the batch. The batch
	// runs again, and then refuses the reservations concerned.
	commitSQL = `
WITH held AS MATERIALIZED (
	SELECT r.reservation_id FROM reservations r JOIN unnest($1::uuid[], $2::text[]) AS c(id, key) ON r.reservation_id = c.id
	WHERE r.status = 'PENDING' AND (c.key = '' OR c.key = r.idempotency_key)
	ORDER BY r.reservation_id FOR NO KEY UPDATE OF r
), done AS (
	UPDATE reservations r SET status = 'COMMITTED' FROM held h
	WHERE r.reservation_id = h.reservation_id AND r.status = 'PENDING' AND r.deadline >= clock_timestamp()
		AND EXISTS (SELECT FROM wallet_accounts a WHERE a.account_id = r.receiver_id AND a.status = 'ACTIVE')
	RETURNING r.reservation_id, r.idempotency_key, r.sender_id, r.receiver_id, r.currency_input, r.amount_idr, r.deadline
), amounts AS (
	SELECT receiver_id, sum(amount_idr)::bigint AS amount FROM done GROUP BY receiver_id
), receivers AS MATERIALIZED (
	SELECT a.account_id, s.amount FROM wallet_accounts a JOIN amounts s ON a.account_id = s.receiver_id
	ORDER BY a.account_id FOR NO KEY UPDATE OF a
), credit AS (
	UPDATE wallet_accounts a SET balance_idr = a.balance_idr + s.amount, updated_at = now()
	FROM receivers s WHERE a.account_id = s.account_id AND a.status = 'ACTIVE'
	RETURNING s.amount
), outcome AS (
	INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason)
	SELECT reservation_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr,
		CASE WHEN (SELECT sum(amount) FROM credit) = (SELECT sum(amount_idr) FROM done) AND deadline >= clock_timestamp()
			THEN 'SUCCESS' END, 'committed'
	FROM done
)
SELECT reservation_id FROM done`

	// A hold of today that is rolled back does not count against today's limit any more.
	rollBackSQL = `
WITH held AS MATERIALIZED (
	SELECT r.reservation_id, c.reason FROM reservations r JOIN unnest($1::uuid[], $2::text[]) AS c(id, reason) ON r.reservation_id = c.id
	WHERE r.status = 'PENDING' ORDER BY r.reservation_id FOR NO KEY UPDATE OF r
), done AS (
	UPDATE reservations r SET status = 'ROLLEDBACK', untold = $3 FROM held h
	WHERE r.reservation_id = h.reservation_id AND r.status = 'PENDING'
	RETURNING r.reservation_id, r.idempotency_key, r.sender_id, r.receiver_id, r.currency_input, r.amount_idr,
		r.created_at, h.reason
), amounts AS (
	SELECT sender_id, sum(amount_idr)::bigint AS amount, today.day,
		coalesce(sum(amount_idr) FILTER (WHERE floor(extract(epoch FROM created_at) / 86400) = today.day), 0)::bigint AS of_day
	FROM done, (SELECT floor(extract(epoch FROM now()) / 86400)::int AS day) today
	GROUP BY sender_id, today.day
), senders AS MATERIALIZED (
	SELECT a.account_id, s.amount, s.day, s.of_day FROM wallet_accounts a JOIN amounts s ON a.account_id = s.sender_id
	ORDER BY a.account_id FOR NO KEY UPDATE OF a
), refund AS (
	UPDATE wallet_accounts a
	SET balance_idr = a.balance_idr + s.amount, updated_at = now(),
		spent_today_idr = CASE WHEN a.spent_day = s.day THEN greatest(0, a.spent_today_idr - s.of_day) ELSE a.spent_today_idr END
	FROM senders s WHERE a.account_id = s.account_id
), outcome AS (
	INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason)
	SELECT reservation_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, 'FAILED', reason
	FROM done
)
SELECT reservation_id FROM done`

	standingSQL = `
SELECT r.idempotency_key, r.reservation_id, r.fingerprint, r.attempt_id, r.status, coalesce(p.reason, ''),
	r.status = 'PENDING' AND r.deadline < clock_timestamp()
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id
WHERE r.reservation_id = ANY($1::uuid[])`
)

// finishAll ends a batch of reservations. All commits are one statement, and so one transaction.
// All rollbacks are another. Then finishAll reads the state of the reservations that this batch
// could not end.
func (l *Ledger) finishAll(ctx context.Context, calls []Finish) ([]Finished, error) {
	if l.locks.recent() {
		return l.finishBriefly(ctx, calls)
	}
	return finishOn(ctx, l.pool, calls, false)
}

// finishOn is finishAll on a pool or in a transaction. unpublished marks the rollbacks, so that a
// sweep publishes their results.
func finishOn(ctx context.Context, q postgres.Querier, calls []Finish, unpublished bool) ([]Finished, error) {
	order := make([]int, 0, len(calls)) // has only the first of several calls for one reservation
	first := make(map[uuid.UUID]int, len(calls))
	for i, c := range calls {
		if _, seen := first[c.ReservationID]; !seen {
			first[c.ReservationID] = i
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(i, j int) int { return bytes.Compare(calls[i].ReservationID[:], calls[j].ReservationID[:]) })
	var commits, rollbacks []pgtype.UUID
	var keys, reasons []string
	for _, i := range order {
		c := calls[i]
		id := pgtype.UUID{Bytes: c.ReservationID, Valid: true}
		if c.RollBack == "" {
			commits, keys = append(commits, id), append(keys, c.Key)
		} else {
			rollbacks, reasons = append(rollbacks, id), append(reasons, string(c.RollBack))
		}
	}

	finished := make([]Finished, len(calls))
	end := func(sql string, args ...any) error {
		rows, err := q.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil {
			return err
		}
		for _, id := range ids {
			f := &finished[first[id]]
			f.Done = true
			f.Claim = Claim{ReservationID: id, Status: payment.Committed, Reason: payment.ReasonCommitted}
			if reason := calls[first[id]].RollBack; reason != "" {
				f.Claim.Status, f.Claim.Reason = payment.RolledBack, reason
			}
		}
		return nil
	}
	if len(commits) > 0 {
		if err := end(commitSQL, commits, keys); err != nil {
			return nil, fmt.Errorf("commit a batch of %d: %w", len(commits), err)
		}
	}
	if len(rollbacks) > 0 {
		if err := end(rollBackSQL, rollbacks, reasons, unpublished); err != nil {
			return nil, fmt.Errorf("roll back a batch of %d: %w", len(rollbacks), err)
		}
	}
	return finished, readStanding(ctx, q, calls, finished)
}

func readStanding(ctx context.Context, q postgres.Querier, calls []Finish, finished []Finished) error {
	var ids []pgtype.UUID
	for i, f := range finished {
		if !f.Done {
			ids = append(ids, pgtype.UUID{Bytes: calls[i].ReservationID, Valid: true})
		}
	}
	if len(ids) == 0 {
		return nil
	}
	rows, err := q.Query(ctx, standingSQL, ids)
	if err != nil {
		return fmt.Errorf("read reservations: %w", err)
	}
	defer rows.Close()
	standing := map[uuid.UUID]Finished{}
	for rows.Next() {
		var f Finished
		if f.Claim, err = scanClaim(rows, &f.Key, &f.Overdue); err != nil {
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

// Reserve claims the payment's key and holds its funds, or records why not. If the key has a claim
// already, Reserve returns that claim. After ErrFull and ErrLocked the call has had no effect.
// After any other error, it is unknown whether the call took effect. The caller may repeat the
// call, and then gets the claim.
func (l *Ledger) Reserve(ctx context.Context, p payment.Payment) (Reserved, error) {
	return l.reserves.Do(ctx, reserve{Payment: p})
}

// Finish commits or rolls back one reservation. Its errors are those of Reserve.
func (l *Ledger) Finish(ctx context.Context, f Finish) (Finished, error) {
	return l.finishes.Do(ctx, f)
}

// Refuse claims the key as refused for a reason, and holds nothing. If the key has a claim already,
// Refuse returns that claim. Its errors are those of Reserve.
func (l *Ledger) Refuse(ctx context.Context, p payment.Payment, reason payment.Reason) (Reserved, error) {
	return l.reserves.Do(ctx, reserve{Payment: p, refuse: reason})
}

// Fail closes a payment as FAILED for a reason, unless it has an outcome already. Its errors are
// those of Reserve.
func (l *Ledger) Fail(ctx context.Context, p payment.Payment, reason payment.Reason) (Reserved, error) {
	got, err := l.Refuse(ctx, p, reason)
	if err != nil || got.Status != payment.Pending || got.Mismatch(p) {
		return got, err
	}
	ended, err := l.Finish(ctx, Finish{ReservationID: got.ReservationID, RollBack: reason})
	got.Status, got.Reason = ended.Claim.Status, ended.Claim.Reason
	return got, err
}

// newID makes an id. Nothing depends on its time.
func newID() uuid.UUID { return uuid.Must(uuid.NewV7()) }

// idAt makes the UUIDv7 of the nth reservation of a batch, at a time of the database. Ids are
// ordered by that time, and replicas' clocks do not matter. So new rows go to the end of the index,
// and the sweep finds old rows.
func idAt(now time.Time, n int) uuid.UUID {
	const steps = 1 << 12 // in a millisecond
	at := now.UnixMilli()*steps + int64(now.Nanosecond()%1e6)*steps/1e6 + int64(n)
	id := uuid.New()
	binary.BigEndian.PutUint64(id[:8], uint64(at/steps)<<16|7<<12|uint64(at%steps))
	return id
}

// timeOf returns the time of a UUIDv7.
func timeOf(id uuid.UUID) time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16))
}

func timestamp(t time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: t, Valid: !t.IsZero()}
}

func distinct(ids []string) []string {
	slices.Sort(ids)
	return slices.Compact(ids)
}
