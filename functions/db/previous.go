package db

import (
	"cmp"
	"context"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// A gateway or payments of the previous release may still run while functions are replaced one
// after the other. These RPCs answer them with the messages that they know.

// GetPayment implements db.v1.Db.
func (d *DB) GetPayment(ctx context.Context, in *dbv1.GetPaymentRequest) (*dbv1.GetPaymentResponse, error) {
	got, err := d.Find(ctx, &dbv1.FindRequest{IdempotencyKey: in.IdempotencyKey})
	if err != nil {
		return nil, err
	}
	return previousRecord(got), nil
}

// ListPayments implements db.v1.Db.
func (d *DB) ListPayments(ctx context.Context, in *dbv1.ListPaymentsRequest) (*dbv1.ListPaymentsResponse, error) {
	state := rpc.FromState(payment.ReservationStatus(in.ReservationStatus))
	if state == commonv1.ReservationState_RESERVATION_STATE_UNSPECIFIED && in.ReservationStatus != "" {
		return nil, invalid(&payment.FieldError{
			Field: "reservation_status", Problem: "must be PENDING, COMMITTED or ROLLEDBACK",
		})
	}
	// Its gateway names no client, and filters by the accounts of its client.
	got, err := d.List(ctx, &dbv1.ListRequest{Limit: in.Limit, Before: in.Before, AccountId: in.AccountId, State: state, AnyClient: true})
	if err != nil {
		return nil, err
	}
	out := &dbv1.ListPaymentsResponse{NextBefore: got.NextBefore, SearchLimit: got.SearchLimit}
	for _, rec := range got.Payments {
		out.Payments = append(out.Payments, previousRecord(rec))
	}
	return out, nil
}

// FailPayment implements db.v1.Db.
func (d *DB) FailPayment(ctx context.Context, in *dbv1.FailPaymentRequest) (*dbv1.FailPaymentResponse, error) {
	got, err := d.Fail(ctx, &dbv1.CloseRequest{Payment: fundsPayment(in.GetPayment()), Reason: in.Reason})
	if err != nil {
		return nil, err
	}
	return &dbv1.FailPaymentResponse{
		ReservationId: got.ReservationId, Reason: got.Reason, Replay: got.Replay,
		ReservationStatus: cmp.Or(stateName(got), string(payment.RolledBack)),
	}, nil
}

func previousRecord(in *commonv1.Record) *dbv1.GetPaymentResponse {
	p, out := in.Payment, in.Outcome
	reason := out.Reason
	if out.State == commonv1.ReservationState_RESERVATION_STATE_PENDING {
		reason = "" // the previous release knows no reason of a hold
	}
	return &dbv1.GetPaymentResponse{
		IdempotencyKey: p.IdempotencyKey, SenderId: p.SenderId, ReceiverId: p.ReceiverId, CurrencyInput: p.CurrencyInput,
		AmountMinor: p.AmountMinor, AmountIdr: p.AmountIdr, Rate: p.Rate, RateId: p.RateId, RateTime: p.RateTime,
		RuleSet: p.RuleSet, TxDate: p.TxDate, AcceptedAt: p.AcceptedAt, Deadline: p.Deadline, AttemptId: p.AttemptId,
		ReservationId: out.ReservationId, ReservationStatus: stateName(out), Reason: reason,
		ReservedAt: in.ReservedAt, DecidedAt: in.DecidedAt, Fingerprint: in.Fingerprint,
	}
}

func stateName(out *commonv1.Outcome) string {
	state, _ := rpc.ToState(out.State) // db made this state itself, so it is valid
	return string(state)
}
