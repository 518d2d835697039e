package ledger

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pgw/shared/batch"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// A person may hold a lock on an account's row for minutes, and a replica that hangs may hold it
// for seconds. A batch waits for such a lock no longer than LOCK_TIMEOUT. Then the batch runs once
// more without the locked rows: it takes the free locks, and puts off only the calls that need a
// locked row. Their callers get Unavailable and try again.

const (
	// locksLast is the time after a lock timeout in which batches wait only briefly. The same lock
	// is probably still held, and must not cost every batch a full wait.
	locksLast = 2 * time.Second

	// Another lane holds a lock only for milliseconds.
	briefSQL = `SET LOCAL lock_timeout = 50`

	// These statements do not wait, so their lock order does not matter. They keep the usual order.
	lockFreeSendersSQL = lockSendersSQL + ` SKIP LOCKED`

	// It has the same conditions as lockSendersSQL.
	existingSQL = `SELECT account_id FROM wallet_accounts WHERE account_id = ANY($1) AND NOT internal`

	lockFreeReservationsSQL = `
SELECT reservation_id, sender_id, receiver_id FROM reservations
WHERE reservation_id = ANY($1::uuid[]) AND status = 'PENDING' ORDER BY reservation_id FOR NO KEY UPDATE SKIP LOCKED`

	lockFreeAccountsSQL = `
SELECT account_id FROM wallet_accounts WHERE account_id = ANY($1) ORDER BY account_id FOR NO KEY UPDATE SKIP LOCKED`
)

// seenLocks remembers the last lock timeout.
type seenLocks struct {
	last   atomic.Int64
	putOff prometheus.Counter // nil: there are no metrics
}

func (s *seenLocks) measure(r prometheus.Registerer) {
	s.putOff = promauto.With(r).NewCounter(prometheus.CounterOpts{
		Name: "pgw_db_put_off_total", Help: "Calls that were put off because another transaction had locked what they need.",
	})
}

func (s *seenLocks) count(n int) {
	if s.putOff != nil {
		s.putOff.Add(float64(n))
	}
}

func (s *seenLocks) see()         { s.last.Store(time.Now().UnixNano()) }
func (s *seenLocks) recent() bool { return time.Since(time.Unix(0, s.last.Load())) < locksLast }

// servePatiently runs a batch. If calls reach the lock timeout, it runs them once more without the
// locked rows.
func servePatiently[C, R any](l *Ledger, run batch.Func[C, R], free func(context.Context, []C) ([]batch.Result[R], error)) batch.Func[C, R] {
	return func(ctx context.Context, calls []C) []batch.Result[R] {
		results := run(ctx, calls)
		if !slices.ContainsFunc(results, func(r batch.Result[R]) bool { return postgres.LockTimeout(r.Err) }) {
			return results
		}
		l.locks.see()
		// In a batch that ran call by call, some calls may have succeeded.
		var waiting []C
		var at []int
		for i, r := range results {
			if postgres.LockTimeout(r.Err) {
				waiting, at = append(waiting, calls[i]), append(at, i)
			}
		}
		putOff := 0
		for i, r := range around(ctx, waiting, free) {
			results[at[i]] = r
			if r.Err != nil {
				putOff++
			}
		}
		l.locks.count(putOff)
		return results
	}
}

// around runs calls without the locked rows. If they fail together, it runs each half, down to the
// calls that cause the failure: those that wait for a key claimed by an open transaction, or that
// the database refuses. The batch's time limit ends this.
func around[C, R any](ctx context.Context, calls []C, free func(context.Context, []C) ([]batch.Result[R], error)) []batch.Result[R] {
	results, err := runTransaction(ctx, calls, free)
	if err == nil {
		return results
	}
	if len(calls) > 1 && ctx.Err() == nil && (postgres.LockTimeout(err) || postgres.BadData(err)) {
		half := len(calls) / 2
		return append(around(ctx, calls[:half], free), around(ctx, calls[half:], free)...)
	}
	results = make([]batch.Result[R], len(calls))
	for i := range results {
		results[i].Err = err
	}
	return results
}

// reserveFree is reserveAll without waiting for an account. It puts off a new claim whose sender is
// locked. A refusal holds no money and needs no account.
func (l *Ledger) reserveFree(ctx context.Context, calls []reserve) ([]batch.Result[Reserved], error) {
	rules, err := l.rules.Get(ctx)
	if err != nil {
		return nil, fmt.Errorf("reserve: %w", err)
	}
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("reserve: %w", err)
	}
	defer conn.Release()
	results, err := l.reserveFreeOn(ctx, conn, calls, rules.VelocityPerMin)
	if err != nil {
		postgres.RollBack(ctx, conn)
		return nil, fmt.Errorf("reserve around locks, of a batch of %d: %w", len(calls), err)
	}
	return results, nil
}

func (l *Ledger) reserveFreeOn(ctx context.Context, conn *pgxpool.Conn, calls []reserve, velocity uint32) ([]batch.Result[Reserved], error) {
	senders, blocked, claims, now, err := l.lockForReserve(ctx, conn, calls, lockFreeSendersSQL)
	if err != nil {
		return nil, err
	}
	var missed []string
	for _, c := range calls {
		if senders[c.Sender] == nil {
			missed = append(missed, c.Sender)
		}
	}
	locked, err := idSet(ctx, conn, existingSQL, missed)
	if err != nil {
		return nil, err
	}
	results := make([]batch.Result[Reserved], len(calls))
	var kept []reserve
	var at []int
	for i, c := range calls {
		if _, claimed := claims[c.Key]; locked[c.Sender] && !claimed && c.refuse == "" {
			results[i].Err = ErrLocked
			continue
		}
		kept, at = append(kept, c), append(at, i)
	}
	decided, fresh := decide(kept, senders, blocked, claims, now, velocity)
	if err := writeReserved(ctx, conn, kept, decided, fresh, senders, now); err != nil {
		return nil, err
	}
	l.observeAccepted(kept, fresh, now)
	for i, d := range decided {
		results[at[i]].Value = d
	}
	return results, nil
}

// idSet returns those of the given ids that the statement finds.
func idSet(ctx context.Context, q postgres.Querier, sql string, args []string) (map[string]bool, error) {
	rows, err := q.Query(ctx, sql, distinct(args))
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	set := make(map[string]bool, len(found))
	for _, s := range found {
		set[s] = true
	}
	return set, nil
}

// finishBriefly is finishAll for the time after a lock timeout. It waits only briefly.
func (l *Ledger) finishBriefly(ctx context.Context, calls []Finish) (finished []Finished, err error) {
	err = l.transact(ctx, func(conn *pgxpool.Conn) error {
		finished, err = finishOn(ctx, conn, calls, false)
		return err
	})
	return finished, err
}

// transact runs a transaction that waits only briefly for locks.
func (l *Ledger) transact(ctx context.Context, run func(*pgxpool.Conn) error) error {
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	begin := &pgx.Batch{}
	begin.Queue("BEGIN")
	begin.Queue(briefSQL)
	if err = conn.SendBatch(ctx, begin).Close(); err == nil {
		if err = run(conn); err == nil {
			_, err = conn.Exec(ctx, "COMMIT")
		}
	}
	if err != nil {
		postgres.RollBack(ctx, conn)
	}
	return err
}

// finishFree is finishAll without waiting. It puts off a reservation that is locked or whose
// account is locked.
func (l *Ledger) finishFree(ctx context.Context, calls []Finish) ([]batch.Result[Finished], error) {
	return l.finishAround(ctx, calls, false)
}

func (l *Ledger) finishAround(ctx context.Context, calls []Finish, unpublished bool) (results []batch.Result[Finished], err error) {
	err = l.transact(ctx, func(conn *pgxpool.Conn) error {
		results, err = finishFreeOn(ctx, conn, calls, unpublished)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("finish around locks, of a batch of %d: %w", len(calls), err)
	}
	return results, nil
}

func finishFreeOn(ctx context.Context, conn *pgxpool.Conn, calls []Finish, unpublished bool) ([]batch.Result[Finished], error) {
	ids := make([]pgtype.UUID, len(calls))
	for i, c := range calls {
		ids[i] = pgtype.UUID{Bytes: c.ReservationID, Valid: true}
	}
	rows, err := conn.Query(ctx, lockFreeReservationsSQL, ids)
	if err != nil {
		return nil, err
	}
	type parties struct{ sender, receiver string }
	ours := map[uuid.UUID]parties{}
	var id uuid.UUID
	var p parties
	if _, err := pgx.ForEachRow(rows, []any{&id, &p.sender, &p.receiver}, func() error { ours[id] = p; return nil }); err != nil {
		return nil, err
	}
	// A commit changes the receiver, a rollback the sender.
	changed := func(c Finish) string {
		if c.RollBack == "" {
			return ours[c.ReservationID].receiver
		}
		return ours[c.ReservationID].sender
	}
	var wanted []string
	for _, c := range calls {
		if account := changed(c); account != "" {
			wanted = append(wanted, account)
		}
	}
	free, err := idSet(ctx, conn, lockFreeAccountsSQL, wanted)
	if err != nil {
		return nil, err
	}
	// The other reservations are read last. One that is still PENDING is locked; any other is
	// decided or unknown.
	var kept, rest []Finish
	var keptAt, restAt []int
	for i, c := range calls {
		if _, locked := ours[c.ReservationID]; locked && free[changed(c)] {
			kept, keptAt = append(kept, c), append(keptAt, i)
		} else {
			rest, restAt = append(rest, c), append(restAt, i)
		}
	}
	finished, err := finishOn(ctx, conn, kept, unpublished)
	if err != nil {
		return nil, err
	}
	standing := make([]Finished, len(rest))
	if err := readStanding(ctx, conn, rest, standing); err != nil {
		return nil, err
	}
	results := make([]batch.Result[Finished], len(calls))
	for i, f := range finished {
		results[keptAt[i]].Value = f
	}
	for i, f := range standing {
		results[restAt[i]].Value = f
		if f.Claim.Status == payment.Pending {
			results[restAt[i]] = batch.Result[Finished]{Err: ErrLocked}
		}
	}
	return results, nil
}
