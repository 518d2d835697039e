package ledger

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"pgw/shared/postgres"
)

// Reader reads the ledger through pools that may only read: at a standby, if there is one that is not too
// far behind, and else at the primary. Make it with OpenReader; end it with Close.
type Reader struct{ from *postgres.Readers }

// OpenReader opens the pools. They connect on first use. An error names the variable of the URL.
func OpenReader(cfg postgres.Config, standby postgres.Standby, log *slog.Logger) (*Reader, error) {
	from, err := postgres.OpenReaders(cfg, standby, log)
	if err != nil {
		return nil, err
	}
	return &Reader{from}, nil
}

// Close closes the connections.
func (r *Reader) Close() { r.from.Close() }

// Ready returns the reason why the ledger can't be read: the database does not answer, or its
// schema does not fit this release.
func (r *Reader) Ready(ctx context.Context) error {
	_, err := r.from.Read(ctx, 0, func(ctx context.Context, q postgres.Queries) error { return CheckSchema(ctx, q, KnownSchema()) })
	return err
}

// readFrom is Readers.Read for a read with a value.
func readFrom[T any](ctx context.Context, from *postgres.Readers, within time.Duration, read func(context.Context, postgres.Queries) (T, error)) (value T, behind bool, err error) {
	behind, err = from.Read(ctx, within, func(ctx context.Context, q postgres.Queries) (err error) {
		value, err = read(ctx, q)
		return err
	})
	return value, behind, err
}

// Rates reads the newest rate of each pair of currencies that has one.
func (r *Reader) Rates(ctx context.Context) ([]Rate, error) {
	rates, _, err := readFrom(ctx, r.from, 0, func(ctx context.Context, q postgres.Queries) ([]Rate, error) { return readRates(ctx, q) })
	return rates, err
}

// Rules reads the rules in force: the id of their set, and the JSON that payment.ParseRules reads.
// text is nil when there are none.
func (r *Reader) Rules(ctx context.Context) (id string, text []byte, err error) {
	_, err = r.from.Read(ctx, 0, func(ctx context.Context, q postgres.Queries) (err error) {
		id, text, err = readRules(ctx, q)
		return err
	})
	return id, text, err
}

// Accounts reads accounts by their ids. Those that don't exist are missing from the map. behind says that
// a standby has answered: what the primary has may be newer.
func (r *Reader) Accounts(ctx context.Context, ids []string) (accounts map[string]Account, behind bool, err error) {
	return readFrom(ctx, r.from, 0, func(ctx context.Context, q postgres.Queries) (map[string]Account, error) {
		return readAccounts(ctx, q, ids)
	})
}

// CurrentAccounts is Accounts at the primary.
func (r *Reader) CurrentAccounts(ctx context.Context, ids []string) (map[string]Account, error) {
	return readAccounts(ctx, r.from.Primary(), ids)
}

// Started reads how many payments each sender has started in the UTC minute of a time. Senders that
// have started none are missing from the map. A standby has counted no more than the primary.
func (r *Reader) Started(ctx context.Context, senders []string, at time.Time) (map[string]uint32, error) {
	started, _, err := readFrom(ctx, r.from, 0, func(ctx context.Context, q postgres.Queries) (map[string]uint32, error) {
		return readStarted(ctx, q, senders, at)
	})
	return started, err
}

// RandomAccounts picks up to n different active accounts at random.
func (r *Reader) RandomAccounts(ctx context.Context, n int) ([]string, error) {
	ids, _, err := readFrom(ctx, r.from, 0, func(ctx context.Context, q postgres.Queries) ([]string, error) {
		return readRandomAccounts(ctx, q, n)
	})
	return ids, err
}

// Cached keeps a Reader's value in memory, as postgres.Cached does. It also keeps whether the
// schema fits this release.
type Cached[T any] struct {
	read *postgres.Cached[checked[T]]
	from *postgres.Readers
}

type checked[T any] struct {
	value  T
	schema error // an ErrSchema; nil when the schema fits
}

// NewCached makes a cache that is filled on first use. load reads its value.
func NewCached[T any](r *Reader, load func(context.Context) (T, error), log *slog.Logger) *Cached[T] {
	return &Cached[T]{from: r.from, read: postgres.NewCached(func(ctx context.Context) (c checked[T], err error) {
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

// Refresh reads the current value. No later read shows an older one, also not at a standby.
func (c *Cached[T]) Refresh(ctx context.Context) error {
	c.from.ShowFrom(time.Now())
	return c.read.Refresh(ctx)
}

// Run reads the value again every second until ctx ends.
func (c *Cached[T]) Run(ctx context.Context) error { return c.read.Run(ctx) }
