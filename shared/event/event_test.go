package event

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"

	"pgw/shared/money"
	"pgw/shared/payment"
)

var update = flag.Bool("update", false, "write the golden files anew")

var noon = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

const keys = "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=,k0:b3RoZXJvdGhlcm90aGVyb3RoZXJvdGhlcm90aGVyb3RoZXI="

func ring(t testing.TB, text string) *Keyring {
	t.Helper()
	var k Keyring
	if err := k.Decode(text); err != nil {
		t.Fatal(err)
	}
	return &k
}

func request() payment.Request {
	usd, _ := money.ParseCurrency("USD")
	rate, _ := money.ParseRate("15500")
	return payment.Request{
		Key: "test-001", Sender: "ACC001", Receiver: "ACC002", Sent: money.Amount{Minor: 1000, Currency: usd}, AmountIDR: 155000,
		Rate: rate, RateID: "rate-1", RateTime: noon.Add(-time.Hour), RuleSet: "rules-1", TxDate: "2026-03-01T12:00:00Z",
		AcceptedAt: noon, Deadline: noon.Add(payment.DecideWithin), AttemptID: "attempt-1",
	}
}

// The shapes of the events are a contract: a change here is a new version of the type.
func TestGoldenFiles(t *testing.T) {
	r := request()
	requested, err := Requested("/pgw/gateway", r, "http://10.0.0.1:8080", noon)
	if err != nil {
		t.Fatal(err)
	}
	result, err := Result("/pgw/worker", PaymentResult{
		Key: r.Key, Status: payment.Success, Reason: payment.ReasonCommitted, Ref: "0199-ref", AttemptID: r.AttemptID,
		ReplyTo: "http://10.0.0.1:8080", ReceivedAt: noon, SettledAt: noon.Add(time.Millisecond), ReserveMicros: 400, CommitMicros: 500,
	}, r.Fingerprint(), noon)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := New(TypeAccountOpened, "open-ACC001", "/bank", "ACC001", AccountOpened{AccountID: "ACC001", Owner: "Ayu Lestari", Currency: "USD", DailyLimitIDR: 5, Status: "ACTIVE"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	funded, err := New(TypeAccountFunded, "fund-ACC001", "/bank", "ACC001", AccountFunded{AccountID: "ACC001", AmountIDR: 1000, Note: "first funds"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []cloudevents.Event{requested, result, opened, funded} {
		if err := ring(t, keys).Sign(&e); err != nil {
			t.Fatal(err)
		}
		text, err := e.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var indented bytes.Buffer
		if err := json.Indent(&indented, text, "", "  "); err != nil {
			t.Fatal(err)
		}
		indented.WriteByte('\n')
		path := filepath.Join("testdata", e.Type()+".json")
		if *update {
			if err := os.WriteFile(path, indented.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(indented.Bytes(), want) {
			t.Errorf("%s is now\n%s", path, &indented)
		}
	}
}

func TestRequestSurvivesItsEvent(t *testing.T) {
	r := request()
	e, err := Requested("/pgw/gateway", r, "", noon)
	if err != nil {
		t.Fatal(err)
	}
	data, err := Decode[PaymentRequested](e)
	if err != nil {
		t.Fatal(err)
	}
	got, err := data.Request()
	if err != nil || got.Fingerprint() != r.Fingerprint() || got.Rate.String() != "15500" || !got.Deadline.Equal(r.Deadline) || got.AttemptID != r.AttemptID {
		t.Errorf("%+v, %v", got, err)
	}
	again, _ := Requested("/pgw/gateway", r, "http://other", noon.Add(time.Second))
	if again.ID() != e.ID() {
		t.Error("the same payment's event has another id")
	}
	r.Sent.Minor++
	if other, _ := Requested("/pgw/gateway", r, "", noon); other.ID() == e.ID() {
		t.Error("another payment's event has the same id")
	}
}

func TestSignatures(t *testing.T) {
	sign := func(keys string) cloudevents.Event {
		e, err := Requested("/pgw/gateway", request(), "", noon)
		if err != nil {
			t.Fatal(err)
		}
		if err := ring(t, keys).Sign(&e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	both := ring(t, keys)
	first, second, _ := strings.Cut(keys, ",")
	if err := both.Verify(sign(first)); err != nil {
		t.Error(err)
	}
	if err := both.Verify(sign(second)); err != nil {
		t.Errorf("a key that is being rotated out: %v", err)
	}
	if err := ring(t, first).Verify(sign(second)); !errors.Is(err, ErrSignature) {
		t.Errorf("a key that was rotated out: %v", err)
	}
	for name, tamper := range map[string]func(*cloudevents.Event){
		"type":   func(e *cloudevents.Event) { e.SetType(TypeAccountFunded) },
		"id":     func(e *cloudevents.Event) { e.SetID("other") },
		"source": func(e *cloudevents.Event) { e.SetSource("/other") },
		"data": func(e *cloudevents.Event) {
			e.DataEncoded = bytes.Replace(e.DataEncoded, []byte("ACC002"), []byte("ACC003"), 1)
		},
		"no signature": func(e *cloudevents.Event) { e.SetExtension(ExtSignature, nil) },
		"empty":        func(e *cloudevents.Event) { e.SetExtension(ExtSignature, "k1.") },
		"no key id":    func(e *cloudevents.Event) { e.SetExtension(ExtSignature, "abc") },
	} {
		e := sign(keys)
		tamper(&e)
		if err := both.Verify(e); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{"", "k1", "k1:", "k1:!!", "k1:c2hvcnQ=", first + "," + first, "a.b:" + first[3:]} {
		var k Keyring
		if err := k.Decode(bad); err == nil {
			t.Errorf("Decode(%q) is taken", bad)
		}
	}
	if err := new(Keyring).Sign(&cloudevents.Event{}); !errors.Is(err, ErrSignature) {
		t.Errorf("no key: %v", err)
	}
}

// The status is the acknowledgement that KafkaSource goes by.
func TestStatuses(t *testing.T) {
	e, err := Requested("/pgw/gateway", request(), "", noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		err  error
		want int
	}{{nil, 202}, {ErrMalformed, 400}, {ErrRefused, 400}, {ErrSignature, 403}, {errors.New("the database is away"), 503}} {
		h := HTTP(func(context.Context, cloudevents.Event) error { return tc.err }, slog.New(slog.DiscardHandler))
		req, err := cehttp.NewHTTPRequestFromEvent(t.Context(), "http://f/", e)
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, w.Code, tc.want)
		}
	}
	never := HTTP(func(context.Context, cloudevents.Event) error { t.Error("handled"); return nil }, slog.New(slog.DiscardHandler))
	for name, tc := range map[string]struct {
		change func(*http.Request)
		want   int
	}{
		"no event":  {func(r *http.Request) { r.Header = http.Header{} }, 400},
		"no id":     {func(r *http.Request) { r.Header.Del("Ce-Id") }, 400},
		"too large": {func(r *http.Request) { r.Body = readCloser(strings.Repeat("x", MaxBytes+1)) }, 413},
	} {
		req, err := cehttp.NewHTTPRequestFromEvent(t.Context(), "http://f/", e)
		if err != nil {
			t.Fatal(err)
		}
		tc.change(req)
		w := httptest.NewRecorder()
		never.ServeHTTP(w, req)
		if w.Code != tc.want {
			t.Errorf("%s: %d %s, want %d", name, w.Code, w.Body, tc.want)
		}
	}
}

type stringBody struct{ *strings.Reader }

func (stringBody) Close() error { return nil }

func readCloser(text string) stringBody { return stringBody{strings.NewReader(text)} }

func TestReadRequest(t *testing.T) {
	plain := cloudevents.New()
	plain.SetType(TypeKafkaRecord)
	plain.DataEncoded = []byte(`{"idempotency_key":"k","sender_id":"A","receiver_id":"B","amount_idr":5,"currency_input":"USD","tx_date":"","reply_to":"http://evil","attempt_id":"x"}`)
	if _, err := ReadRequest(plain, ring(t, keys), false); !errors.Is(err, ErrSignature) {
		t.Errorf("not allowed: %v", err)
	}
	got, err := ReadRequest(plain, ring(t, keys), true)
	if err != nil || got.Key != "k" || got.AmountIDR != 5 || got.ReplyTo != "" || got.AttemptID != "" {
		t.Errorf("%+v, %v", got, err)
	}
	unsigned, _ := Requested("/pgw/gateway", request(), "", noon)
	if _, err := ReadRequest(unsigned, ring(t, keys), true); !errors.Is(err, ErrSignature) {
		t.Errorf("a CloudEvent without a signature: %v", err)
	}
	plain.SetType("other")
	if _, err := ReadRequest(plain, ring(t, keys), true); !errors.Is(err, ErrRefused) {
		t.Errorf("another type: %v", err)
	}
}
