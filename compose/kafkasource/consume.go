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
	// windowMax is how many records of a partition may be read ahead of the first that is not settled.
	windowMax = 4096
)

// consumer is one source's part of a consumer group. It implements sarama.ConsumerGroupHandler.
type consumer struct {
	source   kafkaSource
	deliver  *deliverer
	inFlight int // deliveries of one partition at the same time
	assigned func()
	claims   *claims
}

func (c *consumer) Setup(sarama.ConsumerGroupSession) error { c.assigned(); return nil }

func (c *consumer) Cleanup(sarama.ConsumerGroupSession) error { return nil }

// ConsumeClaim delivers a partition's records until it is revoked. Then nothing new is begun, what is under
// way may end, and the finished prefix is what gets committed: the next owner starts behind it.
func (c *consumer) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// Once revoked, what waits for a retry is abandoned at once by way of the session, and what is being
	// delivered by way of this timer.
	release := context.AfterFunc(session.Context(), func() { time.AfterFunc(drainWithin, cancel) })
	defer release()
	w := &window{
		session: session, claim: claim, settle: func(m *sarama.ConsumerMessage) error {
			return c.deliver.settle(withRevoked(ctx, session.Context()), positioned(readRecord(ctx, c.source, m), m))
		},
		byKey: map[string]*record{}, room: make(chan struct{}, windowMax), places: c.inFlight, idle: make(chan *record),
		next: claim.InitialOffset(),
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

// window is what has been read of a partition and not yet committed. Records with the same key follow one
// another; others go side by side; with one place all follow one another. Only the finished prefix is
// marked, so a crash redelivers and never skips.
type window struct {
	session sarama.ConsumerGroupSession
	claim   sarama.ConsumerGroupClaim
	settle  func(*sarama.ConsumerMessage) error
	room    chan struct{} // one for each record between the first unsettled and the newest
	places  int           // for deliveries, less those that run
	idle    chan *record  // to a delivery that has nothing to do
	running sync.WaitGroup

	mu      sync.Mutex
	records []*record // in the order of their offsets
	byKey   map[string]*record
	next    int64 // behind the newest record; negative while none was read and the offset is not known
}

type record struct {
	message *sarama.ConsumerMessage
	key     string
	settled bool
	next    *record // the next with the same key, which waits for this one
}

// add takes a record in, and waits for room. It tells whether the partition is still ours.
func (w *window) add(m *sarama.ConsumerMessage) bool {
	select {
	case w.room <- struct{}{}:
	case <-w.session.Context().Done():
		return false
	}
	r := &record{message: m, key: string(m.Key)}
	w.mu.Lock()
	w.records = append(w.records, r)
	w.next = m.Offset + 1
	before := w.byKey[r.key]
	follows := before != nil && r.key != ""
	if r.key != "" {
		w.byKey[r.key] = r
	}
	if follows {
		before.next = r
	}
	w.mu.Unlock()
	if follows {
		return true
	}
	return w.start(r)
}

// start hands a record to a delivery. Deliveries are goroutines that stay, since a new one would have to
// grow its stack again for each record.
func (w *window) start(r *record) bool {
	select {
	case w.idle <- r:
		return true
	default:
	}
	if w.places > 0 {
		w.places--
		w.running.Go(func() {
			w.deliver(r)
			for r := range w.idle {
				w.deliver(r)
			}
		})
		return true
	}
	select {
	case w.idle <- r:
		return true
	case <-w.session.Context().Done():
		return false
	}
}

// deliver takes a record to its end, and then those with the same key that wait for it.
func (w *window) deliver(r *record) {
	for r != nil {
		if w.settle(r.message) != nil {
			return // abandoned: neither this one nor those behind it are marked
		}
		if r = w.finish(r); r != nil && w.session.Context().Err() != nil {
			return
		}
	}
}

// drain waits for the deliveries under way.
func (w *window) drain() {
	close(w.idle)
	w.running.Wait()
}

// finish marks the settled prefix and gives the record that waited for this one.
func (w *window) finish(r *record) *record {
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
	if w.byKey[r.key] == r {
		delete(w.byKey, r.key)
	}
	return r.next
}

// withRevoked lets a wait for a retry end as soon as the partition is revoked, while a delivery under way
// keeps its own, later end.
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
