package postgres

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// skewEvery is the time between two measurements of a process's clock. A measurement costs one
// round trip.
const skewEvery = 10 * time.Second

// clock measures the difference between a process's clock and the database's clock, which decides
// deadlines.
type clock struct {
	now   func() time.Time
	began time.Time    // monotonic
	next  atomic.Int64 // the next measurement, in nanoseconds since began
	skew  atomic.Uint64
}

func newClock(now func() time.Time, r prometheus.Registerer) *clock {
	if now == nil {
		now = time.Now
	}
	c := &clock{now: now, began: time.Now()}
	promauto.With(r).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pgw_postgres_clock_skew_seconds",
		Help: "How far this process's clock is ahead of the database's, which decides deadlines; below 0, behind. A difference within the round trip counts as 0.",
	}, func() float64 { return math.Float64frombits(c.skew.Load()) })
	return c
}

// measure is a pool's PrepareConn. It measures when a measurement is due. A connection that does
// not answer is not used.
func (c *clock) measure(ctx context.Context, conn *pgx.Conn) (alive bool, err error) {
	due, elapsed := c.next.Load(), int64(time.Since(c.began))
	if elapsed < due || !c.next.CompareAndSwap(due, elapsed+int64(skewEvery)) {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	var at time.Time
	sent := c.now()
	if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`, pgx.QueryExecModeSimpleProtocol).Scan(&at); err != nil {
		c.next.Store(0) // the next connection measures
		return false, nil
	}
	c.skew.Store(math.Float64bits(Skew(sent, c.now(), at).Seconds()))
	return true, nil
}

// Skew returns the smallest possible difference between a clock and the database's clock; below 0
// the clock is behind. The clock gave the times sent and received, and the database answered in
// between with its own time.
func Skew(sent, received, database time.Time) time.Duration {
	if ahead := sent.Sub(database); ahead > 0 {
		return ahead
	}
	if behind := received.Sub(database); behind < 0 {
		return behind
	}
	return 0
}
