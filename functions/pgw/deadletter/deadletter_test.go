package deadletter

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/kafka"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// fakeLedger has no payments, and stores the actions on letters. Every call to it must have a time
// limit.
type fakeLedger struct {
	t    *testing.T
	done []*dbv1.DeadLetterAction
}

func (l *fakeLedger) Invoke(ctx context.Context, method string, asked, answer any, _ ...grpc.CallOption) error {
	if _, bounded := ctx.Deadline(); !bounded {
		l.t.Errorf("%s has no time limit", method)
	}
	switch asked := asked.(type) {
	case *dbv1.ListDeadLetterActionsRequest:
		page := &dbv1.ListDeadLetterActionsResponse{}
		for _, a := range l.done {
			if a.Topic == asked.Topic {
				page.Actions = append(page.Actions, a)
			}
		}
		proto.Merge(answer.(proto.Message), page)
	case *dbv1.RecordDeadLetterActionRequest:
		a := asked.Action
		a.ActedAt = timestamppb.Now()
		l.done = append(l.done, a)
	case *dbv1.FindRequest:
		return status.Error(codes.NotFound, "no such payment")
	default:
		return status.Error(codes.Unimplemented, method)
	}
	return nil
}

func (l *fakeLedger) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no stream")
}

func box(t *testing.T) (*Box, *kafka.Producer, *fakeLedger) {
	broker := embeddedtest.Kafka(t, kafka.Topic{Name: "payments.deadletter", Partitions: 1}, kafka.Topic{Name: "payments.parked", Partitions: 1},
		kafka.Topic{Name: "payments.request", Partitions: 1})
	producer, err := kafka.NewProducer(broker.Config, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { producer.Close(context.Background()) })
	l := &fakeLedger{t: t}
	return &Box{Kafka: broker.Config, DB: l}, producer, l
}

func park(t *testing.T, b *Box, producer *kafka.Producer, key string) {
	t.Helper()
	e, err := event.New(event.TypePaymentRequested, "id-"+key, "/s", key, map[string]string{"k": key}, time.Now())
	if err == nil {
		err = producer.Publish(t.Context(), b.Kafka.ParkedTopic, key, e)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func states(t *testing.T, b *Box) (all []string) {
	t.Helper()
	letters, err := b.Read(t.Context(), Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range letters {
		all = append(all, fmt.Sprintf("%s/%d %s", l.Key, l.Offset, l.State))
	}
	return all
}

// A transaction marker at the end of a topic is skipped. Every call has a time limit.
func TestLettersBeforeAMarker(t *testing.T) {
	b, producer, _ := box(t)
	park(t, b, producer, "a")
	settings, err := b.Kafka.Settings("test")
	if err != nil {
		t.Fatal(err)
	}
	settings.Producer.Transaction.ID = "deadletter-test"
	p, err := sarama.NewSyncProducer(b.Kafka.Brokers, settings)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.BeginTxn(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: b.Kafka.ParkedTopic, Key: sarama.StringEncoder("b")}); err != nil {
		t.Fatal(err)
	}
	if err := p.CommitTxn(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(states(t, b)); got != "[a/0 open b/1 open]" {
		t.Errorf("letters %s", got)
	}
}

// An action belongs to one letter. In a topic that was created again, another letter has its
// position.
func TestActionsInATopicCreatedAgain(t *testing.T) {
	b, producer, _ := box(t)
	park(t, b, producer, "a")
	park(t, b, producer, "b")
	letters, err := b.Read(t.Context(), Filter{})
	if err != nil || len(letters) != 2 {
		t.Fatalf("%v, %v", letters, err)
	}
	if err := b.Discard(t.Context(), letters[0], "ayu", "no use"); err != nil {
		t.Fatal(err)
	}
	if err := b.Redrive(t.Context(), producer, letters[1], "ayu", "again"); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(states(t, b)); got != "[a/0 discarded b/1 redriven]" {
		t.Errorf("letters %s", got)
	}
	if a := letters[0]; a.Actions != nil || a.State != Open {
		t.Errorf("before it was discarded: %+v", a)
	}
	admin, err := sarama.NewClusterAdmin(b.Kafka.Brokers, sarama.NewConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if err := admin.DeleteTopic(b.Kafka.ParkedTopic); err != nil {
		t.Fatal(err)
	}
	if err := kafka.EnsureTopics(b.Kafka, []kafka.Topic{{Name: b.Kafka.ParkedTopic, Partitions: 1}}); err != nil {
		t.Fatal(err)
	}
	anew, err := kafka.NewProducer(b.Kafka, "test") // the broker has lost the state of the other producer
	if err != nil {
		t.Fatal(err)
	}
	defer anew.Close(context.Background())
	producer = anew
	park(t, b, producer, "c")
	park(t, b, producer, "b")
	if got := fmt.Sprint(states(t, b)); got != "[c/0 open b/1 redriven]" {
		t.Errorf("letters of the new topic %s", got)
	}
}
