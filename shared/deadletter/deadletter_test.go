package deadletter

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// fakeLedger has no payments, and stores the actions on letters. Every call to it must have a time
// limit.
type fakeLedger struct {
	t    *testing.T
	mu   sync.Mutex
	done []*dbv1.DeadLetterAction

	decided map[string]bool // keys of payments that are settled
	finds   int
}

func (l *fakeLedger) Invoke(ctx context.Context, method string, asked, answer any, _ ...grpc.CallOption) error {
	l.mu.Lock()
	defer l.mu.Unlock()
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
		for _, b := range l.done {
			if a.LetterId == b.LetterId && a.Ordinal == b.Ordinal && a.LetterId != "" {
				return status.Error(codes.AlreadyExists, b.Action+" by "+b.Operator)
			}
		}
		a.ActedAt = timestamppb.Now()
		l.done = append(l.done, a)
	case *dbv1.ActedLettersRequest:
		last := map[kafka.Place]string{}
		for _, a := range l.done {
			if from, ok := asked.From[a.Partition]; ok && a.Topic == asked.Topic && a.Offset >= from {
				last[kafka.Place{Topic: a.Topic, Partition: a.Partition, Offset: a.Offset}] = a.Action
			}
		}
		out := &dbv1.ActedLettersResponse{Acted: map[int32]*dbv1.Offsets{}}
		for p, action := range last {
			if action != "NOT_SENT" {
				of := out.Acted[p.Partition]
				if of == nil {
					of = &dbv1.Offsets{}
					out.Acted[p.Partition] = of
				}
				of.Offsets = append(of.Offsets, p.Offset)
			}
		}
		proto.Merge(answer.(proto.Message), out)
	case *dbv1.FindRequest:
		l.finds++
		if l.decided[asked.IdempotencyKey] {
			proto.Merge(answer.(proto.Message), rpc.FromRecord(payment.Record{Outcome: payment.Outcome{
				State: payment.Committed, Status: payment.Success, Reason: payment.ReasonCommitted,
			}}))
			return nil
		}
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
	keys := &event.Keyring{}
	if err := keys.Decode("k1:" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + ":v2"); err != nil {
		t.Fatal(err)
	}
	l := &fakeLedger{t: t}
	return &Box{Kafka: broker.Config, DB: l, Keys: keys}, producer, l
}

// request makes a signed request for a payment.
func request(t *testing.T, b *Box, key string) cloudevents.Event {
	t.Helper()
	e, err := event.New(event.TypePaymentRequested, "id-"+key, "/s", key, map[string]string{"k": key}, time.Now())
	if err == nil {
		err = b.Keys.Sign(&e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// fail writes the records of an event that worker and then payments did not accept.
func fail(t *testing.T, b *Box, producer *kafka.Producer, e cloudevents.Event, code int, topics ...string) {
	t.Helper()
	for _, topic := range topics {
		failed := e.Clone()
		failed.SetExtension(event.ExtErrorDestination, "http://worker.pgw.svc.cluster.local/")
		failed.SetExtension(event.ExtErrorCode, fmt.Sprint(code))
		failed.SetExtension(event.ExtErrorData, base64.StdEncoding.EncodeToString([]byte("no, and no again")))
		if err := producer.Publish(t.Context(), topic, e.Subject(), failed); err != nil {
			t.Fatal(err)
		}
	}
}

func park(t *testing.T, b *Box, producer *kafka.Producer, key string) {
	t.Helper()
	fail(t, b, producer, request(t, b, key), 400, b.Kafka.ParkedTopic)
}

func all(t *testing.T, b *Box, f Filter) []Letter {
	t.Helper()
	letters, _, err := b.Read(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return letters
}

func states(t *testing.T, b *Box) (out []string) {
	t.Helper()
	for _, l := range all(t, b, Filter{}) {
		out = append(out, fmt.Sprintf("%s/%d %s", l.Key, l.Offset, l.State))
	}
	return out
}

// sent returns the events in the request topic from an offset on.
func sent(t *testing.T, b *Box, from int64) (events []cloudevents.Event) {
	t.Helper()
	err := kafka.Read(t.Context(), b.Kafka, "test", kafka.Range{Topic: b.Kafka.RequestTopic}, func(m *sarama.ConsumerMessage) error {
		e, err := kafka.ReadRecord(t.Context(), m, nil)
		if err == nil && m.Offset >= from {
			events = append(events, e)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// The records of an event are one letter, however often an operator redrives it and it fails again.
// Each redrive sends each event once.
func TestRedrivesDoNotMultiply(t *testing.T) {
	b, producer, _ := box(t)
	keys := []string{"a", "b", "c", "d"}
	for _, key := range keys {
		fail(t, b, producer, request(t, b, key), 400, b.Kafka.DeadLetterTopic, b.Kafka.ParkedTopic)
	}
	ids := func(letters []Letter) (ids []string) {
		for _, l := range letters {
			ids = append(ids, l.ID)
		}
		slices.Sort(ids)
		return ids
	}
	first := ids(all(t, b, Filter{}))
	for round := range 6 {
		letters := all(t, b, Filter{State: Parked})
		if got := ids(letters); !slices.Equal(got, first) {
			t.Fatalf("round %d: letters %v; want %v", round, got, first)
		}
		for _, l := range letters {
			if l.Failures != round+1 || len(l.Copies) != 2*(round+1) || len(l.Actions) != round || l.Reason != Refused || l.Message != "no, and no again" {
				t.Fatalf("round %d: %+v", round, l)
			}
			if err := b.Redrive(t.Context(), producer, l, Order{Operator: "ayu", Note: "again"}); err != nil {
				t.Fatal(err)
			}
		}
		if left := all(t, b, Filter{State: Parked}); len(left) > 0 {
			t.Fatalf("round %d: still parked: %+v", round, left)
		}
		events := sent(t, b, int64(round*len(keys)))
		if len(events) != len(keys) {
			t.Fatalf("round %d: %d events were sent", round, len(events))
		}
		for _, e := range events {
			if err := b.Keys.Verify(e); err != nil {
				t.Error(err)
			}
			// Reading the record here adds its topic, partition and offset.
			if x := e.Extensions(); len(x) != 3+3 || x[ExtRedrive] != fmt.Sprint(round+1) {
				t.Errorf("the sent event has the extensions %v", x)
			}
			// The source delivers it to the function, which refuses it again.
			fail(t, b, producer, e, 400, b.Kafka.DeadLetterTopic, b.Kafka.ParkedTopic)
		}
	}
}

// Operators who redrive the same letter at once send it once.
func TestTwoOperatorsSendOnce(t *testing.T) {
	b, producer, _ := box(t)
	park(t, b, producer, "a")
	l := all(t, b, Filter{})[0]
	results := make([]error, 8)
	var acting sync.WaitGroup
	for i := range results {
		acting.Go(func() { results[i] = b.Redrive(t.Context(), producer, l, Order{Operator: fmt.Sprint("operator ", i)}) })
	}
	acting.Wait()
	succeeded := 0
	for _, err := range results {
		if err == nil {
			succeeded++
		} else if !errors.Is(err, ErrActed) || !strings.Contains(err.Error(), "REDRIVEN by operator") {
			t.Error(err)
		}
	}
	if n := len(sent(t, b, 0)); succeeded != 1 || n != 1 {
		t.Errorf("%d succeeded, %d events were sent", succeeded, n)
	}
}

// nobody publishes nothing.
type nobody struct{ err error }

func (n nobody) Publish(context.Context, string, string, cloudevents.Event) error { return n.err }

// A letter whose event was certainly not sent waits for an operator again. If that is not known, it
// stays redriven.
func TestARedriveThatFails(t *testing.T) {
	b, producer, _ := box(t)
	park(t, b, producer, "a")
	if err := b.Redrive(t.Context(), nobody{kafka.ErrNotSent}, all(t, b, Filter{})[0], Order{Operator: "ayu"}); !errors.Is(err, kafka.ErrNotSent) {
		t.Error(err)
	}
	l := all(t, b, Filter{})[0]
	if l.State != Parked || len(l.Actions) != 2 {
		t.Errorf("%+v", l)
	}
	if err := b.Redrive(t.Context(), nobody{errors.New("no answer")}, l, Order{Operator: "ayu"}); err == nil || !strings.Contains(err.Error(), "may have been sent") {
		t.Error(err)
	}
	if l = all(t, b, Filter{})[0]; l.State != Redriven {
		t.Errorf("%+v", l)
	}
}

// An event is signed anew only if the operator asks for it, and stays the same letter.
func TestSigningAnewMustBeAskedFor(t *testing.T) {
	b, producer, _ := box(t)
	forged := request(t, b, "forged")
	forged.SetExtension(event.ExtSignature, nil)
	fail(t, b, producer, forged, 403, b.Kafka.DeadLetterTopic, b.Kafka.ParkedTopic)
	l := all(t, b, Filter{})[0]
	if l.Reason != BadSignature || b.Unsigned(l) == nil {
		t.Errorf("%+v", l)
	}
	err := b.Redrive(t.Context(), producer, l, Order{Operator: "ayu"})
	if !errors.Is(err, ErrUnsigned) || !errors.Is(err, event.ErrSignature) || len(sent(t, b, 0)) > 0 {
		t.Errorf("without being asked: %v", err)
	}
	without := *b
	without.Keys = &event.Keyring{}
	if err := without.Redrive(t.Context(), producer, l, Order{Operator: "ayu"}); !errors.Is(err, ErrUnsigned) {
		t.Errorf("without keys: %v", err)
	}
	if err := without.Redrive(t.Context(), producer, l, Order{Operator: "ayu", Sign: true}); !errors.Is(err, event.ErrSignature) {
		t.Errorf("signing without keys: %v", err)
	}
	if err := b.Redrive(t.Context(), producer, l, Order{Operator: "ayu", Note: "ours", Sign: true}); err != nil {
		t.Fatal(err)
	}
	e := sent(t, b, 0)[0]
	if err := b.Keys.Verify(e); err != nil {
		t.Error(err)
	}
	fail(t, b, producer, e, 400, b.Kafka.DeadLetterTopic)
	again := all(t, b, Filter{})
	if len(again) != 1 || again[0].ID != l.ID || again[0].Actions[0].Note != "signed anew: ours" || again[0].State != Waiting {
		t.Errorf("%+v", again)
	}
	record := l
	record.Event = forged.Clone()
	record.Event.SetType(event.TypeKafkaRecord)
	record.Event.SetSource("/kafkasources/payments-request#payments.request")
	if err := b.Redrive(t.Context(), producer, record, Order{Operator: "ayu", Sign: true}); !errors.Is(err, ErrPlain) {
		t.Errorf("a plain record: %v", err)
	}
}

// Events that differ in any part that identifies them are different letters.
func TestTheSameIDIsNotTheSameLetter(t *testing.T) {
	b, producer, _ := box(t)
	e := request(t, b, "k")
	later, other, elsewhere := e.Clone(), e.Clone(), e.Clone()
	later.SetTime(e.Time().Add(time.Nanosecond))
	other.DataEncoded = []byte(`{"k":"other"}`)
	elsewhere.SetSource("/elsewhere")
	for range 2 {
		for _, e := range []cloudevents.Event{e, later, other, elsewhere} {
			fail(t, b, producer, e, 400, b.Kafka.DeadLetterTopic, b.Kafka.ParkedTopic)
		}
	}
	letters := all(t, b, Filter{})
	if len(letters) != 4 {
		t.Errorf("%d letters: %+v", len(letters), letters)
	}
	for _, name := range []string{letters[0].ID, letters[0].Copies[1].String()} {
		if got := all(t, b, Filter{Names: []string{name}}); len(got) != 1 || got[0].ID != letters[0].ID {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := all(t, b, Filter{Names: []string{"id-k"}}); len(got) != 4 {
		t.Errorf("by the event's id: %+v", got)
	}
	if _, _, err := b.Read(t.Context(), Filter{Names: []string{"nobody"}}); err == nil || !strings.Contains(err.Error(), "there is no letter nobody") {
		t.Error(err)
	}
	if got, more, err := b.Read(t.Context(), Filter{Limit: 3}); err != nil || !more || len(got) != 3 || got[2].ID != letters[3].ID {
		t.Errorf("%+v, %t, %v", got, more, err)
	}
	if got := all(t, b, Filter{Limit: 4, Reason: "refused", Key: "k", Since: time.Now().Add(-time.Hour)}); len(got) != 4 {
		t.Errorf("%+v", got)
	}
	for _, f := range []Filter{{Reason: "unavailable"}, {Key: "other"}, {State: Discarded}, {Since: time.Now().Add(time.Hour)}} {
		if got := all(t, b, f); len(got) != 0 {
			t.Errorf("%+v: %+v", f, got)
		}
	}
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
	if got := fmt.Sprint(states(t, b)); got != "[a/0 parked b/1 parked]" {
		t.Errorf("letters %s", got)
	}
}

// An action belongs to one letter. In a topic that was created again, another letter has its
// position.
func TestActionsInATopicCreatedAgain(t *testing.T) {
	b, producer, _ := box(t)
	park(t, b, producer, "a")
	park(t, b, producer, "b")
	letters := all(t, b, Filter{})
	if err := b.Discard(t.Context(), letters[0], Order{Operator: "ayu", Note: "no use"}); err != nil {
		t.Fatal(err)
	}
	if err := b.Redrive(t.Context(), producer, letters[1], Order{Operator: "ayu", Note: "again"}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(states(t, b)); got != "[a/0 discarded b/1 redriven]" {
		t.Errorf("letters %s", got)
	}
	if a := letters[0]; a.Actions != nil || a.State != Parked {
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
	park(t, b, producer, "b") // the same payment, requested once more
	if got := fmt.Sprint(states(t, b)); got != "[c/0 parked b/1 parked]" {
		t.Errorf("letters of the new topic %s", got)
	}
}

// An action that an earlier release recorded, by the letter's place, still counts.
func TestActionsOfAnEarlierRelease(t *testing.T) {
	b, producer, ledger := box(t)
	e := request(t, b, "a")
	fail(t, b, producer, e, 400, b.Kafka.ParkedTopic)
	ledger.done = append(ledger.done, &dbv1.DeadLetterAction{
		Topic: b.Kafka.ParkedTopic, EventId: e.ID(), EventKey: "a", Action: "REDRIVEN", Operator: "ayu", ActedAt: timestamppb.Now(),
	})
	if got := fmt.Sprint(states(t, b)); got != "[a/0 redriven]" {
		t.Errorf("letters %s", got)
	}
	fail(t, b, producer, e, 400, b.Kafka.ParkedTopic)
	if got := fmt.Sprint(states(t, b)); got != "[a/1 parked]" {
		t.Errorf("it failed again: letters %s", got)
	}
}

// A record that is not an event, and an event whose data is not what it claims, can be printed.
func TestEveryLetterCanBePrinted(t *testing.T) {
	b, producer, _ := box(t)
	broken := request(t, b, "broken")
	broken.DataEncoded = []byte("x")
	fail(t, b, producer, broken, 400, b.Kafka.ParkedTopic)
	settings, err := b.Kafka.Settings("test")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := sarama.NewSyncProducer(b.Kafka.Brokers, settings)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	for _, value := range []string{"not JSON", `{"json": true}`, ""} {
		if _, _, err := plain.SendMessage(&sarama.ProducerMessage{Topic: b.Kafka.ParkedTopic, Key: sarama.StringEncoder("k"), Value: sarama.StringEncoder(value)}); err != nil {
			t.Fatal(err)
		}
	}
	letters := all(t, b, Filter{})
	if len(letters) != 4 {
		t.Errorf("%+v", letters)
	}
	for _, l := range letters {
		if _, err := json.Marshal(l); err != nil {
			t.Errorf("%s: %v", l.Place, err)
		}
	}
	if err := b.Redrive(t.Context(), producer, letters[1], Order{Operator: "ayu"}); !errors.Is(err, ErrNoFront) {
		t.Errorf("of an unknown topic: %v", err)
	}
}
