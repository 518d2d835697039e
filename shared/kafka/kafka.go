// Package kafka publishes CloudEvents, and has the client settings for producers and consumers.
package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/cenkalti/backoff/v5"
	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/rcrowley/go-metrics"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"pgw/shared/event"
	"pgw/shared/trace"
)

// Config has Kafka's address, the credentials for it, and the names of the flow's topics.
type Config struct {
	Brokers         []string `envconfig:"KAFKA_BROKERS" required:"true" desc:"host:port of brokers, separated by commas"`
	RequestTopic    string   `envconfig:"KAFKA_REQ_TOPIC" default:"payments.request"`
	ResultTopic     string   `envconfig:"KAFKA_RES_TOPIC" default:"payments.result"`
	DeadLetterTopic string   `envconfig:"KAFKA_DEADLETTER_TOPIC" default:"payments.deadletter"`
	ParkedTopic     string   `envconfig:"KAFKA_PARKED_TOPIC" default:"payments.parked"`
	AccountsTopic   string   `envconfig:"KAFKA_ACCOUNTS_TOPIC" default:"ledger.accounts"`
	Security

	// Dial connects to a broker in this process; nil uses the network.
	Dial func() (net.Conn, error) `ignored:"true"`
}

// Renamed maps the topics' names in the manifests to the names in this configuration.
func (c Config) Renamed() map[string]string {
	return map[string]string{
		"payments.request": c.RequestTopic, "payments.result": c.ResultTopic, "payments.deadletter": c.DeadLetterTopic,
		"payments.parked": c.ParkedTopic, "ledger.accounts": c.AccountsTopic,
	}
}

// MaxMessageBytes is the largest message: its key, value and headers, and what Kafka adds to them.
const MaxMessageBytes = 1 << 20

// The limits of one publish.
const (
	ackTimeout = 3 * time.Second // for a broker to acknowledge a message or refuse it
	netTimeout = 5 * time.Second // a broker that is silent for longer is treated as gone

	// A batch is retried for 12.5 s in all, longer than the election of a new leader. The delays
	// are 50 ms, 100 ms and so on, up to a second.
	publishRetries  = 16
	publishDelay    = 50 * time.Millisecond
	publishDelayMax = time.Second

	// The client asks for a partition's leader for 2.2 s. This is shorter, because the partition
	// waits meanwhile.
	metadataRetries  = 6
	metadataDelay    = 100 * time.Millisecond
	metadataDelayMax = 500 * time.Millisecond
	metadataTimeout  = 5 * time.Second

	connectWithin = 3 * time.Second // the longest wait of one publish for a connection
	maxHandOvers  = 3               // the most connections that one message is given to, when the earlier ones never wrote it
	maxLinks      = 16              // the most connections at once: one is in use, the others are ending

	maxInFlight = 8192    // places for messages that are not settled yet
	placeBytes  = 1 << 14 // the bytes of one place: at most 128 MiB of messages wait in memory
)

var (
	// ErrNotSent means that nothing of the message has reached a broker, and that nothing will.
	// With any other error the message may be in the topic, or may get there later.
	ErrNotSent = errors.New("nothing was sent")
	// ErrClosed means that the producer has been closed. It comes with ErrNotSent.
	ErrClosed = errors.New("producer is closed")
	// ErrCannotResume means that the position at which a reader should continue is not in the
	// topic.
	ErrCannotResume = errors.New("cannot resume")
	// ErrTooLarge means that a message is larger than the producer or the topic allows. If it is
	// the producer's limit, it comes with ErrNotSent.
	ErrTooLarge = errors.New("the message is too large")
)

// Settings returns the client settings that every part of pgw uses. An error names the variable
// that is wrong.
func (c Config) Settings(clientID string) (*sarama.Config, error) {
	settings := baseSettings(clientID)
	settings.Net.Proxy.Enable = true
	if c.Dial != nil {
		settings.Net.Proxy.Dialer = dialer(c.Dial)
	} else {
		settings.Net.Proxy.Dialer = &silentAvoider{to: &net.Dialer{Timeout: settings.Net.DialTimeout}}
	}
	if err := c.secure(settings); err != nil {
		return nil, err
	}
	return settings, nil
}

// dialer adapts Config.Dial to sarama. It ignores the address, because there is only one broker.
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

	// A result is published only once: the producer is idempotent, and all replicas in sync
	// acknowledge.
	c.Producer.Idempotent = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Net.MaxOpenRequests = 1
	c.Producer.Timeout = ackTimeout
	c.Producer.Retry.Max = publishRetries
	c.Producer.Retry.BackoffFunc = func(retries, _ int) time.Duration { return delay(retries, publishDelay, publishDelayMax) }
	c.Producer.MaxMessageBytes = MaxMessageBytes
	// The same partitioner as in Kafka's Java client, so that all producers of a topic agree.
	c.Producer.Partitioner = sarama.NewMurmur2Partitioner
	c.Producer.Return.Successes = true
	// No linger: a batch forms while the batch before it is sent.
	c.Producer.Flush.Frequency = 0

	// A consumer gets an event as soon as the broker has it.
	c.Consumer.Fetch.Min = 1
	c.Consumer.MaxWaitTime = 250 * time.Millisecond
	return c
}

// delay returns the wait before a retry. The first wait is first, and each later one is twice as
// long, up to most.
func delay(retries int, first, most time.Duration) time.Duration {
	return min(first<<min(max(retries-1, 0), 16), most)
}

// Producer publishes CloudEvents in binary mode. It connects on first use. It has its own client:
// in a client that is shared with a consumer, acknowledgements would wait behind long polls. If a
// connection fails, a new one replaces it.
type Producer struct {
	brokers  []string
	settings *sarama.Config
	inFlight *semaphore.Weighted // places of messages that are not settled
	links    *semaphore.Weighted // links that have not ended

	connecting singleflight.Group // all callers that need a link wait for the same attempt
	closing    chan struct{}      // closed by Close
	ending     sync.WaitGroup     // links that are ending

	mu     sync.RWMutex
	link   *link // nil: not connected
	closed bool
}

// NewProducer makes a producer. clientID is the function's name.
func NewProducer(cfg Config, clientID string) (*Producer, error) {
	settings, err := cfg.Settings(clientID)
	if err != nil {
		return nil, err
	}
	// A producer has no long polls, so a broker that does not answer is treated as gone sooner.
	settings.Net.ReadTimeout, settings.Net.WriteTimeout = netTimeout, netTimeout
	settings.Metadata.Retry.Max = metadataRetries
	settings.Metadata.Retry.BackoffFunc = func(retries, _ int) time.Duration {
		return delay(retries+1, metadataDelay, metadataDelayMax)
	}
	settings.Metadata.Timeout = metadataTimeout
	settings.Producer.Transaction.Retry.Max = metadataRetries // for requests for a producer id
	return &Producer{
		brokers: cfg.Brokers, settings: settings, inFlight: semaphore.NewWeighted(maxInFlight),
		links: semaphore.NewWeighted(maxLinks), closing: make(chan struct{}),
	}, nil
}

// Connect connects, unless the producer is connected already. It tries until ctx ends.
func (p *Producer) Connect(ctx context.Context) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		_, err := p.connected(ctx)
		if errors.Is(err, ErrClosed) {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(backoff.NewExponentialBackOff()), backoff.WithMaxElapsedTime(0))
	return err
}

func (p *Producer) current() (*link, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return nil, ErrClosed
	}
	return p.link, nil
}

// connected waits for a link until ctx ends or connectWithin has passed. The attempt continues for
// later callers.
func (p *Producer) connected(ctx context.Context) (*link, error) {
	if l, err := p.current(); l != nil || err != nil {
		return l, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, connectWithin, fmt.Errorf("no connection to Kafka at %v within %s", p.brokers, connectWithin))
	defer cancel()
	select {
	case got := <-p.connecting.DoChan("", p.connect):
		l, _ := got.Val.(*link)
		return l, got.Err
	case <-p.closing:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// connect makes one attempt. Two attempts never run at the same time.
func (p *Producer) connect() (any, error) {
	if l, err := p.current(); l != nil || err != nil {
		return l, err
	}
	if !p.links.TryAcquire(1) {
		return nil, fmt.Errorf("connect to Kafka at %v: %d earlier connections have not ended yet", p.brokers, maxLinks)
	}
	l, err := openLink(p.brokers, p.settings)
	if err != nil {
		p.links.Release(1)
		return nil, fmt.Errorf("connect to Kafka at %v: %w", p.brokers, err)
	}
	l.end = func() {
		p.ending.Go(func() {
			defer p.links.Release(1)
			l.close()
		})
	}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.link = l
		l.forward(p.settle)
	}
	p.mu.Unlock()
	if closed {
		l.close()
		p.links.Release(1)
		return nil, ErrClosed
	}
	return l, nil
}

// settle ends a message that the client has finished.
func (p *Producer) settle(m *message, err error) {
	if broken(err) {
		p.retire(m.link)
	}
	switch {
	case err != nil && m.unsent():
		err = fmt.Errorf("%w: %w", ErrNotSent, err)
	case errors.Is(err, sarama.ErrMessageSizeTooLarge):
		err = fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	m.done <- err
	m.link.leave()
	p.inFlight.Release(m.places)
}

// retire lets a link end when all its messages are settled. The next message makes a new
// connection.
func (p *Producer) retire(l *link) {
	p.mu.Lock()
	if p.link == l {
		p.link = nil
	}
	p.mu.Unlock()
	l.retire()
}

// Publish returns nil when all replicas in sync have the event. With ErrNotSent the event is not in
// the topic and will not be. With any other error, also when ctx ends after the client has begun to
// write, the event may be there or get there later. key chooses the partition.
func (p *Producer) Publish(ctx context.Context, topic, key string, e cloudevents.Event) (err error) {
	if trace.On() {
		traced, span := trace.Start(ctx, "publish "+topic, trace.Producer)
		defer func() { trace.End(span, err) }()
		ctx = traced
		event.Trace(ctx, &e)
	}
	m := &sarama.ProducerMessage{Topic: topic, Key: sarama.StringEncoder(key)}
	if err := kafka_sarama.WriteProducerMessage(ctx, binding.ToMessage(&e), m); err != nil {
		return fmt.Errorf("encode %s for %s: %w: %w", e.Type(), topic, ErrNotSent, err)
	}
	return p.Send(ctx, m)
}

// Send is Publish for a message that is already encoded. It does not change the message.
func (p *Producer) Send(ctx context.Context, m *sarama.ProducerMessage) error {
	var value []byte
	if m.Value != nil {
		var err error
		if value, err = m.Value.Encode(); err != nil {
			return fmt.Errorf("encode a message for %s: %w: %w", m.Topic, ErrNotSent, err)
		}
	}
	size := m.ByteSize(2)
	if size > MaxMessageBytes {
		return fmt.Errorf("publish to %s: %w: %w: %d bytes, and at most %d are allowed", m.Topic, ErrNotSent, ErrTooLarge, size, MaxMessageBytes)
	}
	for n := 1; ; n++ {
		handed, err := p.send(ctx, m, value, 1+int64(size/placeBytes))
		if err == nil {
			return nil
		}
		// The link broke before it wrote the message, so another link may succeed.
		if handed && n < maxHandOvers && ctx.Err() == nil && broken(err) && errors.Is(err, ErrNotSent) {
			continue
		}
		return fmt.Errorf("publish to %s: %w", m.Topic, err)
	}
}

// send gives a message to the client once, and waits for the result. handed reports whether the
// client got the message.
func (p *Producer) send(ctx context.Context, m *sarama.ProducerMessage, value []byte, places int64) (handed bool, err error) {
	if _, err := p.current(); err != nil {
		return false, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	if err := p.inFlight.Acquire(ctx, places); err != nil {
		return false, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	l, err := p.enter(ctx)
	if err != nil {
		p.inFlight.Release(places)
		return false, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	own := newMessage(l, places, value)
	select {
	case l.producer.Input() <- own.wrap(m):
	case <-ctx.Done():
		l.leave()
		p.inFlight.Release(places)
		return false, fmt.Errorf("%w: %w", ErrNotSent, ctx.Err())
	}
	select {
	case err := <-own.done:
		return true, err
	case <-ctx.Done():
	}
	if own.withdraw() {
		return true, fmt.Errorf("%w: %w", ErrNotSent, ctx.Err()) // the client drops it when its turn comes
	}
	select {
	case err := <-own.done:
		return true, err
	default:
		return true, fmt.Errorf("it is unknown whether it was sent: %w", ctx.Err())
	}
}

// enter announces a message to a link. The link then does not end before the message is settled.
func (p *Producer) enter(ctx context.Context) (*link, error) {
	for range maxHandOvers {
		l, err := p.connected(ctx)
		if err != nil {
			return nil, err
		}
		if l.enter() {
			return l, nil
		}
	}
	return nil, fmt.Errorf("connect to Kafka at %v: each of %d connections ended immediately", p.brokers, maxHandOvers)
}

// Close waits for messages in flight until ctx ends. A closed producer refuses to publish. Messages
// that are in flight when ctx ends continue to their own end, and so do their connections.
func (p *Producer) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.closing)
	}
	p.mu.Unlock()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		if err := p.inFlight.Acquire(context.Background(), maxInFlight); err != nil {
			return // impossible: this context never ends
		}
		p.mu.RLock()
		l := p.link
		p.mu.RUnlock()
		if l != nil {
			p.retire(l)
		}
		p.ending.Wait()
		p.inFlight.Release(maxInFlight) // callers that wait for a place get ErrClosed
	}()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close producer: %w", ctx.Err())
	}
}

// Topic is a topic for EnsureTopics.
type Topic struct {
	Name        string
	Partitions  int32
	Replication int16             // how many brokers keep each record; 0 means the cluster's default
	Config      map[string]string // such as retention.ms
}

// EnsureTopics makes the topics that are missing. It does not change the others.
func EnsureTopics(cfg Config, topics []Topic) error {
	return administer(cfg, func(admin sarama.ClusterAdmin) error {
		for _, t := range topics {
			config := make(map[string]*string, len(t.Config))
			for name, value := range t.Config {
				config[name] = &value
			}
			detail := &sarama.TopicDetail{NumPartitions: t.Partitions, ReplicationFactor: cmp.Or(t.Replication, -1), ConfigEntries: config}
			if err := admin.CreateTopic(t.Name, detail, false); err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists) {
				return fmt.Errorf("make topic %s with %d replicas: %w", t.Name, t.Replication, err)
			}
		}
		return nil
	})
}

// MinInSync is the setting of a topic that says how many replicas must have a record before it is
// acknowledged.
const MinInSync = "min.insync.replicas"

// Durability is what a topic survives.
type Durability struct {
	Topic       string
	Replication int16 // the fewest replicas of a partition
	MinInSync   int   // the replicas that have a record when it is acknowledged; 0 if the broker does not tell
}

// ErrNoTopic means that a broker does not know a topic. One that was just made may take a while to get
// to every broker.
var ErrNoTopic = errors.New("there is no such topic")

// ReadDurability reads what topics survive, in the order of the names. Errors wrap ErrNoTopic.
func ReadDurability(cfg Config, names []string) (all []Durability, err error) {
	err = administer(cfg, func(admin sarama.ClusterAdmin) error {
		topics, err := admin.DescribeTopics(names)
		if err != nil {
			return err
		}
		var asked []*sarama.ConfigResource
		for _, t := range topics {
			if t.Err != sarama.ErrNoError {
				return topicError(t.Name, t.Err)
			}
			d := Durability{Topic: t.Name}
			for i, p := range t.Partitions {
				if n := int16(len(p.Replicas)); i == 0 || n < d.Replication {
					d.Replication = n
				}
			}
			all = append(all, d)
			asked = append(asked, &sarama.ConfigResource{Type: sarama.TopicResource, Name: t.Name, ConfigNames: []string{MinInSync}})
		}
		told, err := admin.DescribeConfigs(asked, sarama.DescribeConfigsOptions{})
		if err != nil {
			return err
		}
		for _, t := range told {
			if t.ErrorCode != sarama.ErrNoError {
				return topicError(t.Name, t.ErrorCode)
			}
			for _, c := range t.Configs {
				if i := slices.IndexFunc(all, func(d Durability) bool { return d.Topic == t.Name }); i >= 0 && c.Name == MinInSync {
					all[i].MinInSync, _ = strconv.Atoi(c.Value)
				}
			}
		}
		slices.SortFunc(all, func(a, b Durability) int { return slices.Index(names, a.Topic) - slices.Index(names, b.Topic) })
		return nil
	})
	return all, err
}

func topicError(topic string, err sarama.KError) error {
	if err == sarama.ErrUnknownTopicOrPartition {
		return fmt.Errorf("topic %s: %w", topic, ErrNoTopic)
	}
	return fmt.Errorf("topic %s: %w", topic, err)
}

// administer runs changes of topics on a connection of its own.
func administer(cfg Config, run func(sarama.ClusterAdmin) error) error {
	settings, err := cfg.Settings("admin")
	if err != nil {
		return err
	}
	admin, err := sarama.NewClusterAdmin(cfg.Brokers, settings)
	if err != nil {
		return fmt.Errorf("connect to Kafka at %v: %w", cfg.Brokers, err)
	}
	defer admin.Close()
	return run(admin)
}
