package rpc

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/shared/trace"
)

// Watched returns conn and notes in outage when its calls fail and when they succeed again.
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
		return err // the caller has left, so the error says nothing about the function
	}
	switch status.Code(err) {
	case codes.OK, codes.NotFound, codes.InvalidArgument, codes.FailedPrecondition, codes.AlreadyExists, codes.OutOfRange,
		codes.PermissionDenied, // such as a call for operators
		codes.Unimplemented:    // such as a call of an older release
		w.outage.Note(ctx, nil) // any answer shows that the function works
	case codes.Canceled, codes.ResourceExhausted:
		// The function is reachable. The error says nothing else about it.
	default:
		w.outage.Note(ctx, err, "rpc", method)
	}
	return err
}
