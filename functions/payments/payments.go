// Package payments settles payments: it reserves the money in the ledger, then commits or rolls
// back. It also closes out the payments whose delivery was given up.
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
	Keys event.Keyring `envconfig:"EVENT_KEYS" required:"true" desc:"keys that sign events, as ID:BASE64:v2, separated by commas"`
	// AllowUnsigned must be the same as in worker: a dead letter is a request that worker could not
	// settle.
	AllowUnsigned bool `envconfig:"ALLOW_UNSIGNED_REQUESTS" default:"false" desc:"accept unsigned plain records of earlier producers"`
	Kafka         kafka.Config
}

// Payments is the function.
type Payments struct {
	paymentsv1.UnimplementedPaymentsServiceServer

	cfg     Config
	db      dbv1.DbClient
	lacking rpc.Lacking // db lacks ReserveAndCommit, so each payment takes two calls
	fx      fxv1.FxServiceClient
	dead    Letters
	publish event.Publisher
	now     func() time.Time
	metrics
}

type metrics struct {
	settled, closed *prometheus.CounterVec // by status and reason
	operated        *prometheus.CounterVec // by operation, status and reason
	letters         *prometheus.CounterVec // by outcome
}

func newMetrics(r *prometheus.Registry) metrics {
	auto := promauto.With(r)
	m := metrics{
		settled: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_payments_settled_total", Help: "Settled payments, by outcome.",
		}, []string{"status", "reason"}),
		closed: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_payments_closed_out_total", Help: "Dead letters closed out, by the payment's outcome.",
		}, []string{"status", "reason"}),
		operated: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_payments_operations_total", Help: "Refunds, captures, voids and cancellations, by outcome.",
		}, []string{"operation", "status", "reason"}),
		letters: function.NewCounters(r, "pgw_payments_dead_letters_total",
			"Dead letters by outcome: closed_out; put_off, which are tried again later; refused, which are parked for an operator.",
			"outcome", "closed_out", "put_off", "refused"),
	}
	for _, reason := range payment.Reasons {
		if reason.Recorded() {
			m.settled.WithLabelValues(string(reason.Status()), string(reason))
			m.closed.WithLabelValues(string(reason.Status()), string(reason))
		}
		if reason.Recorded() && !reason.OfRisk() {
			for _, kind := range payment.OperationKinds {
				m.operated.WithLabelValues(string(kind), string(reason.Status()), string(reason))
			}
		}
	}
	return m
}

// Function describes payments.
var Function = function.Describe(function.Function{
	Name: "payments", About: "settles payments in the ledger, and closes out those whose delivery was given up",
	Port: "19096", Calls: map[string]string{"db": "holds and moves the money", "fx": "prices the payments of CreatePayment"},
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

// timings are the durations of the ledger's calls. commit is 0 if the reserve has committed too.
type timings struct{ reserve, commit time.Duration }

// settle settles one payment and counts its outcome. An error means that the outcome is unknown.
// The same call may then be made again, and continues where this one stopped.
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
	// Mostly the payment is committed by now. One that is only authorized has its outcome too, and is
	// held until an operation captures it.
	if err != nil || reserved.Status != "" {
		return reserved, took, err
	}
	begun = time.Now()
	out, err := p.end(ctx, reserved, r.Key)
	took.commit = time.Since(begun)
	return out, took, err
}

// end commits what a payment or a refund has reserved, or rolls it back if the ledger refuses the commit.
func (p *Payments) end(ctx context.Context, reserved payment.Outcome, key string) (payment.Outcome, error) {
	refused, err := p.commit(ctx, reserved.Ref, key)
	if err != nil {
		return payment.Outcome{}, err
	}
	if refused != "" {
		return p.giveUp(ctx, reserved, refused)
	}
	return payment.Standing(payment.Committed, payment.ReasonCommitted, reserved.Ref, reserved.Replay), nil
}

// giveUp rolls a reservation back. Another caller may have ended it in the meantime. Then the outcome is
// that caller's.
func (p *Payments) giveUp(ctx context.Context, reserved payment.Outcome, why payment.Reason) (payment.Outcome, error) {
	reason, err := p.rollBack(ctx, reserved.Ref, why)
	if err != nil || reason != "" {
		out := payment.Decline(reason)
		out.Replay = reserved.Replay
		return out, err
	}
	return payment.Standing(payment.Committed, payment.ReasonCommitted, reserved.Ref, reserved.Replay), nil
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
	kept, differs, err := p.kept(ctx, r, outcome)
	if err != nil {
		return nil, err
	}
	out := &paymentsv1.SettleResponse{
		Outcome: rpc.FromOutcome(outcome), ReserveMicros: took.reserve.Microseconds(), CommitMicros: took.commit.Microseconds(),
	}
	if differs {
		out.Payment = rpc.FromPayment(kept)
	}
	return out, nil
}

// kept returns a decided payment as the ledger has it. differs reports that it may be another one
// than r: if an earlier attempt made the reservation, the price is that attempt's, and of an authorized
// payment only a part may have been captured. A payment in rupiah is not read, because nothing is told of
// what it moves.
func (p *Payments) kept(ctx context.Context, r payment.Payment, o payment.Outcome) (_ payment.Payment, differs bool, err error) {
	same := !o.Replay && !(r.Manual() && o.State == payment.Committed)
	if r.InRupiah() || same || o.Reason == payment.IdempotencyMismatch {
		return r, false, nil
	}
	rec, err := p.find(ctx, r.Scoped())
	return rec.Payment, true, err
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
		AcceptedAt: p.now(), // no deadline: the ledger sets one by its own clock
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

// closeOut ends a payment whose request could not be delivered. The held money goes back, the
// ledger records FAILED, and the result is published. A payment that was settled in the meantime
// stays settled, and that result is published.
func (p *Payments) closeOut(ctx context.Context, e cloudevents.Event) error {
	if event.IsOperationRequest(e) {
		return p.closeOutOperation(ctx, e)
	}
	r, err := event.ReadRequest(e, &p.cfg.Keys, p.cfg.AllowUnsigned)
	if err != nil {
		return err
	}
	if err := p.checkDeadLetter(ctx, e); err != nil {
		return err
	}
	outcome, err := p.fail(ctx, r.Payment)
	if code := status.Code(err); code == codes.InvalidArgument || code == codes.FailedPrecondition {
		return fmt.Errorf("%w: close out %s: %w", event.ErrRefused, r.Key, err)
	}
	if err != nil {
		return fmt.Errorf("close out %s: %w", r.Key, err)
	}
	kept, _, err := p.kept(ctx, r.Payment, outcome)
	if err != nil {
		return fmt.Errorf("close out %s: %w", r.Key, err)
	}
	outbox := event.Outbox{Source: "/pgw/payments", Keys: &p.cfg.Keys, To: p.publish, Now: p.now}
	err = outbox.Result(ctx, p.cfg.Kafka.ResultTopic, event.PaymentResult{
		Key: r.Key, Client: r.Client, Outcome: outcome.Answer(), Fingerprint: r.Fingerprint(),
		AttemptID: r.AttemptID, ReplyTo: r.ReplyTo, SettledAt: p.now().UTC(), Moved: event.MovedBy(kept, outcome),
	})
	if err != nil {
		return err
	}
	p.closed.WithLabelValues(string(outcome.Status), string(outcome.Reason)).Inc()
	return nil
}
