package flow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgw/functions/gateway"
)

// replica starts another gateway besides the system's own. The system's own gateway receives all
// results first.
func (s *system) replica(answerIn time.Duration) (url string) {
	s.t.Helper()
	url, stop := s.stoppableReplica(answerIn)
	s.t.Cleanup(func() {
		if err := <-stop(); err != nil {
			s.t.Error(err)
		}
	})
	return url
}

// stoppableReplica is replica for a test that stops it. stop begins the drain. The drain's error
// comes from the channel.
func (s *system) stoppableReplica(answerIn time.Duration) (url string, stop func() <-chan error) {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	url = "http://" + l.Addr().String()
	f, err := gateway.Function.Make(gateway.Config{AnswerIn: answerIn, MinWaiting: 100, MaxWaiting: 100, Keys: s.keys, Kafka: s.kafka.Config, ReplicaURL: url}, s.dependencies())
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx, l, max(answerIn, 5*time.Second)) }()
	return url, func() <-chan error { cancel(); return done }
}

func (s *system) at(url string) *system {
	other := *s
	other.url = url
	return &other
}

func (s *system) metric(url, line string) bool {
	s.t.Helper()
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Contains(string(text), line+"\n")
}

// A result reaches the replica where its client waits, whichever replica Kafka delivered it to.
func TestThreeReplicas(t *testing.T) {
	s := start(t, options{})
	urls := []string{s.url, s.replica(5 * time.Second), s.replica(5 * time.Second)}
	counts := tally(90, func(i int) answer { return s.at(urls[i%3]).pay(fmt.Sprint("spread-", i), "A", "B", "IDR", 1000) })
	if counts["200 SUCCESS committed"] != 90 {
		t.Errorf("%v", counts)
	}
	// A relay is counted a moment after its client has the answer.
	s.eventually("60 of 90 results were relayed by the replica that got them", func() error {
		if !s.metric(s.url, `pgw_gateway_results_total{outcome="relayed"} 60`) || !s.metric(s.url, `pgw_gateway_results_total{outcome="answered"} 30`) {
			return errors.New("not yet")
		}
		return nil
	})

	// One key at all three at the same time: one payment settles.
	counts = tally(30, func(i int) answer { return s.at(urls[i%3]).pay("one key", "A", "B", "IDR", 1000) })
	if counts["200 SUCCESS committed"] != 1 || counts["200 SUCCESS_REPLAY duplicate_idempo"] != 29 {
		t.Errorf("%v", counts)
	}
}

// A result for a replica that is gone is given up after one try. The payment's state can still be
// read.
func TestADeadReplica(t *testing.T) {
	s := start(t, options{})
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	f, err := gateway.Function.Make(gateway.Config{AnswerIn: time.Minute, MinWaiting: 100, MaxWaiting: 100, Keys: s.keys, Kafka: s.kafka.Config, ReplicaURL: "http://" + gone.Addr().String()}, s.dependencies())
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, crash := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		defer close(left)
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "/api/payments", strings.NewReader(body("orphan", "A", "B", "IDR", 1000)))
		f.Handler().ServeHTTP(discardResponse{http.Header{}}, req)
	}()
	s.eventually("the relay is given up", func() error {
		if !s.metric(s.url, `pgw_gateway_results_total{outcome="relay_failed"} 1`) {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	crash()
	<-left
	s.drain() // acknowledged: it holds up no other events
	if _, st := s.state("orphan"); st.State != "COMMITTED" {
		t.Errorf("%+v", st)
	}
	s.expect(s.pay("orphan", "A", "B", "IDR", 1000), "200 SUCCESS_REPLAY duplicate_idempo")
}

type discardResponse struct{ header http.Header }

func (d discardResponse) Header() http.Header       { return d.header }
func (discardResponse) Write(p []byte) (int, error) { return len(p), nil }
func (discardResponse) WriteHeader(int)             {}

// A replica that is stopping accepts no new payments. It accepts results on new connections until
// all its clients have their answers.
func TestAReplicaThatIsStoppedTakesItsResults(t *testing.T) {
	s := start(t, options{})
	url, stop := s.stoppableReplica(patience)
	replica := s.at(url)

	begun, release := make(chan struct{}, 1), make(chan struct{})
	s.faults.set(func(f *faults) {
		f.rpc = func(called string) error {
			if strings.HasPrefix(called, "/payments.v1.") {
				begun <- struct{}{}
				<-release
			}
			return nil
		}
	})
	answered := make(chan answer, 1)
	go func() { answered <- replica.pay("under way", "A", "B", "IDR", 5000) }()
	<-begun
	ended := stop()
	s.eventually("the replica says that it is being stopped", func() error { return notReady(url) })
	s.expect(replica.pay("too late", "A", "B", "IDR", 5000), "503 FAILED overloaded")
	close(release)
	s.expect(<-answered, "200 SUCCESS committed")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// notReady sends a readiness probe on its own connection.
func notReady(url string) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url + "/readyz")
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// The manifests and Compose say how many connections to Postgres the functions open at the most.
func TestConnectionsAreAsTheManifestsSay(t *testing.T) {
	s := start(t, options{})
	read := func(path string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("../..", path))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	manifests, compose := read("knative/base/functions.yaml"), read("compose/compose.yaml")
	limit := regexp.MustCompile(`(?m)^pgw_postgres_connections_limit\{.*\} (\d+)$`)
	var parts []string
	one, all := 0, 0
	for _, name := range []string{"db", "wallet", "fx", "risk", "webhooks"} {
		resp, err := http.Get("http://" + s.Addr(name) + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		open := 0
		for _, pool := range limit.FindAllSubmatch(text, -1) {
			n, _ := strconv.Atoi(string(pool[1]))
			open += n
		}
		scale := regexp.MustCompile(`(?s)\n  name: ` + name + `\n.*?max-scale: "(\d+)"`).FindStringSubmatch(manifests)
		if open == 0 || scale == nil {
			t.Fatalf("%s opens %d connections, and its largest scale is %q", name, open, scale)
		}
		replicas, _ := strconv.Atoi(scale[1])
		parts = append(parts, fmt.Sprintf("%s %d x %d", name, replicas, open))
		one, all = one+open, all+replicas*open
	}
	if want := fmt.Sprintf("%s = %d.", strings.Join(parts, ", "), all); !strings.Contains(manifests, want) {
		t.Errorf("functions.yaml does not say %q", want)
	}
	if want := fmt.Sprintf("at most %d connections, with three replicas of each %d.", one, 3*one); !strings.Contains(compose, want) {
		t.Errorf("compose.yaml does not say %q", want)
	}
}
