package gateway

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"
)

// BenchmarkReadPayment reads a request's body and checks the payment.
func BenchmarkReadPayment(b *testing.B) {
	body := []byte(`{"sender_id":"ACC001","receiver_id":"ACC002","currency":"USD","amount":10.25,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"key-1"}`)
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, "/api/payments", bytes.NewReader(body))
		if _, refusal := readPayment(httptest.NewRecorder(), r); refusal != nil {
			b.Fatal(refusal.message)
		}
	}
}
