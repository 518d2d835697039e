package kafkasource

import (
	"context"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

const (
	// drainWithin bounds how long deliveries under way may take once a partition is to be given up.
	drainWithin = 15 * time.Second
	// windowMax is how many records of a partition may be read ahead of the first that is not
	// settled.
	windowMax = 4096
)

// consumer is one source's part of a consumer group. It implements sarama.ConsumerGroupHandler.
type consumer struct {
	source   kafkaSource
	deliver  *deliverer
	places   chan struct{} // for deliveries of all partitions that this member has; nil: one at a time for each partition
	assigned func()
	claims   *claims
	now      func() time.Time
}

func (c *consumer) Setup(sarama.ConsumerGroupSession) error { c.assigned(); return nil }

func (c *consumer) Cleanup(sarama.ConsumerGroupSession) error { return nil }

// ConsumeClaim delivers a partition's records until it is revoked. Then it begins nothing new, lets
// what is under way end, and commits the finished prefix: the next owner starts behind it.
func (c *consumer) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// When the partition is revoked, the session abandons at once what waits for a retry. This timer
	// abandons what is still being delivered.
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

// window is what has been read of a partition and not yet committed. Its records are delivered side by
// side, those with the same key too, as many at once as there are places. With one place they follow
// one another. Only the finished prefix is marked, so a crash redelivers and never skips.
type window struct {
	session sarama.ConsumerGroupSession
	claim   sarama.ConsumerGroupClaim
	settle  func(*record) error
	now     func() time.Time
	room    chan struct{} // one for each record between the first unsettled and the newest
	places  chan struct{} // one for each delivery that runs; shared by the partitions of an unordered source's member
	idle    chan *record  // to a goroutine that has nothing to deliver
	running sync.WaitGroup

	mu      sync.Mutex
	records []*record // in the order of their offsets
	next    int64     // behind the newest record; negative while none was read and the offset is not known
}

type record struct {
	message *sarama.ConsumerMessage
	settled bool
	begun   time.Time // when its delivery began; zero before
	held    time.Time // when its dead letter could not be written for the first time; zero otherwise
	why     error     // of the last try
}

// add takes a record in, and waits for room and for a place. It says whether the partition is still
// ours.
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
	// Once no place is free, no partition of this member is read on.
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

// start hands a record to a goroutine. Goroutines stay, since a new one would have to grow its stack
// again for each record. There are never more of them than places.
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

// deliver takes a record to its end. One that is abandoned is not marked, and neither are those
// behind it.
func (w *window) deliver(r *record) {
	defer func() { <-w.places }()
	w.mu.Lock()
	r.begun = w.now()
	w.mu.Unlock()
	if w.settle(r) == nil {
		w.finish(r)
	}
}

// hold notes that a record's offset is held, since its dead letter can't be written.
func (w *window) hold(r *record, why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.why = why
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
		clear(w.records[:n]) // let the messages go
		w.records = w.records[n:]
	}
}

// withRevoked lets a wait for a retry end as soon as the partition is revoked, while a delivery
// under way keeps its own, later end.
func withRevoked(ctx, session context.Context) context.Context {
	return context.WithValue(ctx, revokedKey{}, session)
}

type revokedKey struct{}

// sleep waits before a retry, until the partition is revoked.
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
