package flow

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"

	"pgw/functions/pgw/replay"
	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
)

// An idempotency key belongs to the client that uses it. Each client sees its own payments, and an
// operator sees all.
func TestKeysBelongToTheirClients(t *testing.T) {
	cfg, _, keys := keyed(t, map[string][]string{
		"a": {"senders=A"}, "b": {"senders=B"}, "rotated": {"senders=A", "owner=a"}, "c": {"senders=A,B,C"}, "operator": {"senders=*"},
	})
	s := start(t, options{access: cfg})
	as := func(id string) client { return client{s, keys[id]} }
	const key = "order-1"
	paid := map[string]answer{}
	pay := func(who, from, to string, want string) answer {
		t.Helper()
		resp, text := as(who).do(http.MethodPost, "/api/payments", body(key, from, to, "USD", 1))
		got := answer{Code: resp.StatusCode, Body: text}
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return s.expect(got, want)
	}
	// Both at once, with the same key.
	var mu sync.Mutex
	var paying sync.WaitGroup
	for who, from := range map[string]string{"a": "A", "b": "B"} {
		paying.Go(func() {
			got := pay(who, from, "C", "200 SUCCESS committed")
			mu.Lock()
			defer mu.Unlock()
			paid[who] = got
		})
	}
	paying.Wait()
	if paid["a"].Ref == paid["b"].Ref {
		t.Fatalf("two clients have one payment: %s", paid["a"])
	}
	if got := pay("a", "A", "C", "200 SUCCESS_REPLAY duplicate_idempo"); got.Ref != paid["a"].Ref {
		t.Errorf("a again: %s; want %s", got, paid["a"])
	}
	if got := pay("rotated", "A", "C", "200 SUCCESS_REPLAY duplicate_idempo"); got.Ref != paid["a"].Ref {
		t.Errorf("a's other key: %s; want %s", got, paid["a"])
	}
	if got := pay("b", "B", "C", "200 SUCCESS_REPLAY duplicate_idempo"); got.Ref != paid["b"].Ref {
		t.Errorf("b again: %s; want %s", got, paid["b"])
	}
	pay("b", "B", "A", "422 FAILED idempotency_mismatch")
	// The scope of callers without a client is another one.
	got, err := paymentsv1.NewPaymentsServiceClient(s.Conn("payments")).LogAndSettle(t.Context(), &paymentsv1.LogAndSettleRequest{
		IdempotencyKey: key, SenderId: "C", ReceiverId: "A", AmountIdr: 15500, Currency: "IDR", TxDate: txDate,
	})
	if err != nil || got.Status != string(payment.Success) {
		t.Errorf("without a client: %v, %v", got, err)
	}

	type kept struct{ Ref, Client, Sender string }
	see := func(who, path string) (seen kept, code int) {
		t.Helper()
		resp, text := as(who).do(http.MethodGet, path, "")
		var in struct {
			Ref    string `json:"ref"`
			Client string `json:"client"`
			Sender string `json:"sender_id"`
		}
		if err := json.Unmarshal([]byte(text), &in); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return kept{in.Ref, in.Client, in.Sender}, resp.StatusCode
	}
	for _, tc := range []struct {
		who, path string
		want      kept // zero: not found
	}{
		{"a", key, kept{paid["a"].Ref, "", "A"}},
		{"rotated", key, kept{paid["a"].Ref, "", "A"}},
		{"b", key, kept{paid["b"].Ref, "", "B"}},
		{"a", paid["a"].Ref, kept{paid["a"].Ref, "", "A"}},
		{"a", paid["b"].Ref, kept{}},
		{"c", paid["a"].Ref, kept{}}, // although it may use the account
		{"operator", paid["a"].Ref, kept{paid["a"].Ref, "a", "A"}},
		{"operator", paid["b"].Ref, kept{paid["b"].Ref, "b", "B"}},
		{"c", key, kept{got.ReservationId, "", "C"}}, // a payment without a client, from its account
	} {
		seen, code := see(tc.who, "/api/payments/"+tc.path)
		if seen != tc.want || (code == http.StatusOK) != (tc.want != kept{}) {
			t.Errorf("%s sees %+v (%d) at %s; want %+v", tc.who, seen, code, tc.path, tc.want)
		}
	}
	for who, want := range map[string][]string{
		"a": {paid["a"].Ref, got.ReservationId}, "b": {paid["b"].Ref}, "c": {got.ReservationId},
		"operator": {paid["a"].Ref, paid["b"].Ref, got.ReservationId},
	} {
		_, text := as(who).do(http.MethodGet, "/api/payments", "")
		if n := strings.Count(text, `"ref":`); n != len(want) {
			t.Errorf("%s's list has %d payments, want %d: %s", who, n, len(want), text)
		}
		for _, ref := range want {
			if !strings.Contains(text, ref) {
				t.Errorf("%s's list lacks %s: %s", who, ref, text)
			}
		}
		if shown := strings.Contains(text, `"client":`); shown != (who == "operator") {
			t.Errorf("%s is told the clients: %t", who, shown)
		}
	}
	// A stream is answered by the client's own payment too.
	_, text := as("b").do(http.MethodPost, "/api/payments", body(key, "B", "C", "USD", 1), "Accept", "text/event-stream")
	if !strings.Contains(text, paid["b"].Ref) || strings.Contains(text, paid["a"].Ref) {
		t.Errorf("b's stream: %s", text)
	}
	for path, want := range map[string]int{"C": 2, "A": 1} {
		_, text := as("operator").do(http.MethodGet, "/api/accounts/"+path+"/statement", "")
		if n := strings.Count(text, `"client":`); n != want {
			t.Errorf("the statement of %s names %d clients, want %d: %s", path, n, want, text)
		}
	}
	if _, text := as("a").do(http.MethodGet, "/api/accounts/A/statement", ""); strings.Contains(text, `"client"`) || !strings.Contains(text, paid["a"].Ref) {
		t.Errorf("a's statement: %s", text)
	}
	clients := map[string]int{}
	for _, m := range s.records(s.kafka.ResultTopic) {
		result, err := event.Decode[event.PaymentResult](must(kafka.ReadRecord(t.Context(), m, nil)))
		if err != nil {
			t.Fatal(err)
		}
		clients[result.Client]++
	}
	if clients["a"] == 0 || clients["b"] == 0 {
		t.Errorf("the results name the clients %v", clients)
	}
	s.expectClean()
	// What is sent again from the start changes nothing, and the books stay right.
	before := s.balances()
	sent, err := replay.Run(t.Context(), replay.Config{
		From: "topic:" + s.kafka.RequestTopic, To: "http://" + s.Addr("worker") + "/", Kafka: s.kafka.Config, InFlight: 4, Retries: 3,
	})
	if err != nil || sent.Refused+sent.Failed > 0 || sent.Matched < 4 {
		t.Errorf("replay: %+v, %v", sent, err)
	}
	if after := s.balances(); after != before {
		t.Errorf("%s; want %s", after, before)
	}
	s.expectClean()
}
