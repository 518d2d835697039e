// Package function runs a function: one port for gRPC, CloudEvents, health, metrics and, where there is one,
// a public API; and a drain that ends within Knative's grace period.
package function

import (
	"cmp"
	"context"
	"errors"
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

// Bounds of the port.
const (
	maxHeader  = 16 << 10
	maxStreams = 1024 // of a connection of HTTP/2
	// What HTTP/2 lets a peer send before it is read.
	maxUnread, maxUnreadOfStream = 512 << 10, 64 << 10
	readyTimeout                 = 2 * time.Second
)

// timeouts of a connection.
type timeouts struct {
	header  time.Duration // to receive a request's header
	request time.Duration // and all of it
	answer  time.Duration // from its header to the last byte of its answer: a client may read slowly, but not for ever
	idle    time.Duration // between two requests
}

var usualTimeouts = timeouts{header: 5 * time.Second, request: 30 * time.Second, answer: time.Minute, idle: 2 * time.Minute}

// Function is what runs behind one port. Name, Registry and Log are needed; the rest is nil where a function
// has none of it.
type Function struct {
	Name     string
	Log      *slog.Logger
	Registry *prometheus.Registry

	// GRPC registers the function's services. Health and reflection are added to them.
	GRPC func(grpc.ServiceRegistrar)
	// Events takes the CloudEvents that arrive by POST at EventsPath.
	Events     event.Handler
	EventsPath string // "/" when empty
	// Routes adds the public API.
	Routes func(*Mux)
	// Guard stands before all that is not gRPC; nil lets everything through.
	Guard func(http.Handler) http.Handler
	// Ready says why the function can't serve now.
	Ready func(context.Context) error
	// Background runs until its context ends.
	Background func(context.Context) error
	// BeforeDrain ends what needs the port to stay open, within its context: the port still takes connections meanwhile,
	// and says that it is not ready.
	BeforeDrain func(context.Context) error
	// Close gives back what the function holds, once nothing is being served.
	Close func(context.Context) error
	// Callers says who may call the gRPC services over the network; nil lets everyone.
	Callers *rpc.Callers
	// Transport says what the port's HTTP/2 connections carry; Mixed when empty. Without gRPC it has no effect.
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
func (f *Function) InProcess() grpc.ClientConnInterface {
	measured := f.served().interceptor()
	return rpc.InProcess(f.GRPC, func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
		ctx, span := trace.Start(ctx, info.FullMethod[1:], trace.Server)
		defer func() { trace.End(span, err) }()
		return measured(ctx, req, info, func(ctx context.Context, req any) (any, error) { return f.call(ctx, req, info, next) })
	})
}

// EventHandler takes the function's CloudEvents, for callers in the same process.
func (f *Function) EventHandler() http.Handler {
	// An event's trace may stand on the event itself: its span is made where the event is read.
	return f.served().route(f.eventsPattern(), event.HTTP(f.Events, f.Log), false)
}

func (f *Function) eventsPattern() string {
	if f.EventsPath == "" {
		return "POST /{$}"
	}
	return "POST " + f.EventsPath
}

// Handler is the whole port. gRPC and HTTP requests may share one connection (Knative's proxies do so), so
// they are told apart request by request.
func (f *Function) Handler() http.Handler {
	plain := f.plain()
	if f.GRPC == nil {
		return plain
	}
	// A server has one bound for all messages, so that large ones have a server of their own.
	ordinary, large := f.grpcServer(rpc.MaxOrdinary), f.grpcServer(rpc.MaxMessage)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isGRPC(r) {
			plain.ServeHTTP(w, r)
			return
		}
		// gRPC would first read the message.
		ctx, err := f.Callers.AdmitHTTP(r)
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

// refuse answers an RPC that is not served, as gRPC has it.
func refuse(w http.ResponseWriter, err error) {
	why := status.Convert(err)
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(int(why.Code())))
	h.Set("Grpc-Message", why.Message())
	w.WriteHeader(http.StatusOK)
}

// plain is all that is not gRPC.
func (f *Function) plain() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", f.serveReady)
	mux.Handle("GET /metrics", promhttp.HandlerFor(f.Registry, promhttp.HandlerOpts{Registry: f.Registry, EnableOpenMetrics: true}))
	if f.Events != nil {
		mux.Handle(f.eventsPattern(), f.EventHandler())
	}
	routes := &Mux{mux, f.served()}
	if f.Routes != nil {
		f.Routes(routes)
	}
	if f.Guard != nil {
		return f.Guard(routes)
	}
	return routes
}

func (f *Function) grpcServer(maxMessage int, options ...grpc.ServerOption) *grpc.Server {
	metrics := f.served().grpc
	unary, stream := []grpc.UnaryServerInterceptor{f.served().interceptor()}, []grpc.StreamServerInterceptor{metrics.StreamServerInterceptor()}
	unary, stream = append(unary, awaited), append(stream, awaitedStream)
	if f.Callers != nil {
		unary, stream = append(unary, f.Callers.Unary), append(stream, f.Callers.Stream)
	}
	options = append(options,
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(append(unary, f.call)...),
		grpc.ChainStreamInterceptor(stream...),
	)
	if trace.On() {
		options = append(options, grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithFilter(filters.Not(filters.HealthCheck())))))
	}
	server := grpc.NewServer(options...)
	f.GRPC(server)
	healthpb.RegisterHealthServer(server, healthServer{f: f})
	if f.Callers == nil || f.Callers.Reflection {
		reflection.Register(server)
	}
	metrics.server.Store(server)
	return server
}

// call serves an RPC: its lines of log name the payment, and a panic is one answer.
func (f *Function) call(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
	if about, ok := req.(interface{ GetIdempotencyKey() string }); ok {
		ctx = trace.WithKey(ctx, about.GetIdempotencyKey())
	}
	defer func() {
		if p := recover(); p != nil {
			f.Log.ErrorContext(ctx, "panic", "rpc", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "internal error")
		}
	}()
	return next(ctx, req)
}

func (f *Function) ready(ctx context.Context) error {
	if f.draining.Load() {
		return errors.New("draining")
	}
	if f.Ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if f.first != nil {
		select {
		case <-f.first.done: // long ago, usually
		default:
			return f.first.wait(ctx)
		}
	}
	return f.Ready(ctx)
}

// check is an answer of Ready that is awaited.
type check struct {
	done chan struct{}
	err  error // once done is closed
}

func (c *check) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask is the first who asks whether the function is ready, before any probe comes: what it needs to be ready, such as a
// connection to the database, is then under way. Who probes meanwhile has nothing done beside it, and is given that answer.
func (f *Function) ask(ctx context.Context) {
	if f.Ready == nil {
		return
	}
	f.first = &check{done: make(chan struct{})}
	go func() {
		defer close(f.first.done)
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		f.first.err = f.Ready(ctx)
	}()
}

func (f *Function) serveReady(w http.ResponseWriter, r *http.Request) {
	if err := f.ready(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

// healthServer answers gRPC's health checks with the same readiness as /readyz. Watching is left to the
// embedded default, which says that it is not implemented: clients then poll.
type healthServer struct {
	healthpb.UnimplementedHealthServer
	f *Function
}

func (h healthServer) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if h.f.ready(ctx) != nil {
		return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}, nil
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// Serve runs the function on a listener until ctx ends, then drains: it says that it is not ready, finishes
// what is being served, and closes, all within drain.
func (f *Function) Serve(ctx context.Context, l net.Listener, drain time.Duration) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	f.ask(background)
	wait := cmp.Or(f.timeouts, usualTimeouts)
	server := &http.Server{
		Protocols:         &http.Protocols{},
		ConnContext:       remember,
		ReadHeaderTimeout: wait.header,
		ReadTimeout:       wait.request,
		WriteTimeout:      wait.answer,
		IdleTimeout:       wait.idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(f.Log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: maxUnread, MaxReceiveBufferPerStream: maxUnreadOfStream,
			SendPingTimeout: rpc.Unseen, PingTimeout: rpc.Unanswered,
		},
	}
	failed := make(chan error, 3)
	server.Protocols.SetHTTP1(true)
	var calls *alone
	if f.Transport == Alone && f.GRPC != nil {
		server.Handler = tracked(f.plain())
		calls = newAlone(f.grpcServer(rpc.MaxMessage, append(wait.options(), grpc.InTapHandle(f.tap(wait.request)))...), l.Addr())
		calls.take(server)
		go func() { failed <- calls.server.Serve(calls) }()
	} else {
		server.Handler = tracked(f.Handler())
		server.Protocols.SetHTTP2(true)
		server.Protocols.SetUnencryptedHTTP2(true)
	}
	f.servingAfter.Store(int64(time.Since(processBegan)))
	f.connections.Listener = l
	go func() {
		if server.TLSConfig = f.Callers.ServerTLS(); server.TLSConfig != nil {
			failed <- server.ServeTLS(f.connections, "", "")
		} else {
			failed <- server.Serve(f.connections)
		}
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if f.Background == nil {
			return
		}
		if err := f.Background(background); err != nil && background.Err() == nil {
			failed <- err
		}
	}()

	var cause error
	select {
	case <-ctx.Done():
	case err := <-failed:
		cause = fmt.Errorf("%s: %w", f.Name, err)
	}
	f.draining.Store(true)
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	var err error
	if f.BeforeDrain != nil {
		err = f.BeforeDrain(limited)
	}
	go f.connections.giveUpSlow(limited)
	var calling sync.WaitGroup
	if calls != nil {
		calling.Go(func() { calls.drain(limited) })
	}
	if shutdown := server.Shutdown(limited); shutdown != nil {
		err = errors.Join(err, shutdown)
		server.Close()
	}
	calling.Wait()
	stop()
	<-ended
	if f.first != nil {
		<-f.first.done
	}
	if f.Close != nil {
		err = errors.Join(err, f.Close(limited))
	}
	if err != nil {
		err = fmt.Errorf("drain %s: %w", f.Name, err)
	}
	return errors.Join(cause, err)
}
