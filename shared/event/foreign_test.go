package event

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
)

// The SDK panics at a header "ce-" without a name.
func TestAnEventWhoseDecoderPanicsIsRefused(t *testing.T) {
	h := NewReceiver(func(context.Context, cloudevents.Event) error { return nil }, slog.New(slog.DiscardHandler))
	for _, name := range []string{"Ce-", "Ce-My-Ext", "Ce-My_ext", "Ce-Ext\xff"} {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
		r.Header = http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Type": {"t"}, "Ce-Source": {"/s"}, name: {"x"}}
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "not a name of an attribute") {
			t.Errorf("%q: %d %s", name, w.Code, w.Body)
		}
	}
	_, err := Foreign(func() (int, error) { panic("index out of range") })
	if !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

// The signature covers the bytes of the data, which structured mode may change.
func TestASignedEventInStructuredModeIsRefusedWithAReason(t *testing.T) {
	e, err := Requested("/pgw/gateway", request(), "", noon)
	if err == nil {
		err = ring(t, keys).Sign(&e)
	}
	if err != nil {
		t.Fatal(err)
	}
	post := func(e cloudevents.Event) *httptest.ResponseRecorder {
		text, err := e.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(text)))
		r.Header.Set("Content-Type", "application/cloudevents+json")
		w := httptest.NewRecorder()
		NewReceiver(func(context.Context, cloudevents.Event) error { return nil }, slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
		return w
	}
	if w := post(e); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "binary mode") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	e.SetExtension(ExtSignature, nil)
	if w := post(e); w.Code != http.StatusAccepted {
		t.Errorf("unsigned: %d %s", w.Code, w.Body)
	}
}

// It is unclear which of the two amounts counts.
func TestANameThatIsGivenTwiceIsMalformed(t *testing.T) {
	for _, tc := range []struct {
		text string
		want bool
	}{
		{`{"idempotency_key":"k","amount_idr":1,"amount_idr":2}`, false},
		{`{"idempotency_key":"k","amount_idr":1,"AMOUNT_IDR":2}`, false},
		{`{"idempotency_key":"k","Amount_IDR":2,"amount_idr":1}`, false},
		{`{"idempotency_key":"k","more":1,"more":2}`, false},
		{`{"idempotency_key":"k","amount_idr":1,"more":{"amount_idr":2}}`, true},
		{`{"idempotency_key":"k","amount_idr":1}`, true},
	} {
		e := cloudevents.New()
		e.DataEncoded = []byte(tc.text)
		data, err := Decode[PaymentRequested](e)
		if (err == nil) != tc.want || (err != nil && !errors.Is(err, ErrMalformed)) || (err == nil && data.AmountIDR != 1) {
			t.Errorf("%s: %+v, %v", tc.text, data, err)
		}
	}
}
