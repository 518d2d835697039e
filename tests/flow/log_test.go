package flow

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/rpc"
	"pgw/shared/trace"
	"pgw/tests/processes"
)

// Every log line about a payment, in every function, has its key and its trace. No line has an
// account's whole name, an owner's name, or a signing key.
func TestLinesOfLogs(t *testing.T) {
	trace.Use(sdk.NewTracerProvider())
	t.Cleanup(func() { trace.Use(nil) })
	out := &processes.Output{}
	s := start(t, options{serial: true, log: slog.NewJSONHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})})
	const from, to, unopened = "sender-account-4711", "receiver-account-0815", "unopened-account-42"
	s.open(1_000_000, from, to)

	s.expect(s.post(body("paid", from, to, "IDR", 5000), "X-Request-Id", "order-4711"), "200 SUCCESS committed")
	s.expect(s.pay("poor", from, to, "IDR", 5_000_000), "200 FAILED insufficient_funds")
	s.faults.set(func(f *faults) {
		f.rpc = func(called string) error {
			if strings.Contains(called, "/GetAccount") {
				return status.Error(codes.Unavailable, "away")
			}
			return nil
		}
	})
	s.expect(s.pay("no-wallet", from, to, "IDR", 5000), "502 FAILED wallet_unavailable")
	s.faults.set(func(f *faults) {
		f.rpc = inTwoSteps(func(called string) error {
			if strings.HasSuffix(called, "CommitReservation") {
				return status.Error(codes.FailedPrecondition, "never")
			}
			return nil
		})
	})
	s.expect(s.pay("hopeless", from, to, "IDR", 5000), "200 FAILED undeliverable")
	s.faults.set(func(f *faults) { f.rpc = nil })
	funded, err := event.New(event.TypeAccountFunded, "early", "/bank", unopened, event.AccountFunded{AccountID: unopened, AmountIDR: 700}, time.Now())
	if err == nil {
		err = s.keys.Sign(&funded)
	}
	if err != nil {
		t.Fatal(err)
	}
	if code := s.postEvent("http://"+s.Addr("db")+"/", funded); code != 400 {
		t.Errorf("funds for an account that is not open: %d", code)
	}

	found := map[string]bool{}
	for line := range strings.Lines(out.String()) {
		for _, secret := range []string{from, to, unopened, "Owner of", "MDEyMzQ1Njc4OTAxMjM0"} {
			if strings.Contains(line, secret) {
				t.Errorf("a line names %s: %s", secret, line)
			}
		}
		var fields struct {
			Msg, Function, Reason string
			Type                  string
			Key                   string `json:"idempotency_key"`
			Trace                 string `json:"trace_id"`
			Request               string `json:"request_id"`
		}
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		aboutPayment := fields.Msg == "answered" || fields.Msg == "a function could not be asked" || strings.HasPrefix(fields.Type, "pgw.payment.")
		if aboutPayment && (fields.Key == "" || fields.Trace == "") {
			t.Errorf("a line about a payment has no key, or no trace: %s", line)
		}
		if fields.Msg == "answered" && (fields.Request == "" || fields.Key == "paid" && fields.Request != "order-4711") {
			t.Errorf("a line about a request does not have its id: %s", line)
		}
		found[strings.TrimSpace(fields.Function+" "+fields.Msg+" "+fields.Key)] = true
	}
	for _, want := range []string{
		"gateway answered paid", "gateway answered poor", "gateway a function could not be asked no-wallet", "gateway answered no-wallet",
		"worker event refused hopeless", "kafkasource an event goes to the dead letters hopeless", "db event refused",
	} {
		if !found[want] {
			t.Errorf("there is no line %q among %v", want, found)
		}
	}
}

// Keys and tokens that clients and functions send, valid and invalid, are in no log line.
func TestNoSecretIsLogged(t *testing.T) {
	cfg, _, keys := keyed(t, map[string][]string{"shop": {"senders=SHOP"}})
	const token, admin, wrong = "a-token-between-functions-0123456789", "the-token-of-an-operator-0123456789", "a-token-that-nobody-knows-0123456789"
	open := func(s rpc.Security) *rpc.Callers {
		callers, err := s.Open(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return callers
	}
	hash := sha256.Sum256([]byte(admin))
	out := &processes.Output{}
	s := start(t, options{
		log: slog.NewJSONHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}), access: cfg,
		callers: open(rpc.Security{Mode: "required", Tokens: token, Admins: hex.EncodeToString(hash[:])}),
	})
	s.open(1_000_000, "SHOP", "BUYER")

	for key, code := range map[string]int{keys["shop"]: 200, keys["shop"] + "x": 401, "": 401} {
		resp, text := client{s, key}.do("POST", "/api/payments", body("k", "SHOP", "BUYER", "IDR", 5000))
		if resp.StatusCode != code {
			t.Errorf("%s %s; want %d", resp.Status, text, code)
		}
	}
	for shown, code := range map[string]codes.Code{token: codes.OK, admin: codes.OK, wrong: codes.Unauthenticated} {
		conn, err := open(rpc.Security{Tokens: shown}).Dial(s.Addr("db"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := dbv1.NewDbClient(conn).GetPayment(t.Context(), &dbv1.GetPaymentRequest{IdempotencyKey: "k"}); status.Code(err) != code {
			t.Errorf("%v; want %s", err, code)
		}
	}
	if !strings.Contains(out.String(), "answered") {
		t.Error("nothing was logged")
	}
	for _, secret := range []string{keys["shop"], token, admin, wrong, "MDEyMzQ1Njc4OTAxMjM0"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
}
