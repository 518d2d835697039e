package flow

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"pgw/functions/gateway"
)

// The broker has the request, but its acknowledgement is lost. The payment settles, and the client
// and other waiting clients of the same key get that outcome.
func TestALostAcknowledgementIsNoRefusal(t *testing.T) {
	s := start(t, options{})
	s.faults.set(func(f *faults) {
		f.send = func(topic string) error {
			if topic == s.kafka.RequestTopic {
				return errNotAcknowledged
			}
			return nil
		}
	})
	b := s.balance("B")
	counts := tally(8, func(int) answer { return s.pay("no ack", "A", "B", "IDR", 5000) })
	if counts["200 SUCCESS committed"] != 1 || counts["200 SUCCESS_REPLAY duplicate_idempo"] != 7 || s.balance("B") != b+5000 {
		t.Errorf("%v; B got %d", counts, s.balance("B")-b)
	}
}

// A replica that is stopping accepts no new payments. It accepts results on new connections until
// all its clients have their answers.
func TestAReplicaThatIsStoppedTakesItsResults(t *testing.T) {
	s := start(t, options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	f, err := gateway.Function.Make(gateway.Config{AnswerIn: patience, MinWaiting: 100, MaxWaiting: 100, Keys: s.keys, Kafka: s.kafka.Config, ReplicaURL: url}, s.dependencies())
	if err != nil {
		t.Fatal(err)
	}
	replica := s.at(url)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- f.Serve(ctx, l, patience) }()

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
	stop()
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
