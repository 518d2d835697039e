package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
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

	loading chan struct{} // has room for one: one load at a time
	current atomic.Pointer[loaded[T]]
	last    attempt // of whoever is loading
}

// attempt is how the last load went.
type attempt struct {
	begun time.Time // monotonic
	err   error
}

type loaded[T any] struct {
	value T
	at    time.Time // monotonic
}

// NewCached makes a cache that is filled on first use.
func NewCached[T any](load func(context.Context) (T, error), log *slog.Logger) *Cached[T] {
	return &Cached[T]{load: load, log: log, loading: make(chan struct{}, 1)}
}

// Get gives the value; it waits for the database only when there is none, or only one that is too old.
func (c *Cached[T]) Get(ctx context.Context) (T, error) {
	if v := c.current.Load(); v != nil && time.Since(v.at) < maxStale {
		return v.value, nil
	}
	if err := c.Refresh(ctx); err != nil {
		var none T
		return none, err
	}
	return c.current.Load().value, nil
}

// Refresh reads the value now. Those who wait for a load that begins after they came share what it finds, also when that is
// an error: nobody waits for more than two.
func (c *Cached[T]) Refresh(ctx context.Context) error {
	asked := time.Now()
	select {
	case c.loading <- struct{}{}:
		defer func() { <-c.loading }()
	case <-ctx.Done():
		return fmt.Errorf("refresh: %w", ctx.Err())
	}
	if c.last.begun.After(asked) {
		return c.last.err
	}
	// Not by the context of one caller: others wait for the same.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
	defer cancel()
	begun := time.Now()
	value, err := c.load(limited)
	c.last = attempt{begun, nil}
	if err != nil {
		c.last.err = fmt.Errorf("refresh: %w", err)
		return c.last.err
	}
	c.current.Store(&loaded[T]{value, begun})
	return nil
}

// Run refreshes until ctx ends.
func (c *Cached[T]) Run(ctx context.Context) error {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	failing := false
	for {
		err := c.Refresh(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			c.log.WarnContext(ctx, "serving what was read last", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
