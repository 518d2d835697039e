package flow

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pb33f/jsonschema/v6"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/ledger"
	"pgw/shared/postgres"
	"pgw/tests/processes"
)

// shop is a client's program that takes webhooks, and verifies them as the specification says.
type shop struct {
	*httptest.Server
	schemas map[string]*jsonschema.Schema // of openapi.yaml
	mu      sync.Mutex
	secret  string
	events  map[string]webhook // by webhook-id
	errs    []error
}

type webhook struct {
	Type string `json:"type"`
	Data struct {
		Key      string `json:"idempotency_key"`
		Reason   string `json:"reason"`
		Sequence int    `json:"sequence"`
		Debit    string `json:"debit_amount"`
	} `json:"data"`
}

func newShop(t *testing.T) *shop {
	s := &shop{events: map[string]webhook{}, schemas: must(schemasAt("/components/schemas/",
		"PaymentEvent", "PaymentEventCloud", "DisabledEvent", "DisabledEventCloud", "TestEvent", "TestEventCloud"))}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	var library *standardwebhooks.Webhook
	if err == nil {
		library, err = standardwebhooks.NewWebhook(s.secret)
	}
	if err == nil {
		err = library.Verify(text, r.Header)
	}
	var e webhook
	if err == nil {
		err = json.Unmarshal(text, &e)
	}
	if err == nil {
		err = s.documented(e.Type, r.Header.Get("Content-Type"), text)
	}
	if err != nil {
		s.errs = append(s.errs, err)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.events[r.Header.Get("webhook-id")] = e
	w.WriteHeader(http.StatusNoContent)
}

// documented compares an event with openapi.yaml.
func (s *shop) documented(of, media string, text []byte) error {
	name, cloud := "PaymentEvent", strings.HasPrefix(media, "application/cloudevents+json")
	switch strings.TrimPrefix(of, "pgw.") {
	case "webhook.disabled":
		name = "DisabledEvent"
	case "webhook.test":
		name = "TestEvent"
	}
	if cloud {
		name += "Cloud"
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err == nil {
		err = s.schemas[name].Validate(value)
	}
	if err != nil {
		return fmt.Errorf("against openapi.yaml: %w: %s", err, text)
	}
	return nil
}

// about returns the event about a payment.
func (s *shop) about(key string) (webhook, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.Data.Key == key {
			return e, nil
		}
	}
	return webhook{}, fmt.Errorf("there is no event about %s among %d: %v", key, len(s.events), s.errs)
}

// types returns the type of the last event about each payment.
func (s *shop) types() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	types := map[string]string{}
	for _, e := range s.events {
		types[e.Data.Key] = e.Type
	}
	return types
}

// call makes a request and reads its answer.
func call(t *testing.T, c client, method, path, body string, code int, into any) {
	t.Helper()
	resp, text := c.do(method, path, body)
	if resp.StatusCode != code {
		t.Fatalf("%s %s: %s %s, want %d", method, path, resp.Status, text, code)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
}

// A merchant makes a webhook, is told what became of its payments, verifies each signature, and sees
// every attempt. The whole way is that of production: HTTP, Kafka, KafkaSource's manifests, rows.
func TestAMerchantIsTold(t *testing.T) {
	s := start(t, options{})
	s.open(1_000_000, "A", "B")
	there, anybody := newShop(t), client{s, ""}
	var made struct{ ID, Secret, Signature string }
	call(t, anybody, http.MethodPost, "/api/webhooks", `{"url":"`+there.URL+`/hook","description":"the shop"}`, http.StatusCreated, &made)
	there.mu.Lock()
	there.secret = made.Secret
	there.mu.Unlock()
	s.expect(s.pay("paid", "A", "B", "IDR", 1000), "200 SUCCESS committed")
	s.expect(s.pay("refused", "A", "B", "IDR", 900_000_000), "200 FAILED insufficient_funds")
	for key, want := range map[string]string{"paid": "payment.settled committed 2 1000"} {
		s.eventually("the merchant is told", func() error {
			e, err := there.about(key)
			if got := fmt.Sprint(e.Type, " ", e.Data.Reason, " ", e.Data.Sequence, " ", e.Data.Debit); err == nil && got != want {
				err = fmt.Errorf("told %s, want %s", got, want)
			}
			return err
		})
	}

	// The same as CloudEvents, with a refund and a test.
	cloud := newShop(t)
	var second struct{ ID, Secret string }
	call(t, anybody, http.MethodPost, "/api/webhooks", `{"url":"`+cloud.URL+`","format":"cloudevents"}`, http.StatusCreated, &second)
	cloud.mu.Lock()
	cloud.secret = second.Secret
	cloud.mu.Unlock()
	s.expect(s.pay("again", "A", "B", "IDR", 1000), "200 SUCCESS committed")
	call(t, anybody, http.MethodPost, "/api/payments/again/refunds", `{"idempotency_key":"again-1","amount":"400"}`, http.StatusOK, nil)
	call(t, anybody, http.MethodPost, "/api/webhooks/"+second.ID+"/test", "", http.StatusAccepted, nil)
	s.eventually("the second program is told of the payment, the refund and the test", func() error {
		cloud.mu.Lock()
		defer cloud.mu.Unlock()
		if len(cloud.events) != 3 {
			return fmt.Errorf("%v, %v", cloud.events, cloud.errs)
		}
		return nil
	})
	call(t, anybody, http.MethodDelete, "/api/webhooks/"+second.ID, "", http.StatusNoContent, nil)

	var listed struct {
		Webhooks []struct {
			ID, URL string
			Secret  string
			Enabled bool
		}
	}
	call(t, anybody, http.MethodGet, "/api/webhooks", "", http.StatusOK, &listed)
	if len(listed.Webhooks) != 1 || listed.Webhooks[0].ID != made.ID || listed.Webhooks[0].Secret != "" || !listed.Webhooks[0].Enabled {
		t.Errorf("listed %+v", listed)
	}
	at := "/api/webhooks/" + made.ID
	var sent struct {
		Event string `json:"webhook_id"`
	}
	call(t, anybody, http.MethodPost, at+"/test", "", http.StatusAccepted, &sent)
	var deliveries struct {
		Deliveries []struct {
			Event    string `json:"webhook_id"`
			Status   string
			Attempts []struct {
				Code   int
				Result string
			}
		}
	}
	s.eventually("the test arrives", func() error {
		call(t, anybody, http.MethodGet, at+"/deliveries?status=delivered&webhook_id="+sent.Event, "", http.StatusOK, &deliveries)
		if len(deliveries.Deliveries) != 1 || deliveries.Deliveries[0].Attempts[0].Code != http.StatusNoContent {
			return fmt.Errorf("deliveries are %+v", deliveries)
		}
		return nil
	})
	var again struct{ Redelivered int }
	call(t, anybody, http.MethodPost, at+"/redeliver", `{"since":"`+time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)+`","delivered":true}`, http.StatusAccepted, &again)
	if again.Redelivered < 2 {
		t.Errorf("redelivered %d", again.Redelivered)
	}
	var rotated struct{ Secret string }
	call(t, anybody, http.MethodPost, at+"/rotate", "", http.StatusOK, &rotated)
	if rotated.Secret == "" || rotated.Secret == made.Secret {
		t.Errorf("rotated to %q", rotated.Secret)
	}
	call(t, anybody, http.MethodPatch, at, `{"enabled":false,"types":["payment.refunded"]}`, http.StatusOK, nil)
	call(t, anybody, http.MethodPost, at+"/test", "", http.StatusConflict, nil)
	call(t, anybody, http.MethodDelete, at, "", http.StatusNoContent, nil)
	call(t, anybody, http.MethodGet, at, "", http.StatusNotFound, nil)
	for _, program := range []*shop{there, cloud} {
		program.mu.Lock()
		if len(program.errs) > 0 {
			t.Errorf("the merchant could not verify: %v", program.errs)
		}
		program.mu.Unlock()
	}
}

// What is wrong with a request is named.
func TestWebhooksThatAreWrong(t *testing.T) {
	s := start(t, options{})
	for body, want := range map[string]string{
		`{}`:                         "url",
		`{"url":"http://10.0.0.1/"}`: "url",
		`{"url":"https://a.example/","types":["payment.odd"]}`: "types",
		`{"url":"https://a.example/","format":"xml"}`:          "format",
		`{"url":"https://a.example/","signature":"v2"}`:        "signature",
		`{"url":"https://a.example/","urll":"x"}`:              "urll",
		`{"url":7}`: "url",
		`{"url":"https://a.example/","enabled":true}`: "enabled",
	} {
		resp, text := client{s, ""}.do(http.MethodPost, "/api/webhooks", body)
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(text, `"field":"`+want+`"`) {
			t.Errorf("%s: %s %s, want a problem with %s", body, resp.Status, text, want)
		}
	}
	resp, text := client{s, ""}.do(http.MethodPost, "/api/webhooks", "[")
	problem(t, "no JSON", resp, text, http.StatusBadRequest)
	resp, text = client{s, ""}.do(http.MethodGet, "/api/webhooks/nobody", "")
	problem(t, "no such webhook", resp, text, http.StatusNotFound)
}

// A client has its own webhooks only. Operators see all.
func TestWebhooksAreTheirClients(t *testing.T) {
	cfg, _, keys := keyed(t, map[string][]string{"shop": {"senders=A"}, "rival": {"senders=B"}, "bank": {"senders=*"}})
	s := start(t, options{access: cfg})
	mine, rival, operator := client{s, keys["shop"]}, client{s, keys["rival"]}, client{s, keys["bank"]}
	var made struct{ ID, Client string }
	call(t, mine, http.MethodPost, "/api/webhooks", `{"url":"https://shop.example/"}`, http.StatusCreated, &made)
	at := "/api/webhooks/" + made.ID
	if made.Client != "shop" {
		t.Errorf("it belongs to %q", made.Client)
	}
	for method, path := range map[string]string{http.MethodGet: at, http.MethodDelete: at} {
		call(t, rival, method, path, "", http.StatusNotFound, nil)
	}
	call(t, rival, http.MethodPatch, at, `{"enabled":false}`, http.StatusNotFound, nil)
	call(t, rival, http.MethodPost, at+"/rotate", "", http.StatusNotFound, nil)
	call(t, rival, http.MethodGet, at+"/deliveries", "", http.StatusNotFound, nil)
	var listed struct{ Webhooks []struct{ ID string } }
	call(t, rival, http.MethodGet, "/api/webhooks", "", http.StatusOK, &listed)
	if len(listed.Webhooks) != 0 {
		t.Errorf("a rival sees %v", listed)
	}
	call(t, operator, http.MethodGet, "/api/webhooks", "", http.StatusOK, &listed)
	if len(listed.Webhooks) != 1 {
		t.Errorf("an operator sees %v", listed)
	}
	for _, c := range []struct {
		who    client
		filter string
		want   int
	}{{operator, "shop", 1}, {operator, "rival", 0}, {mine, "shop", 1}, {mine, "rival", 0}, {rival, "shop", 0}} {
		call(t, c.who, http.MethodGet, "/api/webhooks?client="+c.filter, "", http.StatusOK, &listed)
		if len(listed.Webhooks) != c.want {
			t.Errorf("of %q there are %v, want %d", c.filter, listed, c.want)
		}
	}
	call(t, operator, http.MethodPatch, at, `{"enabled":false}`, http.StatusOK, nil)
}

// Whatever is killed, in the middle of whatever it does, a merchant is told of each payment at least
// once.
func TestKillsLoseNoWebhook(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary")
	}
	t.Parallel()
	log := &processes.Output{}
	database := migrated.Postgres(t)
	broker := embeddedtest.Kafka(t, must(processes.Topics(4))...)
	s := must(processes.New(processes.Config{
		Binary: must(processes.Build(embeddedtest.Dir(t))), Database: database, Kafka: broker.Config, GroupPrefix: broker.Prefix, EventKeys: testKeys, Log: log,
		Env: []string{"WEBHOOK_TIMEOUT=1s"}, // and so a lease of 2 s
	}))
	const payers = 4
	if err := s.StartSeeded(t.Context(), payers); err != nil {
		t.Fatalf("%v: %s", err, log)
	}
	t.Cleanup(func() { s.StopAll() })
	there := newShop(t)
	resp, err := http.Post("http://"+s.Front("gateway")+"/api/webhooks", "application/json", strings.NewReader(`{"url":"`+there.URL+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	var made struct{ Secret string }
	err = json.NewDecoder(resp.Body).Decode(&made)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("%s, %v", resp.Status, err)
	}
	there.mu.Lock()
	there.secret = made.Secret
	there.mu.Unlock()
	c := &clients{t: t, gateway: s.Front("gateway")}
	c.start(payers)
	for _, name := range []string{"webhooks", "gateway", "worker", "payments", "db", "kafkasource", "webhooks"} {
		c.more(10)
		if err := s.Kill(name); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Start(t.Context(), name); err != nil {
			t.Fatalf("%v: %s", err, log)
		}
	}
	c.more(10)
	c.ending.Store(true)
	c.going.Wait()

	conn, err := postgres.Connect(t.Context(), database, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), `SELECT idempotency_key FROM payments WHERE status = 'SUCCESS'`)
	if err != nil {
		t.Fatal(err)
	}
	settled, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || int64(len(settled)) != c.settled.Load() {
		t.Errorf("%d payments are settled, and clients know of %d: %v", len(settled), c.settled.Load(), err)
	}
	eventually(t, "the merchant is told of each payment", func() error {
		types := there.types()
		for _, key := range settled {
			if types[key] != "payment.settled" {
				return fmt.Errorf("of %s it is told %q", key, types[key])
			}
		}
		return nil
	})
	t.Logf("%d payments, %d of them asked for again", len(settled), c.retried.Load())
	sum, err := ledger.ReadSum(t.Context(), conn)
	if err == nil {
		err = sum.Err()
	}
	if err != nil {
		t.Error(err)
	}
	there.mu.Lock()
	defer there.mu.Unlock()
	if len(there.errs) > 0 {
		t.Errorf("the merchant could not verify: %v", there.errs)
	}
}
