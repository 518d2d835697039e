package flow

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"pgw/shared/trace"
	"pgw/tests/processes"
)

// span is the part of a span that the tests check.
type span struct {
	trace, id, parent string
	name, service     string
	links             []string // the linked traces' ids
}

// wholeWay are the spans of one payment, from its request to its result. Over a network a call has
// two spans of its name.
var wholeWay = []string{
	"POST /api/payments", "fx.v1.FxService/Convert", "wallet.v1.WalletService/GetAccounts", "batch account",
	"risk.v1.RiskService/Evaluate", "publish payments.request", "await result",
	"deliver pgw.payment.requested.v1", "process pgw.payment.requested.v1",
	"payments.v1.PaymentsService/Settle", "db.v1.Db/ReserveAndCommit", "batch reserve",
	"publish payments.result", "deliver pgw.payment.result.v1", "process pgw.payment.result.v1",
}

// oneTree returns what is missing for the spans of the only payment to be one tree.
func oneTree(spans []span) error {
	var roots []span
	for _, s := range spans {
		if s.name == "POST /api/payments" {
			roots = append(roots, s)
		}
	}
	if len(roots) != 1 {
		return fmt.Errorf("%d spans of the request, want 1", len(roots))
	}
	payment, ids := roots[0].trace, map[string]bool{}
	var names []string
	for _, s := range spans {
		if s.trace == payment {
			ids[s.id] = true
			names = append(names, s.name)
		}
	}
	for _, want := range wholeWay {
		if !slices.Contains(names, want) {
			return fmt.Errorf("there is no span %q among %q", want, names)
		}
	}
	for _, s := range spans {
		if s.trace == payment && s.id != roots[0].id && !ids[s.parent] {
			return fmt.Errorf("%s of %s is an orphan", s.name, s.service)
		}
	}
	// Work that was done for several payments at once is a separate trace, linked with theirs.
	if !slices.ContainsFunc(spans, func(s span) bool {
		return s.name == "batch reserve" && s.trace != payment && slices.Contains(s.links, payment)
	}) {
		return errors.New("no batch of the ledger is linked with the payment")
	}
	return nil
}

// hasTrace checks that the payment and the list of payments have the trace of the payment's request.
func hasTrace(t *testing.T, gateway string, spans []span) {
	t.Helper()
	at := slices.IndexFunc(spans, func(s span) bool { return s.name == "POST /api/payments" })
	for _, path := range []string{"/api/payments/traced", "/api/payments"} {
		resp, err := http.Get(gateway + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := `"trace_id":"` + spans[at].trace + `"`; err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s has not %s: %v: %s", path, want, err, text)
		}
	}
}

// One payment is one tree of spans, in one process.
func TestAPaymentIsOneTraceInOneProcess(t *testing.T) {
	kept := tracetest.NewInMemoryExporter()
	trace.Use(sdk.NewTracerProvider(sdk.WithSyncer(kept)))
	t.Cleanup(func() { trace.Use(nil) })
	s := start(t, options{serial: true})
	s.expect(s.pay("traced", "A", "B", "USD", 10), "200 SUCCESS committed")
	prefix := s.kafka.Prefix
	var traced []span
	s.eventually("one tree", func() error {
		var spans []span
		for _, stub := range kept.GetSpans() {
			one := span{
				trace: stub.SpanContext.TraceID().String(), id: stub.SpanContext.SpanID().String(), parent: stub.Parent.SpanID().String(),
				name: strings.Replace(stub.Name, "publish "+prefix, "publish ", 1),
			}
			for _, l := range stub.Links {
				one.links = append(one.links, l.SpanContext.TraceID().String())
			}
			spans = append(spans, one)
		}
		traced = spans
		return oneTree(spans)
	})
	hasTrace(t, s.url, traced)
	// An exemplar links a latency to its trace.
	req, err := http.NewRequest(http.MethodGet, s.url+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/openmetrics-text")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(text), `# {trace_id="`) {
		t.Errorf("no exemplar: %v: %.2000s", err, text)
	}
}

// collector receives spans as OpenTelemetry's collectors do.
type collector struct {
	mu    sync.Mutex
	spans []span
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		unzipped, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = unzipped
	}
	text, err := io.ReadAll(body)
	var in collectorv1.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(text, &in)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range in.ResourceSpans {
		var service string
		for _, a := range resource.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, scope := range resource.ScopeSpans {
			for _, s := range scope.Spans {
				one := span{hex.EncodeToString(s.TraceId), hex.EncodeToString(s.SpanId), hex.EncodeToString(s.ParentSpanId), s.Name, service, nil}
				for _, l := range s.Links {
					one.links = append(one.links, hex.EncodeToString(l.TraceId))
				}
				c.spans = append(c.spans, one)
			}
		}
	}
}

func (c *collector) all() []span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// The same over a network: each function is a process that OpenTelemetry's own variables configure,
// and the spans go to a collector.
func TestAPaymentIsOneTraceThroughAllFunctions(t *testing.T) {
	c := &collector{}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
	log := &processes.Output{}
	s := separate(t, log)
	if err := s.StartSeeded(t.Context(), 2); err != nil {
		t.Fatalf("%v: %s", err, log)
	}
	if got := payOver(t, s.Addr("gateway"), "traced"); got.outcome() != "200 SUCCESS committed" {
		t.Fatalf("%s: %s", got, log)
	}
	prefix := strings.TrimSuffix(s.Kafka().RequestTopic, "payments.request")
	eventually(t, "one tree", func() error {
		spans := c.all()
		for i := range spans {
			spans[i].name = strings.Replace(spans[i].name, "publish "+prefix, "publish ", 1)
		}
		return oneTree(spans)
	})
	hasTrace(t, "http://"+s.Addr("gateway"), c.all())
	// Nobody waits for webhooks, so its span may come after the client's answer.
	eventually(t, "a span of each function", func() error {
		services := map[string]bool{}
		for _, s := range c.all() {
			services[s.service] = true
		}
		for _, name := range processes.All {
			if !services[name] {
				return fmt.Errorf("%s sent no span", name)
			}
		}
		return nil
	})
}

// A variable with a value that pgw does not support is an error, and is not ignored.
func TestTracesThatCantBeSentAreTold(t *testing.T) {
	for name, value := range map[string]string{"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			t.Setenv(name, value)
			if _, err := trace.Setup(context.Background(), "test", nil); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%v", err)
			}
		})
	}
}
