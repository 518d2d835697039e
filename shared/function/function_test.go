package function

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	riskv1 "pgw/proto/gen/risk/v1"
)

type service struct {
	riskv1.UnimplementedRiskServiceServer
	evaluate func(context.Context, *riskv1.ScoreRequest) (*riskv1.EvaluateResponse, error)
}

func (s service) Evaluate(ctx context.Context, in *riskv1.ScoreRequest) (*riskv1.EvaluateResponse, error) {
	return s.evaluate(ctx, in)
}

func serve(t *testing.T, f *Port, s service) (addr string, stop func() error) {
	t.Helper()
	f.Name, f.Log, f.Registry = "test", slog.New(slog.DiscardHandler), NewRegistry()
	f.GRPC = func(r grpc.ServiceRegistrar) { riskv1.RegisterRiskServiceServer(r, s) }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx, l, 10*time.Second) }()
	return l.Addr().String(), func() error { cancel(); return <-done }
}

// overEach runs a test over both transports.
func overEach(t *testing.T, test func(*testing.T, Transport)) {
	for _, over := range []Transport{Mixed, GRPCOnly} {
		t.Run(string(over), func(t *testing.T) { test(t, over) })
	}
}

func allow(context.Context, *riskv1.ScoreRequest) (*riskv1.EvaluateResponse, error) {
	return &riskv1.EvaluateResponse{Allow: true}, nil
}

// gRPC, events and plain HTTP share one port. As behind Knative's proxies, they also share one
// connection.
func TestOnePortForAll(t *testing.T) {
	var taken atomic.Int32
	addr, stop := serve(t, &Port{Service: Service{Events: func(context.Context, cloudevents.Event) error { taken.Add(1); return nil }}}, service{evaluate: allow})
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	dials := 0
	h2c := &http.Client{Transport: &http.Transport{Protocols: &protocols, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}}
	e := cloudevents.New()
	e.SetID("1")
	e.SetType("t")
	e.SetSource("/s")
	for range 3 {
		req, err := cehttp.NewHTTPRequestFromEvent(t.Context(), "http://"+addr+"/", e)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := h2c.Do(req)
		if err != nil || resp.StatusCode != http.StatusAccepted || resp.ProtoMajor != 2 {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
		// An empty gRPC message: five bytes of frame.
		req, _ = http.NewRequest(http.MethodPost, "http://"+addr+"/risk.v1.RiskService/Evaluate", strings.NewReader("\x00\x00\x00\x00\x00"))
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("TE", "trailers")
		if resp, err = h2c.Do(req); err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.Trailer.Get("Grpc-Status") != "0" || len(body) != 7 {
			t.Errorf("gRPC on the same connection: %v %q", resp.Trailer, body)
		}
		if resp, err = h2c.Get("http://" + addr + "/healthz"); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
	}
	if dials != 1 || taken.Load() != 3 {
		t.Errorf("%d connections, %d events", dials, taken.Load())
	}
	if resp, err := http.Get("http://" + addr + "/metrics"); err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 1 {
		t.Errorf("HTTP/1: %v, %v", resp, err)
	}
	h2c.CloseIdleConnections()
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestAPanicIsOneAnswer(t *testing.T) { overEach(t, aPanicIsOneAnswer) }

func aPanicIsOneAnswer(t *testing.T, over Transport) {
	addr, stop := serve(t, &Port{Transport: over}, service{evaluate: func(ctx context.Context, in *riskv1.ScoreRequest) (*riskv1.EvaluateResponse, error) {
		if in.SenderId == "" {
			panic("oh")
		}
		return allow(ctx, in)
	}})
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	client := riskv1.NewRiskServiceClient(conn)
	if _, err := client.Evaluate(t.Context(), &riskv1.ScoreRequest{}); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "oh") {
		t.Errorf("%v", err)
	}
	if _, err := client.Evaluate(t.Context(), &riskv1.ScoreRequest{SenderId: "A"}); err != nil {
		t.Errorf("the next call: %v", err)
	}
	conn.Close()
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A drain answers the requests under way, is not ready meanwhile, and then closes.
func TestDrain(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	closed := false
	f := &Port{Service: Service{
		Routes: func(mux *Mux) {
			mux.HandleFunc("GET /slow", func(w http.ResponseWriter, _ *http.Request) {
				close(begun)
				<-release
				io.WriteString(w, "done")
			})
		},
		Close: func(context.Context) error { closed = true; return nil },
	}}
	addr, stop := serve(t, f, service{evaluate: allow})
	answer := make(chan string)
	go func() {
		resp, err := http.Get("http://" + addr + "/slow")
		if err != nil {
			answer <- err.Error()
			return
		}
		body, _ := io.ReadAll(resp.Body)
		answer <- string(body)
	}()
	<-begun
	if err := f.ready(t.Context()); err != nil {
		t.Errorf("before: %v", err)
	}
	stopped := make(chan error)
	go func() { stopped <- stop() }()
	for f.ready(t.Context()) == nil {
		time.Sleep(time.Millisecond)
	}
	if closed {
		t.Error("closed while a request was under way")
	}
	close(release)
	if got := <-answer; got != "done" {
		t.Errorf("the request under way got %q", got)
	}
	if err := <-stopped; err != nil || !closed {
		t.Errorf("closed %t, %v", closed, err)
	}
}

// A call under way is answered before the function ends. A call that does not end does not stop the
// function from ending.
func TestDrainOfCalls(t *testing.T) { overEach(t, drainOfCalls) }

func drainOfCalls(t *testing.T, over Transport) {
	for name, tc := range map[string]struct {
		drain  time.Duration
		answer bool
	}{"one that ends": {wait, true}, "one that does not": {50 * time.Millisecond, false}} {
		begun, release := make(chan struct{}), make(chan struct{})
		f := &Port{Transport: over, Name: "test", Log: slog.New(slog.DiscardHandler), Registry: NewRegistry()}
		f.GRPC = func(r grpc.ServiceRegistrar) {
			riskv1.RegisterRiskServiceServer(r, service{evaluate: func(ctx context.Context, in *riskv1.ScoreRequest) (*riskv1.EvaluateResponse, error) {
				close(begun)
				select {
				case <-release:
				case <-ctx.Done():
				}
				return allow(ctx, in)
			}})
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan error, 1)
		go func() { stopped <- f.Serve(ctx, l, tc.drain) }()
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		answer := make(chan error, 1)
		go func() {
			_, err := riskv1.NewRiskServiceClient(conn).Evaluate(t.Context(), &riskv1.ScoreRequest{})
			answer <- err
		}()
		<-begun
		cancel()
		if tc.answer {
			for f.ready(t.Context()) == nil {
				time.Sleep(time.Millisecond)
			}
			select {
			case err := <-stopped:
				t.Fatalf("%s: the function has ended: %v", name, err)
			case <-time.After(50 * time.Millisecond):
			}
			close(release)
		}
		if err := <-answer; (err == nil) != tc.answer {
			t.Errorf("%s got %v", name, err)
		}
		if err := <-stopped; tc.answer && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
}

// The function makes its connections before the first probe, and a probe does not make them again.
func TestReadinessIsAskedForFirstByTheFunction(t *testing.T) {
	var times atomic.Int32
	began, connect := make(chan struct{}), make(chan struct{})
	addr, stop := serve(t, &Port{Service: Service{Ready: func(ctx context.Context) error {
		if times.Add(1) == 1 {
			close(began)
			<-connect
		}
		return nil
	}}}, service{evaluate: allow})
	<-began
	probed := make(chan int)
	go func() {
		resp, err := http.Get("http://" + addr + "/readyz")
		if err != nil {
			t.Error(err)
			close(probed)
			return
		}
		resp.Body.Close()
		probed <- resp.StatusCode
	}()
	select {
	case code := <-probed:
		t.Errorf("answered %d before it was ready", code)
	case <-time.After(50 * time.Millisecond):
	}
	if n := times.Load(); n != 1 {
		t.Errorf("%d simultaneous calls", n)
	}
	close(connect)
	if code := <-probed; code != http.StatusOK || times.Load() != 1 {
		t.Errorf("answered %d after %d calls", code, times.Load())
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestAFailureInTheBackgroundEndsTheFunction(t *testing.T) {
	f := &Port{Service: Service{Background: func(context.Context) error { return errors.New("lost") }}}
	_, stop := serve(t, f, service{evaluate: allow})
	for f.ready(t.Context()) == nil {
		time.Sleep(time.Millisecond)
	}
	if err := stop(); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("got %v", err)
	}
}

// A call in one process behaves as over a network: messages are not shared, and errors have codes.
func TestInProcess(t *testing.T) {
	var kept *riskv1.ScoreRequest
	f := &Port{Log: slog.New(slog.DiscardHandler), Registry: NewRegistry(), Service: Service{GRPC: func(r grpc.ServiceRegistrar) {
		riskv1.RegisterRiskServiceServer(r, service{evaluate: func(ctx context.Context, in *riskv1.ScoreRequest) (*riskv1.EvaluateResponse, error) {
			kept = in
			switch in.SenderId {
			case "panic":
				panic("oh")
			case "plain":
				return nil, errors.New("plain")
			case "late":
				return nil, context.DeadlineExceeded
			}
			return &riskv1.EvaluateResponse{Allow: true, Reason: in.SenderId}, nil
		}})
	}}}
	client := riskv1.NewRiskServiceClient(f.InProcess())
	in := &riskv1.ScoreRequest{SenderId: "A"}
	if got, err := client.Evaluate(t.Context(), in); err != nil || got.Reason != "A" || kept == in {
		t.Errorf("%v, %v; shared %t", got, err, kept == in)
	}
	for sender, want := range map[string]codes.Code{"panic": codes.Internal, "plain": codes.Unknown, "late": codes.DeadlineExceeded} {
		if _, err := client.Evaluate(t.Context(), &riskv1.ScoreRequest{SenderId: sender}); status.Code(err) != want {
			t.Errorf("%s: %v", sender, err)
		}
	}
	if _, err := riskv1.NewAdminClient(f.InProcess()).SeedRules(t.Context(), &riskv1.SeedRulesRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a service that does not exist: %v", err)
	}
}
