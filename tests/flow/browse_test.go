package flow

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	fxv1 "pgw/proto/gen/fx/v1"
)

// get reads JSON, and returns the status.
func (s *system) get(path string, into any) int {
	s.t.Helper()
	resp, err := http.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	want := "application/json"
	if resp.StatusCode != http.StatusOK {
		want = "application/problem+json"
	}
	if kind := resp.Header.Get("Content-Type"); kind != want {
		s.t.Errorf("%s: %s: %s", path, resp.Status, kind)
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
	return resp.StatusCode
}

type streamed struct {
	stages []string
	answer struct {
		HTTPStatus          int `json:"http_status"`
		Status, Reason, Ref string
	}
}

// stream pays and reads the events of the answer.
func (s *system) stream(body string) (got streamed) {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.url+"/api/payments", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		s.t.Fatalf("%s %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	var event string
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch {
		case name == "event":
			event = value
		case name == "data" && event == "stage":
			var stage struct {
				Stage string
				MS    *float64
			}
			if err := json.Unmarshal([]byte(value), &stage); err != nil || stage.MS == nil || *stage.MS < 0 {
				s.t.Errorf("stage %s: %v", value, err)
			}
			got.stages = append(got.stages, stage.Stage)
		case name == "data" && event == "answer":
			if err := json.Unmarshal([]byte(value), &got.answer); err != nil {
				s.t.Error(err)
			}
		}
	}
	return got
}

func TestAPaymentIsStreamed(t *testing.T) {
	s := start(t, options{})
	got := s.stream(body("streamed", "A", "B", "USD", 10))
	if want := []string{"fx", "wallet", "risk", "publish", "queue", "reserve", "commit", "settle", "return", "total"}; !slices.Equal(got.stages, want) {
		t.Errorf("stages %v", got.stages)
	}
	if a := got.answer; a.HTTPStatus != 200 || a.Status != "SUCCESS" || a.Reason != "committed" || len(a.Ref) != 36 {
		t.Errorf("answer %+v", a)
	}
	if again := s.expect(s.pay("streamed", "A", "B", "USD", 10), "200 SUCCESS_REPLAY duplicate_idempo"); again.Ref != got.answer.Ref {
		t.Errorf("refs %q and %q", got.answer.Ref, again.Ref)
	}
	// Errors come in the same way, with their usual status.
	for text, want := range map[string]string{
		"{":                                      "400 FAILED bad_json",
		body("streamed", "A", "B", "USD", 11):    "422 FAILED idempotency_mismatch",
		body("poor", "A", "B", "IDR", 2e9):       "200 FAILED insufficient_funds",
		body("unknown", "A", "B", "XXQ", 1):      "400 FAILED unsupported_currency",
		body("streamed", "A", "B", "USD", 10.00): "200 SUCCESS_REPLAY duplicate_idempo",
	} {
		got := s.stream(text)
		if a := got.answer; fmt.Sprintf("%d %s %s", a.HTTPStatus, a.Status, a.Reason) != want || got.stages[len(got.stages)-1] != "total" {
			t.Errorf("%s: %+v", text, got)
		}
	}
}

func TestAccountsQuotesAndCurrencies(t *testing.T) {
	s := start(t, options{})
	var account struct {
		ID       string `json:"account_id"`
		Balance  int64  `json:"balance_idr"`
		Currency string
		Status   any // a number in a problem's body
	}
	if code := s.get("/api/accounts/A", &account); code != 200 || account.ID != "A" || account.Balance != 1_000_000_000 || account.Currency != "IDR" || account.Status != "ACTIVE" {
		t.Errorf("account A: %d %+v", code, account)
	}
	for path, want := range map[string]int{"/api/accounts/NOBODY": 404, "/api/accounts/" + strings.Repeat("x", 65): 400, "/api/accounts/a%0Ab": 400} {
		if code := s.get(path, &account); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}

	for query, want := range map[string]string{
		"currency=USD&amount=10":    "200 10.00 155000 15500",
		"currency=JPY&amount=2":     "200 2 206 103.25", // half to even
		"currency=KWD&amount=1.234": "200 1.234 62255 50450",
		"currency=IDR&amount=5":     "200 5 5 1",
		"currency=SEK&amount=1":     "404  0 ",
		"currency=XXQ&amount=1":     "400  0 ",
		"currency=USD&amount=1.001": "400  0 ",
		"currency=USD&amount=-1":    "400  0 ",
		"currency=USD&amount=0":     "400  0 ",
		"currency=USD&amount=":      "400  0 ",
		"amount=1":                  "400  0 ",
	} {
		var quote struct {
			Amount, Rate string
			AmountIDR    int64 `json:"amount_idr"`
		}
		code := s.get("/api/quotes?"+query, &quote)
		if got := fmt.Sprint(code, " ", quote.Amount, " ", quote.AmountIDR, " ", quote.Rate); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}

	var list struct {
		Currencies []struct {
			Currency, Rate string
			Digits         int
		}
	}
	s.get("/api/currencies", &list)
	if got := fmt.Sprint(list.Currencies); got != "[{IDR 1 0} {JPY 103.25 0} {KWD 50450 3} {SGD 11600 2} {USD 15500 2}]" {
		t.Errorf("currencies: %s", got)
	}

	// A rate may have a spread. Without one, bid and ask are the rate.
	put, err := fxv1.NewFxServiceClient(s.Conn("fx")).UpdateRates(t.Context(), &fxv1.UpdateRatesRequest{Rates: []*fxv1.Rate{
		{BaseCurrency: "USD", QuoteCurrency: "IDR", RateDecimal: "15500", Bid: "15490", Ask: "15510"}}})
	if err != nil || !put.Success {
		t.Fatal(put, err)
	}
	var spread struct {
		Currencies []struct{ Currency, Bid, Rate, Ask string }
	}
	s.get("/api/currencies", &spread)
	if got := fmt.Sprint(spread.Currencies[3:]); got != "[{SGD 11600 11600 11600} {USD 15490 15500 15510}]" {
		t.Errorf("with a spread: %s", got)
	}
	for field, rate := range map[string]*fxv1.Rate{
		"bid: ": {BaseCurrency: "USD", QuoteCurrency: "IDR", RateDecimal: "15500", Bid: "15501", Ask: "15510"},
		"ask: ": {BaseCurrency: "USD", QuoteCurrency: "IDR", RateDecimal: "15500", Bid: "15490", Ask: "much"},
	} {
		put, err := fxv1.NewFxServiceClient(s.Conn("fx")).UpdateRates(t.Context(), &fxv1.UpdateRatesRequest{Rates: []*fxv1.Rate{rate}})
		if err != nil || put.Success || !strings.HasPrefix(put.Message, "rates[0]: "+field) {
			t.Errorf("%s %v, %v", field, put, err)
		}
	}
}

func TestPaymentsAreListed(t *testing.T) {
	s := start(t, options{})
	for i, to := range []string{"B", "C", "B"} {
		s.expect(s.pay(fmt.Sprint("p", i), "A", to, "USD", 10), "200 SUCCESS committed")
	}
	s.expect(s.pay("refused", "A", "B", "IDR", 2e9), "200 FAILED insufficient_funds")

	type list struct {
		Payments []struct {
			Key    string `json:"idempotency_key"`
			Status string
			Amount string
		}
		Next        string `json:"next_before"`
		SearchLimit int    `json:"search_limit"`
	}
	keys := func(query url.Values) (keys []string) {
		for {
			var page list
			if code := s.get("/api/payments?"+query.Encode(), &page); code != 200 || page.SearchLimit == 0 {
				t.Fatalf("%v: %d %+v", query, code, page)
			}
			for _, p := range page.Payments {
				keys = append(keys, p.Key)
				settled := p.Status == "SUCCESS" && (p.Amount == "10.00" || p.Key == "noted")
				if refused := p.Status == "FAILED" && p.Amount == "2000000000"; !settled && (!refused || p.Key != "refused") {
					t.Errorf("%+v", p)
				}
			}
			if page.Next == "" {
				return keys
			}
			query.Set("before", page.Next)
		}
	}
	s.expect(s.post(body("noted", "C", "B", "SGD", 2, "metadata", map[string]string{"order": "4711", "a.b-c_d": "é & ="})), "200 SUCCESS committed")
	var reserved time.Time
	s.query(&reserved, `SELECT created_at FROM reservations WHERE idempotency_key = 'p1'`)
	from := reserved.UTC().Format(time.RFC3339Nano)
	var ref string
	s.query(&ref, `SELECT reservation_id::text FROM reservations WHERE idempotency_key = 'noted'`)
	for query, want := range map[string]string{
		"": "noted refused p2 p1 p0", "limit=1": "noted refused p2 p1 p0", "limit=2": "noted refused p2 p1 p0", "account=B": "noted refused p2 p0",
		"account=B&limit=1": "noted refused p2 p0", "account=C": "noted p1", "status=SUCCESS": "noted p2 p1 p0", "status=FAILED": "refused", "status=PENDING": "",
		"account=A&status=SUCCESS&limit=100": "p2 p1 p0",
		"from=" + from:                       "noted refused p2 p1", "to=" + from: "p0", "from=" + from + "&status=SUCCESS&currency=USD&limit=1": "p2 p1",
		"currency=USD": "p2 p1 p0", "currency=IDR&min_amount=2000000000&max_amount=2e9": "refused", "currency=USD&max_amount=9.99": "", "currency=USD&min_amount=10": "p2 p1 p0",
		"metadata.order=4711": "noted", "metadata.order=4711&metadata.a.b-c_d=%C3%A9+%26+%3D": "noted", "metadata.order=1": "", "metadata.other=4711": "",
		"ref=" + ref: "noted", "ref=" + ref + "&account=A": "",
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(keys(values), " "); got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
	for query, fields := range map[string]string{
		"limit=101": "limit", "limit=0": "limit", "limit=-1": "limit", "limit=many": "limit", "before=yesterday": "before", "status=MAYBE": "status",
		"account=" + strings.Repeat("x", 65): "account", "currency=usd": "currency", "min_amount=1": "currency", "currency=USD&max_amount=1.001": "max_amount",
		"currency=USD&min_amount=2&max_amount=1": "max_amount", "from=now": "from", "from=2026-01-31T09:30:00Z&to=2026-01-31T09:30:00Z": "to", "ref=4711": "ref",
		"metadata.a%20b=1": "metadata", "currency=US&status=MAYBE&to=now&limit=0": "limit status to currency",
	} {
		var problem struct {
			Detail string
			Errors []struct{ Field string }
		}
		code := s.get("/api/payments?"+query, &problem)
		var named []string
		for _, e := range problem.Errors {
			named = append(named, e.Field)
		}
		if code != 400 || strings.Join(named, " ") != fields {
			t.Errorf("%s: %d %+v", query, code, problem)
		}
	}
}

// A payment is read by its ref, too. If a key is spelled like the ref of another payment, the key wins.
func TestAPaymentIsReadByItsRef(t *testing.T) {
	s := start(t, options{})
	first := s.expect(s.pay("first", "A", "B", "USD", 1), "200 SUCCESS committed")
	read := func() string {
		t.Helper()
		var got struct {
			Key string `json:"idempotency_key"`
			Ref string
		}
		s.get("/api/payments/"+first.Ref, &got)
		return got.Key
	}
	if got := read(); got != "first" {
		t.Errorf("by the ref: %q", got)
	}
	s.expect(s.pay(first.Ref, "A", "B", "USD", 2), "200 SUCCESS committed")
	if got := read(); got != first.Ref {
		t.Errorf("by a key that is spelled like a ref: %q", got)
	}
	if code, _ := s.state("0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10"); code != 404 {
		t.Errorf("an unknown ref: %d", code)
	}
}

// A stage is reported when it ends and not with the answer: the client gets it while the payment is
// held up.
func TestStagesAreToldAsTheyEnd(t *testing.T) {
	s := start(t, options{})
	hang := make(chan struct{})
	release := sync.OnceFunc(func() { close(hang) })
	defer release()
	s.faults.set(func(f *faults) {
		f.rpc = func(called string) error {
			if strings.HasPrefix(called, "/payments.v1.") {
				<-hang
			}
			return nil
		}
	})
	req, err := http.NewRequest(http.MethodPost, s.url+"/api/payments", strings.NewReader(body("hangs", "A", "B", "USD", 10)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answered bool
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if strings.Contains(lines.Text(), `"stage":"publish"`) {
			release() // not before: the payment settles only after this stage was reported
		}
		answered = answered || strings.Contains(lines.Text(), `"reason":"committed"`)
	}
	if !answered {
		t.Error("the stages were not reported before the answer")
	}
}
