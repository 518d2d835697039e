package rpc

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	callsv1 "pgw/proto/gen/calls/v1"
	dbv1 "pgw/proto/gen/db/v1"
	riskv1 "pgw/proto/gen/risk/v1"
)

const evaluate = riskv1.RiskService_Evaluate_FullMethodName

// judges is a fake of risk. The answer to a call depends on its key.
type judges struct {
	riskv1.UnimplementedRiskServiceServer
	slow    chan struct{} // closed: the calls "slow" are answered
	left    atomic.Int64  // the time that the call "deadline" had
	through atomic.Int64  // calls that ran through the interceptor
	alone   atomic.Int64  // calls that came as RPCs of their own
}

func (j *judges) Evaluate(ctx context.Context, in *riskv1.ScoreRequest) (*riskv1.EvaluateResponse, error) {
	switch {
	case in.IdempotencyKey == "slow":
		<-j.slow
	case in.IdempotencyKey == "deadline":
		at, _ := ctx.Deadline()
		j.left.Store(int64(time.Until(at)))
	case strings.HasPrefix(in.IdempotencyKey, "bad"):
		return nil, status.Error(codes.FailedPrecondition, in.IdempotencyKey)
	}
	return &riskv1.EvaluateResponse{RuleSet: in.IdempotencyKey}, nil
}

// judging serves j over loopback, and returns a connection to it. old is a server of a release before calls
// travelled together.
func judging(t *testing.T, j *judges, old bool) *together {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		j.alone.Add(1)
		return next(ctx, in)
	}))
	register := func(r grpc.ServiceRegistrar) { riskv1.RegisterRiskServiceServer(r, j) }
	register(server)
	if !old {
		ServeTogether(server, register, func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			j.through.Add(1)
			return next(ctx, in)
		})
	}
	go server.Serve(l)
	t.Cleanup(server.Stop)
	conn, err := Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return Together(conn).(*together)
}

// travellers are calls with these keys.
func travellers(t *testing.T, keys ...string) (all []*traveller) {
	t.Helper()
	for _, key := range keys {
		request, err := proto.Marshal(&riskv1.ScoreRequest{IdempotencyKey: key})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &traveller{ctx: t.Context(), request: request, result: make(chan travelled, 1)})
	}
	return all
}

func (c *traveller) answered(t *testing.T) (ruleSet string, err error) {
	t.Helper()
	r := <-c.result
	if r.alone {
		t.Error("a call is to go alone")
	}
	var out riskv1.EvaluateResponse
	if err := proto.Unmarshal(r.response, &out); err != nil {
		t.Fatal(err)
	}
	return out.RuleSet, r.err
}

// Each call has its own answer and its own status, and runs through the interceptor.
func TestEachCallOfTogetherHasItsOwnStatus(t *testing.T) {
	j := &judges{}
	conn := judging(t, j, false)
	var keys []string
	for i := range 3 * maxTogether {
		keys = append(keys, fmt.Sprint([]string{"good", "bad"}[i%2], i))
	}
	all := travellers(t, keys...)
	conn.send(evaluate, all)
	for i, c := range all {
		got, err := c.answered(t)
		if i%2 == 0 && (err != nil || got != keys[i]) {
			t.Errorf("%s: %q, %v", keys[i], got, err)
		}
		if i%2 == 1 && (status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != keys[i]) {
			t.Errorf("%s: %v", keys[i], err)
		}
	}
	if through, alone := j.through.Load(), j.alone.Load(); through != int64(len(all)) || alone != 0 {
		t.Errorf("%d calls ran through the interceptor, and %d came alone", through, alone)
	}
}

// A slow call does not keep the others, and the caller's deadline is the call's.
func TestEachCallOfTogetherEndsByItself(t *testing.T) {
	j := &judges{slow: make(chan struct{})}
	conn := judging(t, j, false)
	all := travellers(t, "slow", "quick", "deadline")
	const within = 20 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	all[2].ctx = ctx
	go conn.make(evaluate, all)
	for _, c := range all[1:] {
		if _, err := c.answered(t); err != nil {
			t.Error(err)
		}
	}
	if left := time.Duration(j.left.Load()); left <= 0 || left > within {
		t.Errorf("the call had %s; its caller waits for %s", left, within)
	}
	close(j.slow)
	if got, err := all[0].answered(t); got != "slow" || err != nil {
		t.Error(got, err)
	}
}

// A call that the limits leave by itself goes alone, as one that is larger than a server takes otherwise.
func TestALargeCallGoesAlone(t *testing.T) {
	j := &judges{}
	all := travellers(t, "a", "b", strings.Repeat("x", maxTogetherBytes))
	judging(t, j, false).send(evaluate, all)
	for _, c := range all[:2] {
		if _, err := c.answered(t); err != nil {
			t.Error(err)
		}
	}
	if r := <-all[2].result; !r.alone {
		t.Errorf("%+v", r)
	}
}

// Callers get their answers whether their calls meet or not.
func TestCallsThatMeetTravelTogether(t *testing.T) {
	j := &judges{}
	client := riskv1.NewRiskServiceClient(judging(t, j, false))
	if got, err := client.Evaluate(t.Context(), &riskv1.ScoreRequest{IdempotencyKey: "lone"}); err != nil || got.RuleSet != "lone" || j.alone.Load() != 1 {
		t.Fatalf("%s, %v, and %d calls alone", got, err, j.alone.Load())
	}
	for round := 0; j.through.Load() == 0; round++ {
		begin := make(chan struct{})
		var calling sync.WaitGroup
		for i := range 50 {
			calling.Go(func() {
				<-begin
				key := fmt.Sprint([]string{"good", "bad"}[i%2], i)
				got, err := client.Evaluate(t.Context(), &riskv1.ScoreRequest{IdempotencyKey: key})
				if i%2 == 0 && (err != nil || got.RuleSet != key) || i%2 == 1 && status.Convert(err).Message() != key {
					t.Errorf("%s: %s, %v", key, got, err)
				}
			})
		}
		close(begin)
		calling.Wait()
		if t.Failed() || round == 1000 {
			t.Fatalf("no calls met in %d rounds", round)
		}
	}
}

// A server of an earlier release gets single calls, and is not asked again for a while.
func TestAnOlderServerGetsSingleCalls(t *testing.T) {
	j := &judges{}
	conn := judging(t, j, true)
	all := travellers(t, "a", "b")
	conn.make(evaluate, all)
	for _, c := range all {
		if r := <-c.result; !r.alone {
			t.Errorf("%+v; the call is to go alone", r)
		}
	}
	if !conn.lacking.Known() {
		t.Error("the server would be asked again at once")
	}
	if got, err := riskv1.NewRiskServiceClient(conn).Evaluate(t.Context(), &riskv1.ScoreRequest{IdempotencyKey: "c"}); err != nil || got.RuleSet != "c" || j.alone.Load() != 1 {
		t.Errorf("%s, %v, and %d calls alone", got, err, j.alone.Load())
	}
}

// A server of an earlier release knows the service, and not all methods of today. Their calls go
// alone, so that the caller learns which RPC the server lacks.
func TestCallsGoAloneThatTheServerDoesNotLetTravel(t *testing.T) {
	conn := judging(t, &judges{}, false)
	for range 2 {
		all := travellers(t, "a", "b")
		conn.make(dbv1.Db_Find_FullMethodName, all)
		for _, c := range all {
			if r := <-c.result; !r.alone {
				t.Errorf("%+v", r)
			}
		}
	}
	travels := travellers(t, "good", "good")
	conn.make(evaluate, travels)
	for _, c := range travels {
		if _, err := c.answered(t); err != nil {
			t.Errorf("another method does not travel any more: %v", err)
		}
	}
}

// Where the server is away, only calls without side effects are made again.
func TestOnlyRepeatableCallsOfTogetherAreRepeated(t *testing.T) {
	conn, err := Dial("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	away := Together(conn).(*together)
	for method := range travelling {
		all := travellers(t, "a")
		away.make(method, all)
		if r := <-all[0].result; r.alone != repeatable()[method] || !r.alone && status.Code(r.err) != codes.Unavailable {
			t.Errorf("%s: %+v", method, r)
		}
	}
}

// A call of an operator carries a token of its own, so it goes alone.
func TestACallWithATokenOfItsOwnGoesAlone(t *testing.T) {
	if !plain(t.Context(), []grpc.CallOption{grpc.StaticMethod()}) {
		t.Error("a usual call goes alone")
	}
	if plain(AsOperator(t.Context(), "token"), nil) || plain(t.Context(), []grpc.CallOption{grpc.WaitForReady(true)}) {
		t.Error("a call with a token or an option of its own travels with others")
	}
	for method := range travelling {
		if isAdmin(method) {
			t.Errorf("%s is for operators", method)
		}
	}
}

// The server bounds what it takes, and makes no other calls.
func TestTogetherIsBounded(t *testing.T) {
	service := judging(t, &judges{}, false).service
	for name, in := range map[string]*callsv1.MakeRequest{
		"too many calls": {Method: evaluate, Calls: make([]*callsv1.Call, maxTogether+1)},
		"an operator's":  {Method: riskv1.Admin_SeedRules_FullMethodName, Calls: []*callsv1.Call{{}}},
		"no method":      {},
	} {
		for i := range in.Calls {
			in.Calls[i] = &callsv1.Call{}
		}
		stream, err := service.Make(t.Context(), in)
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// BenchmarkTogether makes calls from 128 callers over loopback, in one process. It counts the processor
// time of both ends.
func BenchmarkTogether(b *testing.B) {
	for name, wrap := range map[string]func(grpc.ClientConnInterface) grpc.ClientConnInterface{
		"way=single": func(c grpc.ClientConnInterface) grpc.ClientConnInterface { return c }, "way=together": Together,
	} {
		b.Run(name, func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			server := grpc.NewServer()
			register := func(r grpc.ServiceRegistrar) { riskv1.RegisterRiskServiceServer(r, &judges{}) }
			register(server)
			ServeTogether(server, register, nil)
			go server.Serve(l)
			defer server.Stop()
			conn, err := Dial(l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			client := riskv1.NewRiskServiceClient(wrap(conn))
			b.ReportAllocs()
			b.SetParallelism(128 / runtime.GOMAXPROCS(0))
			begun := processorTime(b)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := client.Evaluate(b.Context(), &riskv1.ScoreRequest{IdempotencyKey: "key"}); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64((processorTime(b)-begun).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

func processorTime(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
