package postgres

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// skewEvery is how often a process's clock is held against the database's. It costs one round trip.
const skewEvery = 10 * time.Second

// clock measures how far a process's clock is from the database's, which is the one that judges.
type clock struct {
	now   func() time.Time
	began time.Time    // monotonic
	next  atomic.Int64 // when to measure again, in nanoseconds since began
	skew  atomic.Uint64
}

func newClock(now func() time.Time, r prometheus.Registerer) *clock {
	if now == nil {
		now = time.Now
	}
	c := &clock{now: now, began: time.Now()}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pgw_postgres_clock_skew_seconds",
		Help: "How far this process's clock is ahead of the database's, which judges; below 0, behind. What the round trip leaves open counts as 0.",
	}, func() float64 { return math.Float64frombits(c.skew.Load()) }))
	return c
}

// measure is for a pool's PrepareConn: it measures when it is time to. A connection that gives no answer is not used.
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
		c.next.Store(0) // by the next connection
		return false, nil
	}
	c.skew.Store(math.Float64bits(Skew(sent, c.now(), at).Seconds()))
	return true, nil
}

// Skew is how far a clock is at least ahead of the database's (below 0: behind) by which something was sent, answered by the
// database at a time of its own, and received.
func Skew(sent, received, database time.Time) time.Duration {
	if ahead := sent.Sub(database); ahead > 0 {
		return ahead
	}
	if behind := received.Sub(database); behind < 0 {
		return behind
	}
	return 0
}
