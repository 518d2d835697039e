// Package deadletter has an operator's actions on events that could not be delivered: list them
// with their reasons, send them again to the topic where they entered the flow, or discard them.
// Every action is recorded in the ledger's database. The letters themselves stay in Kafka.
package deadletter

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/functions/kafkasource"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// maxRead is the most letters that are in memory at once.
const maxRead = 100_000

// The time limits of one call to the ledger, with its retries, and of one publish.
const (
	askWithin     = 30 * time.Second
	publishWithin = 30 * time.Second
)

// State of a letter.
type State string

// The states.
const (
	Waiting   State = "waiting"    // payments has not handled it yet
	ClosedOut State = "closed_out" // the payment is decided
	Open      State = "open"       // it waits for an operator
	Redriven  State = "redriven"
	Discarded State = "discarded"
)

// Letter is one event that could not be delivered.
type Letter struct {
	kafka.Place
	At       time.Time         `json:"at"` // the time of the dead letter
	Key      string            `json:"key"`
	Event    cloudevents.Event `json:"event"`    // the event without the attributes of its failed delivery
	Function string            `json:"function"` // the function that did not accept it
	Code     int               `json:"code"`     // the status of the last response; 0: there was none
	Message  string            `json:"message"`  // the text of the last response
	Attempts int               `json:"attempts"` // 0: unknown
	State    State             `json:"state"`
	// CutFrom is the original length of the record's value in bytes, if the event has only its
	// beginning. 0 means that the event is complete.
	CutFrom int64 `json:"cut_from,omitempty"`
	// Outcome is the status and the reason of the reservation that the ledger has for this key.
	Outcome string   `json:"outcome,omitempty"`
	Actions []Action `json:"actions,omitempty"`
}

// Action is an operator's action on a letter.
type Action struct {
	Action   string    `json:"action"`
	Operator string    `json:"operator"`
	Note     string    `json:"note"`
	At       time.Time `json:"at"`
}

// Box reads letters and acts on them.
type Box struct {
	Kafka     kafka.Config
	Group     string // the prefix of the consumer groups' names
	DB        grpc.ClientConnInterface
	Manifests kafkasource.Manifests
}

// Filter selects letters. An empty field matches all letters.
type Filter struct {
	Places []kafka.Place
	Topics []string // empty: payments.deadletter and payments.parked
	Key    string
	Reason string // a part of the message, or the code
	State  State
	Since  time.Time
}

// wants applies the conditions that need only the letter itself. Only for the wanted letters is the
// ledger asked.
func (f Filter) wants(l *Letter) bool {
	return (f.Key == "" || f.Key == l.Key) && (len(f.Places) == 0 || slices.Contains(f.Places, l.Place))
}

// matches applies the conditions that need the ledger's answer.
func (f Filter) matches(l *Letter) bool {
	return (f.State == "" || f.State == l.State) &&
		(f.Reason == "" || f.Reason == strconv.Itoa(l.Code) || strings.Contains(l.Message, f.Reason) || strings.Contains(l.Outcome, f.Reason))
}

// Read returns the matching letters, the oldest first.
func (b *Box) Read(ctx context.Context, f Filter) ([]Letter, error) {
	topics := f.Topics
	for _, p := range f.Places {
		topics = append(topics, p.Topic)
	}
	if len(topics) == 0 {
		topics = []string{b.Kafka.DeadLetterTopic, b.Kafka.ParkedTopic}
	}
	slices.Sort(topics)
	var all []Letter
	for _, topic := range slices.Compact(topics) {
		if topic != b.Kafka.DeadLetterTopic && topic != b.Kafka.ParkedTopic {
			return nil, fmt.Errorf("%s has no dead letters: they are in %s and %s", topic, b.Kafka.DeadLetterTopic, b.Kafka.ParkedTopic)
		}
		letters, err := b.read(ctx, topic, f)
		if err != nil {
			return nil, err
		}
		all = append(all, letters...)
	}
	slices.SortFunc(all, func(x, y Letter) int {
		return cmp.Or(x.At.Compare(y.At), cmp.Compare(x.Topic, y.Topic), cmp.Compare(x.Partition, y.Partition), cmp.Compare(x.Offset, y.Offset))
	})
	for _, p := range f.Places {
		if !slices.ContainsFunc(all, func(l Letter) bool { return l.Place == p }) {
			return nil, fmt.Errorf("there is no letter %s, or it does not match the filter", p)
		}
	}
	return all, nil
}

func (b *Box) read(ctx context.Context, topic string, f Filter) ([]Letter, error) {
	recorded, err := b.actions(ctx, topic)
	if err != nil {
		return nil, err
	}
	taken, err := b.taken(topic)
	if err != nil {
		return nil, err
	}
	var letters []Letter
	err = kafka.Read(ctx, b.Kafka, "deadletter", kafka.Range{Topic: topic, Since: f.Since}, func(m *sarama.ConsumerMessage) error {
		l := b.letter(ctx, m)
		if !f.wants(&l) {
			return nil
		}
		l.Actions = recorded.of(l)
		if err := b.judge(ctx, &l, taken); err != nil {
			return err
		}
		if f.matches(&l) {
			letters = append(letters, l)
		}
		if len(letters) > maxRead {
			return fmt.Errorf("there are more than %d letters: filter by key, reason or age", maxRead)
		}
		return nil
	})
	return letters, err
}

// letter reads a record and removes the attributes that the source added to its event.
func (b *Box) letter(ctx context.Context, m *sarama.ConsumerMessage) Letter {
	e := kafkasource.ReadRecord(ctx, "deadletter", m)
	text := func(name string) string { s, _ := e.Extensions()[name].(string); return s }
	l := Letter{Place: kafka.PlaceOf(m), At: m.Timestamp.UTC(), Function: functionOf(text(event.ExtErrorDestination))}
	l.Code, _ = strconv.Atoi(text(event.ExtErrorCode))
	if data, err := base64.StdEncoding.DecodeString(text(event.ExtErrorData)); err == nil {
		l.Message = strings.TrimSpace(string(data))
	}
	l.Attempts = b.Manifests.Attempts(l.Function, l.Code)
	if l.Key = text(event.ExtPartitionKey); l.Key == "" {
		l.Key = string(m.Key)
	}
	l.CutFrom, _ = strconv.ParseInt(text(kafkasource.ExtCutFrom), 10, 64)
	for _, name := range []string{event.ExtErrorDestination, event.ExtErrorCode, event.ExtErrorData, event.ExtKafkaPartition, event.ExtKafkaOffset} {
		e.SetExtension(name, nil)
	}
	l.Event = e
	return l
}

// functionOf returns the first label of the host in a sink's URL, which is the name of the Service.
// It returns an IP address unchanged.
func functionOf(sink string) string {
	u, err := url.Parse(sink)
	if err != nil || u.Host == "" {
		return sink
	}
	if net.ParseIP(u.Hostname()) != nil {
		return u.Host
	}
	name, _, _ := strings.Cut(u.Hostname(), ".")
	return name
}

// judge sets the state of a letter.
func (b *Box) judge(ctx context.Context, l *Letter, taken map[int32]int64) error {
	decided := false
	if t := l.Event.Type(); (t == event.TypePaymentRequested || t == event.TypePaymentRequestedV2 || t == event.TypeKafkaRecord) && payment.CheckID("key", l.Key, payment.MaxKey) == nil {
		ctx, cancel := context.WithTimeout(ctx, askWithin)
		defer cancel()
		got, err := dbv1.NewDbClient(b.DB).Find(ctx, &dbv1.FindRequest{IdempotencyKey: l.Key})
		switch status.Code(err) {
		case codes.OK:
			outcome, err := rpc.ToOutcome(got.Outcome)
			if err != nil {
				return fmt.Errorf("ask the ledger for %s: %w", l.Key, err)
			}
			l.Outcome = strings.TrimSpace(string(outcome.State) + " " + string(outcome.Reason))
			decided = outcome.State != payment.Pending
		case codes.NotFound:
		default:
			return fmt.Errorf("ask the ledger for %s: %w", l.Key, err)
		}
	}
	switch {
	case len(l.Actions) > 0 && l.Actions[len(l.Actions)-1].Action == string(ledger.Discarded):
		l.State = Discarded
	case len(l.Actions) > 0:
		l.State = Redriven
	case decided:
		l.State = ClosedOut
	case l.Topic == b.Kafka.DeadLetterTopic && l.Offset >= taken[l.Partition]:
		l.State = Waiting
	default:
		// It is in payments.parked, or payments has refused it, and then it is also there.
		l.State = Open
	}
	return nil
}

// taken returns the committed offsets of the group that reads a topic's letters.
func (b *Box) taken(topic string) (map[int32]int64, error) {
	taken := map[int32]int64{}
	renamed := b.Kafka.Renamed()
	for name, as := range renamed {
		if as != topic {
			continue
		}
		for _, group := range b.Manifests.Groups(name) {
			offsets, err := kafka.Committed(b.Kafka, b.Group+group, topic)
			if err != nil {
				return nil, err
			}
			for p, offset := range offsets {
				taken[p] = max(taken[p], offset)
			}
		}
	}
	return taken, nil
}

// acted identifies the letter of an action by its position, event id and key. The position alone is
// not enough: a topic that was deleted and created again has other letters at the same offsets.
type acted struct {
	kafka.Place
	id, key string
}

type actions map[acted][]Action

func (a actions) of(l Letter) []Action { return a[acted{l.Place, l.Event.ID(), l.Key}] }

func (b *Box) actions(ctx context.Context, topic string) (actions, error) {
	all := actions{}
	for token := ""; ; {
		page, err := b.page(ctx, topic, token)
		if err != nil {
			return nil, fmt.Errorf("ask db for the actions on dead letters: %w", err)
		}
		for _, a := range page.Actions {
			about := acted{kafka.Place{Topic: a.Topic, Partition: a.Partition, Offset: a.Offset}, a.EventId, a.EventKey}
			all[about] = append(all[about], Action{Action: a.Action, Operator: a.Operator, Note: a.Note, At: a.ActedAt.AsTime()})
		}
		if token = page.NextPageToken; token == "" {
			return all, nil
		}
	}
}

func (b *Box) page(ctx context.Context, topic, token string) (*dbv1.ListDeadLetterActionsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	return dbv1.NewAdminClient(b.DB).ListDeadLetterActions(ctx, &dbv1.ListDeadLetterActionsRequest{Topic: topic, PageToken: token})
}

// ErrNoFront means that the topic is unknown at which an event entered the flow.
var ErrNoFront = errors.New("the topic at which it entered the flow is unknown")

// Front returns the topic at which a letter's event entered the flow.
func (b *Box) Front(l Letter) (string, error) {
	switch l.Event.Type() {
	case event.TypePaymentRequested, event.TypePaymentRequestedV2:
		return b.Kafka.RequestTopic, nil
	case event.TypePaymentResult:
		return b.Kafka.ResultTopic, nil
	case event.TypeAccountOpened, event.TypeAccountFunded, event.TypeAccountFundedV2:
		return b.Kafka.AccountsTopic, nil
	case event.TypeKafkaRecord:
		// The source that wrapped the record has put the record's topic after the #.
		if _, topic, ok := strings.Cut(l.Event.Source(), "#"); ok && topic != l.Topic {
			return topic, nil
		}
	}
	return "", fmt.Errorf("%s, of type %s: %w", l.Place, l.Event.Type(), ErrNoFront)
}

// ErrCut means that a letter has only the beginning of its event.
var ErrCut = errors.New("the event was too large for a dead letter and was cut: only its record in the original topic is complete")

// Redrive sends a letter's event again to the topic where it entered the flow, and records that. If
// the recording fails, the event may be sent twice; the functions then handle it as a repeated
// event.
func (b *Box) Redrive(ctx context.Context, producer *kafka.Producer, l Letter, operator, note string) error {
	front, err := b.Front(l)
	if err != nil {
		return err
	}
	if l.CutFrom > 0 {
		return fmt.Errorf("%s: %w", l.Place, ErrCut)
	}
	bounded, cancel := context.WithTimeout(ctx, publishWithin)
	defer cancel()
	if err := producer.Publish(bounded, front, l.Key, l.Event); err != nil {
		return fmt.Errorf("%s: %w", l.Place, err)
	}
	return b.record(ctx, l, ledger.Redriven, operator, note)
}

// Discard records that a letter needs no more action.
func (b *Box) Discard(ctx context.Context, l Letter, operator, note string) error {
	return b.record(ctx, l, ledger.Discarded, operator, note)
}

func (b *Box) record(ctx context.Context, l Letter, action ledger.Action, operator, note string) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	_, err := dbv1.NewAdminClient(b.DB).RecordDeadLetterAction(ctx, &dbv1.RecordDeadLetterActionRequest{Action: &dbv1.DeadLetterAction{
		Topic: l.Topic, Partition: l.Partition, Offset: l.Offset, EventId: l.Event.ID(), EventKey: l.Key, Action: string(action), Operator: operator, Note: note,
	}})
	if err != nil {
		return fmt.Errorf("record the action on %s: %w", l.Place, err)
	}
	return nil
}
