package db

import (
	"context"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/trace"
)

// The first reading of liquidity does not compete with the start of the function.
const (
	firstLiquidity = time.Second
	liquidityEvery = 10 * time.Second
)

// liquidityMetrics show what the house has to exchange. The label is an ISO 4217 code, and the values
// are in major units.
type liquidityMetrics struct{ available, held, position, limit *prometheus.GaugeVec }

func newLiquidityMetrics(r prometheus.Registerer) liquidityMetrics {
	gauges := func(name, help string) *prometheus.GaugeVec {
		vec := promauto.With(r).NewGaugeVec(prometheus.GaugeOpts{Name: "pgw_db_liquidity_" + name + "_major", Help: help}, []string{"currency"})
		vec.WithLabelValues(money.IDR.String())
		return vec
	}
	return liquidityMetrics{
		available: gauges("available", "What the house can exchange, in major units of the currency."),
		held:      gauges("held", "What the house holds for exchanges under way, in major units of the currency."),
		position:  gauges("position", "What exchanges have brought the house, less what they took and hold, in major units of the currency."),
		limit:     gauges("position_limit", "How far the position may fall below 0, in major units of the currency; +Inf: no limit."),
	}
}

func (m liquidityMetrics) set(all []ledger.Liquidity) {
	for _, one := range all {
		code := one.Currency.String()
		major := func(minor int64) float64 { return money.Amount{Minor: minor, Currency: one.Currency}.Float() }
		m.available.WithLabelValues(code).Set(major(one.Available))
		m.held.WithLabelValues(code).Set(major(one.Held))
		m.position.WithLabelValues(code).Set(major(one.Position))
		limit := math.Inf(1)
		if one.Limit != nil {
			limit = major(*one.Limit)
		}
		m.limit.WithLabelValues(code).Set(limit)
	}
}

// watchLiquidity reads liquidity again and again, until ctx ends. Every replica reads it, because a
// metric that only the sweeping replica sets would be old at the others.
func (d *DB) watchLiquidity(ctx context.Context) {
	next := time.NewTimer(firstLiquidity)
	defer next.Stop()
	stale := trace.NewOutage(d.log, d.now, "the metrics of liquidity stay as they were")
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		err := d.measureLiquidity(ctx)
		if ctx.Err() == nil {
			stale.Note(ctx, err)
		}
		next.Reset(liquidityEvery)
	}
}

func (d *DB) measureLiquidity(ctx context.Context) error {
	all, err := d.ledger.Liquidity(ctx)
	if err == nil {
		d.metrics.liquidity.set(all)
	}
	return err
}
