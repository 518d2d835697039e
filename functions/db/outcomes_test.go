package db

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

func fundsRequest(key string, amount int64) *dbv1.ReserveFundsRequest {
	return &dbv1.ReserveFundsRequest{
		IdempotencyKey: key, SenderId: "A", ReceiverId: "B", AmountIdr: amount, CurrencyInput: "IDR", AttemptId: "1",
	}
}

// A client must not get FAILED with a reason that means something else, whatever reason a caller of
// RollbackReservation or FailPayment sends.
func TestAPaymentIsRolledBackForAReasonOfItsOwnKind(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	for _, reason := range payment.Reasons {
		held, err := w.ReserveFunds(t.Context(), fundsRequest("roll-"+string(reason), 1000))
		if err != nil || held.Status != int32(dbv1.TxStatus_OK) {
			t.Fatal(held, err)
		}
		got, err := w.RollbackReservation(t.Context(), &dbv1.RollbackReservationRequest{ReservationId: held.ReservationId, Reason: string(reason)})
		want := payment.CallerRolledBack
		if reason.RollBack() {
			want = reason
		}
		if err != nil || got.Status != dbv1.TxStatus_OK || got.Message != string(want) {
			t.Errorf("roll back for %s: %v, %v; want %s", reason, got, err, want)
		}
		_, err = w.Fail(t.Context(), &dbv1.CloseRequest{Payment: fundsPayment(fundsRequest("fail-"+string(reason), 1000)), Reason: string(reason)})
		if code := status.Code(err); (code == codes.OK) != reason.RollBack() || code != codes.OK && code != codes.InvalidArgument {
			t.Errorf("fail for %s: %v", reason, err)
		}
		_, err = w.Refuse(t.Context(), &dbv1.CloseRequest{Payment: fundsPayment(fundsRequest("refuse-"+string(reason), 1000)), Reason: string(reason)})
		if code := status.Code(err); (code == codes.OK) != reason.Refusal() || code != codes.OK && code != codes.InvalidArgument {
			t.Errorf("refuse for %s: %v", reason, err)
		}
	}
}

// A refusal claims its key. A later refusal does not change the existing claim of a key.
func TestARefusalIsAClaim(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	outcome := func(got *commonv1.Outcome, err error) payment.Outcome {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		out, err := rpc.ToOutcome(got)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	refuse := func(key, attempt string, amount int64) payment.Outcome {
		t.Helper()
		in := fundsPayment(fundsRequest(key, amount))
		in.AttemptId = attempt
		return outcome(w.Refuse(t.Context(), &dbv1.CloseRequest{Payment: in, Reason: string(payment.RiskAboveMax)}))
	}
	if got := refuse("new", "1", 1000); got.State != payment.RolledBack || got.Status != payment.Failed || got.Reason != "risk_above_max" || got.Replay {
		t.Errorf("a new key: %v", got)
	}
	if got, err := w.ReserveFunds(t.Context(), fundsRequest("new", 1000)); err != nil || got.Reason != "risk_above_max" || got.ReservationStatus != "ROLLEDBACK" {
		t.Errorf("an event that comes after the refusal: %v, %v", got, err)
	}
	if got := outcome(w.Reserve(t.Context(), fundsPayment(fundsRequest("new", 1000)))); got.Reason != "risk_above_max" || got.State != payment.RolledBack {
		t.Errorf("the same by Reserve: %v", got)
	}
	if got := refuse("new", "2", 2000); got.Reason != payment.IdempotencyMismatch || got.Status != payment.Failed || got.Ref != "" {
		t.Errorf("another request with the key: %v", got)
	}
	if got, err := w.Find(t.Context(), &dbv1.FindRequest{IdempotencyKey: "new"}); err != nil || got.Outcome.Reason != "risk_above_max" {
		t.Errorf("the answer to GET: %v, %v", got, err)
	}

	held, err := w.ReserveFunds(t.Context(), fundsRequest("held", 1000))
	if err != nil {
		t.Fatal(err)
	}
	if got := refuse("held", "2", 1000); got.State != payment.Pending || got.Status != "" || got.Reason != "" || !got.Replay {
		t.Errorf("a payment that holds money: %v", got)
	}
	if _, err := w.CommitReservation(t.Context(), &dbv1.CommitReservationRequest{ReservationId: held.ReservationId}); err != nil {
		t.Fatal(err)
	}
	if got := refuse("held", "2", 1000); got.State != payment.Committed || got.Ref != held.ReservationId {
		t.Errorf("a payment that is settled: %v", got)
	}
	if w.balance("A") != 999_000 || w.balance("B") != 1_001_000 {
		t.Errorf("A has %d, B %d", w.balance("A"), w.balance("B"))
	}
}
