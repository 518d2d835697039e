package flow

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/shared/rpc"
	"pgw/tests/processes"
)

// behind is queue-proxy's address. Some of its ports are fixed, and on all addresses.
const behind = "127.0.0.1:8012"

// startQueueProxy puts Knative's own queue-proxy in front of a function, configured as Knative does
// it.
func startQueueProxy(t *testing.T, path, function string, log *processes.Output) *exec.Cmd {
	t.Helper()
	_, port, err := net.SplitHostPort(function)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(),
		"CONTAINER_CONCURRENCY=100", "QUEUE_SERVING_PORT=8012", "QUEUE_SERVING_TLS_PORT=8112", "USER_PORT="+port, "REVISION_TIMEOUT_SECONDS=30",
		"SERVING_LOGGING_CONFIG=", "SERVING_LOGGING_LEVEL=error", "SERVING_NAMESPACE=pgw", "SERVING_CONFIGURATION=fn", "SERVING_REVISION=fn-00001",
		"SERVING_POD=fn-00001-pod", "SERVING_POD_IP=127.0.0.1",
		fmt.Sprintf(`SERVING_READINESS_PROBE={"httpGet":{"path":"/readyz","port":%s,"host":"127.0.0.1","scheme":"HTTP"},"successThreshold":1}`, port))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

// probe sends the probe of kubelet and the activator. It returns 0 when there is no answer.
// queue-proxy answers, and not the API, so the answer is not checked against the API's document.
func probe() int {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+behind+"/", nil)
	req.Header.Set("User-Agent", "kube-probe/1.36")
	req.Header.Set("K-Network-Probe", "queue")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func awaitProbe(t *testing.T, want int, log *processes.Output) {
	t.Helper()
	got := probe()
	for deadline := time.Now().Add(patience); got != want && time.Now().Before(deadline); got = probe() {
		time.Sleep(10 * time.Millisecond)
	}
	if got != want {
		t.Fatalf("queue-proxy answers %d to its probe, want %d: %s", got, want, log)
	}
}

// HTTP, events and gRPC pass through Knative's queue-proxy with unchanged statuses. queue-proxy is
// ready when the function is, and drains together with the function.
func TestBehindQueueProxy(t *testing.T) {
	path := os.Getenv("PGW_TEST_QUEUE_PROXY")
	if path == "" {
		t.Skip("PGW_TEST_QUEUE_PROXY is not set: make test-queueproxy builds it")
	}
	for name, passes := range map[string]func(t *testing.T, s *processes.System){
		"gateway":  httpPasses,
		"worker":   eventsPass,
		"payments": grpcPasses,
	} {
		t.Run(name, func(t *testing.T) {
			log := &processes.Output{}
			s := separate(t, log)
			s.SetFront(name, behind)
			proxy := startQueueProxy(t, path, s.Addr(name), log)
			// First the functions that it needs, then itself. Then queue-proxy becomes ready too.
			callees := processes.Functions[:slices.Index(processes.Functions, name)]
			for _, callee := range callees {
				if _, err := s.Start(t.Context(), callee); err != nil {
					t.Fatalf("%v: %s", err, log)
				}
			}
			// queue-proxy delays its answer while it asks the function.
			if code := probe(); code == http.StatusOK {
				t.Error("ready before the function")
			}
			if err := s.StartSeeded(t.Context(), 2, callees...); err != nil {
				t.Fatalf("%v: %s", err, log)
			}
			awaitProbe(t, http.StatusOK, log)

			for i := range 3 {
				if got := payOver(t, s.Front("gateway"), fmt.Sprint("p", i)); got.outcome() != "200 SUCCESS committed" {
					t.Errorf("%s: %s", got, log)
				}
			}
			passes(t, s)

			// While it stops, the pod's probe refuses new connections, and requests that still come
			// are served.
			if err := proxy.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			awaitProbe(t, http.StatusServiceUnavailable, log)
			if got := payOver(t, s.Front("gateway"), "while draining"); got.outcome() != "200 SUCCESS committed" {
				t.Errorf("while draining: %s: %s", got, log)
			}
		})
	}
}

func httpPasses(t *testing.T, _ *processes.System) {
	t.Helper()
	if got := payOver(t, behind, "p0"); got.outcome() != "200 SUCCESS_REPLAY duplicate_idempo" {
		t.Errorf("a replay: %s", got)
	}
	for want, text := range map[string]string{"400 FAILED bad_json": "{", "400 FAILED invalid_input": body("x", "A", "B", "USD", -1), "422 FAILED idempotency_mismatch": body("p0", processes.Account(0), processes.Account(1), "USD", 11)} {
		resp, err := http.Post("http://"+behind+"/api/payments", "application/json", strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, resp); got.outcome() != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	resp, err := http.Get("http://" + behind + "/api/payments/p0")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("GET: %v, %v", resp, err)
	}
}

// The status decides whether KafkaSource tries again, so queue-proxy must not change it.
func eventsPass(t *testing.T, _ *processes.System) {
	t.Helper()
	for want, headers := range map[int]map[string]string{
		http.StatusBadRequest: {},
		http.StatusForbidden:  {"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Type": "pgw.payment.requested.v1", "Ce-Source": "/forger", "Ce-Partitionkey": "k"},
	} {
		req, err := http.NewRequest(http.MethodPost, "http://"+behind+"/", strings.NewReader(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		for name, value := range headers {
			req.Header.Set(name, value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("status %d, want %d", resp.StatusCode, want)
		}
	}
}

func grpcPasses(t *testing.T, _ *processes.System) {
	t.Helper()
	conn, err := rpc.Dial(behind)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || got.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", got, err)
	}
	in := &paymentsv1.LogAndSettleRequest{IdempotencyKey: "by gRPC", SenderId: processes.Account(0), ReceiverId: processes.Account(1), AmountIdr: 155_000, Currency: "IDR", TxDate: txDate}
	for _, want := range []string{"SUCCESS", "SUCCESS_REPLAY"} {
		if got, err := paymentsv1.NewPaymentsServiceClient(conn).LogAndSettle(t.Context(), in); err != nil || got.Status != want {
			t.Errorf("LogAndSettle: %v, %v; want %s", got, err, want)
		}
	}
}
