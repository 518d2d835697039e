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
	"pgw/shared/money"
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
	briefly = 50 * time.Millisecond

	// These statements do not wait, so their lock order does not matter. They keep the usual order.
	skipLocked = ` SKIP LOCKED`

	// It also names every balance that the end of a reservation changes: a commit all of its legs, a
	// rollback those that hold money.
	lockFreeReservationsSQL = `
WITH free AS MATERIALIZED (
	SELECT ` + movedSQL + ` FROM reservations r
	WHERE r.reservation_id = ANY($1::uuid[]) AND r.status = 'PENDING' ORDER BY r.reservation_id FOR NO KEY UPDATE OF r SKIP LOCKED
)
SELECT f.reservation_id, leg.account_id, leg.currency, leg.held > 0 FROM free f, ` + legsSQL
)

// lockPlacesSQL locks balances by account and currency.
var lockPlacesSQL = &form{
	one: `
SELECT b.account_id, b.currency FROM unnest($1::text[], $2::text[]) AS w(account_id, currency)
JOIN balances b ON b.account_id = w.account_id AND b.currency = w.currency
ORDER BY b.` + house + `, b.account_id, b.currency FOR NO KEY UPDATE OF b`,
	rows: `
UPDATE balances b SET updated_at = b.updated_at FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[])) AS w(account_id, currency)
WHERE b.account_id = w.account_id AND b.currency = w.currency`,
}

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
// locked. A refusal holds no money and needs no account. reserveFree commits nothing, because a commit
// needs the receiver too: the caller's own commit pays, or is put off.
func (l *Ledger) reserveFree(ctx context.Context, calls []reserve) (results []batch.Result[Reserved], err error) {
	err = l.reserving(ctx, func(conn *pgxpool.Conn, velocity uint32) error {
		if postgres.Rows(conn.Conn()) {
			results, err = l.reserveBriefly(ctx, conn, calls, velocity)
			return err
		}
		if results, err = l.reserveFreeOn(ctx, conn, calls, velocity); err != nil {
			postgres.RollBack(ctx, conn)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reserve around locks, of a batch of %d: %w", len(calls), err)
	}
	return results, nil
}

// reserveBriefly is reserveFreeOn on distributed rows, where no statement passes over locked rows.
// The batch waits only briefly, and fails if it meets a lock. around then runs each half of it,
// down to the calls that need a locked row.
func (l *Ledger) reserveBriefly(ctx context.Context, conn *pgxpool.Conn, calls []reserve, velocity uint32) ([]batch.Result[Reserved], error) {
	l.locks.see()
	decided, err := l.reserveOrLock(ctx, conn, uncommitted(calls), velocity)
	return putOff(decided, err, len(calls))
}

// uncommitted returns the calls without their commits.
func uncommitted(calls []reserve) []reserve {
	calls = slices.Clone(calls)
	for i := range calls {
		calls[i].commit = false
	}
	return calls
}

// putOff returns the results of a batch that waited only briefly. A single call that has met a lock
// is put off.
func putOff[R any](values []R, err error, calls int) ([]batch.Result[R], error) {
	if calls == 1 && postgres.LockTimeout(err) {
		return []batch.Result[R]{{Err: ErrLocked}}, nil
	}
	if err != nil {
		return nil, err
	}
	results := make([]batch.Result[R], len(values))
	for i, v := range values {
		results[i].Value = v
	}
	return results, nil
}

func (l *Ledger) reserveFreeOn(ctx context.Context, conn *pgxpool.Conn, calls []reserve, velocity uint32) ([]batch.Result[Reserved], error) {
	calls = uncommitted(calls)
	found, err := readParents(ctx, conn, calls)
	if err != nil {
		return nil, err
	}
	calls = found.resolved(calls)
	b, free := &pgx.Batch{}, map[place]bool{}
	l.queueBegin(b, conn, true)
	queueLocks(b, calls, skipLocked, func(at place) error { free[at] = true; return nil })
	s, err := read(ctx, conn, b, calls)
	if err != nil {
		return nil, err
	}
	s.parents = found
	// A payment needs the balance that pays, the one that counts, and the house's where it exchanges.
	locked := func(at place) bool { return s.balances[at] != nil && !free[at] }
	results := make([]batch.Result[Reserved], len(calls))
	var kept []reserve
	var at []int
	for i, c := range calls {
		_, claimed := s.claim(c)
		waits := locked(place{c.Sender, c.Debit().Currency}) || locked(place{c.Sender, money.IDR}) ||
			c.Exchanges() && locked(place{payment.LiquidityAccount, c.Credit().Currency}) ||
			c.Exchanges() && c.refund != nil && locked(place{payment.SpreadAccount, c.Credit().Currency})
		if waits && !claimed && c.refuse == "" && !payment.IsHouse(c.Sender) {
			results[i].Err = ErrLocked
			continue
		}
		kept, at = append(kept, c), append(at, i)
	}
	decided, fresh := decide(kept, s, velocity)
	if _, err := write(ctx, conn, &pgx.Batch{}, kept, decided, fresh, s); err != nil {
		return nil, err
	}
	l.observeAccepted(kept, fresh, s.now)
	for i, d := range decided {
		results[at[i]].Value = d
	}
	return results, nil
}

// queueBegin begins a transaction, which waits only briefly for locks if brief is set.
func (l *Ledger) queueBegin(b *pgx.Batch, conn *pgxpool.Conn, brief bool) {
	b.Queue("BEGIN")
	for _, sql := range l.limits(conn.Conn(), brief) {
		b.Queue(sql)
	}
}

// limits returns the statements that limit a transaction's waits for locks. The session has the
// usual limit, but on Citus another server waits. On distributed rows a snapshot does not begin
// until the transaction ends.
func (l *Ledger) limits(conn *pgx.Conn, brief bool) (sql []string) {
	citus, limit := postgres.Citus(conn), l.lockTimeout
	if brief {
		limit = briefly
	}
	if citus {
		sql = append(sql, postgres.PropagateSQL)
	}
	if brief || citus && limit > 0 {
		sql = append(sql, fmt.Sprintf(`SET LOCAL lock_timeout = %d`, limit.Milliseconds()))
	}
	if postgres.Rows(conn) {
		sql = append(sql, whileMovingSQL)
	}
	return sql
}

// begin runs a transaction that has the usual limits.
func (l *Ledger) begin(ctx context.Context, run func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		for _, sql := range l.limits(tx.Conn(), false) {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return run(tx)
	})
}

// transact runs a transaction on a connection, which waits only briefly for locks if brief is set.
func (l *Ledger) transact(ctx context.Context, conn *pgxpool.Conn, brief bool, run func() error) error {
	begin := &pgx.Batch{}
	l.queueBegin(begin, conn, brief)
	err := conn.SendBatch(ctx, begin).Close()
	if err == nil {
		if err = run(); err == nil {
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
	return l.finishAround(ctx, calls, byCall)
}

func (l *Ledger) finishAround(ctx context.Context, calls []Finish, by ending) (results []batch.Result[Finished], err error) {
	conn, err := l.pool.Acquire(ctx)
	if err == nil {
		defer conn.Release()
		if postgres.Rows(conn.Conn()) { // as in reserveBriefly
			finished, err := l.finishBriefly(ctx, conn, calls, by)
			return putOff(finished, err, len(calls))
		}
		err = l.transact(ctx, conn, true, func() error {
			results, err = finishFreeOn(ctx, conn, calls, by)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("finish around locks, of a batch of %d: %w", len(calls), err)
	}
	return results, nil
}

func finishFreeOn(ctx context.Context, conn *pgxpool.Conn, calls []Finish, by ending) ([]batch.Result[Finished], error) {
	ids := make([]pgtype.UUID, len(calls))
	for i, c := range calls {
		ids[i] = pgUUID(c.ReservationID)
	}
	rows, err := conn.Query(ctx, lockFreeReservationsSQL, ids)
	if err != nil {
		return nil, err
	}
	type change struct {
		at    place
		holds bool
	}
	ours := map[uuid.UUID][]change{}
	var id uuid.UUID
	var account, currency string
	var holds bool
	if _, err := pgx.ForEachRow(rows, []any{&id, &account, &currency, &holds}, func() error {
		at, err := placeOf(account, currency)
		ours[id] = append(ours[id], change{at, holds})
		return err
	}); err != nil {
		return nil, err
	}
	changed := func(c Finish) (places []place) {
		for _, leg := range ours[c.ReservationID] {
			if c.RollBack == "" || leg.holds {
				places = append(places, leg.at)
			}
		}
		return places
	}
	wanted := map[place]bool{}
	for _, c := range calls {
		for _, at := range changed(c) {
			wanted[at] = true
		}
	}
	free, err := lockFree(ctx, conn, wanted)
	if err != nil {
		return nil, err
	}
	isFree := func(c Finish) bool {
		return !slices.ContainsFunc(changed(c), func(at place) bool { return !free[at] })
	}
	// The other reservations are read last. One that is still PENDING is locked; any other is
	// decided or unknown.
	var kept, rest []Finish
	var keptAt, restAt []int
	for i, c := range calls {
		if ours[c.ReservationID] != nil && isFree(c) {
			kept, keptAt = append(kept, c), append(keptAt, i)
		} else {
			rest, restAt = append(rest, c), append(restAt, i)
		}
	}
	finished, err := finishOn(ctx, conn, kept, by, asItIs)
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

// lockFree locks those of the wanted balances that nobody else has locked, and returns them.
func lockFree(ctx context.Context, q postgres.Querier, wanted map[place]bool) (map[place]bool, error) {
	var accounts, currencies []string
	for at := range wanted {
		accounts, currencies = append(accounts, at.account), append(currencies, at.currency.String())
	}
	rows, err := q.Query(ctx, lockPlacesSQL.one+skipLocked, accounts, currencies)
	if err != nil {
		return nil, err
	}
	free := map[place]bool{}
	var account, currency string
	_, err = pgx.ForEachRow(rows, []any{&account, &currency}, func() error {
		at, err := placeOf(account, currency)
		free[at] = true
		return err
	})
	return free, err
}
