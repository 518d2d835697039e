package event

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
)

// BenchmarkMakeAndSign does the gateway's work for each event.
func BenchmarkMakeAndSign(b *testing.B) {
	k, r := ring(b, keys), request()
	b.ReportAllocs()
	for b.Loop() {
		e, err := Requested("/pgw/gateway", r, "http://10.0.0.1:8080", noon)
		if err == nil {
			err = k.Sign(&e)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifyAndRead does worker's work for each event.
func BenchmarkVerifyAndRead(b *testing.B) {
	k := ring(b, keys)
	e, err := Requested("/pgw/gateway", request(), "", noon)
	if err == nil {
		err = k.Sign(&e)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadRequest(e, k, false); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReceive receives an event in binary mode.
func BenchmarkReceive(b *testing.B) {
	e, err := Requested("/pgw/gateway", request(), "", noon)
	if err != nil {
		b.Fatal(err)
	}
	h := NewReceiver(func(context.Context, cloudevents.Event) error { return nil }, slog.New(slog.DiscardHandler))
	b.ReportAllocs()
	for b.Loop() {
		req, err := cehttp.NewHTTPRequestFromEvent(b.Context(), "http://f/", e)
		if err != nil {
			b.Fatal(err)
		}
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, req); w.Code != 202 {
			b.Fatal(w.Code)
		}
	}
}
