// Command fault runs pgw as separate processes on a real Kafka and a real Postgres, under load, and
// makes every kind of fault. Then it heals the system, and compares the clients' answers with the
// ledger.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/functions/kafkasource"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/tests/processes"
)

type options struct {
	Seed        uint64        `default:"1" help:"The same seed makes the same faults at the same times."`
	Duration    time.Duration `default:"2m" help:"How long faults happen."`
	Faults      int           `help:"How many; one in five seconds when not said."`
	Rate        float64       `default:"300" help:"Payments a second that are offered."`
	Connections int           `default:"256" help:"Clients at the same time."`
	Binary      string        `default:"bin/pgw" type:"existingfile"`
	Out         string        `default:"tests/fault/out" help:"Where the report and the logs go."`
}

func (o options) Validate() error {
	if o.Duration < 10*time.Second || o.Duration > 24*time.Hour {
		return errors.New("--duration must be between 10s and 24h")
	}
	if o.Faults < 0 || o.Faults > 100_000 || o.Rate <= 0 || o.Connections < 1 {
		return errors.New("--faults must be between 0 and 100000, --rate and --connections positive")
	}
	return nil
}

const (
	eventKeys = "chaos:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	accounts  = 1000
	// restartAfter is the time after which a process that ended is started again, as a cluster
	// does.
	restartAfter = 500 * time.Millisecond
	// healWithin is the time limit until payments succeed again without help.
	healWithin = 2 * time.Minute
)

func main() {
	var o options
	kong.Parse(&o, kong.Name("fault"), kong.Description("Break pgw in every way, under load, and judge what is left."))
	if o.Faults == 0 {
		o.Faults = max(1, int(o.Duration/(5*time.Second)))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "fault:", err)
		os.Exit(1)
	}
}

// world is everything that runs.
type world struct {
	o        options
	dir      string
	sys      *processes.System
	wires    map[string]*toxiproxy.Proxy // in front of each function and store
	broker   *broker
	server   *server
	kafka    kafka.Config
	keys     event.Keyring
	log      *slog.Logger
	keepers  sync.WaitGroup
	stopKeep context.CancelFunc
	mu       sync.Mutex
	restarts map[string]int
}

func run(ctx context.Context, o options) (err error) {
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return err
	}
	w, err := build(ctx, o)
	if w != nil {
		defer func() { err = errors.Join(err, w.close()) }()
	}
	if err != nil {
		return err
	}
	faults := plan(o.Seed, o.Faults, o.Duration)
	fmt.Printf("seed %d: %d faults in %s, %.0f payments a second are sent\n", o.Seed, len(faults), o.Duration, o.Rate)
	clients := newClients(o, "http://"+w.sys.Front("gateway"))
	begun := time.Now()
	paying, stopPaying := context.WithCancel(ctx)
	defer stopPaying()
	done := make(chan struct{})
	go func() { defer close(done); clients.run(paying) }()
	w.breakThings(ctx, begun, faults)
	if wait := time.Until(begun.Add(o.Duration)); wait > 0 {
		sleep(ctx, wait)
	}
	w.heal()
	fmt.Println("healed; the load continues until payments succeed again")
	healed := time.Now()
	again, err := clients.recovered(ctx, healed, healWithin)
	stopPaying()
	<-done
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	return w.judge(ctx, o, faults, clients, healed, again)
}

func build(ctx context.Context, o options) (*world, error) {
	dir, err := os.MkdirTemp("", "pgw-fault-")
	if err != nil {
		return nil, err
	}
	os.Chmod(dir, 0o755) // Postgres may run as another user
	logs, err := os.Create(filepath.Join(o.Out, "processes.log"))
	if err != nil {
		return nil, err
	}
	w := &world{o: o, dir: dir, wires: map[string]*toxiproxy.Proxy{}, restarts: map[string]int{}, log: slog.New(slog.NewTextHandler(logs, nil))}
	if err := w.keys.Decode(eventKeys); err != nil {
		return w, err
	}
	quiet := zerolog.Nop()
	proxies := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), quiet)
	for _, name := range append([]string{kafkaStore, postgresStore}, processes.Functions...) {
		w.wires[name] = toxiproxy.NewProxy(proxies, name, "127.0.0.1:0", "127.0.0.1:1")
		if err := w.wires[name].Start(); err != nil {
			return w, err
		}
	}
	keep, stop := context.WithCancel(context.Background())
	w.stopKeep = stop
	if err := w.startStores(ctx, keep); err != nil {
		return w, err
	}
	w.sys, err = processes.New(processes.Config{Binary: o.Binary, Database: w.server.url(), Kafka: w.kafka, EventKeys: eventKeys, Log: logs})
	if err != nil {
		return w, err
	}
	for _, name := range processes.Functions {
		wire := w.wires[name]
		if err := wire.Update(&toxiproxy.Proxy{Listen: wire.Listen, Upstream: w.sys.Addr(name), Enabled: true}); err != nil {
			return w, err
		}
		w.sys.SetFront(name, wire.Listen)
	}
	for _, name := range processes.All {
		w.keep(keep, name, func() (<-chan struct{}, error) { return w.sys.Launch(name) })
	}
	bounded, cancel := context.WithTimeout(ctx, healWithin)
	defer cancel()
	if err := eventually(bounded, func() error { return w.sys.Seed(bounded, accounts) }); err != nil {
		return w, err
	}
	return w, eventually(bounded, func() error { return w.sys.SeedExchange(bounded, accounts) })
}

func (w *world) startStores(ctx, keep context.Context) (err error) {
	if w.broker, err = takeOver(w.dir, w.wires[kafkaStore].Listen); err != nil {
		return err
	}
	plain := strings.Split(os.Getenv("PGW_TEST_KAFKA_BROKERS"), ",")[0]
	wire := w.wires[kafkaStore]
	if err := wire.Update(&toxiproxy.Proxy{Listen: wire.Listen, Upstream: plain, Enabled: true}); err != nil {
		return err
	}
	w.keep(keep, kafkaStore, w.broker.launch)
	if w.server, err = newServer(w.dir, w.wires[postgresStore], w.log); err != nil {
		return err
	}
	started := make(chan struct{})
	once := sync.OnceFunc(func() { close(started) })
	w.keep(keep, postgresStore, func() (<-chan struct{}, error) {
		ended, err := w.server.launch()
		if err == nil {
			once()
		}
		return ended, err
	})
	select {
	case <-started:
	case <-time.After(healWithin):
		return errors.New("postgres did not start")
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := ledger.Migrate(ctx, w.server.direct()); err != nil {
		return err
	}
	w.kafka = kafka.Config{
		Brokers: []string{wire.Listen}, RequestTopic: "payments.request", ResultTopic: "payments.result",
		DeadLetterTopic: "payments.deadletter", ParkedTopic: "payments.parked", AccountsTopic: "ledger.accounts",
	}
	topics, err := processes.Topics(8)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, healWithin)
	defer cancel()
	return eventually(bounded, func() error { return kafka.EnsureTopics(w.kafka, topics) })
}

// keep starts a process again whenever it ends, as a cluster does. Nothing else restarts a process.
func (w *world) keep(ctx context.Context, name string, launch func() (<-chan struct{}, error)) {
	w.keepers.Go(func() {
		for starts := 0; ctx.Err() == nil; starts++ {
			if starts > 0 {
				w.mu.Lock()
				w.restarts[name]++
				w.mu.Unlock()
				sleep(ctx, restartAfter)
				if ctx.Err() != nil {
					return
				}
			}
			ended, err := launch()
			if err != nil {
				w.log.Warn("not started", "process", name, "error", err)
				continue
			}
			select {
			case <-ended:
			case <-ctx.Done():
				return
			}
		}
	})
}

// breakThings makes the faults at their times, and waits until each is undone.
func (w *world) breakThings(ctx context.Context, begun time.Time, faults []fault) {
	var under sync.WaitGroup
	for i := range faults {
		f := &faults[i]
		sleep(ctx, time.Until(begun.Add(f.At)))
		if ctx.Err() != nil {
			break
		}
		fmt.Printf("%7.1f s  %s\n", time.Since(begun).Seconds(), f)
		under.Go(func() {
			if err := w.inflict(ctx, i, f); err != nil {
				w.log.Warn("a fault could not be made", "fault", f.String(), "error", err)
			}
			f.healed = time.Now()
		})
	}
	under.Wait()
}

func (w *world) inflict(ctx context.Context, i int, f *fault) error {
	switch f.Kind {
	case kill:
		return w.signal(f.Target, syscall.SIGKILL)
	case term:
		return w.signal(f.Target, syscall.SIGTERM)
	case freeze:
		err := w.signal(f.Target, syscall.SIGSTOP)
		sleep(ctx, f.For)
		return errors.Join(err, w.signal(f.Target, syscall.SIGCONT))
	case killInRecovery:
		return w.server.killInRecovery()
	case shutDown:
		return w.server.signal(syscall.SIGINT)
	case delay:
		return w.toxic(ctx, i, f, "latency", fmt.Sprintf(`{"latency":%d,"jitter":%d}`, f.Millis, f.Millis/2))
	case blackhole:
		return w.toxic(ctx, i, f, "timeout", `{"timeout":0}`)
	case mute:
		return muteNow(w.wires[f.Target], i)
	case drop:
		wire := w.wires[f.Target]
		wire.Stop()
		sleep(ctx, f.For)
		if err := wire.Start(); err != nil && !errors.Is(err, toxiproxy.ErrProxyAlreadyStarted) {
			return err
		}
		return nil
	case redeliver:
		return w.redeliver(ctx, f.Target, uint64(i))
	case fullDisk:
		if w.server.disk == "" {
			return errors.New("this Postgres has no disk of its own")
		}
		undo, err := w.server.fill()
		if err != nil {
			return err
		}
		sleep(ctx, f.For)
		undo()
		return nil
	}
	return fmt.Errorf("%q is not a kind of fault", f.Kind)
}

func (w *world) signal(target string, sig syscall.Signal) error {
	switch target {
	case kafkaStore:
		return w.broker.signal(sig)
	case postgresStore:
		return w.server.signal(sig)
	}
	return w.sys.Signal(target, sig)
}

// toxic disturbs both directions of a wire for a while.
func (w *world) toxic(ctx context.Context, i int, f *fault, kind, attributes string) error {
	toxics := w.wires[f.Target].Toxics
	var added []string
	for _, stream := range []string{"downstream", "upstream"} {
		t, err := toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"name":"%s-%d","stream":%q,"type":%q,"attributes":%s}`, stream, i, stream, kind, attributes)))
		if err != nil {
			return err
		}
		added = append(added, t.Name)
	}
	sleep(ctx, f.For)
	for _, name := range added {
		if err := toxics.RemoveToxic(context.Background(), name); err != nil {
			return err
		}
	}
	return nil
}

// redeliver delivers the events of the last half minute again, twice, in any order.
func (w *world) redeliver(ctx context.Context, function string, seed uint64) error {
	topic, path := w.kafka.RequestTopic, "/"
	if function == "gateway" {
		topic, path = w.kafka.ResultTopic, "/events"
	}
	lately := kafka.Range{Topic: topic, Since: time.Now().Add(-30 * time.Second)}
	var events []cloudevents.Event
	errEnough := errors.New("enough")
	err := kafka.Read(ctx, w.kafka, "fault", lately, func(m *sarama.ConsumerMessage) error {
		e := kafkasource.ReadRecord(ctx, "fault", m)
		if events = append(events, e, e); len(events) >= 2000 {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 5))
	rng.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
	sender, err := kafkasource.NewSender("http://"+w.sys.Front(function)+path, http.DefaultTransport, 2, 100*time.Millisecond, 10*time.Second)
	if err != nil {
		return err
	}
	next := make(chan cloudevents.Event)
	var sending sync.WaitGroup
	for range 16 {
		sending.Go(func() {
			for e := range next {
				sender.Send(ctx, e) // a function that is away misses a duplicate
			}
		})
	}
	for _, e := range events {
		next <- e
	}
	close(next)
	sending.Wait()
	return nil
}

// heal undoes the faults that are still active. It starts no process.
func (w *world) heal() {
	for _, wire := range w.wires {
		healWire(wire)
		if err := wire.Start(); err != nil && !errors.Is(err, toxiproxy.ErrProxyAlreadyStarted) {
			w.log.Error("a wire is not healed", "wire", wire.Name, "error", err)
		}
	}
	for _, name := range append([]string{kafkaStore}, processes.All...) {
		w.signal(name, syscall.SIGCONT)
	}
}

// close ends everything that was started, however the run ended.
func (w *world) close() error {
	if w.stopKeep != nil {
		w.heal()
		w.stopKeep()
		w.keepers.Wait()
	}
	var errs []error
	if w.sys != nil {
		errs = append(errs, w.sys.StopAll())
	}
	if w.server != nil {
		errs = append(errs, w.server.close())
	}
	if w.broker != nil {
		w.broker.close()
	}
	for _, wire := range w.wires {
		wire.Stop()
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func eventually(ctx context.Context, check func() error) error {
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}
