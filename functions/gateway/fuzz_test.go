package gateway

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// Every request of a client is either refused with a reason and a message, or becomes a valid
// payment.
func FuzzReadPayment(f *testing.F) {
	for _, seed := range []string{
		`{"sender_id":"ACC001","receiver_id":"ACC002","currency":"USD","amount":10,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"k"}`,
		`{"sender_id":"A","receiver_id":"B","currency":"IDR","amount":"1000","tx_date":"2026-01-31T09:30:00+07:00"}`,
		`{"amount":1e400}`, `{"amount":-0.001,"currency":"JPY"}`, `[]`, `{`, ``, `null`, `{"amount":null}`, `{"sender_id":5}`,
	} {
		f.Add([]byte(seed), "header-key")
		f.Add([]byte(seed), "")
	}
	f.Fuzz(func(t *testing.T, body []byte, key string) {
		r := httptest.NewRequest(http.MethodPost, "/api/payments", bytes.NewReader(body))
		if key != "" {
			r.Header["Idempotency-Key"] = []string{key}
		}
		got, refusal := readPayment(httptest.NewRecorder(), r)
		if refusal != nil {
			if refusal.Status != payment.Failed || !refusal.Reason.Known() || refusal.message == "" {
				t.Fatalf("refused with %+v", refusal)
			}
			return
		}
		for _, id := range []string{got.Sender, got.Receiver} {
			if err := payment.CheckID("account", id, payment.MaxAccountID); err != nil {
				t.Fatal(err)
			}
		}
		if err := payment.CheckID("key", got.Key, payment.MaxKey); err != nil {
			t.Fatal(err)
		}
		if got.Minor <= 0 || got.Minor > money.MaxMinor || got.TxDate == "" {
			t.Fatalf("%+v", got)
		}
		again, err := money.ParseAmount(got.Sent().String(), got.Currency)
		if err != nil || again != got.Sent() {
			t.Fatalf("%s is read as %s: %v", got.Sent(), again, err)
		}
	})
}
