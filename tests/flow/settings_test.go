package flow

import (
	"context"
	"fmt"
	"testing"

	"pgw/functions/fx"
	"pgw/functions/risk"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	"pgw/shared/function"
)

// Rates and rules that change at one replica reach the others automatically, and a new replica at
// once.
func TestRatesAndRulesReachOtherReplicas(t *testing.T) {
	s := start(t, options{})
	database := s.conn.Config().ConnString()
	replica := func(f *function.Port, err error) *function.Port {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.Background(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if err := f.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		return f
	}
	newFX := func() fxv1.FxServiceClient {
		return fxv1.NewFxServiceClient(replica(fx.Function.Make(fx.Config{DatabaseURL: database}, s.dependencies())).InProcess())
	}
	newRisk := func() riskv1.RiskServiceClient {
		return riskv1.NewRiskServiceClient(replica(risk.Function.Make(risk.Config{DatabaseURL: database, Secret: riskSecret}, s.dependencies())).InProcess())
	}
	price := func(c fxv1.FxServiceClient) (string, error) {
		got, err := c.Convert(t.Context(), &fxv1.ConvertRequest{FromCurrency: "USD", ToCurrency: "IDR", AmountMinor: ptr(int64(100))})
		return fmt.Sprint(got.GetAmountMinor(), " at ", got.GetRate()), err
	}
	verdict := func(c riskv1.RiskServiceClient) (string, error) {
		got, err := c.Evaluate(t.Context(), &riskv1.ScoreRequest{SenderId: "A", ReceiverId: "B", AmountIdr: 5000, CurrencyInput: "USD", TxDateIso: txDate})
		return got.GetReason(), err
	}

	otherFX, otherRisk := newFX(), newRisk()
	if got, err := price(otherFX); err != nil || got != "15500 at 15500" {
		t.Fatalf("before: %s, %v", got, err)
	}
	if got, err := verdict(otherRisk); err != nil || got != "" {
		t.Fatalf("before: %s, %v", got, err)
	}
	if _, err := fxv1.NewFxServiceClient(s.Conn("fx")).UpdateRates(t.Context(), &fxv1.UpdateRatesRequest{
		Rates: []*fxv1.Rate{{BaseCurrency: "USD", QuoteCurrency: "IDR", RateDecimal: "16000.5"}}}); err != nil {
		t.Fatal(err)
	}
	s.rules(&riskv1.SeedRulesRequest{MaxAmount: 4000})
	// The replica where they changed uses them at once, and so does a new one.
	for _, c := range []fxv1.FxServiceClient{fxv1.NewFxServiceClient(s.Conn("fx")), newFX()} {
		if got, err := price(c); err != nil || got != "16000 at 16000.5" {
			t.Errorf("at once: %s, %v", got, err)
		}
	}
	for _, c := range []riskv1.RiskServiceClient{riskv1.NewRiskServiceClient(s.Conn("risk")), newRisk()} {
		if got, err := verdict(c); err != nil || got != "above_max" {
			t.Errorf("at once: %s, %v", got, err)
		}
	}
	s.eventually("the other replicas know", func() error {
		rate, err := price(otherFX)
		if err != nil || rate != "16000 at 16000.5" {
			return fmt.Errorf("fx: %s, %v", rate, err)
		}
		if reason, err := verdict(otherRisk); err != nil || reason != "above_max" {
			return fmt.Errorf("risk: %s, %v", reason, err)
		}
		return nil
	})
}
