package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

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

	current  atomic.Pointer[loaded[T]]
	mu       sync.Mutex
	underWay *loading[T]
	next     *loading[T] // begins when underWay has ended
}

type loaded[T any] struct {
	value T
	at    time.Time // when the load began; monotonic
}

// loading is a load that callers wait for. They share what it finds, also when that is an error.
type loading[T any] struct {
	ctx   context.Context // of the first caller, for its trace
	ended chan struct{}
	value T     // set before ended is closed
	err   error // likewise
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
	recent := func() *loaded[T] {
		if v := c.current.Load(); v != nil && time.Since(v.at) < age {
			return v
		}
		return nil
	}
	if v := recent(); v != nil {
		return v.value, nil
	}
	c.mu.Lock()
	if v := recent(); v != nil { // a load has just ended
		c.mu.Unlock()
		return v.value, nil
	}
	l := c.underWay
	if l == nil {
		l = c.begin(ctx)
	}
	c.mu.Unlock()
	return l.wait(ctx)
}

// Refresh reads the value as it is now. A load that is under way may have missed what was just
// written, so Refresh waits for the one after it. All who call meanwhile share that one.
func (c *Cached[T]) Refresh(ctx context.Context) error {
	c.mu.Lock()
	l := c.next
	switch {
	case c.underWay == nil:
		l = c.begin(ctx)
	case l == nil:
		l = newLoading[T](ctx)
		c.next = l
	}
	c.mu.Unlock()
	_, err := l.wait(ctx)
	return err
}

// begin begins a load. The caller holds mu, and no load is under way.
func (c *Cached[T]) begin(ctx context.Context) *loading[T] {
	l := newLoading[T](ctx)
	c.underWay = l
	go func() {
		for l := l; l != nil; l = c.end(l) {
			c.run(l)
		}
	}()
	return l
}

func newLoading[T any](ctx context.Context) *loading[T] {
	// A load does not end with its first caller: others wait for the same.
	return &loading[T]{ctx: context.WithoutCancel(ctx), ended: make(chan struct{})}
}

func (c *Cached[T]) run(l *loading[T]) {
	ctx, cancel := context.WithTimeout(l.ctx, loadTimeout)
	defer cancel()
	begun := time.Now()
	if l.value, l.err = c.load(ctx); l.err == nil {
		c.current.Store(&loaded[T]{l.value, begun})
	}
}

// end tells those who wait for a load that it has ended, and returns the one that is to follow, or nil.
func (c *Cached[T]) end(l *loading[T]) *loading[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(l.ended)
	c.underWay, c.next = c.next, nil
	return c.underWay
}

func (l *loading[T]) wait(ctx context.Context) (T, error) {
	var none T
	select {
	case <-ctx.Done():
		return none, fmt.Errorf("refresh: %w", ctx.Err())
	case <-l.ended:
		if l.err != nil {
			return none, fmt.Errorf("refresh: %w", l.err)
		}
		return l.value, nil
	}
}

// Run refreshes until ctx ends.
func (c *Cached[T]) Run(ctx context.Context) error {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	stale := trace.NewOutage(c.log, time.Now, "serving what was read last")
	for {
		err := c.Refresh(ctx)
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
