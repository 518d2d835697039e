package ledger

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"pgw/shared/postgres"
)

var hookTerms = Terms{Lease: time.Minute, Keep: 30 * 24 * time.Hour}

// openHooks opens the store with the rights of its function.
func openHooks(t testing.TB) (*Webhooks, string) {
	t.Helper()
	owner := migrated.Postgres(t)
	login := loginTo(t, owner, "pgw_test_webhooks")
	if err := Roles(t.Context(), owner, Login{login, WebhooksRole}); err != nil {
		t.Fatal(err)
	}
	w, err := OpenWebhooks(postgres.Config{URL: login, Name: "test", MaxConns: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w, owner
}

func addEndpoint(t testing.TB, w *Webhooks, client string, types ...string) uuid.UUID {
	t.Helper()
	e := Endpoint{
		ID: uuid.New(), Client: client, URL: "https://example.com/" + client, Types: types, Format: "webhook",
		Secrets: []SealedSecret{{ID: uuid.New(), Kind: "v1", KeyID: "k1", Sealed: []byte("sealed")}},
	}
	if err := w.AddEndpoint(t.Context(), e, 5); err != nil {
		t.Fatal(err)
	}
	return e.ID
}

func hookEvent(id, client, of, key string, sequence int) WebhookEvent {
	return WebhookEvent{ID: id, Client: client, Type: of, Payment: key, Sequence: sequence, Data: "{}", At: time.Now().Add(time.Second)}
}

func take(t *testing.T, w *Webhooks, id uuid.UUID) []Delivery {
	t.Helper()
	got, err := w.Take(t.Context(), []uuid.UUID{id}, []int32{100}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func statuses(t *testing.T, w *Webhooks, id uuid.UUID) (all []DeliveryStatus) {
	t.Helper()
	found, err := w.Deliveries(t.Context(), Scope{All: true}, id, DeliveryFilter{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range found {
		all = append(all, d.Status)
	}
	return all
}

// An event that Kafka delivers several times at once is one row for each endpoint of its client that
// wants its type, and it is sent once.
func TestAnEventIsOneRowForEachEndpoint(t *testing.T) {
	w, _ := openHooks(t)
	all, settled, other := addEndpoint(t, w, "shop"), addEndpoint(t, w, "shop", "payment.settled"), addEndpoint(t, w, "rival")
	refundsOnly := addEndpoint(t, w, "shop", "payment.refunded")
	var group sync.WaitGroup
	var mu sync.Mutex
	var sent []Delivery
	for range 16 {
		group.Go(func() {
			got, err := w.AddEvent(t.Context(), hookEvent("msg_1", "shop", "payment.settled", "k", SequenceDecided), []uuid.UUID{all}, hookTerms)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			sent = append(sent, got...)
		})
	}
	group.Wait()
	if len(sent) != 1 || sent[0].Endpoint != all {
		t.Errorf("sent at once: %v; want one, to the endpoint that the caller has taken", sent)
	}
	if got := take(t, w, settled); len(got) != 1 || got[0].Event.ID != "msg_1" || got[0].Event.Sequence != SequenceDecided {
		t.Errorf("due for the second endpoint: %+v", got)
	}
	for _, id := range []uuid.UUID{all, settled, other, refundsOnly} {
		if got := take(t, w, id); len(got) > 0 {
			t.Errorf("%s gets %+v", id, got)
		}
	}
}

// The past is not told: neither what happened before an endpoint was made, nor what is so old that
// its row may be deleted.
func TestAReplayDoesNotTellThePast(t *testing.T) {
	w, _ := openHooks(t)
	id := addEndpoint(t, w, "shop")
	early, old := hookEvent("msg_1", "shop", "payment.settled", "k", 2), hookEvent("msg_2", "shop", "payment.settled", "l", 2)
	early.At = time.Now().Add(-time.Hour)
	old.At = time.Now().Add(-31 * 24 * time.Hour)
	for _, e := range []WebhookEvent{early, old} {
		if _, err := w.AddEvent(t.Context(), e, nil, hookTerms); err != nil {
			t.Fatal(err)
		}
	}
	if got := statuses(t, w, id); len(got) > 0 {
		t.Errorf("told: %v", got)
	}
}

// Refunds take the places behind the payment's decision, each its own, also when they arrive at once.
func TestRefundsHavePlacesOfTheirOwn(t *testing.T) {
	w, _ := openHooks(t)
	id := addEndpoint(t, w, "shop")
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			if _, err := w.AddEvent(t.Context(), hookEvent(fmt.Sprint("msg_", i), "shop", "payment.refunded", "k", 0), nil, hookTerms); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	var places []int
	for _, d := range take(t, w, id) {
		places = append(places, d.Event.Sequence)
	}
	slices.Sort(places)
	if want := []int{3, 4, 5, 6, 7, 8, 9, 10}; !slices.Equal(places, want) {
		t.Errorf("places %v, want %v", places, want)
	}
}

// A delivery is taken by one of several functions, and is due again when the one that took it dies.
func TestADeliveryHasOneSenderUntilItsLeaseEnds(t *testing.T) {
	w, _ := openHooks(t)
	id := addEndpoint(t, w, "shop")
	for i := range 40 {
		if _, err := w.AddEvent(t.Context(), hookEvent(fmt.Sprint("msg_", i), "shop", "payment.settled", fmt.Sprint("k", i), 2), nil, hookTerms); err != nil {
			t.Fatal(err)
		}
	}
	due, err := w.Due(t.Context())
	if err != nil || !slices.Equal(due, []uuid.UUID{id}) {
		t.Fatalf("due: %v, %v", due, err)
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]int{}
	for range 8 {
		group.Go(func() {
			got, err := w.Take(t.Context(), []uuid.UUID{id}, []int32{10}, time.Nanosecond)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, d := range got {
				seen[d.Event.ID]++
			}
		})
	}
	group.Wait()
	if again := take(t, w, id); len(again) != 40 {
		t.Errorf("after the lease %d are due, want all 40", len(again))
	}
	if due, err = w.Due(t.Context()); err != nil || len(due) > 0 {
		t.Errorf("while they are taken: due %v, %v", due, err)
	}
	if err := w.Release(t.Context(), id, "msg_7"); err != nil {
		t.Fatal(err)
	}
	if again := take(t, w, id); len(again) != 1 || again[0].Event.ID != "msg_7" {
		t.Errorf("released: %v", again)
	}
}

// Attempts follow the schedule until one succeeds or none is left, and are listed.
func TestAttemptsAreRecorded(t *testing.T) {
	w, _ := openHooks(t)
	id := addEndpoint(t, w, "shop")
	if _, err := w.AddEvent(t.Context(), hookEvent("msg_1", "shop", "payment.settled", "k", 2), nil, hookTerms); err != nil {
		t.Fatal(err)
	}
	finish := func(a Attempt) {
		t.Helper()
		a.Endpoint, a.Event, a.At = id, "msg_1", time.Now()
		if _, err := w.Finish(t.Context(), a, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	finish(Attempt{Code: 503, Result: "status", Answer: "busy", Took: 3 * time.Millisecond, Retry: time.Nanosecond})
	if got, err := w.Endpoints(t.Context(), Scope{Client: "shop"}, id, 0); err != nil || len(got) != 1 || got[0].FailingSince.IsZero() {
		t.Fatalf("after a failure: %+v, %v", got, err)
	}
	finish(Attempt{Result: "timeout"}) // the schedule ends
	if got := statuses(t, w, id); !slices.Equal(got, []DeliveryStatus{DeliveryFailed}) {
		t.Fatalf("after the last attempt: %v", got)
	}
	if n, err := w.Redeliver(t.Context(), Scope{Client: "rival"}, id, Redelivery{Event: "msg_1"}); err != nil || n != 0 {
		t.Errorf("another client redelivers %d, %v", n, err)
	}
	if n, err := w.Redeliver(t.Context(), Scope{Client: "shop"}, id, Redelivery{Event: "msg_1"}); err != nil || n != 1 {
		t.Fatalf("redelivered %d, %v", n, err)
	}
	if got := take(t, w, id); len(got) != 1 || got[0].Tries != 0 {
		t.Fatalf("sent again: %+v", got)
	}
	finish(Attempt{Code: 204, Result: "delivered", Delivered: true})
	finish(Attempt{Result: "timeout", Retry: time.Hour}) // a second sender was slower, and failed
	found, err := w.Deliveries(t.Context(), Scope{Client: "shop"}, id, DeliveryFilter{Limit: 10})
	if err != nil || len(found) != 1 || found[0].Status != DeliveryDelivered || len(found[0].Attempts) != 4 || found[0].Ended.IsZero() {
		t.Fatalf("%+v, %v", found, err)
	}
	if a := found[0].Attempts[0]; a.Number != 1 || a.Code != 503 || a.Answer != "busy" || a.Took != 3*time.Millisecond {
		t.Errorf("the first attempt: %+v", a)
	}
	if n, err := w.Redeliver(t.Context(), Scope{All: true}, id, Redelivery{Since: time.Now().Add(-time.Hour)}); err != nil || n != 0 {
		t.Errorf("redelivered what was delivered: %d, %v", n, err)
	}
	if n, err := w.Redeliver(t.Context(), Scope{All: true}, id, Redelivery{Since: time.Now().Add(-time.Hour), Delivered: true}); err != nil || n != 1 {
		t.Errorf("redelivered %d, %v", n, err)
	}
	if got, err := w.Deliveries(t.Context(), Scope{Client: "rival"}, id, DeliveryFilter{Limit: 10}); err != nil || len(got) > 0 {
		t.Errorf("another client sees %v, %v", got, err)
	}
}

// An endpoint that is disabled withholds what waits and what comes, tells the client's other
// endpoints, and gets everything when it is enabled and asks for it.
func TestADisabledEndpointWithholds(t *testing.T) {
	w, _ := openHooks(t)
	id, other := addEndpoint(t, w, "shop"), addEndpoint(t, w, "shop")
	add := func(event string) {
		t.Helper()
		if _, err := w.AddEvent(t.Context(), hookEvent(event, "shop", "payment.settled", event, 2), nil, hookTerms); err != nil {
			t.Fatal(err)
		}
	}
	add("msg_1")
	failed := Attempt{Endpoint: id, Event: "msg_1", At: time.Now(), Result: "timeout", Retry: time.Hour}
	if failing, err := w.Finish(t.Context(), failed, time.Hour); err != nil || failing {
		t.Fatalf("after one failure: %t, %v", failing, err)
	}
	if failing, err := w.Finish(t.Context(), failed, 0); err != nil || !failing {
		t.Fatalf("it has failed for longer than nothing: %t, %v", failing, err)
	}
	notice := func(e Endpoint) WebhookEvent {
		return hookEvent("msg_off_"+e.ID.String(), e.Client, "webhook.disabled", "", 0)
	}
	for i := range 2 {
		if disabled, err := w.Disable(t.Context(), id, DisabledFailing, hookTerms, notice); err != nil || disabled != (i == 0) {
			t.Fatalf("disabled the %d. time: %t, %v", i+1, disabled, err)
		}
	}
	add("msg_2")
	if got := statuses(t, w, id); !slices.Equal(got, []DeliveryStatus{DeliveryWithheld, DeliveryWithheld, DeliveryWithheld}) {
		t.Errorf("the disabled one: %v", got)
	}
	var told []string
	for _, d := range take(t, w, other) {
		told = append(told, d.Event.Type)
	}
	if slices.Sort(told); !slices.Equal(told, []string{"payment.settled", "payment.settled", "webhook.disabled"}) {
		t.Errorf("the other endpoint is told %v", told)
	}
	if n, err := w.Redeliver(t.Context(), Scope{Client: "shop"}, id, Redelivery{}); err != nil || n != 0 {
		t.Errorf("a disabled endpoint gets %d, %v", n, err)
	}
	enabled := EndpointEnabled
	if err := w.ChangeEndpoint(t.Context(), Scope{Client: "shop"}, id, EndpointChange{Status: &enabled}); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Endpoints(t.Context(), Scope{All: true}, id, 0); err != nil || got[0].Reason != "" || !got[0].FailingSince.IsZero() || !got[0].Disabled.IsZero() {
		t.Errorf("enabled: %+v, %v", got, err)
	}
	if n, err := w.Redeliver(t.Context(), Scope{Client: "shop"}, id, Redelivery{}); err != nil || n != 3 {
		t.Errorf("redelivered %d, %v", n, err)
	}
}

// Changes are the owner's alone, and every change is seen.
func TestAnEndpointIsItsClients(t *testing.T) {
	w, _ := openHooks(t)
	id := addEndpoint(t, w, "shop", "payment.settled")
	url, types, rival, shop := "https://example.com/new", []string{}, Scope{Client: "rival"}, Scope{Client: "shop"}
	change := EndpointChange{URL: &url, Types: &types}
	secret := SealedSecret{ID: uuid.New(), Kind: "v1", KeyID: "k1", Sealed: []byte("second")}
	for what, err := range map[string]error{
		"change": w.ChangeEndpoint(t.Context(), rival, id, change), "delete": w.DeleteEndpoint(t.Context(), rival, id),
		"rotate": w.RotateSecret(t.Context(), rival, id, secret, time.Hour), "test": w.AddTest(t.Context(), rival, id, hookEvent("msg_t", "", "webhook.test", "", 0)),
	} {
		if !errors.Is(err, ErrNoEndpoint) {
			t.Errorf("another client may %s: %v", what, err)
		}
	}
	versions := map[string]bool{}
	seen := func() {
		t.Helper()
		v, err := w.Version(t.Context())
		if err != nil || versions[v] {
			t.Errorf("the version %q did not change: %v", v, err)
		}
		versions[v] = true
	}
	seen()
	if err := w.ChangeEndpoint(t.Context(), shop, id, change); err != nil {
		t.Fatal(err)
	}
	seen()
	for i, overlap := range []time.Duration{time.Hour, time.Hour, 0} {
		secret.ID = uuid.New()
		if err := w.RotateSecret(t.Context(), shop, id, secret, overlap); err != nil {
			t.Fatal(err)
		}
		seen()
		want := 2
		if overlap == 0 {
			want = 1
		}
		got, err := w.Endpoints(t.Context(), shop, id, 0)
		if err != nil || got[0].URL != url || len(got[0].Types) > 0 || len(got[0].Secrets) != want || !got[0].Secrets[0].Expires.IsZero() {
			t.Errorf("after rotation %d: %+v, %v", i+1, got, err)
		}
	}
	if n, err := w.Reseal(t.Context(), "k2", func(uuid.UUID, SealedSecret) ([]byte, error) { return []byte("anew"), nil }); err != nil || n < 1 {
		t.Errorf("encrypted anew: %d, %v", n, err)
	}
	if err := w.AddTest(t.Context(), shop, id, hookEvent("msg_t", "", "webhook.test", "", 0)); err != nil || len(take(t, w, id)) != 1 {
		t.Errorf("a test event: %v", err)
	}
	if b, err := w.Backlog(t.Context()); err != nil || b.Pending != 1 || b.Enabled != 1 {
		t.Errorf("the backlog: %+v, %v", b, err)
	}
	if err := w.DeleteEndpoint(t.Context(), shop, id); err != nil {
		t.Fatal(err)
	}
	seen()
	for range 5 {
		addEndpoint(t, w, "shop")
	}
	if err := w.AddEndpoint(t.Context(), Endpoint{ID: uuid.New(), Client: "shop", URL: "https://a", Format: "webhook"}, 5); !errors.Is(err, ErrManyEndpoints) {
		t.Errorf("a sixth endpoint: %v", err)
	}
}

// Old events are deleted, unless they wait.
func TestOldEventsAreDeleted(t *testing.T) {
	w, owner := openHooks(t)
	id := addEndpoint(t, w, "shop")
	for _, event := range []string{"msg_1", "msg_2", "msg_3"} {
		if _, err := w.AddEvent(t.Context(), hookEvent(event, "shop", "payment.settled", event, 2), nil, hookTerms); err != nil {
			t.Fatal(err)
		}
	}
	for _, event := range []string{"msg_1", "msg_3"} {
		if _, err := w.Finish(t.Context(), Attempt{Endpoint: id, Event: event, At: time.Now(), Delivered: true, Code: 200}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := connect(t, owner).Exec(t.Context(), `UPDATE webhook_events SET created_at = now() - interval '31 days' WHERE event_id <> 'msg_3'`); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Tidy(t.Context(), hookTerms.Keep, 100); err != nil || n != 1 {
		t.Errorf("deleted %d, %v", n, err)
	}
	if got := statuses(t, w, id); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
}

// The logins of the other functions do not read secrets, and that of webhooks does not read the
// books.
func TestOnlyWebhooksReadsWebhooks(t *testing.T) {
	_, owner := openHooks(t)
	logins := map[string]string{}
	for _, l := range []Login{
		{loginTo(t, owner, "pgw_test_ledger"), LedgerRole}, {loginTo(t, owner, "pgw_test_reader"), ReaderRole}, {loginTo(t, owner, "pgw_test_webhooks"), WebhooksRole},
	} {
		if err := Roles(t.Context(), owner, l); err != nil {
			t.Fatal(err)
		}
		logins[l.Role] = l.URL
	}
	for role, url := range logins {
		as := connect(t, url)
		for _, table := range []string{"webhook_endpoints", "webhook_secrets", "webhook_events", "webhook_deliveries", "webhook_attempts", "balances", "payments", "reservations"} {
			_, err := as.Exec(t.Context(), "SELECT * FROM "+table)
			if allowed := strings.HasPrefix(table, "webhook_") == (role == WebhooksRole); (err == nil) != allowed {
				t.Errorf("%s reads %s: %v", role, table, err)
			}
		}
	}
}
