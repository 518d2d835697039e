package kafkasource

import (
	"context"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

const (
	// drainWithin is the time limit for the deliveries under way when a partition is revoked.
	drainWithin = 15 * time.Second
	// windowMax is the most records of a partition that are read after the first unsettled one.
	windowMax = 4096
)

// consumer is one member of a source's consumer group. It implements sarama.ConsumerGroupHandler.
type consumer struct {
	source  kafkaSource
	deliver *deliverer
	places  chan struct{} // limits the deliveries of all partitions of this member; nil: one at a time for each partition
	joined  func()
	left    func()
	claims  *claims
	now     func() time.Time
}

func (c *consumer) Setup(sarama.ConsumerGroupSession) error { c.joined(); return nil }

func (c *consumer) Cleanup(sarama.ConsumerGroupSession) error { c.left(); return nil }

// ConsumeClaim delivers a partition's records until the partition is revoked. Then it starts no new
// delivery, waits for those under way, and commits the finished prefix. The next owner starts after
// it.
func (c *consumer) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// When the partition is revoked, the session at once ends the waits for a retry. This timer
	// ends the deliveries that are still running.
	release := context.AfterFunc(session.Context(), func() { time.AfterFunc(drainWithin, cancel) })
	defer release()
	w := &window{
		session: session, claim: claim, now: c.now,
		room: make(chan struct{}, windowMax), places: c.places, idle: make(chan *record), next: claim.InitialOffset(),
	}
	if w.places == nil {
		w.places = make(chan struct{}, 1)
	}
	w.settle = func(r *record) error {
		hold := func(err error) { w.hold(r, err) }
		return c.deliver.settle(withRevoked(ctx, session.Context()), readRecord(c.source, r.message), hold)
	}
	defer w.drain()
	c.claims.add(w)
	defer c.claims.remove(w)
	for {
		select {
		case <-session.Context().Done():
			return nil
		case m, ok := <-claim.Messages():
			if !ok {
				return nil
			}
			if !w.add(m) {
				return nil
			}
		}
	}
}

// window has the records of a partition that are read but not committed. Its records are delivered
// concurrently, even those with the same key, as long as there are free places. With one place they
// are delivered one after the other. Only the finished prefix is marked, so after a crash records
// are delivered again and none is skipped.
type window struct {
	session sarama.ConsumerGroupSession
	claim   sarama.ConsumerGroupClaim
	settle  func(*record) error
	now     func() time.Time
	room    chan struct{} // one for each record from the first unsettled to the newest
	places  chan struct{} // one for each running delivery; an unordered source's member shares it among its partitions
	idle    chan *record  // to a goroutine without work
	running sync.WaitGroup

	mu      sync.Mutex
	records []*record // in the order of their offsets
	next    int64     // the offset after the newest record; negative if it is not known yet
}

type record struct {
	message *sarama.ConsumerMessage
	settled bool
	begun   time.Time // the start of its delivery; zero before
	held    time.Time // the first failure to write its dead letter; zero if there is none
	err     error     // the error of the last attempt to write it
}

// add appends a record, waits for room and for a place, and starts the delivery. It returns false
// if the partition was revoked.
func (w *window) add(m *sarama.ConsumerMessage) bool {
	select {
	case w.room <- struct{}{}:
	case <-w.session.Context().Done():
		return false
	}
	r := &record{message: m}
	w.mu.Lock()
	w.records = append(w.records, r)
	w.next = m.Offset + 1
	w.mu.Unlock()
	// While no place is free, this member reads no partition further.
	select {
	case w.places <- struct{}{}:
	case <-w.session.Context().Done():
		return false
	}
	if w.session.Context().Err() != nil {
		<-w.places
		return false
	}
	w.start(r)
	return true
}

// start gives a record to an idle goroutine, or to a new one. Goroutines are reused, because each
// new one would have to grow its stack again. There are never more goroutines than places.
func (w *window) start(r *record) {
	select {
	case w.idle <- r:
		return
	default:
	}
	w.running.Go(func() {
		w.deliver(r)
		for r := range w.idle {
			w.deliver(r)
		}
	})
}

// deliver delivers a record. An abandoned record is not marked, and neither are the records after
// it.
func (w *window) deliver(r *record) {
	defer func() { <-w.places }()
	w.mu.Lock()
	r.begun = w.now()
	w.mu.Unlock()
	if w.settle(r) == nil {
		w.finish(r)
	}
}

// hold notes that a record's offset is held because its dead letter cannot be written.
func (w *window) hold(r *record, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.err = err
	if r.held.IsZero() {
		r.held = w.now()
	}
}

// drain waits for the deliveries under way.
func (w *window) drain() {
	close(w.idle)
	w.running.Wait()
}

// finish marks the settled prefix.
func (w *window) finish(r *record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.settled = true
	n := 0
	for n < len(w.records) && w.records[n].settled {
		n++
		<-w.room
	}
	if n > 0 {
		last := w.records[n-1].message
		w.session.MarkOffset(last.Topic, last.Partition, last.Offset+1, "")
		clear(w.records[:n]) // release the messages
		w.records = w.records[n:]
	}
}

// withRevoked adds the session to ctx, so a wait for a retry ends when the partition is revoked. A
// delivery under way ends later, with ctx.
func withRevoked(ctx, session context.Context) context.Context {
	return context.WithValue(ctx, revokedKey{}, session)
}

type revokedKey struct{}

// sleep waits before a retry. It returns early with an error if the partition is revoked or ctx
// ends.
func sleep(ctx context.Context, d time.Duration) error {
	session, ok := ctx.Value(revokedKey{}).(context.Context)
	if !ok {
		session = ctx
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-session.Done():
		return session.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
