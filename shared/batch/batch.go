// Package batch combines calls that arrive at the same time into one call. A batch forms while the
// batch before it is served. There is no timer, so a single call never waits.
package batch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pgw/shared/trace"
)

// ErrFull means that the queue is full. The caller should try again later.
var ErrFull = errors.New("queue is full")

// ErrClosed means that the batcher has been closed.
var ErrClosed = errors.New("batcher is closed")

// ErrTimeout means that a batch did not end within its time limit. It is unknown whether its calls
// took effect.
var ErrTimeout = errors.New("the batch did not end in time: whether it took effect is not known")

// ErrPanic means that serving a batch panicked. It is unknown whether its calls took effect.
var ErrPanic = errors.New("serving the batch panicked: whether it took effect is not known")

// DefaultTimeout is the time limit of a batch when Config sets none.
const DefaultTimeout = 5 * time.Second

// Func serves a batch. It returns one Result for each call, in the same order. It must return soon
// after ctx has ended.
type Func[C, R any] func(ctx context.Context, calls []C) []Result[R]

// Result is the result of one call of a batch.
type Result[R any] struct {
	Value R
	Err   error
}

// Config holds the limits of a batcher.
type Config struct {
	Max   int // the most calls in one batch
	Lanes int // the number of batches that are served at the same time
	Queue int // the most calls that wait, in addition to those being served; further calls get ErrFull

	Timeout time.Duration // the time limit of one batch; 0 means DefaultTimeout
	Log     *slog.Logger  // gets the panics; nil means slog.Default

	Kind       string                // the label of the metrics: what is batched
	Registerer prometheus.Registerer // nil: there are no metrics
}

// Batcher serves calls in batches. Make it with New; end it with Close.
type Batcher[C, R any] struct {
	cfg   Config
	serve Func[C, R]
	queue chan call[C, R]
	stop  context.CancelFunc // cancels the batches that Close no longer waits for
	lanes sync.WaitGroup

	metrics *metrics // nil: there are no metrics
	name    string   // of its spans

	mu     sync.RWMutex // held for reading while sending to queue, for writing while closing it
	closed bool
}

type call[C, R any] struct {
	ctx    context.Context
	value  C
	since  time.Time      // zero when there are no metrics
	result chan Result[R] // has room for one result, so that a lane never waits for a caller that has gone
}

// New starts the lanes. It panics when a limit of cfg is below 1.
func New[C, R any](cfg Config, serve Func[C, R]) *Batcher[C, R] {
	if cfg.Max < 1 || cfg.Lanes < 1 || cfg.Queue < 1 {
		panic(fmt.Sprintf("batch: every bound must be at least 1: %+v", cfg))
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	// A batch does not depend on the context of one caller, because the other callers still want
	// its results.
	ctx, stop := context.WithCancel(context.Background())
	b := &Batcher[C, R]{cfg: cfg, serve: serve, queue: make(chan call[C, R], cfg.Queue), stop: stop, name: "batch " + cfg.Kind}
	if cfg.Registerer != nil {
		b.metrics = newMetrics(cfg, func() int { return len(b.queue) })
	}
	for range cfg.Lanes {
		b.lanes.Go(func() { b.lane(ctx) })
	}
	return b
}

// Do adds a call to the next batch and waits for its result. If ctx ends first, Do returns its
// error; the call may still be served. Do also returns ErrFull, ErrClosed, ErrTimeout and ErrPanic.
func (b *Batcher[C, R]) Do(ctx context.Context, value C) (_ R, err error) {
	ctx, span := trace.Start(ctx, b.name, trace.Internal)
	defer func() { trace.End(span, err) }()
	c := call[C, R]{ctx: ctx, value: value, result: make(chan Result[R], 1)}
	if b.metrics != nil {
		c.since = time.Now()
	}
	if err := b.enqueue(c); err != nil {
		var none R
		if b.metrics != nil && errors.Is(err, ErrFull) {
			b.metrics.refused.Inc()
		}
		return none, err
	}
	select {
	case r := <-c.result:
		return r.Value, r.Err
	case <-ctx.Done():
		var none R
		return none, ctx.Err()
	}
}

func (b *Batcher[C, R]) enqueue(c call[C, R]) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		return ErrClosed
	}
	select {
	case b.queue <- c:
		return nil
	default:
		return ErrFull
	}
}

func (b *Batcher[C, R]) lane(ctx context.Context) {
	calls := make([]call[C, R], 0, b.cfg.Max)
	values := make([]C, 0, b.cfg.Max)
	for first := range b.queue {
		calls, values = calls[:0], values[:0]
		// Let other goroutines run first. A caller's second call, or another caller's, often
		// arrives a moment later.
		runtime.Gosched()
		for c, more := first, true; more; {
			// Skip callers whose context has ended.
			if c.ctx.Err() == nil {
				calls, values = append(calls, c), append(values, c.value)
			}
			if len(calls) == b.cfg.Max {
				break
			}
			select {
			case c, more = <-b.queue:
			default:
				more = false
			}
		}
		if len(calls) == 0 {
			continue
		}
		begun := time.Now()
		results := b.serveOne(ctx, calls, values)
		if b.metrics != nil {
			b.metrics.observe(len(calls), begun.Sub(calls[0].since), time.Since(begun))
		}
		for i, c := range calls {
			c.result <- results[i]
		}
	}
}

// serveOne serves one batch within its time limit. A panic becomes the error of this batch only,
// and the lane continues.
func (b *Batcher[C, R]) serveOne(lane context.Context, calls []call[C, R], values []C) (results []Result[R]) {
	defer func() {
		if p := recover(); p != nil {
			log := b.cfg.Log
			if log == nil {
				log = slog.Default()
			}
			log.Error("panic", "batch", b.cfg.Kind, "calls", len(calls), "panic", p, "stack", string(debug.Stack()))
			results = make([]Result[R], len(calls))
			for i := range results {
				results[i].Err = ErrPanic
			}
		}
	}()
	ctx, cancel := context.WithTimeout(lane, b.cfg.Timeout)
	defer cancel()
	results = b.serveTraced(ctx, calls, values)
	if len(results) != len(calls) {
		panic(fmt.Sprintf("%d results for %d calls", len(results), len(calls)))
	}
	if ctx.Err() == nil || lane.Err() != nil {
		return results
	}
	for i := range results {
		// The deadline was the batch's. A caller must not mistake it for its own.
		if errors.Is(results[i].Err, context.DeadlineExceeded) {
			results[i].Err = fmt.Errorf("%w: %v", ErrTimeout, results[i].Err)
		}
	}
	return results
}

func (b *Batcher[C, R]) serveTraced(ctx context.Context, calls []call[C, R], values []C) []Result[R] {
	if !trace.On() {
		return b.serve(ctx, values)
	}
	callers := make([]context.Context, len(calls))
	for i, c := range calls {
		callers[i] = c.ctx
	}
	ctx, span := trace.StartShared(ctx, b.name, callers)
	defer span.End()
	return b.serve(ctx, values)
}

// Close accepts no more calls, serves the waiting ones, and returns when they have their results.
// If ctx ends first, Close cancels the batches under way.
func (b *Batcher[C, R]) Close(ctx context.Context) error {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.queue)
	}
	b.mu.Unlock()
	done := make(chan struct{})
	go func() { b.lanes.Wait(); close(done) }()
	defer b.stop()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		b.stop()
		<-done
		return ctx.Err()
	}
}
