package deadletter

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
)

// ExtRedrive is the extension in which a redriven event carries the number of the action that sent
// it. If the event fails again, the records of the failure have it too. So it is known which
// failures came after which redrive, whatever the clocks say. It is not signed: a wrong number
// changes only the state that operators see.
const ExtRedrive = "pgwredrive"

// State of a letter.
type State string

// The states.
const (
	Waiting   State = "waiting"    // payments has not handled it yet
	ClosedOut State = "closed_out" // the payment or operation is decided
	Parked    State = "parked"     // it waits for an operator
	Redriven  State = "redriven"   // it was sent again, and has not failed since
	Discarded State = "discarded"
)

// Reason is why the last delivery of a letter's event failed.
type Reason string

// The reasons.
const (
	BadSignature Reason = "signature"   // the function did not accept the signature
	Refused      Reason = "refused"     // the function can never accept the event
	TooLarge     Reason = "too_large"   // no function takes so much
	PutOff       Reason = "unavailable" // the function could not handle the event, until the retries ended
	NoAnswer     Reason = "no_answer"   // the function did not answer, until the retries ended
)

// reasonOf returns the reason for the status of the last response; 0 means that there was none.
func reasonOf(code int) Reason {
	switch {
	case code == 0:
		return NoAnswer
	case code == http.StatusForbidden:
		return BadSignature
	case code == http.StatusRequestEntityTooLarge, code == http.StatusRequestHeaderFieldsTooLarge:
		return TooLarge
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return PutOff
	}
	return Refused
}

// Letter is one event that could not be delivered. It may have several records in Kafka: one in
// payments.deadletter, its copy in payments.parked, and more after each redrive that failed too. The
// fields without a comment are those of the newest record.
type Letter struct {
	ID string `json:"id"` // stays the same, however often the event fails
	kafka.Place
	At       time.Time         `json:"at"` // the time of the newest record
	Key      string            `json:"key"`
	Client   string            `json:"client,omitempty"` // whose payment it requests
	Event    cloudevents.Event `json:"event"`            // the event without the attributes of its failed delivery
	Function string            `json:"function"`         // the function that did not accept it
	Code     int               `json:"code"`             // the status of the last response; 0: there was none
	Reason   Reason            `json:"reason"`
	Message  string            `json:"message"`  // the text of the last response
	Attempts int               `json:"attempts"` // of the last delivery; 0: unknown
	Failures int               `json:"failures"` // how often its delivery was given up
	State    State             `json:"state"`
	// CutFrom is the original length of the record's value in bytes, if the event has only its
	// beginning. 0 means that the event is complete.
	CutFrom int64 `json:"cut_from,omitempty"`
	// Outcome is the status and the reason of the reservation that the ledger has for this key.
	Outcome string   `json:"outcome,omitempty"`
	Actions []Action `json:"actions,omitempty"`
	Copies  []Copy   `json:"copies"` // its records, the oldest first

	bare bool // its event has only the attributes that identify it; see Box.whole
}

// Position is the place of a letter in the order of Box.Read: by time, and then by the place of its
// newest record.
type Position struct {
	At time.Time
	kafka.Place
}

// Position returns the letter's position.
func (l Letter) Position() Position { return Position{l.At, l.Place} }

func (p Position) compare(other Position) int {
	return cmp.Or(p.At.Compare(other.At), cmp.Compare(p.Topic, other.Topic), cmp.Compare(p.Partition, other.Partition), cmp.Compare(p.Offset, other.Offset))
}

// String returns what ParsePosition reads.
func (p Position) String() string { return fmt.Sprintf("%d/%s", p.At.UnixMicro(), p.Place) }

// ParsePosition reads what String writes.
func ParsePosition(text string) (Position, error) {
	at, place, _ := strings.Cut(text, "/")
	micros, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return Position{}, errors.New("is not a position among the letters")
	}
	p, err := kafka.ParsePlace(place)
	if err != nil {
		return Position{}, errors.New("is not a position among the letters")
	}
	return Position{time.UnixMicro(micros).UTC(), p}, nil
}

// Copy is one record of a letter.
type Copy struct {
	kafka.Place
	At      time.Time `json:"at"`
	Redrive int32     `json:"redrive,omitempty"` // the number of the action that sent the event; 0: it was not redriven
}

// Action is an operator's action on a letter.
type Action struct {
	Action   ledger.Action `json:"action"`
	Operator string        `json:"operator"`
	Note     string        `json:"note"`
	At       time.Time     `json:"at"`

	ordinal int32       // 0: an earlier release recorded it
	place   kafka.Place // of the letter's newest record then
}

// idOf identifies an event by its source, id and time, and by its content. A place does not identify
// it, because a topic that is made again reuses places. An id alone does not either: two requests
// for the same payment have the same id, and nothing stops a forger from using it. The signature is
// left out, so that an event that is signed anew stays the same letter.
func idOf(e cloudevents.Event, key string, cutFrom int64) string {
	data := e.Data()
	if cutFrom > 0 {
		data = nil // each record may be cut to another length
	}
	at := ""
	if !e.Time().IsZero() {
		at = e.Time().UTC().Format(time.RFC3339Nano)
	}
	h := sha256.New()
	for _, field := range []string{e.Source(), e.ID(), e.Type(), at, key} {
		var size [4]byte
		binary.BigEndian.PutUint32(size[:], uint32(len(field)))
		h.Write(size[:])
		h.Write([]byte(field))
	}
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// with returns the letter with the records of another reading of it. Neither of the two is changed.
func (l Letter) with(other Letter) Letter {
	copies := slices.Concat(l.Copies, other.Copies)
	slices.SortFunc(copies, compare)
	if compare(l.newest(), other.newest()) < 0 {
		l = other
	}
	l.Copies = copies
	return l
}

func (l Letter) newest() Copy { return l.Copies[len(l.Copies)-1] }

// compare orders the records of one letter, the oldest first. Between topics their times decide.
func compare(a, b Copy) int {
	order := cmp.Compare(a.Redrive, b.Redrive)
	if a.Topic == b.Topic && a.Partition == b.Partition {
		return cmp.Or(order, cmp.Compare(a.Offset, b.Offset))
	}
	return cmp.Or(order, a.At.Compare(b.At), cmp.Compare(a.Topic, b.Topic))
}

// failures returns how often the delivery of a letter's event was given up: a failure leaves at most
// one record in each topic.
func failures(copies []Copy) (most int) {
	in := map[string]int{}
	for _, c := range copies {
		in[c.Topic]++
		most = max(most, in[c.Topic])
	}
	return most
}

// stateOf returns the state of a letter. taken has the offsets up to which payments has handled the
// dead-letter topic.
func stateOf(l Letter, decided bool, deadLetters string, taken map[int32]int64) State {
	newest := l.newest()
	var last Action
	if len(l.Actions) > 0 {
		last = l.Actions[len(l.Actions)-1]
	}
	switch {
	case last.Action == ledger.Discarded:
		return Discarded
	case decided:
		return ClosedOut
	case last.Action == ledger.Redriven && !last.failedBy(newest):
		return Redriven
	case newest.Topic == deadLetters && newest.Offset >= taken[newest.Partition]:
		return Waiting
	case newest.Topic == deadLetters && event.IsOperationRequest(l.Event):
		return ClosedOut // the ledger can't be asked for a capture, a void or a cancellation
	}
	// It is in payments.parked, or payments has refused it, and then it is also there.
	return Parked
}

// failedBy reports whether the record is of an event that failed after this redrive.
func (a Action) failedBy(c Copy) bool {
	if a.ordinal > 0 {
		return c.Redrive >= a.ordinal
	}
	if a.place.Topic == c.Topic && a.place.Partition == c.Partition {
		return c.Offset > a.place.Offset
	}
	return c.At.After(a.At)
}

// nextOrdinal is the number of the letter's next action.
func (l Letter) nextOrdinal() int32 {
	next := int32(1)
	for _, a := range l.Actions {
		next = max(next, a.ordinal+1)
	}
	return next
}

// redriveOf reads ExtRedrive.
func redriveOf(e cloudevents.Event) int32 {
	n, err := strconv.ParseInt(fmt.Sprint(e.Extensions()[ExtRedrive]), 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return int32(n)
}

// Named reports whether text names the letter: by its id, by its event's id, or by the place of one
// of its records.
func (l Letter) Named(text string) bool {
	return text == l.ID || text == l.Event.ID() || slices.ContainsFunc(l.Copies, func(c Copy) bool { return c.String() == text })
}

// needsSignature are the types of the events that functions accept only with a signature.
var needsSignature = []string{
	event.TypePaymentRequested, event.TypePaymentRequestedV2, event.TypePaymentRequestedV3, event.TypePaymentResult,
	event.TypeRefundRequested, event.TypeCaptureRequested, event.TypeVoidRequested, event.TypeCancelRequested,
	event.TypeRefundResult, event.TypeCaptureResult, event.TypeVoidResult, event.TypeCancelResult,
	event.TypeAccountOpened, event.TypeAccountFunded, event.TypeAccountFundedV2,
}
