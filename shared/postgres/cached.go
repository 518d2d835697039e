package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
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

	loading sync.Mutex // one load at a time
	current atomic.Pointer[loaded[T]]
}

type loaded[T any] struct {
	value T
	at    time.Time // monotonic
}

// NewCached makes a cache that is filled on first use.
func NewCached[T any](load func(context.Context) (T, error), log *slog.Logger) *Cached[T] {
	return &Cached[T]{load: load, log: log}
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

// Refresh reads the value now.
func (c *Cached[T]) Refresh(ctx context.Context) error {
	asked := time.Now()
	c.loading.Lock()
	defer c.loading.Unlock()
	if v := c.current.Load(); v != nil && v.at.After(asked) {
		return nil // another caller's load began after this call
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	begun := time.Now()
	value, err := c.load(ctx)
	if err != nil {
		return fmt.Errorf("refresh: %w", err)
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
