// Package postgres opens connection pools, classifies the database's errors, and keeps small tables in
// memory.
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

	"pgw/shared/trace"
)

// Config is the configuration of a pool.
type Config struct {
	URL      string // Schema.In adds a ledger's schema
	Name     string // the function, for application_name in pg_stat_activity
	Pool     string // separates a function's pools in its metrics; "main" when empty
	MaxConns int32
	// ReadOnly makes every transaction of this pool read-only. A statement whose caller has gone is
	// cancelled at the server, and its connection is used again.
	ReadOnly bool
	// Lookups says that every statement of this pool finds its rows by index. Otherwise a statement
	// that was prepared while the tables were small keeps a plan that reads whole tables, and gets
	// slower with each row until the tables are analyzed again. The plan does not depend on the
	// parameters, so it is made once: making it takes longer than running a small batch.
	Lookups bool
	// LockTimeout is the longest wait of a statement for a lock; 0 means as long as the statement
	// may take. See the function LockTimeout.
	LockTimeout time.Duration
	Now         func() time.Time // the clock that is compared with the database's; nil means time.Now

	Registerer prometheus.Registerer // nil: there are no metrics
	Outage     *trace.Outage         // notes when the server is away; nil: it is not noted
}

// cancelWithin is the time limit for a cancelled statement to end. After it, the connection is
// closed.
const cancelWithin = time.Second

// Open makes a pool. The pool connects when it is first used, because a function must be able to
// start while the database is away. Dials, acquires, statements and the server's silence have time
// limits, with any context, so nothing waits for ever. When the server does not answer a request,
// the pool replaces all its connections. A commit that no standby may have is an error where standbys
// are synchronous. If the URL names a schema, the sessions have no other one. An error names DATABASE_URL.
func Open(cfg Config) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		// pgx's error repeats the URL, without its password.
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
	c.ConnConfig.BuildFrontend = newFrontend
	requireSchema(c.ConnConfig)
	c.ConnConfig.Tracer = tracer{cfg.Outage}
	// A process has one clock, even with several pools, so only the main pool measures it.
	if cfg.Registerer != nil && cfg.Pool == "" {
		c.PrepareConn = newClock(cfg.Now, cfg.Registerer).measure
	}
	params := c.ConnConfig.RuntimeParams
	params["application_name"] = "pgw-" + cfg.Name
	params["timezone"] = "UTC"
	// A connection whose client has died must not hold account locks longer than this.
	params["idle_in_transaction_session_timeout"] = "5000"
	params["statement_timeout"] = milliseconds(statementTimeout)
	if cfg.LockTimeout > 0 {
		params["lock_timeout"] = milliseconds(cfg.LockTimeout)
	}
	params["jit"] = "off"
	// A plan for a table that has grown since it was analyzed may start parallel workers for a few rows.
	// Each start takes milliseconds, and a processor.
	params["max_parallel_workers_per_gather"] = "0"
	if cfg.Lookups {
		params["enable_seqscan"], params["enable_hashjoin"], params["enable_mergejoin"] = "off", "off", "off"
		params["plan_cache_mode"] = "force_generic_plan"
	}
	fitToCitus(c.ConnConfig)
	if cfg.ReadOnly {
		if suits := c.ConnConfig.ValidateConnect; suits != nil {
			c.ConnConfig.ValidateConnect = thenReadOnly(suits)
		} else {
			params["default_transaction_read_only"] = "on"
		}
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

// thenReadOnly makes a session read-only after the check of target_session_attrs. That check asks whether
// the session may write, and a session that is read-only from its start would always say no.
func thenReadOnly(suits pgconn.ValidateConnectFunc) pgconn.ValidateConnectFunc {
	return func(ctx context.Context, conn *pgconn.PgConn) error {
		if err := suits(ctx, conn); err != nil {
			return err
		}
		return conn.Exec(ctx, "SET default_transaction_read_only = on").Close()
	}
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// RollBack ends a connection's open transaction. A connection that does not answer within
// closeTimeout is closed.
func RollBack(ctx context.Context, conn *pgxpool.Conn) {
	if conn.Conn().IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	conn.Exec(ctx, "ROLLBACK")
}

// The SQLSTATE codes that callers distinguish.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	uniqueViolation      = "23505"
	notNullViolation     = "23502" // db's statements raise it when rows that they had found have changed meanwhile
	divisionByZero       = "22012" // db's statements raise it when what they were decided by has changed meanwhile
	lockNotAvailable     = "55P03"
	queryCanceled        = "57014"
	internalError        = "XX000"
	undefinedTable       = "42P01"
	duplicateObject      = "42710"
	tooManyConnections   = "53300"

	// Classes of codes, and the beginning of those for a server that is stopped or starts.
	connectionException  = "08"
	operatorIntervention = "57P"
)

// Transient says whether the same transaction may succeed when it is run again, because it lost
// against another one.
func Transient(err error) bool {
	switch sqlState(err) {
	case serializationFailure, deadlockDetected, uniqueViolation, notNullViolation, divisionByZero:
		return true
	}
	return false
}

// Outdated says whether a statement found that what it was decided by has changed.
func Outdated(err error) bool { return sqlState(err) == divisionByZero }

// LockTimeout says whether a statement reached the time limit for a lock. The statement had no
// effect.
func LockTimeout(err error) bool { return sqlState(err) == lockNotAvailable }

// NoSuchTable says whether a statement names a table that does not exist.
func NoSuchTable(err error) bool { return sqlState(err) == undefinedTable }

// Exists says whether a statement makes an object that is there already.
func Exists(err error) bool {
	state := sqlState(err)
	return state == duplicateObject || state == uniqueViolation
}

// TookTooLong says whether the server ended a statement because it took too long.
func TookTooLong(err error) bool { return sqlState(err) == queryCanceled }

// againTimes is the most attempts of Again.
const againTimes = 20

// Again runs a change of the server's catalogues. If another change runs at the same time, Postgres
// reports an internal error, and Again tries again.
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

// BadData says whether the statement's own values are wrong (class 22, data exception; class 23,
// constraint violation). Running it again unchanged cannot succeed.
func BadData(err error) bool {
	code := sqlState(err)
	return len(code) == 5 && (code[:2] == "22" || code[:2] == "23") && code != divisionByZero
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
