package db

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

func operation(kind payment.OperationKind, key, of string) *commonv1.Operation {
	return rpc.FromOperation(payment.Operation{Kind: kind, Key: key, Payment: of, AttemptID: key + "-1"})
}

// authorize reserves a payment of 10,000 rupiah from A to B that is captured later.
func (w *world) authorize(key string) *commonv1.Outcome {
	w.t.Helper()
	p := pay(key, "A", "B", 10_000)
	p.HoldSeconds = 3600
	got, err := w.Reserve(w.t.Context(), rpc.FromPayment(p))
	if err != nil || got.Status != commonv1.Status_STATUS_SUCCESS || got.Reason != "authorized" || got.State != commonv1.ReservationState_RESERVATION_STATE_PENDING {
		w.t.Fatalf("authorize: %v, %v", got, err)
	}
	return got
}

// An authorized payment is captured or voided by calls of their own, and a plain commit leaves it.
func TestCaptureAndVoid(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	ctx := t.Context()
	held := w.authorize("k")
	if got, err := w.CommitReservation(ctx, &dbv1.CommitReservationRequest{ReservationId: held.ReservationId, IdempotencyKey: "k"}); err != nil ||
		got.Status != dbv1.TxStatus_BAD_STATUS || got.Reason != "authorized" {
		t.Errorf("a commit: %v, %v", got, err)
	}
	// Nobody would tell its client.
	if got, err := w.RollbackReservation(ctx, &dbv1.RollbackReservationRequest{ReservationId: held.ReservationId, Reason: "voided"}); err != nil ||
		got.Status != dbv1.TxStatus_BAD_STATUS || got.Message != "authorized" {
		t.Errorf("a rollback: %v, %v", got, err)
	}
	part := operation(payment.Capture, "c", "k")
	part.AmountMinor, part.Currency = 4000, "IDR"
	got, err := w.Capture(ctx, part)
	if err != nil || got.Outcome.Status != commonv1.Status_STATUS_SUCCESS || got.Outcome.Reason != "committed" || got.Outcome.ReservationId != held.ReservationId {
		t.Fatalf("capture: %v, %v", got, err)
	}
	if p := got.Payment; p.Payment.AmountIdr != 4000 || p.AuthorizedMinor != 10_000 || p.Outcome.State != commonv1.ReservationState_RESERVATION_STATE_COMMITTED ||
		p.Payment.HoldSeconds != 3600 {
		t.Errorf("the payment afterwards: %v", p)
	}
	if w.balance("A") != 996_000 || w.balance("B") != 1_004_000 {
		t.Errorf("A %d, B %d", w.balance("A"), w.balance("B"))
	}
	if got, err := w.Void(ctx, operation(payment.Void, "late", "k")); err != nil || got.Outcome.Reason != "payment_settled" {
		t.Errorf("a void after it: %v, %v", got, err)
	}
	w.authorize("k2")
	if got, err := w.Void(ctx, operation(payment.Void, "v", "k2")); err != nil || got.Outcome.Reason != "committed" || got.Payment.Outcome.Reason != "voided" {
		t.Errorf("void: %v, %v", got, err)
	}
	w.mustReserve(pay("on its way", "A", "B", 10))
	if got, err := w.Void(ctx, operation(payment.Cancel, "x", "on its way")); err != nil || got.Outcome.Reason != "committed" || got.Payment.Outcome.Reason != "canceled" {
		t.Errorf("cancel: %v, %v", got, err)
	}
	for name, tc := range map[string]struct {
		call func() (*dbv1.OperationResponse, error)
		want codes.Code
	}{
		"an unknown payment": {func() (*dbv1.OperationResponse, error) {
			return w.Capture(ctx, operation(payment.Capture, "c", "unknown"))
		}, codes.NotFound},
		"a capture as void": {func() (*dbv1.OperationResponse, error) { return w.Void(ctx, operation(payment.Capture, "c", "k")) }, codes.InvalidArgument},
		"a void as capture": {func() (*dbv1.OperationResponse, error) { return w.Capture(ctx, operation(payment.Void, "c", "k")) }, codes.InvalidArgument},
		"no key":            {func() (*dbv1.OperationResponse, error) { return w.Void(ctx, operation(payment.Void, "", "k")) }, codes.InvalidArgument},
		"a wallet hold": {func() (*dbv1.OperationResponse, error) {
			return w.Capture(ctx, operation(payment.Capture, "c", payment.HoldPrefix+"k"))
		}, codes.InvalidArgument},
	} {
		if _, err := tc.call(); status.Code(err) != tc.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := testutil.ToFloat64(w.metrics.operations.WithLabelValues("void", "FAILED")); n != 1 {
		t.Errorf("%g voids were refused", n)
	}
}

// The expiry of an authorized payment is told by an event of its own id, because the payment's first
// result said that it was authorized.
func TestAnExpiryIsTold(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	w.authorize("k")
	w.exec(`UPDATE reservations SET deadline = statement_timestamp() - interval '1 s'`)
	w.exec(`UPDATE authorizations SET expires_at = (SELECT deadline FROM reservations)`)
	swept, err := w.sweep(t.Context())
	if err != nil || swept.Expired != 1 || swept.RolledBack != 0 || len(w.published.events) != 1 {
		t.Fatalf("swept %+v, %v; published %v", swept, err, w.published.events)
	}
	got, err := event.ReadResult(w.published.events[0], &w.cfg.Keys)
	if err != nil || got.Status != payment.Failed || got.Reason != payment.AuthorizationExpired || got.Ref != "" {
		t.Errorf("told %+v, %v", got, err)
	}
	if n := testutil.ToFloat64(w.metrics.expired); n != 1 {
		t.Errorf("%g expired", n)
	}
	first, err := event.Result("/pgw/worker", event.PaymentResult{
		Key: "k", Fingerprint: got.Fingerprint, Outcome: payment.Standing(payment.Pending, payment.Authorized, "r", false),
	}, w.now())
	if err != nil || first.ID() == w.published.events[0].ID() {
		t.Errorf("both results have the id %s, %v", first.ID(), err)
	}
}

// Callers of earlier releases hear of a wallet hold what they have always heard.
func TestAWalletHoldSoundsAsBefore(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	in := fundsRequest(payment.HoldPrefix+"h", 1000)
	in.ReceiverId, in.WalletHold = payment.SettlementAccount, true
	for range 2 {
		got, err := w.ReserveFunds(t.Context(), in)
		if err != nil || got.Message != "PENDING" || got.Reason != "" || got.ReservationStatus != "PENDING" || got.ReservationId == "" {
			t.Fatalf("%v, %v", got, err)
		}
	}
	got, err := w.GetPayment(t.Context(), &dbv1.GetPaymentRequest{IdempotencyKey: payment.HoldPrefix + "h"})
	if err != nil || got.ReservationStatus != "PENDING" || got.Reason != "" {
		t.Errorf("%v, %v", got, err)
	}
	done, err := w.CommitReservation(t.Context(), &dbv1.CommitReservationRequest{ReservationId: got.ReservationId})
	if err != nil || done.Status != dbv1.TxStatus_OK {
		t.Errorf("captured: %v, %v", done, err)
	}
}
