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

// This file has all calls to the ledger. The rest of the package does not use the messages of db.

// reserve claims the payment's key, and pays the receiver in the same transaction if the ledger can.
// The state of the outcome is PENDING if the funds are only held.
func (p *Payments) reserve(ctx context.Context, r payment.Payment) (payment.Outcome, error) {
	if !p.lacking.Known() {
		out, err := outcome(p.db.ReserveAndCommit(ctx, rpc.FromPayment(r)))
		if !p.lacking.Note(err) {
			return out, err
		}
	}
	return outcome(p.db.Reserve(ctx, rpc.FromPayment(r)))
}

// fail closes out a payment that cannot be delivered.
func (p *Payments) fail(ctx context.Context, r payment.Payment) (payment.Outcome, error) {
	return outcome(p.db.Fail(ctx, &dbv1.CloseRequest{Payment: rpc.FromPayment(r), Reason: string(payment.Undeliverable)}))
}

// operated is what the ledger says about an operation.
type operated struct {
	outcome payment.Outcome
	payment payment.Record // as it is afterwards
	refund  payment.Record // of a refund, and of a cancellation that refunds; else zero
}

// reserveRefund claims the refund's key and holds the funds. The state of the outcome is PENDING if they
// are held.
func (p *Payments) reserveRefund(ctx context.Context, o payment.Operation) (operated, error) {
	return toOperated(p.db.ReserveRefund(ctx, rpc.FromOperation(o)))
}

// capture pays the receiver of an authorized payment.
func (p *Payments) capture(ctx context.Context, o payment.Operation) (operated, error) {
	return toOperated(p.db.Capture(ctx, rpc.FromOperation(o)))
}

// void gives the money of a payment back that is not settled.
func (p *Payments) void(ctx context.Context, o payment.Operation) (operated, error) {
	return toOperated(p.db.Void(ctx, rpc.FromOperation(o)))
}

func toOperated(got *dbv1.OperationResponse, err error) (o operated, _ error) {
	if o.outcome, err = outcome(got.GetOutcome(), err); err != nil {
		return o, err
	}
	for _, r := range []struct {
		in   *commonv1.Record
		into *payment.Record
	}{{got.GetPayment(), &o.payment}, {got.GetRefund(), &o.refund}} {
		if r.in == nil {
			continue
		}
		if *r.into, err = rpc.ToRecord(r.in); err != nil {
			return o, status.Errorf(codes.Internal, "the ledger's answer cannot be used: %v", err)
		}
	}
	return o, nil
}

// find reads a payment that the ledger has.
func (p *Payments) find(ctx context.Context, key payment.ScopedKey) (payment.Record, error) {
	got, err := p.db.Find(ctx, &dbv1.FindRequest{IdempotencyKey: key.Key, Client: key.Client})
	if err != nil {
		return payment.Record{}, err
	}
	rec, err := rpc.ToRecord(got)
	if err != nil {
		return rec, status.Errorf(codes.Internal, "the ledger's answer cannot be used: %v", err)
	}
	return rec, nil
}

func outcome(got *commonv1.Outcome, err error) (payment.Outcome, error) {
	if err != nil {
		return payment.Outcome{}, err
	}
	o, err := rpc.ToOutcome(got)
	if err != nil {
		return payment.Outcome{}, status.Errorf(codes.Internal, "the ledger's answer cannot be used: %v", err)
	}
	return o, nil
}

// commit pays the receiver. refused is empty if that succeeded, else it is the reason for the
// rollback. The ledger decides whether the payment is too late, because its clock judges the
// deadline.
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

// rollBack returns the held money to the sender. recorded is the reason for which the payment is
// rolled back. It is empty if the payment is already committed.
func (p *Payments) rollBack(ctx context.Context, ref string, reason payment.Reason) (recorded payment.Reason, err error) {
	got, err := p.db.RollbackReservation(ctx, &dbv1.RollbackReservationRequest{ReservationId: ref, Reason: string(reason)})
	if err != nil {
		return "", err
	}
	switch {
	case got.Status == dbv1.TxStatus_OK, got.Status == dbv1.TxStatus_DUPLICATE:
		return payment.Reason(got.Message), nil
	case got.Status == dbv1.TxStatus_BAD_STATUS && got.Message == string(payment.ReasonCommitted):
		return "", nil
	default:
		// A status alone is no proof that the money moved. The call is made again.
		return "", status.Errorf(codes.Internal, "roll back %s: %s %s", ref, got.Status, got.Message)
	}
}
