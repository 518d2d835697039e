package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// neighbours are the functions that a gateway asks. They approve the payment unless answer changes
// that.
type neighbours struct {
	grpc.ClientConnInterface
	answer func(in, out proto.Message) error

	mu      sync.Mutex
	refused []*dbv1.CloseRequest
}

func (n *neighbours) Invoke(ctx context.Context, method string, in, out any, opts ...grpc.CallOption) error {
	switch out := out.(type) {
	case *commonv1.Outcome:
		request := in.(*dbv1.CloseRequest)
		n.mu.Lock()
		n.refused = append(n.refused, request)
		n.mu.Unlock()
		proto.Merge(out, rpc.FromOutcome(payment.Standing(payment.RolledBack, payment.Reason(request.Reason), "r", false)))
	case *commonv1.Record:
		return status.Error(codes.NotFound, "no such payment")
	default:
		if err := (agreeable{}).Invoke(ctx, method, in, out, opts...); err != nil {
			return err
		}
	}
	if n.answer == nil {
		return nil
	}
	return n.answer(in.(proto.Message), out.(proto.Message))
}

type publishes func() error

func (p publishes) Publish(context.Context, string, string, cloudevents.Event) error { return p() }

func gatewayBeside(t *testing.T, n *neighbours, publish publishes) *function.Port {
	t.Helper()
	cfg := Config{AnswerIn: 300 * time.Millisecond, MinWaiting: 8, MaxWaiting: 8}
	if err := cfg.Keys.Decode("k:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="); err != nil {
		t.Fatal(err)
	}
	f, err := Function.Make(cfg, function.Dependencies{
		Conns: map[string]grpc.ClientConnInterface{"fx": n, "wallet": n, "risk": n, "db": n}, Publisher: publish,
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func payAt(f *function.Port) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/api/payments", strings.NewReader(
		`{"sender_id":"A","receiver_id":"B","currency":"USD","amount":1,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"k"}`))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, r)
	return w
}

func notPublished() error { return errors.New("published, and should not be") }

// A newer version of risk refuses for a reason that the gateway does not know.
func TestAnUnknownRefusalOfRiskCounts(t *testing.T) {
	n := &neighbours{answer: func(_, out proto.Message) error {
		if out, ok := out.(*riskv1.EvaluateResponse); ok {
			out.Allow, out.Reason = false, "sanctions_list"
		}
		return nil
	}}
	w := payAt(gatewayBeside(t, n, notPublished))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"reason":"risk_other"`) || !strings.Contains(w.Body.String(), "sanctions_list") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if len(n.refused) != 1 || n.refused[0].Reason != string(payment.RiskOther) || n.refused[0].Payment.AmountIdr != 15500 {
		t.Errorf("recorded: %v", n.refused)
	}
}

// An answer says how long another function took only if it has what was asked for, as openapi.yaml has it.
func TestOnlyWhatWasReadIsTimed(t *testing.T) {
	n := &neighbours{answer: func(_, out proto.Message) error {
		if _, random := out.(*walletv1.GetRandomAccountsResponse); random {
			return status.Error(codes.Unavailable, "down")
		}
		return nil
	}}
	f := gatewayBeside(t, n, notPublished)
	for path, want := range map[string]int{"/api/random-accounts": http.StatusBadGateway, "/api/payments/k": http.StatusNotFound} {
		w := httptest.NewRecorder()
		f.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://127.0.0.1"+path, nil))
		if timed := w.Header().Get("Server-Timing"); w.Code != want || timed != "" {
			t.Errorf("%s: %d, Server-Timing %q", path, w.Code, timed)
		}
	}
}

// If a refusal cannot be recorded, the client does not get it: an earlier request with the key may
// still settle.
func TestARefusalThatCouldNotBeRecordedIsNotReported(t *testing.T) {
	n := &neighbours{answer: func(_, out proto.Message) error {
		switch out := out.(type) {
		case *walletv1.GetAccountResponse:
			out.BalanceIdr = 1
		case *commonv1.Outcome:
			return status.Error(codes.Unavailable, "down")
		}
		return nil
	}}
	w := payAt(gatewayBeside(t, n, notPublished))
	if w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), `"reason":"ledger_unavailable"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// The port of a new system is open before there are rates and accounts. A payment at that time is
// not refused for the lack of them; the gateway asks the client to try again.
func TestNoPaymentIsTakenBeforeThereAreRatesAndAccounts(t *testing.T) {
	var lacks atomic.Value // what the system lacks; an abandoned call may still read it
	lacks.Store("")
	n := &neighbours{answer: func(_, out proto.Message) error {
		missing := lacks.Load()
		switch out := out.(type) {
		case *fxv1.ListRatesResponse:
			if missing == "rates" {
				out.Rates = out.Rates[:1] // rupiah in rupiah
			}
		case *walletv1.GetRandomAccountsResponse:
			if missing == "accounts" {
				out.AccountIds = nil
			}
		}
		if missing == "fx" {
			return status.Error(codes.Unavailable, "down")
		}
		return nil
	}}
	published := 0
	f := gatewayBeside(t, n, func() error { published++; return nil })
	for _, missing := range []string{"rates", "accounts"} {
		lacks.Store(missing)
		w := payAt(f)
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "no "+missing+" yet") {
			t.Errorf("without %s: %d %s", missing, w.Code, w.Body)
		}
		if err := f.Ready(t.Context()); err == nil {
			t.Errorf("ready without %s", missing)
		}
	}
	// If a function cannot be asked, nothing counts as missing.
	lacks.Store("fx")
	if err := f.Ready(t.Context()); err != nil {
		t.Errorf("not ready while fx is down: %v", err)
	}
	if w := payAt(f); w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), "fx_unavailable") {
		t.Errorf("while fx is down: %d %s", w.Code, w.Body)
	}
	if published != 0 {
		t.Errorf("%d payments were published", published)
	}
	lacks.Store("")
	if err := f.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	lacks.Store("rates") // they were found once, so the gateway does not ask again
	if payAt(f); published != 1 {
		t.Errorf("%d payments were published", published)
	}
}

// Only a request that was certainly not sent is reported as not sent. Every other request may
// settle, and waits for its result.
func TestOnlyAnUnsentRequestIsReportedAsNotSent(t *testing.T) {
	w := payAt(gatewayBeside(t, &neighbours{}, func() error { return kafka.ErrNotSent }))
	if w.Code != http.StatusBadGateway || !strings.Contains(w.Body.String(), `"reason":"queue_publish_error"`) || !strings.Contains(w.Body.String(), "an earlier one") {
		t.Errorf("not sent: %d %s", w.Code, w.Body)
	}
	w = payAt(gatewayBeside(t, &neighbours{}, func() error { return errors.New("the acknowledgement is lost") }))
	if w.Code != http.StatusGatewayTimeout || !strings.Contains(w.Body.String(), `"reason":"queue_timeout"`) || !strings.Contains(w.Body.String(), `"deadline"`) {
		t.Errorf("perhaps sent: %d %s", w.Code, w.Body)
	}
}

// both is a wallet that reads both accounts by one call.
type both struct {
	*neighbours
	accounts func(current bool) []*walletv1.GetAccountResponse
	err      error
	calls    atomic.Int64
}

func (b *both) Invoke(ctx context.Context, method string, in, out any, opts ...grpc.CallOption) error {
	switch out := out.(type) {
	case *walletv1.GetAccountsResponse:
		b.calls.Add(1)
		if b.err == nil {
			out.Accounts = b.accounts(in.(*walletv1.GetAccountsRequest).Current)
		}
		return b.err
	case *walletv1.GetAccountResponse:
		b.calls.Add(1)
	}
	return b.neighbours.Invoke(ctx, method, in, out, opts...)
}

// gateway is one beside this wallet. Kafka is away.
func (b *both) gateway(t *testing.T) *function.Port {
	t.Helper()
	cfg := Config{AnswerIn: 20 * time.Second, MinWaiting: 8, MaxWaiting: 8}
	if err := cfg.Keys.Decode("k:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="); err != nil {
		t.Fatal(err)
	}
	f, err := Function.Make(cfg, function.Dependencies{
		Conns:     map[string]grpc.ClientConnInterface{"fx": b, "wallet": b, "risk": b, "db": b},
		Publisher: publishes(func() error { return kafka.ErrNotSent }),
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What a standby shows may be a moment old. Before a payment is refused for it, the primary is asked.
func TestAStandbyRefusesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		now  int64 // what the sender has at the primary
		want string
	}{
		"the money has just come": {1_000_000, "queue_publish_error"}, // it was sent on
		"there is too little":     {1, "insufficient_funds"},
	} {
		b := &both{neighbours: &neighbours{}, accounts: func(current bool) (all []*walletv1.GetAccountResponse) {
			has := int64(1)
			if current {
				has = tc.now
			}
			for _, id := range []string{"A", "B"} {
				all = append(all, &walletv1.GetAccountResponse{AccountId: id, Status: "ACTIVE", BalanceIdr: has, Behind: !current})
			}
			return all
		}}
		if w := payAt(b.gateway(t)); !strings.Contains(w.Body.String(), `"reason":"`+tc.want+`"`) || b.calls.Load() != 2 {
			t.Errorf("%s: %d %s, after %d calls; want %s", name, w.Code, w.Body, b.calls.Load(), tc.want)
		}
	}
}

// Both accounts are read by one call. A wallet of an earlier release reads them one by one, and is not
// asked for both again for a while.
func TestBothAccountsAreReadByOneCall(t *testing.T) {
	active := func(id string) *walletv1.GetAccountResponse {
		return &walletv1.GetAccountResponse{AccountId: id, Status: "ACTIVE", BalanceIdr: 1_000_000}
	}
	none := &walletv1.GetAccountResponse{}
	for name, tc := range map[string]struct {
		accounts []*walletv1.GetAccountResponse
		err      error
		want     string
		calls    int64
	}{
		"active":           {[]*walletv1.GetAccountResponse{active("A"), active("B")}, nil, "queue_publish_error", 1},
		"no sender":        {[]*walletv1.GetAccountResponse{none, active("B")}, nil, "unknown_sender", 1},
		"no receiver":      {[]*walletv1.GetAccountResponse{active("A"), none}, nil, "unknown_receiver", 1},
		"neither":          {[]*walletv1.GetAccountResponse{none, none}, nil, "unknown_sender", 1},
		"a senseless one":  {[]*walletv1.GetAccountResponse{active("A")}, nil, "wallet_unavailable", 1},
		"away":             {nil, status.Error(codes.Unavailable, "down"), "wallet_unavailable", 1},
		"an older release": {nil, status.Error(codes.Unimplemented, "unknown"), "queue_publish_error", 3},
	} {
		b := &both{neighbours: &neighbours{}, err: tc.err}
		b.accounts = func(bool) []*walletv1.GetAccountResponse { return tc.accounts }
		f := b.gateway(t)
		if w := payAt(f); !strings.Contains(w.Body.String(), `"reason":"`+tc.want+`"`) || b.calls.Load() != tc.calls {
			t.Errorf("%s: %s, after %d calls", name, w.Body, b.calls.Load())
		}
		if before := b.calls.Load(); tc.calls == 3 {
			if payAt(f); b.calls.Load() != before+2 {
				t.Errorf("%s: %d more calls", name, b.calls.Load()-before)
			}
		}
	}
}
