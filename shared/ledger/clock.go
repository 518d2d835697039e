package ledger

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The database's clock decides about deadlines. But each deadline was set by a gateway's clock, so
// the gateways' clocks are compared with the database's here.

// acceptedAge makes clock differences visible. An age below 0 means that a gateway's clock is
// ahead. If even the youngest payments are old, a gateway's clock is behind, or deliveries are
// late.
func acceptedAge(r prometheus.Registerer) prometheus.Histogram {
	return promauto.With(r).NewHistogram(prometheus.HistogramOpts{
		Name:    "pgw_db_accepted_age_seconds",
		Help:    "Age of payments when they are reserved: the database's clock minus accepted_at, which is by the gateway's clock. Below 0 the gateway's clock is ahead.",
		Buckets: []float64{-60, -30, -10, -2.5, -.5, 0, .1, .5, 1, 2.5, 5, 10, 30, 60, 300},
	})
}

func (l *Ledger) observeAccepted(calls []reserve, fresh []int, now time.Time) {
	if l.accepted == nil {
		return
	}
	for _, i := range fresh {
		if at := calls[i].AcceptedAt; !at.IsZero() {
			l.accepted.Observe(now.Sub(at).Seconds())
		}
	}
}
