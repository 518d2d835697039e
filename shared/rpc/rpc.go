// Package rpc is how functions call each other by gRPC: over a network, or within one process.
package rpc

import (
	"fmt"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pgw/shared/trace"
)

// MaxMessage bounds a message in bytes: 10,000 account seeds fit.
const MaxMessage = 4 << 20

// retries makes a client try again when a replica went away: every RPC of pgw may be repeated, since what
// changes money is idempotent by key.
const retries = `{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":3,"initialBackoff":"0.05s","maxBackoff":"0.5s",
"backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE"]}}]}`

// Dial names a function's gRPC address. It connects when first used.
func Dial(addr string) (*grpc.ClientConn, error) { return (&Callers{}).Dial(addr) }

// Dial is the same, showing who calls.
func (c *Callers) Dial(addr string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithDefaultServiceConfig(retries),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage)),
	}
	if c.identity == nil {
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	} else {
		options = append(options, grpc.WithTransportCredentials(currentTLS{credentials.NewTLS(nil), c}))
	}
	if c.own != nil || c.required {
		options = append(options, grpc.WithPerRPCCredentials(shown{c}))
	}
	if trace.On() {
		options = append(options, grpc.WithStatsHandler(otelgrpc.NewClientHandler()))
	}
	conn, err := grpc.NewClient(addr, options...)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", addr, err)
	}
	return conn, nil
}

// Timestamp gives a time as proto has it; nil for the zero time.
func Timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Time is the inverse of Timestamp.
func Time(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
