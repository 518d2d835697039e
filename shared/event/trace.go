package event

import (
	"context"
	"maps"
	"net/http"
	"slices"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	oteltrace "go.opentelemetry.io/otel/trace"

	"pgw/shared/trace"
)

// WithKey says which payment ctx is about, when an event of this type and subject is about one. The subject of others may be
// an account, which no log names.
func WithKey(ctx context.Context, eventType, subject string) context.Context {
	if eventType == TypePaymentRequested || eventType == TypePaymentResult {
		return trace.WithKey(ctx, subject)
	}
	return ctx
}

// extensions carry a trace as CloudEvents' distributed tracing extension has it.
type extensions struct{ event *cloudevents.Event }

func (x extensions) Get(name string) string {
	text, _ := x.event.Extensions()[name].(string)
	return text
}

func (x extensions) Set(name, value string) { x.event.SetExtension(name, value) }

func (x extensions) Keys() []string { return slices.Collect(maps.Keys(x.event.Extensions())) }

// startTrace begins the span of an event's handling. Whoever delivered it comes first: its span is the event's child.
func startTrace(ctx context.Context, h http.Header, e *cloudevents.Event) (context.Context, oteltrace.Span) {
	if !trace.On() {
		return trace.Start(ctx, "", trace.Consumer)
	}
	return trace.Start(trace.Extract(ctx, trace.Header(h), extensions{e}), "process "+e.Type(), trace.Consumer)
}

// Trace writes ctx's span on an event that carries none yet: the extension is of where the event was made, and
// whoever passes it on leaves it. No signature covers it.
func Trace(ctx context.Context, e *cloudevents.Event) {
	if x := (extensions{e}); x.Get("traceparent") == "" {
		trace.Inject(ctx, x)
	}
}
