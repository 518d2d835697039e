package function

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

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

// Port is how a service is served: gRPC, events, health, metrics and the public API share it. Name,
// Log and Registry are needed.
type Port struct {
	Name     string
	Log      *slog.Logger
	Registry *prometheus.Registry
	Service
	EventsPath string // where events arrive; "/" when empty

	// Callers says who may call the gRPC services over the network; nil lets everyone.
	Callers *rpc.Callers
	// Transport says what the port's HTTP/2 connections carry; Mixed when empty. Without gRPC it
	// has no effect.
	Transport Transport
	// MaxConnections bounds the port's; 0 means 8,192.
	MaxConnections int

	timeouts timeouts // the usual ones when zero
	first    *check   // whether the function is ready when it begins to serve; nil before
	// connections are made by served()
	connections *connections
	draining    atomic.Bool
	serving     sync.Once
	metrics     *served // use served()

	servingAfter atomic.Int64 // nanoseconds from the process's start
}

// InProcess gives the function's gRPC services to callers in the same process.
func (p *Port) InProcess() grpc.ClientConnInterface {
	measured := p.served().interceptor()
	return rpc.InProcess(p.GRPC, func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
		ctx, span := trace.Start(ctx, info.FullMethod[1:], trace.Server)
		defer func() { trace.End(span, err) }()
		return measured(ctx, req, info, func(ctx context.Context, req any) (any, error) { return p.call(ctx, req, info, next) })
	})
}

// EventHandler takes the function's CloudEvents, for callers in the same process.
func (p *Port) EventHandler() http.Handler {
	// The span is made where the event is read, since the event itself may carry the trace.
	return p.served().route(p.eventsPattern(), event.HTTP(p.Events, p.Log), false)
}

func (p *Port) eventsPattern() string {
	if p.EventsPath == "" || p.EventsPath == "/" {
		return "POST /{$}"
	}
	return "POST " + p.EventsPath
}

// Handler is the whole port. gRPC and HTTP requests may share one connection, as behind Knative's
// proxies, so each request is looked at.
func (p *Port) Handler() http.Handler {
	plain := p.plain()
	if p.GRPC == nil {
		return plain
	}
	// A gRPC server has one bound for all messages, so large messages have a server of their own.
	ordinary, large := p.grpcServer(rpc.MaxOrdinary), p.grpcServer(rpc.MaxMessage)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isGRPC(r) {
			plain.ServeHTTP(w, r)
			return
		}
		// Here and not in gRPC, which would read the message first.
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

// refuse answers an RPC that is not served, in the form that gRPC expects.
func refuse(w http.ResponseWriter, err error) {
	why := status.Convert(err)
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(int(why.Code())))
	h.Set("Grpc-Message", why.Message())
	w.WriteHeader(http.StatusOK)
}

// plain serves all that is not gRPC.
func (p *Port) plain() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", p.serveReady)
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.Registry, promhttp.HandlerOpts{Registry: p.Registry, EnableOpenMetrics: true}))
	if p.Events != nil {
		mux.Handle(p.eventsPattern(), p.EventHandler())
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
	healthpb.RegisterHealthServer(server, healthServer{port: p})
	if p.Callers == nil || p.Callers.Reflection {
		reflection.Register(server)
	}
	metrics.server.Store(server)
	return server
}

// call serves an RPC. Log lines within it name the payment, and a panic fails that RPC only.
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
