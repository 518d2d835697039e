package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"pgw/shared/trace"
)

// Bounds of how old a cached value may be.
const (
	refreshEvery = time.Second      // so that a change reaches every replica within 2 s
	maxStale     = 60 * time.Second // served while the database is away, and not longer
	loadTimeout  = 2 * time.Second
)

// Cached keeps a small table's content in memory and reads it again every second.
type Cached[T any] struct {
	load func(context.Context) (T, error)
	log  *slog.Logger

	loading singleflight.Group
	current atomic.Pointer[loaded[T]]
}

type loaded[T any] struct {
	value T
	at    time.Time // when the load began; monotonic
}

// NewCached makes a cache that is filled on first use.
func NewCached[T any](load func(context.Context) (T, error), log *slog.Logger) *Cached[T] {
	return &Cached[T]{load: load, log: log}
}

// Get returns the value. It waits for the database only if there is no value, or the value is too
// old.
func (c *Cached[T]) Get(ctx context.Context) (T, error) {
	if v := c.current.Load(); v != nil && time.Since(v.at) < maxStale {
		return v.value, nil
	}
	return c.join(ctx)
}

// Refresh reads the value as it is now. A load that is under way may have missed what was just
// written; the one after it has not.
func (c *Cached[T]) Refresh(ctx context.Context) error {
	for range 2 {
		if _, err := c.join(ctx); err != nil {
			return err
		}
	}
	return nil
}

// join waits for the load that is under way, or for a new one. All who wait share what it finds,
// also when that is an error.
func (c *Cached[T]) join(ctx context.Context) (T, error) {
	load := c.loading.DoChan("", func() (any, error) {
		// Not by the context of one caller: others wait for the same.
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
		defer cancel()
		begun := time.Now()
		value, err := c.load(limited)
		if err == nil {
			c.current.Store(&loaded[T]{value, begun})
		}
		return value, err
	})
	var none T
	select {
	case <-ctx.Done():
		return none, fmt.Errorf("refresh: %w", ctx.Err())
	case got := <-load:
		if got.Err != nil {
			return none, fmt.Errorf("refresh: %w", got.Err)
		}
		return got.Val.(T), nil
	}
}

// Run refreshes until ctx ends.
func (c *Cached[T]) Run(ctx context.Context) error {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	stale := trace.NewOutage(c.log, time.Now, "serving what was read last")
	for {
		_, err := c.join(ctx)
		// The pool's Outage says that the server is away.
		if err == nil || ctx.Err() == nil && !away(err) {
			stale.Note(ctx, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
