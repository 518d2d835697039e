package fx

import (
	"testing"
	"time"

	"pgw/shared/money"
)

func currency(t *testing.T, code string) money.Currency {
	t.Helper()
	c, err := money.ParseCurrency(code)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The newest stored rate of two currencies is in force, in whichever direction it was stored.
func TestTheNewestRateOfTwoCurrenciesIsInForce(t *testing.T) {
	usd, sgd := currency(t, "USD"), currency(t, "SGD")
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(text, id string, after time.Duration) quote {
		rate, err := money.ParseRate(text)
		if err != nil {
			t.Fatal(err)
		}
		return quote{rate: rate, id: id, at: noon.Add(after)}
	}
	rs := rates{{usd, money.IDR}: at("15500", "a", 0), {sgd, money.IDR}: at("11600", "b", 0)}
	expect := func(base, to money.Currency, want, id string) {
		t.Helper()
		if q, ok := rs.find(pair{base, to}); !ok || q.rate.String() != want || q.id != id {
			t.Errorf("%s to %s: %s (%s), want %s (%s)", base, to, q.rate, q.id, want, id)
		}
	}
	expect(usd, money.IDR, "15500", "a")
	expect(money.IDR, usd, "0.0000645161290323", "a")
	expect(usd, sgd, "1.33620689655", "a/b")

	rs[pair{money.IDR, usd}] = at("0.00005", "c", time.Second)
	expect(usd, money.IDR, "20000", "c")
	expect(money.IDR, usd, "0.00005", "c")
	expect(usd, sgd, "1.72413793103", "c/b")

	rs[pair{usd, money.IDR}] = at("16000", "d", 2*time.Second)
	expect(usd, money.IDR, "16000", "d")
	expect(money.IDR, usd, "0.0000625", "d")

	rs[pair{money.IDR, usd}] = at("0.0001", "e", 2*time.Second) // at the same time, so the larger id counts
	expect(usd, money.IDR, "10000", "e")

	delete(rs, pair{sgd, money.IDR})
	rs[pair{money.IDR, sgd}] = at("0.0001", "f", 0)
	expect(sgd, money.IDR, "10000", "f")
	expect(sgd, usd, "1", "f/e")

	if _, ok := rs.find(pair{currency(t, "JPY"), money.IDR}); ok {
		t.Error("there is a rate for yen")
	}
}
