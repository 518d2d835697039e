package webhooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	dbv1 "pgw/proto/gen/db/v1"
	webhooksv1 "pgw/proto/gen/webhooks/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// patience is the time limit for steps that take a second on an idle machine.
const patience = time.Minute

// books is a ledger that has the payments that a test gives it.
type books struct {
	grpc.ClientConnInterface
	mu      sync.Mutex
	records map[string]payment.Record
	fails   atomic.Bool
}

func (b *books) Invoke(_ context.Context, method string, in, out any, _ ...grpc.CallOption) error {
	if method != dbv1.Db_Find_FullMethodName || b.fails.Load() {
		return status.Error(codes.Unavailable, "not now")
	}
	asked := in.(*dbv1.FindRequest)
	b.mu.Lock()
	defer b.mu.Unlock()
	r, found := b.records[asked.Client+" "+asked.IdempotencyKey]
	if !found {
		return status.Error(codes.NotFound, "there is no such payment")
	}
	proto.Merge(out.(proto.Message), rpc.FromRecord(r))
	return nil
}

// world is a database with the functions that use it.
type world struct {
	t     testing.TB
	owner string
	books *books
	keys  event.Keyring
	cfg   Config
}

// migrated is a database with the schema.
var migrated = embeddedtest.Template{Prepare: ledger.Migrate, Distribute: ledger.Distribute, DistributeRows: ledger.DistributeRows}

func newWorld(t testing.TB) *world {
	t.Helper()
	owner := migrated.Postgres(t)
	w := &world{t: t, owner: owner, books: &books{records: map[string]payment.Record{}}}
	if err := errors.Join(w.keys.Decode("k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=:v2"), w.cfg.SecretKeys.Decode("k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")); err != nil {
		t.Fatal(err)
	}
	w.cfg.DatabaseURL, w.cfg.Keys, w.cfg.PlainHTTP, w.cfg.Networks = owner, w.keys, true, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	w.cfg.Timeout, w.cfg.Each, w.cfg.All, w.cfg.MaxOfClient, w.cfg.Keep = 15*time.Second, 32, 512, 200, 720*time.Hour
	return w
}

// running is a function that runs.
type running struct {
	*Webhooks
	stop func(within time.Duration)
}

// open makes the function. Nothing runs in its background. It is the only replica, so a new endpoint does
// not have to spread.
func (w *world) open() *Webhooks {
	w.t.Helper()
	hooks, err := open(w.cfg, function.Dependencies{
		Conns: map[string]grpc.ClientConnInterface{"db": w.books}, Now: time.Now, Random: rand.Float64,
		Registry: function.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	hooks.spread = 0
	return hooks
}

// start makes the function and runs it.
func (w *world) start(schedule ...time.Duration) running {
	w.t.Helper()
	hooks := w.open()
	if len(schedule) > 0 {
		hooks.schedule = schedule
	}
	return w.run(hooks)
}

// run runs the function. stop ends it; what is under way after the given time is cut off.
func (w *world) run(hooks *Webhooks) running {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- hooks.run(ctx) }()
	r := running{Webhooks: hooks}
	var once sync.Once
	r.stop = func(within time.Duration) {
		once.Do(func() {
			cancel()
			<-ended
			limited, cancel := context.WithTimeout(context.Background(), within)
			defer cancel()
			hooks.close(limited)
		})
	}
	w.t.Cleanup(func() { r.stop(0) })
	return r
}

// settled makes a committed payment of a client, and the event of its result.
func (w *world) settled(client, key string) cloudevents.Event {
	w.t.Helper()
	return w.result(client, key, payment.Committed, "")
}

func (w *world) result(client, key string, state payment.ReservationStatus, reason payment.Reason) cloudevents.Event {
	w.t.Helper()
	p := payment.Payment{
		Key: key, Client: client, Sender: "ACC001", Receiver: "ACC002", AmountIDR: 1000, Currency: usd, Minor: 100, TxDate: "2026-01-31T09:30:00Z",
	}
	now := time.Now().Add(time.Second) // after the endpoint was made, by any clock
	r := payment.Record{Payment: p, Outcome: payment.Standing(state, reason, "ref of "+key, false), Claimed: p.Fingerprint(), ReservedAt: now, DecidedAt: now}
	w.books.mu.Lock()
	w.books.records[client+" "+key] = r
	w.books.mu.Unlock()
	e, err := event.Result("/pgw/worker", event.PaymentResult{Key: key, Client: client, Outcome: r.Outcome, Fingerprint: r.Claimed}, now)
	if err == nil {
		err = w.keys.Sign(&e)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// receiver is a client's program that takes webhooks.
type receiver struct {
	*httptest.Server
	mu   sync.Mutex
	got  map[string]int // by webhook-id
	last *http.Request
	body []byte
	wrap func(w http.ResponseWriter, r *http.Request) (handled bool)
	// secret verifies each request, if it is set.
	secret string
	wrong  error
}

func newReceiver(t testing.TB, wrap func(http.ResponseWriter, *http.Request) bool) *receiver {
	r := &receiver{got: map[string]int{}, wrap: wrap}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Server.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, in *http.Request) {
	body, err := io.ReadAll(in.Body)
	if err != nil || r.wrap != nil && r.wrap(w, in) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.secret != "" {
		library, err := standardwebhooks.NewWebhook(r.secret)
		if err == nil {
			err = library.Verify(body, in.Header)
		}
		r.wrong = errors.Join(r.wrong, err)
	}
	r.got[in.Header.Get("webhook-id")]++
	r.last, r.body = in, body
	w.WriteHeader(http.StatusNoContent)
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

func (w *world) add(hooks running, client, url string, more ...func(*webhooksv1.CreateEndpointRequest)) *webhooksv1.EndpointResponse {
	w.t.Helper()
	in := &webhooksv1.CreateEndpointRequest{Scope: &webhooksv1.Scope{Client: client}, Url: url}
	for _, change := range more {
		change(in)
	}
	got, err := hooks.CreateEndpoint(context.Background(), in)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func eventually(t testing.TB, what string, holds func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func (w *world) exec(sql string) {
	w.t.Helper()
	conn, err := pgx.Connect(context.Background(), w.owner)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), sql); err != nil {
		w.t.Fatal(err)
	}
}

// delivery waits until a delivery of an endpoint is as wanted.
func (w *world) delivery(hooks running, endpoint, client string, wanted func(*webhooksv1.Delivery) bool) *webhooksv1.Delivery {
	w.t.Helper()
	var found *webhooksv1.Delivery
	eventually(w.t, "the delivery", func() error {
		got, err := hooks.ListDeliveries(context.Background(), &webhooksv1.ListDeliveriesRequest{Scope: &webhooksv1.Scope{Client: client}, EndpointId: endpoint})
		if err != nil {
			return err
		}
		for _, d := range got.Deliveries {
			if wanted(d) {
				found = d
				return nil
			}
		}
		return fmt.Errorf("deliveries are %v", got.Deliveries)
	})
	return found
}

// A client is told what became of its payment, once, however often Kafka delivers the result. It is
// told its own payments only, and the signature is one that Standard Webhooks' library accepts.
func TestAClientIsToldOfItsPayment(t *testing.T) {
	w := newWorld(t)
	hooks := w.start()
	shop, rival := newReceiver(t, nil), newReceiver(t, nil)
	shop.secret = w.add(hooks, "shop", shop.URL+"/hook?a=b").Secret
	w.add(hooks, "rival", rival.URL)
	e := w.settled("shop", "k1")
	for range 3 {
		if err := hooks.handle(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the event arrives", func() error {
		if shop.count() != 1 {
			return errors.New("not yet")
		}
		return nil
	})
	var body struct {
		Type string
		Data struct {
			Key      string `json:"idempotency_key"`
			Sequence int
			Debit    string `json:"debit_amount"`
		}
	}
	shop.mu.Lock()
	defer shop.mu.Unlock()
	if err := errors.Join(json.Unmarshal(shop.body, &body), shop.wrong); err != nil || body.Type != typeSettled || body.Data.Key != "k1" || body.Data.Sequence != 2 || body.Data.Debit != "1000" {
		t.Errorf("%s: %v", shop.body, err)
	}
	if shop.last.URL.String() != "/hook?a=b" || shop.last.Header.Get("content-type") != "application/json" {
		t.Errorf("%s %v", shop.last.URL, shop.last.Header)
	}
	for id, n := range shop.got {
		if n != 1 || !strings.HasPrefix(id, "msg_") {
			t.Errorf("event %s arrived %d times", id, n)
		}
	}
	if rival.count() != 0 {
		t.Error("another client is told too")
	}
}

// A client's first event is told, although another replica has added the endpoint and this one has
// read the endpoints before.
func TestTheFirstEventIsTold(t *testing.T) {
	w := newWorld(t)
	here, there := w.open(), w.start()
	defer here.close(t.Context())
	if told, err := here.take(t.Context(), w.settled("shop", "k0")); told || err != nil {
		t.Fatalf("there is no endpoint yet: %t, %v", told, err)
	}
	there.spread = listAge
	shop := newReceiver(t, nil)
	w.add(there, "shop", shop.URL)
	if err := here.handle(t.Context(), w.settled("shop", "k1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the event arrives", func() error {
		if shop.count() != 1 {
			return errors.New("not yet")
		}
		return nil
	})
}

// What can't be told now is told later, and what is not of pgw is refused.
func TestEventsThatAreNotTold(t *testing.T) {
	w := newWorld(t)
	hooks := w.start()
	shop := newReceiver(t, nil)
	w.add(hooks, "shop", shop.URL)
	e := w.settled("shop", "k1")
	w.books.fails.Store(true)
	if err := hooks.handle(t.Context(), e); err == nil || event.Refused(err) {
		t.Errorf("the ledger is away: %v", err)
	}
	w.books.fails.Store(false)
	forged := e.Clone()
	forged.SetID("another")
	if err := hooks.handle(t.Context(), forged); !event.Refused(err) {
		t.Errorf("a forged event: %v", err)
	}
	other := w.settled("shop", "k2")
	w.books.mu.Lock()
	r := w.books.records["shop k2"]
	r.Claimed[0]++ // the key belongs to another request
	w.books.records["shop k2"] = r
	delete(w.books.records, "shop k3")
	w.books.mu.Unlock()
	if told, err := hooks.take(t.Context(), other); told || err != nil {
		t.Errorf("a mismatch is told: %t, %v", told, err)
	}
	if told, err := hooks.take(t.Context(), w.settled("nobody", "k1")); told || err != nil {
		t.Errorf("a client without endpoints: %t, %v", told, err)
	}
}

// An attempt that fails is made again, with the same id. Redirects are not followed, 410 disables the
// endpoint, and every attempt is listed with the first bytes of the answer.
func TestAttemptsThatFail(t *testing.T) {
	w := newWorld(t)
	hooks := w.start(time.Millisecond, time.Millisecond, time.Hour)
	var n atomic.Int32
	ids := map[string]bool{}
	var mu sync.Mutex
	shop := newReceiver(t, func(out http.ResponseWriter, in *http.Request) bool {
		mu.Lock()
		ids[in.Header.Get("webhook-id")] = true
		mu.Unlock()
		switch n.Add(1) {
		case 1:
			http.Redirect(out, in, "/elsewhere", http.StatusTemporaryRedirect)
		case 2:
			http.Error(out, strings.Repeat("busy ", 1000)+"\x00", http.StatusServiceUnavailable)
		default:
			return false
		}
		return true
	})
	got := w.add(hooks, "shop", shop.URL)
	if err := hooks.handle(t.Context(), w.settled("shop", "k1")); err != nil {
		t.Fatal(err)
	}
	d := w.delivery(hooks, got.Endpoint.EndpointId, "shop", func(d *webhooksv1.Delivery) bool { return d.Status == "delivered" })
	if len(d.Attempts) != 3 || d.Attempts[0].Result != resultRedirect || d.Attempts[1].Result != resultServerError || d.Attempts[2].Code != 204 {
		t.Errorf("attempts %v", d.Attempts)
	}
	if answer := d.Attempts[1].Answer; !strings.HasPrefix(answer, "busy busy") || len(answer) != maxAnswer {
		t.Errorf("the answer: %d bytes", len(answer))
	}
	mu.Lock()
	if len(ids) != 1 {
		t.Errorf("the attempts have the ids %v", ids)
	}
	mu.Unlock()

	gone := newReceiver(t, func(out http.ResponseWriter, _ *http.Request) bool { out.WriteHeader(http.StatusGone); return true })
	left := w.add(hooks, "shop", gone.URL, func(in *webhooksv1.CreateEndpointRequest) { in.Types = []string{typeFailed} })
	if err := hooks.handle(t.Context(), w.result("shop", "k2", payment.RolledBack, payment.InsufficientFunds)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "410 disables", func() error {
		found, err := hooks.ListEndpoints(t.Context(), &webhooksv1.ListEndpointsRequest{Scope: &webhooksv1.Scope{Client: "shop"}, EndpointId: left.Endpoint.EndpointId})
		if err == nil && (found.Endpoints[0].Enabled || found.Endpoints[0].DisabledReason != "gone") {
			err = fmt.Errorf("it is %v", found.Endpoints[0])
		}
		return err
	})
	w.delivery(hooks, got.Endpoint.EndpointId, "shop", func(d *webhooksv1.Delivery) bool { return d.Type == typeDisabled && d.Status == "delivered" })
	_, err := hooks.SendTest(t.Context(), &webhooksv1.SendTestRequest{Scope: &webhooksv1.Scope{Client: "shop"}, EndpointId: left.Endpoint.EndpointId})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a test of a disabled endpoint: %v", err)
	}
}

// An endpoint that has failed for five days is disabled.
func TestAnEndpointThatFailsTooLongIsDisabled(t *testing.T) {
	w := newWorld(t)
	hooks := w.start()
	broken := newReceiver(t, func(out http.ResponseWriter, _ *http.Request) bool { out.WriteHeader(500); return true })
	got := w.add(hooks, "shop", broken.URL)
	w.exec(`UPDATE webhook_endpoints SET failing_since = now() - interval '121 hours'`)
	if err := hooks.handle(t.Context(), w.settled("shop", "k1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is disabled", func() error {
		found, err := hooks.ListEndpoints(t.Context(), &webhooksv1.ListEndpointsRequest{Scope: &webhooksv1.Scope{Client: "shop"}, EndpointId: got.Endpoint.EndpointId})
		if err == nil && found.Endpoints[0].DisabledReason != "failing" {
			err = fmt.Errorf("it is %v", found.Endpoints[0])
		}
		return err
	})
}

// Endpoints that hang do not delay another's events, and an event for one that hangs is acknowledged.
func TestEndpointsThatHangDelayNobody(t *testing.T) {
	w := newWorld(t)
	w.cfg.All = 8
	hooks := w.start()
	release := make(chan struct{})
	defer close(release)
	hang := newReceiver(t, func(_ http.ResponseWriter, in *http.Request) bool {
		select {
		case <-release:
		case <-in.Context().Done():
		}
		return true
	})
	for range 20 {
		w.add(hooks, "slow", hang.URL)
	}
	fine := newReceiver(t, nil)
	w.add(hooks, "shop", fine.URL)
	for i := range 3 {
		if err := hooks.handle(t.Context(), w.settled("slow", fmt.Sprint("s", i))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		if err := hooks.handle(t.Context(), w.settled("shop", fmt.Sprint("k", i))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the others get their events while the attempts that hang are under way", func() error {
		if got := fine.count(); got != 20 || hooks.bounds.underWay(bad)+hooks.bounds.underWay(good) == 0 {
			return fmt.Errorf("%d of 20", got)
		}
		return nil
	})
}

// Secrets rotate: for a while both sign. An endpoint belongs to its client, and a name of DNS that
// leads inside is refused when pgw connects.
func TestSecretsRotate(t *testing.T) {
	w := newWorld(t)
	hooks := w.start()
	shop := newReceiver(t, nil)
	made := w.add(hooks, "shop", shop.URL)
	scope := &webhooksv1.Scope{Client: "shop"}
	rotated, err := hooks.RotateSecret(t.Context(), &webhooksv1.RotateSecretRequest{Scope: scope, EndpointId: made.Endpoint.EndpointId})
	if err != nil || rotated.Secret == made.Secret || rotated.Endpoint.OldSecretUntil == nil {
		t.Fatalf("%v, %v", rotated, err)
	}
	for i, secret := range []string{made.Secret, rotated.Secret} {
		shop.mu.Lock()
		shop.secret = secret
		shop.mu.Unlock()
		sent, err := hooks.SendTest(t.Context(), &webhooksv1.SendTestRequest{Scope: scope, EndpointId: made.Endpoint.EndpointId})
		if err != nil {
			t.Fatal(err)
		}
		w.delivery(hooks, made.Endpoint.EndpointId, "shop", func(d *webhooksv1.Delivery) bool { return d.EventId == sent.EventId && d.Status == "delivered" })
		shop.mu.Lock()
		if shop.wrong != nil {
			t.Errorf("secret %d: %v", i, shop.wrong)
		}
		shop.mu.Unlock()
	}
	rival := &webhooksv1.Scope{Client: "rival"}
	if _, err := hooks.RotateSecret(t.Context(), &webhooksv1.RotateSecretRequest{Scope: rival, EndpointId: made.Endpoint.EndpointId}); status.Code(err) != codes.NotFound {
		t.Errorf("another client rotates: %v", err)
	}
	v1a := w.add(hooks, "shop", shop.URL, func(in *webhooksv1.CreateEndpointRequest) { in.Signature = schemeV1a })
	if !strings.HasPrefix(v1a.Secret, "whpk_") || v1a.Endpoint.PublicKey != v1a.Secret {
		t.Errorf("v1a: %v", v1a)
	}
	for url, want := range map[string]codes.Code{"http://10.0.0.1/": codes.InvalidArgument, "https://example.com/": codes.OK, "nothing": codes.InvalidArgument} {
		if _, err := hooks.CreateEndpoint(t.Context(), &webhooksv1.CreateEndpointRequest{Scope: scope, Url: url}); status.Code(err) != want {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// Redelivery sends what failed, or all, since a time. What was withheld is sent then too.
func TestRedelivery(t *testing.T) {
	w := newWorld(t)
	hooks := w.start(time.Hour)
	var broken atomic.Bool
	broken.Store(true)
	shop := newReceiver(t, func(out http.ResponseWriter, _ *http.Request) bool {
		if broken.Load() {
			out.WriteHeader(http.StatusBadRequest)
			return true
		}
		return false
	})
	made := w.add(hooks, "shop", shop.URL)
	scope, id := &webhooksv1.Scope{Client: "shop"}, made.Endpoint.EndpointId
	if err := hooks.handle(t.Context(), w.settled("shop", "k1")); err != nil {
		t.Fatal(err)
	}
	w.delivery(hooks, id, "shop", func(d *webhooksv1.Delivery) bool { return len(d.Attempts) == 1 && d.NextAt != nil })
	off, on := false, true
	if _, err := hooks.UpdateEndpoint(t.Context(), &webhooksv1.UpdateEndpointRequest{Scope: scope, EndpointId: id, Enabled: &off}); err != nil {
		t.Fatal(err)
	}
	if err := hooks.handle(t.Context(), w.settled("shop", "k2")); err != nil {
		t.Fatal(err)
	}
	again := &webhooksv1.RedeliverRequest{Scope: scope, EndpointId: id, Since: rpc.Timestamp(time.Now().Add(-time.Hour))}
	if _, err := hooks.Redeliver(t.Context(), again); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a disabled endpoint: %v", err)
	}
	if _, err := hooks.UpdateEndpoint(t.Context(), &webhooksv1.UpdateEndpointRequest{Scope: scope, EndpointId: id, Enabled: &on}); err != nil {
		t.Fatal(err)
	}
	broken.Store(false)
	if got, err := hooks.Redeliver(t.Context(), again); err != nil || got.Count != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	eventually(t, "both arrive", func() error {
		if shop.count() != 2 {
			return fmt.Errorf("%d", shop.count())
		}
		return nil
	})
}

// Kills and faults lose nothing: each event arrives at least once, although receivers fail, results
// come twice, and functions are cut off in the middle of attempts.
func TestNothingIsLost(t *testing.T) {
	w := newWorld(t)
	events := 10_000
	if testing.Short() {
		events = 400
	}
	w.cfg.Timeout = time.Second // and so a lease of 2 s
	again := slices.Repeat([]time.Duration{50 * time.Millisecond}, 1000)
	hooks := w.start(again...)
	var random atomic.Uint64
	chance := func(percent uint64) bool { return rand.New(rand.NewPCG(random.Add(1), 7)).Uint64()%100 < percent }
	shop := newReceiver(t, func(out http.ResponseWriter, in *http.Request) bool {
		switch {
		case chance(5):
			out.WriteHeader(http.StatusInternalServerError)
		case chance(2):
			panic(http.ErrAbortHandler) // the connection breaks
		default:
			return false
		}
		return true
	})
	var endpoints []string
	for range 4 {
		endpoints = append(endpoints, w.add(hooks, "shop", shop.URL).Endpoint.EndpointId)
	}
	each := events / len(endpoints)
	var current atomic.Pointer[Webhooks]
	current.Store(hooks.Webhooks)
	var sending sync.WaitGroup
	work := make(chan string)
	for range 32 {
		sending.Go(func() {
			for key := range work {
				e := w.settled("shop", key)
				for delivered := 0; delivered < 2; { // as a source that delivers it twice, and again after each error
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					if err := current.Load().handle(ctx, e); err == nil {
						delivered++
					}
					cancel()
				}
			}
		})
	}
	for i := range each {
		if i > 0 && i%(each/4) == 0 {
			old := hooks
			hooks = w.start(again...)
			current.Store(hooks.Webhooks)
			old.stop(0) // its attempts are cut off
		}
		work <- fmt.Sprint("k", i)
	}
	close(work)
	sending.Wait()
	conn, err := pgx.Connect(t.Context(), w.owner)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	last, since := -1, time.Now()
	for {
		var left int
		if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM webhook_deliveries WHERE status <> 'DELIVERED'`).Scan(&left); err != nil {
			t.Fatal(err)
		}
		if left == 0 {
			break
		}
		if left != last {
			last, since = left, time.Now()
		}
		if time.Since(since) > patience {
			t.Fatalf("%d deliveries are left", left)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if got := shop.count(); got != each {
		t.Errorf("%d events arrived, want %d", got, each)
	}
	var rows, attempts int
	if err := conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM webhook_deliveries), (SELECT count(*) FROM webhook_attempts)`).Scan(&rows, &attempts); err != nil {
		t.Fatal(err)
	}
	if rows != each*len(endpoints) {
		t.Errorf("%d deliveries, want %d", rows, each*len(endpoints))
	}
	t.Logf("%d deliveries with %d attempts", rows, attempts)
}

// While the function closes, it waits for the attempts under way and begins no other. An event that it
// takes meanwhile is sent by the next process.
func TestClosingBeginsNoAttempt(t *testing.T) {
	w := newWorld(t)
	w.cfg.Timeout = time.Second // and so a lease of 2 s
	hooks := w.start()
	arrived, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	slow := newReceiver(t, func(http.ResponseWriter, *http.Request) bool {
		once.Do(func() { close(arrived) })
		<-release
		return false
	})
	var closed atomic.Bool
	idle := newReceiver(t, func(out http.ResponseWriter, _ *http.Request) bool {
		if !closed.Load() {
			t.Error("an attempt began while the function closed")
		}
		return false
	})
	w.add(hooks, "slow", slow.URL)
	w.add(hooks, "idle", idle.URL)
	taken := make(chan error, 1)
	go func() { taken <- hooks.handle(t.Context(), w.settled("slow", "k1")) }()
	<-arrived
	ended := make(chan struct{})
	go func() { hooks.stop(patience); close(ended) }()
	eventually(t, "closing", func() error {
		hooks.mu.Lock()
		defer hooks.mu.Unlock()
		if !hooks.closing {
			return errors.New("not yet")
		}
		return nil
	})
	if err := hooks.handle(t.Context(), w.settled("idle", "k2")); err != nil {
		t.Error(err)
	}
	close(release)
	<-ended
	closed.Store(true)
	if err := <-taken; err != nil {
		t.Error(err)
	}
	w.start()
	eventually(t, "the next process", func() error {
		if idle.count() != 1 {
			return errors.New("has not sent the event")
		}
		return nil
	})
}

// The figure of the issue: deliveries a second to 100 endpoints, of which 20 hang.
func BenchmarkDeliveries(b *testing.B) {
	w := newWorld(b)
	hooks := w.start()
	release := make(chan struct{})
	hang := newReceiver(b, func(_ http.ResponseWriter, in *http.Request) bool {
		select {
		case <-release:
		case <-in.Context().Done():
		}
		return true
	})
	defer close(release)
	var took sync.Mutex
	var waits []time.Duration
	begun := map[string]time.Time{}
	fine := newReceiver(b, func(_ http.ResponseWriter, in *http.Request) bool {
		took.Lock()
		defer took.Unlock()
		waits = append(waits, time.Since(begun[in.Header.Get("webhook-id")]))
		return false
	})
	const clients = 100
	for i := range clients {
		to := fine
		if i%5 == 0 {
			to = hang
		}
		w.add(hooks, fmt.Sprint("client", i), to.URL)
	}
	events := make([]cloudevents.Event, b.N)
	want := 0
	for i := range events {
		client := fmt.Sprint("client", i%clients)
		events[i] = w.settled(client, fmt.Sprint("k", i))
		if i%clients%5 != 0 {
			want++
		}
	}
	b.ResetTimer()
	var sending sync.WaitGroup
	next := make(chan int)
	for range 200 { // four consumers with fifty deliveries each, as the source has
		sending.Go(func() {
			for i := range next {
				took.Lock()
				begun[eventID(fmt.Sprint("client", i%clients), fmt.Sprint("k", i), factDecided)] = time.Now()
				took.Unlock()
				if err := hooks.handle(context.Background(), events[i]); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range events {
		next <- i
	}
	close(next)
	sending.Wait()
	eventually(b, "all arrive at the endpoints that work", func() error {
		if got := fine.count(); got < want {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	if slices.Sort(waits); len(waits) > 0 {
		b.ReportMetric(waits[len(waits)*99/100].Seconds()*1000, "p99-ms")
	}
}
