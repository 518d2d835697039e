package kafka_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/kafka"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

func producer(t *testing.T, cfg kafka.Config) *kafka.Producer {
	t.Helper()
	p, err := kafka.NewProducer(cfg, "test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func made(t *testing.T, key string) cloudevents.Event {
	t.Helper()
	e, err := event.New(event.TypeAccountFunded, "id-"+key, "/s", key, event.AccountFunded{AccountID: key, AmountIDR: 5}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// An event comes out unchanged, in the partition that Kafka's Java client would choose for its key.
func TestPublishAndRead(t *testing.T) {
	at := embeddedtest.Kafka(t, kafka.Topic{Name: "t", Partitions: 8})
	topic := at.Prefix + "t"
	p := producer(t, at.Config)
	defer p.Close(context.Background())
	if err := p.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	consumer, err := sarama.NewConsumer(at.Brokers, at.Client(t))
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	// The partitions out of 8 by Java's DefaultPartitioner (murmur2, sign bit off).
	for key, partition := range map[string]int32{"test-001": murmur2("test-001") % 8, "ACC001": murmur2("ACC001") % 8} {
		want := made(t, key)
		if err := p.Publish(t.Context(), topic, key, want); err != nil {
			t.Fatal(err)
		}
		pc, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
		if err != nil {
			t.Fatal(err)
		}
		m := <-pc.Messages()
		pc.Close()
		got, err := kafka.ReadRecord(t.Context(), m, nil)
		if err != nil || got.ID() != want.ID() || got.Type() != want.Type() || string(got.Data()) != string(want.Data()) ||
			got.Extensions()[event.ExtPartitionKey] != key || string(m.Key) != key {
			t.Errorf("%s: %v, %v", key, got, err)
		}
	}
}

// murmur2 is the hash of Kafka's Java client, written from its definition: seed 0x9747b28c, m
// 0x5bd1e995, r 24.
func murmur2(key string) int32 {
	const m uint32 = 0x5bd1e995
	data := []byte(key)
	h := 0x9747b28c ^ uint32(len(data))
	for len(data) >= 4 {
		k := uint32(data[0]) | uint32(data[1])<<8 | uint32(data[2])<<16 | uint32(data[3])<<24
		k *= m
		k ^= k >> 24
		k *= m
		h = h*m ^ k
		data = data[4:]
	}
	for i := len(data) - 1; i >= 0; i-- {
		h ^= uint32(data[i]) << (8 * i)
	}
	if len(data) > 0 {
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return int32(h & 0x7fffffff)
}

func TestAClosedProducerRefuses(t *testing.T) {
	at := embeddedtest.Kafka(t, kafka.Topic{Name: "t", Partitions: 1})
	for _, connected := range []bool{true, false} {
		p := producer(t, at.Config)
		if connected {
			if err := p.Publish(t.Context(), at.Prefix+"t", "k", made(t, "k")); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := p.Publish(t.Context(), at.Prefix+"t", "k", made(t, "k")); !errors.Is(err, kafka.ErrClosed) {
			t.Errorf("connected %t: %v", connected, err)
		}
	}
}

func TestABrokerThatIsAwayIsAnError(t *testing.T) {
	p := producer(t, kafka.Config{Brokers: []string{"127.0.0.1:1"}})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := p.Publish(ctx, "t", "k", made(t, "k")); err == nil {
		t.Error("published without a broker")
	}
	if err := p.Connect(ctx); err == nil {
		t.Error("connected without a broker")
	}
}

func TestEnsureTopicsLeavesWhatIsThere(t *testing.T) {
	at := embeddedtest.Kafka(t, kafka.Topic{Name: "there", Partitions: 3})
	topics := []kafka.Topic{{Name: at.Prefix + "there", Partitions: 5}, {Name: at.Prefix + "missing", Partitions: 2, Config: map[string]string{"retention.ms": "1000"}}}
	for range 2 {
		if err := kafka.EnsureTopics(at.Config, topics); err != nil {
			t.Fatal(err)
		}
	}
	client, err := sarama.NewClient(at.Brokers, at.Client(t))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for topic, want := range map[string]int{"there": 3, "missing": 2} {
		if got, err := client.Partitions(at.Prefix + topic); err != nil || len(got) != want {
			t.Errorf("%s has %d partitions, %v", topic, len(got), err)
		}
	}
}

func TestTopicsTellWhatTheySurvive(t *testing.T) {
	at := embeddedtest.Kafka(t)
	topics := []kafka.Topic{
		{Name: at.Prefix + "b", Partitions: 2, Replication: 1, Config: map[string]string{kafka.MinInSync: "1"}},
		{Name: at.Prefix + "a", Partitions: 1, Replication: 1, Config: map[string]string{kafka.MinInSync: "2"}},
	}
	if err := kafka.EnsureTopics(at.Config, topics); err != nil {
		t.Fatal(err)
	}
	got, err := kafka.ReadDurability(at.Config, []string{topics[0].Name, topics[1].Name})
	want := []kafka.Durability{{topics[0].Name, 1, 1}, {topics[1].Name, 1, 2}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := kafka.ReadDurability(at.Config, []string{at.Prefix + "missing"}); !errors.Is(err, kafka.ErrNoTopic) {
		t.Errorf("a topic that does not exist: %v", err)
	}
	topics[0].Name, topics[0].Replication = at.Prefix+"c", 9
	if err := kafka.EnsureTopics(at.Config, topics); err == nil {
		t.Error("a topic has more replicas than there are brokers")
	}
}
