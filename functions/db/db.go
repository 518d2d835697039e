// Package db is the ledger's function: the only writer of the database. It reserves, commits and rolls back
// (ledger.go), opens and funds accounts (accounts.go), keeps rates and rules for fx and risk (settings.go),
// and sweeps what was left behind (sweep.go).
package db

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// Config of the function.
type Config struct {
	DatabaseURL string `envconfig:"DATABASE_URL" required:"true" desc:"the ledger's Postgres, with the right to write"`
	BatchMax    int    `envconfig:"BATCH_MAX" default:"256" desc:"payments in one transaction"`
	BatchLanes  int    `envconfig:"BATCH_LANES" default:"2" desc:"transactions of one kind at the same time"`
	QueueMax    int    `envconfig:"QUEUE_MAX" default:"2048" desc:"calls that may wait for a batch; more are refused"`
	// BatchTimeout is a little longer than a silent server is waited for: that it was silent is the better answer.
	BatchTimeout time.Duration `envconfig:"BATCH_TIMEOUT" default:"5s" desc:"bound of one batch, with all its waits; whether one that took longer took effect is not known"`
	LockTimeout  time.Duration `envconfig:"LOCK_TIMEOUT" default:"700ms" desc:"bound of waiting for a locked row; payments that need a row which stays locked are put off alone"`
	Keys         event.Keyring `envconfig:"EVENT_KEYS" required:"true" desc:"ID:BASE64 keys that sign events, separated by commas"`
	Kafka        kafka.Config

	readWithin time.Duration // the usual when zero
}

// Publisher publishes the results of swept payments.
type Publisher interface {
	Publish(ctx context.Context, topic, key string, e cloudevents.Event) error
}

// DB is the function.
type DB struct {
	dbv1.UnimplementedDbServer
	dbv1.UnimplementedAdminServer

	cfg     Config
	pool    *pgxpool.Pool
	ledger  *ledger
	reads   *reads
	publish Publisher
	rules   *postgres.Cached[payment.Rules] // nil: none are enforced
	now     func() time.Time
	log     *slog.Logger
	metrics *metrics
}

type metrics struct {
	reserves, commits, rollbacks *prometheus.CounterVec
	accountEvents                *prometheus.CounterVec
	sweeps                       *prometheus.CounterVec
	swept, told                  prometheus.Counter
	lastSweep                    prometheus.Gauge
	pending, pendingIDR          prometheus.Gauge
	oldestPending                prometheus.Gauge
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
		told:          counter("pgw_db_swept_told_total", "Results published of reservations that were rolled back past their deadline."),
		lastSweep:     gauge("pgw_db_last_sweep_timestamp_seconds", "When a sweep last went through."),
		pending:       gauge("pgw_db_pending", "Reservations that hold money, at the last sweep."),
		pendingIDR:    gauge("pgw_db_pending_idr", "Rupiah that are held, at the last sweep."),
		oldestPending: gauge("pgw_db_oldest_pending_age_seconds", "Age of the oldest PENDING reservation at the last sweep."),
	}
}

// Function describes db.
var Function = function.Describe(function.Function{
	Name: "db", About: "is the ledger: the only writer of the database",
	Port: "19095", Publishes: function.Rarely, Events: "/",
}, build)

func build(cfg Config, on function.Dependencies) (*function.Service, error) {
	pool, err := openPool(cfg, on.Now, on.Registry)
	if err != nil {
		return nil, err
	}
	reading, err := postgres.Open(postgres.Config{
		URL: cfg.DatabaseURL, Name: "db", Pool: "reads", Lookups: true, MaxConns: maxRows + maxLists, ReadOnly: true, Registerer: on.Registry,
	})
	if err != nil {
		pool.Close()
		return nil, err
	}
	d := &DB{
		cfg: cfg, pool: pool, ledger: newLedger(pool, cfg, on.Registry), reads: newReads(reading, cmp.Or(cfg.readWithin, readWithin)),
		publish: on.Publisher, now: on.Now, log: on.Log, metrics: newMetrics(on.Registry),
	}
	d.enforceRules()
	return &function.Service{
		GRPC: func(r grpc.ServiceRegistrar) {
			dbv1.RegisterDbServer(r, d)
			dbv1.RegisterAdminServer(r, d)
		},
		Events:     d.handle,
		Ready:      func(ctx context.Context) error { return CheckSchema(ctx, pool, KnownSchema()) },
		Background: d.rules.Run,
		Close: func(ctx context.Context) error {
			err := d.ledger.close(ctx)
			pool.Close()
			reading.Close()
			return err
		},
	}, nil
}

// openPool opens the ledger's. Each lane of both kinds holds a connection while it works; a few more serve reads.
func openPool(cfg Config, now func() time.Time, r prometheus.Registerer) (*pgxpool.Pool, error) {
	return postgres.Open(postgres.Config{
		URL: cfg.DatabaseURL, Name: "db", Lookups: true, MaxConns: int32(2*cfg.BatchLanes + 4),
		LockTimeout: cfg.LockTimeout, Now: now, Registerer: r,
	})
}

// handle takes account events and the sweep's ping.
func (d *DB) handle(ctx context.Context, e cloudevents.Event) error {
	switch e.Type() {
	case event.TypePing:
		// Unsigned: a ping carries nothing, and sweeping is harmless however often it is asked for.
		_, _, err := d.sweep(ctx)
		return err
	case event.TypeAccountOpened, event.TypeAccountFunded:
		outcome, err := d.applyAccountEvent(ctx, e)
		d.metrics.accountEvents.WithLabelValues(outcome).Inc()
		return err
	default:
		return refused("%s is not for db", e.Type())
	}
}

// txStatus gives a refusal the TxStatus that earlier callers switch on.
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
