// Package payments settles: it reserves in the ledger, then commits, or rolls back. It also closes out the
// payments whose delivery gave up.
package payments

import (
	"context"
	"fmt"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// Config of the function.
type Config struct {
	Keys event.Keyring `envconfig:"EVENT_KEYS" required:"true" desc:"ID:BASE64 keys that sign events, separated by commas"`
	// AllowUnsigned must be what worker's is: a dead letter is a request that worker could not settle.
	AllowUnsigned bool `envconfig:"ALLOW_UNSIGNED_REQUESTS" default:"false" desc:"take plain records of earlier producers"`
	Kafka         kafka.Config
}

// Publisher publishes the results of payments that are closed out.
type Publisher interface {
	Publish(ctx context.Context, topic, key string, e cloudevents.Event) error
}

// Payments is the function.
type Payments struct {
	paymentsv1.UnimplementedPaymentsServiceServer

	cfg     Config
	db      dbv1.DbClient
	fx      fxv1.FxServiceClient
	dead    Letters
	publish Publisher
	now     func() time.Time
	settled *prometheus.CounterVec
	closed  *prometheus.CounterVec
	letters *prometheus.CounterVec
}

// Function describes payments.
var Function = function.Describe(function.Function{
	Name: "payments", About: "settles payments in the ledger, and closes out those whose delivery gave up",
	Port: "19096", Calls: map[string]string{"db": "holds and moves the money", "fx": "prices what CreatePayment is asked for"},
	Publishes: function.Rarely, Events: "/",
}, build)

func build(cfg Config, on function.Dependencies) (*function.Service, error) {
	auto := promauto.With(on.Registry)
	p := &Payments{
		cfg: cfg, db: dbv1.NewDbClient(on.Conns["db"]), fx: fxv1.NewFxServiceClient(on.Conns["fx"]),
		dead: NewLetters(cfg.Kafka), publish: on.Publisher, now: on.Now,
		settled: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_payments_settled_total", Help: "Outcomes of settling.",
		}, []string{"status", "reason"}),
		closed: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_payments_closed_out_total", Help: "Dead letters closed out, by the payment's outcome.",
		}, []string{"status", "reason"}),
		letters: function.NewCounters(on.Registry, "pgw_payments_dead_letters_total",
			"Dead letters: closed_out, put_off until later, or refused for good, which parks them for a person.",
			"outcome", "closed_out", "put_off", "refused"),
	}
	for _, reason := range payment.Reasons {
		if reason.Recorded() {
			p.settled.WithLabelValues(string(reason.Status()), string(reason))
			p.closed.WithLabelValues(string(reason.Status()), string(reason))
		}
	}
	return &function.Service{
		GRPC:   func(r grpc.ServiceRegistrar) { paymentsv1.RegisterPaymentsServiceServer(r, p) },
		Events: p.takeDeadLetter,
	}, nil
}

// timings of the two ledger calls.
type timings struct{ reserve, commit time.Duration }

// settle takes one payment to its outcome. An error means that the outcome is not known: the same call may
// be made again, and goes on where this one stopped.
func (p *Payments) settle(ctx context.Context, in *dbv1.ReserveFundsRequest) (payment.Outcome, timings, error) {
	var took timings
	begun := time.Now()
	reserved, err := p.db.ReserveFunds(ctx, in)
	took.reserve = time.Since(begun)
	if err != nil {
		return payment.Outcome{}, took, err
	}
	success := payment.Outcome{Status: payment.Success, Reason: payment.ReasonCommitted, Ref: reserved.ReservationId}
	if reserved.Replay {
		success.Status, success.Reason = payment.SuccessReplay, payment.DuplicateIdempo
	}
	switch payment.ReservationStatus(reserved.ReservationStatus) {
	case payment.Committed:
		return success, took, nil
	case payment.Pending:
	default:
		return payment.Decline(payment.Reason(reserved.Reason)), took, nil
	}

	begun = time.Now()
	committed, err := p.db.CommitReservation(ctx, &dbv1.CommitReservationRequest{
		ReservationId: reserved.ReservationId, IdempotencyKey: in.IdempotencyKey,
	})
	took.commit = time.Since(begun)
	if err != nil {
		return payment.Outcome{}, took, err
	}
	if committed.Status == dbv1.TxStatus_OK || committed.Status == dbv1.TxStatus_DUPLICATE {
		return success, took, nil
	}
	outcome, err := p.rollBack(ctx, reserved.ReservationId, payment.Reason(committed.Reason), success)
	return outcome, took, err
}

// rollBack gives the hold back after a commit that the ledger refused, for a reason that is the ledger's to say: its
// clock judges the deadline. Someone else may have ended the reservation meanwhile; then theirs is the outcome.
func (p *Payments) rollBack(ctx context.Context, id string, refused payment.Reason, success payment.Outcome) (payment.Outcome, error) {
	reason := payment.CommitFailed
	if refused == payment.Expired {
		reason = payment.Expired
	}
	got, err := p.db.RollbackReservation(ctx, &dbv1.RollbackReservationRequest{ReservationId: id, Reason: string(reason)})
	if err != nil {
		return payment.Outcome{}, err
	}
	switch got.Status {
	case dbv1.TxStatus_OK, dbv1.TxStatus_DUPLICATE:
		return payment.Decline(payment.Reason(got.Message)), nil
	case dbv1.TxStatus_BAD_STATUS: // committed after all
		return success, nil
	default:
		return payment.Outcome{}, status.Errorf(codes.Internal, "roll back %s: %s %s", id, got.Status, got.Message)
	}
}

// LogAndSettle implements payments.v1.PaymentsService.
func (p *Payments) LogAndSettle(ctx context.Context, in *paymentsv1.LogAndSettleRequest) (*paymentsv1.LogAndSettleResponse, error) {
	outcome, took, err := p.settle(ctx, &dbv1.ReserveFundsRequest{
		IdempotencyKey: in.IdempotencyKey, SenderId: in.SenderId, ReceiverId: in.ReceiverId,
		AmountIdr: in.AmountIdr, CurrencyInput: in.Currency, AmountMinor: in.AmountMinor,
		Rate: in.Rate, RateId: in.RateId, RateTime: in.RateTime, RuleSet: in.RuleSet, TxDate: in.TxDate,
		AcceptedAt: in.AcceptedAt, Deadline: in.Deadline, AttemptId: in.AttemptId,
	})
	if err != nil {
		return nil, err
	}
	p.settled.WithLabelValues(string(outcome.Status), string(outcome.Reason)).Inc()
	return &paymentsv1.LogAndSettleResponse{
		Status: string(outcome.Status), Message: string(outcome.Reason), ReservationId: outcome.Ref,
		ReserveMicros: took.reserve.Microseconds(), CommitMicros: took.commit.Microseconds(),
	}, nil
}

// CreatePayment implements payments.v1.PaymentsService.
func (p *Payments) CreatePayment(ctx context.Context, in *paymentsv1.CreatePaymentRequest) (*paymentsv1.CreatePaymentResponse, error) {
	currency, err := money.ParseCurrency(in.Currency.String())
	if err != nil || in.Currency == commonv1.Currency_CURRENCY_UNSPECIFIED {
		return failed(payment.UnsupportedCurrency), nil
	}
	if in.AmountMinor <= 0 || in.AmountMinor > money.MaxMinor {
		return nil, status.Errorf(codes.InvalidArgument, "amount_minor: must be positive and at most %d", int64(money.MaxMinor))
	}
	priced, err := p.fx.Convert(ctx, &fxv1.ConvertRequest{FromCurrency: currency.String(), ToCurrency: money.IDR.String(), AmountMinor: &in.AmountMinor})
	if status.Code(err) == codes.NotFound {
		return failed(payment.UnsupportedCurrency), nil
	}
	if err != nil {
		return nil, err
	}
	outcome, _, err := p.settle(ctx, &dbv1.ReserveFundsRequest{
		IdempotencyKey: in.ClientTxId, SenderId: in.SourceAccount, ReceiverId: in.DestinationAccount,
		AmountIdr: priced.AmountMinor, CurrencyInput: currency.String(), AmountMinor: in.AmountMinor,
		Rate: priced.Rate, RateId: priced.RateId, RateTime: priced.RateTime,
		AcceptedAt: timestamppb.New(p.now()), // no deadline: the ledger gives it one by its own clock
	})
	if err != nil {
		return nil, err
	}
	p.settled.WithLabelValues(string(outcome.Status), string(outcome.Reason)).Inc()
	return &paymentsv1.CreatePaymentResponse{PaymentId: outcome.Ref, Status: string(outcome.Status), Reason: string(outcome.Reason)}, nil
}

func failed(r payment.Reason) *paymentsv1.CreatePaymentResponse {
	return &paymentsv1.CreatePaymentResponse{Status: string(payment.Failed), Reason: string(r)}
}

func (p *Payments) takeDeadLetter(ctx context.Context, e cloudevents.Event) error {
	err := p.closeOut(ctx, e)
	outcome := "closed_out"
	if event.Refused(err) {
		outcome = "refused"
	} else if err != nil {
		outcome = "put_off"
	}
	p.letters.WithLabelValues(outcome).Inc()
	return err
}

// closeOut ends a payment whose request could not be delivered: what is held goes back, the ledger says
// FAILED, and the result is published. A payment that was settled all the same stays settled, and that is
// what is published.
func (p *Payments) closeOut(ctx context.Context, e cloudevents.Event) error {
	r, err := event.ReadRequest(e, &p.cfg.Keys, p.cfg.AllowUnsigned)
	if err != nil {
		return err
	}
	if err := p.givenUp(ctx, e); err != nil {
		return err
	}
	got, err := p.db.FailPayment(ctx, &dbv1.FailPaymentRequest{
		Payment: &dbv1.ReserveFundsRequest{
			IdempotencyKey: r.Key, SenderId: r.Sender, ReceiverId: r.Receiver, AmountIdr: r.AmountIDR,
			CurrencyInput: r.Currency.String(), AmountMinor: r.Minor,
			Rate: r.Rate.String(), RateId: r.RateID, RateTime: rpc.Timestamp(r.RateTime), RuleSet: r.RuleSet, TxDate: r.TxDate,
			AcceptedAt: rpc.Timestamp(r.AcceptedAt), Deadline: rpc.Timestamp(r.Deadline), AttemptId: r.AttemptID,
		},
		Reason: string(payment.Undeliverable),
	})
	if code := status.Code(err); code == codes.InvalidArgument || code == codes.FailedPrecondition {
		return fmt.Errorf("%w: close out %s: %w", event.ErrRefused, r.Key, err)
	}
	if err != nil {
		return fmt.Errorf("close out %s: %w", r.Key, err)
	}
	outcome := payment.Decline(payment.Reason(got.Reason))
	if got.ReservationStatus == string(payment.Committed) {
		outcome = payment.Outcome{Status: payment.Success, Reason: payment.ReasonCommitted, Ref: got.ReservationId}
		if got.Replay {
			outcome.Status, outcome.Reason = payment.SuccessReplay, payment.DuplicateIdempo
		}
	}
	outbox := event.Outbox{Source: "/pgw/payments", Keys: &p.cfg.Keys, To: p.publish, Now: p.now}
	err = outbox.Result(ctx, p.cfg.Kafka.ResultTopic, event.PaymentResult{
		Key: r.Key, Outcome: outcome, Fingerprint: r.Fingerprint(),
		AttemptID: r.AttemptID, ReplyTo: r.ReplyTo, SettledAt: p.now().UTC(),
	})
	if err != nil {
		return err
	}
	p.closed.WithLabelValues(string(outcome.Status), string(outcome.Reason)).Inc()
	return nil
}
