package trace

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/trace"
)

// A line has the payment's key, and the trace if there is one, with any logger.
func TestALineKnowsItsPaymentAndTrace(t *testing.T) {
	line := func(ctx context.Context) map[string]any {
		t.Helper()
		var out bytes.Buffer
		log := slog.New(Handler(slog.NewJSONHandler(&out, nil))).With("function", "test")
		log.InfoContext(ctx, "hello")
		fields := map[string]any{}
		if err := json.Unmarshal(out.Bytes(), &fields); err != nil {
			t.Fatal(err)
		}
		return fields
	}
	ctx := WithKey(t.Context(), "pay-1")
	if got := line(ctx); got["idempotency_key"] != "pay-1" || got["function"] != "test" || got["trace_id"] != nil {
		t.Errorf("%v", got)
	}
	if got := line(WithKey(t.Context(), "")); got["idempotency_key"] != nil {
		t.Errorf("%v", got)
	}

	ctx = WithRequest(ctx, "request-1")
	if got := line(ctx); got["request_id"] != "request-1" || got["idempotency_key"] != "pay-1" {
		t.Errorf("%v", got)
	}

	Use(sdk.NewTracerProvider())
	t.Cleanup(func() { Use(nil) })
	ctx, span := Start(ctx, "test", Internal)
	got := line(ctx)
	span.End()
	if id := attribute.String("pgw.request_id", "request-1"); !slices.Contains(span.(sdk.ReadOnlySpan).Attributes(), id) {
		t.Errorf("the span has %v", span.(sdk.ReadOnlySpan).Attributes())
	}
	if got["trace_id"] != span.SpanContext().TraceID().String() || got["span_id"] != span.SpanContext().SpanID().String() {
		t.Errorf("%v", got)
	}
	if got := line(t.Context()); got["trace_id"] != nil {
		t.Errorf("a line without a trace: %v", got)
	}
}

// When traces are off, following a payment allocates nothing.
func TestOffCostsNothing(t *testing.T) {
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		_, span := Start(ctx, "test", Server)
		End(span, nil)
		Inject(ctx, nil)
		if Exemplar(ctx) != nil {
			t.Error("an exemplar without a trace")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
