package postgres

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// measure registers a pool's metrics: its size, its use, and the wait for connections.
func measure(r prometheus.Registerer, name string, pool *pgxpool.Pool) {
	auto := promauto.With(prometheus.WrapRegistererWith(prometheus.Labels{"pool": name}, r))
	gauge := func(name, help string, read func(*pgxpool.Stat) float64) {
		auto.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return read(pool.Stat()) })
	}
	counter := func(name, help string, read func(*pgxpool.Stat) float64) {
		auto.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return read(pool.Stat()) })
	}
	gauge("pgw_postgres_connections", "Connections to Postgres, including idle ones.",
		func(s *pgxpool.Stat) float64 { return float64(s.TotalConns()) })
	gauge("pgw_postgres_connections_in_use", "Connections to Postgres that are in use now.",
		func(s *pgxpool.Stat) float64 { return float64(s.AcquiredConns()) })
	gauge("pgw_postgres_connections_limit", "The most connections to Postgres that the pool opens.",
		func(s *pgxpool.Stat) float64 { return float64(s.MaxConns()) })
	counter("pgw_postgres_acquires_total", "Connections taken from the pool.",
		func(s *pgxpool.Stat) float64 { return float64(s.AcquireCount()) })
	counter("pgw_postgres_acquire_wait_seconds_total", "Total time that calls waited for connections from the pool.",
		func(s *pgxpool.Stat) float64 { return s.AcquireDuration().Seconds() })
}
