// Package allinone holds all functions in one process, the stand-in for KafkaSource too: they call
// each other without a network, and meet at a real Kafka and a real Postgres.
package allinone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/grpc"

	"pgw/functions/gateway"
	"pgw/functions/gateway/access"
	"pgw/functions/kafkasource"
	"pgw/functions/pgw/table"
	"pgw/knative"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/rpc"
)

const drainWithin = 20 * time.Second

// front is the function that lets payments in. It is served once the system is seeded.
const front = "gateway"

// Config of a system. Migrations and topics are there already.
type Config struct {
	Database string
	Reader   string // a login that only reads, for fx, wallet and risk; empty: Database
	Kafka    kafka.Config
	// GroupPrefix stands before each consumer group's name, where several systems share a Kafka.
	GroupPrefix string
	Keys        event.Keyring
	RiskSecret  string
	Listeners   map[string]net.Listener // one for each function that has a port
	AnswerIn    time.Duration           // how long a client waits; 0 means 5 s
	Access      access.Config           // who may come in; everybody when zero
	Origins     []string                // whose pages may use the API
	Callers     *rpc.Callers            // who may call over the network; everybody when nil
	Links       Links
	Log         *slog.Logger
	// Seed gives a new system what it needs before the first payment. It runs when all functions
	// but the gateway are ready. The gateway's port is served after it. nil: nothing is missing.
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
type Publisher = function.Publisher

// System is all functions of a process.
type System struct {
	cfg      Config
	ports    map[string]*function.Port
	conns    map[string]grpc.ClientConnInterface
	producer *kafka.Producer
	open     atomic.Bool // the gateway's port is served
}

// Manifests are those of knative/base.
func Manifests() (kafkasource.Manifests, error) { return kafkasource.Load(knative.Base) }

// Listening names the functions that have a port.
func Listening() (names []string) {
	for _, f := range table.Functions {
		if f.Port != "" {
			names = append(names, f.Name)
		}
	}
	return names
}

// New builds the functions and connects them.
func New(cfg Config) (*System, error) {
	cfg.Reader = cmp.Or(cfg.Reader, cfg.Database)
	cfg.AnswerIn = cmp.Or(cfg.AnswerIn, 5*time.Second)
	producer, err := kafka.NewProducer(cfg.Kafka, "run")
	if err != nil {
		return nil, err
	}
	s := &System{
		cfg: cfg, ports: map[string]*function.Port{}, conns: map[string]grpc.ClientConnInterface{}, producer: producer,
	}
	var publisher Publisher = producer
	if cfg.Publish != nil {
		publisher = cfg.Publish(publisher)
	}
	reach := transport{}
	// From the back, so that a function is built before its callers.
	for _, f := range slices.Backward(table.Functions) {
		on := function.Dependencies{
			Conns: map[string]grpc.ClientConnInterface{}, Publisher: publisher, Now: time.Now, Random: rand.Float64,
			Log: cfg.Log.With("function", f.Name),
		}
		for callee := range f.Calls {
			on.Conns[callee] = s.conns[callee]
		}
		if f.Port == "" {
			// It has no port: it reaches the others by function calls, and worker's port shows its
			// metrics.
			on.HTTP, on.Registry = reach, s.ports["worker"].Registry
		}
		config, err := f.Configure(cfg.settings(f.Name))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		port, err := f.Make(config, on)
		if err != nil {
			return nil, err
		}
		s.add(port)
		if f.Events != "" {
			reach[f.Name] = port.EventHandler()
		}
	}
	return s, nil
}

// settings are what a function reads in place of the environment, which belongs to the whole
// process. Other variables have their defaults.
func (cfg Config) settings(name string) function.Settings {
	values := function.Values{
		"DATABASE_URL": cfg.Reader, "RISK_SECRET": cfg.RiskSecret, "KAFKA_GROUP_PREFIX": cfg.GroupPrefix,
		"RESULT_TIMEOUT": cfg.AnswerIn.String(), "REPLICA_URL": "http://" + cfg.addr(front), "TRACE_URL": cfg.Links.Trace,
		"CORS_ORIGINS": strings.Join(cfg.Origins, ","), "QUEUE_MAX": "4096",
		// Plain records of earlier producers are taken: whoever reaches the broker on this machine
		// may pay.
		"ALLOW_UNSIGNED_REQUESTS": "true",
		"SINKS":                   table.Sinks(func(name string) string { return "http://" + name }),
		// One lane of each kind: all functions share the processors, and fewer, larger transactions
		// cost less.
		"BATCH_LANES": "1",
	}
	if name == "db" {
		values["DATABASE_URL"] = cfg.Database
	}
	return function.Settings{Lookup: values.Lookup, Given: []any{cfg.Kafka, cfg.Keys, cfg.Access, cfg.Links.Grafana}}
}

func (s *System) add(port *function.Port) {
	s.ports[port.Name] = port
	port.Callers, port.Transport = s.cfg.Callers, function.GRPCOnly
	if port.GRPC == nil {
		return
	}
	conn := port.InProcess()
	if s.cfg.Between != nil {
		conn = s.cfg.Between(port.Name, conn)
	}
	s.conns[port.Name] = conn
}

// Conn calls a function of this process.
func (s *System) Conn(name string) grpc.ClientConnInterface { return s.conns[name] }

// Addr is where a function listens.
func (s *System) Addr(name string) string { return s.cfg.addr(name) }

func (cfg Config) addr(name string) string { return cfg.Listeners[name].Addr().String() }

// Producer publishes to the system's Kafka.
func (s *System) Producer() *kafka.Producer { return s.producer }

// Ready says what is not ready yet.
func (s *System) Ready(ctx context.Context) error {
	if err := s.readyBehind(ctx); err != nil {
		return err
	}
	if !s.open.Load() {
		return errors.New(front + ": waits for the seeds")
	}
	return s.ports[front].Ready(ctx)
}

// readyBehind says which functions behind the gateway are not ready yet.
func (s *System) readyBehind(ctx context.Context) error {
	var errs []error
	for name, port := range s.ports {
		if port.Ready == nil || name == front {
			continue
		}
		if err := port.Ready(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// seed waits until all functions behind the gateway are ready, and gives them what a new system
// lacks.
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

// Run serves until ctx ends, and then drains in the table's order, so that payments under way are
// answered while the whole flow still runs. It returns early when a part fails.
func (s *System) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type part struct {
		stop context.CancelFunc
		done chan struct{}
	}
	parts := map[string]part{}
	start := func(name string) {
		own, stop := context.WithCancel(context.WithoutCancel(ctx))
		p := part{stop, make(chan struct{})}
		parts[name] = p
		go func() {
			defer close(p.done)
			if err := s.serve(own, name); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		}()
	}
	for _, f := range table.Functions {
		if f.Name != front {
			start(f.Name)
		}
	}
	if err := s.seed(ctx); err != nil {
		cancel(err)
	} else {
		start(front)
		s.open.Store(true)
	}

	<-ctx.Done()
	for _, f := range table.Functions {
		if p, started := parts[f.Name]; started {
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

// serve runs a function until ctx ends. One that has no port only runs in the background.
func (s *System) serve(ctx context.Context, name string) error {
	port := s.ports[name]
	if l, listens := s.cfg.Listeners[name]; listens {
		return port.Serve(ctx, l, drainWithin)
	}
	if port.Background == nil {
		return nil
	}
	return port.Background(ctx)
}
