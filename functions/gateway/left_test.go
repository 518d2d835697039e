package gateway

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/event"
	"pgw/shared/function"
)

// silent functions never answer: a call ends when its caller leaves.
type silent struct{ grpc.ClientConnInterface }

func (silent) Invoke(ctx context.Context, _ string, _, _ any, _ ...grpc.CallOption) error {
	<-ctx.Done()
	return ctx.Err()
}

// agreeable functions approve every payment.
type agreeable struct{ grpc.ClientConnInterface }

func (agreeable) Invoke(_ context.Context, _ string, _, reply any, _ ...grpc.CallOption) error {
	switch reply := reply.(type) {
	case *fxv1.ListRatesResponse:
		proto.Merge(reply, &fxv1.ListRatesResponse{Rates: []*fxv1.RateInForce{{BaseCurrency: "IDR"}, {BaseCurrency: "USD"}}})
	case *walletv1.GetRandomAccountsResponse:
		proto.Merge(reply, &walletv1.GetRandomAccountsResponse{AccountIds: []string{"A"}})
	case *fxv1.ConvertResponse:
		proto.Merge(reply, &fxv1.ConvertResponse{AmountMinor: 15500, Rate: "15500", RateId: "rate"})
	case *walletv1.GetAccountResponse:
		proto.Merge(reply, &walletv1.GetAccountResponse{Status: "ACTIVE", BalanceIdr: 1_000_000})
	case *walletv1.GetAccountsResponse:
		return status.Error(codes.Unimplemented, "a wallet of an older release")
	case *riskv1.EvaluateResponse:
		reply.Allow = true
	}
	return nil
}

type toNobody struct{}

func (toNobody) Publish(context.Context, string, string, cloudevents.Event) error { return nil }

// A client that disconnects is not counted as a function's failure or as an undecided payment,
// because both would cause alerts.
func TestAClientThatLeavesIsNoFailure(t *testing.T) {
	var keys event.Keyring
	if err := keys.Decode("k:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="); err != nil {
		t.Fatal(err)
	}
	yes := agreeable{}
	for name, to := range map[string]map[string]grpc.ClientConnInterface{
		"while fx is asked":           {"fx": silent{}, "wallet": yes, "risk": yes, "db": yes},
		"while wallet is asked":       {"fx": yes, "wallet": silent{}, "risk": yes, "db": yes},
		"while risk is asked":         {"fx": yes, "wallet": yes, "risk": silent{}, "db": yes},
		"while the result is awaited": {"fx": yes, "wallet": yes, "risk": yes, "db": yes},
	} {
		var log bytes.Buffer
		f, err := Function.Make(Config{AnswerIn: time.Minute, MinWaiting: 1, MaxWaiting: 1, Keys: keys}, function.Dependencies{
			Conns: to, Publisher: toNobody{}, Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(f.Handler())
		ctx, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+"/api/payments",
			strings.NewReader(`{"sender_id":"A","receiver_id":"B","currency":"USD","amount":1,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"k"}`))
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := server.Client().Do(request); err == nil {
			t.Errorf("%s: answered %s", name, resp.Status)
		}
		leave()
		server.Close() // returns after the request has been served
		if log.Len() > 0 {
			t.Errorf("%s: %s", name, log.String())
		}
		got := counted(t, f.Registry)
		for _, metric := range []string{
			"pgw_payments_total", "pgw_fx_calls_total error", "pgw_wallet_check_total error", "pgw_risk_total error", "pgw_kafka_wait_result_total timeout",
		} {
			if got[metric] != 0 {
				t.Errorf("%s: %s is %v", name, metric, got[metric])
			}
		}
		if got["pgw_payments_left_total"] != 1 {
			t.Errorf("%s: pgw_payments_left_total is %v", name, got["pgw_payments_left_total"])
		}
	}
}

// counted returns each counter's sum, and its value for each label value.
func counted(t *testing.T, registry prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.Metric {
			got[family.GetName()] += m.GetCounter().GetValue()
			for _, label := range m.Label {
				got[family.GetName()+" "+label.GetValue()] += m.GetCounter().GetValue()
			}
		}
	}
	return got
}
