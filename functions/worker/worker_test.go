package worker

import (
	"context"
	"fmt"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// payments is a fake of the function payments.
type payments struct {
	paymentsv1.UnimplementedPaymentsServiceServer
	outcome *commonv1.Outcome
	kept    *commonv1.Payment // as the ledger has it; nil: as it was sent
	of      *commonv1.Record  // the payment of an operation
	refund  *commonv1.Record
	err     error
	asked   []*commonv1.Payment
}

func (p *payments) Settle(_ context.Context, in *commonv1.Payment) (*paymentsv1.SettleResponse, error) {
	p.asked = append(p.asked, in)
	return &paymentsv1.SettleResponse{Outcome: p.outcome, Payment: p.kept, ReserveMicros: 3, CommitMicros: 4}, p.err
}

func (p *payments) Operate(_ context.Context, in *commonv1.Operation) (*paymentsv1.OperateResponse, error) {
	p.asked = append(p.asked, &commonv1.Payment{IdempotencyKey: in.IdempotencyKey})
	return &paymentsv1.OperateResponse{Outcome: p.outcome, Payment: p.of, Refund: p.refund}, p.err
}

// outbox notes what is published.
type outbox struct {
	events []cloudevents.Event
	topics []string
	err    error
}

func (o *outbox) Publish(_ context.Context, topic, key string, e cloudevents.Event) error {
	if o.err == nil {
		o.events, o.topics = append(o.events, e), append(o.topics, topic+" "+key)
	}
	return o.err
}

const testKeys = "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=:v2"

// A request is acknowledged only after its result is published. A request that may succeed later is
// put off. One that can never succeed is refused.
func TestHandle(t *testing.T) {
	var keys event.Keyring
	if err := keys.Decode(testKeys); err != nil {
		t.Fatal(err)
	}
	p := payment.Payment{Key: "k", Sender: "A", Receiver: "B", AmountIDR: 5000, Currency: money.IDR, Minor: 5000, AttemptID: "attempt"}
	requested := func(change func(*cloudevents.Event)) cloudevents.Event {
		e, err := event.Requested("/pgw/gateway", p, "http://waits.here", time.Now())
		if err == nil {
			err = keys.Sign(&e)
		}
		if err != nil {
			t.Fatal(err)
		}
		change(&e)
		return e
	}
	good := requested(func(*cloudevents.Event) {})
	settled := rpc.FromOutcome(payment.Standing(payment.Committed, payment.ReasonCommitted, "r", false))
	for name, tc := range map[string]struct {
		event    cloudevents.Event
		payments payments
		outbox   outbox
		want     string // acknowledged, put_off or refused, and the published outcome
		asked    bool
	}{
		"settled": {good, payments{outcome: settled}, outbox{}, "acknowledged SUCCESS committed r", true},
		"declined": {
			good, payments{outcome: rpc.FromOutcome(payment.Decline(payment.InsufficientFunds))}, outbox{},
			"acknowledged FAILED insufficient_funds ", true,
		},
		"payments is away":      {good, payments{err: status.Error(codes.Unavailable, "down")}, outbox{}, "put_off", true},
		"payments is full":      {good, payments{err: status.Error(codes.ResourceExhausted, "full")}, outbox{}, "put_off", true},
		"payments takes long":   {good, payments{err: status.Error(codes.DeadlineExceeded, "late")}, outbox{}, "put_off", true},
		"payments is older":     {good, payments{err: status.Error(codes.Unimplemented, "what?")}, outbox{}, "put_off", true},
		"it can never work":     {good, payments{err: status.Error(codes.InvalidArgument, "no")}, outbox{}, "refused", true},
		"the ledger refuses it": {good, payments{err: status.Error(codes.FailedPrecondition, "no")}, outbox{}, "refused", true},
		"no outcome":            {good, payments{outcome: &commonv1.Outcome{}}, outbox{}, "put_off", true},
		"an unknown outcome":    {good, payments{outcome: &commonv1.Outcome{Status: 99}}, outbox{}, "put_off", true},
		"the broker is away":    {good, payments{outcome: settled}, outbox{err: kafka.ErrNotSent}, "put_off", true},
		"not signed": {
			requested(func(e *cloudevents.Event) { e.SetExtension(event.ExtSignature, nil) }), payments{outcome: settled}, outbox{}, "refused", false,
		},
		"changed": {
			requested(func(e *cloudevents.Event) { e.SetID("other") }), payments{outcome: settled}, outbox{}, "refused", false,
		},
		"of another type": {
			requested(func(e *cloudevents.Event) { e.SetType(event.TypePaymentResult) }), payments{outcome: settled}, outbox{}, "refused", false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn := rpc.InProcess(func(r grpc.ServiceRegistrar) { paymentsv1.RegisterPaymentsServiceServer(r, &tc.payments) }, nil)
			service, err := build(Config{Keys: keys, Kafka: kafka.Config{ResultTopic: "results"}}, function.Dependencies{
				Conns: map[string]grpc.ClientConnInterface{"payments": conn}, Publisher: &tc.outbox, Now: time.Now, Registry: function.NewRegistry(),
			})
			if err != nil {
				t.Fatal(err)
			}
			err = service.Events(t.Context(), tc.event)
			got := "acknowledged"
			switch {
			case event.Refused(err):
				got = "refused"
			case err != nil:
				got = "put_off"
			}
			for i, e := range tc.outbox.events {
				result, err := event.Decode[event.PaymentResult](e)
				if err != nil || keys.Verify(e) != nil || tc.outbox.topics[i] != "results k" {
					t.Fatalf("published %s to %s: %v", e, tc.outbox.topics[i], err)
				}
				if result.ReplyTo != "http://waits.here" || result.AttemptID != "attempt" || result.Fingerprint != p.Fingerprint() ||
					result.ReserveMicros != 3 || result.CommitMicros != 4 {
					t.Errorf("published %+v", result)
				}
				got += fmt.Sprintf(" %s %s %s", result.Status, result.Reason, result.Ref)
			}
			if got != tc.want || (len(tc.payments.asked) > 0) != tc.asked {
				t.Errorf("%s, %v, after %d calls; want %s", got, err, len(tc.payments.asked), tc.want)
			}
		})
	}
}

// The result tells the price that the ledger has. A second attempt was priced at another time.
func TestTheResultTellsWhatMoved(t *testing.T) {
	var keys event.Keyring
	if err := keys.Decode(testKeys); err != nil {
		t.Fatal(err)
	}
	usd, _ := money.ParseCurrency("USD")
	sent := payment.Payment{
		Key: "k", Sender: "A", Receiver: "B", AmountIDR: 155_000, Currency: usd, Minor: 1000, AttemptID: "attempt",
		DebitCurrency: usd, CreditCurrency: usd, DebitMinor: 1000, CreditMinor: 1000,
	}
	other := sent
	other.DebitMinor, other.CreditMinor = 999, 999
	committed := payment.Standing(payment.Committed, payment.ReasonCommitted, "r", false)
	replayed := payment.Standing(payment.Committed, payment.ReasonCommitted, "r", true)
	mismatch := payment.Decline(payment.IdempotencyMismatch)
	mismatch.Replay = true
	for name, tc := range map[string]struct {
		payments payments
		debit    int64
		entries  int
	}{
		"settled":       {payments{outcome: rpc.FromOutcome(committed)}, 1000, 2},
		"replayed":      {payments{outcome: rpc.FromOutcome(replayed), kept: rpc.FromPayment(other)}, 999, 2},
		"declined":      {payments{outcome: rpc.FromOutcome(payment.Decline(payment.InsufficientFunds))}, 1000, 0},
		"another one's": {payments{outcome: rpc.FromOutcome(mismatch)}, 0, 0},
	} {
		out := &outbox{}
		conn := rpc.InProcess(func(r grpc.ServiceRegistrar) { paymentsv1.RegisterPaymentsServiceServer(r, &tc.payments) }, nil)
		service, err := build(Config{Keys: keys}, function.Dependencies{
			Conns: map[string]grpc.ClientConnInterface{"payments": conn}, Publisher: out, Now: time.Now, Registry: function.NewRegistry(),
		})
		if err != nil {
			t.Fatal(err)
		}
		e, err := event.Requested("/pgw/gateway", sent, "", time.Now())
		if err == nil {
			err = keys.Sign(&e)
		}
		if err == nil {
			err = service.Events(t.Context(), e)
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := event.Decode[event.PaymentResult](out.events[0])
		if err != nil || got.DebitMinor != tc.debit || len(got.Entries) != tc.entries {
			t.Errorf("%s: %+v, %v", name, got.Moved, err)
		}
	}
}

// An operation is carried out and told as a payment is. A payment that is not there may still come, until
// the operation is too late.
func TestHandleAnOperation(t *testing.T) {
	var keys event.Keyring
	if err := keys.Decode(testKeys); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	refund := payment.Operation{Kind: payment.Refund, Key: "r", Payment: "p", AttemptID: "attempt", AcceptedAt: now, Deadline: now.Add(time.Minute)}
	late := refund
	late.Deadline = now.Add(-time.Second)
	paid := payment.Record{Payment: payment.Payment{Key: "p", Sender: "A", Receiver: "B", AmountIDR: 100, Currency: money.IDR}}
	paid.Outcome, paid.RefundedMinor = payment.Standing(payment.Committed, payment.ReasonCommitted, "of", false), 60
	back := payment.Record{Payment: payment.Payment{Key: "r", Sender: "B", Receiver: "A", AmountIDR: 60, Currency: money.IDR}, PaymentKey: "p"}
	back.Outcome = payment.Standing(payment.Committed, payment.ReasonCommitted, "ref", false)
	settled := payments{outcome: rpc.FromOutcome(back.Outcome), of: rpc.FromRecord(paid), refund: rpc.FromRecord(back)}
	for name, tc := range map[string]struct {
		o        payment.Operation
		payments payments
		outbox   outbox
		want     string
	}{
		"refunded":             {refund, settled, outbox{}, "acknowledged SUCCESS committed ref, 60 of 100, [{B IDR -60 refund} {A IDR 60 refund}]"},
		"refused":              {refund, payments{outcome: rpc.FromOutcome(payment.Decline(payment.RefundExceedsPayment)), of: rpc.FromRecord(paid)}, outbox{}, "acknowledged FAILED refund_exceeds_payment , 60 of 100, []"},
		"payments is away":     {refund, payments{err: status.Error(codes.Unavailable, "down")}, outbox{}, "put_off"},
		"no payment yet":       {refund, payments{err: status.Error(codes.NotFound, "no")}, outbox{}, "put_off"},
		"no payment, and late": {late, payments{err: status.Error(codes.NotFound, "no")}, outbox{}, "refused"},
		"it can never work":    {refund, payments{err: status.Error(codes.InvalidArgument, "no")}, outbox{}, "refused"},
		"the broker is away":   {refund, settled, outbox{err: kafka.ErrNotSent}, "put_off"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := rpc.InProcess(func(r grpc.ServiceRegistrar) { paymentsv1.RegisterPaymentsServiceServer(r, &tc.payments) }, nil)
			service, err := build(Config{Keys: keys, Kafka: kafka.Config{ResultTopic: "results"}}, function.Dependencies{
				Conns: map[string]grpc.ClientConnInterface{"payments": conn}, Publisher: &tc.outbox, Now: time.Now, Registry: function.NewRegistry(),
			})
			if err != nil {
				t.Fatal(err)
			}
			asked := &outbox{}
			if err := (event.Outbox{Source: "/pgw/gateway", Keys: &keys, To: asked, Now: time.Now}).RequestOperation(t.Context(), "requests", tc.o, "http://waits.here"); err != nil {
				t.Fatal(err)
			}
			err = service.Events(t.Context(), asked.events[0])
			got := "acknowledged"
			switch {
			case event.Refused(err):
				got = "refused"
			case err != nil:
				got = "put_off"
			}
			for i, e := range tc.outbox.events {
				result, err := event.ReadOperationResult(e, &keys)
				if err != nil || tc.outbox.topics[i] != "results p" || result.Key != "r" || result.Payment != "p" || result.ReplyTo != "http://waits.here" ||
					result.AttemptID != "attempt" || result.Fingerprint != tc.o.Fingerprint() || result.ReceivedAt.IsZero() {
					t.Fatalf("published %+v to %s: %v", result, tc.outbox.topics[i], err)
				}
				got += fmt.Sprintf(" %s %s %s, %d of %d, %v", result.Status, result.Reason, result.Ref, result.RefundedMinor, result.AmountMinor, result.Entries)
			}
			if got != tc.want {
				t.Errorf("%s, %v; want %s", got, err, tc.want)
			}
		})
	}
}
