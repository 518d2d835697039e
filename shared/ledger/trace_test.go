package ledger

import (
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"

	"pgw/shared/payment"
	"pgw/shared/trace"
)

// A payment, a refusal and a refund keep the trace of the attempt that claimed the key. A later attempt
// does not change it, and what is not traced, or not sampled, has none.
func TestTheTraceOfTheClaimIsKept(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B")
	ctx := t.Context()
	t.Cleanup(func() { trace.Use(nil) })
	check := func(key, want string) {
		t.Helper()
		if got := w.record(key).TraceID; got != want {
			t.Errorf("%s has the trace %q, want %q", key, got, want)
		}
	}
	w.mustReserve(pay("before", "A", "B", 1))
	check("before", "")

	trace.Use(sdk.NewTracerProvider())
	traced, span := trace.Start(ctx, "attempt", trace.Server)
	defer span.End()
	id := span.SpanContext().TraceID().String()
	p := pay("paid", "A", "B", 100)
	got, err := w.Reserve(traced, p)
	if err != nil {
		t.Fatal(err)
	}
	w.mustFinish(Finish{ReservationID: got.ReservationID, Key: p.Key})
	if _, err := w.Refuse(traced, pay("refused", "A", "B", 1), payment.RiskRandomReject); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Refund(traced, refundOf(p, "refund", 10)); err != nil {
		t.Fatal(err)
	}
	again, second := trace.Start(ctx, "second attempt", trace.Server)
	defer second.End()
	if _, err := w.Reserve(again, p); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"paid", "refused", "refund"} {
		check(key, id)
	}
	var shown string
	if err := w.pool.QueryRow(ctx, `SELECT trace_id FROM payment_history WHERE idempotency_key = 'paid'`).Scan(&shown); err != nil || shown != id {
		t.Errorf("payment_history has %q, %v", shown, err)
	}

	trace.Use(sdk.NewTracerProvider(sdk.WithSampler(sdk.NeverSample())))
	dropped, span := trace.Start(ctx, "not sampled", trace.Server)
	defer span.End()
	if _, err := w.Reserve(dropped, pay("dropped", "A", "B", 1)); err != nil {
		t.Fatal(err)
	}
	check("dropped", "")
	w.checkSum()
}
