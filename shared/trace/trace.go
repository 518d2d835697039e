// Package trace follows a payment through functions, Kafka and the ledger. It uses OpenTelemetry's
// spans when the environment turns them on, and the payment's key in each log line (log.go). When
// it is off, it costs the read of one variable.
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

// flushWithin is the time limit for sending the last spans.
const flushWithin = 5 * time.Second

var (
	tracer atomic.Pointer[trace.Tracer] // nil: off
	w3c    propagation.TraceContext
)

// On reports whether spans are made.
func On() bool { return tracer.Load() != nil }

// Setup turns spans on when OpenTelemetry's variables ask for them: OTEL_TRACES_EXPORTER=otlp, or
// an OTEL_EXPORTER_OTLP_ENDPOINT. The other variables for the exporter, the sampler, the batches
// and the resource work as OpenTelemetry specifies. stop sends the remaining spans. The error names
// the variable with the wrong value.
func Setup(ctx context.Context, service string, log *slog.Logger) (stop func(), err error) {
	wanted, err := wanted()
	if err != nil || !wanted {
		return func() {}, err
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
	}
	// The environment comes last, so its attributes win.
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
			return false, fmt.Errorf("%s: %q is not supported: use http/protobuf, which collectors accept on port 4318", name, protocol)
		}
	}
	return true, nil
}

// Use makes provider the source of spans; nil turns spans off. Connections and handlers made before
// this call do not use it.
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

// Start begins a span. When spans are off, it returns ctx unchanged.
func Start(ctx context.Context, name string, kind trace.SpanKind) (context.Context, trace.Span) {
	t := tracer.Load()
	if t == nil {
		return ctx, noop.Span{}
	}
	if id, ok := ctx.Value(idOfRequest{}).(string); ok {
		return (*t).Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(attribute.String("pgw.request_id", id)))
	}
	return (*t).Start(ctx, name, trace.WithSpanKind(kind))
}

// End ends a span. An err other than context.Canceled marks the span as failed.
func End(span trace.Span, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// EndHTTP ends the span of a request that was answered with a status code.
func EndHTTP(span trace.Span, code int) {
	span.SetAttributes(attribute.Int("http.response.status_code", code))
	if code >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, http.StatusText(code))
	}
	span.End()
}

// StartShared begins the span of work that is done once for several callers. The span is a separate
// trace. It is linked to each caller's span, and each caller's span to it.
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

// Carrier carries a trace from one process to another.
type Carrier = propagation.TextMapCarrier

// Inject writes the span of ctx into a carrier, for the next process.
func Inject(ctx context.Context, into Carrier) {
	if On() {
		w3c.Inject(ctx, into)
	}
}

// InjectHeader writes the span of ctx into HTTP headers.
func InjectHeader(ctx context.Context, into http.Header) {
	Inject(ctx, propagation.HeaderCarrier(into))
}

// Extract returns ctx with the span of the first carrier that has one.
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

// Header makes a carrier of HTTP headers.
func Header(h http.Header) Carrier { return propagation.HeaderCarrier(h) }

// ID returns the id of ctx's trace, by which a tracing UI finds it. It is empty when there is no trace,
// or the trace is not sampled.
func ID(ctx context.Context) string {
	if !On() {
		return ""
	}
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() || !span.IsSampled() {
		return ""
	}
	return span.TraceID().String()
}

// Exemplar returns the label with ctx's trace for a measurement. It is nil when there is no trace,
// or the trace is not sampled.
func Exemplar(ctx context.Context) prometheus.Labels {
	if id := ID(ctx); id != "" {
		return prometheus.Labels{"trace_id": id}
	}
	return nil
}

// Observe records a measurement, with ctx's trace as its exemplar.
func Observe(ctx context.Context, by prometheus.Observer, value float64) {
	if exemplar := Exemplar(ctx); exemplar != nil {
		by.(prometheus.ExemplarObserver).ObserveWithExemplar(value, exemplar)
		return
	}
	by.Observe(value)
}
