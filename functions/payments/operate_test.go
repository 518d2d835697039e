package payments

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// ReserveRefund, Capture and Void answer what the test has set for them.
func (l *ledger) ReserveRefund(_ context.Context, in *commonv1.Operation) (*dbv1.OperationResponse, error) {
	return l.operation(l.refunded), cmpErr(l.refundErr, l.call("refund "+in.IdempotencyKey))
}

func (l *ledger) Capture(_ context.Context, in *commonv1.Operation) (*dbv1.OperationResponse, error) {
	return l.operation(l.ended), l.call("capture " + in.IdempotencyKey)
}

func (l *ledger) Void(_ context.Context, in *commonv1.Operation) (*dbv1.OperationResponse, error) {
	return l.operation(l.ended), l.call("void " + in.IdempotencyKey + " as " + in.Kind.String())
}

func (l *ledger) operation(o payment.Outcome) *dbv1.OperationResponse {
	paid := payment.Record{Payment: payment.Payment{Key: "p", Sender: "A", Receiver: "B", AmountIDR: 100, Currency: money.IDR}}
	paid.Outcome = payment.Standing(payment.Committed, payment.ReasonCommitted, "of", false)
	refund := paid
	refund.Key, refund.PaymentKey = "r", "p"
	return &dbv1.OperationResponse{Outcome: rpc.FromOutcome(o), Payment: rpc.FromRecord(paid), Refund: rpc.FromRecord(refund)}
}

func cmpErr(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

func operation(kind payment.OperationKind) payment.Operation {
	return payment.Operation{Kind: kind, Key: "o", Payment: "p", Note: "why", AttemptID: "attempt"}
}

func TestOperate(t *testing.T) {
	held := payment.Standing(payment.Pending, "", "r", false)
	tooLate := payment.Decline(payment.PaymentSettled)
	canceled := payment.Outcome{Status: payment.Success, Reason: payment.ReasonCommitted, State: payment.RolledBack, Ref: "of"}
	ok := &dbv1.CommitReservationResponse{Status: dbv1.TxStatus_OK}
	late := &dbv1.CommitReservationResponse{Status: dbv1.TxStatus_BAD_STATUS, Reason: string(payment.Expired)}
	rolled := &dbv1.RollbackReservationResponse{Status: dbv1.TxStatus_OK, Message: string(payment.Expired)}
	found := payment.Record{Payment: payment.Payment{Key: "p", AmountIDR: 100, Currency: money.IDR}, Outcome: payment.Standing(payment.Committed, payment.ReasonCommitted, "of", false)}
	for name, tc := range map[string]struct {
		kind   payment.OperationKind
		ledger ledger
		want   string
		calls  []string
	}{
		"refunded": {
			payment.Refund, ledger{refunded: held, committed: ok, found: found}, "SUCCESS committed r",
			[]string{"refund o", "commit r", "find", "find"},
		},
		"refused": {
			payment.Refund, ledger{refunded: payment.Decline(payment.RefundExceedsPayment)}, "FAILED refund_exceeds_payment ",
			[]string{"refund o"},
		},
		"too late to commit": {
			payment.Refund, ledger{refunded: held, committed: late, rolled: rolled, found: found}, "FAILED expired ",
			[]string{"refund o", "commit r", "roll back for expired", "find", "find"},
		},
		"no commit's answer": {payment.Refund, ledger{refunded: held, down: "commit r"}, "Unavailable", []string{"refund o", "commit r"}},
		"no such payment": {
			payment.Refund, ledger{refundErr: status.Error(codes.NotFound, "no")}, "NotFound", []string{"refund o"},
		},
		"captured": {payment.Capture, ledger{ended: canceled}, "SUCCESS committed of", []string{"capture o"}},
		"voided":   {payment.Void, ledger{ended: canceled}, "SUCCESS committed of", []string{"void o as OPERATION_KIND_VOID"}},
		"canceled": {payment.Cancel, ledger{ended: canceled}, "SUCCESS committed of", []string{"void o as OPERATION_KIND_CANCEL"}},
		"canceled after it was settled": {
			payment.Cancel, ledger{ended: tooLate, refunded: held, committed: ok, found: found}, "SUCCESS committed r",
			[]string{"void o as OPERATION_KIND_CANCEL", "refund " + operation(payment.Cancel).CancelKey("of"), "commit r", "find", "find"},
		},
		"voided after it was settled": {payment.Void, ledger{ended: tooLate}, "FAILED payment_settled ", []string{"void o as OPERATION_KIND_VOID"}},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := Function.Make(Config{}, function.Dependencies{Conns: map[string]grpc.ClientConnInterface{"db": tc.ledger.conn()}, Now: time.Now})
			if err != nil {
				t.Fatal(err)
			}
			got, err := paymentsv1.NewPaymentsServiceClient(f.InProcess()).Operate(t.Context(), rpc.FromOperation(operation(tc.kind)))
			text := status.Code(err).String()
			if err == nil {
				out, err := rpc.ToOutcome(got.Outcome)
				if err != nil {
					t.Fatal(err)
				}
				text = fmt.Sprintf("%s %s %s", out.Status, out.Reason, out.Ref)
			}
			if text != tc.want || !slices.Equal(tc.ledger.calls, tc.calls) {
				t.Errorf("%q, %v after %q; want %q after %q", text, err, tc.ledger.calls, tc.want, tc.calls)
			}
		})
	}
	l := &ledger{}
	f, err := Function.Make(Config{}, function.Dependencies{Conns: map[string]grpc.ClientConnInterface{"db": l.conn()}, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	wrong := operation(payment.Refund)
	wrong.Key = payment.CancelPrefix + "x"
	if _, err := paymentsv1.NewPaymentsServiceClient(f.InProcess()).Operate(t.Context(), rpc.FromOperation(wrong)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a reserved key: %v", err)
	}
}

// A dead letter of a refund ends it as undeliverable. One of another operation is carried out, or refused
// by the ledger as expired. Both are told.
func TestADeadOperationIsClosedOut(t *testing.T) {
	var keys event.Keyring
	if err := keys.Decode("k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=:v2"); err != nil {
		t.Fatal(err)
	}
	held := payment.Standing(payment.Pending, "", "r", false)
	found := payment.Record{Payment: payment.Payment{Key: "p", AmountIDR: 100, Currency: money.IDR}, Outcome: payment.Standing(payment.Committed, payment.ReasonCommitted, "of", false)}
	for name, tc := range map[string]struct {
		kind   payment.OperationKind
		ledger ledger
		want   string
	}{
		"a refund on its way": {
			payment.Refund, ledger{refunded: held, rolled: &dbv1.RollbackReservationResponse{Status: dbv1.TxStatus_OK, Message: string(payment.Undeliverable)}, found: found},
			"FAILED undeliverable pgw.refund.result.v1",
		},
		"a settled refund": {
			payment.Refund, ledger{refunded: payment.Standing(payment.Committed, payment.ReasonCommitted, "r", false)},
			"SUCCESS committed pgw.refund.result.v1",
		},
		"a late capture":     {payment.Capture, ledger{ended: payment.Decline(payment.Expired)}, "FAILED expired pgw.capture.result.v1"},
		"an unknown payment": {payment.Refund, ledger{refundErr: status.Error(codes.NotFound, "no")}, "refused"},
		"the ledger is away": {payment.Void, ledger{down: "void o as OPERATION_KIND_VOID"}, "put off"},
	} {
		t.Run(name, func(t *testing.T) {
			out := &outbox{}
			o := event.Outbox{Source: "/pgw/gateway", Keys: &keys, To: out, Now: time.Now}
			if err := o.RequestOperation(t.Context(), "requests", operation(tc.kind), "http://waits.here"); err != nil {
				t.Fatal(err)
			}
			e := out.events[0]
			letter := e.Clone()
			letter.SetExtension(event.ExtKafkaPartition, "1")
			letter.SetExtension(event.ExtKafkaOffset, "2")
			p := &Payments{
				cfg: Config{Keys: keys, Kafka: kafka.Config{ResultTopic: "results"}}, db: dbv1.NewDbClient(tc.ledger.conn()),
				dead: letters{event: &e}, publish: out, now: time.Now, metrics: newMetrics(function.NewRegistry()),
			}
			err := p.takeDeadLetter(t.Context(), letter)
			got := "put off"
			switch {
			case event.Refused(err):
				got = "refused"
			case err == nil:
				result, err := event.ReadOperationResult(out.events[1], &keys)
				if err != nil || result.Fingerprint != operation(tc.kind).Fingerprint() || result.ReplyTo != "http://waits.here" {
					t.Errorf("%+v, %v", result, err)
				}
				got = fmt.Sprintf("%s %s %s", result.Status, result.Reason, out.events[1].Type())
			}
			if got != tc.want {
				t.Errorf("%s, %v; want %s", got, err, tc.want)
			}
		})
	}
}
