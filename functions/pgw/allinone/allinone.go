// Package allinone runs all functions in one process, including kafkasource. They call each other
// without a network, and use a real Kafka and a real Postgres.
package allinone

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
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

// front is the function that accepts payments. It is served after the system is seeded.
const front = "gateway"

// Config is the configuration of a system. The migrations and topics must already exist.
type Config struct {
	Database string
	Reader   string // URL of a read-only login for fx, wallet and risk; empty: Database
	Kafka    kafka.Config
	// GroupPrefix is the prefix of each consumer group's name, for several systems that share a
	// Kafka.
	GroupPrefix string
	Keys        event.Keyring
	RiskSecret  string
	// Webhooks is the URL of the login of webhooks; empty: Database.
	Webhooks string
	// WebhookKeys encrypt the secrets of webhooks in the database; empty: a new key, which the next
	// system does not have.
	WebhookKeys string
	Listeners   map[string]net.Listener // one for each function with a port
	Admin       net.Listener            // for /metrics, /healthz and /readyz of the gateway; nil: its own port has them
	AnswerIn    time.Duration           // the time limit of a client's wait; 0 means 5 s
	Access      access.Config           // the access checks of the gateway; zero: everybody is admitted
	Origins     []string                // the origins whose pages may use the API
	Callers     *rpc.Callers            // the checks of network calls; nil: everybody may call
	Links       Links
	Log         *slog.Logger
	LogPayments bool // the gateway logs a line for each payment
	// Seed seeds a new system before the first payment. It runs when all functions except the
	// gateway are ready. The gateway's port is served after it. nil means that there is nothing to
	// seed.
	Seed func(context.Context) error

	// Between and Publish wrap calls and publishing, to inject faults in tests. They may be nil.
	Between func(callee string, conn grpc.ClientConnInterface) grpc.ClientConnInterface
	Publish func(event.Publisher) event.Publisher
}

// Links are the page's links to other services. An empty link means that the service is not there.
type Links struct {
	Grafana gateway.GrafanaURL
	Trace   string
}

// System is all functions of a process.
type System struct {
	cfg      Config
	ports    map[string]*function.Port
	conns    map[string]grpc.ClientConnInterface
	producer *kafka.Producer
	open     atomic.Bool // the gateway's port is served
}

// Manifests returns the manifests of knative/base.
func Manifests() (kafkasource.Manifests, error) { return kafkasource.Load(knative.Base) }

// Listening returns the names of the functions with a port.
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
	cfg.Reader, cfg.Webhooks = cmp.Or(cfg.Reader, cfg.Database), cmp.Or(cfg.Webhooks, cfg.Database)
	if cfg.WebhookKeys == "" {
		cfg.WebhookKeys = NewWebhookKey()
	}
	cfg.AnswerIn = cmp.Or(cfg.AnswerIn, 5*time.Second)
	producer, err := kafka.NewProducer(cfg.Kafka, "run")
	if err != nil {
		return nil, err
	}
	s := &System{
		cfg: cfg, ports: map[string]*function.Port{}, conns: map[string]grpc.ClientConnInterface{}, producer: producer,
	}
	var publisher event.Publisher = producer
	if cfg.Publish != nil {
		publisher = cfg.Publish(publisher)
	}
	receivers := map[string]event.Receive{} // their URLs have the functions' names as hosts
	// In reverse order, a function is built before its callers.
	for _, f := range slices.Backward(table.Functions) {
		on := function.Dependencies{
			Conns: map[string]grpc.ClientConnInterface{}, Publisher: publisher, Now: time.Now, Random: rand.Float64,
			Log: cfg.Log.With("function", f.Name),
		}
		for callee := range f.Calls {
			on.Conns[callee] = s.conns[callee]
		}
		if f.Port == "" {
			// A function without a port calls the others directly, and its metrics are on worker's
			// port.
			on.Receivers, on.Registry = receivers, s.ports["worker"].Registry
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
			receivers[f.Name] = port.Receive()
		}
	}
	return s, nil
}

// NewWebhookKey makes a key that encrypts the secrets of webhooks.
func NewWebhookKey() string {
	key := make([]byte, 32)
	crand.Read(key)
	return "local:" + base64.StdEncoding.EncodeToString(key)
}

// settings are the variables of a function, in place of the environment, which belongs to the whole
// process. Variables that are not here have their defaults.
func (cfg Config) settings(name string) function.Settings {
	values := function.Values{
		"DATABASE_URL": cfg.Reader, "RISK_SECRET": cfg.RiskSecret, "KAFKA_GROUP_PREFIX": cfg.GroupPrefix,
		"RESULT_TIMEOUT": cfg.AnswerIn.String(), "REPLICA_URL": "http://" + cfg.addr(front), "TRACE_URL": cfg.Links.Trace,
		"CORS_ORIGINS": strings.Join(cfg.Origins, ","), "QUEUE_MAX": "4096",
		// Plain records of earlier producers are accepted: everyone who can reach the broker on
		// this machine may pay.
		"ALLOW_UNSIGNED_REQUESTS": "true",
		"SINKS":                   table.Sinks(func(name string) string { return "http://" + name }),
		"WEBHOOK_SECRET_KEYS":     cfg.WebhookKeys,
		// Who tries pgw on a machine has the receiver of its webhooks there too.
		"WEBHOOK_ALLOW_HTTP": "true", "WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8,::1/128",
		"LOG_PAYMENTS": strconv.FormatBool(cfg.LogPayments),
	}
	switch name {
	case "db":
		values["DATABASE_URL"] = cfg.Database
	case "webhooks":
		values["DATABASE_URL"] = cfg.Webhooks
	}
	return function.Settings{Lookup: values.Lookup, Given: []any{cfg.Kafka, cfg.Keys, cfg.Access, cfg.Links.Grafana}}
}

func (s *System) add(port *function.Port) {
	s.ports[port.Name] = port
	port.Callers, port.Transport = s.cfg.Callers, function.GRPCOnly
	if port.Name == front {
		port.Admin = s.cfg.Admin
	}
	if port.GRPC == nil {
		return
	}
	conn := port.InProcess()
	if s.cfg.Between != nil {
		conn = s.cfg.Between(port.Name, conn)
	}
	s.conns[port.Name] = conn
}

// Conn returns a connection to a function of this process.
func (s *System) Conn(name string) grpc.ClientConnInterface { return s.conns[name] }

// Addr returns the address at which a function listens.
func (s *System) Addr(name string) string { return s.cfg.addr(name) }

func (cfg Config) addr(name string) string { return cfg.Listeners[name].Addr().String() }

// Producer returns the producer of the system's Kafka.
func (s *System) Producer() *kafka.Producer { return s.producer }

// Ready returns an error that names the functions which are not ready.
func (s *System) Ready(ctx context.Context) error {
	if err := s.readyBehind(ctx); err != nil {
		return err
	}
	if !s.open.Load() {
		return errors.New(front + ": waits for the seeds")
	}
	return s.ports[front].Ready(ctx)
}

// readyBehind is Ready for all functions except the gateway.
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

// seed waits until all functions except the gateway are ready, and seeds a new system.
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

// Run serves until ctx ends. Then it drains the functions in the table's order, so payments under
// way are answered while the rest of the flow still runs. It returns early if a function fails.
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

// serve runs a function until ctx ends. A function without a port runs only in the background.
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
