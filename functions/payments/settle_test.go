package payments

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

var errDown = status.Error(codes.Unavailable, "down")

// ledger is a fake of db. It answers as it is told, and notes what it is asked.
type ledger struct {
	dbv1.UnimplementedDbServer

	reserved  payment.Outcome
	committed *dbv1.CommitReservationResponse
	rolled    *dbv1.RollbackReservationResponse
	failed    payment.Outcome
	found     payment.Record
	refunded  payment.Outcome // of ReserveRefund
	refundErr error
	ended     payment.Outcome // of Capture and Void
	earlier   bool            // it is of an earlier release, which reserves and commits in two calls
	down      string          // the call that is not answered
	calls     []string
}

func (l *ledger) call(name string) error {
	l.calls = append(l.calls, name)
	if l.down == name {
		return errDown
	}
	return nil
}

func (l *ledger) Reserve(context.Context, *commonv1.Payment) (*commonv1.Outcome, error) {
	return rpc.FromOutcome(l.reserved), l.call("reserve")
}

func (l *ledger) ReserveAndCommit(context.Context, *commonv1.Payment) (*commonv1.Outcome, error) {
	if l.earlier {
		return nil, errors.Join(status.Error(codes.Unimplemented, "not in this release"), l.call("reserve and commit"))
	}
	return rpc.FromOutcome(l.reserved), l.call("reserve")
}

func (l *ledger) CommitReservation(_ context.Context, in *dbv1.CommitReservationRequest) (*dbv1.CommitReservationResponse, error) {
	return l.committed, l.call("commit " + in.ReservationId)
}

func (l *ledger) RollbackReservation(_ context.Context, in *dbv1.RollbackReservationRequest) (*dbv1.RollbackReservationResponse, error) {
	return l.rolled, l.call("roll back for " + in.Reason)
}

func (l *ledger) Fail(_ context.Context, in *dbv1.CloseRequest) (*commonv1.Outcome, error) {
	return rpc.FromOutcome(l.failed), l.call("fail for " + in.Reason)
}

func (l *ledger) Find(context.Context, *dbv1.FindRequest) (*commonv1.Record, error) {
	return rpc.FromRecord(l.found), l.call("find")
}

func (l *ledger) conn() grpc.ClientConnInterface {
	return rpc.InProcess(func(r grpc.ServiceRegistrar) { dbv1.RegisterDbServer(r, l) }, nil)
}

func answer(s dbv1.TxStatus, reason payment.Reason) *dbv1.CommitReservationResponse {
	return &dbv1.CommitReservationResponse{Status: s, Reason: string(reason)}
}

func rolledBack(s dbv1.TxStatus, message payment.Reason) *dbv1.RollbackReservationResponse {
	return &dbv1.RollbackReservationResponse{Status: s, Message: string(message)}
}

// Each answer of the ledger leads to one outcome. If the ledger does not answer, the outcome is
// unknown, and no further call is made. The caller repeats the request.
func TestSettle(t *testing.T) {
	held := payment.Standing(payment.Pending, "", "r", false)
	heldBefore := payment.Standing(payment.Pending, "", "r", true)
	for name, tc := range map[string]struct {
		ledger ledger
		want   string // status, reason and reference; or the code of an error
		calls  []string
	}{
		"settled by a ledger of an earlier release": {
			ledger{earlier: true, reserved: held, committed: answer(dbv1.TxStatus_OK, "")},
			"SUCCESS committed r", []string{"reserve and commit", "reserve", "commit r"},
		},
		"settled in two calls": {
			ledger{reserved: held, committed: answer(dbv1.TxStatus_OK, "")},
			"SUCCESS committed r", []string{"reserve", "commit r"},
		},
		"a redelivery whose commit was done": {
			ledger{reserved: held, committed: answer(dbv1.TxStatus_DUPLICATE, "")},
			"SUCCESS committed r", []string{"reserve", "commit r"},
		},
		"a second attempt that finishes the first": {
			ledger{reserved: heldBefore, committed: answer(dbv1.TxStatus_OK, "")},
			"SUCCESS_REPLAY duplicate_idempo r", []string{"reserve", "commit r"},
		},
		"a second attempt after the first": {
			ledger{reserved: payment.Standing(payment.Committed, payment.ReasonCommitted, "r", true)},
			"SUCCESS_REPLAY duplicate_idempo r", []string{"reserve"},
		},
		"settled in one call, or a redelivery after it": {
			ledger{reserved: payment.Standing(payment.Committed, payment.ReasonCommitted, "r", false)},
			"SUCCESS committed r", []string{"reserve"},
		},
		"refused": {
			ledger{reserved: payment.Standing(payment.RolledBack, payment.InsufficientFunds, "r", false)},
			"FAILED insufficient_funds ", []string{"reserve"},
		},
		"authorized, and not committed": {
			ledger{reserved: payment.Standing(payment.Pending, payment.Authorized, "r", false)},
			"SUCCESS authorized r", []string{"reserve"},
		},
		"a second attempt of an authorized payment": {
			ledger{reserved: payment.Standing(payment.Pending, payment.Authorized, "r", true)},
			"SUCCESS_REPLAY duplicate_idempo r", []string{"reserve"},
		},
		"the key of another request": {
			ledger{reserved: payment.Decline(payment.IdempotencyMismatch)},
			"FAILED idempotency_mismatch ", []string{"reserve"},
		},
		"the receiver was blocked meanwhile": {
			ledger{
				reserved: held, committed: answer(dbv1.TxStatus_BAD_STATUS, payment.CommitFailed),
				rolled: rolledBack(dbv1.TxStatus_OK, payment.CommitFailed),
			},
			"FAILED commit_failed ", []string{"reserve", "commit r", "roll back for commit_failed"},
		},
		"the deadline passed meanwhile": {
			ledger{
				reserved: held, committed: answer(dbv1.TxStatus_BAD_STATUS, payment.Expired),
				rolled: rolledBack(dbv1.TxStatus_OK, payment.Expired),
			},
			"FAILED expired ", []string{"reserve", "commit r", "roll back for expired"},
		},
		"the sweep rolled back first": {
			ledger{
				reserved: held, committed: answer(dbv1.TxStatus_BAD_STATUS, payment.Expired),
				rolled: rolledBack(dbv1.TxStatus_DUPLICATE, payment.Expired),
			},
			"FAILED expired ", []string{"reserve", "commit r", "roll back for expired"},
		},
		"another attempt committed after all": {
			ledger{
				reserved: held, committed: answer(dbv1.TxStatus_BAD_STATUS, payment.CommitFailed),
				rolled: rolledBack(dbv1.TxStatus_BAD_STATUS, payment.ReasonCommitted),
			},
			"SUCCESS committed r", []string{"reserve", "commit r", "roll back for commit_failed"},
		},
		"a roll back that ended nothing is no success": {
			ledger{
				reserved: held, committed: answer(dbv1.TxStatus_BAD_STATUS, payment.CommitFailed),
				rolled: rolledBack(dbv1.TxStatus_BAD_STATUS, ""),
			},
			"Internal", []string{"reserve", "commit r", "roll back for commit_failed"},
		},
		"a roll back of nothing": {
			ledger{
				reserved: held, committed: answer(dbv1.TxStatus_NOT_FOUND, ""), rolled: rolledBack(dbv1.TxStatus_NOT_FOUND, ""),
			},
			"Internal", []string{"reserve", "commit r", "roll back for commit_failed"},
		},
		"no answer to the reserve": {
			ledger{reserved: held, down: "reserve"}, "Unavailable", []string{"reserve"},
		},
		"no answer to the commit": {
			ledger{reserved: held, down: "commit r"}, "Unavailable", []string{"reserve", "commit r"},
		},
		"no answer to the roll back": {
			ledger{
				reserved: held, committed: answer(dbv1.TxStatus_BAD_STATUS, payment.CommitFailed), down: "roll back for commit_failed",
			},
			"Unavailable", []string{"reserve", "commit r", "roll back for commit_failed"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := &tc.ledger
			f, err := Function.Make(Config{}, function.Dependencies{Conns: map[string]grpc.ClientConnInterface{"db": l.conn()}})
			if err != nil {
				t.Fatal(err)
			}
			in := payment.Payment{Key: "k", Sender: "A", Receiver: "B", AmountIDR: 5000, Currency: money.IDR, Minor: 5000}
			got, err := paymentsv1.NewPaymentsServiceClient(f.InProcess()).Settle(t.Context(), rpc.FromPayment(in))
			var heard string
			if err != nil {
				heard = status.Code(err).String()
			} else if o, err := rpc.ToOutcome(got.Outcome); err != nil {
				t.Fatal(err)
			} else {
				heard = fmt.Sprintf("%s %s %s", o.Status, o.Reason, o.Ref)
			}
			if heard != tc.want || !slices.Equal(l.calls, tc.calls) {
				t.Errorf("%q after %q; want %q after %q", heard, l.calls, tc.want, tc.calls)
			}
		})
	}
}

// A ledger of an earlier release is not asked again and again for what it lacks.
func TestALedgerOfAnEarlierRelease(t *testing.T) {
	l := &ledger{earlier: true, reserved: payment.Standing(payment.Pending, "", "r", false), committed: answer(dbv1.TxStatus_OK, "")}
	p := &Payments{db: dbv1.NewDbClient(l.conn()), metrics: newMetrics(function.NewRegistry())}
	for range 3 {
		out, _, err := p.settle(t.Context(), payment.Payment{Key: "k", Sender: "A", Receiver: "B", AmountIDR: 1, Currency: money.IDR, Minor: 1})
		if err != nil || out.Status != payment.Success {
			t.Fatalf("%+v, %v", out, err)
		}
	}
	want := []string{"reserve and commit", "reserve", "commit r", "reserve", "commit r", "reserve", "commit r"}
	if !slices.Equal(l.calls, want) {
		t.Errorf("%q, want %q", l.calls, want)
	}
}

// If an earlier attempt has reserved, the price is that attempt's. Only a payment that is not in rupiah
// is read for it.
func TestSettleTellsThePriceThatTheLedgerHas(t *testing.T) {
	usd, _ := money.ParseCurrency("USD")
	sent := payment.Payment{
		Key: "k", Sender: "A", Receiver: "B", AmountIDR: 155_000, Currency: usd, Minor: 1000,
		DebitCurrency: usd, CreditCurrency: usd, DebitMinor: 1000, CreditMinor: 1000,
	}
	rupiah := payment.Payment{Key: "k", Sender: "A", Receiver: "B", AmountIDR: 155_000, Currency: usd, Minor: 1000}
	held := sent
	held.HoldSeconds = 60
	first := sent
	first.DebitMinor, first.CreditMinor = 999, 999
	committed := payment.Standing(payment.Committed, payment.ReasonCommitted, "r", true)
	mismatch := payment.Decline(payment.IdempotencyMismatch)
	mismatch.Replay = true
	for name, tc := range map[string]struct {
		sent   payment.Payment
		ledger ledger
		want   int64 // the debit; 0: none is told
	}{
		"a first attempt": {sent, ledger{reserved: payment.Standing(payment.Committed, payment.ReasonCommitted, "r", false)}, 0},
		"a part that was captured since": {
			held, ledger{reserved: payment.Standing(payment.Committed, payment.ReasonCommitted, "r", false)}, 999,
		},
		"a second attempt":  {sent, ledger{reserved: committed}, 999},
		"in rupiah":         {rupiah, ledger{reserved: committed}, 0},
		"another payment's": {sent, ledger{reserved: mismatch}, 0},
		"one that finishes the first": {
			sent, ledger{reserved: payment.Standing(payment.Pending, "", "r", true), committed: answer(dbv1.TxStatus_OK, "")}, 999,
		},
		"one that rolls the first back": {
			sent, ledger{
				reserved: payment.Standing(payment.Pending, "", "r", true), committed: answer(dbv1.TxStatus_BAD_STATUS, payment.CommitFailed),
				rolled: rolledBack(dbv1.TxStatus_OK, payment.CommitFailed),
			}, 999,
		},
	} {
		l := tc.ledger
		l.found = payment.Record{Payment: first, Outcome: payment.Standing(payment.Committed, payment.ReasonCommitted, "r", false)}
		p := &Payments{db: dbv1.NewDbClient(l.conn()), metrics: newMetrics(function.NewRegistry())}
		got, err := p.Settle(t.Context(), rpc.FromPayment(tc.sent))
		if err != nil || got.GetPayment().GetDebitMinor() != tc.want {
			t.Errorf("%s: %+v, %v; want %d", name, got, err, tc.want)
		}
	}
	l := ledger{reserved: committed, down: "find"}
	p := &Payments{db: dbv1.NewDbClient(l.conn()), metrics: newMetrics(function.NewRegistry())}
	if _, err := p.Settle(t.Context(), rpc.FromPayment(sent)); status.Code(err) != codes.Unavailable {
		t.Errorf("not read: %v", err)
	}
}

// rates is a fake of fx.
type rates struct {
	fxv1.UnimplementedFxServiceServer
	err error
}

func (r rates) Convert(_ context.Context, in *fxv1.ConvertRequest) (*fxv1.ConvertResponse, error) {
	return &fxv1.ConvertResponse{AmountMinor: *in.AmountMinor * 155, Rate: "15500", RateId: "rate"}, r.err
}

// CreatePayment converts the amount first. If a currency has no rate, the payment is refused. If fx
// does not answer, CreatePayment returns an error, and does not call the ledger.
func TestCreatePaymentPricesFirst(t *testing.T) {
	for name, tc := range map[string]struct {
		currency commonv1.Currency
		amount   int64
		fx       error
		want     string
		asked    bool
	}{
		"settled":            {commonv1.Currency_USD, 1000, nil, "SUCCESS committed", true},
		"no currency":        {commonv1.Currency_CURRENCY_UNSPECIFIED, 1000, nil, "FAILED unsupported_currency", false},
		"no rate":            {commonv1.Currency_USD, 1000, status.Error(codes.NotFound, "no rate"), "FAILED unsupported_currency", false},
		"no amount":          {commonv1.Currency_USD, 0, nil, "InvalidArgument", false},
		"fx does not answer": {commonv1.Currency_USD, 1000, errDown, "Unavailable", false},
	} {
		t.Run(name, func(t *testing.T) {
			l := &ledger{reserved: payment.Standing(payment.Pending, "", "r", false), committed: answer(dbv1.TxStatus_OK, "")}
			fx := rpc.InProcess(func(r grpc.ServiceRegistrar) { fxv1.RegisterFxServiceServer(r, rates{err: tc.fx}) }, nil)
			f, err := Function.Make(Config{}, function.Dependencies{Conns: map[string]grpc.ClientConnInterface{"db": l.conn(), "fx": fx}})
			if err != nil {
				t.Fatal(err)
			}
			got, err := paymentsv1.NewPaymentsServiceClient(f.InProcess()).CreatePayment(t.Context(), &paymentsv1.CreatePaymentRequest{
				AmountMinor: tc.amount, Currency: tc.currency, SourceAccount: "A", DestinationAccount: "B", ClientTxId: "k",
			})
			heard := status.Code(err).String()
			if err == nil {
				heard = got.Status + " " + got.Reason
			}
			if heard != tc.want || (len(l.calls) > 0) != tc.asked {
				t.Errorf("%q, and the ledger was asked %q; want %q", heard, l.calls, tc.want)
			}
		})
	}
}

// letters is a fake of the topic of dead letters.
type letters struct {
	event *cloudevents.Event
	err   error
}

func (l letters) Read(context.Context, int32, int64) (cloudevents.Event, bool, error) {
	if l.event == nil {
		return cloudevents.Event{}, false, l.err
	}
	return *l.event, true, l.err
}

// outbox notes what is published.
type outbox struct {
	events []cloudevents.Event
	err    error
}

func (o *outbox) Publish(_ context.Context, _, _ string, e cloudevents.Event) error {
	if o.err == nil {
		o.events = append(o.events, e)
	}
	return o.err
}

// A payment whose delivery was given up is closed out once, and its outcome is published. An event
// that can't be read, verified or recorded now is put off. An event that can never be handled is
// refused, and waits for an operator.
func TestCloseOut(t *testing.T) {
	var keys event.Keyring
	if err := keys.Decode("k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=:v2"); err != nil {
		t.Fatal(err)
	}
	p := payment.Payment{Key: "k", Sender: "A", Receiver: "B", AmountIDR: 5000, Currency: money.IDR, Minor: 5000, AttemptID: "a"}
	requested := func(change func(*cloudevents.Event)) *cloudevents.Event {
		e, err := event.Requested("/pgw/gateway", p, "", time.Now())
		if err == nil {
			err = keys.Sign(&e)
		}
		if err != nil {
			t.Fatal(err)
		}
		e.SetExtension(event.ExtKafkaPartition, "0")
		e.SetExtension(event.ExtKafkaOffset, "7")
		change(&e)
		return &e
	}
	as := func(*cloudevents.Event) {}
	undeliverable := payment.Standing(payment.RolledBack, payment.Undeliverable, "r", false)
	for name, tc := range map[string]struct {
		event   *cloudevents.Event
		letters func(*cloudevents.Event) letters
		ledger  ledger
		outbox  outbox
		want    string // closed_out, put_off or refused, and what was published
	}{
		"closed out": {event: requested(as), ledger: ledger{failed: undeliverable}, want: "closed_out FAILED undeliverable"},
		"it was settled all the same": {
			event: requested(as), ledger: ledger{failed: payment.Standing(payment.Committed, payment.ReasonCommitted, "r", false)},
			want: "closed_out SUCCESS committed",
		},
		"the ledger does not answer": {event: requested(as), ledger: ledger{failed: undeliverable, down: "fail for undeliverable"}, want: "put_off"},
		"the broker does not answer": {event: requested(as), ledger: ledger{failed: undeliverable}, outbox: outbox{err: errDown}, want: "put_off"},
		"the topic can't be read": {
			event: requested(as), letters: func(*cloudevents.Event) letters { return letters{err: errors.New("away")} }, want: "put_off",
		},
		"no letter stands there": {event: requested(as), letters: func(*cloudevents.Event) letters { return letters{} }, want: "refused"},
		"another letter stands there": {
			event: requested(as),
			letters: func(*cloudevents.Event) letters {
				return letters{event: requested(func(e *cloudevents.Event) { e.SetID("other") })}
			},
			want: "refused",
		},
		"no place":     {event: requested(func(e *cloudevents.Event) { e.SetExtension(event.ExtKafkaOffset, nil) }), want: "refused"},
		"no signature": {event: requested(func(e *cloudevents.Event) { e.SetExtension(event.ExtSignature, nil) }), want: "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			dead := letters{event: tc.event}
			if tc.letters != nil {
				dead = tc.letters(tc.event)
			}
			one := &Payments{
				cfg: Config{Keys: keys}, db: dbv1.NewDbClient(tc.ledger.conn()), dead: dead, publish: &tc.outbox, now: time.Now,
				metrics: newMetrics(function.NewRegistry()),
			}
			err := one.takeDeadLetter(t.Context(), *tc.event)
			got := "closed_out"
			switch {
			case event.Refused(err):
				got = "refused"
			case err != nil:
				got = "put_off"
			}
			for _, e := range tc.outbox.events {
				result, err := event.Decode[event.PaymentResult](e)
				if err != nil || keys.Verify(e) != nil {
					t.Fatalf("published %s: %v", e, err)
				}
				got += fmt.Sprintf(" %s %s", result.Status, result.Reason)
			}
			if got != tc.want {
				t.Errorf("%s: %v; want %s", got, err, tc.want)
			}
		})
	}
}
