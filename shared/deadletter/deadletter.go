// Package deadletter has an operator's actions on events that could not be delivered: list them
// with their reasons, send them again to the topic where they entered the flow, or discard them.
// Every action is recorded in the ledger's database. The letters themselves stay in Kafka.
//
//   - letter.go: what a letter is: its identity, its state, how its records become one letter.
//   - deadletter.go: reading letters, and acting on them.
//   - memory.go: the letters that a long-lived process remembers, and their counts.
package deadletter

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// The most that is in memory at once.
const (
	maxLetters = 100_000
	maxBytes   = 256 << 20 // of the letters' data
)

// asking is the number of calls to the ledger at the same time, and the number of letters that are
// judged together is a few times that.
const (
	asking  = 8
	atATime = 4 * asking
)

// The time limits of one call to the ledger, with its retries, and of one publish.
const (
	askWithin     = 30 * time.Second
	publishWithin = 30 * time.Second
)

// Box reads letters and acts on them.
type Box struct {
	Kafka  kafka.Config
	Groups []string // the consumer groups that read the dead-letter topic
	DB     grpc.ClientConnInterface
	// Keys check and make signatures. Without keys, the reason of the failure tells whether the
	// signature was wrong.
	Keys *event.Keyring
	// Attempts is how often a function is tried before its delivery is given up with the status of
	// the last response. nil: that is not known.
	Attempts func(function string, code int) int
	// Memory keeps the letters between readings. nil: each reading reads all records.
	Memory *Memory
}

// ErrNoLetter means that no letter has a name.
var ErrNoLetter = errors.New("there is no letter")

// Filter selects letters. An empty field matches all letters.
type Filter struct {
	Names  []string // see Letter.Named
	Key    string
	Reason string // a Reason, a code, or a part of the message or of the outcome
	State  State
	Since  time.Time // only letters with a record since this time; older records are not read
	Limit  int       // the most letters, the newest; 0: no limit
	Before Position  // only letters before this one, in the order of Read; zero: all
}

// wants applies the conditions that need only the letter itself. Only for the wanted letters is the
// ledger asked.
func (f Filter) wants(l Letter) bool {
	return (f.Key == "" || f.Key == l.Key) && (len(f.Names) == 0 || slices.ContainsFunc(f.Names, l.Named)) &&
		!l.At.Before(f.Since) && (f.Before == Position{} || l.Position().compare(f.Before) < 0)
}

// matches applies the conditions that need the ledger's answer.
func (f Filter) matches(l Letter) bool {
	return (f.State == "" || f.State == l.State) &&
		(f.Reason == "" || f.Reason == string(l.Reason) || f.Reason == strconv.Itoa(l.Code) ||
			strings.Contains(l.Message, f.Reason) || strings.Contains(l.Outcome, f.Reason))
}

// Read returns the matching letters, the oldest first. more reports whether there are older ones
// than Limit allows. An error names a name that no letter has.
func (b *Box) Read(ctx context.Context, f Filter) (letters []Letter, more bool, err error) {
	// The offsets are read before the records, so that a letter which payments is handling now is not
	// taken for one that nobody handles.
	taken, err := b.taken()
	if err != nil {
		return nil, false, err
	}
	all, err := b.records(ctx, f.Since)
	if err != nil {
		return nil, false, err
	}
	for _, name := range f.Names {
		if !slices.ContainsFunc(all, func(l Letter) bool { return l.Named(name) }) {
			return nil, false, fmt.Errorf("%w %s", ErrNoLetter, name)
		}
	}
	recorded, err := b.actions(ctx)
	if err != nil {
		return nil, false, err
	}
	var wanted []Letter // the newest first
	for _, l := range slices.Backward(all) {
		if f.wants(l) {
			l.Actions = recorded.of(l)
			wanted = append(wanted, l)
		}
	}
	for some := range slices.Chunk(wanted, atATime) {
		judged, err := b.judgeAll(ctx, some, taken)
		if err != nil {
			return nil, false, err
		}
		for _, l := range judged {
			if !f.matches(l) {
				continue
			}
			if f.Limit > 0 && len(letters) == f.Limit {
				slices.Reverse(letters)
				return letters, true, nil
			}
			letters = append(letters, l)
		}
	}
	slices.Reverse(letters)
	return letters, false, nil
}

// records returns the letters of both topics, the oldest first, without what only the ledger knows.
func (b *Box) records(ctx context.Context, since time.Time) ([]Letter, error) {
	if b.Memory != nil {
		return b.Memory.refresh(ctx, b)
	}
	letters, size := map[string]Letter{}, 0
	for _, topic := range b.topics() {
		err := kafka.Read(ctx, b.Kafka, "deadletter", kafka.Range{Topic: topic, Since: since}, func(m *sarama.ConsumerMessage) error {
			l := b.letter(ctx, m)
			if known, ok := letters[l.ID]; ok {
				l = known.with(l)
			} else {
				size += len(l.Event.Data())
			}
			letters[l.ID] = l
			if len(letters) > maxLetters || size > maxBytes {
				return fmt.Errorf("there are more than %d letters, or more than %d MiB of them: read only newer ones (--since)", maxLetters, maxBytes>>20)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return sorted(letters), nil
}

// topics are those that have letters. A letter's first record is in the first one.
func (b *Box) topics() []string { return []string{b.Kafka.DeadLetterTopic, b.Kafka.ParkedTopic} }

// sorted returns letters in the order of Read.
func sorted(letters map[string]Letter) []Letter {
	return slices.SortedFunc(maps.Values(letters), func(x, y Letter) int { return x.Position().compare(y.Position()) })
}

// letter reads a record and removes the attributes that the source and redrives added to its event.
func (b *Box) letter(ctx context.Context, m *sarama.ConsumerMessage) Letter {
	e := read(ctx, m)
	text := func(name string) string { s, _ := e.Extensions()[name].(string); return s }
	l := Letter{Place: kafka.PlaceOf(m), At: m.Timestamp.UTC(), Function: functionOf(text(event.ExtErrorDestination))}
	l.Code, _ = strconv.Atoi(text(event.ExtErrorCode))
	l.Reason = reasonOf(l.Code)
	if data, err := base64.StdEncoding.DecodeString(text(event.ExtErrorData)); err == nil {
		l.Message = strings.TrimSpace(string(data))
	}
	if b.Attempts != nil {
		l.Attempts = b.Attempts(l.Function, l.Code)
	}
	if l.Key = text(event.ExtPartitionKey); l.Key == "" {
		l.Key = string(m.Key)
	}
	l.CutFrom, _ = strconv.ParseInt(text(event.ExtCutFrom), 10, 64)
	l.Copies = []Copy{{Place: l.Place, At: l.At, Redrive: redriveOf(e)}}
	for _, name := range []string{
		event.ExtErrorDestination, event.ExtErrorCode, event.ExtErrorData, event.ExtKafkaPartition, event.ExtKafkaOffset, ExtRedrive,
	} {
		e.SetExtension(name, nil)
	}
	l.Event, l.ID = e, idOf(e, l.Key, l.CutFrom)
	return l
}

// read returns the event of a record, or one that is made of the record if it is not an event. It
// can always be written as JSON, because one broken record must not end a command that lists many.
func read(ctx context.Context, m *sarama.ConsumerMessage) cloudevents.Event {
	e, err := kafka.ReadRecord(ctx, m, wrap)
	if err != nil || e.Validate() != nil {
		e = wrap(m)
	}
	for _, name := range []string{"kafkatopic", "kafkapartition", "kafkaoffset"} {
		e.SetExtension(name, nil) // reading a record adds these
	}
	if _, err := json.Marshal(e); err != nil {
		e.SetDataContentType("application/octet-stream")
	}
	return e
}

func wrap(m *sarama.ConsumerMessage) cloudevents.Event {
	e := cloudevents.New()
	e.SetID(fmt.Sprintf("partition:%d/offset:%d", m.Partition, m.Offset))
	e.SetSource("/kafkasources/deadletter#" + m.Topic)
	e.SetType(event.TypeKafkaRecord)
	e.SetTime(m.Timestamp.UTC())
	e.SetDataContentType("application/octet-stream")
	if json.Valid(m.Value) {
		e.SetDataContentType(cloudevents.ApplicationJSON)
	}
	e.DataEncoded = m.Value
	return e
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

// judgeAll judges letters, a few at the same time.
func (b *Box) judgeAll(ctx context.Context, letters []Letter, taken map[int32]int64) ([]Letter, error) {
	judged := make([]Letter, len(letters))
	judging, ctx := errgroup.WithContext(ctx)
	judging.SetLimit(asking)
	for i, l := range letters {
		judging.Go(func() (err error) {
			judged[i], err = b.judge(ctx, l, taken)
			return err
		})
	}
	return judged, judging.Wait()
}

// judge returns the letter with its outcome in the ledger, its failures and its state.
func (b *Box) judge(ctx context.Context, l Letter, taken map[int32]int64) (Letter, error) {
	asked := claimOf(l)
	l.Client = asked.Client
	outcome, decided := b.Memory.outcome(l.ID)
	l.Outcome = outcome
	if decided {
		// An outcome does not change any more.
	} else if payment.CheckID("key", asked.Key, payment.MaxKey) == nil {
		ctx, cancel := context.WithTimeout(ctx, askWithin)
		defer cancel()
		got, err := dbv1.NewDbClient(b.DB).Find(ctx, &dbv1.FindRequest{IdempotencyKey: asked.Key, Client: asked.Client})
		switch status.Code(err) {
		case codes.OK:
			rec, err := rpc.ToRecord(got)
			if err != nil {
				return l, fmt.Errorf("ask the ledger for %s: %w", l.Key, err)
			}
			identity := payment.Identity{Client: asked.Client, Fingerprint: asked.content}
			if _, its := payment.Deciding([]payment.Record{rec}, payment.Record.Identity, identity); !its && asked.readable {
				break // another client has the same key
			}
			l.Outcome = strings.TrimSpace(string(rec.State) + " " + string(rec.Reason))
			decided = rec.Status != ""
			b.Memory.keep(l.ID, l.Outcome, rec.State != payment.Pending) // an authorized payment is still captured or voided
		case codes.NotFound:
			b.Memory.keep(l.ID, "", false)
		default:
			return l, fmt.Errorf("ask the ledger for %s: %w", l.Key, err)
		}
	}
	l.Failures = failures(l.Copies)
	l.State = stateOf(l, decided, b.Kafka.DeadLetterTopic, taken)
	return l, nil
}

// claimed is what a letter asks for: the key, and the content if it can be read.
type claimed struct {
	payment.ScopedKey
	content  payment.Fingerprint
	readable bool
}

// claimOf returns the payment or refund that a letter asks for; without a key if it asks for neither.
func claimOf(l Letter) claimed {
	switch t := l.Event.Type(); {
	case event.IsPaymentRequest(t), t == event.TypeKafkaRecord:
		p, err := event.Decode[event.PaymentRequested](l.Event)
		if t == event.TypeKafkaRecord {
			p.Client = "" // a plain record names no client
		}
		return claimed{payment.ScopedKey{Client: p.Client, Key: l.Key}, p.Fingerprint(), err == nil}
	case t == event.TypeRefundRequested:
		o, err := event.Decode[event.OperationRequested](l.Event) // without a key if it can't be read
		return claimed{payment.ScopedKey{Client: o.Client, Key: o.Key}, o.Fingerprint(), err == nil}
	}
	return claimed{}
}

// taken returns the committed offsets of the groups that read the dead-letter topic.
func (b *Box) taken() (map[int32]int64, error) {
	taken := map[int32]int64{}
	for _, group := range b.Groups {
		offsets, err := kafka.Committed(b.Kafka, group, b.Kafka.DeadLetterTopic)
		if err != nil {
			return nil, err
		}
		for p, offset := range offsets {
			taken[p] = max(taken[p], offset)
		}
	}
	return taken, nil
}

// acted identifies the letter of an action that an earlier release recorded, by its position, event
// id and key.
type acted struct {
	kafka.Place
	id, key string
}

// actions are all recorded actions.
type actions struct {
	byID    map[string][]Action
	earlier map[acted][]Action
}

// of returns the actions on a letter, in their order.
func (a actions) of(l Letter) (all []Action) {
	for _, c := range l.Copies {
		all = append(all, a.earlier[acted{c.Place, l.Event.ID(), l.Key}]...)
	}
	all = append(all, a.byID[l.ID]...)
	slices.SortStableFunc(all, func(x, y Action) int {
		if x.ordinal == 0 && y.ordinal == 0 {
			return x.At.Compare(y.At)
		}
		return cmp.Compare(x.ordinal, y.ordinal)
	})
	return all
}

func (b *Box) actions(ctx context.Context) (actions, error) {
	all := actions{map[string][]Action{}, map[acted][]Action{}}
	for _, topic := range b.topics() {
		for token := ""; ; {
			page, err := b.page(ctx, topic, token)
			if err != nil {
				return all, fmt.Errorf("ask db for the actions on dead letters: %w", err)
			}
			for _, a := range page.Actions {
				place := kafka.Place{Topic: a.Topic, Partition: a.Partition, Offset: a.Offset}
				action := Action{ledger.Action(a.Action), a.Operator, a.Note, a.ActedAt.AsTime(), a.Ordinal, place}
				if a.LetterId != "" {
					all.byID[a.LetterId] = append(all.byID[a.LetterId], action)
					continue
				}
				about := acted{place, a.EventId, a.EventKey}
				all.earlier[about] = append(all.earlier[about], action)
			}
			if token = page.NextPageToken; token == "" {
				break
			}
		}
	}
	return all, nil
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
	case event.TypePaymentRequested, event.TypePaymentRequestedV2, event.TypePaymentRequestedV3,
		event.TypeRefundRequested, event.TypeCaptureRequested, event.TypeVoidRequested, event.TypeCancelRequested:
		return b.Kafka.RequestTopic, nil
	case event.TypePaymentResult, event.TypeRefundResult, event.TypeCaptureResult, event.TypeVoidResult, event.TypeCancelResult:
		return b.Kafka.ResultTopic, nil
	case event.TypeAccountOpened, event.TypeAccountFunded, event.TypeAccountFundedV2:
		return b.Kafka.AccountsTopic, nil
	case event.TypeKafkaRecord:
		// The source that wrapped the record has put the record's topic after the #.
		if _, topic, ok := strings.Cut(l.Event.Source(), "#"); ok && topic != b.Kafka.DeadLetterTopic && topic != b.Kafka.ParkedTopic {
			return topic, nil
		}
	}
	return "", fmt.Errorf("letter %s, of type %s: %w", l.ID, l.Event.Type(), ErrNoFront)
}

var (
	// ErrCut means that a letter has only the beginning of its event.
	ErrCut = errors.New("the event was too large for a dead letter and was cut: only its record in the original topic is complete")
	// ErrUnsigned means that a letter's event would fail again for its signature.
	ErrUnsigned = errors.New("the event would fail again for its signature; it is signed anew only if that is asked for, and pgw then trusts it like its own")
	// ErrPlain means that a plain record can't be signed.
	ErrPlain = errors.New("it is a plain record, which has no signature: the functions accept it only with ALLOW_UNSIGNED_REQUESTS")
	// ErrActed means that somebody else acted on the letter since it was read.
	ErrActed = errors.New("somebody else has acted on it")
)

// Order is what an operator wants done with a letter.
type Order struct {
	Operator string // who
	Note     string // why
	// Sign signs an event anew whose signature is not valid. pgw then trusts it like its own.
	Sign bool
}

// Unsigned returns why the signature of a letter's event would be refused, or nil if it would be
// accepted or needs none.
func (b *Box) Unsigned(l Letter) error {
	switch {
	case !slices.Contains(needsSignature, l.Event.Type()):
		return nil
	case b.Keys != nil && !b.Keys.Empty():
		return b.Keys.Verify(l.Event)
	case l.Reason == BadSignature:
		return fmt.Errorf("%s: %s", l.Function, l.Message)
	}
	return nil
}

// Redrive sends a letter's event again to the topic where it entered the flow. It records that
// first: only one of two operators who redrive the same letter at once sends it. The other gets
// ErrActed. If nothing was sent, that is recorded too, and the letter waits for an operator again. If
// it is not known whether the event was sent, the letter stays redriven.
func (b *Box) Redrive(ctx context.Context, to event.Publisher, l Letter, o Order) error {
	front, err := b.Front(l)
	if err != nil {
		return err
	}
	if l.CutFrom > 0 {
		return fmt.Errorf("letter %s: %w", l.ID, ErrCut)
	}
	if l, err = b.whole(ctx, l); err != nil {
		return err
	}
	e := l.Event.Clone()
	why := b.Unsigned(l)
	switch {
	case o.Sign && l.Event.Type() == event.TypeKafkaRecord && l.Reason == BadSignature:
		return fmt.Errorf("letter %s: %w", l.ID, ErrPlain)
	case why != nil && !o.Sign:
		return fmt.Errorf("letter %s: %w: %w", l.ID, ErrUnsigned, why)
	case why != nil:
		if b.Keys == nil {
			return fmt.Errorf("letter %s: there is no key to sign with: %w", l.ID, why)
		}
		if err := b.Keys.Sign(&e); err != nil {
			return fmt.Errorf("letter %s: %w", l.ID, err)
		}
		o.Note = strings.TrimSuffix("signed anew: "+o.Note, ": ")
	}
	ordinal := l.nextOrdinal()
	e.SetExtension(ExtRedrive, strconv.Itoa(int(ordinal)))
	if err := b.record(ctx, l, ledger.Redriven, ordinal, o); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, publishWithin)
	defer cancel()
	err = to.Publish(bounded, front, l.Key, e)
	if errors.Is(err, kafka.ErrNotSent) {
		takenBack := b.record(context.WithoutCancel(ctx), l, ledger.NotSent, ordinal+1, o)
		return errors.Join(fmt.Errorf("letter %s: %w", l.ID, err), takenBack)
	}
	if err != nil {
		return fmt.Errorf("letter %s may have been sent, and is recorded as redriven: %w", l.ID, err)
	}
	return nil
}

// Discard records that a letter needs no more action.
func (b *Box) Discard(ctx context.Context, l Letter, o Order) error {
	return b.record(ctx, l, ledger.Discarded, l.nextOrdinal(), o)
}

func (b *Box) record(ctx context.Context, l Letter, action ledger.Action, ordinal int32, o Order) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	newest := l.newest()
	in := &dbv1.RecordDeadLetterActionRequest{Action: &dbv1.DeadLetterAction{
		ActionId: uuid.Must(uuid.NewV7()).String(), LetterId: l.ID, Ordinal: ordinal,
		Topic: newest.Topic, Partition: newest.Partition, Offset: newest.Offset, EventId: l.Event.ID(), EventKey: l.Key,
		Action: string(action), Operator: o.Operator, Note: o.Note,
	}}
	db := dbv1.NewAdminClient(b.DB)
	_, err := db.RecordDeadLetterAction(ctx, in)
	if status.Code(err) == codes.Unavailable {
		// The action may have been recorded. The same action again is recorded once.
		_, err = db.RecordDeadLetterAction(ctx, in)
	}
	switch {
	case status.Code(err) == codes.AlreadyExists:
		return fmt.Errorf("letter %s: %w: %s", l.ID, ErrActed, status.Convert(err).Message())
	case err != nil:
		return fmt.Errorf("letter %s may have the action %s on record although nothing was sent; if list shows it, --again acts once more: %w", l.ID, action, err)
	}
	return nil
}
