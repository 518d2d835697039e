package db

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
	"pgw/shared/rpc"
)

// Reserve implements db.v1.Db.
func (d *DB) Reserve(ctx context.Context, in *commonv1.Payment) (*commonv1.Outcome, error) {
	return d.outcome(ctx, in, payment.Payment.Validate, d.ledger.Reserve)
}

// ReserveAndCommit implements db.v1.Db.
func (d *DB) ReserveAndCommit(ctx context.Context, in *commonv1.Payment) (*commonv1.Outcome, error) {
	return d.outcome(ctx, in, payment.Payment.Validate, d.ledger.ReserveAndCommit)
}

// Hold implements db.v1.Db.
func (d *DB) Hold(ctx context.Context, in *commonv1.Payment) (*commonv1.Outcome, error) {
	return d.outcome(ctx, in, payment.Payment.ValidateHold, d.ledger.Reserve)
}

// reserving is a method of the ledger that decides about a payment.
type reserving func(context.Context, payment.Payment) (ledger.Reserved, error)

// outcome is reserve for callers that need only the outcome.
func (d *DB) outcome(ctx context.Context, in *commonv1.Payment, check func(payment.Payment) error, decide reserving) (*commonv1.Outcome, error) {
	_, out, _, err := d.reserve(ctx, in, check, decide)
	if err != nil {
		return nil, err
	}
	return rpc.FromOutcome(out), nil
}

// ReserveFunds implements db.v1.Db.
func (d *DB) ReserveFunds(ctx context.Context, in *dbv1.ReserveFundsRequest) (*dbv1.ReserveFundsResponse, error) {
	check := payment.Payment.Validate
	if in.WalletHold {
		check = payment.Payment.ValidateHold
	}
	got, out, code, err := d.reserve(ctx, fundsPayment(in), check, d.ledger.Reserve)
	if err != nil {
		return nil, err
	}
	reason := got.Reason
	switch out.State {
	case "":
		reason = out.Reason // the claim belongs to another payment
	case payment.Pending:
		reason = "" // earlier callers know no reason of a hold
	}
	return &dbv1.ReserveFundsResponse{
		Status: int32(code), ReservationId: out.Ref, CurrentBalance: got.Balance,
		Message: cmp.Or(string(reason), string(out.State)), Reason: string(reason),
		ReservationStatus: string(out.State), Replay: got.Replay,
	}, nil
}

// fundsPayment returns the payment of a ReserveFunds request.
func fundsPayment(in *dbv1.ReserveFundsRequest) *commonv1.Payment {
	return &commonv1.Payment{
		IdempotencyKey: in.GetIdempotencyKey(), SenderId: in.GetSenderId(), ReceiverId: in.GetReceiverId(),
		AmountIdr: in.GetAmountIdr(), CurrencyInput: in.GetCurrencyInput(), AmountMinor: in.GetAmountMinor(),
		Rate: in.GetRate(), RateId: in.GetRateId(), RateTime: in.GetRateTime(), RuleSet: in.GetRuleSet(),
		TxDate: in.GetTxDate(), AcceptedAt: in.GetAcceptedAt(), Deadline: in.GetDeadline(), AttemptId: in.GetAttemptId(),
	}
}

// reserve has the ledger decide about a payment, and counts the result.
func (d *DB) reserve(ctx context.Context, in *commonv1.Payment, check func(payment.Payment) error, decide reserving) (
	got ledger.Reserved, out payment.Outcome, code dbv1.TxStatus, err error,
) {
	p, err := read(in, check)
	if err != nil {
		return got, out, code, invalid(err)
	}
	if got, err = decide(ctx, p); err != nil {
		return got, out, code, translated(err)
	}
	out = got.Outcome(p)
	code = reserveStatus(out)
	if got.Paid { // by this call, so it repeats none
		code = dbv1.TxStatus_OK
		d.metrics.commits.WithLabelValues(code.String()).Inc()
	}
	d.metrics.reserves.WithLabelValues(code.String()).Inc()
	return got, out, code, nil
}

func reserveStatus(out payment.Outcome) dbv1.TxStatus {
	switch {
	case out.Status == payment.Failed:
		return txStatus(out.Reason)
	case out.Replay || out.State == payment.Committed:
		return dbv1.TxStatus_DUPLICATE
	}
	return dbv1.TxStatus_OK
}

// CommitReservation implements db.v1.Db.
func (d *DB) CommitReservation(ctx context.Context, in *dbv1.CommitReservationRequest) (*dbv1.CommitReservationResponse, error) {
	id, err := uuid.Parse(in.ReservationId)
	if err != nil {
		return nil, invalid(fmt.Errorf("reservation_id: %w", err))
	}
	got, err := d.ledger.Finish(ctx, ledger.Finish{ReservationID: id, Key: in.IdempotencyKey})
	if err != nil {
		return nil, translated(err)
	}
	out := &dbv1.CommitReservationResponse{Status: dbv1.TxStatus_OK, Reason: string(got.Claim.Reason)}
	switch {
	case got.Done:
	case got.Claim.ReservationID == uuid.Nil || (in.IdempotencyKey != "" && got.Claim.Key != in.IdempotencyKey):
		out.Status, out.Reason = dbv1.TxStatus_NOT_FOUND, ""
		out.Message = "there is no such reservation for this key"
	case got.Claim.Status == payment.Committed:
		out.Status = dbv1.TxStatus_DUPLICATE
	case got.Claim.Status == payment.RolledBack:
		out.Status = dbv1.TxStatus_BAD_STATUS
	case got.Claim.Reason == payment.Authorized && !payment.Payment{Key: got.Claim.Key}.IsHold():
		out.Status, out.Message = dbv1.TxStatus_BAD_STATUS, "the payment is authorized, and only a capture commits it"
	default: // still PENDING: the receiver may not be paid, or the deadline has passed
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
		// Earlier callers write sentences. A client must not get FAILED with a reason that means
		// success.
		d.log.DebugContext(ctx, "rollback asked for", "reservation_id", in.ReservationId, "text", fmt.Sprintf("%.100q", in.Reason))
		reason = payment.CallerRolledBack
	}
	got, err := d.ledger.Finish(ctx, ledger.Finish{ReservationID: id, RollBack: reason})
	if err != nil {
		return nil, translated(err)
	}
	out := &dbv1.RollbackReservationResponse{Status: dbv1.TxStatus_OK, Message: string(got.Claim.Reason)}
	switch {
	case got.Done:
	case got.Claim.ReservationID == uuid.Nil:
		out.Status, out.Message = dbv1.TxStatus_NOT_FOUND, "there is no such reservation"
	case got.Claim.Status == payment.RolledBack:
		out.Status = dbv1.TxStatus_DUPLICATE
	case got.Claim.Status == payment.Committed, got.Claim.Reason == payment.Authorized:
		out.Status = dbv1.TxStatus_BAD_STATUS // only an operation or the sweep ends an authorized payment
	default:
		return nil, status.Errorf(codes.Internal, "the rollback left the reservation %s", got.Claim.Status)
	}
	d.metrics.rollbacks.WithLabelValues(out.Status.String()).Inc()
	return out, nil
}

// ReserveRefund implements db.v1.Db.
func (d *DB) ReserveRefund(ctx context.Context, in *commonv1.Operation) (*dbv1.OperationResponse, error) {
	o, err := rpc.ToOperation(in)
	if err == nil {
		err = o.ValidateRefund()
	}
	if err != nil {
		return nil, invalid(err)
	}
	got, err := d.ledger.Refund(ctx, o)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, noPayment
	}
	if err != nil {
		return nil, translated(err)
	}
	d.metrics.reserves.WithLabelValues(reserveStatus(got.Outcome).String()).Inc()
	out := &dbv1.OperationResponse{Outcome: rpc.FromOutcome(got.Outcome), Payment: rpc.FromRecord(got.Payment)}
	if got.Refund.IsRefund() {
		out.Refund = rpc.FromRecord(got.Refund)
	}
	return out, nil
}

// ListRefunds implements db.v1.Db.
func (d *DB) ListRefunds(ctx context.Context, in *dbv1.ListRefundsRequest) (*dbv1.ListRefundsResponse, error) {
	if err := payment.CheckID("payment_key", in.PaymentKey, payment.MaxKey); err != nil {
		return nil, invalid(err)
	}
	if err := payment.CheckClient(in.Client); err != nil {
		return nil, invalid(err)
	}
	if in.Limit < 0 || in.Limit > ledger.MaxRefunds {
		return nil, invalid(&payment.FieldError{Field: "limit", Problem: fmt.Sprintf("is %d; at most %d", in.Limit, ledger.MaxRefunds)})
	}
	found, err := d.ledger.Refunds(ctx, payment.ScopedKey{Client: in.Client, Key: in.PaymentKey}, cmp.Or(int(in.Limit), ledger.MaxRefunds))
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, noPayment
	}
	if err != nil {
		return nil, translated(err)
	}
	out := &dbv1.ListRefundsResponse{Refunds: make([]*commonv1.Record, len(found))}
	for i, rec := range found {
		out.Refunds[i] = rpc.FromRecord(rec)
	}
	return out, nil
}

// noPayment is the answer for a key that the ledger does not know.
var noPayment = status.Error(codes.NotFound, "the ledger has no payment of this key")

// PutQuote implements db.v1.Db.
func (d *DB) PutQuote(ctx context.Context, in *dbv1.PutQuoteRequest) (*dbv1.PutQuoteResponse, error) {
	n, err := newQuote(in)
	if err != nil {
		return nil, invalid(err)
	}
	got, err := d.ledger.PutQuote(ctx, n)
	var many *ledger.ManyQuotesError
	switch {
	case errors.As(err, &many):
		return &dbv1.PutQuoteResponse{RetryAfter: durationpb.New(many.RetryAfter)}, nil
	case err != nil:
		return nil, translated(err)
	}
	return &dbv1.PutQuoteResponse{Quote: quoteMessage(got)}, nil
}

func newQuote(in *dbv1.PutQuoteRequest) (n ledger.NewQuote, err error) {
	n = ledger.NewQuote{Client: in.Client, Lifetime: in.GetLifetime().AsDuration(), MaxOpen: int(in.MaxOpen)}
	if n.ID, err = quoteID(in.QuoteId); err != nil {
		return n, err
	}
	if err = payment.CheckClient(n.Client); err != nil {
		return n, err
	}
	n.Payment, err = read(in.GetPayment(), payment.Payment.ValidateQuote)
	return n, err
}

// FindQuote implements db.v1.Db.
func (d *DB) FindQuote(ctx context.Context, in *dbv1.FindQuoteRequest) (*dbv1.Quote, error) {
	id, err := quoteID(in.QuoteId)
	if err != nil {
		return nil, invalid(err)
	}
	got, err := d.ledger.Quote(ctx, id)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, status.Error(codes.NotFound, "there is no such quote")
	}
	if err != nil {
		return nil, translated(err)
	}
	return quoteMessage(got), nil
}

func quoteID(text string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil {
		return id, &payment.FieldError{Field: "quote_id", Problem: "is not a UUID"}
	}
	return id, nil
}

func quoteMessage(q ledger.Quote) *dbv1.Quote {
	return &dbv1.Quote{
		QuoteId: q.ID.String(), Client: q.Client, Payment: rpc.FromPayment(q.Payment),
		CreatedAt: rpc.Timestamp(q.Created), ExpiresAt: rpc.Timestamp(q.Expires),
	}
}

// Fail implements db.v1.Db.
func (d *DB) Fail(ctx context.Context, in *dbv1.CloseRequest) (*commonv1.Outcome, error) {
	return closeBy(ctx, in, payment.Reason.RollBack, d.ledger.Fail)
}

// Refuse implements db.v1.Db.
func (d *DB) Refuse(ctx context.Context, in *dbv1.CloseRequest) (*commonv1.Outcome, error) {
	refuse := func(ctx context.Context, p payment.Payment, reason payment.Reason) (ledger.Reserved, error) {
		// Only a claim made by an event has an attempt id, because reconcile looks for the event of
		// each attempt.
		p.AttemptID = ""
		return d.ledger.Refuse(ctx, p, reason)
	}
	return closeBy(ctx, in, payment.Reason.Refusal, refuse)
}

// closeBy closes a payment. allowed decides which reasons are accepted.
func closeBy(ctx context.Context, in *dbv1.CloseRequest, allowed func(payment.Reason) bool,
	end func(context.Context, payment.Payment, payment.Reason) (ledger.Reserved, error),
) (*commonv1.Outcome, error) {
	p, err := read(in.GetPayment(), payment.Payment.Validate)
	if err != nil {
		return nil, invalid(err)
	}
	reason := payment.Reason(in.Reason)
	if !allowed(reason) {
		return nil, invalid(fmt.Errorf("reason: a payment can't be closed for %.50q", in.Reason))
	}
	got, err := end(ctx, p, reason)
	if err != nil {
		return nil, translated(err)
	}
	return rpc.FromOutcome(got.Outcome(p)), nil
}

// CheckBalance implements db.v1.Db.
func (d *DB) CheckBalance(ctx context.Context, in *dbv1.CheckBalanceRequest) (*dbv1.CheckBalanceResponse, error) {
	if err := payment.CheckID("account_id", in.AccountId, payment.MaxAccountID); err != nil {
		return nil, invalid(err)
	}
	if in.AmountIdr < 0 {
		return nil, invalid(&payment.FieldError{Field: "amount_idr", Problem: "must not be negative"})
	}
	balance, err := d.ledger.Balance(ctx, in.AccountId)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, status.Errorf(codes.NotFound, "there is no account %s", in.AccountId)
	}
	if err != nil {
		return nil, translated(err)
	}
	return &dbv1.CheckBalanceResponse{Sufficient: balance >= in.AmountIdr, CurrentBalance: balance}, nil
}

// GetRandomAccounts implements db.v1.Db.
func (d *DB) GetRandomAccounts(ctx context.Context, _ *dbv1.GetRandomAccountsRequest) (*dbv1.GetRandomAccountsResponse, error) {
	ids, err := d.ledger.RandomAccounts(ctx, 2)
	if err != nil {
		return nil, translated(err)
	}
	if len(ids) < 2 {
		return nil, status.Error(codes.FailedPrecondition, "the ledger has fewer than two active accounts")
	}
	return &dbv1.GetRandomAccountsResponse{SenderId: ids[0], ReceiverId: ids[1]}, nil
}

// defaultPage is the number of payments on a page if the caller sets none.
const defaultPage = 20

// maxAccounts is the most accounts and prefixes of a list's request.
const maxAccounts = 1000

// Find implements db.v1.Db.
func (d *DB) Find(ctx context.Context, in *dbv1.FindRequest) (*commonv1.Record, error) {
	if err := payment.CheckID("idempotency_key", in.IdempotencyKey, payment.MaxKey); err != nil {
		return nil, invalid(err)
	}
	if err := payment.CheckClient(in.Client); err != nil {
		return nil, invalid(err)
	}
	key, read := payment.ScopedKey{Client: in.Client, Key: in.IdempotencyKey}, d.ledger.Payment
	if in.AnyClient || in.Client == "" {
		// A gateway of the release before names no client, and must not say that its client's payment
		// does not exist.
		read = d.ledger.PaymentOfAny
	}
	var rec payment.Record
	err := ledger.ErrNotFound
	if !in.ByRef {
		rec, err = read(ctx, key)
	}
	if errors.Is(err, ledger.ErrNotFound) && (in.OrRef || in.ByRef) {
		if ref, notUUID := uuid.Parse(in.IdempotencyKey); notUUID == nil {
			rec, err = d.ledger.PaymentByRef(ctx, ref)
		}
		if err == nil && in.Client != "" && !in.AnyClient && rec.Client != in.Client && rec.Client != "" {
			err = ledger.ErrNotFound
		}
	}
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, noPayment
	}
	if err != nil {
		return nil, translated(err)
	}
	return rpc.FromRecord(rec), nil
}

// List implements db.v1.Db.
func (d *DB) List(ctx context.Context, in *dbv1.ListRequest) (*dbv1.ListResponse, error) {
	s, err := searchOf(in)
	if err != nil {
		return nil, invalid(err)
	}
	found, next, err := d.ledger.Payments(ctx, s)
	if err != nil {
		return nil, translated(err)
	}
	out := &dbv1.ListResponse{SearchLimit: ledger.MaxSearched, NextBefore: next, Payments: make([]*commonv1.Record, len(found))}
	for i, rec := range found {
		out.Payments[i] = rpc.FromRecord(rec)
	}
	return out, nil
}

func searchOf(in *dbv1.ListRequest) (s ledger.Search, err error) {
	s = ledger.Search{Limit: int(in.Limit), Before: ledger.Newest, Account: in.AccountId}
	if s.Limit == 0 {
		s.Limit = defaultPage
	}
	if s.Limit > ledger.MaxPage {
		return s, &payment.FieldError{Field: "limit", Problem: fmt.Sprintf("is %d; at most %d", in.Limit, ledger.MaxPage)}
	}
	if in.Before != "" {
		if s.Before, err = uuid.Parse(in.Before); err != nil {
			return s, &payment.FieldError{Field: "before", Problem: "is not the id of a reservation"}
		}
	}
	if s.Account != "" {
		if err := payment.CheckID("account_id", s.Account, payment.MaxAccountID); err != nil {
			return s, err
		}
	}
	if s.Status, err = rpc.ToState(in.State); err != nil {
		return s, &payment.FieldError{Field: "state", Problem: err.Error()}
	}
	if in.Ref != "" {
		if s.Ref, err = uuid.Parse(in.Ref); err != nil {
			return s, &payment.FieldError{Field: "ref", Problem: "is not the id of a reservation"}
		}
	}
	if len(in.Accounts) > maxAccounts {
		return s, &payment.FieldError{Field: "accounts", Problem: fmt.Sprintf("has %d elements; at most %d", len(in.Accounts), maxAccounts)}
	}
	s.Accounts, s.Currency = in.Accounts, in.Currency
	if s.Currency != "" {
		if _, err := money.ParseCurrency(s.Currency); err != nil {
			return s, err
		}
	} else if in.MinMinor != 0 || in.MaxMinor != 0 {
		return s, &payment.FieldError{Field: "currency", Problem: "is missing: an amount needs it"}
	}
	s.MinMinor, s.MaxMinor = in.MinMinor, in.MaxMinor
	if in.From != nil {
		s.From = rpc.Time(in.From)
	}
	if in.To != nil {
		s.To = rpc.Time(in.To)
	}
	if !in.AnyClient {
		// Releases before clients took payments without the names of their clients.
		s.Clients = []string{in.Client, ""}
	}
	if err := payment.CheckClient(in.Client); err != nil {
		return s, err
	}
	s.Metadata = in.Metadata
	return s, payment.CheckMetadata(s.Metadata)
}

// read reads a payment from a request and checks it.
func read(in *commonv1.Payment, check func(payment.Payment) error) (payment.Payment, error) {
	p, err := rpc.ToPayment(in)
	if err != nil {
		return p, err
	}
	return p, check(p)
}

func invalid(err error) error { return status.Error(codes.InvalidArgument, err.Error()) }

// translated converts an error of the ledger into a gRPC error. If the connection of a batch broke,
// it is unknown whether the batch was committed. The caller may repeat the call, and then gets the
// claim.
func translated(err error) error {
	var bad *ledger.InvalidError
	switch {
	case errors.As(err, &bad):
		return invalid(err)
	case errors.Is(err, ledger.ErrFull):
		return status.Error(codes.ResourceExhausted, "the ledger's queue is full: try again later")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case postgres.BadData(err):
		return status.Error(codes.FailedPrecondition, err.Error())
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}
