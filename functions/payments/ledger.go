package payments

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// What payments asks of the ledger. No message of db's goes further than this file.

// reserve claims the payment's key and holds the funds. The state of the outcome is PENDING when
// they are held.
func (p *Payments) reserve(ctx context.Context, r payment.Payment) (payment.Outcome, error) {
	return outcome(p.db.Reserve(ctx, rpc.FromPayment(r)))
}

// fail closes a payment out that can't be delivered.
func (p *Payments) fail(ctx context.Context, r payment.Payment) (payment.Outcome, error) {
	return outcome(p.db.Fail(ctx, &dbv1.CloseRequest{Payment: rpc.FromPayment(r), Reason: string(payment.Undeliverable)}))
}

func outcome(got *commonv1.Outcome, err error) (payment.Outcome, error) {
	if err != nil {
		return payment.Outcome{}, err
	}
	o, err := rpc.ToOutcome(got)
	if err != nil {
		return payment.Outcome{}, status.Errorf(codes.Internal, "the ledger answered what can't be used: %v", err)
	}
	return o, nil
}

// commit pays the receiver. refused is empty when that is done; else it is the reason to roll back
// for. Whether it is too late is the ledger's to say: its clock judges the deadline.
func (p *Payments) commit(ctx context.Context, ref, key string) (refused payment.Reason, err error) {
	got, err := p.db.CommitReservation(ctx, &dbv1.CommitReservationRequest{ReservationId: ref, IdempotencyKey: key})
	if err != nil {
		return "", err
	}
	switch {
	case got.Status == dbv1.TxStatus_OK, got.Status == dbv1.TxStatus_DUPLICATE:
		return "", nil
	case got.Reason == string(payment.Expired):
		return payment.Expired, nil
	default:
		return payment.CommitFailed, nil
	}
}

// rollBack gives the hold back to the sender. stands is the reason for which the payment is rolled
// back; it is empty when the payment is committed after all.
func (p *Payments) rollBack(ctx context.Context, ref string, why payment.Reason) (stands payment.Reason, err error) {
	got, err := p.db.RollbackReservation(ctx, &dbv1.RollbackReservationRequest{ReservationId: ref, Reason: string(why)})
	if err != nil {
		return "", err
	}
	switch got.Status {
	case dbv1.TxStatus_OK, dbv1.TxStatus_DUPLICATE:
		return payment.Reason(got.Message), nil
	case dbv1.TxStatus_BAD_STATUS:
		return "", nil
	default:
		return "", status.Errorf(codes.Internal, "roll back %s: %s %s", ref, got.Status, got.Message)
	}
}
