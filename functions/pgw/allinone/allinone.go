// Package allinone holds all seven functions and the stand-in for KafkaSource in one process: they call each
// other without a network, and meet at a real Kafka and a real Postgres.
package allinone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"

	"pgw/compose/kafkasource"
	"pgw/functions/db"
	"pgw/functions/fx"
	"pgw/functions/gateway"
	"pgw/functions/gateway/access"
	"pgw/functions/payments"
	"pgw/functions/risk"
	"pgw/functions/wallet"
	"pgw/functions/worker"
	"pgw/knative"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/rpc"
)

const (
	drainWithin = 20 * time.Second
	queueMax    = 4096
	minWaiting  = 256 // payments under way, however slow the machine is
)

// Functions in the order in which they drain: who is called stands behind who calls.
var Functions = []string{"gateway", "worker", "payments", "wallet", "risk", "fx", "db"}

// Config of a system. Migrations and topics are there already.
type Config struct {
	Database string
	Reader   string // a login that only reads, for fx, wallet and risk; empty: Database
	Kafka    kafka.Config
	// GroupPrefix stands before each consumer group's name, where several systems share a Kafka.
	GroupPrefix string
	Keys        event.Keyring
	RiskSecret  string
	Listeners   map[string]net.Listener // one for each function
	AnswerIn    time.Duration           // how long a client waits; 0 means 5 s
	Access      access.Config           // who may come in; everybody when zero
	Origins     []string                // whose pages may use the API
	Callers     *rpc.Callers            // who may call over the network; everybody when nil
	Links       Links
	Log         *slog.Logger
	// Seed gives a new system what it needs before the first payment. It runs once all functions but the gateway are
	// ready; only then is the gateway's port served. nil: nothing is missing.
	Seed func(context.Context) error

	// Faults between functions, for tests; nil where there are none.
	Between func(callee string, conn grpc.ClientConnInterface) grpc.ClientConnInterface
	Publish func(Publisher) Publisher
}

// Links of the page to what may run beside the system; empty where it does not.
type Links struct {
	Grafana gateway.GrafanaURL
	Trace   string
}

// Publisher is how functions publish.
type Publisher interface {
	Publish(ctx context.Context, topic, key string, e cloudevents.Event) error
}

// System is all of it.
type System struct {
	cfg       Config
	functions map[string]*function.Function
	conns     map[string]grpc.ClientConnInterface
	sources   *kafkasource.Sources
	producer  *kafka.Producer
	open      atomic.Bool // the gateway's port is served
}

// Manifests are those of knative/base.
func Manifests() (kafkasource.Manifests, error) { return kafkasource.Load(knative.Base) }

// New builds the functions and connects them.
func New(cfg Config) (*System, error) {
	cfg.Reader = cmp.Or(cfg.Reader, cfg.Database)
	if cfg.AnswerIn == 0 {
		cfg.AnswerIn = 5 * time.Second
	}
	producer, err := kafka.NewProducer(cfg.Kafka, "run")
	if err != nil {
		return nil, err
	}
	s := &System{
		cfg: cfg, functions: map[string]*function.Function{}, conns: map[string]grpc.ClientConnInterface{}, producer: producer,
	}
	var publish Publisher = s.producer
	if cfg.Publish != nil {
		publish = cfg.Publish(publish)
	}
	log := func(name string) *slog.Logger { return cfg.Log.With("function", name) }

	// One lane of each kind: the processors are shared with everything else here, and fewer, larger
	// transactions cost them less.
	ledger, err := db.New(db.Config{DatabaseURL: cfg.Database, BatchMax: 256, BatchLanes: 1, QueueMax: queueMax, Keys: cfg.Keys, Kafka: cfg.Kafka},
		publish, time.Now, log("db"))
	if err != nil {
		return nil, err
	}
	s.add(ledger)
	rates, err := fx.New(fx.Config{DatabaseURL: cfg.Reader}, s.conns["db"], rand.Float64, log("fx"))
	if err != nil {
		return nil, err
	}
	s.add(rates)
	accounts, err := wallet.New(wallet.Config{DatabaseURL: cfg.Reader, QueueMax: queueMax}, s.conns["db"], s.conns["fx"], time.Now, log("wallet"))
	if err != nil {
		return nil, err
	}
	s.add(accounts)
	rules, err := risk.New(risk.Config{DatabaseURL: cfg.Reader, Secret: cfg.RiskSecret}, s.conns["db"], time.Now, log("risk"))
	if err != nil {
		return nil, err
	}
	s.add(rules)
	// Who can reach the broker on this machine may pay: plain records are let in, as earlier producers write them.
	s.add(payments.New(payments.Config{Keys: cfg.Keys, AllowUnsigned: true, Kafka: cfg.Kafka}, s.conns["db"], s.conns["fx"],
		payments.NewLetters(cfg.Kafka), publish, time.Now, log("payments")))
	s.add(worker.New(worker.Config{Keys: cfg.Keys, AllowUnsigned: true, Kafka: cfg.Kafka}, s.conns["payments"], publish, time.Now, log("worker")))
	door, err := gateway.New(gateway.Config{
		AnswerIn: cfg.AnswerIn, MinWaiting: minWaiting, MaxWaiting: queueMax, Keys: cfg.Keys, Kafka: cfg.Kafka, ReplicaURL: "http://" + s.Addr("gateway"),
		Access: cfg.Access, Origins: cfg.Origins, GrafanaURL: cfg.Links.Grafana, TraceURL: cfg.Links.Trace,
	}, gateway.Clients{FX: s.conns["fx"], Wallet: s.conns["wallet"], Risk: s.conns["risk"], DB: s.conns["db"]}, publish, time.Now, log("gateway"))
	if err != nil {
		return nil, err
	}
	s.add(door)
	return s, s.addSources()
}

func (s *System) add(f *function.Function) {
	s.functions[f.Name] = f
	f.Callers, f.Transport = s.cfg.Callers, function.Alone
	if f.GRPC == nil {
		return
	}
	conn := f.InProcess()
	if s.cfg.Between != nil {
		conn = s.cfg.Between(f.Name, conn)
	}
	s.conns[f.Name] = conn
}

func (s *System) addSources() error {
	manifests, err := Manifests()
	if err != nil {
		return err
	}
	reach := transport{}
	for name, f := range s.functions {
		reach[name] = f.EventHandler()
	}
	s.sources, err = kafkasource.New(manifests, kafkasource.Config{
		Kafka: s.cfg.Kafka, GroupPrefix: s.cfg.GroupPrefix, Transport: reach, Log: s.cfg.Log, Registerer: s.functions["worker"].Registry,
		SinkURL: func(service string) (string, error) {
			if _, ok := s.functions[service]; !ok {
				return "", fmt.Errorf("there is no function %s", service)
			}
			return "http://" + service, nil
		},
	})
	return err
}

// Conn calls a function of this process.
func (s *System) Conn(name string) grpc.ClientConnInterface { return s.conns[name] }

// Addr is where a function listens.
func (s *System) Addr(name string) string { return s.cfg.Listeners[name].Addr().String() }

// Producer publishes to the system's Kafka.
func (s *System) Producer() *kafka.Producer { return s.producer }

// Ready says what is not ready yet.
func (s *System) Ready(ctx context.Context) error {
	if err := s.readyBehind(ctx); err != nil {
		return err
	}
	if !s.open.Load() {
		return errors.New("gateway: waits for the seeds")
	}
	return s.functions["gateway"].Ready(ctx)
}

// readyBehind says what of all but the gateway is not ready yet.
func (s *System) readyBehind(ctx context.Context) error {
	errs := []error{s.sources.Ready()}
	for name, f := range s.functions {
		if f.Ready == nil || name == "gateway" {
			continue
		}
		if err := f.Ready(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// seed waits until all functions behind the gateway are ready, and gives them what a new system lacks.
func (s *System) seed(ctx context.Context) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, s.readyBehind(ctx) },
		backoff.WithBackOff(backoff.NewConstantBackOff(20*time.Millisecond)), backoff.WithMaxElapsedTime(0))
	if err != nil || s.cfg.Seed == nil {
		return err
	}
	if err := s.cfg.Seed(ctx); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	return nil
}

// Run serves until ctx ends, and then drains from the front door to the ledger: payments under way are
// answered while the whole flow still runs. It returns early when a part fails.
func (s *System) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type part struct {
		stop context.CancelFunc
		done chan struct{}
	}
	parts := map[string]part{}
	start := func(name string, run func(context.Context) error) {
		own, stop := context.WithCancel(context.WithoutCancel(ctx))
		p := part{stop, make(chan struct{})}
		parts[name] = p
		go func() {
			defer close(p.done)
			if err := run(own); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		}()
	}
	serve := func(name string) {
		start(name, func(ctx context.Context) error {
			return s.functions[name].Serve(ctx, s.cfg.Listeners[name], drainWithin)
		})
	}
	for _, name := range Functions[1:] {
		serve(name)
	}
	start("sources", s.sources.Run)
	if err := s.seed(ctx); err != nil {
		cancel(err)
	} else {
		serve("gateway")
		s.open.Store(true)
	}

	<-ctx.Done()
	for _, name := range append([]string{Functions[0], "sources"}, Functions[1:]...) {
		if p, started := parts[name]; started {
			p.stop()
			<-p.done
		}
	}
	bounded, stop := context.WithTimeout(context.WithoutCancel(ctx), drainWithin)
	defer stop()
	err := s.producer.Close(bounded)
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err
}
