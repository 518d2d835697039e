package flow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"pgw/functions/gateway/access"
)

// A page makes its own host name resolve to the gateway's address (DNS rebinding). To its visitor's
// browser the gateway then has the page's origin.
func TestAPageOfAnotherHostDoesNotPay(t *testing.T) {
	cfg, _, keys := keyed(t, map[string][]string{"all": {"senders=*"}})
	open, closed := start(t, options{serial: true}), start(t, options{serial: true, access: cfg})
	ask := func(s *system, method, path, host, key, text string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequest(method, s.url+path, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		req.Header.Set("Content-Type", "application/json")
		// As a browser sees it, the page's origin is the request's origin.
		req.Header.Set("Origin", "http://"+host)
		req.Header.Set("Sec-Fetch-Site", "same-origin")
		if key != "" {
			req.Header.Set(access.KeyHeader, key)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(got)
	}
	before := open.balance("A")
	for _, host := range []string{"evil.example.com", "evil.example.com:18080", "localhost.evil.example.com", "127.0.0.1.evil.example.com"} {
		resp, text := ask(open, "POST", "/api/payments", host, "", body("rebound", "A", "B", "USD", 1))
		problem(t, host, resp, text, http.StatusMisdirectedRequest)
		if !strings.Contains(text, "HOSTS") {
			t.Errorf("%s: the answer does not say what to set: %s", host, text)
		}
		for _, path := range []string{"/", "/api/payments", "/api/accounts/A", "/docs"} {
			resp, text := ask(open, "GET", path, host, "", "")
			problem(t, host+path, resp, text, http.StatusMisdirectedRequest)
		}
		for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
			if resp, _ := ask(open, "GET", path, host, "", ""); resp.StatusCode != http.StatusOK {
				t.Errorf("%s%s: %s", host, path, resp.Status)
			}
		}
		// It cannot make a browser send a key.
		resp, text = ask(closed, "POST", "/api/payments", host, "", body("rebound", "A", "B", "USD", 1))
		problem(t, host, resp, text, http.StatusUnauthorized)
		if resp, text := ask(closed, "POST", "/api/payments", host, keys["all"], body("with a key", "A", "B", "USD", 1)); resp.StatusCode != http.StatusOK {
			t.Errorf("%s, with a key: %s %s", host, resp.Status, text)
		}
	}
	if open.balance("A") != before {
		t.Error("a payment from A was made")
	}
	for i, host := range []string{"localhost", "localhost:18080", "127.0.0.1:18080", "[::1]:18080"} {
		if resp, text := ask(open, "POST", "/api/payments", host, "", body(fmt.Sprint("own ", i), "A", "B", "USD", 1)); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s %s", host, resp.Status, text)
		}
	}
}

// One client lists payments over 300 connections, and none of its lists ends. Other clients pay and
// read.
func TestAClientThatReadsDoesNotStopTheOthers(t *testing.T) {
	cfg, _, keys := keyed(t, map[string][]string{"greedy": {"senders=A", "rate=100000", "burst=100000"}, "other": {"senders=B"}})
	s := start(t, options{access: cfg})
	hang := make(chan struct{})
	s.faults.set(func(f *faults) {
		f.rpc = func(method string) error {
			if strings.HasSuffix(method, "/List") {
				<-hang
			}
			return nil
		}
	})
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	client300 := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 300}}
	codes := make(chan int, 300)
	var all sync.WaitGroup
	for range 300 {
		all.Go(func() {
			req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/api/payments?account=A", nil)
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set(access.KeyHeader, keys["greedy"])
			resp, err := client300.Do(req)
			if err != nil {
				codes <- 0
				return
			}
			resp.Body.Close()
			if resp.Header.Get("Retry-After") == "" {
				t.Errorf("%s without Retry-After", resp.Status)
			}
			codes <- resp.StatusCode
		})
	}
	const most = 32 // for one client
	for range 300 - most {
		if code := <-codes; code != http.StatusTooManyRequests {
			t.Fatalf("more than allowed: %d", code)
		}
	}
	other := client{s, keys["other"]}
	for i := range 10 {
		if resp, text := other.do("POST", "/api/payments", body(fmt.Sprint("k", i), "B", "A", "USD", 1)); resp.StatusCode != http.StatusOK || !strings.Contains(text, "committed") {
			t.Errorf("another pays: %s %s", resp.Status, text)
		}
		if resp, text := other.do("GET", fmt.Sprint("/api/payments/k", i), ""); resp.StatusCode != http.StatusOK {
			t.Errorf("another reads: %s %s", resp.Status, text)
		}
	}
	// A client that hangs up frees its place.
	hangUp()
	close(hang)
	all.Wait()
	s.eventually("its places are free", func() error {
		if _, text := other.do("GET", "/metrics", ""); !strings.Contains(text, "pgw_gateway_reads 0\n") {
			return errors.New("some places are still taken")
		}
		return nil
	})
}

// A list counts as several requests.
func TestAListCostsMoreThanALook(t *testing.T) {
	cfg, _, keys := keyed(t, map[string][]string{"few": {"senders=A", "rate=0.001", "burst=12"}})
	s := start(t, options{access: cfg})
	few := client{s, keys["few"]}
	for _, step := range []struct {
		path string
		want int
	}{
		{"/api/payments?account=A", 200}, {"/api/payments?account=A", 429}, {"/api/accounts/A", 200}, {"/api/accounts/A", 200}, {"/api/accounts/A", 429},
	} {
		if resp, text := few.do("GET", step.path, ""); resp.StatusCode != step.want {
			t.Errorf("%s: %s %s; want %d", step.path, resp.Status, text, step.want)
		}
	}
}
