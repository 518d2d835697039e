// Package postgres opens pools, says what an error from the database means, and holds the queries that
// two functions share.
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// Config of a pool.
type Config struct {
	URL      string
	Name     string // application_name: who is asking, for pg_stat_activity
	Pool     string // tells a function's pools apart in its metrics; "main" when empty
	MaxConns int32
	// ReadOnly says that every transaction of this pool is read-only. A statement that nobody waits for any more is cancelled
	// at the server, and its connection is used again.
	ReadOnly bool
	// Lookups says that every statement of this pool finds its rows by index. A statement prepared while
	// the tables were small would otherwise keep a plan that reads them whole, and slow down with each row
	// until the tables are next analyzed. And since the plan is the same whatever the parameters are, it is made
	// once: making it took longer than a small batch takes to run.
	Lookups bool
	// LockTimeout bounds how long a statement waits for a lock; 0: as long as a statement may take. See LockTimeout.
	LockTimeout time.Duration
	Now         func() time.Time // the clock that is held against the database's; nil means time.Now

	Registerer prometheus.Registerer // nil: nothing is measured
}

// cancelWithin is how long a statement that was cancelled may take to end, before its connection is given up.
const cancelWithin = time.Second

// Open makes a pool. It connects when it is first used: a function must be able to start while the database
// is away. Whatever context its user has, nothing waits for ever: a dial, an acquire, a statement and a server's silence
// have bounds. When a server that was asked says nothing, all connections are made anew.
func Open(cfg Config) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		// pgx's error repeats the URL, with its password taken out.
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	c.MaxConns = cfg.MaxConns
	c.MaxConnLifetimeJitter = time.Minute
	c.PingTimeout = pingTimeout
	c.ConnConfig.ConnectTimeout = connectTimeout
	var opened atomic.Pointer[pgxpool.Pool]
	c.ConnConfig.DialFunc = newDialer(func() {
		if pool := opened.Load(); pool != nil {
			go pool.Reset()
		}
	}).dial
	c.ConnConfig.Tracer = bounds{}
	// A process has one clock, however many pools it has.
	if cfg.Registerer != nil && cfg.Pool == "" {
		c.PrepareConn = newClock(cfg.Now, cfg.Registerer).measure
	}
	params := c.ConnConfig.RuntimeParams
	params["application_name"] = "pgw-" + cfg.Name
	params["timezone"] = "UTC"
	// A connection whose client has died must not hold account locks for longer than this.
	params["idle_in_transaction_session_timeout"] = "5000"
	params["statement_timeout"] = milliseconds(statementTimeout)
	if cfg.LockTimeout > 0 {
		params["lock_timeout"] = milliseconds(cfg.LockTimeout)
	}
	params["jit"] = "off"
	if cfg.Lookups {
		params["enable_seqscan"], params["enable_hashjoin"], params["enable_mergejoin"] = "off", "off", "off"
		params["plan_cache_mode"] = "force_generic_plan"
	}
	if cfg.ReadOnly {
		params["default_transaction_read_only"] = "on"
		c.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
			return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: cancelWithin}
		}
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), c)
	if err != nil {
		return nil, err
	}
	opened.Store(pool)
	if cfg.Registerer != nil {
		measure(cfg.Registerer, cmp.Or(cfg.Pool, "main"), pool)
	}
	return pool, nil
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// bounds gives each acquire an end of its own. It is a tracer because a pool asks its tracer for the context.
type bounds struct{}

type cancelKey struct{}

// TraceAcquireStart implements pgxpool.AcquireTracer.
func (bounds) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	ctx, cancel := context.WithTimeout(ctx, acquireTimeout)
	return context.WithValue(ctx, cancelKey{}, cancel)
}

// TraceAcquireEnd implements pgxpool.AcquireTracer.
func (bounds) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireEndData) {
	ctx.Value(cancelKey{}).(context.CancelFunc)()
}

// TraceQueryStart implements pgx.QueryTracer, as a tracer must.
func (bounds) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd implements pgx.QueryTracer.
func (bounds) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// RollBack ends a connection's transaction, whatever ended it. A connection that does not answer soon is closed.
func RollBack(ctx context.Context, conn *pgxpool.Conn) {
	if conn.Conn().IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	conn.Exec(ctx, "ROLLBACK")
}

// SQLSTATE codes that the callers tell apart.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	uniqueViolation      = "23505"
	notNullViolation     = "23502" // how db's statements say that what they had found has changed under them
	lockNotAvailable     = "55P03"
	queryCanceled        = "57014"
	internalError        = "XX000"
	undefinedTable       = "42P01"
)

// Transient tells that the same transaction, run again, may well succeed: it lost against another one.
func Transient(err error) bool {
	switch sqlState(err) {
	case serializationFailure, deadlockDetected, uniqueViolation, notNullViolation:
		return true
	}
	return false
}

// LockTimeout tells that a statement waited for another transaction's lock for as long as it may. It took no effect.
func LockTimeout(err error) bool { return sqlState(err) == lockNotAvailable }

// NoSuchTable tells that a statement names a table that is not there.
func NoSuchTable(err error) bool { return sqlState(err) == undefinedTable }

// TookTooLong tells that the server ended a statement that took too long.
func TookTooLong(err error) bool { return sqlState(err) == queryCanceled }

// againTimes bounds Again.
const againTimes = 20

// Again runs what changes the server's own catalogues until no other does so at the same time, which Postgres tells by
// an internal error.
func Again(ctx context.Context, run func() error) (err error) {
	for n := range againTimes {
		if err = run(); sqlState(err) != internalError {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(n+1) * 10 * time.Millisecond):
		}
	}
	return err
}

// BadData tells that the statement's own values are at fault (class 22, data exception; class 23,
// constraint violation), so that running it again, unchanged, can't succeed.
func BadData(err error) bool {
	code := sqlState(err)
	return len(code) == 5 && (code[:2] == "22" || code[:2] == "23")
}

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// Querier is a pool, a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// NewestRules reads the rules in force, which risk judges by and the ledger enforces; nil when none were ever put.
func NewestRules(ctx context.Context, q Querier) (id string, rules []byte, err error) {
	err = q.QueryRow(ctx, `SELECT rule_set::text, rules FROM risk_rules ORDER BY created_at DESC, rule_set DESC LIMIT 1`).Scan(&id, &rules)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("read rules: %w", err)
	}
	return id, rules, nil
}

// The sample reads about 50 pages of a large table and all of a small one: ORDER BY random() over ten
// million accounts would take seconds.
const randomAccountsSQL = `
SELECT account_id
FROM wallet_accounts TABLESAMPLE SYSTEM (
	LEAST(100, 5000.0 / GREATEST(1, (SELECT relpages FROM pg_class WHERE oid = 'wallet_accounts'::regclass))))
WHERE status = 'ACTIVE' AND NOT internal
ORDER BY random()
LIMIT $1`

// RandomAccounts picks up to n different active accounts at random.
func RandomAccounts(ctx context.Context, q Querier, n int) ([]string, error) {
	rows, err := q.Query(ctx, randomAccountsSQL, n)
	if err != nil {
		return nil, fmt.Errorf("pick random accounts: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("pick random accounts: %w", err)
	}
	return ids, nil
}
