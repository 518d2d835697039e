package ledger

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/postgres"
)

// Reader reads the ledger through a pool that may only read. Make it with OpenReader; end it with
// Close.
type Reader struct{ pool *pgxpool.Pool }

// OpenReader opens a pool for reading. It connects on first use. An error names DATABASE_URL.
func OpenReader(cfg postgres.Config) (*Reader, error) {
	cfg.ReadOnly = true
	pool, err := postgres.Open(cfg)
	if err != nil {
		return nil, err
	}
	return &Reader{pool}, nil
}

// Close closes the connections.
func (r *Reader) Close() { r.pool.Close() }

// Ready returns the reason why the ledger can't be read: the database does not answer, or its
// schema does not fit this release.
func (r *Reader) Ready(ctx context.Context) error { return CheckSchema(ctx, r.pool, KnownSchema()) }

// Rates reads the newest rate of each pair of currencies that has one.
func (r *Reader) Rates(ctx context.Context) ([]Rate, error) { return readRates(ctx, r.pool) }

// Rules reads the rules in force: the id of their set, and the JSON that payment.ParseRules reads.
// text is nil when there are none.
func (r *Reader) Rules(ctx context.Context) (id string, text []byte, err error) {
	return readRules(ctx, r.pool)
}

// Accounts reads accounts by their ids. Those that don't exist are missing from the map.
func (r *Reader) Accounts(ctx context.Context, ids []string) (map[string]Account, error) {
	return readAccounts(ctx, r.pool, ids)
}

// Started reads how many payments each sender has started in the UTC minute of a time. Senders that
// have started none are missing from the map.
func (r *Reader) Started(ctx context.Context, senders []string, at time.Time) (map[string]uint32, error) {
	return readStarted(ctx, r.pool, senders, at)
}

// RandomAccounts picks up to n different active accounts at random.
func (r *Reader) RandomAccounts(ctx context.Context, n int) ([]string, error) {
	return readRandomAccounts(ctx, r.pool, n)
}

// Cached keeps a Reader's value in memory, as postgres.Cached does. It also keeps whether the
// schema fits this release.
type Cached[T any] struct{ read *postgres.Cached[checked[T]] }

type checked[T any] struct {
	value  T
	schema error // an ErrSchema; nil when the schema fits
}

// NewCached makes a cache that is filled on first use. load reads its value.
func NewCached[T any](r *Reader, load func(context.Context) (T, error), log *slog.Logger) *Cached[T] {
	return &Cached[T]{postgres.NewCached(func(ctx context.Context) (c checked[T], err error) {
		if err = r.Ready(ctx); errors.Is(err, ErrSchema) {
			c.schema, err = err, nil
		}
		if err == nil {
			c.value, err = load(ctx)
		}
		if err != nil && c.schema != nil {
			err = c.schema // the schema explains why the value can't be read
		}
		return c, err
	}, log)}
}

// Get returns the value. It waits for the database only if there is no value, or the value is too
// old.
func (c *Cached[T]) Get(ctx context.Context) (T, error) {
	got, err := c.read.Get(ctx)
	return got.value, err
}

// Ready returns the reason why the value can't be used: there is none, or the schema does not fit
// this release.
func (c *Cached[T]) Ready(ctx context.Context) error {
	got, err := c.read.Get(ctx)
	if err == nil {
		err = got.schema
	}
	return err
}

// Refresh reads the current value.
func (c *Cached[T]) Refresh(ctx context.Context) error { return c.read.Refresh(ctx) }

// Run reads the value again every second until ctx ends.
func (c *Cached[T]) Run(ctx context.Context) error { return c.read.Run(ctx) }
