// Package worker takes requests from Kafka, of payments and of operations on them, calls payments to carry
// them out, and publishes their results. It acknowledges a request after the broker has the result.
package worker

import (
	"context"
	"fmt"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/payment"
	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// Config of the function.
type Config struct {
	Keys          event.Keyring `envconfig:"EVENT_KEYS" required:"true" desc:"keys that sign events, as ID:BASE64:v2, separated by commas"`
	AllowUnsigned bool          `envconfig:"ALLOW_UNSIGNED_REQUESTS" default:"false" desc:"accept unsigned plain records of earlier producers"`
	Kafka         kafka.Config
}

// Worker is the function.
type Worker struct {
	cfg      Config
	payments paymentsv1.PaymentsServiceClient
	publish  event.Publisher
	now      func() time.Time
	events   *prometheus.CounterVec
	stages   *prometheus.HistogramVec
}

// Function describes worker.
var Function = function.Describe(function.Function{
	Name: "worker", About: "takes payment requests from Kafka, calls payments to settle them and publishes their results",
	Port: "19091", Calls: map[string]string{"payments": "settles payments"}, Publishes: function.Always, Events: "/",
}, build)

func build(cfg Config, on function.Dependencies) (*function.Service, error) {
	w := &Worker{
		cfg: cfg, payments: paymentsv1.NewPaymentsServiceClient(on.Conns["payments"]), publish: on.Publisher, now: on.Now,
		events: function.NewCounters(on.Registry, "pgw_worker_requests_total", "Requests of payments, refunds, captures, voids and cancellations, by outcome; put_off means tried again later.",
			"outcome", "settled", "refused", "put_off"),
		stages: promauto.With(on.Registry).NewHistogramVec(prometheus.HistogramOpts{
			Name: "pgw_worker_stage_seconds", Help: "How long settling and publishing took.", Buckets: function.Latency,
		}, []string{"stage"}),
	}
	for _, stage := range []string{"settle", "publish"} {
		w.stages.WithLabelValues(stage)
	}
	return &function.Service{Events: w.handle}, nil
}

func (w *Worker) handle(ctx context.Context, e cloudevents.Event) error {
	carryOut := w.settle
	if event.IsOperationRequest(e) {
		carryOut = w.operate
	}
	err := carryOut(ctx, e)
	outcome := "settled"
	switch {
	case err == nil:
	case event.Refused(err):
		outcome = "refused"
	default:
		outcome = "put_off"
	}
	w.events.WithLabelValues(outcome).Inc()
	return err
}

func (w *Worker) settle(ctx context.Context, e cloudevents.Event) error {
	received := w.now()
	r, err := event.ReadRequest(e, &w.cfg.Keys, w.cfg.AllowUnsigned)
	if err != nil {
		return err
	}
	begun := time.Now()
	got, err := w.payments.Settle(ctx, rpc.FromPayment(r.Payment))
	trace.Observe(ctx, w.stages.WithLabelValues("settle"), time.Since(begun).Seconds())
	if code := status.Code(err); code == codes.InvalidArgument || code == codes.FailedPrecondition {
		return fmt.Errorf("%w: settle %s: %w", event.ErrRefused, r.Key, err)
	}
	if err != nil {
		return fmt.Errorf("settle %s: %w", r.Key, err)
	}

	outcome, err := rpc.ToOutcome(got.Outcome)
	if err != nil {
		return fmt.Errorf("settle %s: the answer of payments cannot be used: %w", r.Key, err)
	}
	kept := r.Payment
	if got.Payment != nil {
		if kept, err = rpc.ToPayment(got.Payment); err != nil {
			return fmt.Errorf("settle %s: the answer of payments cannot be used: %w", r.Key, err)
		}
	}
	outbox := event.Outbox{Source: "/pgw/worker", Keys: &w.cfg.Keys, To: w.publish, Now: w.now}
	begun = time.Now()
	err = outbox.Result(ctx, w.cfg.Kafka.ResultTopic, event.PaymentResult{
		Key: r.Key, Client: r.Client, Outcome: outcome, Fingerprint: r.Fingerprint(), AttemptID: r.AttemptID, ReplyTo: r.ReplyTo,
		ReceivedAt: received.UTC(), SettledAt: w.now().UTC(), ReserveMicros: got.ReserveMicros, CommitMicros: got.CommitMicros,
		Moved: event.MovedBy(kept, outcome),
	})
	trace.Observe(ctx, w.stages.WithLabelValues("publish"), time.Since(begun).Seconds())
	return err
}

func (w *Worker) operate(ctx context.Context, e cloudevents.Event) error {
	received := w.now()
	r, err := event.ReadOperation(e, &w.cfg.Keys)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%s %s of %s", r.Kind, r.Key, r.Operation.Payment)
	begun := time.Now()
	got, err := w.payments.Operate(ctx, rpc.FromOperation(r.Operation))
	trace.Observe(ctx, w.stages.WithLabelValues("settle"), time.Since(begun).Seconds())
	switch code := status.Code(err); {
	case code == codes.OK:
	case code == codes.InvalidArgument, code == codes.FailedPrecondition, code == codes.NotFound && late(r.Operation, e, received):
		return fmt.Errorf("%w: %s: %w", event.ErrRefused, what, err)
	default: // the request of an unknown payment may still be on its way
		return fmt.Errorf("%s: %w", what, err)
	}
	outcome, err := rpc.ToOutcome(got.Outcome)
	var of, refund payment.Record
	if err == nil && got.Payment != nil {
		of, err = rpc.ToRecord(got.Payment)
	}
	if err == nil && got.Refund != nil {
		refund, err = rpc.ToRecord(got.Refund)
	}
	if err != nil {
		return fmt.Errorf("%s: the answer of payments cannot be used: %w", what, err)
	}
	data := event.ResultOf(r.Operation, outcome, of, refund)
	data.ReplyTo, data.ReceivedAt, data.SettledAt = r.ReplyTo, received.UTC(), w.now().UTC()
	outbox := event.Outbox{Source: "/pgw/worker", Keys: &w.cfg.Keys, To: w.publish, Now: w.now}
	begun = time.Now()
	err = outbox.OperationResult(ctx, w.cfg.Kafka.ResultTopic, data)
	trace.Observe(ctx, w.stages.WithLabelValues("publish"), time.Since(begun).Seconds())
	return err
}

// late reports whether nobody acts on an operation any more.
func late(o payment.Operation, e cloudevents.Event, now time.Time) bool {
	latest := e.Time().Add(payment.DecideWithin)
	if !o.Deadline.IsZero() && o.Deadline.Before(latest) {
		latest = o.Deadline
	}
	return now.After(latest)
}
