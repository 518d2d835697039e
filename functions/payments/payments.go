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
	metrics
}

type metrics struct {
	settled, closed *prometheus.CounterVec // by status and reason
	letters         *prometheus.CounterVec // by outcome
}

func newMetrics(r *prometheus.Registry) metrics {
	auto := promauto.With(r)
	m := metrics{
		settled: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_payments_settled_total", Help: "Outcomes of settling.",
		}, []string{"status", "reason"}),
		closed: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_payments_closed_out_total", Help: "Dead letters closed out, by the payment's outcome.",
		}, []string{"status", "reason"}),
		letters: function.NewCounters(r, "pgw_payments_dead_letters_total",
			"Dead letters: closed_out, put_off until later, or refused for good, which parks them for a person.",
			"outcome", "closed_out", "put_off", "refused"),
	}
	for _, reason := range payment.Reasons {
		if reason.Recorded() {
			m.settled.WithLabelValues(string(reason.Status()), string(reason))
			m.closed.WithLabelValues(string(reason.Status()), string(reason))
		}
	}
	return m
}

// Function describes payments.
var Function = function.Describe(function.Function{
	Name: "payments", About: "settles payments in the ledger, and closes out those whose delivery gave up",
	Port: "19096", Calls: map[string]string{"db": "holds and moves the money", "fx": "prices what CreatePayment is asked for"},
	Publishes: function.Rarely, Events: "/",
}, build)

func build(cfg Config, on function.Dependencies) (*function.Service, error) {
	p := &Payments{
		cfg: cfg, db: dbv1.NewDbClient(on.Conns["db"]), fx: fxv1.NewFxServiceClient(on.Conns["fx"]),
		dead: NewLetters(cfg.Kafka), publish: on.Publisher, now: on.Now, metrics: newMetrics(on.Registry),
	}
	return &function.Service{
		GRPC:   func(r grpc.ServiceRegistrar) { paymentsv1.RegisterPaymentsServiceServer(r, p) },
		Events: p.takeDeadLetter,
	}, nil
}

// timings of the two ledger calls.
type timings struct{ reserve, commit time.Duration }

// settle takes one payment to its outcome, and counts it. An error means that the outcome is not
// known: the same call may be made again, and goes on where this one stopped.
func (p *Payments) settle(ctx context.Context, r payment.Payment) (payment.Outcome, timings, error) {
	outcome, took, err := p.reserveAndCommit(ctx, r)
	if err == nil {
		p.settled.WithLabelValues(string(outcome.Status), string(outcome.Reason)).Inc()
	}
	return outcome.Answer(), took, err
}

func (p *Payments) reserveAndCommit(ctx context.Context, r payment.Payment) (payment.Outcome, timings, error) {
	var took timings
	begun := time.Now()
	reserved, err := p.reserve(ctx, r)
	took.reserve = time.Since(begun)
	if err != nil || reserved.State != payment.Pending {
		return reserved, took, err
	}
	begun = time.Now()
	refused, err := p.commit(ctx, reserved.Ref, r.Key)
	took.commit = time.Since(begun)
	if err != nil {
		return payment.Outcome{}, took, err
	}
	if refused != "" {
		// Someone else may have ended the reservation meanwhile; then theirs is the outcome.
		why, err := p.rollBack(ctx, reserved.Ref, refused)
		if err != nil || why != "" {
			return payment.Decline(why), took, err
		}
	}
	return payment.Standing(payment.Committed, payment.ReasonCommitted, reserved.Ref, reserved.Replay), took, nil
}

// Settle implements payments.v1.PaymentsService.
func (p *Payments) Settle(ctx context.Context, in *commonv1.Payment) (*paymentsv1.SettleResponse, error) {
	r, err := rpc.ToPayment(in)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	outcome, took, err := p.settle(ctx, r)
	if err != nil {
		return nil, err
	}
	return &paymentsv1.SettleResponse{
		Outcome: rpc.FromOutcome(outcome), ReserveMicros: took.reserve.Microseconds(), CommitMicros: took.commit.Microseconds(),
	}, nil
}

// LogAndSettle implements payments.v1.PaymentsService.
func (p *Payments) LogAndSettle(ctx context.Context, in *paymentsv1.LogAndSettleRequest) (*paymentsv1.LogAndSettleResponse, error) {
	r, err := rpc.ToPayment(&commonv1.Payment{
		IdempotencyKey: in.IdempotencyKey, SenderId: in.SenderId, ReceiverId: in.ReceiverId,
		AmountIdr: in.AmountIdr, CurrencyInput: in.Currency, AmountMinor: in.AmountMinor,
		Rate: in.Rate, RateId: in.RateId, RateTime: in.RateTime, RuleSet: in.RuleSet, TxDate: in.TxDate,
		AcceptedAt: in.AcceptedAt, Deadline: in.Deadline, AttemptId: in.AttemptId,
	})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	outcome, took, err := p.settle(ctx, r)
	if err != nil {
		return nil, err
	}
	return &paymentsv1.LogAndSettleResponse{
		Status: string(outcome.Status), Message: string(outcome.Reason), ReservationId: outcome.Ref,
		ReserveMicros: took.reserve.Microseconds(), CommitMicros: took.commit.Microseconds(),
	}, nil
}

// CreatePayment implements payments.v1.PaymentsService.
func (p *Payments) CreatePayment(ctx context.Context, in *paymentsv1.CreatePaymentRequest) (*paymentsv1.CreatePaymentResponse, error) {
	currency, err := money.ParseCurrency(in.Currency.String())
	if err != nil || in.Currency == commonv1.Currency_CURRENCY_UNSPECIFIED {
		return created(payment.Decline(payment.UnsupportedCurrency)), nil
	}
	if in.AmountMinor <= 0 || in.AmountMinor > money.MaxMinor {
		return nil, status.Errorf(codes.InvalidArgument, "amount_minor: must be positive and at most %d", int64(money.MaxMinor))
	}
	price, err := p.fx.Convert(ctx, rpc.InRupiah(money.Amount{Minor: in.AmountMinor, Currency: currency}))
	if status.Code(err) == codes.NotFound {
		return created(payment.Decline(payment.UnsupportedCurrency)), nil
	}
	if err != nil {
		return nil, err
	}
	r, err := rpc.Priced(payment.Payment{
		Key: in.ClientTxId, Sender: in.SourceAccount, Receiver: in.DestinationAccount,
		Currency: currency, Minor: in.AmountMinor,
		AcceptedAt: p.now(), // no deadline: the ledger gives it one by its own clock
	}, price)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	outcome, _, err := p.settle(ctx, r)
	if err != nil {
		return nil, err
	}
	return created(outcome), nil
}

func created(o payment.Outcome) *paymentsv1.CreatePaymentResponse {
	return &paymentsv1.CreatePaymentResponse{PaymentId: o.Ref, Status: string(o.Status), Reason: string(o.Reason)}
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
	outcome, err := p.fail(ctx, r.Payment)
	if code := status.Code(err); code == codes.InvalidArgument || code == codes.FailedPrecondition {
		return fmt.Errorf("%w: close out %s: %w", event.ErrRefused, r.Key, err)
	}
	if err != nil {
		return fmt.Errorf("close out %s: %w", r.Key, err)
	}
	outbox := event.Outbox{Source: "/pgw/payments", Keys: &p.cfg.Keys, To: p.publish, Now: p.now}
	err = outbox.Result(ctx, p.cfg.Kafka.ResultTopic, event.PaymentResult{
		Key: r.Key, Outcome: outcome.Answer(), Fingerprint: r.Fingerprint(),
		AttemptID: r.AttemptID, ReplyTo: r.ReplyTo, SettledAt: p.now().UTC(),
	})
	if err != nil {
		return err
	}
	p.closed.WithLabelValues(string(outcome.Status), string(outcome.Reason)).Inc()
	return nil
}
