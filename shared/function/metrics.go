package function

import (
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/common/version"
	"google.golang.org/grpc"

	"pgw/shared/trace"
)

// Latency holds buckets, in seconds, for everything that a payment passes: from a hand-over in
// memory to the deadline of a client.
var Latency = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// NewRegistry has the collectors that each function exposes.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		versioncollector.NewCollector("pgw"))
	return r
}

// The version that pgw_build_info shows is the module's, unless the linker has set another.
func init() {
	if info, ok := debug.ReadBuildInfo(); ok && version.Version == "" {
		version.Version = info.Main.Version
	}
}

// processBegan is when packages were initialised, which is milliseconds after the process was
// started.
var processBegan = time.Now()

// served counts what a function serves: how often, how that ended, and how long it took.
type served struct {
	grpc     *rpcMetrics // nil where there is no gRPC
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

// classes of HTTP statuses. The metrics of what was asked for say which status it was.
var classes = [...]string{"2xx", "3xx", "4xx", "5xx"}

// noRoute stands for requests that no route takes.
const noRoute = "none"

// served is the same for all ways into the function.
func (p *Port) served() *served {
	p.serving.Do(func() {
		auto := promauto.With(p.Registry)
		p.metrics = &served{requests: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_http_requests_total", Help: "HTTP requests by route and class of status; route none: no route took it.",
		}, []string{"route", "code"})}
		p.metrics.requests.WithLabelValues(noRoute, "4xx")
		if p.Events != nil || p.Routes != nil {
			p.metrics.seconds = auto.NewHistogramVec(prometheus.HistogramOpts{
				Name: "pgw_http_request_duration_seconds", Help: "How long answering an HTTP request took, by route.", Buckets: Latency,
			}, []string{"route"})
		}
		auto.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "pgw_serving_after_seconds", Help: "How long after its start the process began to serve: the function's part of a cold start.",
		}, func() float64 { return time.Duration(p.servingAfter.Load()).Seconds() })
		if p.GRPC != nil {
			p.metrics.grpc = &rpcMetrics{ServerMetrics: grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram(grpcprom.WithHistogramBuckets(Latency)))}
			p.Registry.MustRegister(p.metrics.grpc)
		}
		p.connections = newConnections(p.MaxConnections, p.Registry)
	})
	return p.metrics
}

// NewCounters makes counters by one label. Each value of the label is there from the start, so that
// what has never happened is 0 and not absent.
func NewCounters(r prometheus.Registerer, name, help, label string, values ...string) *prometheus.CounterVec {
	counters := promauto.With(r).NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	for _, value := range values {
		counters.WithLabelValues(value)
	}
	return counters
}

// rpcMetrics show every method with every code from the start. Those are hundreds of series, most
// of them 0 for ever. They are made when somebody first looks, so that no start waits for them.
type rpcMetrics struct {
	*grpcprom.ServerMetrics
	server atomic.Pointer[grpc.Server] // nil until it is made
	zeros  sync.Once
}

// Collect implements prometheus.Collector.
func (m *rpcMetrics) Collect(into chan<- prometheus.Metric) {
	if server := m.server.Load(); server != nil {
		m.zeros.Do(func() { m.InitializeMetrics(server) })
	}
	m.ServerMetrics.Collect(into)
}

// Mux takes the routes of a function's public API, and measures each. The patterns are
// http.ServeMux's. They are the labels of the metrics too: a closed set.
type Mux struct {
	mux    *http.ServeMux
	served *served
}

// HandleFunc adds a route.
func (m *Mux) HandleFunc(pattern string, handler func(http.ResponseWriter, *http.Request)) {
	m.Handle(pattern, http.HandlerFunc(handler))
}

// Handle adds a route.
func (m *Mux) Handle(pattern string, handler http.Handler) {
	m.mux.Handle(pattern, m.served.route(pattern, handler, true))
}

// None sets the answer to requests that no route takes. methods are those that the path does take;
// when there are none, there is no such path.
func (m *Mux) None(answer func(w http.ResponseWriter, r *http.Request, methods []string)) {
	m.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		m.served.requests.WithLabelValues(noRoute, "4xx").Inc()
		var methods []string
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			if _, pattern := m.mux.Handler(&http.Request{Method: method, URL: r.URL, Host: r.Host}); pattern != "/" {
				methods = append(methods, method)
			}
		}
		answer(w, r, methods)
	})
}

// ServeHTTP implements http.Handler.
func (m *Mux) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mux.ServeHTTP(w, r)
	if r.Pattern == "" {
		m.served.requests.WithLabelValues(noRoute, "4xx").Inc()
	}
}

// interceptor measures RPCs.
func (s *served) interceptor() grpc.UnaryServerInterceptor {
	return s.grpc.UnaryServerInterceptor(grpcprom.WithExemplarFromContext(trace.Exemplar))
}

// route measures one route's handler. With traced it also gets a span.
func (s *served) route(pattern string, next http.Handler, traced bool) http.Handler {
	seconds := s.seconds.WithLabelValues(pattern)
	var counts [len(classes)]prometheus.Counter
	for i, class := range classes {
		counts[i] = s.requests.WithLabelValues(pattern, class)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun := time.Now()
		answer := &answered{ResponseWriter: w, code: http.StatusInternalServerError} // of a handler that panics
		if traced && trace.On() {
			ctx, span := trace.Start(trace.Extract(r.Context(), trace.Header(r.Header)), pattern, trace.Server)
			defer func() { trace.EndHTTP(span, answer.code) }()
			r = r.WithContext(ctx)
		}
		defer func() {
			trace.Observe(r.Context(), seconds, time.Since(begun).Seconds())
			counts[min(max(answer.code/100-2, 0), len(counts)-1)].Inc()
		}()
		next.ServeHTTP(answer, r)
		answer.WriteHeader(http.StatusOK) // unless it has said another
	})
}

// answered remembers the status that was answered.
type answered struct {
	http.ResponseWriter
	code  int
	wrote bool
}

func (a *answered) WriteHeader(code int) {
	if a.wrote {
		return
	}
	// 1xx come before the answer.
	if code >= 200 {
		a.code, a.wrote = code, true
	}
	a.ResponseWriter.WriteHeader(code)
}

func (a *answered) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.ResponseWriter.Write(p)
}

// Flush implements http.Flusher, for answers that come bit by bit.
func (a *answered) Flush() {
	a.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(a.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController reach the wrapped writer.
func (a *answered) Unwrap() http.ResponseWriter { return a.ResponseWriter }
