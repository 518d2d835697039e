package trace

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// tellEvery is how often an outage that goes on is told of again.
	tellEvery = time.Minute
	// calmAfter is how long nothing must have failed before a success ends an outage: one that comes and goes is one outage.
	calmAfter = 10 * time.Second
)

// Outage logs one thing that can fail at every request, such as a function that can't be asked. The first failure is a line at
// once. The others are counted, and told once a minute. When it works again, one line says so, and how many failures there
// were. At level debug every failure is a line.
type Outage struct {
	log     *slog.Logger
	now     func() time.Time
	message string
	args    []any

	failing atomic.Bool // an outage is known; tells it without the lock, since most of what is noted is a success

	mu     sync.Mutex
	since  time.Time // of the first failure; zero when there is no outage
	latest time.Time // of the latest failure
	told   time.Time // when the latest line was written
	failed int       // since the first failure
	untold int       // of these, since the latest line
}

// NewOutage makes one. message says what fails, and args belong to each of its lines.
func NewOutage(log *slog.Logger, now func() time.Time, message string, args ...any) *Outage {
	return &Outage{log: log, now: now, message: message, args: args}
}

// Note takes how one attempt ended: nil says that it worked. args belong to this attempt's line alone.
func (o *Outage) Note(ctx context.Context, err error, args ...any) {
	if err == nil {
		o.worked(ctx)
	} else {
		o.fail(ctx, err, args)
	}
}

func (o *Outage) worked(ctx context.Context) {
	if !o.failing.Load() {
		return
	}
	o.mu.Lock()
	if o.since.IsZero() || o.now().Sub(o.latest) < calmAfter {
		o.mu.Unlock()
		return
	}
	failed, lasted := o.failed, o.latest.Sub(o.since)
	o.since, o.failed, o.untold = time.Time{}, 0, 0
	o.failing.Store(false)
	o.mu.Unlock()
	o.log.InfoContext(ctx, "over: "+o.message, append(o.args[:len(o.args):len(o.args)], "failures", failed, "lasted", lasted)...)
}

func (o *Outage) fail(ctx context.Context, err error, args []any) {
	o.mu.Lock()
	now := o.now()
	first := o.since.IsZero()
	if first {
		o.since = now
		o.failing.Store(true)
	}
	o.latest = now
	o.failed++
	o.untold++
	tell := first || now.Sub(o.told) >= tellEvery
	untold, since := o.untold, o.since
	if tell {
		o.told, o.untold = now, 0
	}
	o.mu.Unlock()

	all := append(append(o.args[:len(o.args):len(o.args)], args...), "error", err)
	switch {
	case first:
		o.log.WarnContext(ctx, o.message, all...)
	case tell:
		o.log.WarnContext(ctx, "still: "+o.message, append(all, "failures", untold, "since", since)...)
	default:
		o.log.DebugContext(ctx, o.message, all...)
	}
}
