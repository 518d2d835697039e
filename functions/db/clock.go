package db

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// One clock judges, and it is the database's. The clocks of those who accept payments are held against it here: a deadline
// was made by one of them.

// acceptedAge shows clocks that are apart: below 0 a gateway's is ahead; when even the youngest payments are old, it is
// behind, or deliveries are late.
func acceptedAge(r prometheus.Registerer) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "pgw_db_accepted_age_seconds",
		Help:    "Age of payments when they are reserved: the database's clock less accepted_at, which is by the clock of who accepted them. Below 0 that clock is ahead.",
		Buckets: []float64{-60, -30, -10, -2.5, -.5, 0, .1, .5, 1, 2.5, 5, 10, 30, 60, 300},
	})
	r.MustRegister(h)
	return h
}

func (l *ledger) observeAccepted(calls []reserve, fresh []int, now time.Time) {
	if l.accepted == nil {
		return
	}
	for _, i := range fresh {
		if at := calls[i].AcceptedAt; !at.IsZero() {
			l.accepted.Observe(now.Sub(at).Seconds())
		}
	}
}
