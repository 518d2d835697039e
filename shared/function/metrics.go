package function

import (
	"cmp"
	"context"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promauto"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/version"
	"google.golang.org/grpc"

	"pgw/shared/trace"
)

// Latency holds buckets, in seconds, for every step of a payment, from a hand-over in memory to a
// client's deadline.
var Latency = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// NewRegistry returns a registry with the collectors that each function exposes.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		versioncollector.NewCollector("pgw"))
	return r
}

// ofLedger adds the label ledger to all metrics, so that those of several ledgers are told apart.
type ofLedger struct {
	prometheus.Gatherer
	ledger string
}

// Gather implements prometheus.Gatherer.
func (g ofLedger) Gather() ([]*dto.MetricFamily, error) {
	name := "ledger"
	families, err := g.Gatherer.Gather()
	for _, family := range families {
		for _, metric := range family.Metric {
			// The metric that was gathered owns the slice.
			labels := append(slices.Clone(metric.Label), &dto.LabelPair{Name: &name, Value: &g.ledger})
			slices.SortFunc(labels, func(a, b *dto.LabelPair) int { return cmp.Compare(a.GetName(), b.GetName()) })
			metric.Label = labels
		}
	}
	return families, err
}

// pgw_build_info shows the version of the module, unless the linker has set another.
func init() {
	if info, ok := debug.ReadBuildInfo(); ok && version.Version == "" {
		version.Version = info.Main.Version
	}
}

// processBegan is when packages were initialised. That is milliseconds after the start of the
// process.
var processBegan = time.Now()

// served measures a function's requests: how many there are, how they end, and how long they take.
type served struct {
	grpc     *rpcMetrics // nil if there is no gRPC
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

// classes are the classes of HTTP statuses. Other metrics have the exact status.
var classes = [...]string{"2xx", "3xx", "4xx", "5xx"}

// noRoute is the route of requests that no route serves.
const noRoute = "none"

// served returns the metrics, which all ways into the function share.
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

// NewCounters makes counters by one label. Each value of the label exists from the start. So an
// event that has never happened has the count 0, and is not absent.
func NewCounters(r prometheus.Registerer, name, help, label string, values ...string) *prometheus.CounterVec {
	counters := promauto.With(r).NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	for _, value := range values {
		counters.WithLabelValues(value)
	}
	return counters
}

// rpcMetrics has every method with every code from the start. Those are hundreds of series, and
// most stay 0. They are made at the first scrape, so that they do not delay the start.
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

// Mux serves the routes of a function's public API, and measures each. The patterns are
// http.ServeMux's. They are also the labels of the metrics: a closed set.
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

// None sets the answer to requests that no route serves. methods are the methods that the path has.
// If there are none, the path does not exist.
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

// meter measures the requests of one route.
type meter struct {
	seconds prometheus.Observer
	counts  [len(classes)]prometheus.Counter
}

func (s *served) meter(pattern string) meter {
	m := meter{seconds: s.seconds.WithLabelValues(pattern)}
	for i, class := range classes {
		m.counts[i] = s.requests.WithLabelValues(pattern, class)
	}
	return m
}

// measure counts a request that was answered with a status code.
func (m meter) measure(ctx context.Context, begun time.Time, code int) {
	trace.Observe(ctx, m.seconds, time.Since(begun).Seconds())
	m.counts[min(max(code/100-2, 0), len(m.counts)-1)].Inc()
}

// route measures one route's handler. If traced is set, it also makes a span.
func (s *served) route(pattern string, next http.Handler, traced bool) http.Handler {
	meter := s.meter(pattern)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun := time.Now()
		answer := &answered{ResponseWriter: w, code: http.StatusInternalServerError} // the code if the handler panics
		if traced && trace.On() {
			ctx, span := trace.Start(trace.Extract(r.Context(), trace.Header(r.Header)), pattern, trace.Server)
			defer func() { trace.EndHTTP(span, answer.code) }()
			r = r.WithContext(ctx)
		}
		defer func() { meter.measure(r.Context(), begun, answer.code) }()
		next.ServeHTTP(answer, r)
		answer.WriteHeader(http.StatusOK) // unless the handler has sent another
	})
}

// answered records the status of the answer.
type answered struct {
	http.ResponseWriter
	code  int
	wrote bool
}

func (a *answered) WriteHeader(code int) {
	if a.wrote {
		return
	}
	// 1xx statuses precede the answer.
	if code >= 200 {
		a.code, a.wrote = code, true
	}
	a.ResponseWriter.WriteHeader(code)
}

func (a *answered) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.ResponseWriter.Write(p)
}

// Flush implements http.Flusher, for answers that are sent in parts.
func (a *answered) Flush() {
	a.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(a.ResponseWriter).Flush()
}

// Unwrap gives http.ResponseController the wrapped writer.
func (a *answered) Unwrap() http.ResponseWriter { return a.ResponseWriter }
