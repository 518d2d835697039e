package kafkasource

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// claims are the partitions of one source that this process owns now. The source's metrics are
// computed from them. A partition that moves to another member is then in the metrics of that
// member.
type claims struct {
	mu  sync.Mutex
	all map[*window]bool
}

func (c *claims) add(w *window) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[*window]bool{}
	}
	c.all[w] = true
}

func (c *claims) remove(w *window) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, w)
}

// behind says how much a source, or one partition of it, has still to deliver.
type behind struct {
	records   int64 // records that are not settled
	underWay  int   // those of them that are read
	oldestAge time.Duration
	tryingFor time.Duration // the longest time of a delivery under way
	held      int           // partitions with an event whose dead letter cannot be written
	heldFor   time.Duration // the longest hold of those events
	heldWhy   error         // the error of that hold, with the event's partition and offset
}

func (b *behind) add(other behind) {
	b.records += other.records
	b.underWay += other.underWay
	b.oldestAge = max(b.oldestAge, other.oldestAge)
	b.tryingFor = max(b.tryingFor, other.tryingFor)
	b.held += other.held
	if other.heldWhy != nil && (b.heldWhy == nil || other.heldFor > b.heldFor) {
		b.heldFor, b.heldWhy = other.heldFor, other.heldWhy
	}
}

func (c *claims) behind(now time.Time) (all behind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.all {
		all.add(w.behind(now))
	}
	return all
}

func (w *window) behind(now time.Time) behind {
	w.mu.Lock()
	defer w.mu.Unlock()
	first, b := w.next, behind{underWay: len(w.records)}
	if len(w.records) > 0 {
		oldest := w.records[0].message
		first, b.oldestAge = oldest.Offset, max(0, now.Sub(oldest.Timestamp))
	}
	for _, r := range w.records {
		if r.settled || r.begun.IsZero() {
			continue
		}
		b.tryingFor = max(b.tryingFor, now.Sub(r.begun))
		if age := now.Sub(r.held); !r.held.IsZero() && (b.held == 0 || age > b.heldFor) {
			b.held, b.heldFor = 1, max(0, age)
			b.heldWhy = fmt.Errorf("partition %d of %s, at offset %d: %w", r.message.Partition, r.message.Topic, r.message.Offset, r.err)
		}
	}
	if end := w.claim.HighWaterMarkOffset(); first >= 0 && end > first {
		b.records = end - first
	}
	return b
}

func (c *claims) measure(r prometheus.Registerer, source string, now func() time.Time) {
	gauge := func(name, help string, read func(behind) float64) {
		promauto.With(r).NewGaugeFunc(prometheus.GaugeOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{"source": source},
		}, func() float64 { return read(c.behind(now())) })
	}
	gauge("pgw_source_lag", "Records of this process's partitions that are not delivered yet.",
		func(b behind) float64 { return float64(b.records) })
	gauge("pgw_source_in_flight", "Records that are read but not delivered yet.",
		func(b behind) float64 { return float64(b.underWay) })
	gauge("pgw_source_oldest_age_seconds", "Age of the oldest record that is read but not delivered yet.",
		func(b behind) float64 { return b.oldestAge.Seconds() })
	gauge("pgw_source_trying_seconds", "The longest time of a delivery under way.",
		func(b behind) float64 { return b.tryingFor.Seconds() })
	gauge("pgw_source_held_partitions", "Partitions whose offset is held because the dead letter of an event cannot be written.",
		func(b behind) float64 { return float64(b.held) })
	gauge("pgw_source_held_age_seconds", "The longest hold of an event whose dead letter cannot be written.",
		func(b behind) float64 { return b.heldFor.Seconds() })
}
