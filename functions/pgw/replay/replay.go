// Package replay sends events again from a topic or a file to a function, a topic or a file. The
// ledger decides each key once, so sending an event twice changes no balance. This package
// guarantees that no event is skipped silently.
package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"sync"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"golang.org/x/time/rate"

	"pgw/shared/event"
	"pgw/shared/kafka"
)

// windowMax is the most events that are read from the source after the first event that is not
// done.
const windowMax = 4096

// Config of one replay.
type Config struct {
	// From is topic:NAME, a file's path, or - for standard input. A file has JSON events one after
	// the other, or one JSON array of them. It may be compressed by gzip.
	From string
	// To is topic:NAME, the http or https URL of a function, a file's path (compressed if it ends
	// in .gz), or - for standard output. If it is empty nothing is sent, and Tell is called for
	// each event that would be sent.
	To    string
	Range kafka.Range // the range of a topic; Run sets its Topic, Resume and ResumeID
	Match Match

	Limit      int64          // the most matching events; 0: no limit
	Rate       rate.Limit     // events per second; 0: no limit
	InFlight   int            // events under way at the same time; events of one key are sent in order
	Retries    int            // retries of an event that may be accepted later
	Checkpoint string         // the file of the checkpoint; empty: there is none
	Keys       *event.Keyring // signs each event again; nil keeps the signatures
	KeepGoing  bool           // continue after an event that could not be delivered

	Kafka    kafka.Config
	Stdin    io.Reader
	Stdout   io.Writer
	Tell     func(Event)             // called if To is empty; may be nil
	Progress func(done, total int64) // total is -1 if it is unknown; may be nil
}

// Match selects events. An empty field matches all events.
type Match struct{ Key, Client, Type, Subject string }

// matches reports whether an event is selected. Only the data of an event has its client.
func (m Match) matches(e Event) bool {
	if m.Key != "" && m.Key != e.Key || m.Type != "" && m.Type != e.Type() || m.Subject != "" && m.Subject != e.Subject() {
		return false
	}
	if m.Client == "" {
		return true
	}
	data, err := event.Decode[struct {
		Client string `json:"client"`
	}](e.Event)
	return err == nil && data.Client == m.Client
}

// Event is one event with its position in the source.
type Event struct {
	cloudevents.Event
	Key       string // the partition key, or the record's key
	Partition int32  // 0 in a file
	Offset    int64  // in a file: the number of events before it
}

// Summary has the results of a replay.
type Summary struct {
	Read     int64            `json:"read"`
	Matched  int64            `json:"matched"`
	Outcomes map[string]int64 `json:"outcomes"` // by status code, or delivered, no_answer, error
	Refused  int64            `json:"refused"`  // can never be accepted; skipped
	Failed   int64            `json:"failed"`   // could not be delivered
	First    string           `json:"first_failure,omitempty"`
}

// source returns events, in order within each partition.
type source interface {
	each(ctx context.Context, take func(Event) error) error
	total() int64 // -1: unknown
	id() string   // the id of a topic, if it is known
	close() error
}

// target accepts events. put returns the outcome; refused means that a retry cannot succeed.
type target interface {
	put(ctx context.Context, e Event) (outcome string, refused bool, err error)
	flush() error // makes all accepted events durable
	close(ctx context.Context) error
}

var errLimit = errors.New("limit")

// Run replays events. A refused event is counted and skipped. An event that could not be delivered
// ends the replay unless KeepGoing is set, and the checkpoint stays before it. The summary is
// correct in every case.
func Run(ctx context.Context, cfg Config) (Summary, error) {
	at, err := loadCheckpoint(cfg)
	if err != nil {
		return Summary{}, err
	}
	cfg.Range.Resume, cfg.Range.ResumeID = at.Next, at.TopicID
	from, err := openSource(cfg)
	if errors.Is(err, kafka.ErrCannotResume) {
		err = fmt.Errorf("checkpoint %s: %w", cfg.Checkpoint, err)
	}
	if err != nil {
		return Summary{}, err
	}
	defer from.close()
	at.TopicID = from.id()
	to, err := openTarget(cfg, len(at.Next) > 0)
	if err != nil {
		return Summary{}, err
	}
	switch to.(type) {
	case *fileTarget, dryRun:
		cfg.InFlight = 1 // keeps the order of the source
	}
	r := &run{
		cfg: cfg, to: to, checkpoint: at, total: from.total(), window: make(chan struct{}, windowMax), seed: maphash.MakeSeed(),
		summary: Summary{Outcomes: map[string]int64{}}, behind: map[int32]*progress{},
	}
	err = r.all(ctx, from)
	// No event is under way any more. The file is closed in every case.
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err = errors.Join(err, r.keep(), to.close(bounded))
	return r.summary, err
}

// run is one replay under way.
type run struct {
	cfg    Config
	to     target
	total  int64
	window chan struct{} // one for each event from the first that is not done
	seed   maphash.Seed

	mu         sync.Mutex
	summary    Summary
	checkpoint checkpoint
	behind     map[int32]*progress
	done       int64
	kept       time.Time // the time of the last write of the checkpoint
}

// progress has the events of one partition that are not known to be done, in order.
type progress struct{ open []*item }

type item struct {
	event Event
	done  bool
	stuck bool // it was not delivered, so the checkpoint must stay before it
}

func (r *run) all(ctx context.Context, from source) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limiter := rate.NewLimiter(rate.Inf, 1)
	if r.cfg.Rate > 0 {
		limiter.SetLimit(r.cfg.Rate)
	}
	lanes := make([]chan *item, max(1, r.cfg.InFlight))
	var working sync.WaitGroup
	for i := range lanes {
		lanes[i] = make(chan *item)
		working.Go(func() {
			for it := range lanes[i] {
				if err := r.send(ctx, it); err != nil {
					cancel(err)
				}
			}
		})
	}
	err := from.each(ctx, func(e Event) error {
		select {
		case r.window <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		it, matches := r.take(e)
		if !matches {
			return r.finish(it)
		}
		if err := limiter.Wait(ctx); err != nil {
			// The limiter also refuses a wait that would outlast the context's deadline.
			return cmp.Or(context.Cause(ctx), err)
		}
		select {
		case lanes[maphash.String(r.seed, e.Key)%uint64(len(lanes))] <- it:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if r.cfg.Limit > 0 && r.matched() == r.cfg.Limit {
			return errLimit
		}
		return nil
	})
	for _, lane := range lanes {
		close(lane)
	}
	working.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

// take adds an event to those under way.
func (r *run) take(e Event) (it *item, matches bool) {
	matches = r.cfg.Match.matches(e)
	it = &item{event: e}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.summary.Read++
	if matches {
		r.summary.Matched++
	}
	p := r.behind[e.Partition]
	if p == nil {
		p = &progress{}
		r.behind[e.Partition] = p
	}
	p.open = append(p.open, it)
	return it, matches
}

func (r *run) matched() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.summary.Matched
}

// send sends one event and notes its result.
func (r *run) send(ctx context.Context, it *item) error {
	if ctx.Err() != nil {
		return nil // not started, so the checkpoint stays before it
	}
	if r.cfg.Keys != nil {
		if err := r.cfg.Keys.Sign(&it.event.Event); err != nil {
			return err
		}
	}
	outcome, refused, err := r.to.put(ctx, it.event)
	if err != nil && ctx.Err() != nil {
		return nil // the replay was stopped
	}
	r.mu.Lock()
	r.summary.Outcomes[outcome]++
	if err != nil {
		if refused {
			r.summary.Refused++
		} else {
			r.summary.Failed++
		}
		if r.summary.First == "" {
			r.summary.First = fmt.Sprintf("%d/%d %s %s: %v", it.event.Partition, it.event.Offset, it.event.Type(), it.event.ID(), err)
		}
	}
	r.mu.Unlock()
	if err != nil && !refused && !r.cfg.KeepGoing {
		return fmt.Errorf("event %s of partition %d, offset %d: %w", it.event.ID(), it.event.Partition, it.event.Offset, err)
	}
	if err != nil && !refused {
		it.stuck = true
	}
	return r.finish(it)
}

// finish moves the partition's checkpoint to the first event that is not done.
func (r *run) finish(it *item) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	it.done = true
	r.done++
	p := r.behind[it.event.Partition]
	for len(p.open) > 0 && p.open[0].done {
		first := p.open[0]
		p.open = p.open[1:]
		<-r.window
		if first.stuck {
			r.checkpoint.stuck[first.event.Partition] = true
		}
		if !r.checkpoint.stuck[first.event.Partition] {
			r.checkpoint.Next[first.event.Partition] = first.event.Offset + 1
		}
	}
	if r.cfg.Progress != nil {
		r.cfg.Progress(r.done, r.total)
	}
	if time.Since(r.kept) < time.Second {
		return nil
	}
	r.kept = time.Now()
	return r.keepLocked()
}

func (r *run) keep() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keepLocked()
}

func (r *run) keepLocked() error {
	if err := r.to.flush(); err != nil {
		return err
	}
	return r.checkpoint.write(r.cfg.Checkpoint)
}
