package db

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/payment"
)

// A function of the previous release gets answers in the messages that it knows. Above all, it must
// not treat a committed payment as failed.
func TestThePreviousReleaseIsServed(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	held, err := w.ReserveFunds(t.Context(), fundsRequest("paid", 1000))
	if err != nil || held.ReservationStatus != string(payment.Pending) {
		t.Fatal(held, err)
	}
	if got, err := w.GetPayment(t.Context(), &dbv1.GetPaymentRequest{IdempotencyKey: "paid"}); err != nil || got.ReservationStatus != "PENDING" ||
		got.Reason != "" || got.DecidedAt != nil || got.AmountIdr != 1000 || got.SenderId != "A" || len(got.Fingerprint) != 16 {
		t.Errorf("while it is held: %v, %v", got, err)
	}
	if _, err := w.CommitReservation(t.Context(), &dbv1.CommitReservationRequest{ReservationId: held.ReservationId}); err != nil {
		t.Fatal(err)
	}
	fail := func(key string, amount int64) *dbv1.FailPaymentResponse {
		t.Helper()
		got, err := w.FailPayment(t.Context(), &dbv1.FailPaymentRequest{Payment: fundsRequest(key, amount), Reason: string(payment.Undeliverable)})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := fail("paid", 1000); got.ReservationStatus != "COMMITTED" || got.ReservationId != held.ReservationId {
		t.Errorf("a payment that is settled: %v", got)
	}
	if got := fail("new", 1000); got.ReservationStatus != "ROLLEDBACK" || got.Reason != "undeliverable" || got.Replay {
		t.Errorf("a new key: %v", got)
	}
	if got := fail("paid", 2000); got.ReservationStatus != "ROLLEDBACK" || got.Reason != "idempotency_mismatch" || got.ReservationId != "" {
		t.Errorf("another payment's key: %v", got)
	}
	got, err := w.ListPayments(t.Context(), &dbv1.ListPaymentsRequest{ReservationStatus: "COMMITTED"})
	if err != nil || len(got.Payments) != 1 || got.Payments[0].IdempotencyKey != "paid" || got.Payments[0].Reason != "committed" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := w.ListPayments(t.Context(), &dbv1.ListPaymentsRequest{ReservationStatus: "SUCCESS"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a state that does not exist: %v", err)
	}
}
