package rpc

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// inProcess is a gRPC client and server in one process. Services register with it, and clients call
// through it. A call is a function call. Messages are copied; they are never shared or encoded. It
// supports only unary RPCs, because pgw has no others.
type inProcess struct {
	methods     map[string]method
	interceptor grpc.UnaryServerInterceptor
}

type method struct {
	service any
	handler grpc.MethodHandler
}

// InProcess connects callers with services in the same process. interceptor may be nil.
func InProcess(register func(grpc.ServiceRegistrar), interceptor grpc.UnaryServerInterceptor) grpc.ClientConnInterface {
	p := &inProcess{methods: map[string]method{}, interceptor: interceptor}
	register(p)
	return p
}

// RegisterService implements grpc.ServiceRegistrar.
func (p *inProcess) RegisterService(desc *grpc.ServiceDesc, service any) {
	for _, m := range desc.Methods {
		p.methods["/"+desc.ServiceName+"/"+m.MethodName] = method{service, m.Handler}
	}
}

// Invoke implements grpc.ClientConnInterface.
func (p *inProcess) Invoke(ctx context.Context, name string, request, reply any, _ ...grpc.CallOption) error {
	m, ok := p.methods[name]
	if !ok {
		return status.Errorf(codes.Unimplemented, "unknown method %s", name)
	}
	answer, err := m.handler(m.service, ctx, func(into any) error { return copyMessage(into, request) }, p.interceptor)
	if err != nil {
		return asStatus(err)
	}
	return copyMessage(reply, answer)
}

// asStatus returns a handler's error as its caller gets it over a network. A plain error becomes Unknown.
func asStatus(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Convert(err).Err()
}

func copyMessage(to, from any) error {
	dst, ok := to.(proto.Message)
	src, isMessage := from.(proto.Message)
	if !ok || !isMessage {
		return status.Error(codes.Internal, fmt.Sprintf("not a proto message: %T or %T", to, from))
	}
	proto.Merge(dst, src)
	return nil
}

// NewStream implements grpc.ClientConnInterface.
func (*inProcess) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "streams are not served in process")
}
