package gateway

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"pgw/functions/gateway/access"
	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// keeper is a ledger that has one payment, whoever asks.
type keeper struct {
	*neighbours
	has   payment.Record
	asked *dbv1.FindRequest
}

func (k *keeper) Invoke(ctx context.Context, method string, in, out any, opts ...grpc.CallOption) error {
	if out, ok := out.(*commonv1.Record); ok {
		k.asked = in.(*dbv1.FindRequest)
		proto.Merge(out, rpc.FromRecord(k.has))
		return nil
	}
	return k.neighbours.Invoke(ctx, method, in, out, opts...)
}

type outbox struct{ sent []cloudevents.Event }

func (o *outbox) Publish(_ context.Context, _, _ string, e cloudevents.Event) error {
	o.sent = append(o.sent, e)
	return nil
}

// keyedGateway is a gateway with the clients shop, which has two keys, and operator.
func keyedGateway(t *testing.T, db *keeper, out *outbox) (_ *function.Port, keys map[string]string) {
	t.Helper()
	keys = map[string]string{}
	var lines []string
	for id, options := range map[string][]string{
		"shop": {"senders=A"}, "shop-2": {"senders=A", "owner=shop"}, "operator": {"senders=*"},
	} {
		given, line, err := access.NewKey(id, options...)
		if err != nil {
			t.Fatal(err)
		}
		keys[id], lines = given, append(lines, line)
	}
	cfg := Config{AnswerIn: 50 * time.Millisecond, MinWaiting: 8, MaxWaiting: 8, Access: access.Config{Mode: access.Required, Keys: strings.Join(lines, ";")}}
	if err := cfg.Keys.Decode("k:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="); err != nil {
		t.Fatal(err)
	}
	f, err := Function.Make(cfg, function.Dependencies{
		Conns: map[string]grpc.ClientConnInterface{"fx": db, "wallet": db, "risk": db, "db": db}, Publisher: out,
	})
	if err != nil {
		t.Fatal(err)
	}
	return f, keys
}

func ask(f *function.Port, key, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1"+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(access.KeyHeader, key)
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, r)
	return w
}

// paidBy is a payment of a client from A to B.
func paidBy(client string) payment.Record {
	p := payment.Payment{Key: "k", Sender: "A", Receiver: "B", Currency: money.IDR, Minor: 20_000, AmountIDR: 20_000, Client: client}
	return payment.Record{Payment: p, Outcome: payment.Standing(payment.Committed, payment.ReasonCommitted, "r-1", false), Claimed: p.Fingerprint()}
}

// The gateway itself checks whose payment it is: a db of an earlier release does not.
func TestAClientSeesItsOwnPayments(t *testing.T) {
	db := &keeper{neighbours: &neighbours{}}
	f, keys := keyedGateway(t, db, &outbox{})
	for _, tc := range []struct {
		id, of string
		code   int
		told   bool // whose it is
	}{
		{"shop", "shop", 200, false},
		{"shop-2", "shop", 200, false},
		{"shop", "", 200, false}, // of a release before clients
		{"shop", "shop-2", 404, false},
		{"shop", "operator", 404, false},
		{"operator", "shop", 200, true},
	} {
		db.has = paidBy(tc.of)
		w := ask(f, keys[tc.id], http.MethodGet, "/api/payments/k", "")
		told := strings.Contains(w.Body.String(), `"client":"`+tc.of+`"`)
		if w.Code != tc.code || told != tc.told {
			t.Errorf("%s, of %q: %d %s", tc.id, tc.of, w.Code, w.Body)
		}
		operator := tc.id == "operator"
		if want := map[bool]string{true: "operator", false: "shop"}[operator]; db.asked.Client != want || db.asked.AnyClient != operator {
			t.Errorf("%s: asked for %v", tc.id, db.asked)
		}
	}
}

// A payment goes on with its client, and a payment of another client with the same key is not its outcome.
func TestAPaymentCarriesItsClient(t *testing.T) {
	db, out := &keeper{neighbours: &neighbours{}}, &outbox{}
	f, keys := keyedGateway(t, db, out)
	body := fromDollars(map[string]string{"currency": "IDR", "amount": "20000", "debit_currency": "IDR", "credit_currency": "IDR"})
	for _, id := range []string{"shop", "shop-2"} {
		ask(f, keys[id], http.MethodPost, "/api/payments", body)
	}
	if len(out.sent) != 2 {
		t.Fatalf("%d events", len(out.sent))
	}
	for _, e := range out.sent {
		if got, err := event.Decode[event.PaymentRequested](e); err != nil || got.Client != "shop" {
			t.Errorf("the event names %q, %v", got.Client, err)
		}
	}
	db.answer = func(_, out proto.Message) error {
		if _, ok := out.(*fxv1.ConvertResponse); ok {
			return status.Error(codes.NotFound, "no rate")
		}
		return nil
	}
	for of, want := range map[string]payment.Reason{"shop": payment.IdempotencyMismatch, "other": payment.UnsupportedCurrency, "": payment.UnsupportedCurrency} {
		db.has = paidBy(of)
		db.has.Claimed = payment.Fingerprint{1}
		if w := ask(f, keys["shop"], http.MethodPost, "/api/payments", body); !strings.Contains(w.Body.String(), string(want)) {
			t.Errorf("without a price, of %q: %s", of, w.Body)
		}
	}
}

// Two clients' requests with the same key and content wait for two results.
func TestFlightsBelongToTheirClients(t *testing.T) {
	fs, fp := newFlights[event.PaymentResult](), payment.Fingerprint{1}
	of := func(client string) flightID { return flightID{payment.ScopedKey{Client: client, Key: "k"}, fp} }
	a, leads := fs.start(of("a"), "1")
	b, also := fs.start(of("b"), "2")
	if !leads || !also || a == b {
		t.Fatal("two clients share a flight")
	}
	result := event.PaymentResult{Key: "k", Client: "b", Fingerprint: fp}
	if !fs.finish(flightID{result.Scoped(), result.Fingerprint}, result) {
		t.Error("nobody waits for b's result")
	}
	select {
	case <-a.done:
		t.Error("a got b's result")
	case <-b.done:
	}
}
