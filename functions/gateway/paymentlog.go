package gateway

import (
	"context"
	"log/slog"
	"time"

	"pgw/shared/payment"
	"pgw/shared/trace"
)

// logAnswer logs the answer to a payment. At thousands of payments per second that is much text, so it
// is at level info only if LOG_PAYMENTS asks for it. The counters have the totals. The line has the
// payment's key, client and trace, and no account.
func (g *Gateway) logAnswer(ctx context.Context, p payment.Payment, out reply, begun time.Time) {
	level := slog.LevelDebug
	if g.cfg.LogPayments {
		level = slog.LevelInfo
	}
	if !g.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("status", string(out.Status)), slog.String("reason", string(out.Reason)), slog.String("ref", out.Ref),
		slog.Float64("took_ms", float64(time.Since(begun).Microseconds())/1000),
	}
	if p.Client != "" {
		attrs = append(attrs, slog.String("client", p.Client))
	}
	if p.Minor > 0 {
		attrs = append(attrs, slog.String("amount", p.Sent().String()), slog.String("currency", p.Currency.String()))
	}
	g.log.LogAttrs(trace.WithKey(ctx, p.Key), level, "answered", attrs...)
}
