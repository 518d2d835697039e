package flow

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/jackc/pgx/v5"

	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
	"pgw/tests/processes"
)

var idr = money.IDR

func connect(s *system) (*pgx.Conn, error) {
	return postgres.Connect(context.Background(), s.conn.Config().ConnString(), nil)
}

// publish signs a request and puts it on its topic.
func (s *system) publish(r payment.Payment) {
	s.t.Helper()
	e, err := event.Requested("/test", r, "", time.Now())
	if err == nil {
		err = s.keys.Sign(&e)
	}
	if err == nil {
		err = s.Producer().Publish(s.t.Context(), s.kafka.RequestTopic, r.Key, e)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// postEvent delivers an event by HTTP, as KafkaSource does, and returns the status.
func (s *system) postEvent(url string, e cloudevents.Event) int {
	s.t.Helper()
	req, err := cehttp.NewHTTPRequestFromEvent(s.t.Context(), url, e)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// reader reads a topic from its beginning, independent of the system's consumer groups.
type reader struct {
	t        testing.TB
	messages chan *sarama.ConsumerMessage
	close    func()
}

func (s *system) consume(topic string) *reader {
	s.t.Helper()
	consumer, err := sarama.NewConsumer(s.kafka.Brokers, s.kafka.Client(s.t))
	if err != nil {
		s.t.Fatal(err)
	}
	partitions, err := consumer.Partitions(topic)
	if err != nil {
		s.t.Fatal(err)
	}
	r := &reader{t: s.t, messages: make(chan *sarama.ConsumerMessage, 10_000)}
	var open []sarama.PartitionConsumer
	for _, p := range partitions {
		pc, err := consumer.ConsumePartition(topic, p, sarama.OffsetOldest)
		if err != nil {
			s.t.Fatal(err)
		}
		open = append(open, pc)
		go func() {
			for m := range pc.Messages() {
				r.messages <- m
			}
		}()
	}
	closed := false
	r.close = func() {
		if closed {
			return
		}
		closed = true
		for _, pc := range open {
			pc.Close()
		}
		consumer.Close()
	}
	s.t.Cleanup(r.close)
	return r
}

func (r *reader) next() *sarama.ConsumerMessage {
	r.t.Helper()
	select {
	case m := <-r.messages:
		return m
	case <-time.After(patience):
		r.t.Fatalf("no record within %s", patience)
		return nil
	}
}

// await reads until the result of a key.
func (r *reader) await(key string) event.PaymentResult {
	r.t.Helper()
	for {
		m := r.next()
		if string(m.Key) != key {
			continue
		}
		e, err := kafka.ReadRecord(context.Background(), m, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		result, err := event.Decode[event.PaymentResult](e)
		if err != nil {
			r.t.Fatal(err)
		}
		return result
	}
}

// records returns all records that a topic has now.
func (s *system) records(topic string) (all []*sarama.ConsumerMessage) {
	s.t.Helper()
	err := kafka.Read(context.Background(), s.kafka.Config, "test", kafka.Range{Topic: topic}, func(m *sarama.ConsumerMessage) error {
		all = append(all, m)
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// drain waits until every event that was published so far has been delivered.
func (s *system) drain() {
	s.t.Helper()
	s.eventually("all is delivered", func() error { return processes.Delivered(s.kafka.Config, s.kafka.Prefix) })
}

func header(m *sarama.ConsumerMessage, name string) string {
	for _, h := range m.Headers {
		if string(h.Key) == name {
			return string(h.Value)
		}
	}
	return ""
}
