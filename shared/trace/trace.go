// Package trace follows a payment through functions, Kafka and the ledger: by OpenTelemetry's spans, where the environment
// sets them up, and by what each line of a log says of its payment (log.go). Off, it costs a look at one variable.
package trace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Kinds of spans.
const (
	Internal = trace.SpanKindInternal
	Server   = trace.SpanKindServer
	Producer = trace.SpanKindProducer
	Consumer = trace.SpanKindConsumer
)

// flushWithin bounds how long the last spans may take to be sent.
const flushWithin = 5 * time.Second

var (
	tracer atomic.Pointer[trace.Tracer] // nil: off
	w3c    propagation.TraceContext
)

// On tells whether spans are made.
func On() bool { return tracer.Load() != nil }

// Setup turns spans on when OpenTelemetry's variables ask for them: OTEL_TRACES_EXPORTER=otlp, or an
// OTEL_EXPORTER_OTLP_ENDPOINT. What else they say of the exporter, the sampler, the batches and the resource holds as their
// specification has it. stop sends what is left.
func Setup(ctx context.Context, service string, log *slog.Logger) (stop func(), err error) {
	wanted, err := wanted()
	if err != nil || !wanted {
		return func() {}, err
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
	}
	// What the environment says comes last, and wins.
	about, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", service), attribute.String("service.namespace", "pgw")), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces", "error", err) }))
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))
	Use(provider)
	return func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushWithin)
		defer cancel()
		if err := provider.Shutdown(bounded); err != nil {
			log.Warn("the last traces could not be sent", "error", err)
		}
	}, nil
}

func wanted() (bool, error) {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	endpoint := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") + os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); {
	case exporter == "none", exporter == "" && endpoint == "":
		return false, nil
	case exporter != "" && exporter != "otlp":
		return false, fmt.Errorf("OTEL_TRACES_EXPORTER: %q is not known: otlp or none", exporter)
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if protocol := os.Getenv(name); protocol != "" && !strings.HasPrefix(protocol, "http/") {
			return false, fmt.Errorf("%s: %q is not spoken: http/protobuf, which collectors take at port 4318", name, protocol)
		}
	}
	return true, nil
}

// Use has spans made by a provider; nil turns them off. Connections and handlers that are made before know nothing of it.
func Use(provider trace.TracerProvider) {
	if provider == nil {
		tracer.Store(nil)
		return
	}
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(w3c)
	t := provider.Tracer("pgw")
	tracer.Store(&t)
}

// Start begins a span; off, it gives back ctx.
func Start(ctx context.Context, name string, kind trace.SpanKind) (context.Context, trace.Span) {
	t := tracer.Load()
	if t == nil {
		return ctx, noop.Span{}
	}
	return (*t).Start(ctx, name, trace.WithSpanKind(kind))
}

// End ends a span, which err, when there is one, has made a failure.
func End(span trace.Span, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// EndHTTP ends a span that has answered with a status.
func EndHTTP(span trace.Span, code int) {
	span.SetAttributes(attribute.Int("http.response.status_code", code))
	if code >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, http.StatusText(code))
	}
	span.End()
}

// StartShared begins the span of what is done once for several callers. It is a trace of its own, linked with each caller's
// span, and theirs with it.
func StartShared(ctx context.Context, name string, callers []context.Context) (context.Context, trace.Span) {
	t := tracer.Load()
	if t == nil {
		return ctx, noop.Span{}
	}
	links := make([]trace.Link, len(callers))
	for i, caller := range callers {
		links[i] = trace.LinkFromContext(caller)
	}
	ctx, span := (*t).Start(ctx, name, trace.WithNewRoot(), trace.WithLinks(links...))
	for _, caller := range callers {
		trace.SpanFromContext(caller).AddLink(trace.LinkFromContext(ctx))
	}
	return ctx, span
}

// Carrier is what a trace is carried by from one process to another.
type Carrier = propagation.TextMapCarrier

// Inject writes ctx's span where the next process finds it.
func Inject(ctx context.Context, into Carrier) {
	if On() {
		w3c.Inject(ctx, into)
	}
}

// InjectHeader is Inject for HTTP.
func InjectHeader(ctx context.Context, into http.Header) {
	Inject(ctx, propagation.HeaderCarrier(into))
}

// Extract gives ctx with the span that the first of the carriers to carry one carries.
func Extract(ctx context.Context, from ...Carrier) context.Context {
	for _, carrier := range from {
		if carrier.Get("traceparent") == "" {
			continue
		}
		if got := w3c.Extract(ctx, carrier); trace.SpanContextFromContext(got).IsValid() {
			return got
		}
	}
	return ctx
}

// Header is a carrier.
func Header(h http.Header) Carrier { return propagation.HeaderCarrier(h) }

// Exemplar names the trace that a measurement was made in; nil when there is none, or nobody keeps it.
func Exemplar(ctx context.Context) prometheus.Labels {
	if !On() {
		return nil
	}
	span := trace.SpanContextFromContext(ctx)
	if !span.IsSampled() {
		return nil
	}
	return prometheus.Labels{"trace_id": span.TraceID().String()}
}

// Observe measures, and names the trace as its example.
func Observe(ctx context.Context, by prometheus.Observer, value float64) {
	if exemplar := Exemplar(ctx); exemplar != nil {
		by.(prometheus.ExemplarObserver).ObserveWithExemplar(value, exemplar)
		return
	}
	by.Observe(value)
}
