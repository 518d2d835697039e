package function

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/grpc"

	riskv1 "pgw/proto/gen/risk/v1"
)

// Requests are counted by the route's pattern, never by the path that a client sent.
func TestRequestsAreCountedByRoute(t *testing.T) {
	f := &Port{Registry: NewRegistry(), Service: Service{Events: func(context.Context, cloudevents.Event) error { return nil }, Routes: func(mux *Mux) {
		mux.HandleFunc("GET /things/{name}", func(w http.ResponseWriter, r *http.Request) {
			switch r.PathValue("name") {
			case "gone":
				http.Error(w, "gone", http.StatusGone)
			case "early":
				w.WriteHeader(http.StatusEarlyHints)
				w.(http.Flusher).Flush()
			case "panic":
				panic(http.ErrAbortHandler)
			}
		})
	}}}
	handler := f.Handler()
	get := func(path string) {
		defer func() { _ = recover() }()
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil))
	}
	for _, path := range []string{"/things/one", "/things/two", "/things/early", "/things/gone", "/things/panic", "/nothing", "/nothing/else"} {
		get(path)
	}
	f.Receive()(t.Context(), http.Header{}, nil) // not an event
	want := `
# HELP pgw_http_requests_total HTTP requests by route and class of status; route none: no route took it.
# TYPE pgw_http_requests_total counter
pgw_http_requests_total{code="2xx",route="GET /things/{name}"} 3
pgw_http_requests_total{code="3xx",route="GET /things/{name}"} 0
pgw_http_requests_total{code="4xx",route="GET /things/{name}"} 1
pgw_http_requests_total{code="5xx",route="GET /things/{name}"} 1
pgw_http_requests_total{code="2xx",route="POST /{$}"} 0
pgw_http_requests_total{code="3xx",route="POST /{$}"} 0
pgw_http_requests_total{code="4xx",route="POST /{$}"} 1
pgw_http_requests_total{code="5xx",route="POST /{$}"} 0
pgw_http_requests_total{code="4xx",route="none"} 2
`
	if err := testutil.GatherAndCompare(f.Registry, strings.NewReader(want), "pgw_http_requests_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(f.Registry, "pgw_http_request_duration_seconds"); n != 2 || err != nil {
		t.Errorf("%d histograms, %v", n, err)
	}
}

// A call within the process is counted like a call over a network.
func TestCallsInProcessAreCounted(t *testing.T) {
	f := &Port{Registry: NewRegistry(), Service: Service{GRPC: func(r grpc.ServiceRegistrar) { riskv1.RegisterRiskServiceServer(r, service{evaluate: allow}) }}}
	f.Handler()
	client := riskv1.NewRiskServiceClient(f.InProcess())
	for range 2 {
		if _, err := client.Evaluate(t.Context(), &riskv1.ScoreRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := testutil.CollectAndFormat(f.served().grpc, expfmt.TypeTextPlain, "grpc_server_handled_total")
	if want := `grpc_code="OK",grpc_method="Evaluate",grpc_service="risk.v1.RiskService",grpc_type="unary"} 2`; err != nil || !strings.Contains(string(text), want) {
		t.Errorf("%v; %s", err, text)
	}
}

// Every method has a series for every code from the start. A code that has never occurred has the
// count 0, and is not absent.
func TestRPCsAreToldFromTheStart(t *testing.T) {
	f := &Port{Registry: NewRegistry(), Service: Service{GRPC: func(r grpc.ServiceRegistrar) { riskv1.RegisterRiskServiceServer(r, service{evaluate: allow}) }}}
	handler := f.Handler()
	for range 2 {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		for _, want := range []string{
			`grpc_server_started_total{grpc_method="Evaluate",grpc_service="risk.v1.RiskService",grpc_type="unary"} 0`,
			`grpc_server_handled_total{grpc_code="Unavailable",grpc_method="Evaluate",grpc_service="risk.v1.RiskService",grpc_type="unary"} 0`,
			`grpc_server_handling_seconds_count{grpc_method="Check",grpc_service="grpc.health.v1.Health",grpc_type="unary"} 0`,
		} {
			if !strings.Contains(w.Body.String(), want+"\n") {
				t.Errorf("%s is missing", want)
			}
		}
	}
}

// Each metric of a process has the label of its ledger, at every scrape, and no process without a ledger's
// schema has the label.
func TestMetricsNameTheLedger(t *testing.T) {
	for ledger, want := range map[string]string{"": `pgw_http_requests_total{code="4xx",route="none"}`, "shop": `pgw_http_requests_total{code="4xx",ledger="shop",route="none"}`} {
		handler := (&Port{Registry: NewRegistry(), Ledger: ledger}).Handler()
		for range 2 {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			if !strings.Contains(w.Body.String(), want) || (ledger == "") == strings.Contains(w.Body.String(), `ledger="`) {
				t.Errorf("the ledger %q has no %s: %d %s", ledger, want, w.Code, w.Body)
			}
		}
	}
}
