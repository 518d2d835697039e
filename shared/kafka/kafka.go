// Package kafka publishes CloudEvents, and holds the client settings that producing and consuming share.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/cenkalti/backoff/v5"
	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/rcrowley/go-metrics"
	"golang.org/x/sync/semaphore"

	"pgw/shared/event"
	"pgw/shared/trace"
)

// Config says where Kafka is, how to get in, and what the flow's topics are called.
type Config struct {
	Brokers         []string `envconfig:"KAFKA_BROKERS" required:"true" desc:"host:port of brokers, separated by commas"`
	RequestTopic    string   `envconfig:"KAFKA_REQ_TOPIC" default:"payments.request"`
	ResultTopic     string   `envconfig:"KAFKA_RES_TOPIC" default:"payments.result"`
	DeadLetterTopic string   `envconfig:"KAFKA_DEADLETTER_TOPIC" default:"payments.deadletter"`
	ParkedTopic     string   `envconfig:"KAFKA_PARKED_TOPIC" default:"payments.parked"`
	AccountsTopic   string   `envconfig:"KAFKA_ACCOUNTS_TOPIC" default:"ledger.accounts"`
	Security

	// Dial reaches the one broker there is, where that is in this process; nil goes over the network.
	Dial func() (net.Conn, error) `ignored:"true"`
}

// Renamed maps the topics' names in the manifests to those that this configuration gives them.
func (c Config) Renamed() map[string]string {
	return map[string]string{
		"payments.request": c.RequestTopic, "payments.result": c.ResultTopic, "payments.deadletter": c.DeadLetterTopic,
		"payments.parked": c.ParkedTopic, "ledger.accounts": c.AccountsTopic,
	}
}

// The bounds of one publish: how long a broker may take to acknowledge, and how often it is asked.
const (
	ackTimeout      = 3 * time.Second
	publishRetries  = 5
	maxInFlight     = 8192
	maxMessageBytes = 1 << 20
)

// ErrClosed means that the producer has been closed.
var ErrClosed = errors.New("producer is closed")

// ErrNotSent means that nothing of a message was written to a broker: it certainly does not arrive.
var ErrNotSent = errors.New("nothing was sent")

// Settings are the client settings that every part of pgw uses. An error names the variable that is wrong.
func (c Config) Settings(clientID string) (*sarama.Config, error) {
	settings := baseSettings(clientID)
	if c.Dial != nil {
		settings.Net.Proxy.Enable, settings.Net.Proxy.Dialer = true, dialer(c.Dial)
	}
	if err := c.secure(settings); err != nil {
		return nil, err
	}
	return settings, nil
}

// dialer is a Config's Dial as sarama wants it: whatever the address, it is the one broker's.
type dialer func() (net.Conn, error)

func (d dialer) Dial(_, _ string) (net.Conn, error) { return d() }

// Sarama samples every request for histograms that nothing here reads.
func init() { metrics.UseNilMetrics = true }

func baseSettings(clientID string) *sarama.Config {
	c := sarama.NewConfig()
	c.ClientID = "pgw-" + clientID
	c.Version = sarama.V3_6_0_0
	c.Net.DialTimeout = 3 * time.Second
	c.Net.ReadTimeout = 10 * time.Second
	c.Net.WriteTimeout = 10 * time.Second
	c.Metadata.Retry.Max = 3
	c.Metadata.Retry.Backoff = 100 * time.Millisecond
	c.Metadata.AllowAutoTopicCreation = false

	// A result is published only once: idempotent, and acknowledged by all replicas in sync.
	c.Producer.Idempotent = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Net.MaxOpenRequests = 1
	c.Producer.Timeout = ackTimeout
	c.Producer.Retry.Max = publishRetries
	c.Producer.Retry.Backoff = 50 * time.Millisecond
	c.Producer.MaxMessageBytes = maxMessageBytes
	// Where Java's producer would put the key, so that all producers of a topic agree.
	c.Producer.Partitioner = sarama.NewMurmur2Partitioner
	c.Producer.Return.Successes = true
	// No linger: a batch forms while the previous one is on its way.
	c.Producer.Flush.Frequency = 0

	// An event is wanted as soon as it is there.
	c.Consumer.Fetch.Min = 1
	c.Consumer.MaxWaitTime = 250 * time.Millisecond
	return c
}

// Producer publishes CloudEvents in binary mode. It connects when first used, in a client of its own: a
// client shared with a consumer would have acknowledgements wait behind long polls.
type Producer struct {
	brokers  []string
	settings *sarama.Config
	inFlight *semaphore.Weighted

	connecting sync.Mutex // held while connecting; never together with mu
	mu         sync.RWMutex
	producer   sarama.AsyncProducer
	closed     bool
}

// NewProducer makes a producer; clientID is the function's name.
func NewProducer(cfg Config, clientID string) (*Producer, error) {
	settings, err := cfg.Settings(clientID)
	if err != nil {
		return nil, err
	}
	return &Producer{brokers: cfg.Brokers, settings: settings, inFlight: semaphore.NewWeighted(maxInFlight)}, nil
}

// Connect connects unless that is done, trying until ctx ends.
func (p *Producer) Connect(ctx context.Context) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		_, err := p.connected()
		if errors.Is(err, ErrClosed) {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(backoff.NewExponentialBackOff()), backoff.WithMaxElapsedTime(0))
	return err
}

func (p *Producer) current() (sarama.AsyncProducer, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return nil, ErrClosed
	}
	return p.producer, nil
}

func (p *Producer) connected() (sarama.AsyncProducer, error) {
	if producer, err := p.current(); producer != nil || err != nil {
		return producer, err
	}
	p.connecting.Lock()
	defer p.connecting.Unlock()
	if producer, err := p.current(); producer != nil || err != nil {
		return producer, err
	}
	producer, err := sarama.NewAsyncProducer(p.brokers, p.settings)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka at %v: %w", p.brokers, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		producer.Close()
		return nil, ErrClosed
	}
	p.producer = producer
	go func() {
		for m := range producer.Successes() {
			p.settle(m, nil)
		}
	}()
	go func() {
		for failed := range producer.Errors() {
			p.settle(failed.Msg, failed.Err)
		}
	}()
	return producer, nil
}

// settle tells the sender of a message what became of it.
func (p *Producer) settle(m *sarama.ProducerMessage, err error) {
	m.Metadata.(chan error) <- err
	p.inFlight.Release(1)
}

// Publish returns nil once all replicas in sync have the event. When ctx ends first, the event may still be
// on its way. key chooses the partition.
func (p *Producer) Publish(ctx context.Context, topic, key string, e cloudevents.Event) (err error) {
	if trace.On() {
		traced, span := trace.Start(ctx, "publish "+topic, trace.Producer)
		defer func() { trace.End(span, err) }()
		ctx = traced
		event.Trace(ctx, &e)
	}
	m := &sarama.ProducerMessage{Topic: topic, Key: sarama.StringEncoder(key)}
	if err := kafka_sarama.WriteProducerMessage(ctx, binding.ToMessage(&e), m); err != nil {
		return fmt.Errorf("encode %s for %s: %w", e.Type(), topic, err)
	}
	return p.Send(ctx, m)
}

// Send is Publish for a message that is already encoded. It takes the message's Metadata for itself.
func (p *Producer) Send(ctx context.Context, m *sarama.ProducerMessage) error {
	if err := p.inFlight.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("publish to %s: %w", m.Topic, err)
	}
	done := make(chan error, 1)
	m.Metadata = done
	if producer, err := p.current(); producer == nil || err != nil {
		go p.connectAndSend(m) // connecting knows no context
	} else {
		select {
		case producer.Input() <- m:
		case <-ctx.Done():
			p.inFlight.Release(1)
			return fmt.Errorf("publish to %s: %w", m.Topic, ctx.Err())
		}
	}
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("publish to %s: %w", m.Topic, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("publish to %s: %w", m.Topic, ctx.Err())
	}
}

func (p *Producer) connectAndSend(m *sarama.ProducerMessage) {
	producer, err := p.connected()
	if err != nil {
		p.settle(m, err)
		return
	}
	producer.Input() <- m
}

// Close waits for what is in flight, until ctx ends. A closed producer refuses to publish.
func (p *Producer) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	producer := p.producer
	p.mu.Unlock()
	if err := p.inFlight.Acquire(ctx, maxInFlight); err != nil {
		return fmt.Errorf("close producer: %w", err)
	}
	defer p.inFlight.Release(maxInFlight) // who waits for a place hears ErrClosed
	if producer == nil {
		return nil
	}
	return producer.Close()
}

// ReadRecord gives a consumed record as the event that it holds: in binary or structured mode, or, for a
// record that is no CloudEvent, the event that wrap makes of it.
func ReadRecord(ctx context.Context, m *sarama.ConsumerMessage, wrap func(*sarama.ConsumerMessage) cloudevents.Event) (cloudevents.Event, error) {
	message := kafka_sarama.NewMessageFromConsumerMessage(m)
	if message.ReadEncoding() == binding.EncodingUnknown {
		return wrap(m), nil
	}
	e, err := binding.ToEvent(ctx, message)
	if err != nil {
		return cloudevents.Event{}, fmt.Errorf("%w: record %s/%d/%d: %w", event.ErrMalformed, m.Topic, m.Partition, m.Offset, err)
	}
	return *e, nil
}

// Topic is one that EnsureTopics makes.
type Topic struct {
	Name       string
	Partitions int32
	Config     map[string]string // such as retention.ms
}

// EnsureTopics makes the topics that are missing, with as many replicas as the cluster makes by default.
func EnsureTopics(cfg Config, topics []Topic) error {
	settings, err := cfg.Settings("admin")
	if err != nil {
		return err
	}
	admin, err := sarama.NewClusterAdmin(cfg.Brokers, settings)
	if err != nil {
		return fmt.Errorf("connect to Kafka at %v: %w", cfg.Brokers, err)
	}
	defer admin.Close()
	for _, t := range topics {
		config := make(map[string]*string, len(t.Config))
		for name, value := range t.Config {
			config[name] = &value
		}
		err := admin.CreateTopic(t.Name, &sarama.TopicDetail{NumPartitions: t.Partitions, ReplicationFactor: -1, ConfigEntries: config}, false)
		if err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists) {
			return fmt.Errorf("make topic %s: %w", t.Name, err)
		}
	}
	return nil
}
