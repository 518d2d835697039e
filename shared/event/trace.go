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

// WithKey adds the payment's key to ctx if events of this type belong to a payment. The subject of
// other events may be an account, which must not be logged.
func WithKey(ctx context.Context, eventType, subject string) context.Context {
	if IsPaymentRequest(eventType) || eventType == TypePaymentResult {
		return trace.WithKey(ctx, subject)
	}
	for _, types := range operationTypes {
		if eventType == types.request || eventType == types.result {
			return trace.WithKey(ctx, subject)
		}
	}
	return ctx
}

// extensions carry a trace in CloudEvents' distributed tracing extension.
type extensions struct{ event *cloudevents.Event }

func (x extensions) Get(name string) string {
	text, _ := x.event.Extensions()[name].(string)
	return text
}

func (x extensions) Set(name, value string) { x.event.SetExtension(name, value) }

func (x extensions) Keys() []string { return slices.Collect(maps.Keys(x.event.Extensions())) }

// startTrace starts the span of an event's handling. The span of the deliverer is its parent, if
// there is one; otherwise the trace in the event is.
func startTrace(ctx context.Context, h http.Header, e *cloudevents.Event) (context.Context, oteltrace.Span) {
	if !trace.On() {
		return trace.Start(ctx, "", trace.Consumer)
	}
	return trace.Start(trace.Extract(ctx, trace.Header(h), extensions{e}), "process "+e.Type(), trace.Consumer)
}

// Trace writes the span of ctx to an event that has no trace yet. The extension names the span that
// made the event, and forwarders do not change it. No signature covers it.
func Trace(ctx context.Context, e *cloudevents.Event) {
	if x := (extensions{e}); x.Get("traceparent") == "" {
		trace.Inject(ctx, x)
	}
}
