// Package rpc is how functions call each other by gRPC: over a network, or within one process.
package rpc

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pgw/shared/trace"
)

// MaxMessage bounds a message in bytes: 10,000 account seeds fit.
const MaxMessage = 4 << 20

// retries makes a client try an RPC again when a replica went away, if the RPC has no side effects: the option
// idempotency_level of its proto says so. All others are tried again where the payment or the command begins, and
// nowhere between. An RPC that sets a value must not be repeated blindly: it would undo what came in between.
var retries = sync.OnceValue(func() string {
	var repeatable []map[string]string
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for n := range service.Methods().Len() {
				method := service.Methods().Get(n)
				if options, ok := method.Options().(*descriptorpb.MethodOptions); ok && options.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS {
					repeatable = append(repeatable, map[string]string{"service": string(service.FullName()), "method": string(method.Name())})
				}
			}
		}
		return true
	})
	if len(repeatable) == 0 {
		return "{}"
	}
	config, err := json.Marshal(map[string]any{"methodConfig": []any{map[string]any{
		"name": repeatable,
		"retryPolicy": map[string]any{
			"maxAttempts": 3, "initialBackoff": "0.05s", "maxBackoff": "0.5s", "backoffMultiplier": 2,
			"retryableStatusCodes": []string{"UNAVAILABLE"},
		},
	}}})
	if err != nil {
		panic(err) // maps of strings and numbers can be encoded
	}
	return string(config)
})

// Keepalive: a peer that says nothing for as long as Unseen is asked whether it is there, and left when it does not answer
// within Unanswered. Nobody is asked more often than PingsApart allows; gRPC's clients ask every 10 s at most.
const (
	Unseen     = 10 * time.Second
	Unanswered = 5 * time.Second
	PingsApart = time.Second
)

// Dial names a function's gRPC address. It connects when first used.
func Dial(addr string) (*grpc.ClientConn, error) { return (&Callers{}).Dial(addr) }

// Dial is the same, showing who calls.
func (c *Callers) Dial(addr string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithDefaultServiceConfig(retries()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage)),
		// Only while a call waits: a connection without calls wakes nobody, and a call that finds it gone is made by another.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: Unseen, Timeout: Unanswered}),
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
