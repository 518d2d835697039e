package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// shop plays a gateway with webhooks. It is away at the first payment, refuses the second at random,
// and sends each webhook forged, then late, and then twice.
type shop struct {
	t      *testing.T
	secret []byte

	telling sync.WaitGroup

	mu       sync.Mutex
	url      string
	payments []string // keys
	refunds  []string
	deleted  bool
	refused  int // webhooks that were refused
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var body map[string]any
	json.NewDecoder(r.Body).Decode(&body)
	w.Header().Set("Content-Type", "application/json")
	key, _ := body["idempotency_key"].(string)
	switch {
	case r.Method == http.MethodPost && r.URL.Path == "/api/webhooks":
		s.url = body["url"].(string)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"id":"we_1","secret":"whsec_%s"}`, base64.StdEncoding.EncodeToString(s.secret))
	case r.Method == http.MethodDelete && r.URL.Path == "/api/webhooks/we_1":
		s.deleted = true
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Path == "/api/payments":
		s.payments = append(s.payments, key)
		switch len(s.payments) {
		case 1:
			w.WriteHeader(http.StatusGatewayTimeout)
			fmt.Fprint(w, `{"status":"FAILED","reason":"queue_timeout","ref":""}`)
			return
		case 2:
			fmt.Fprint(w, `{"status":"FAILED","reason":"risk_random_reject","ref":""}`)
			return
		}
		s.later("msg_1", fmt.Sprintf(`{"type":"payment.settled","timestamp":"2026-01-31T09:30:00Z","data":{"idempotency_key":%q,"currency":"USD","amount":"10.00","metadata":{"order":"4711"}}}`, key))
		fmt.Fprint(w, `{"status":"SUCCESS","reason":"committed","ref":"0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10"}`)
	case strings.HasSuffix(r.URL.Path, "/refunds"):
		s.refunds = append(s.refunds, r.URL.Path+" "+key+" "+body["amount"].(string))
		payment := strings.Split(r.URL.Path, "/")[3]
		s.later("msg_2", fmt.Sprintf(`{"type":"payment.refunded","timestamp":"2026-01-31T09:30:00Z","data":{"idempotency_key":%q,"refund":{"currency":"USD","amount":"4.00"}}}`, payment))
		fmt.Fprint(w, `{"status":"SUCCESS","reason":"committed","ref":"0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a11"}`)
	default:
		s.t.Errorf("asked for %s %s", r.Method, r.URL)
		w.WriteHeader(http.StatusNotFound)
	}
}

func (s *shop) later(id, body string) { s.telling.Go(func() { s.tell(id, body) }) }

func (s *shop) tell(id, body string) {
	send := func(secret []byte, at time.Time, want int) {
		mac := hmac.New(sha256.New, secret)
		fmt.Fprintf(mac, "%s.%d.%s", id, at.Unix(), body)
		r, err := http.NewRequest(http.MethodPost, s.url, strings.NewReader(body))
		if err != nil {
			s.t.Error(err)
			return
		}
		r.Header.Set("webhook-id", id)
		r.Header.Set("webhook-timestamp", fmt.Sprint(at.Unix()))
		r.Header.Set("webhook-signature", "v1a,AAAA v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			// The program may have ended after the first valid one.
			if want != http.StatusNoContent {
				s.t.Error(err)
			}
			return
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			s.t.Errorf("a webhook was answered %s, want %d", resp.Status, want)
		}
		if resp.StatusCode == http.StatusBadRequest {
			s.mu.Lock()
			s.refused++
			s.mu.Unlock()
		}
	}
	send([]byte("another secret"), time.Now(), http.StatusBadRequest)
	send(s.secret, time.Now().Add(-time.Hour), http.StatusBadRequest)
	send(s.secret, time.Now(), http.StatusNoContent)
	send(s.secret, time.Now(), http.StatusNoContent)
}

// Both programs pay once, believe only what is signed, and refund once.
func TestMerchants(t *testing.T) {
	for name, program := range map[string]func(ctx context.Context, gateway string, out io.Writer) error{
		"Go": func(ctx context.Context, gateway string, out io.Writer) error { return run(ctx, gateway, "", out) },
		"JavaScript": func(ctx context.Context, gateway string, out io.Writer) error {
			cmd := exec.CommandContext(ctx, "node", "merchant.mjs", gateway)
			cmd.Stdout, cmd.Stderr = out, os.Stderr // which has the webhooks that it refuses
			return cmd.Run()
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath("node"); name == "JavaScript" && err != nil {
				t.Skip("not run: node is not on PATH")
			}
			s := &shop{t: t, secret: []byte("0123456789abcdef01234567")}
			gateway := httptest.NewServer(s)
			defer gateway.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var out bytes.Buffer
			if err := program(ctx, gateway.URL, &out); err != nil {
				t.Fatalf("%v: %s", err, &out)
			}
			if want := "settled: USD 10.00 of order 4711\nrefunded: USD 4.00\n"; out.String() != want {
				t.Errorf("it says %q; want %q", out.String(), want)
			}
			s.telling.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.payments) != 3 || s.payments[0] != s.payments[1] || s.payments[1] == s.payments[2] {
				t.Errorf("it paid with the keys %q", s.payments)
			}
			if key := s.payments[len(s.payments)-1]; len(s.refunds) != 1 || s.refunds[0] != "/api/payments/"+key+"/refunds "+key+"-refund-1 4.00" {
				t.Errorf("it refunded %q", s.refunds)
			}
			if !s.deleted || s.refused != 4 {
				t.Errorf("the webhook is deleted: %t; %d webhooks were refused", s.deleted, s.refused)
			}
		})
	}
}
