package db

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/batch"
	"pgw/shared/event"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
	"pgw/shared/rpc"
)

// ReserveFunds implements db.v1.Db.
func (d *DB) ReserveFunds(ctx context.Context, in *dbv1.ReserveFundsRequest) (*dbv1.ReserveFundsResponse, error) {
	r, err := request(in)
	if err != nil {
		return nil, invalid(err)
	}
	got, err := d.ledger.reserve(ctx, r)
	if err != nil {
		return nil, unavailable(err)
	}
	out := &dbv1.ReserveFundsResponse{
		ReservationId: got.ReservationID.String(), CurrentBalance: got.Balance, Reason: string(got.Reason),
		ReservationStatus: string(got.Status), Replay: got.Replay,
	}
	code := dbv1.TxStatus_OK
	switch {
	case got.Mismatch(r):
		code = dbv1.TxStatus_BAD_STATUS
		out.Reason, out.ReservationId, out.ReservationStatus = string(payment.IdempotencyMismatch), "", ""
	case got.Status == payment.RolledBack:
		code = txStatus(got.Reason)
	case got.Replay || got.Status == payment.Committed:
		code = dbv1.TxStatus_DUPLICATE
	}
	out.Status, out.Message = int32(code), out.Reason
	if out.Message == "" {
		out.Message = string(got.Status)
	}
	d.metrics.reserves.WithLabelValues(code.String()).Inc()
	return out, nil
}

// CommitReservation implements db.v1.Db.
func (d *DB) CommitReservation(ctx context.Context, in *dbv1.CommitReservationRequest) (*dbv1.CommitReservationResponse, error) {
	id, err := uuid.Parse(in.ReservationId)
	if err != nil {
		return nil, invalid(fmt.Errorf("reservation_id: %w", err))
	}
	got, err := d.ledger.finish(ctx, Finish{ReservationID: id, Key: in.IdempotencyKey})
	if err != nil {
		return nil, unavailable(err)
	}
	out := &dbv1.CommitReservationResponse{Status: dbv1.TxStatus_OK, Reason: string(got.Claim.Reason)}
	switch {
	case got.Done:
	case got.Claim.ReservationID == uuid.Nil || (in.IdempotencyKey != "" && got.Key != in.IdempotencyKey):
		out.Status, out.Reason = dbv1.TxStatus_NOT_FOUND, ""
		out.Message = "there is no such reservation for this key"
	case got.Claim.Status == payment.Committed:
		out.Status = dbv1.TxStatus_DUPLICATE
	case got.Claim.Status == payment.RolledBack:
		out.Status = dbv1.TxStatus_BAD_STATUS
	default: // PENDING still: the receiver may not be paid, or the deadline has passed
		out.Status, out.Reason = dbv1.TxStatus_BAD_STATUS, string(payment.CommitFailed)
		out.Message = "the receiver is not active"
		if got.Overdue {
			out.Reason, out.Message = string(payment.Expired), "the deadline has passed"
		}
	}
	if out.Message == "" {
		out.Message = out.Reason
	}
	d.metrics.commits.WithLabelValues(out.Status.String()).Inc()
	return out, nil
}

// RollbackReservation implements db.v1.Db.
func (d *DB) RollbackReservation(ctx context.Context, in *dbv1.RollbackReservationRequest) (*dbv1.RollbackReservationResponse, error) {
	id, err := uuid.Parse(in.ReservationId)
	if err != nil {
		return nil, invalid(fmt.Errorf("reservation_id: %w", err))
	}
	reason := payment.Reason(in.Reason)
	if !reason.RollBack() {
		// Earlier callers write sentences, and a client must not hear FAILED for a reason that means success.
		d.log.DebugContext(ctx, "rollback asked for", "reservation_id", in.ReservationId, "text", fmt.Sprintf("%.100q", in.Reason))
		reason = payment.CallerRolledBack
	}
	got, err := d.ledger.finish(ctx, Finish{ReservationID: id, RollBack: reason})
	if err != nil {
		return nil, unavailable(err)
	}
	out := &dbv1.RollbackReservationResponse{Status: dbv1.TxStatus_OK, Message: string(got.Claim.Reason)}
	switch {
	case got.Done:
	case got.Claim.ReservationID == uuid.Nil:
		out.Status, out.Message = dbv1.TxStatus_NOT_FOUND, "there is no such reservation"
	case got.Claim.Status == payment.RolledBack:
		out.Status = dbv1.TxStatus_DUPLICATE
	default:
		out.Status = dbv1.TxStatus_BAD_STATUS
	}
	d.metrics.rollbacks.WithLabelValues(out.Status.String()).Inc()
	return out, nil
}

// FailPayment implements db.v1.Db.
func (d *DB) FailPayment(ctx context.Context, in *dbv1.FailPaymentRequest) (*dbv1.FailPaymentResponse, error) {
	r, err := request(in.GetPayment())
	if err != nil {
		return nil, invalid(err)
	}
	reason := payment.Reason(in.Reason)
	if !reason.RollBack() {
		return nil, invalid(fmt.Errorf("reason: a payment can't be rolled back for %.50q", in.Reason))
	}
	got, err := d.ledger.fail(ctx, r, reason)
	if err != nil {
		return nil, unavailable(err)
	}
	if got.Mismatch(r) {
		return &dbv1.FailPaymentResponse{ReservationStatus: string(payment.RolledBack), Reason: string(payment.IdempotencyMismatch), Replay: true}, nil
	}
	return &dbv1.FailPaymentResponse{
		ReservationId: got.ReservationID.String(), ReservationStatus: string(got.Status), Reason: string(got.Reason), Replay: got.Replay,
	}, nil
}

// RefusePayment implements db.v1.Db.
func (d *DB) RefusePayment(ctx context.Context, in *dbv1.RefusePaymentRequest) (*dbv1.RefusePaymentResponse, error) {
	r, err := request(in.GetPayment())
	if err != nil {
		return nil, invalid(err)
	}
	// Only a claim that an event asked for names its attempt: reconcile looks for the events of those.
	r.AttemptID = ""
	reason := payment.Reason(in.Reason)
	if !reason.Refusal() {
		return nil, invalid(fmt.Errorf("reason: a payment can't be refused for %.50q", in.Reason))
	}
	got, err := d.ledger.refuse(ctx, r, reason)
	if err != nil {
		return nil, unavailable(err)
	}
	if got.Mismatch(r) {
		return &dbv1.RefusePaymentResponse{
			ReservationStatus: string(payment.RolledBack), Reason: string(payment.IdempotencyMismatch), Replay: true,
		}, nil
	}
	return &dbv1.RefusePaymentResponse{
		ReservationId: got.ReservationID.String(), ReservationStatus: string(got.Status), Reason: string(got.Reason), Replay: got.Replay,
	}, nil
}

// CheckBalance implements db.v1.Db.
func (d *DB) CheckBalance(ctx context.Context, in *dbv1.CheckBalanceRequest) (*dbv1.CheckBalanceResponse, error) {
	if err := payment.CheckID("account_id", in.AccountId, payment.MaxAccountID); err != nil {
		return nil, invalid(err)
	}
	if in.AmountIdr < 0 {
		return nil, invalid(&payment.FieldError{Field: "amount_idr", Problem: "must not be negative"})
	}
	var balance int64
	err := d.reads.rows.run(ctx, func(ctx context.Context) error {
		return d.reads.pool.QueryRow(ctx, `SELECT balance_idr FROM wallet_accounts WHERE account_id = $1`, in.AccountId).Scan(&balance)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, status.Errorf(codes.NotFound, "there is no account %s", in.AccountId)
	}
	if err != nil {
		return nil, unavailable(fmt.Errorf("read balance: %w", err))
	}
	return &dbv1.CheckBalanceResponse{Sufficient: balance >= in.AmountIdr, CurrentBalance: balance}, nil
}

// GetRandomAccounts implements db.v1.Db.
func (d *DB) GetRandomAccounts(ctx context.Context, _ *dbv1.GetRandomAccountsRequest) (*dbv1.GetRandomAccountsResponse, error) {
	var ids []string
	err := d.reads.lists.run(ctx, func(ctx context.Context) (err error) {
		ids, err = postgres.RandomAccounts(ctx, d.reads.pool, 2)
		return err
	})
	if err != nil {
		return nil, unavailable(err)
	}
	if len(ids) < 2 {
		return nil, status.Error(codes.FailedPrecondition, "the ledger has fewer than two active accounts")
	}
	return &dbv1.GetRandomAccountsResponse{SenderId: ids[0], ReceiverId: ids[1]}, nil
}

// request checks what came over the wire.
func request(in *dbv1.ReserveFundsRequest) (payment.Payment, error) {
	currency, err := money.ParseCurrency(in.GetCurrencyInput())
	if err != nil {
		return payment.Payment{}, &payment.FieldError{Field: "currency_input", Problem: err.Error()}
	}
	r := payment.Payment{
		Key: in.IdempotencyKey, Sender: in.SenderId, Receiver: in.ReceiverId,
		Minor: in.AmountMinor, Currency: currency, AmountIDR: in.AmountIdr,
		RateID: in.RateId, RateTime: rpc.Time(in.RateTime), RuleSet: in.RuleSet, TxDate: in.TxDate,
		AcceptedAt: rpc.Time(in.AcceptedAt), Deadline: rpc.Time(in.Deadline), AttemptID: in.AttemptId,
	}
	if in.Rate != "" {
		if r.Rate, err = money.ParseRate(in.Rate); err != nil {
			return r, &payment.FieldError{Field: "rate", Problem: err.Error()}
		}
	}
	if in.WalletHold {
		return r, r.ValidateHold()
	}
	return r, r.Validate()
}

func invalid(err error) error { return status.Error(codes.InvalidArgument, err.Error()) }

// unavailable translates what the ledger could not do. Whether a batch whose connection broke was committed
// is not known; the same call may be made again, and then the claim tells.
func unavailable(err error) error {
	switch {
	case errors.Is(err, batch.ErrFull):
		return status.Error(codes.ResourceExhausted, "the ledger's queue is full: try again later")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case postgres.BadData(err):
		return status.Error(codes.FailedPrecondition, err.Error())
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %s", event.ErrRefused, fmt.Sprintf(format, args...))
}
