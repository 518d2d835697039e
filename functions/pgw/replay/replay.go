// Package replay sends events again: from a topic or a file, to a function, a topic or a file. The ledger
// decides each key once, so sending too much changes no balance; what this package owes is that nothing is
// passed over in silence.
package replay

import (
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

// windowMax bounds how many events are taken from the source before the first of them is done.
const windowMax = 4096

// Config of one replay.
type Config struct {
	// From is topic:NAME, or a file's path, or - for standard input. A file holds one JSON event after the
	// other, or a JSON array of them; it may be compressed by gzip.
	From string
	// To is topic:NAME, or the http or https URL of a function, or a file's path (compressed when it ends in
	// .gz), or - for standard output. Empty: nothing is sent, and Tell is told what would be.
	To    string
	Range kafka.Range // of a topic; its Topic, Resume and ResumeID are set here
	Match Match

	Limit      int64          // events that match; 0: no limit
	Rate       rate.Limit     // events a second; 0: no limit
	InFlight   int            // events under way at once; those of one key follow one another
	Retries    int            // of an event that may be taken later
	Checkpoint string         // file that keeps how far it went; empty keeps nothing
	Keys       *event.Keyring // signs each event anew; nil leaves the signatures
	KeepGoing  bool           // past an event that could not be delivered

	Kafka    kafka.Config
	Stdin    io.Reader
	Stdout   io.Writer
	Tell     func(Event)             // with an empty To: what would go; may be nil
	Progress func(done, total int64) // total is -1 when it is not known; may be nil
}

// Match chooses events; an empty field takes all.
type Match struct{ Key, Type, Subject string }

// Event is one event and where it stood.
type Event struct {
	cloudevents.Event
	Key       string // its partition key, or its record's key
	Partition int32  // 0 in a file
	Offset    int64  // in a file: how many events stand before it
}

// Summary is what became of the events.
type Summary struct {
	Read     int64            `json:"read"`
	Matched  int64            `json:"matched"`
	Outcomes map[string]int64 `json:"outcomes"` // by status code, or delivered, no_answer, error
	Refused  int64            `json:"refused"`  // can never be taken; passed over
	Failed   int64            `json:"failed"`   // could not be delivered
	First    string           `json:"first_failure,omitempty"`
}

// source gives events in the order of each partition.
type source interface {
	each(ctx context.Context, take func(Event) error) error
	total() int64 // -1: not known
	id() string   // of a topic, where it is known
	close() error
}

// target takes events. put names the outcome; refused tells that trying again is no use.
type target interface {
	put(ctx context.Context, e Event) (outcome string, refused bool, err error)
	flush() error // what was put is kept
	close(ctx context.Context) error
}

var errLimit = errors.New("limit")

// Run replays. An event that is refused is counted and passed over. One that could not be delivered ends
// the replay unless KeepGoing, and a checkpoint stays before it. The summary is right in any case.
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
		cfg.InFlight = 1 // in the order in which they stood
	}
	r := &run{
		cfg: cfg, to: to, checkpoint: at, total: from.total(), window: make(chan struct{}, windowMax), seed: maphash.MakeSeed(),
		summary: Summary{Outcomes: map[string]int64{}}, behind: map[int32]*progress{},
	}
	err = r.all(ctx, from)
	// What is under way has ended; the file is closed whichever way the replay was left.
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
	window chan struct{} // one for each event between the first that is not done and the newest
	seed   maphash.Seed

	mu         sync.Mutex
	summary    Summary
	checkpoint checkpoint
	behind     map[int32]*progress
	done       int64
	kept       time.Time // when the checkpoint was last written
}

// progress of one partition: what was taken and is not known to be done, in order.
type progress struct{ open []*item }

type item struct {
	event Event
	done  bool
	stuck bool // not delivered: the checkpoint must not pass it
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
			return context.Cause(ctx)
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

// take notes that an event is under way.
func (r *run) take(e Event) (it *item, matches bool) {
	m := r.cfg.Match
	matches = (m.Key == "" || m.Key == e.Key) && (m.Type == "" || m.Type == e.Type()) && (m.Subject == "" || m.Subject == e.Subject())
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

// send takes one event to its end.
func (r *run) send(ctx context.Context, it *item) error {
	if ctx.Err() != nil {
		return nil // not begun: the checkpoint stays before it
	}
	if r.cfg.Keys != nil {
		if err := r.cfg.Keys.Sign(&it.event.Event); err != nil {
			return err
		}
	}
	outcome, refused, err := r.to.put(ctx, it.event)
	if err != nil && ctx.Err() != nil {
		return nil // given up with everything else
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

// finish moves the partition's checkpoint past everything that is done.
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
