// Package kafkasource replaces Knative's KafkaSource, KafkaSink and PingSource on systems without
// Knative. It reads the same manifests as a cluster and behaves like the dispatcher of
// eventing-kafka-broker (commit 7d8fe89 of knative-extensions/eventing-kafka-broker). The
// differences are deliberate, and the code names them where they occur. If a dead-letter sink
// fails, this package holds the offset and tries again; KafkaSource drops the event (with Parity
// this package drops it too). A record that KafkaSource loses, or retries for a long time without
// success, is delivered or refused at once. A dead letter is cut to the maximum size. A signed
// event in structured mode is refused.
package kafkasource

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/cenkalti/backoff/v5"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pgw/knative"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/trace"
)

const (
	// defaultInFlight is the number of concurrent deliveries of one member of an unordered source's
	// group. It is the same as KafkaSource's max.poll.records.
	defaultInFlight = 50
	// heldTooLong is how long a partition may be held before the function reports that it is not
	// ready.
	heldTooLong = 30 * time.Second
)

// Config of the function.
type Config struct {
	Manifests   string `envconfig:"MANIFESTS_DIR" desc:"folder of manifests; empty: those of knative/base"`
	Sinks       Sinks  `envconfig:"SINKS" desc:"SERVICE=URL for each Knative Service that is a sink, separated by commas"`
	GroupPrefix string `envconfig:"KAFKA_GROUP_PREFIX" desc:"prefix of each consumer group's name, for several systems that share a Kafka"`
	Parity      bool   `envconfig:"PARITY" default:"false" desc:"if a dead-letter sink fails, drop the event as KafkaSource does instead of trying again"`
	Kafka       kafka.Config
}

// Sinks are the base URLs of sinks by the name of their Service.
type Sinks map[string]string

// Decode parses SERVICE=URL,SERVICE=URL.
func (s *Sinks) Decode(text string) error {
	*s = Sinks{}
	for pair := range strings.SplitSeq(text, ",") {
		if service, url, ok := strings.Cut(pair, "="); ok {
			(*s)[service] = url
		} else if text != "" {
			return fmt.Errorf("%q must be SERVICE=URL", pair)
		}
	}
	return nil
}

// url returns a Service's base URL.
func (s Sinks) url(service string) (string, error) {
	url, ok := s[service]
	if !ok {
		return "", fmt.Errorf("SINKS has no URL for the service %s", service)
	}
	return url, nil
}

// Connections to a sink stay open between bursts of deliveries. They are closed before a function
// closes its idle connections.
const (
	idleConns   = 1024
	idleTimeout = 90 * time.Second
)

// Function describes kafkasource. It has its own producer, for dead letters.
var Function = function.Describe(function.Function{
	Name: "kafkasource", About: "replaces Knative's KafkaSource, KafkaSink and PingSource on systems without Knative",
	HTTP: func() *http.Transport {
		return &http.Transport{MaxIdleConnsPerHost: idleConns, IdleConnTimeout: idleTimeout}
	},
}, build)

func build(cfg Config, on function.Dependencies) (*function.Service, error) {
	var files fs.FS = knative.Base
	if cfg.Manifests != "" {
		files = os.DirFS(cfg.Manifests)
	}
	manifests, err := Load(files)
	if err != nil {
		return nil, err
	}
	sources, err := New(manifests, Options{
		Kafka: cfg.Kafka, GroupPrefix: cfg.GroupPrefix, Parity: cfg.Parity, SinkURL: cfg.Sinks.url, Transport: on.HTTP, Receivers: on.Receivers,
		Log: on.Log, Registerer: on.Registry, Now: on.Now,
	})
	if err != nil {
		return nil, err
	}
	return &function.Service{
		Ready:      func(context.Context) error { return sources.Ready() },
		Background: sources.Run,
	}, nil
}

// Options are the settings that are not in the manifests.
type Options struct {
	Kafka       kafka.Config                         // replaces bootstrapServers, net and topics of the manifests
	GroupPrefix string                               // prefix of each consumer group's name, for several systems that share a Kafka
	SinkURL     func(service string) (string, error) // returns the base URL of a Knative Service
	Transport   http.RoundTripper                    // sends requests to sinks
	Receivers   map[string]event.Receive             // the sinks in this process, by the hosts of their URLs; nil: all are reached by Transport
	Parity      bool                                 // drop an event whose dead-letter sink fails, as KafkaSource does
	InFlight    int                                  // concurrent deliveries of one consumer of an unordered source; 0 means 50
	Log         *slog.Logger
	Registerer  prometheus.Registerer
	Sleep       func(context.Context, time.Duration) error // waits between retries; nil means the real clock
	Now         func() time.Time                           // nil means the real clock
}

// Sources run all sources of a set of manifests.
type Sources struct {
	cfg      Options
	sources  []*source
	pings    []*ping
	producer *kafka.Producer
}

type source struct {
	manifest kafkaSource
	settings *sarama.Config
	deliver  *deliverer
	assigned atomic.Int32 // the group members that have got their partitions
	members  atomic.Int32 // the group members that have partitions now
	outage   *trace.Outage
	claims   claims
}

type ping struct {
	manifest pingSource
	poster   poster
	outage   *trace.Outage
}

type metrics struct {
	events  *prometheus.CounterVec
	retries *prometheus.CounterVec
	cut     *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

type sourceMetrics struct {
	delivered, deadLettered, dropped, cut prometheus.Counter
	seconds                               prometheus.Observer
}

// New makes the sources. It returns an error if a sink cannot be found.
func New(m Manifests, cfg Options) (*Sources, error) {
	if cfg.InFlight == 0 {
		cfg.InFlight = defaultInFlight
	}
	if cfg.Sleep == nil {
		cfg.Sleep = sleep
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	auto := promauto.With(cfg.Registerer)
	all := metrics{
		events: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_source_events_total",
			Help: "Events by source and outcome; parked is a dead letter that waits for an operator.",
		}, []string{"source", "outcome"}),
		retries: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_source_retries_total", Help: "Retries of deliveries.",
		}, []string{"source"}),
		cut: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_source_cut_total",
			Help: "Dead letters with only a part of their record, because the record was larger than the maximum size.",
		}, []string{"source"}),
		seconds: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pgw_source_delivery_seconds", Help: "How long a delivery took, including its retries.", Buckets: function.Latency,
		}, []string{"source"}),
	}

	producer, err := kafka.NewProducer(cfg.Kafka, "kafkasource")
	if err != nil {
		return nil, err
	}
	s := &Sources{cfg: cfg, producer: producer}
	posterOf := func(name string, to destination, p policy) (poster, error) {
		url, err := s.url(to)
		if err != nil {
			return poster{}, err
		}
		post, err := newPoster(url, cfg.Transport, p)
		post.receivers, post.sleep, post.retry = cfg.Receivers, cfg.Sleep, all.retries.WithLabelValues(name).Inc
		return post, err
	}
	var errs []error
	names := cfg.Kafka.Renamed()
	renamed := func(topic string) string {
		if name := names[topic]; name != "" {
			return name
		}
		return topic
	}
	for _, manifest := range m.sources {
		name := manifest.Metadata.Name
		manifest.Spec.Topics = slices.Clone(manifest.Spec.Topics)
		for i, topic := range manifest.Spec.Topics {
			manifest.Spec.Topics[i] = renamed(topic)
		}
		post, err := posterOf(name, manifest.Spec.Sink, newPolicy(manifest.Spec.Delivery))
		errs = append(errs, err)
		dead := deadLetter{kafka: s.producer}
		if to := *manifest.Spec.Delivery.DeadLetterSink; to.Ref != nil && to.Ref.Kind == kindKafkaSink {
			dead.topic, dead.mode = renamed(m.sinks[to.Ref.Name].Spec.Topic), m.sinks[to.Ref.Name].Spec.ContentMode
		} else {
			p, err := posterOf(name, to, newPolicy(manifest.Spec.Delivery))
			errs = append(errs, err)
			dead.http = &p
		}
		settings, err := groupSettings(cfg.Kafka, manifest)
		errs = append(errs, err)
		lost := "dead_lettered"
		if dead.topic == cfg.Kafka.ParkedTopic {
			lost = "parked"
		}
		outage := func(message string) *trace.Outage { return trace.NewOutage(cfg.Log, cfg.Now, message, "source", name) }
		src := &source{manifest: manifest, settings: settings, outage: outage("consuming is interrupted"), deliver: &deliverer{
			source: manifest, poster: post, dead: dead, parity: cfg.Parity, log: cfg.Log.With("source", name),
			lost: outage("an event goes to the dead letters"), held: outage("the dead-letter sink failed; the offset is held"),
			metrics: &sourceMetrics{
				delivered: all.events.WithLabelValues(name, "delivered"), deadLettered: all.events.WithLabelValues(name, lost),
				dropped: all.events.WithLabelValues(name, "dropped"), cut: all.cut.WithLabelValues(name),
				seconds: all.seconds.WithLabelValues(name),
			},
		}}
		src.claims.measure(cfg.Registerer, name, cfg.Now)
		s.sources = append(s.sources, src)
	}
	for _, manifest := range m.pings {
		post, err := posterOf(manifest.Metadata.Name, manifest.Spec.Sink, newPolicy(manifest.Spec.Delivery))
		errs = append(errs, err)
		s.pings = append(s.pings, &ping{
			manifest: manifest, poster: post, outage: trace.NewOutage(cfg.Log, cfg.Now, "a ping was not accepted", "source", manifest.Metadata.Name),
		})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

// url returns the URL of a sink: a Service's URL with uri as its path, or only uri.
func (s *Sources) url(to destination) (string, error) {
	if to.Ref == nil {
		return to.URI, nil
	}
	base, err := s.cfg.SinkURL(to.Ref.Name)
	if err != nil {
		return "", fmt.Errorf("sink %s: %w", to.Ref.Name, err)
	}
	return strings.TrimSuffix(base, "/") + "/" + strings.TrimPrefix(to.URI, "/"), nil
}

// Run consumes and delivers until ctx ends. Then it waits for the deliveries under way.
func (s *Sources) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, src := range s.sources {
		for range src.consumers() {
			running.Go(func() { s.consume(ctx, src) })
		}
		running.Go(func() { src.watch(ctx) })
	}
	for _, p := range s.pings {
		running.Go(func() { p.run(ctx) })
	}
	running.Wait()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainWithin)
	defer cancel()
	return s.producer.Close(bounded)
}

// Ready returns an error for each source that has not got its partitions yet, or that has held a
// partition for too long.
func (s *Sources) Ready() error {
	var errs []error
	for _, src := range s.sources {
		if int(src.assigned.Load()) < src.consumers() {
			errs = append(errs, fmt.Errorf("source %s is waiting for its partitions", src.manifest.Metadata.Name))
		}
		if b := src.claims.behind(s.cfg.Now()); b.heldFor >= heldTooLong {
			errs = append(errs, fmt.Errorf("source %s holds %d of its partitions, the longest for %s, because a dead letter cannot be written: %w",
				src.manifest.Metadata.Name, b.held, b.heldFor.Round(time.Second), b.heldWhy))
		}
	}
	return errors.Join(errs...)
}

func (src *source) consumers() int {
	if n := src.manifest.Spec.Consumers; n != nil {
		return *n
	}
	return 1
}

const (
	// partitionsEvery is how often a member looks for new partitions of its topics.
	partitionsEvery = 3 * time.Second
	// heartbeatEvery bounds how long a partition is not read while a member comes or goes.
	heartbeatEvery = 500 * time.Millisecond
	// silentWithin is how long a broker may be silent. Only the answer to a join may take longer,
	// while another member drains. The member that joins then asks again, for rebalanceWithin.
	silentWithin = 3 * time.Second
	// rebalanceWithin is how long the members of a group have to join it again.
	rebalanceWithin = drainWithin + 15*time.Second
	// joinsAgain is the wait of a member that could not join before it asks again.
	joinsAgain = 250 * time.Millisecond
)

func groupSettings(cfg kafka.Config, manifest kafkaSource) (*sarama.Config, error) {
	settings, err := cfg.Settings(manifest.Metadata.Name)
	if err != nil {
		return nil, err
	}
	settings.Consumer.Offsets.Initial = sarama.OffsetNewest
	if manifest.Spec.InitialOffset == "earliest" {
		settings.Consumer.Offsets.Initial = sarama.OffsetOldest
	}
	settings.Consumer.Group.Rebalance.Timeout = rebalanceWithin
	// A member whose join meets another one asks again after this wait.
	settings.Consumer.Group.Rebalance.Retry.Backoff = joinsAgain
	settings.Net.ReadTimeout = silentWithin
	// A partition whose broker is gone asks for its new leader after this wait.
	settings.Consumer.Retry.Backoff = 250 * time.Millisecond
	settings.Consumer.Offsets.AutoCommit.Interval = 500 * time.Millisecond
	// Members hear of a rebalance by their next heartbeat, and those that hear first wait for the others.
	settings.Consumer.Group.Heartbeat.Interval = heartbeatEvery
	// A new partition is found by the refreshed metadata, and then by the group's leader, which looks as often.
	settings.Metadata.RefreshFrequency, settings.Metadata.Full = partitionsEvery, false
	return settings, nil
}

// consume runs one member of the source's group until ctx ends. If the broker is away, it waits and
// tries again.
func (s *Sources) consume(ctx context.Context, src *source) {
	spec := src.manifest.Spec
	var places chan struct{}
	if spec.Ordering == "unordered" {
		places = make(chan struct{}, s.cfg.InFlight)
	}
	first := sync.OnceFunc(func() { src.assigned.Add(1) })
	handler := &consumer{
		source: src.manifest, deliver: src.deliver, places: places, claims: &src.claims, now: s.cfg.Now,
		joined: func() { first(); src.members.Add(1) }, left: func() { src.members.Add(-1) },
	}
	wait := backoff.NewExponentialBackOff()
	wait.MaxInterval = 5 * time.Second
	for ctx.Err() == nil {
		err := s.consumeAsMember(ctx, src, handler, wait.Reset)
		if err != nil && ctx.Err() == nil {
			src.outage.Note(ctx, err)
			s.cfg.Sleep(ctx, wait.NextBackOff())
		}
	}
}

// consumeAsMember joins the source's group, and consumes as the same member until ctx ends or the
// member can't go on. consumed is called when a session of the group has ended. A member that can't
// join, because no broker coordinates the group or a rebalance lasts, asks again. As another member
// it would wait until the session of the first has expired.
func (s *Sources) consumeAsMember(ctx context.Context, src *source, handler sarama.ConsumerGroupHandler, consumed func()) error {
	client, err := sarama.NewClient(s.cfg.Kafka.Brokers, src.settings)
	if err != nil {
		return err
	}
	defer client.Close()
	group, err := sarama.NewConsumerGroupFromClient(s.cfg.GroupPrefix+src.manifest.Spec.ConsumerGroup, &groupClient{Client: client})
	if err != nil {
		return err
	}
	defer group.Close()
	var since time.Time // when it could not join first; zero after a session
	for ctx.Err() == nil {
		// Consume returns at each rebalance.
		err := group.Consume(ctx, src.manifest.Spec.Topics, handler)
		if err == nil {
			since = time.Time{}
			consumed()
			continue
		}
		if since.IsZero() {
			since = s.cfg.Now()
		}
		if ctx.Err() != nil || !kafka.WithoutCoordinator(err) || s.cfg.Now().Sub(since) >= rebalanceWithin {
			return err
		}
		src.outage.Note(ctx, err)
		s.cfg.Sleep(ctx, joinsAgain)
	}
	return nil
}

// groupClient is the client of one member of a group. A member whose connection to its coordinator
// has ended asks for the coordinator again, because another broker may be it now. Sarama alone
// connects to the same broker again, which may be silent, and loses its partitions.
type groupClient struct {
	sarama.Client
	last atomic.Pointer[sarama.Broker]
}

// Coordinator implements sarama.Client.
func (c *groupClient) Coordinator(group string) (*sarama.Broker, error) {
	if last := c.last.Load(); last != nil {
		if connected, _ := last.Connected(); !connected {
			if err := c.RefreshCoordinator(group); err != nil {
				return nil, err
			}
		}
	}
	coordinator, err := c.Client.Coordinator(group)
	if err == nil {
		c.last.Store(coordinator)
	}
	return coordinator, err
}

// watchEvery is how often a source that consumes says so to its outage.
const watchEvery = 5 * time.Second

// watch notes that the source consumes, also while there are no records, until ctx ends.
func (src *source) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if int(src.members.Load()) == src.consumers() {
			src.outage.Note(ctx, nil)
		}
	}
}

// run sends the pings. A ping is left out if the one before it is still being sent.
func (p *ping) run(ctx context.Context) {
	schedule, _ := p.manifest.schedule() // it can be parsed, because validate has checked it
	for {
		next := schedule.Next(time.Now())
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		m, err := p.message(ctx, next)
		if err == nil {
			_, err = p.poster.post(ctx, m)
		}
		if !errors.Is(err, errAbandoned) {
			p.outage.Note(ctx, err)
		}
	}
}

func (p *ping) message(ctx context.Context, at time.Time) (message, error) {
	spec := p.manifest.Spec
	e := cloudevents.New()
	source := fmt.Sprintf("/apis/v1/namespaces/%s/pingsources/%s", p.manifest.Metadata.namespace(), p.manifest.Metadata.Name)
	e.SetID(source + "@" + at.UTC().Format(time.RFC3339))
	e.SetType(event.TypePing)
	e.SetSource(source)
	e.SetTime(at)
	e.DataEncoded = []byte(spec.Data)
	if len(spec.DataBase64) > 0 {
		e.DataEncoded = spec.DataBase64
	}
	if spec.ContentType != "" {
		e.SetDataContentType(spec.ContentType)
	}
	return fromEvent(ctx, e)
}
