package trace

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

type keyOfPayment struct{}

// WithKey adds the idempotency key of a payment to ctx. Log lines with this context then have the
// key.
func WithKey(ctx context.Context, idempotencyKey string) context.Context {
	if idempotencyKey == "" {
		return ctx
	}
	return context.WithValue(ctx, keyOfPayment{}, idempotencyKey)
}

type idOfRequest struct{}

// WithRequest adds the id of a client's request to ctx. Log lines with this context, and spans that
// begin in it, then have the id.
func WithRequest(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, idOfRequest{}, id)
}

// Handler adds the payment's idempotency key, the request's id and the trace to each log line, when
// the line's context has them.
func Handler(h slog.Handler) slog.Handler { return handler{h} }

type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if key, ok := ctx.Value(keyOfPayment{}).(string); ok {
		r.AddAttrs(slog.String("idempotency_key", key))
	}
	if id, ok := ctx.Value(idOfRequest{}).(string); ok {
		r.AddAttrs(slog.String("request_id", id))
	}
	if On() {
		if span := trace.SpanContextFromContext(ctx); span.IsValid() {
			r.AddAttrs(slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
		}
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
