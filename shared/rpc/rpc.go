// Package rpc lets functions call each other by gRPC, over a network or within one process.
package rpc

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
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

// MaxMessage is the largest message in bytes. 10,000 account seeds fit.
const MaxMessage = 4 << 20

// repeatable are the full names of the RPCs that have no side effects. The option idempotency_level in
// their proto says so.
var repeatable = sync.OnceValue(func() map[string]bool {
	names := map[string]bool{}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for n := range service.Methods().Len() {
				method := service.Methods().Get(n)
				if options, ok := method.Options().(*descriptorpb.MethodOptions); ok && options.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS {
					names["/"+string(service.FullName())+"/"+string(method.Name())] = true
				}
			}
		}
		return true
	})
	return names
})

// retries makes a client repeat a repeatable RPC when a replica went away. Only the start of a payment or
// of a command repeats other RPCs; no layer between repeats them. An RPC that sets a value must not be
// repeated blindly: it would undo changes that were made in the meantime.
var retries = sync.OnceValue(func() string {
	var names []map[string]string
	for _, name := range slices.Sorted(maps.Keys(repeatable())) {
		service, method, _ := strings.Cut(name[1:], "/")
		names = append(names, map[string]string{"service": service, "method": method})
	}
	if len(names) == 0 {
		return "{}"
	}
	config, err := json.Marshal(map[string]any{"methodConfig": []any{map[string]any{
		"name": names,
		"retryPolicy": map[string]any{
			"maxAttempts": 3, "initialBackoff": "0.05s", "maxBackoff": "0.5s", "backoffMultiplier": 2,
			"retryableStatusCodes": []string{"UNAVAILABLE"},
		},
	}}})
	if err != nil {
		panic(err) // maps of strings and numbers can always be encoded
	}
	return string(config)
})

// Keepalive settings. A peer that sends nothing for Unseen gets a ping. If it does not answer
// within Unanswered, the connection is closed. A server allows pings at least PingsApart apart;
// gRPC's clients send one every 10 s at most.
const (
	Unseen     = 10 * time.Second
	Unanswered = 5 * time.Second
	PingsApart = time.Second
)

// Dial makes a client for a function's gRPC address. It connects when it is first used.
func Dial(addr string) (*grpc.ClientConn, error) { return (&Callers{}).Dial(addr) }

// Dial is like the function Dial, and sends the caller's token or certificate.
func (c *Callers) Dial(addr string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithDefaultServiceConfig(retries()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage)),
		// Pings are sent only while a call waits, so a connection without calls wakes no function.
		// A call that finds its connection gone is made on another one.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: Unseen, Timeout: Unanswered}),
	}
	if c.identity == nil {
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	} else {
		options = append(options, grpc.WithTransportCredentials(currentTLS{credentials.NewTLS(nil), c}))
	}
	if c.own != nil || c.required {
		options = append(options, grpc.WithPerRPCCredentials(callToken{c}))
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

// Timestamp converts a time to its proto message. The zero time becomes nil.
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
