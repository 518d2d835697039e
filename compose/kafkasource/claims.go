package kafkasource

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// claims are the partitions of one source that this process has now. What they tell is read when it is asked for: a
// partition that has gone to another member is told of there.
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

// behind is how far a source, or one partition of it, is from having delivered everything.
type behind struct {
	records   int64 // that are not settled
	underWay  int   // of those, read already
	oldestAge time.Duration
}

func (c *claims) behind(now time.Time) (all behind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.all {
		b := w.behind(now)
		all.records += b.records
		all.underWay += b.underWay
		all.oldestAge = max(all.oldestAge, b.oldestAge)
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
	if end := w.claim.HighWaterMarkOffset(); first >= 0 && end > first {
		b.records = end - first
	}
	return b
}

func (c *claims) measure(r prometheus.Registerer, source string) {
	gauge := func(name, help string, read func(behind) float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{"source": source},
		}, func() float64 { return read(c.behind(time.Now())) }))
	}
	gauge("pgw_source_lag", "Records of this process's partitions that are not delivered yet.",
		func(b behind) float64 { return float64(b.records) })
	gauge("pgw_source_in_flight", "Records that are read, and not delivered yet.",
		func(b behind) float64 { return float64(b.underWay) })
	gauge("pgw_source_oldest_age_seconds", "Age of the oldest record that is read, and not delivered yet.",
		func(b behind) float64 { return b.oldestAge.Seconds() })
}
