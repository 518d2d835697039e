// Package ledger owns the database: its schema, and all SQL on accounts, balances, entries, transfers,
// quotes, reservations, payments, rates, rules, the sweep's mark, the actions on dead letters and the
// verdicts of reconciliations. Pure decisions are next to the SQL that uses them. BOOKS.md describes the books.
//
//   - A Ledger writes, and serves the clients' reads. Only db has one.
//   - A Reader needs only the right to read. fx, wallet and risk have one.
//   - The functions named Read and Each use a connection or a snapshot of the caller. Operators'
//     commands use them.
//   - Migrate, Roles and CheckSchema keep the schema (UPGRADES.md).
//
// Amounts are minor units of their currency, which are whole rupiah where nothing names another one. Times are by the database's clock,
// unless a comment says otherwise. An error is one of this package (errors.go), a context's error,
// or a database error, which shared/postgres classifies.
package ledger

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
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
	"pgw/shared/trace"
)

// maxTries is how often a batch is run that conflicts with another transaction.
const maxTries = 6

// Claim is the ledger's state of one client's idempotency key.
type Claim struct {
	payment.ScopedKey
	ReservationID uuid.UUID // zero: there is no claim
	Fingerprint   payment.Fingerprint
	AttemptID     string
	Status        payment.ReservationStatus
	Reason        payment.Reason // empty while PENDING, or Authorized
	Parent        uuid.UUID      // the payment of a refund, where a sweep tells it; else zero
}

// Reserved is the result of one reserve.
type Reserved struct {
	Claim
	Replay  bool  // the claim was made by an earlier attempt
	Paid    bool  // this call has paid the receiver
	Balance int64 // the sender's in the debit currency, after this call decided; 0 if the key was claimed before

	failed error // why a refund was not decided: ErrNotFound, or an InvalidError
}

func (c Claim) identity() payment.Identity {
	return payment.Identity{Client: c.Client, Fingerprint: c.Fingerprint}
}

// Mismatch reports whether the key belongs to another request.
func (r Reserved) Mismatch(req payment.Payment) bool { return r.Fingerprint != req.Fingerprint() }

// Outcome returns the payment's outcome. If its key belongs to another payment, the ledger keeps
// nothing for it, and the outcome is a refusal.
func (r Reserved) Outcome(p payment.Payment) payment.Outcome {
	return r.outcome(p.Fingerprint())
}

func (r Reserved) outcome(asked payment.Fingerprint) payment.Outcome {
	if r.Fingerprint != asked {
		out := payment.Decline(payment.IdempotencyMismatch)
		out.Replay = true
		return out
	}
	return payment.Standing(r.Status, r.Reason, r.ReservationID.String(), r.Replay)
}

// Config configures a Ledger.
type Config struct {
	URL  string // of the database, for a user with the right to write
	Name string // of the function, for application_name in pg_stat_activity

	Standby postgres.Standby // for lists of payments and reports

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

// spareConns are connections for all other calls: settings, accounts, operations and the sweep.
const spareConns = 6

// Ledger writes accounts, reservations, payments and everything else in the database. Calls that
// arrive at the same time share a transaction. Make it with Open; end it with Close.
type Ledger struct {
	pool     *pgxpool.Pool
	reads    *reads
	reserves *batch.Batcher[reserve, Reserved]
	finishes *batch.Batcher[Finish, Finished]
	quotes   *readers // the quotes that are put
	operates *readers // the captures, voids and cancellations
	rules    *postgres.Cached[payment.Rules]
	// lockTimeout is that of the configuration.
	lockTimeout time.Duration
	locks       seenLocks
	accepted    prometheus.Histogram // nil: there are no metrics
	log         *slog.Logger
	outage      *trace.Outage // of the database
}

// Open makes a ledger on a database. It connects on first use. An error names DATABASE_URL.
func Open(cfg Config) (*Ledger, error) {
	// Each lane of both kinds uses one connection while it works.
	log, now := cmp.Or(cfg.Log, slog.Default()), cfg.Now
	if now == nil {
		now = time.Now
	}
	outage := postgres.NewOutage(log, now)
	pool, err := postgres.Open(postgres.Config{
		Outage: outage, URL: cfg.URL, Name: cfg.Name, Lookups: true, MaxConns: int32(2*cfg.BatchLanes + spareConns),
		LockTimeout: cfg.LockTimeout, Now: cfg.Now, Registerer: cfg.Registerer,
	})
	if err != nil {
		return nil, err
	}
	reading, err := postgres.OpenReaders(postgres.Config{
		Outage: outage, URL: cfg.URL, Name: cfg.Name, Pool: "reads", Lookups: true, MaxConns: maxReads, Registerer: cfg.Registerer,
	}, cfg.Standby, log)
	if err != nil {
		pool.Close()
		return nil, err
	}
	l := &Ledger{
		pool: pool, reads: newReads(reading, cmp.Or(cfg.ReadTimeout, readTimeout)),
		quotes: newReaders(maxPuts, maxWaitingPuts, readTimeout), lockTimeout: cfg.LockTimeout, log: log, outage: outage,
		operates: newReaders(maxOperations, maxWaitingOperations, cmp.Or(cfg.BatchTimeout, batch.DefaultTimeout)),
	}
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
	err := errors.Join(l.reserves.Close(ctx), l.finishes.Close(ctx), l.reads.close(ctx))
	l.pool.Close()
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

// together serves calls in one transaction of one round trip. queue queues the statements of a call, which
// fill in its result. If the transaction fails, each call runs by itself, so that one that can't succeed
// fails alone. All transactions take their rows in the order of compare; nil: they take none.
func together[C, R any](pool *pgxpool.Pool, compare func(a, b C) int, queue func(C, *pgx.Batch, *R)) batch.Func[C, R] {
	return func(ctx context.Context, calls []C) []batch.Result[R] {
		order := make([]int, len(calls))
		for i := range order {
			order[i] = i
		}
		if compare != nil {
			slices.SortStableFunc(order, func(a, b int) int { return compare(calls[a], calls[b]) })
		}
		results := make([]batch.Result[R], len(calls))
		run := func(some []int) error {
			b := &pgx.Batch{}
			for _, i := range some {
				queue(calls[i], b, &results[i].Value)
			}
			sent := pool.SendBatch(ctx, b)
			defer sent.Close() // gives the connection back after a panic too
			return sent.Close()
		}
		err := run(order)
		if err == nil {
			return results
		}
		for n, i := range order {
			results[i] = batch.Result[R]{Err: err}
			if len(calls) > 1 {
				results[i].Err = run(order[n : n+1])
			}
		}
		return results
	}
}

func runTransaction[C, R any](ctx context.Context, calls []C, run func(context.Context, []C) ([]R, error)) ([]R, error) {
	return retry(ctx, func() ([]R, error) { return run(ctx, calls) })
}

// retry runs a transaction until it has not lost against another one, at most maxTries times.
func retry[T any](ctx context.Context, run func() (T, error)) (T, error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = 2 * time.Millisecond
	return backoff.Retry(ctx, func() (T, error) {
		value, err := run()
		if err != nil && !postgres.Transient(err) {
			return value, backoff.Permanent(err)
		}
		return value, err
	}, backoff.WithBackOff(wait), backoff.WithMaxTries(maxTries))
}

// Reserve claims the payment's key and holds its funds, or records why not. If the key has a claim
// already, Reserve returns that claim. After ErrFull and ErrLocked the call has had no effect.
// After any other error, it is unknown whether the call took effect. The caller may repeat the
// call, and then gets the claim.
func (l *Ledger) Reserve(ctx context.Context, p payment.Payment) (Reserved, error) {
	return l.reserves.Do(ctx, reserve{Payment: p, trace: trace.ID(ctx)})
}

// ReserveAndCommit is Reserve and a commit in one transaction. The claim is PENDING if the funds are
// only held: an operation has to capture the payment, or an earlier call has held the funds, or a lock
// was not free in time. Its errors are those of Reserve.
func (l *Ledger) ReserveAndCommit(ctx context.Context, p payment.Payment) (Reserved, error) {
	return l.reserves.Do(ctx, reserve{Payment: p, commit: true, trace: trace.ID(ctx)})
}

// Finish commits or rolls back one reservation. Its errors are those of Reserve.
func (l *Ledger) Finish(ctx context.Context, f Finish) (Finished, error) {
	return l.finishes.Do(ctx, f)
}

// Refuse claims the key as refused for a reason, and holds nothing. If the key has a claim already,
// Refuse returns that claim. Its errors are those of Reserve.
func (l *Ledger) Refuse(ctx context.Context, p payment.Payment, reason payment.Reason) (Reserved, error) {
	return l.reserves.Do(ctx, reserve{Payment: p, refuse: reason, trace: trace.ID(ctx)})
}

// Fail closes a payment as FAILED for a reason, unless it has an outcome already. That a payment is
// authorized is an outcome too. Its errors are those of Reserve.
func (l *Ledger) Fail(ctx context.Context, p payment.Payment, reason payment.Reason) (Reserved, error) {
	got, err := l.Refuse(ctx, p, reason)
	if err != nil || got.Status != payment.Pending || got.Reason != "" || got.Mismatch(p) {
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

func pgUUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

func timestamp(t time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: t, Valid: !t.IsZero()}
}

func distinct(ids []string) []string {
	slices.Sort(ids)
	return slices.Compact(ids)
}
