package trace

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// repeatEvery is the time between two log lines about an outage that continues.
	repeatEvery = time.Minute
	// calmAfter is the time without a failure after which a success ends an outage. So failures
	// with short gaps between them are one outage.
	calmAfter = 10 * time.Second
)

// Outage logs a failure that can occur at every request, such as a function that cannot be reached.
// The first failure is logged at once. Later ones are counted, and the count is logged once a
// minute. When it works again, one line says so and gives the number of failures. At level debug
// every failure is logged.
type Outage struct {
	log     *slog.Logger
	now     func() time.Time
	message string
	args    []any

	failing atomic.Bool // whether there is an outage; read without the lock, because most attempts succeed
	once    atomic.Bool // whether it has ever worked

	mu       sync.Mutex
	works    time.Time // since when it works; zero if it has never worked
	err      error     // the latest failure
	since    time.Time // the first failure; zero when there is no outage
	latest   time.Time // the latest failure
	logged   time.Time // the latest line
	failed   int       // since the first failure
	unlogged int       // since the latest line
}

// NewOutage makes an Outage. message says what fails, and args are added to each of its log lines.
func NewOutage(log *slog.Logger, now func() time.Time, message string, args ...any) *Outage {
	return &Outage{log: log, now: now, message: message, args: args}
}

// Note records the result of one attempt. A nil err means success. args are added only to this
// attempt's line.
func (o *Outage) Note(ctx context.Context, err error, args ...any) {
	if err == nil {
		o.worked(ctx)
	} else {
		o.fail(ctx, err, args)
	}
}

// State is what is known of something that may have an outage.
type State struct {
	Up    bool
	Since time.Time // zero: it has not been tried yet
	Err   error     // the latest failure; nil if it is up
}

// State returns the state now. An outage that has no failure for a while is over at the next success.
func (o *Outage) State() State {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		return State{Since: o.since, Err: o.err}
	}
	return State{Up: !o.works.IsZero(), Since: o.works}
}

func (o *Outage) worked(ctx context.Context) {
	if !o.failing.Load() && o.once.Load() {
		return
	}
	o.mu.Lock()
	if !o.once.Swap(true) && o.since.IsZero() {
		o.works = o.now()
	}
	if o.since.IsZero() || o.now().Sub(o.latest) < calmAfter {
		o.mu.Unlock()
		return
	}
	failed, lasted := o.failed, o.latest.Sub(o.since)
	o.since, o.failed, o.unlogged, o.err, o.works = time.Time{}, 0, 0, nil, o.now()
	o.failing.Store(false)
	o.mu.Unlock()
	o.log.InfoContext(ctx, "over: "+o.message, append(o.args[:len(o.args):len(o.args)], "failures", failed, "lasted", lasted.Round(time.Millisecond).String())...)
}

func (o *Outage) fail(ctx context.Context, err error, args []any) {
	o.mu.Lock()
	now := o.now()
	first := o.since.IsZero()
	if first {
		o.since = now
		o.failing.Store(true)
	}
	o.latest, o.err = now, err
	o.failed++
	o.unlogged++
	repeat := !first && now.Sub(o.logged) >= repeatEvery
	unlogged, since := o.unlogged, o.since
	if first || repeat {
		o.logged, o.unlogged = now, 0
	}
	o.mu.Unlock()

	all := append(append(o.args[:len(o.args):len(o.args)], args...), "error", err)
	switch {
	case first:
		o.log.WarnContext(ctx, o.message, all...)
	case repeat:
		o.log.WarnContext(ctx, "still: "+o.message, append(all, "failures", unlogged, "since", since)...)
	default:
		o.log.DebugContext(ctx, o.message, all...)
	}
}
