package kafka_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/event"
	"pgw/shared/kafka"
)

// message is an event in transport: its headers, and its body or its value.
type message struct {
	headers map[string]string
	body    string
}

func (m message) request() *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(m.body))
	for name, value := range m.headers {
		r.Header.Set(name, value)
	}
	return r
}

func (m message) record() *sarama.ConsumerMessage {
	record := &sarama.ConsumerMessage{Value: []byte(m.body)}
	for name, value := range m.headers {
		record.Headers = append(record.Headers, &sarama.RecordHeader{Key: []byte(name), Value: []byte(value)})
	}
	return record
}

const (
	inBinary     = `{"amount": 5000, "currency": "IDR"}`
	inStructured = `{"specversion": "1.0", "id": "order/42", "source": "https://shop.example/orders", "type": "example.order.paid",
	"time": "2026-01-31T09:30:00Z", "subject": "A-42", "tenant": "acme", "datacontenttype": "application/json", "data": ` + inBinary + `}`
)

// bindings are the forms that the CloudEvents specifications define for an event in HTTP and Kafka.
// In binary mode, its attributes are headers; the other mode is structured. The names of headers
// differ, and content types may have parameters.
func bindings() map[string]map[string]message {
	attributes := map[string]string{
		"specversion": "1.0", "id": "order/42", "source": "https://shop.example/orders", "type": "example.order.paid",
		"time": "2026-01-31T09:30:00Z", "subject": "A-42", "tenant": "acme",
	}
	all := map[string]map[string]message{"HTTP": {}, "Kafka": {}}
	for protocol, prefix := range map[string]string{"HTTP": "ce-", "Kafka": "ce_"} {
		for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
			headers := map[string]string{"content-type": contentType}
			for name, value := range attributes {
				headers[prefix+name] = value
			}
			all[protocol]["binary, "+contentType] = message{headers, inBinary}
		}
		for _, contentType := range []string{"application/cloudevents+json", "application/cloudevents+json; charset=utf-8"} {
			all[protocol]["structured, "+contentType] = message{map[string]string{"content-type": contentType}, inStructured}
		}
	}
	return all
}

// An event is read the same in every binding and mode: each attribute, each extension, and the
// data.
func TestEventsAreReadAlikeByEachBinding(t *testing.T) {
	read := map[string]func(t *testing.T, m message) cloudevents.Event{
		"HTTP": func(t *testing.T, m message) (got cloudevents.Event) {
			handler := event.NewReceiver(func(_ context.Context, e cloudevents.Event) error { got = e; return nil }, slog.New(slog.DiscardHandler))
			w := httptest.NewRecorder()
			if handler.ServeHTTP(w, m.request()); w.Code != http.StatusAccepted {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			return got
		},
		"Kafka": func(t *testing.T, m message) cloudevents.Event {
			got, err := kafka.ReadRecord(t.Context(), m.record(), nil)
			if err != nil {
				t.Fatal(err)
			}
			return got
		},
	}
	for protocol, modes := range bindings() {
		for mode, m := range modes {
			t.Run(protocol+" "+mode, func(t *testing.T) {
				e := read[protocol](t, m)
				got := fmt.Sprint(e.SpecVersion(), e.ID(), e.Source(), e.Type(), e.Time().Format(time.RFC3339), e.Subject(), e.Extensions()["tenant"])
				if want := "1.0order/42https://shop.example/ordersexample.order.paid2026-01-31T09:30:00ZA-42acme"; got != want {
					t.Errorf("attributes %s; want %s", got, want)
				}
				contentType := "application/json"
				if m.body == inBinary {
					contentType = m.headers["content-type"]
				}
				if e.DataContentType() != contentType {
					t.Errorf("datacontenttype %q; want %q", e.DataContentType(), contentType)
				}
				var data struct {
					Amount   int64
					Currency string
				}
				if err := json.Unmarshal(e.Data(), &data); err != nil || data.Amount != 5000 || data.Currency != "IDR" {
					t.Errorf("data %s: %v", e.Data(), err)
				}
			})
		}
	}
}

// A message is not an event if a required attribute is missing, or has a form that the
// specification forbids.
func TestBindingsRefuseWhatIsNoEvent(t *testing.T) {
	for name, spoil := range map[string]func(m message, prefix string) message{
		"no id":     func(m message, prefix string) message { delete(m.headers, prefix+"id"); return m },
		"no source": func(m message, prefix string) message { delete(m.headers, prefix+"source"); return m },
		"no type":   func(m message, prefix string) message { delete(m.headers, prefix+"type"); return m },
		"a version of the future": func(m message, prefix string) message {
			m.headers[prefix+"specversion"] = "9.9"
			return m
		},
		"a time that is none": func(m message, prefix string) message { m.headers[prefix+"time"] = "yesterday"; return m },
	} {
		all := bindings()
		m := spoil(all["HTTP"]["binary, application/json"], "ce-")
		w := httptest.NewRecorder()
		event.NewReceiver(func(context.Context, cloudevents.Event) error { return nil }, slog.New(slog.DiscardHandler)).ServeHTTP(w, m.request())
		if w.Code != http.StatusBadRequest {
			t.Errorf("HTTP, %s: %d %s", name, w.Code, w.Body)
		}
		m = spoil(all["Kafka"]["binary, application/json"], "ce_")
		wrap := func(*sarama.ConsumerMessage) cloudevents.Event { return cloudevents.New() } // the event of a plain record, which is not valid either
		if e, err := kafka.ReadRecord(t.Context(), m.record(), wrap); err == nil && e.Validate() == nil {
			t.Errorf("Kafka, %s: read %s", name, e)
		}
	}
}
