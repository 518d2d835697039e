package flow

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	"pgw/shared/event"
	"pgw/shared/kafka"
)

// The outcomes of the HTTP table that need no fault.
func TestOutcomes(t *testing.T) {
	s := start(t, options{})
	s.open(1500, "POOR")
	s.open(0, "EMPTY", "BLOCKED", "RISKY")
	s.exec(`UPDATE balances SET status = 'BLOCKED' WHERE account_id = 'BLOCKED'`)
	s.exec(`UPDATE balances SET daily_limit = 5000 WHERE account_id = 'C'`)
	s.rules(&riskv1.SeedRulesRequest{MaxAmount: 100_000_000, BlockedAccounts: []string{"RISKY"}})

	long := strings.Repeat("x", 65)
	for name, tc := range map[string]struct{ body, want string }{
		"settled":              {body("ok", "A", "B", "USD", 10), "200 SUCCESS committed"},
		"decimal string":       {body("string", "A", "B", "USD", "10.50"), "200 SUCCESS committed"},
		"no minor units":       {body("jpy", "A", "B", "JPY", 100), "200 SUCCESS committed"},
		"three minor units":    {body("kwd", "A", "B", "KWD", "1.234"), "200 SUCCESS committed"},
		"rupiah":               {body("idr", "A", "B", "IDR", 1000), "200 SUCCESS committed"},
		"unknown field":        {body("extra", "A", "B", "USD", 1, "note", "hello"), "200 SUCCESS committed"},
		"not JSON":             {`{"sender_id":`, "400 FAILED bad_json"},
		"empty":                {``, "400 FAILED bad_json"},
		"an array":             {`[]`, "400 FAILED bad_json"},
		"two objects":          {body("two", "A", "B", "USD", 1) + body("two", "A", "B", "USD", 1), "400 FAILED bad_json"},
		"no sender":            {body("x1", "A", "B", "USD", 1, "sender_id", nil), "400 FAILED invalid_input"},
		"no receiver":          {body("x2", "A", "B", "USD", 1, "receiver_id", nil), "400 FAILED invalid_input"},
		"no currency":          {body("x3", "A", "B", "USD", 1, "currency", nil), "400 FAILED invalid_input"},
		"no amount":            {body("x4", "A", "B", "USD", 1, "amount", nil), "400 FAILED invalid_input"},
		"no date":              {body("x5", "A", "B", "USD", 1, "tx_date", nil), "400 FAILED invalid_input"},
		"no key":               {body("x6", "A", "B", "USD", 1, "idempotency_key", nil), "400 FAILED invalid_input"},
		"malformed date":       {body("x7", "A", "B", "USD", 1, "tx_date", "31/01/2026"), "400 FAILED invalid_input"},
		"zero":                 {body("x8", "A", "B", "USD", 0), "400 FAILED invalid_input"},
		"negative":             {body("x9", "A", "B", "USD", -1), "400 FAILED invalid_input"},
		"too many digits":      {body("x10", "A", "B", "USD", "1.001"), "400 FAILED invalid_input"},
		"yen have no cents":    {body("x11", "A", "B", "JPY", "1.5"), "400 FAILED invalid_input"},
		"too large":            {body("x12", "A", "B", "IDR", "1e16"), "400 FAILED invalid_input"},
		"amount is an object":  {body("x13", "A", "B", "USD", map[string]int{}), "400 FAILED invalid_input"},
		"sender is a number":   {body("x14", "A", "B", "USD", 1, "sender_id", 5), "400 FAILED invalid_input"},
		"long account":         {body("x15", long, "B", "USD", 1), "400 FAILED invalid_input"},
		"long key":             {body(strings.Repeat("k", 201), "A", "B", "USD", 1), "400 FAILED invalid_input"},
		"control character":    {body("a\nb", "A", "B", "USD", 1), "400 FAILED invalid_input"},
		"not a currency":       {body("x16", "A", "B", "XXQ", 1), "400 FAILED unsupported_currency"},
		"no rate for it":       {body("x17", "A", "B", "SEK", 1), "400 FAILED unsupported_currency"},
		"balance too low":      {body("x18", "POOR", "B", "IDR", 1501), "200 FAILED insufficient_funds"},
		"unknown sender":       {body("x19", "NOBODY", "B", "USD", 1), "200 FAILED unknown_sender"},
		"unknown receiver":     {body("x20", "A", "NOBODY", "USD", 1), "200 FAILED unknown_receiver"},
		"blocked sender":       {body("x21", "BLOCKED", "B", "USD", 1), "200 FAILED sender_blocked"},
		"blocked receiver":     {body("x22", "A", "BLOCKED", "USD", 1), "200 FAILED receiver_blocked"},
		"daily limit":          {body("x23", "C", "B", "IDR", 5001), "200 FAILED daily_limit_exceeded"},
		"to oneself":           {body("x24", "A", "A", "USD", 1), "200 FAILED risk_same_party"},
		"below the minimum":    {body("x25", "A", "B", "IDR", 999), "200 FAILED risk_below_min"},
		"above the maximum":    {body("x26", "A", "B", "IDR", 100_000_001), "200 FAILED risk_above_max"},
		"blocked by the rules": {body("x27", "A", "RISKY", "USD", 1), "200 FAILED risk_blocked_account"},
	} {
		got := s.expect(s.post(tc.body), tc.want)
		if got.outcome() != tc.want {
			t.Logf("... that was %s", name)
		}
		if (got.Ref != "") != (got.Status == "SUCCESS") {
			t.Errorf("%s: ref %q", name, got.Ref)
		}
		if !strings.Contains(got.Header.Get("Server-Timing"), "total;dur=") {
			t.Errorf("%s: Server-Timing %q", name, got.Header.Get("Server-Timing"))
		}
		if got.Code == http.StatusBadRequest && got.Message == "" {
			t.Errorf("%s: does not say what is wrong", name)
		}
	}
	s.rules(&riskv1.SeedRulesRequest{RandomRejectPpm: ptr(uint32(1_000_000))})
	s.expect(s.pay("unlucky", "A", "B", "USD", 1), "200 FAILED risk_random_reject")
	s.rules(&riskv1.SeedRulesRequest{VelocityPerMin: 1, RandomRejectPpm: ptr(uint32(0))})
	s.expect(s.pay("hasty", "A", "B", "USD", 1), "200 FAILED risk_velocity")
}

func TestTheSmokeTestOfTheReadme(t *testing.T) {
	s := start(t, options{})
	a, b := s.balance("A"), s.balance("B")
	first := s.expect(s.pay("test-001", "A", "B", "USD", 10), "200 SUCCESS committed")
	again := s.expect(s.pay("test-001", "A", "B", "USD", "10.00"), "200 SUCCESS_REPLAY duplicate_idempo")
	if len(first.Ref) != 36 || first.Ref != again.Ref {
		t.Errorf("refs %q and %q", first.Ref, again.Ref)
	}
	if s.balance("A") != a-155_000 || s.balance("B") != b+155_000 {
		t.Errorf("moved %d and %d", s.balance("A")-a, s.balance("B")-b)
	}
	for _, stage := range []string{"fx", "wallet", "risk", "publish", "queue", "reserve", "commit", "settle", "return", "total"} {
		if !strings.Contains(first.Header.Get("Server-Timing"), stage+";dur=") {
			t.Errorf("Server-Timing lacks %s: %s", stage, first.Header.Get("Server-Timing"))
		}
	}
	code, st := s.state("test-001")
	if code != 200 || st.State != "COMMITTED" || st.Status != "SUCCESS" || st.Reason != "committed" || st.Ref != first.Ref ||
		st.Amount != "10.00" || st.AmountIDR != 155_000 || st.Rate != "15500" || st.RateID == "" || st.RuleSet == "" {
		t.Errorf("GET: %d %+v", code, st)
	}
	if code, _ := s.state("never-seen"); code != http.StatusNotFound {
		t.Errorf("GET of an unknown key: %d", code)
	}
}

func TestIdempotencyKeyHeader(t *testing.T) {
	s := start(t, options{})
	noKey := body("", "A", "B", "USD", 1, "idempotency_key", nil)
	first := s.expect(s.post(noKey, "Idempotency-Key", "by-header"), "200 SUCCESS committed")
	for name, got := range map[string]answer{
		"the header again, quoted": s.post(noKey, "Idempotency-Key", `"by-header"`),
		"the field":                s.pay("by-header", "A", "B", "USD", 1),
		"both":                     s.post(body("by-header", "A", "B", "USD", 1), "Idempotency-Key", "by-header"),
	} {
		if s.expect(got, "200 SUCCESS_REPLAY duplicate_idempo"); got.Ref != first.Ref {
			t.Errorf("%s: another payment", name)
		}
	}
	s.expect(s.post(body("by-header", "A", "B", "USD", 1), "Idempotency-Key", "other"), "400 FAILED invalid_input")
	s.expect(s.post(noKey, "Idempotency-Key", "one", "Idempotency-Key", "two"), "400 FAILED invalid_input")
}

// The answer to a later request with the same key says so, whether it has paid or was refused.
func TestReplaysAreMarked(t *testing.T) {
	s := start(t, options{})
	for _, tc := range []struct{ body, want, replayed string }{
		{body("paid", "A", "B", "USD", 1), "200 SUCCESS committed", ""},
		{body("paid", "A", "B", "USD", 1), "200 SUCCESS_REPLAY duplicate_idempo", "true"},
		{body("paid", "A", "B", "USD", 2), "422 FAILED idempotency_mismatch", ""},
		{body("refused", "A", "NOBODY", "USD", 1), "200 FAILED unknown_receiver", ""},
		{body("refused", "A", "NOBODY", "USD", 1), "200 FAILED unknown_receiver", "true"},
		{body("invalid", "A", "B", "USD", -1), "400 FAILED invalid_input", ""},
	} {
		if got := s.expect(s.post(tc.body), tc.want); got.Header.Get("Idempotent-Replayed") != tc.replayed {
			t.Errorf("%s: Idempotent-Replayed %q; want %q", got, got.Header.Get("Idempotent-Replayed"), tc.replayed)
		}
	}
	s.faults.set(func(f *faults) {
		f.rpc = func(called string) error {
			if strings.HasPrefix(called, "/fx.v1.") {
				return status.Error(codes.Unavailable, "down")
			}
			return nil
		}
	})
	got := s.expect(s.pay("paid", "A", "B", "USD", 1), "502 FAILED fx_unavailable")
	if replayed, again := got.Header.Get("Idempotent-Replayed"), got.Header.Get("Retry-After"); replayed != "" || again == "" {
		t.Errorf("Idempotent-Replayed %q, Retry-After %q", replayed, again)
	}
}

func TestAKeyBelongsToOneRequest(t *testing.T) {
	s := start(t, options{})
	s.expect(s.pay("k", "A", "B", "USD", 10), "200 SUCCESS committed")
	a := s.balance("A")
	for name, other := range map[string]string{
		"amount":                          body("k", "A", "B", "USD", 11),
		"currency":                        body("k", "A", "B", "SGD", 10),
		"receiver":                        body("k", "A", "C", "USD", 10),
		"sender":                          body("k", "B", "A", "USD", 10),
		"a payment that would be refused": body("k", "A", "NOBODY", "USD", 10),
	} {
		if got := s.post(other); got.outcome() != "422 FAILED idempotency_mismatch" {
			t.Errorf("another %s: %s", name, got)
		}
	}
	if s.balance("A") != a {
		t.Errorf("the sender paid %d more", a-s.balance("A"))
	}
	s.expect(s.pay("k", "A", "B", "USD", 10), "200 SUCCESS_REPLAY duplicate_idempo")
}

// A client gets its payment's metadata back from GET and from the list. The request event has the
// metadata too.
func TestMetadata(t *testing.T) {
	s := start(t, options{})
	order := func(value any) string { return body("noted", "A", "B", "USD", 10, "metadata", value) }
	for name, bad := range map[string]any{
		"a number": map[string]any{"a": 1}, "a list": []string{"a"}, "a bad name": map[string]string{"a b": "c"},
		"too long": map[string]string{"a": strings.Repeat("x", 501)}, "two lines": map[string]string{"a": "b\nc"},
	} {
		if got := s.post(order(bad)); got.outcome() != "400 FAILED invalid_input" || !strings.HasPrefix(got.Message, "metadata") {
			t.Errorf("%s: %s", name, got)
		}
	}
	want := map[string]string{"order": "4711", "note": "<Søren & 山田>"}
	first := s.expect(s.post(order(want)), "200 SUCCESS committed")
	if again := s.expect(s.post(order(want)), "200 SUCCESS_REPLAY duplicate_idempo"); again.Ref != first.Ref {
		t.Errorf("again: %s", again)
	}
	s.expect(s.post(order(map[string]string{"order": "4712"})), "422 FAILED idempotency_mismatch")
	s.expect(s.pay("noted", "A", "B", "USD", 10), "422 FAILED idempotency_mismatch")
	s.expect(s.post(body("bare", "A", "B", "USD", 10, "metadata", map[string]string{})), "200 SUCCESS committed")
	s.expect(s.pay("bare", "A", "B", "USD", 10), "200 SUCCESS_REPLAY duplicate_idempo")

	if code, st := s.state("noted"); code != 200 || !maps.Equal(st.Metadata, want) {
		t.Errorf("GET: %d %v", code, st.Metadata)
	}
	var list struct{ Payments []state }
	resp, err := http.Get(s.url + "/api/payments")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil || len(list.Payments) != 2 ||
		list.Payments[0].Metadata != nil || !maps.Equal(list.Payments[1].Metadata, want) {
		t.Errorf("the list: %+v, %v", list, err)
	}
	seen := map[string]int{} // what the events of each key have, also of those whose requests were answered 422
	for _, m := range s.records(s.kafka.RequestTopic) {
		e, err := kafka.ReadRecord(t.Context(), m, nil)
		if err != nil {
			t.Fatal(err)
		}
		data, err := event.ReadRequest(e, &s.keys, false)
		if err != nil {
			t.Fatal(err)
		}
		seen[fmt.Sprint(data.Key, " ", data.Metadata)]++
	}
	if seen[fmt.Sprint("noted ", want)] == 0 || seen["bare map[]"] == 0 {
		t.Errorf("the events: %v", seen)
	}
}

// Retries get the outcome of the payment, whatever has changed since.
func TestRetriesHearTheOutcome(t *testing.T) {
	s := start(t, options{})
	s.open(155_000, "EXACT")
	first := s.expect(s.pay("empties", "EXACT", "B", "USD", 10), "200 SUCCESS committed")
	if s.balance("EXACT") != 0 {
		t.Fatalf("EXACT has %d", s.balance("EXACT"))
	}
	if got := s.expect(s.pay("empties", "EXACT", "B", "USD", 10), "200 SUCCESS_REPLAY duplicate_idempo"); got.Ref != first.Ref {
		t.Errorf("another ref: %s", got)
	}

	moved := s.expect(s.pay("before the rate moved", "A", "B", "USD", 10), "200 SUCCESS committed")
	if _, err := fxv1.NewFxServiceClient(s.Conn("fx")).UpdateRates(t.Context(), &fxv1.UpdateRatesRequest{
		Rates: []*fxv1.Rate{{BaseCurrency: "USD", QuoteCurrency: "IDR", Rate: 16000}}}); err != nil {
		t.Fatal(err)
	}
	a := s.balance("A")
	if got := s.expect(s.pay("before the rate moved", "A", "B", "USD", 10), "200 SUCCESS_REPLAY duplicate_idempo"); got.Ref != moved.Ref {
		t.Errorf("another ref: %s", got)
	}
	if s.balance("A") != a {
		t.Error("the retry was charged")
	}
	s.expect(s.pay("after the rate moved", "A", "B", "USD", 10), "200 SUCCESS committed")
	if s.balance("A") != a-160_000 {
		t.Errorf("at the new rate %d was paid", a-s.balance("A"))
	}

	s.exec(`UPDATE balances SET status = 'BLOCKED' WHERE account_id = 'B'`)
	s.expect(s.pay("before the rate moved", "A", "B", "USD", 10), "200 SUCCESS_REPLAY duplicate_idempo")
	s.expect(s.pay("new", "A", "B", "USD", 10), "200 FAILED receiver_blocked")

	s.rules(&riskv1.SeedRulesRequest{MaxAmount: 2000})
	s.expect(s.pay("empties", "EXACT", "B", "USD", 10), "200 SUCCESS_REPLAY duplicate_idempo")
}

func TestTheDrawIsTheSameForARetry(t *testing.T) {
	s := start(t, options{})
	s.rules(&riskv1.SeedRulesRequest{RandomRejectPpm: ptr(uint32(300_000))})
	rejected := 0
	for i := range 60 {
		key := fmt.Sprint("draw-", i)
		first, second := s.pay(key, "A", "B", "IDR", 2000), s.pay(key, "A", "B", "IDR", 2000)
		if first.Reason == "risk_random_reject" {
			rejected++
		}
		if (first.Status == "FAILED") != (second.Status == "FAILED") {
			t.Errorf("%s: %s, then %s", key, first, second)
		}
	}
	if rejected < 5 || rejected > 35 {
		t.Errorf("%d of 60 rejected at 30 %%", rejected)
	}
}

// When a function cannot be reached, the answer says so, and nothing is sent.
func TestOutages(t *testing.T) {
	s := start(t, options{})
	down := func(method string) func(string) error {
		return func(called string) error {
			if strings.HasPrefix(called, method) {
				return status.Error(codes.Unavailable, "down")
			}
			return nil
		}
	}
	for key, tc := range map[string]struct {
		fault func(*faults)
		want  string
	}{
		"fx":      {func(f *faults) { f.rpc = down("/fx.v1.") }, "502 FAILED fx_unavailable"},
		"wallet":  {func(f *faults) { f.rpc = down("/wallet.v1.") }, "502 FAILED wallet_unavailable"},
		"risk":    {func(f *faults) { f.rpc = down("/risk.v1.") }, "502 FAILED risk_unavailable"},
		"publish": {func(f *faults) { f.send = func(string) error { return errNotSent } }, "502 FAILED queue_publish_error"},
		"all three": {func(f *faults) {
			f.rpc = func(called string) error {
				if strings.HasPrefix(called, "/db.") || strings.HasPrefix(called, "/payments.") {
					return nil
				}
				return status.Error(codes.Unavailable, "down")
			}
		}, "502 FAILED fx_unavailable"},
	} {
		s.faults.set(tc.fault)
		s.expect(s.pay(key, "A", "B", "USD", 1), tc.want)
		if code, _ := s.state(key); code != http.StatusNotFound {
			t.Errorf("%s: the ledger knows it: %d", key, code)
		}
		s.faults.set(func(f *faults) { f.rpc, f.send = nil, nil })
		s.expect(s.pay(key, "A", "B", "USD", 1), "200 SUCCESS committed")
	}
}

// A payment that is not decided in time gets queue_timeout with its deadline, and is decided later.
func TestQueueTimeoutBecomesFinal(t *testing.T) {
	s := start(t, options{answerIn: 300 * time.Millisecond})
	s.faults.set(func(f *faults) {
		f.rpc = func(called string) error {
			if strings.HasPrefix(called, "/payments.v1.") {
				return status.Error(codes.Unavailable, "down")
			}
			return nil
		}
	})
	got := s.expect(s.pay("slow", "A", "B", "USD", 1), "504 FAILED queue_timeout")
	if left := time.Until(got.Deadline); left < 50*time.Second || left > 60*time.Second {
		t.Errorf("deadline in %s: %s", left, got)
	}
	s.faults.set(func(f *faults) { f.rpc = nil })
	s.eventually("the payment settles", func() error {
		if code, st := s.state("slow"); code != 200 || st.State != "COMMITTED" {
			return fmt.Errorf("%d %+v", code, st)
		}
		return nil
	})
	s.expect(s.pay("slow", "A", "B", "USD", 1), "200 SUCCESS_REPLAY duplicate_idempo")
}

func TestRandomAccountsPageAndPlumbing(t *testing.T) {
	s := start(t, options{})
	get := func(url string) (*http.Response, string) {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(text)
	}
	for range 10 {
		_, text := get(s.url + "/api/random-accounts")
		var sender, receiver string
		if _, err := fmt.Sscanf(text, `{"sender_id":%q,"receiver_id":%q}`, &sender, &receiver); err != nil || sender == receiver || !strings.Contains("ABC", sender) || !strings.Contains("ABC", receiver) {
			t.Errorf("random accounts: %s", text)
		}
	}
	if resp, text := get(s.url + "/"); resp.StatusCode != 200 || !strings.Contains(text, "<form") {
		t.Errorf("the page: %s", resp.Status)
	}
	s.expect(s.pay("counted", "A", "B", "USD", 1), "200 SUCCESS committed")
	for _, name := range []string{"gateway", "worker", "payments", "db", "fx", "wallet", "risk"} {
		for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
			if resp, text := get("http://" + s.Addr(name) + path); resp.StatusCode != 200 {
				t.Errorf("%s%s: %s %s", name, path, resp.Status, text)
			}
		}
	}
	_, metrics := get(s.url + "/metrics")
	for _, want := range []string{
		`pgw_payments_total{reason="committed",status="SUCCESS"} 1`, `pgw_fx_calls_total{result="ok"} 1`, `pgw_wallet_check_total{result="ok"} 1`,
		`pgw_risk_total{result="allow"} 1`, `pgw_kafka_publish_total{result="ok"} 1`, `pgw_kafka_wait_result_total{result="ok"} 1`,
		`pgw_stage_seconds_count{stage="settle"} 1`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("gateway's metrics lack %s", want)
		}
	}
	_, metrics = get("http://" + s.Addr("db") + "/metrics")
	for _, want := range []string{`pgw_db_reserve_total{status="OK"} 1`, `pgw_db_commit_total{status="OK"} 1`} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("db's metrics lack %s", want)
		}
	}
}

func TestABodyIsBounded(t *testing.T) {
	s := start(t, options{})
	fits := body("fits", "A", "B", "USD", 1)
	got := s.post(fits + strings.Repeat(" ", 16<<10-len(fits)))
	s.expect(got, "200 SUCCESS committed")
	got = s.post(body("does not", "A", "B", "USD", 1) + strings.Repeat(" ", 16<<10))
	if s.expect(got, "413 FAILED invalid_input"); !strings.Contains(got.Message, "16384") {
		t.Errorf("the limit is not named: %s", got)
	}
}
