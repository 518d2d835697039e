// Package db is the function that owns the ledger. It is the only writer of the database. It turns
// RPCs and events into calls of shared/ledger, and the results into answers. Payments are in
// rpc.go, captures, voids and cancellations in operate.go, settings and operators' actions in
// admin.go, operators' changes of accounts in operators.go, events in events.go, reports for
// operators in status.go, the metrics of what the house has to exchange in liquidity.go.
package db

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// Config configures the function.
type Config struct {
	DatabaseURL string          `envconfig:"DATABASE_URL" required:"true" desc:"the ledger's Postgres, with the right to write"`
	Schema      postgres.Schema `envconfig:"LEDGER_SCHEMA" desc:"the ledger's schema, if several ledgers share the database; empty: the usual one"`
	Standby     postgres.Standby
	BatchMax    int `envconfig:"BATCH_MAX" default:"256" desc:"payments in one transaction"`
	BatchLanes  int `envconfig:"BATCH_LANES" default:"1" desc:"transactions of one kind at the same time; more of them compete for the same accounts"`
	QueueMax    int `envconfig:"QUEUE_MAX" default:"2048" desc:"most calls that wait for a batch; further calls are refused"`
	// BatchTimeout is a little longer than the wait for a silent server, because "the server was
	// silent" is the better answer.
	BatchTimeout time.Duration `envconfig:"BATCH_TIMEOUT" default:"5s" desc:"time limit of one batch with all its waits; it is unknown whether a batch that takes longer took effect"`
	LockTimeout  time.Duration `envconfig:"LOCK_TIMEOUT" default:"700ms" desc:"longest wait for a locked row; only the payments that need the row are then put off"`
	Keys         event.Keyring `envconfig:"EVENT_KEYS" required:"true" desc:"ID:BASE64:v2 keys that sign events, separated by commas"`
	Kafka        kafka.Config
}

// DB is the function.
type DB struct {
	dbv1.UnimplementedDbServer
	dbv1.UnimplementedAdminServer

	cfg     Config
	ledger  *ledger.Ledger
	publish event.Publisher
	log     *slog.Logger
	metrics *metrics
	now     func() time.Time
}

type metrics struct {
	reserves, commits, rollbacks *prometheus.CounterVec
	accountEvents                *prometheus.CounterVec
	sweeps                       *prometheus.CounterVec
	operations                   *prometheus.CounterVec // by operation and status
	swept, expired, published    prometheus.Counter
	lastSweep                    prometheus.Gauge
	pending, pendingIDR          prometheus.Gauge
	oldestPending                prometheus.Gauge
	liquidity                    liquidityMetrics
}

func newMetrics(r prometheus.Registerer) *metrics {
	auto := promauto.With(r)
	counters := func(name, help, label string, values ...string) *prometheus.CounterVec {
		return function.NewCounters(r, name, help, label, values...)
	}
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return auto.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	var statuses []string
	for status, name := range dbv1.TxStatus_name {
		if dbv1.TxStatus(status) != dbv1.TxStatus_TX_STATUS_UNSPECIFIED {
			statuses = append(statuses, name)
		}
	}
	return &metrics{
		reserves:      counters("pgw_db_reserve_total", "Reserves by TxStatus.", "status", statuses...),
		commits:       counters("pgw_db_commit_total", "Commits by TxStatus.", "status", statuses...),
		rollbacks:     counters("pgw_db_rollback_total", "Rollbacks by TxStatus.", "status", statuses...),
		accountEvents: counters("pgw_db_account_events_total", "Account events by outcome; ignored: it came again, or was older than what had been applied.", "outcome", applied, ignored, refusal, putOff),
		sweeps:        counters("pgw_db_sweeps_total", "Sweeps by result.", "result", "ok", "error"),
		swept:         counter("pgw_db_swept_total", "Reservations rolled back past their deadline."),
		operations:    newOperations(auto),
		expired:       counter("pgw_db_authorizations_expired_total", "Authorized payments that nobody captured in time."),
		published:     counter("pgw_db_swept_told_total", "Results published of reservations that were rolled back past their deadline."),
		lastSweep:     gauge("pgw_db_last_sweep_timestamp_seconds", "When a sweep last went through."),
		pending:       gauge("pgw_db_pending", "Reservations that hold money, at the last sweep."),
		pendingIDR:    gauge("pgw_db_pending_idr", "Rupiah that are held, at the last sweep."),
		oldestPending: gauge("pgw_db_oldest_pending_age_seconds", "Age of the oldest PENDING reservation at the last sweep."),
		liquidity:     newLiquidityMetrics(r),
	}
}

// Function describes db.
var Function = function.Describe(function.Function{
	Name: "db", About: "is the ledger: the only writer of the database",
	Port: "19095", Publishes: function.Rarely, Events: "/",
}, build)

func build(cfg Config, on function.Dependencies) (*function.Service, error) {
	d, err := open(cfg, on)
	if err != nil {
		return nil, err
	}
	return &function.Service{
		GRPC: func(r grpc.ServiceRegistrar) {
			dbv1.RegisterDbServer(r, d)
			dbv1.RegisterAdminServer(r, d)
		},
		Events:     d.handle,
		Ready:      d.ledger.Ready,
		Background: d.run,
		Close:      d.ledger.Close,
	}, nil
}

func open(cfg Config, on function.Dependencies) (*DB, error) {
	l, err := ledger.Open(ledger.Config{
		URL: cfg.Schema.In(cfg.DatabaseURL), Name: "db", Standby: cfg.Standby, BatchMax: cfg.BatchMax, BatchLanes: cfg.BatchLanes, QueueMax: cfg.QueueMax,
		BatchTimeout: cfg.BatchTimeout, LockTimeout: cfg.LockTimeout, Now: on.Now, Log: on.Log, Registerer: on.Registry,
	})
	if err != nil {
		return nil, err
	}
	return &DB{cfg: cfg, ledger: l, publish: on.Publisher, log: on.Log, metrics: newMetrics(on.Registry), now: on.Now}, nil
}

// run reads again and again what the ledger and the metrics show, until ctx ends.
func (d *DB) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.ledger.Run(ctx) })
	group.Go(func() error { d.watchLiquidity(ctx); return nil })
	return group.Wait()
}

// txStatus converts a refusal into the TxStatus that earlier callers use.
func txStatus(r payment.Reason) dbv1.TxStatus {
	switch r {
	case payment.InsufficientFunds:
		return dbv1.TxStatus_INSUFFICIENT
	case payment.UnknownSender, payment.UnknownReceiver:
		return dbv1.TxStatus_NOT_FOUND
	default:
		return dbv1.TxStatus_BAD_STATUS
	}
}
