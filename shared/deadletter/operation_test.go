package deadletter

import (
	"context"
	"slices"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
)

// outgoing notes the events that an outbox publishes.
type outgoing []cloudevents.Event

func (s *outgoing) Publish(_ context.Context, _, _ string, e cloudevents.Event) error {
	*s = append(*s, e)
	return nil
}

// Letters of operations go back to where they entered the flow, and need a signature. The ledger can be
// asked for a refund by its own key. The others are closed out when payments has handled them.
func TestLettersOfOperations(t *testing.T) {
	var keys event.Keyring
	if err := keys.Decode("k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=:v2"); err != nil {
		t.Fatal(err)
	}
	box := &Box{Kafka: kafka.Config{RequestTopic: "requests", ResultTopic: "results"}}
	for _, kind := range payment.OperationKinds {
		var events outgoing
		outbox := event.Outbox{Source: "/test", Keys: &keys, To: &events, Now: time.Now}
		o := payment.Operation{Kind: kind, Key: "o", Payment: "p"}
		if err := outbox.RequestOperation(t.Context(), "", o, ""); err != nil {
			t.Fatal(err)
		}
		if err := outbox.OperationResult(t.Context(), "", event.ResultOf(o, payment.Decline(payment.Expired), payment.Record{}, payment.Record{})); err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"requests", "results"} {
			l := Letter{Event: events[i], Key: "p"}
			if topic, err := box.Front(l); err != nil || topic != want || !slices.Contains(needsSignature, l.Event.Type()) {
				t.Errorf("%s goes to %s, %v", l.Event.Type(), topic, err)
			}
		}
		l := Letter{Event: events[0], Key: "p", Copies: []Copy{{Place: kafka.Place{Topic: "letters", Offset: 4}}}}
		want := map[bool]string{true: "o", false: ""}[kind == payment.Refund]
		if got := claimOf(l).Key; got != want {
			t.Errorf("the ledger is asked for %q by a letter of a %s", got, kind)
		}
		for taken, want := range map[int64]State{4: Waiting, 5: ClosedOut} {
			if got := stateOf(l, false, "letters", map[int32]int64{0: taken}); got != want {
				t.Errorf("a %s is %s when payments is at %d, want %s", kind, got, taken, want)
			}
		}
		l.Copies[0].Topic = "parked"
		if got := stateOf(l, false, "letters", nil); got != Parked {
			t.Errorf("a parked %s is %s", kind, got)
		}
	}
}
