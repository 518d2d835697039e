package event

import (
	"bytes"
	"context"
	"encoding/base64"
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

var update = flag.Bool("update", false, "write the golden files again")

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

func request() payment.Payment {
	usd, _ := money.ParseCurrency("USD")
	rate, _ := money.ParseRate("15500")
	return payment.Payment{
		Key: "test-001", Sender: "ACC001", Receiver: "ACC002", Minor: 1000, Currency: usd, AmountIDR: 155000,
		Rate: rate, RateID: "rate-1", RateTime: noon.Add(-time.Hour), RuleSet: "rules-1", TxDate: "2026-03-01T12:00:00Z",
		AcceptedAt: noon, Deadline: noon.Add(payment.DecideWithin), AttemptID: "attempt-1",
	}
}

// authorized is a payment that is captured by an operation of its own.
func authorized() payment.Payment {
	p := request()
	p.HoldSeconds = 604_800
	return p
}

// exchanged is a payment of USD 10.00 that the receiver gets in SGD, by a quote.
func exchanged() payment.Payment {
	p := request()
	sgd, _ := money.ParseCurrency("SGD")
	rate, _ := money.ParseRate("1.339")
	mid, _ := money.ParseRate("1.34")
	p.DebitCurrency, p.CreditCurrency, p.DebitMinor, p.CreditMinor = p.Currency, sgd, 1000, 1339
	p.Exchange = payment.Exchange{
		Rate: rate, MidRate: mid, MidMinor: 1340, Remainder: "0",
		Steps: []payment.Step{{From: p.Currency, To: sgd, RateID: "rate-2", Rate: rate, MidRate: mid}},
	}
	p.Rate, p.RateID, p.QuoteID = rate, "rate-2", "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10"
	return p
}

// The shapes of the events are a contract. A changed shape needs a new version of the type.
func TestGoldenFiles(t *testing.T) {
	r := request()
	requested, err := Requested("/pgw/gateway", r, "http://10.0.0.1:8080", noon)
	if err != nil {
		t.Fatal(err)
	}
	result, err := Result("/pgw/worker", PaymentResult{
		Key: r.Key, Outcome: payment.Outcome{Status: payment.Success, Reason: payment.ReasonCommitted, Ref: "0199-ref"},
		Fingerprint: r.Fingerprint(), AttemptID: r.AttemptID,
		ReplyTo: "http://10.0.0.1:8080", ReceivedAt: noon, SettledAt: noon.Add(time.Millisecond), ReserveMicros: 400, CommitMicros: 500,
	}, noon)
	if err != nil {
		t.Fatal(err)
	}
	x := exchanged()
	requestedV2, err := Requested("/pgw/gateway", x, "", noon)
	if err != nil {
		t.Fatal(err)
	}
	resultV2, err := Result("/pgw/worker", PaymentResult{
		Key: x.Key, Outcome: payment.Outcome{Status: payment.Success, Reason: payment.ReasonCommitted, Ref: "0199-ref"},
		Fingerprint: x.Fingerprint(), AttemptID: x.AttemptID, Moved: MovedBy(x, payment.Outcome{State: payment.Committed}),
	}, noon)
	if err != nil {
		t.Fatal(err)
	}
	m := authorized()
	requestedV3, err := Requested("/pgw/gateway", m, "", noon)
	if err != nil {
		t.Fatal(err)
	}
	held, err := Result("/pgw/worker", PaymentResult{
		Key: m.Key, Outcome: payment.Standing(payment.Pending, payment.Authorized, "0199-ref", false), Fingerprint: m.Fingerprint(), AttemptID: m.AttemptID,
	}, noon)
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
	usd, _ := money.ParseCurrency("USD")
	fundedV2, err := New(TypeAccountFundedV2, "fund-ACC001-usd", "/bank", "ACC001", AccountFundedV2{AccountID: "ACC001", Currency: usd, Minor: 1025, Note: "first dollars"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	for file, e := range map[string]cloudevents.Event{
		requested.Type(): requested, result.Type(): result, opened.Type(): opened, funded.Type(): funded,
		requestedV2.Type(): requestedV2, fundedV2.Type(): fundedV2, result.Type() + "-exchange": resultV2,
		requestedV3.Type(): requestedV3, held.Type() + "-authorized": held,
	} {
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
		path := filepath.Join("testdata", file+".json")
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
	got := data.Payment
	if err := got.Validate(); err != nil || got.Fingerprint() != r.Fingerprint() || got.Rate.String() != "15500" || !got.Deadline.Equal(r.Deadline) || got.AttemptID != r.AttemptID {
		t.Errorf("%+v, %v", got, err)
	}
	again, _ := Requested("/pgw/gateway", r, "http://other", noon.Add(time.Second))
	if again.ID() != e.ID() {
		t.Error("the same payment's event has another id")
	}
	r.Metadata = map[string]string{"order": "4711"}
	noted, _ := Requested("/pgw/gateway", r, "http://other", noon)
	if !strings.Contains(string(noted.Data()), `"attempt_id":"attempt-1","metadata":{"order":"4711"},"reply_to"`) || noted.ID() == e.ID() {
		t.Errorf("with metadata: %s", noted)
	}
	r.Metadata = nil
	r.Minor++
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
			t.Errorf("Decode(%q) is accepted", bad)
		}
	}
	if err := new(Keyring).Sign(&cloudevents.Event{}); !errors.Is(err, ErrSignature) {
		t.Errorf("no key: %v", err)
	}
}

// v1 returns a signature of version 1: "KEYID.SIGNATURE".
func signV1(t testing.TB, keys string, e *cloudevents.Event) {
	t.Helper()
	k := ring(t, keys)
	e.SetExtension(ExtSignature, k.signing+"."+base64.RawURLEncoding.EncodeToString(k.keys[k.signing].macV1(e)))
}

// All attributes that a function uses are signed. A changed time, subject or partition key makes
// the signature wrong. Forwarders may format the same instant differently and may add attributes.
func TestASignatureCoversTheUsedAttributes(t *testing.T) {
	k := ring(t, keys)
	signed := func() cloudevents.Event {
		e, err := New(TypeAccountOpened, "o1", "/bank", "ACC001", AccountOpened{AccountID: "ACC001"}, noon)
		if err == nil {
			err = k.Sign(&e)
		}
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	for name, change := range map[string]func(*cloudevents.Event){
		"a later time":         func(e *cloudevents.Event) { e.SetTime(noon.Add(time.Nanosecond)) },
		"2099":                 func(e *cloudevents.Event) { e.SetTime(time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)) },
		"no time":              func(e *cloudevents.Event) { e.SetTime(time.Time{}) },
		"subject":              func(e *cloudevents.Event) { e.SetSubject("ACC002") },
		"no subject":           func(e *cloudevents.Event) { e.SetSubject("") },
		"partition key":        func(e *cloudevents.Event) { e.SetExtension(ExtPartitionKey, "ACC002") },
		"no partition key":     func(e *cloudevents.Event) { e.SetExtension(ExtPartitionKey, nil) },
		"version":              func(e *cloudevents.Event) { e.SetSpecVersion(cloudevents.CloudEventsVersionV03) },
		"subject moved to id":  func(e *cloudevents.Event) { e.SetID("o1ACC001"); e.SetSubject("") },
		"type, id and source":  func(e *cloudevents.Event) { e.SetType("pgw.account.opened.v1o1"); e.SetID("/bank"); e.SetSource("/x") },
		"said to be a v1":      func(e *cloudevents.Event) { asV1(e) },
		"said to be a v3":      func(e *cloudevents.Event) { replaceSignature(e, "v2.", "v3.") },
		"another key's name":   func(e *cloudevents.Event) { replaceSignature(e, "v2.k1.", "v2.k0.") },
		"a part too many":      func(e *cloudevents.Event) { replaceSignature(e, "v2.", "v2.v2.") },
		"an empty signature":   func(e *cloudevents.Event) { e.SetExtension(ExtSignature, "v2.k1.") },
		"other data":           func(e *cloudevents.Event) { e.DataEncoded = []byte(`{"account_id":"ACC002"}`) },
		"data in another form": func(e *cloudevents.Event) { e.DataEncoded = append([]byte(" "), e.DataEncoded...) },
	} {
		e := signed()
		change(&e)
		if err := k.Verify(e); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*cloudevents.Event){
		"as it was":           func(*cloudevents.Event) {},
		"the same instant":    func(e *cloudevents.Event) { e.SetTime(noon.In(time.FixedZone("WIB", 7*3600))) },
		"an offset":           func(e *cloudevents.Event) { e.SetExtension("knativekafkaoffset", "17") },
		"a trace":             func(e *cloudevents.Event) { e.SetExtension("traceparent", "00-1-2-01") },
		"an error code":       func(e *cloudevents.Event) { e.SetExtension("knativeerrorcode", "503") },
		"with its media type": func(e *cloudevents.Event) { e.SetDataContentType("application/json; charset=utf-8") },
	} {
		e := signed()
		change(&e)
		if v, err := k.Verified(e); err != nil || v != V2 {
			t.Errorf("%s: version %d, %v", name, v, err)
		}
	}
}

func asV1(e *cloudevents.Event) { replaceSignature(e, "v2.", "") }

func replaceSignature(e *cloudevents.Event, old, new string) {
	text, _ := e.Extensions()[ExtSignature].(string)
	e.SetExtension(ExtSignature, strings.Replace(text, old, new, 1))
}

// Signatures of version 1 are accepted while the keys that made them are in the ring. They end when
// a key for version 2 only replaces those keys.
func TestV1IsAcceptedUntilItsKeyIsRotatedOut(t *testing.T) {
	e, err := Requested("/pgw/gateway", request(), "", noon)
	if err != nil {
		t.Fatal(err)
	}
	first, second, _ := strings.Cut(keys, ",")
	signV1(t, first, &e)
	if v, err := ring(t, keys).Verified(e); err != nil || v != V1 {
		t.Errorf("version %d, %v", v, err)
	}
	if err := ring(t, second+":v2,"+first).Verify(e); err != nil {
		t.Errorf("while keys rotate: %v", err)
	}
	if err := ring(t, second+":v2").Verify(e); !errors.Is(err, ErrSignature) {
		t.Errorf("its key is gone: %v", err)
	}
	if err := ring(t, first+":v2").Verify(e); !errors.Is(err, ErrSignature) || !strings.Contains(err.Error(), "v1") {
		t.Errorf("its key is only for v2: %v", err)
	}
	if err := ring(t, first+":v2").Sign(&e); err != nil || ring(t, first).Verify(e) != nil {
		t.Errorf("the same key, for v2: %v", err)
	}
	var k Keyring
	if err := k.Decode(first + ":v1"); err == nil {
		t.Error("a key of an unknown kind is accepted")
	}
	// An event that was made before version 2 existed.
	old, err := Requested("/pgw/gateway", request(), "http://10.0.0.1:8080", noon)
	if err != nil {
		t.Fatal(err)
	}
	old.SetExtension(ExtSignature, "k1.sAZSbBmyi5gfPOldPQt7pni-qajjV5F9e5bpDDkxtxs")
	if v, err := ring(t, keys).Verified(old); err != nil || v != V1 {
		t.Errorf("an event of version 1: version %d, %v", v, err)
	}
	// The signature does not cover the other attributes, so no decision may depend on them.
	late := e.Clone()
	signV1(t, first, &late)
	late.SetTime(noon.Add(time.Hour))
	if v, err := ring(t, keys).Verified(late); err != nil || v != V1 {
		t.Errorf("version %d, %v", v, err)
	}
}

// The status is the acknowledgement for KafkaSource.
func TestStatuses(t *testing.T) {
	e, err := Requested("/pgw/gateway", request(), "", noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		err  error
		want int
	}{{nil, 202}, {ErrMalformed, 400}, {ErrRefused, 400}, {ErrSignature, 403}, {errors.New("the database is away"), 503}} {
		h := NewReceiver(func(context.Context, cloudevents.Event) error { return tc.err }, slog.New(slog.DiscardHandler))
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
	never := NewReceiver(func(context.Context, cloudevents.Event) error { t.Error("handled"); return nil }, slog.New(slog.DiscardHandler))
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
	plain.DataEncoded = []byte(`{"idempotency_key":"k","sender_id":"A","receiver_id":"B","amount_idr":5,"currency_input":"USD","tx_date":"","reply_to":"http://evil","attempt_id":"x","metadata":{"a":"b"}}`)
	if _, err := ReadRequest(plain, ring(t, keys), false); !errors.Is(err, ErrSignature) {
		t.Errorf("not allowed: %v", err)
	}
	got, err := ReadRequest(plain, ring(t, keys), true)
	if err != nil || got.Key != "k" || got.AmountIDR != 5 || got.ReplyTo != "" || got.AttemptID != "" || got.Metadata != nil {
		t.Errorf("%+v, %v", got, err)
	}
	unsigned, _ := Requested("/pgw/gateway", request(), "", noon)
	if _, err := ReadRequest(unsigned, ring(t, keys), true); !errors.Is(err, ErrSignature) {
		t.Errorf("a CloudEvent without a signature: %v", err)
	}
	for name, p := range map[string]payment.Payment{"v1": request(), "v2": exchanged(), "v3": authorized()} {
		e, _ := Requested("/pgw/gateway", p, "", noon)
		if err := ring(t, keys).Sign(&e); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadRequest(e, ring(t, keys), false); err != nil || !strings.HasSuffix(e.Type(), name) || got.HoldSeconds != p.HoldSeconds {
			t.Errorf("%s %s: %+v, %v", name, e.Type(), got, err)
		}
		// A release that captures at once must never get a payment that is only to be authorized.
		for _, other := range []string{TypePaymentRequested, TypePaymentRequestedV2, TypePaymentRequestedV3} {
			if other == e.Type() {
				continue
			}
			as := e.Clone()
			as.SetType(other)
			if err := ring(t, keys).Sign(&as); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadRequest(as, ring(t, keys), false); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s as %s: %v", name, other, err)
			}
		}
	}
	plain.SetType("other")
	if _, err := ReadRequest(plain, ring(t, keys), true); !errors.Is(err, ErrRefused) {
		t.Errorf("another type: %v", err)
	}
}

// An event that comes from the same process is checked and answered as one over HTTP.
func TestBothWaysInAnswerAlike(t *testing.T) {
	k := ring(t, keys)
	signed, err := Requested("/pgw/gateway", request(), "", noon)
	if err == nil {
		err = k.Sign(&signed)
	}
	if err != nil {
		t.Fatal(err)
	}
	structured, err := json.Marshal(signed)
	if err != nil {
		t.Fatal(err)
	}
	binary := func(change func(http.Header)) http.Header {
		req, err := cehttp.NewHTTPRequestFromEvent(t.Context(), "http://f/", signed)
		if err != nil {
			t.Fatal(err)
		}
		change(req.Header)
		return req.Header
	}
	as := func(contentType string) http.Header { return http.Header{"Content-Type": {contentType}} }
	same := func(http.Header) {}
	for name, tc := range map[string]struct {
		header http.Header
		body   []byte
		err    error
		want   int
	}{
		"handled":               {binary(same), signed.Data(), nil, 202},
		"no data":               {binary(same), nil, nil, 202},
		"put off":               {binary(same), signed.Data(), errors.New("later"), 503},
		"refused":               {binary(same), signed.Data(), ErrRefused, 400},
		"a wrong signature":     {binary(same), signed.Data(), ErrSignature, 403},
		"too large":             {binary(same), make([]byte, MaxBytes+1), nil, 413},
		"as large as possible":  {binary(same), make([]byte, MaxBytes), nil, 202},
		"no event":              {http.Header{}, []byte("{}"), nil, 400},
		"no id":                 {binary(func(h http.Header) { h.Del("Ce-Id") }), signed.Data(), nil, 400},
		"a wrong time":          {binary(func(h http.Header) { h.Set("Ce-Time", "noon") }), signed.Data(), nil, 400},
		"an attribute's name":   {binary(func(h http.Header) { h["Ce-"] = []string{"x"} }), signed.Data(), nil, 400},
		"structured and signed": {as("application/cloudevents+json"), structured, nil, 403},
		"no JSON":               {as("application/cloudevents+json"), []byte("{"), nil, 400},
		"a batch":               {as("application/cloudevents-batch+json"), []byte("[]"), nil, 400},
		"unsigned": {as("application/cloudevents+json"),
			[]byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"a":1}}`), nil, 202},
	} {
		var got []cloudevents.Event
		in := NewReceiver(func(ctx context.Context, e cloudevents.Event) error {
			if Header(ctx).Get("Content-Type") != tc.header.Get("Content-Type") {
				t.Errorf("%s: the headers are %v", name, Header(ctx))
			}
			got = append(got, e)
			return tc.err
		}, slog.New(slog.DiscardHandler))
		w := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(tc.body))
		req.Header = tc.header.Clone()
		in.ServeHTTP(w, req)
		direct := in.Receive(t.Context(), tc.header, tc.body)
		if direct.Code != tc.want || w.Code != tc.want || strings.TrimSuffix(w.Body.String(), "\n") != direct.Text {
			t.Errorf("%s: over HTTP %d %q, from the process %d %q; want %d", name, w.Code, w.Body, direct.Code, direct.Text, tc.want)
		}
		if retry := w.Header().Get("Retry-After"); (retry != "") != (tc.want == 503) {
			t.Errorf("%s: Retry-After %q", name, retry)
		}
		if len(got) == 2 && (got[0].String() != got[1].String() || !bytes.Equal(got[0].Data(), got[1].Data())) {
			t.Errorf("%s: over HTTP %s, from the process %s", name, got[0], got[1])
		}
	}
}
