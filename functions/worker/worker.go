// Package worker takes payment requests from Kafka, calls payments to settle them, and publishes
// their results. It acknowledges a request after the broker has the result.
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
		events: function.NewCounters(on.Registry, "pgw_worker_requests_total", "Payment requests, by outcome; put_off means tried again later.",
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
	err := w.settle(ctx, e)
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
		Key: r.Key, Outcome: outcome, Fingerprint: r.Fingerprint(), AttemptID: r.AttemptID, ReplyTo: r.ReplyTo,
		ReceivedAt: received.UTC(), SettledAt: w.now().UTC(), ReserveMicros: got.ReserveMicros, CommitMicros: got.CommitMicros,
		Moved: event.MovedBy(kept, outcome),
	})
	trace.Observe(ctx, w.stages.WithLabelValues("publish"), time.Since(begun).Seconds())
	return err
}
