package db

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

func refundOf(key, of string, minor int64) payment.Operation {
	return payment.Operation{
		Kind: payment.Refund, Key: key, Payment: of, Minor: minor, Currency: money.IDR, Note: "broken", AttemptID: key + "-1",
		AcceptedAt: time.Now(), Deadline: time.Now().Add(payment.DecideWithin),
	}
}

func TestARefundIsReservedCommittedAndListed(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	paid := w.mustReserve(pay("p", "A", "B", 100))
	w.mustFinish(ledger.Finish{ReservationID: paid.ReservationID})

	got, err := w.ReserveRefund(t.Context(), rpc.FromOperation(refundOf("r", "p", 60)))
	if err != nil {
		t.Fatal(err)
	}
	if got.Payment.RefundingMinor != 60 || got.Refund.PaymentKey != "p" || got.Refund.Note != "broken" || got.Refund.Payment.SenderId != "B" {
		t.Errorf("%v", got)
	}
	ref := got.Outcome.ReservationId
	done, err := w.CommitReservation(t.Context(), &dbv1.CommitReservationRequest{ReservationId: ref, IdempotencyKey: "r"})
	if err != nil || done.Status != dbv1.TxStatus_OK {
		t.Fatalf("%v, %v", done, err)
	}
	again, err := w.ReserveRefund(t.Context(), rpc.FromOperation(refundOf("r2", "p", 60)))
	if err != nil || again.Outcome.Reason != string(payment.RefundExceedsPayment) || again.Payment.RefundedMinor != 60 || again.Payment.RefundingMinor != 0 {
		t.Errorf("%v, %v", again, err)
	}
	list, err := w.ListRefunds(t.Context(), &dbv1.ListRefundsRequest{PaymentKey: "p"})
	if err != nil || len(list.Refunds) != 2 || list.Refunds[0].Payment.IdempotencyKey != "r" || list.Refunds[1].Outcome.Reason != string(payment.RefundExceedsPayment) {
		t.Errorf("%v, %v", list, err)
	}
	for name, err := range map[string]error{
		"a refund of nothing": func() error {
			_, err := w.ReserveRefund(t.Context(), rpc.FromOperation(refundOf("r3", "nobody's", 1)))
			return err
		}(),
		"a list of nothing": func() error {
			_, err := w.ListRefunds(t.Context(), &dbv1.ListRefundsRequest{PaymentKey: "nobody's"})
			return err
		}(),
	} {
		if status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*payment.Operation){
		"a void":            func(o *payment.Operation) { o.Kind = payment.Void },
		"another currency":  func(o *payment.Operation) { o.Currency, _ = money.ParseCurrency("USD") },
		"a negative amount": func(o *payment.Operation) { o.Minor = -1 },
		"another's cancel":  func(o *payment.Operation) { o.Key, o.Minor, o.Currency = payment.CancelPrefix+"x", 0, money.Currency{} },
	} {
		o := refundOf("r4", "p", 1)
		change(&o)
		if _, err := w.ReserveRefund(t.Context(), rpc.FromOperation(o)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A swept refund is told as a refund. That of a cancellation is told by the cancellation's own result.
func TestASweptRefundIsTold(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	paid := w.mustReserve(pay("p", "A", "B", 100))
	w.mustFinish(ledger.Finish{ReservationID: paid.ReservationID})
	part := refundOf("r", "p", 60)
	rest := refundOf(payment.Operation{Kind: payment.Cancel, Key: "x"}.CancelKey(paid.ReservationID.String()), "p", 0)
	rest.Currency = money.Currency{}
	for _, o := range []payment.Operation{part, rest} {
		if _, err := w.ledger.Refund(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	w.exec(`UPDATE reservations SET deadline = statement_timestamp() - interval '1 second' WHERE parent_id IS NOT NULL`)
	swept, err := w.sweep(t.Context())
	if err != nil || swept.RolledBack != 2 || len(w.published.events) != 1 {
		t.Fatalf("%+v, %v, %d events", swept, err, len(w.published.events))
	}
	got, err := event.ReadOperationResult(w.published.events[0], &w.cfg.Keys)
	if err != nil || got.Key != "r" || got.Payment != "p" || got.Reason != payment.Expired || got.Fingerprint != part.Fingerprint() ||
		got.AttemptID != "r-1" || got.AmountMinor != 100 || got.RefundedMinor != 0 || got.RefundingMinor != 0 || len(got.Entries) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if id := w.published.events[0].ID(); id != event.OperationResultID(got) {
		t.Errorf("the id is %s", id)
	}
}
