package flow

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"pgw/functions/gateway"
)

// replica starts another gateway besides the system's own. The system's own gateway receives all
// results first.
func (s *system) replica(answerIn time.Duration) (url string) {
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
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx, l, 5*time.Second) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	})
	return url
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
	if !s.metric(s.url, `pgw_gateway_results_total{outcome="relayed"} 60`) || !s.metric(s.url, `pgw_gateway_results_total{outcome="answered"} 30`) {
		t.Error("60 of 90 results should have been relayed by the replica that got them")
	}

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
