package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	toxiproxy "github.com/Shopify/toxiproxy/v2"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/rs/zerolog"

	"pgw/functions/kafkasource"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/tests/processes"
)

// single is one process of each function and store, with a wire in front of each.
type single struct {
	*world
	wires  map[string]*toxiproxy.Proxy
	broker *broker
	server *server
	sys    *processes.System
}

func (w *single) start(ctx, keep context.Context) (err error) {
	w.wires = map[string]*toxiproxy.Proxy{}
	proxies := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	for _, name := range append([]string{kafkaStore, postgresStore}, processes.Functions...) {
		w.wires[name] = toxiproxy.NewProxy(proxies, name, "127.0.0.1:0", "127.0.0.1:1")
		if err := w.wires[name].Start(); err != nil {
			return err
		}
	}
	if err := w.startStores(ctx, keep); err != nil {
		return err
	}
	w.sys, err = processes.New(processes.Config{Binary: w.o.Binary, Database: w.server.url(), Kafka: w.kafka, EventKeys: eventKeys, Log: w.logs, Env: settings})
	if err != nil {
		return err
	}
	for _, name := range processes.Functions {
		wire := w.wires[name]
		if err := wire.Update(&toxiproxy.Proxy{Listen: wire.Listen, Upstream: w.sys.Addr(name), Enabled: true}); err != nil {
			return err
		}
		w.sys.SetFront(name, wire.Listen)
	}
	for _, name := range processes.All {
		w.keep(keep, name, func() (<-chan struct{}, error) { return w.sys.Launch(name) })
	}
	return seed(ctx, w.sys)
}

func (w *single) gateway() string  { return w.sys.Front("gateway") }
func (w *single) database() string { return w.server.direct() }

func (w *single) skipped() []string {
	if w.server.disk == "" {
		return []string{"full disk: no disk may be mounted here"}
	}
	return nil
}

func (w *single) startStores(ctx, keep context.Context) (err error) {
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

// breakThings makes the faults at their times.
func (w *single) breakThings(ctx context.Context, begun time.Time) (made []fault, wrong []string) {
	faults := plan(w.o.Seed, w.o.Faults, w.o.Duration)
	fmt.Printf("seed %d: %d faults in %s, %.0f payments a second are sent\n", w.o.Seed, len(faults), w.o.Duration, w.o.Rate)
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
			f.since = time.Now()
		})
	}
	under.Wait()
	return faults, nil
}

func (w *single) inflict(ctx context.Context, i int, f *fault) error {
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
	case badEndpoint, stuckEndpoint, cutEndpoint:
		w.shop.behave(manners[f.Kind])
		sleep(ctx, f.For)
		w.shop.behave(takes)
		return nil
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

func (w *single) signal(target string, sig syscall.Signal) error {
	switch target {
	case kafkaStore:
		return w.broker.signal(sig)
	case postgresStore:
		return w.server.signal(sig)
	}
	return w.sys.Signal(target, sig)
}

// toxic disturbs both directions of a wire for a while.
func (w *single) toxic(ctx context.Context, i int, f *fault, kind, attributes string) error {
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
func (w *single) redeliver(ctx context.Context, function string, seed uint64) error {
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
func (w *single) heal() {
	for _, wire := range w.wires {
		healWire(wire)
		if err := wire.Start(); err != nil && !errors.Is(err, toxiproxy.ErrProxyAlreadyStarted) {
			w.log.Error("a wire is not healed", "wire", wire.Name, "error", err)
		}
	}
	if w.sys == nil {
		return
	}
	for _, name := range append([]string{kafkaStore}, processes.All...) {
		w.signal(name, syscall.SIGCONT)
	}
}

func (w *single) stop() error {
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
	return errors.Join(errs...)
}
