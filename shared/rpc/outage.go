package rpc

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/shared/trace"
)

// Watched returns conn with its failures noted in an outage: calls that fail, and calls that work
// again.
func Watched(conn grpc.ClientConnInterface, outage *trace.Outage) grpc.ClientConnInterface {
	return watched{conn, outage}
}

type watched struct {
	grpc.ClientConnInterface
	outage *trace.Outage
}

// Invoke implements grpc.ClientConnInterface.
func (w watched) Invoke(ctx context.Context, method string, in, out any, options ...grpc.CallOption) error {
	err := w.ClientConnInterface.Invoke(ctx, method, in, out, options...)
	if errors.Is(ctx.Err(), context.Canceled) {
		return err // nobody waits for the answer any more, so the error means nothing
	}
	switch status.Code(err) {
	case codes.OK, codes.NotFound, codes.InvalidArgument, codes.FailedPrecondition, codes.AlreadyExists, codes.OutOfRange:
		w.outage.Note(ctx, nil) // any answer shows that the function works
	case codes.Canceled, codes.ResourceExhausted:
		// The function is there; the error shows no more than that.
	default:
		w.outage.Note(ctx, err, "rpc", method)
	}
	return err
}
