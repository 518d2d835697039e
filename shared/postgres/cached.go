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
func (c *Cached[T]) Get(ctx context.Context) (T, error) { return c.Within(ctx, maxStale) }

// Within is Get for callers that need a value which was read not longer ago than age.
func (c *Cached[T]) Within(ctx context.Context, age time.Duration) (T, error) {
	if v := c.current.Load(); v != nil && time.Since(v.at) < age {
		return v.value, nil
	}
	got, err := c.join(ctx, time.Now().Add(-age))
	return got.value, err
}

// Refresh reads the value as it is now. A load that is under way may have missed what was just
// written, so Refresh waits for the one after it. All who call meanwhile share that one.
func (c *Cached[T]) Refresh(ctx context.Context) error {
	asked := time.Now()
	for {
		got, err := c.join(ctx, asked)
		if err != nil || !got.at.Before(asked) {
			return err
		}
	}
}

// join waits for the load that is under way, or for a new one. All who wait share what it finds,
// also when that is an error. There is no new load if one that began at since or later has just ended.
func (c *Cached[T]) join(ctx context.Context, since time.Time) (loaded[T], error) {
	load := c.loading.DoChan("", func() (any, error) {
		if v := c.current.Load(); v != nil && !v.at.Before(since) {
			return *v, nil
		}
		// Not by the context of one caller: others wait for the same.
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
		defer cancel()
		begun := time.Now()
		value, err := c.load(limited)
		if err == nil {
			c.current.Store(&loaded[T]{value, begun})
		}
		return loaded[T]{value, begun}, err
	})
	var none loaded[T]
	select {
	case <-ctx.Done():
		return none, fmt.Errorf("refresh: %w", ctx.Err())
	case got := <-load:
		if got.Err != nil {
			return none, fmt.Errorf("refresh: %w", got.Err)
		}
		return got.Val.(loaded[T]), nil
	}
}

// Run refreshes until ctx ends.
func (c *Cached[T]) Run(ctx context.Context) error {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	stale := trace.NewOutage(c.log, time.Now, "serving what was read last")
	for {
		_, err := c.join(ctx, time.Now())
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
