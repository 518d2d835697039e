package function

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"pgw/shared/event"
	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// Port serves a function: gRPC, events, health, metrics and the public API share it. Name, Log and
// Registry are required.
type Port struct {
	Name     string
	Log      *slog.Logger
	Registry *prometheus.Registry
	Service
	EventsPath string // the path of events; empty means "/"

	// Callers checks calls of the gRPC services over the network; nil accepts every call.
	Callers *rpc.Callers
	// Transport is what the port's HTTP/2 connections carry; empty means Mixed. It has no effect
	// without gRPC.
	Transport Transport
	// Admin is the operator's own port: it serves /metrics, /healthz and /readyz. nil: the function's port
	// serves all three. Serve closes it.
	Admin net.Listener
	// Ledger is the label ledger of all metrics; empty: there is no such label.
	Ledger string
	// MaxConnections is the most connections of the port; 0 means 8,192.
	MaxConnections int

	timeouts timeouts // zero means the defaults
	first    *check   // the first readiness check; nil until the port serves
	// connections are made by served.
	connections *connections
	draining    atomic.Bool
	serving     sync.Once
	metrics     *served // made by served

	servingAfter atomic.Int64 // nanoseconds since the process's start
}

// InProcess returns a connection to the function's gRPC services for callers in the same process.
func (p *Port) InProcess() grpc.ClientConnInterface {
	register := func(to grpc.ServiceRegistrar) {
		p.GRPC(to)
		healthpb.RegisterHealthServer(to, healthServer{port: p})
	}
	return rpc.InProcess(register, p.unary())
}

// unary measures and serves the calls that do not reach a method through gRPC itself.
func (p *Port) unary() grpc.UnaryServerInterceptor {
	measured := p.served().interceptor()
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
		ctx, span := trace.Start(ctx, info.FullMethod[1:], trace.Server)
		defer func() { trace.End(span, err) }()
		return measured(ctx, req, info, func(ctx context.Context, req any) (any, error) { return p.call(ctx, req, info, next) })
	}
}

// Receive returns how the function receives CloudEvents from the same process. They are measured as
// those that arrive over HTTP.
func (p *Port) Receive() event.Receive {
	meter, receiver := p.served().meter(p.eventsPattern()), event.NewReceiver(p.Events, p.Log)
	return func(ctx context.Context, header http.Header, body []byte) (answer event.Answer) {
		begun := time.Now()
		defer func() {
			// No event ends the process.
			if cause := recover(); cause != nil {
				p.Log.ErrorContext(ctx, "panic", "panic", cause, "stack", string(debug.Stack()))
				answer = event.Answer{Code: http.StatusInternalServerError, Text: "internal error"}
			}
			meter.measure(ctx, begun, answer.Code)
		}()
		return receiver.Receive(ctx, header, body)
	}
}

func (p *Port) eventsPattern() string {
	if p.EventsPath == "" || p.EventsPath == "/" {
		return "POST /{$}"
	}
	return "POST " + p.EventsPath
}

// Handler returns the handler of the whole port. gRPC and HTTP requests may share one connection,
// as behind Knative's proxies, so it decides for each request.
func (p *Port) Handler() http.Handler {
	plain := p.plain()
	if p.GRPC == nil {
		return plain
	}
	// A gRPC server has one size limit for all messages, so a second server handles the large ones.
	ordinary, large := p.grpcServer(rpc.MaxOrdinary), p.grpcServer(rpc.MaxMessage)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isGRPC(r) {
			plain.ServeHTTP(w, r)
			return
		}
		// This runs here and not in gRPC, which would read the message first.
		ctx, err := p.Callers.AdmitHTTP(r)
		if err != nil {
			refuse(w, err)
			return
		}
		server := ordinary
		if rpc.Large(r.URL.Path) {
			server = large
		}
		server.ServeHTTP(w, r.WithContext(ctx))
	})
}

func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// refuse answers an RPC with an error in the form that gRPC expects.
func refuse(w http.ResponseWriter, err error) {
	why := status.Convert(err)
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(int(why.Code())))
	h.Set("Grpc-Message", why.Message())
	w.WriteHeader(http.StatusOK)
}

// plain returns the handler of all requests that are not gRPC.
func (p *Port) plain() http.Handler {
	mux := http.NewServeMux()
	p.health(mux)
	if p.Admin == nil {
		p.exposeMetrics(mux)
	}
	if p.Events != nil {
		// The span is made when the event is read, because the event itself may carry the trace.
		mux.Handle(p.eventsPattern(), p.served().route(p.eventsPattern(), event.NewReceiver(p.Events, p.Log), false))
	}
	routes := &Mux{mux, p.served()}
	if p.Routes != nil {
		p.Routes(routes)
	}
	if p.Guard != nil {
		return p.Guard(routes)
	}
	return routes
}

// health adds the probes. They stay on the function's port too, because a proxy asks the port that it
// uses.
func (p *Port) health(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", p.serveReady)
}

func (p *Port) exposeMetrics(mux *http.ServeMux) {
	var metrics prometheus.Gatherer = p.Registry
	if p.Ledger != "" {
		metrics = ofLedger{p.Registry, p.Ledger}
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{Registry: p.Registry, EnableOpenMetrics: true}))
}

func (p *Port) grpcServer(maxMessage int, options ...grpc.ServerOption) *grpc.Server {
	metrics := p.served().grpc
	unary, stream := []grpc.UnaryServerInterceptor{p.served().interceptor()}, []grpc.StreamServerInterceptor{metrics.StreamServerInterceptor()}
	unary, stream = append(unary, awaited), append(stream, awaitedStream)
	if p.Callers != nil {
		unary, stream = append(unary, p.Callers.Unary), append(stream, p.Callers.Stream)
	}
	options = append(options,
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(append(unary, p.call)...),
		grpc.ChainStreamInterceptor(stream...),
	)
	if trace.On() {
		options = append(options, grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithFilter(filters.Not(filters.HealthCheck())))))
	}
	server := grpc.NewServer(options...)
	p.GRPC(server)
	rpc.ServeTogether(server, p.GRPC, p.unary())
	healthpb.RegisterHealthServer(server, healthServer{port: p})
	if p.Callers == nil || p.Callers.Reflection {
		reflection.Register(server)
	}
	metrics.server.Store(server)
	return server
}

// call serves an RPC. Its log lines name the payment, and a panic fails only this RPC.
func (p *Port) call(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
	if about, ok := req.(interface{ GetIdempotencyKey() string }); ok {
		ctx = trace.WithKey(ctx, about.GetIdempotencyKey())
	}
	defer func() {
		if cause := recover(); cause != nil {
			p.Log.ErrorContext(ctx, "panic", "rpc", info.FullMethod, "panic", cause, "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "internal error")
		}
	}()
	return next(ctx, req)
}
