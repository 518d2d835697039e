package ledger

import (
	"errors"
	"fmt"
	"testing"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// A rate keeps its bid and ask. One without them, or of an earlier release, has no spread. The ledger
// refuses a spread that would pay the client.
func TestRatesHaveASpread(t *testing.T) {
	w := newWorld(t)
	usd, err := money.ParseCurrency("USD")
	if err != nil {
		t.Fatal(err)
	}
	rateOf := func(text string) (r money.Rate) {
		t.Helper()
		if err := r.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, tc := range []struct{ bid, rate, ask, wrong string }{
		{"15490", "15500", "15510", ""},
		{"15500", "15500", "15500", ""},
		{"", "15500.5", "", ""},
		{"1.339", "1.340", "1.341", ""},
		{"15490", "15500", "", "ask"},
		{"", "15500", "15510", "bid"},
		{"15501", "15500", "15510", "bid"},
		{"15490", "15500", "15499", "ask"},
		{"0.000000000000000001", "15500", "15510", "bid"}, // 1 divided by it is too large
		{"1", "0.000000000000000001", "1", "rate"},
	} {
		put := Rate{Base: usd, Quote: money.IDR, Rate: rateOf(tc.rate), Bid: rateOf(tc.bid), Ask: rateOf(tc.ask)}
		_, err := w.PutRates(t.Context(), []Rate{put}, Order{})
		var wrong *payment.FieldError
		if tc.wrong != "" {
			if !errors.As(err, &wrong) || wrong.Field != tc.wrong {
				t.Errorf("%+v: %v", tc, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", tc, err)
			continue
		}
		got, err := readRates(t.Context(), w.pool)
		if err != nil || len(got) != 1 {
			t.Fatal(got, err)
		}
		want := fmt.Sprint(put.Bid, " ", put.Rate, " ", put.Ask)
		if read := fmt.Sprint(got[0].Bid, " ", got[0].Rate, " ", got[0].Ask); read != want {
			t.Errorf("%s is read as %s", want, read)
		}
	}
	for name, values := range map[string]string{
		"bid above":   "2, 3, 3",
		"ask below":   "2, 1, 1",
		"bid of zero": "2, 0, 3",
		"bid alone":   "2, 1, NULL",
		"ask alone":   "2, NULL, 3",
	} {
		sql := `INSERT INTO fx_rates (rate_id, base, quote, rate, bid, ask) VALUES (gen_random_uuid(), 'USD', 'IDR', ` + values + `)`
		if _, err := w.pool.Exec(t.Context(), sql); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}
