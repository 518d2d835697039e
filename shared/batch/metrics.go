package batch

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are those of one batcher. All batchers of a process share the metric names; the label
// kind separates them.
type metrics struct {
	size, wait, took prometheus.Histogram
	refused          prometheus.Counter
}

// seconds are histogram buckets for the duration of a transaction.
var seconds = []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}

func newMetrics(cfg Config, waiting func() int) *metrics {
	kind, auto := prometheus.Labels{"kind": cfg.Kind}, promauto.With(cfg.Registerer)
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pgw_batch_queue_length", Help: "Calls that wait for a batch now.", ConstLabels: kind,
	}, func() float64 { return float64(waiting()) })
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pgw_batch_queue_limit", Help: "Calls that may wait for a batch; more are refused.", ConstLabels: kind,
	}, func() float64 { return float64(cfg.Queue) })
	return &metrics{
		size: auto.NewHistogram(prometheus.HistogramOpts{
			Name: "pgw_batch_size", Help: "Calls served together.", ConstLabels: kind, Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}),
		wait: auto.NewHistogram(prometheus.HistogramOpts{
			Name: "pgw_batch_wait_seconds", Help: "How long the first call of a batch had waited for it; the others waited less.", ConstLabels: kind, Buckets: seconds,
		}),
		took: auto.NewHistogram(prometheus.HistogramOpts{
			Name: "pgw_batch_duration_seconds", Help: "How long serving a batch took.", ConstLabels: kind, Buckets: seconds,
		}),
		refused: auto.NewCounter(prometheus.CounterOpts{
			Name: "pgw_batch_refused_total", Help: "Calls refused because the queue was full.", ConstLabels: kind,
		}),
	}
}

func (m *metrics) observe(size int, waited, took time.Duration) {
	m.size.Observe(float64(size))
	m.wait.Observe(waited.Seconds())
	m.took.Observe(took.Seconds())
}
