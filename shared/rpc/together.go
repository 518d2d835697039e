package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	callsv1 "pgw/proto/gen/calls/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/trace"
)

// travelling are the methods whose calls may travel together: those of every payment. None of them is for
// operators, whose token belongs to one call.
var travelling = map[string]bool{
	fxv1.FxService_Convert_FullMethodName: true, walletv1.WalletService_GetAccounts_FullMethodName: true,
	riskv1.RiskService_Evaluate_FullMethodName: true, paymentsv1.PaymentsService_Settle_FullMethodName: true,
	dbv1.Db_Reserve_FullMethodName: true, dbv1.Db_ReserveAndCommit_FullMethodName: true, dbv1.Db_CommitReservation_FullMethodName: true,
}

// The limits of what travels together.
const (
	maxTogether      = 64
	maxTogetherBytes = MaxOrdinary / 2
	// maxTravelling is the most calls that a server has under way this way.
	maxTravelling = 8192
	// longest bounds a call without a deadline.
	longest = time.Minute
)

// Together returns conn with calls that meet travelling together: those of one method that are made at the
// same time are one RPC. There is no timer, and a lone call goes alone. Each call keeps its deadline,
// its trace and its status, and is answered as soon as it has ended. A server that can't do this gets
// single calls.
func Together(conn grpc.ClientConnInterface) grpc.ClientConnInterface {
	t := &together{ClientConnInterface: conn, service: callsv1.NewCallsServiceClient(conn), gatherings: map[string]*gathering{}}
	for method := range travelling {
		t.gatherings[method] = &gathering{}
	}
	return t
}

type together struct {
	grpc.ClientConnInterface
	service    callsv1.CallsServiceClient
	gatherings map[string]*gathering
	lacking    Lacking // CallsService: all calls go alone
}

// gathering has the calls of a method that are about to travel.
type gathering struct {
	mu      sync.Mutex
	open    bool // a call gathers those that follow
	waiting []*traveller
}

// traveller is one call.
type traveller struct {
	ctx     context.Context
	request []byte
	result  chan travelled // has room for one
}

// travelled is the result of a call.
type travelled struct {
	response []byte
	err      error
	alone    bool // the call has not been made, or may be repeated: it is to go alone
}

// Invoke implements grpc.ClientConnInterface.
func (t *together) Invoke(ctx context.Context, method string, in, out any, options ...grpc.CallOption) error {
	alone := func() error { return t.ClientConnInterface.Invoke(ctx, method, in, out, options...) }
	g := t.gatherings[method]
	request, isMessage := in.(proto.Message)
	response, wantsMessage := out.(proto.Message)
	if g == nil || !isMessage || !wantsMessage || !plain(ctx, options) || t.lacking.Known() {
		return alone()
	}
	c := &traveller{ctx: ctx, result: make(chan travelled, 1)}
	if !g.lead() {
		// The caller may change its request when it does not wait any more, so it is encoded here.
		var err error
		if c.request, err = proto.Marshal(request); err != nil || !g.follow(c) {
			return alone()
		}
	} else {
		// Let other goroutines run first: calls that follow from the same batch are about to be made.
		runtime.Gosched()
		others := g.close()
		if len(others) == 0 {
			return alone()
		}
		var err error
		if c.request, err = proto.Marshal(request); err != nil {
			go t.send(method, others)
			return alone()
		}
		go t.send(method, append(others, c))
	}
	select {
	case r := <-c.result:
		switch {
		case r.alone:
			return alone()
		case r.err != nil:
			return r.err
		}
		if err := proto.Unmarshal(r.response, response); err != nil {
			return status.Errorf(codes.Internal, "the response of %s: %v", method, err)
		}
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// plain reports whether nothing belongs to a call but its deadline and its trace.
func plain(ctx context.Context, options []grpc.CallOption) bool {
	for _, o := range options {
		if _, ok := o.(grpc.StaticMethodCallOption); !ok {
			return false
		}
	}
	if token, _ := ctx.Value(adminKey{}).(string); token != "" {
		return false
	}
	_, has := metadata.FromOutgoingContext(ctx)
	return !has
}

// lead reports whether the caller gathers the calls that follow.
func (g *gathering) lead() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	leads := !g.open
	g.open = true
	return leads
}

// follow adds a call, unless those that gathered have left.
func (g *gathering) follow(c *traveller) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open {
		g.waiting = append(g.waiting, c)
	}
	return g.open
}

// close ends the gathering and returns the calls that followed.
func (g *gathering) close() (others []*traveller) {
	g.mu.Lock()
	defer g.mu.Unlock()
	others, g.waiting, g.open = g.waiting, nil, false
	return others
}

// send makes calls by as few RPCs as the limits allow.
func (t *together) send(method string, calls []*traveller) {
	for len(calls) > 0 {
		n, bytes := 0, 0
		for n < len(calls) && n < maxTogether && (n == 0 || bytes+len(calls[n].request) <= maxTogetherBytes) {
			bytes += len(calls[n].request)
			n++
		}
		some := calls[:n:n]
		calls = calls[n:]
		switch {
		case n == 1: // the last one, or a large one
			some[0].result <- travelled{alone: true}
		case len(calls) > 0:
			go t.make(method, some)
		default:
			t.make(method, some)
		}
	}
}

// make makes calls by one RPC, and gives each its result.
func (t *together) make(method string, calls []*traveller) {
	in := &callsv1.MakeRequest{Method: method, Calls: make([]*callsv1.Call, len(calls))}
	within := time.Duration(0)
	for i, c := range calls {
		left := longest
		if deadline, has := c.ctx.Deadline(); has {
			left = min(left, time.Until(deadline))
		}
		within = max(within, left)
		in.Calls[i] = &callsv1.Call{Request: c.request, TimeoutMicros: max(left.Microseconds(), 1)}
		trace.Inject(c.ctx, spanOf{in.Calls[i]})
	}
	// No caller's context is that of all.
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if trace.On() {
		callers := make([]context.Context, len(calls))
		for i, c := range calls {
			callers[i] = c.ctx
		}
		shared, span := trace.StartShared(ctx, "calls of "+method[1:], callers)
		defer span.End()
		ctx = shared
	}
	waiting := slices.Clone(calls)
	stream, err := t.service.Make(ctx, in)
	for err == nil {
		var got *callsv1.MakeResponse
		if got, err = stream.Recv(); err != nil {
			break
		}
		for _, a := range got.Answers {
			if int(a.Call) >= len(waiting) || waiting[a.Call] == nil {
				continue
			}
			r := travelled{response: a.Response}
			if a.Code != int32(codes.OK) {
				r.err = status.Error(codes.Code(a.Code), a.Message)
			}
			waiting[a.Call].result <- r
			waiting[a.Call] = nil
		}
	}
	r := travelled{err: err}
	switch {
	case errors.Is(err, io.EOF):
		r.err = status.Errorf(codes.Internal, "there is no answer of %s", method)
	case t.lacking.Note(err), status.Code(err) == codes.InvalidArgument:
		// Nothing was called: the server lacks the service, or does not let the method travel.
		r.alone = true
	case status.Code(err) == codes.Unavailable && repeatable()[method]: // a call that goes alone is repeated by gRPC
		r.alone = true
	}
	for _, c := range waiting {
		if c != nil {
			c.result <- r
		}
	}
}

// spanOf carries a trace in a call.
type spanOf struct{ call *callsv1.Call }

func (s spanOf) Get(name string) string {
	switch name {
	case "traceparent":
		return s.call.Traceparent
	case "tracestate":
		return s.call.Tracestate
	}
	return ""
}

func (s spanOf) Set(name, value string) {
	switch name {
	case "traceparent":
		s.call.Traceparent = value
	case "tracestate":
		s.call.Tracestate = value
	}
}

func (s spanOf) Keys() []string { return []string{"traceparent", "tracestate"} }

// ServeTogether registers the service that makes calls that travel together. register registers the services
// that are called, and each call runs through interceptor as one that came alone.
func ServeTogether(to grpc.ServiceRegistrar, register func(grpc.ServiceRegistrar), interceptor grpc.UnaryServerInterceptor) {
	s := &callsServer{called: &inProcess{methods: map[string]method{}, interceptor: interceptor}}
	register(s.called)
	callsv1.RegisterCallsServiceServer(to, s)
}

type callsServer struct {
	callsv1.UnimplementedCallsServiceServer
	called   *inProcess
	underWay atomic.Int64
}

// Make implements calls.v1.CallsService.
func (s *callsServer) Make(in *callsv1.MakeRequest, stream grpc.ServerStreamingServer[callsv1.MakeResponse]) error {
	if len(in.Calls) > maxTogether {
		return status.Errorf(codes.InvalidArgument, "calls: are %d; at most %d", len(in.Calls), maxTogether)
	}
	if !travelling[in.Method] {
		return status.Errorf(codes.InvalidArgument, "method: %.100q can't be called this way", in.Method)
	}
	answers := make(chan *callsv1.Answer, len(in.Calls))
	for i, call := range in.Calls {
		go func() { answers <- s.answer(stream.Context(), in.Method, i, call) }()
	}
	var failed error
	for left := len(in.Calls); left > 0; {
		out := &callsv1.MakeResponse{Answers: []*callsv1.Answer{<-answers}}
		runtime.Gosched() // calls of one batch end at the same time
		for more := true; more; {
			select {
			case a := <-answers:
				out.Answers = append(out.Answers, a)
			default:
				more = false
			}
		}
		left -= len(out.Answers)
		// When nobody waits any more, the calls still end before this RPC, so that a drain waits for them.
		if failed == nil {
			failed = stream.Send(out)
		}
	}
	return failed
}

// answer makes one call.
func (s *callsServer) answer(ctx context.Context, name string, place int, call *callsv1.Call) *callsv1.Answer {
	out := &callsv1.Answer{Call: uint32(place)}
	defer s.underWay.Add(-1)
	err := status.Error(codes.ResourceExhausted, "too many calls are under way: try again later")
	if s.underWay.Add(1) <= maxTravelling {
		out.Response, err = s.call(ctx, name, call)
	}
	if err != nil {
		why := status.Convert(err)
		out.Code, out.Message = int32(why.Code()), why.Message()
	}
	return out
}

func (s *callsServer) call(ctx context.Context, name string, call *callsv1.Call) ([]byte, error) {
	m, ok := s.called.methods[name]
	if !ok {
		return nil, status.Errorf(codes.Unimplemented, "unknown method %s", name)
	}
	within := longest
	if call.TimeoutMicros > 0 {
		within = min(within, time.Duration(call.TimeoutMicros)*time.Microsecond)
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if trace.On() {
		ctx = trace.Extract(ctx, spanOf{call})
	}
	answer, err := m.handler(m.service, ctx, func(into any) error {
		message, ok := into.(proto.Message)
		if !ok {
			return status.Error(codes.Internal, fmt.Sprintf("not a proto message: %T", into))
		}
		if err := proto.Unmarshal(call.Request, message); err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		return nil
	}, s.called.interceptor)
	if err != nil {
		return nil, asStatus(err)
	}
	return proto.Marshal(answer.(proto.Message))
}
