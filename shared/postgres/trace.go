package postgres

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/trace"
)

// NewOutage makes an Outage for the pools of a function.
func NewOutage(log *slog.Logger, now func() time.Time) *trace.Outage {
	return trace.NewOutage(log, now, "Postgres could not be used")
}

// tracer gives each acquire a time limit, because a pool takes the context of an acquire from its
// tracer. It also notes when the server is away, and when it answers again.
type tracer struct{ outage *trace.Outage }

type cancelKey struct{}

// TraceAcquireStart implements pgxpool.AcquireTracer.
func (tracer) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	ctx, cancel := context.WithTimeout(ctx, acquireTimeout)
	return context.WithValue(ctx, cancelKey{}, cancel)
}

// TraceAcquireEnd implements pgxpool.AcquireTracer.
func (tracer) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireEndData) {
	ctx.Value(cancelKey{}).(context.CancelFunc)()
}

// TraceConnectStart implements pgx.ConnectTracer.
func (tracer) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return ctx
}

// TraceConnectEnd implements pgx.ConnectTracer.
func (t tracer) TraceConnectEnd(ctx context.Context, end pgx.TraceConnectEndData) {
	t.note(ctx, end.Err)
}

// TraceQueryStart implements pgx.QueryTracer.
func (tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd implements pgx.QueryTracer.
func (t tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, end pgx.TraceQueryEndData) {
	t.note(ctx, end.Err)
}

// note records what an attempt says about the server. A statement that was cancelled, or that took
// longer than its caller could wait, says nothing.
func (t tracer) note(ctx context.Context, err error) {
	switch {
	case t.outage == nil:
	case err == nil:
		t.outage.Note(ctx, nil)
	case away(err):
		t.outage.Note(ctx, err)
	case sqlState(err) != "":
		t.outage.Note(ctx, nil)
	}
}

// away reports whether an error means that the server can't be reached, or that it takes no
// statements now.
func away(err error) bool {
	var connecting *pgconn.ConnectError
	var network net.Error
	switch state := sqlState(err); {
	case errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &connecting):
		return true
	case state != "":
		return strings.HasPrefix(state, connectionException) || strings.HasPrefix(state, operatorIntervention) || state == tooManyConnections
	case errors.Is(err, context.DeadlineExceeded): // is a net.Error too
		return false
	}
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}
