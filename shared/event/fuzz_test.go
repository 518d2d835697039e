package event

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
)

// Every posted event, in either mode, is either refused with a status that is never retried, or
// reaches the handler as a valid event.
func FuzzHTTP(f *testing.F) {
	f.Add("application/json", "1.0", "id", "type", "/source", []byte(`{"n":1}`))
	f.Add("application/cloudevents+json", "", "", "", "", []byte(`{"specversion":"1.0","id":"1","type":"t","source":"/s","data":{"n":1}}`))
	f.Add("application/cloudevents+json", "", "", "", "", []byte(`{"specversion":"1.0","id":"1","type":"t","source":"/s","data_base64":"AAE="}`))
	f.Add("application/cloudevents-batch+json", "", "", "", "", []byte(`[]`))
	f.Add("", "9.9", "", "", "://", []byte{0})
	f.Fuzz(func(t *testing.T, contentType, version, id, eventType, source string, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		for name, value := range map[string]string{"Content-Type": contentType, "Ce-Specversion": version, "Ce-Id": id, "Ce-Type": eventType, "Ce-Source": source} {
			if value != "" {
				r.Header[name] = []string{value}
			}
		}
		handled := false
		w := httptest.NewRecorder()
		NewReceiver(func(_ context.Context, e cloudevents.Event) error {
			handled = true
			return e.Validate()
		}, slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
		if handled != (w.Code == http.StatusAccepted) || (!handled && w.Code != http.StatusBadRequest && w.Code != http.StatusRequestEntityTooLarge) {
			t.Fatalf("status %d, handled %t: %s", w.Code, handled, w.Body)
		}
	})
}

// A plain record becomes a valid payment, and fields that only pgw sets are not taken from it.
func FuzzPlainRecord(f *testing.F) {
	f.Add([]byte(`{"idempotency_key":"k","sender_id":"A","receiver_id":"B","amount_idr":9000,"currency_input":"USD","tx_date":"2026-01-31"}`))
	f.Add([]byte(`{"idempotency_key":"k","sender_id":"A","receiver_id":"B","amount_idr":9000,"currency_input":"USD","reply_to":"http://evil","deadline":"2099-01-01T00:00:00Z","rate":"1"}`))
	f.Add([]byte(`{"amount_idr":1e30}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, record []byte) {
		e := cloudevents.New()
		e.SetType(TypeKafkaRecord)
		e.DataEncoded = record
		data, err := ReadRequest(e, &Keyring{}, true)
		if err == nil && (data.ReplyTo != "" || !data.Deadline.IsZero() || !data.Rate.IsZero() || data.AttemptID != "" || data.Metadata != nil) {
			t.Fatalf("taken from an unsigned record: %+v", data)
		}
		if err == nil {
			if err := data.Validate(); err != nil {
				t.Fatal(err)
			}
		} else if !Refused(err) {
			t.Fatalf("neither accepted nor refused: %v", err)
		}
		if _, err := ReadRequest(e, &Keyring{}, false); err == nil {
			t.Fatal("an unsigned record is accepted although that is not allowed")
		}
	})
}
