package fx

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"testing"
	"time"

	"github.com/formancehq/numscript"
	"pgregory.net/rapid"

	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// worth are currencies of 0, 2, 3 and 4 digits, with about what they cost in rupiah.
var worth = map[string]string{"IDR": "1", "JPY": "103.25", "USD": "15500", "SGD": "11600", "KWD": "50450", "CLF": "602000.5"}

var codesOf = rapid.SampledFrom([]string{"IDR", "JPY", "USD", "SGD", "KWD", "CLF"})

func drawCurrency(t *rapid.T, name string) (c money.Currency) {
	if err := c.UnmarshalText([]byte(codesOf.Draw(t, name))); err != nil {
		t.Fatal(err)
	}
	return c
}

// drawQuote draws a rate near what two currencies are worth, and its spread.
func drawQuote(t *rapid.T, p pair, id int) quote {
	rate := func(text string) (r money.Rate) {
		if err := r.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		return r
	}
	percent := func(least, most int, name string) money.Rate {
		return rate(big.NewRat(int64(rapid.IntRange(least, most).Draw(t, name)), 10_000).FloatString(4))
	}
	mid := money.Price{}.Times(rate(worth[p.base.String()])).Over(rate(worth[p.quote.String()])).Times(percent(5_000, 20_000, "mid"))
	q := quote{id: fmt.Sprintf("rate-%d", id), at: start.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "at")) * time.Second)}
	var err, bidErr, askErr error
	if q.rate, err = mid.Rate(); err == nil && rapid.Bool().Draw(t, "a spread") {
		q.bid, bidErr = money.Price{}.Times(q.rate).Times(percent(9_000, 10_000, "bid")).Rate()
		q.ask, askErr = money.Price{}.Times(q.rate).Times(percent(10_000, 11_000, "ask")).Rate()
	}
	if err := errors.Join(err, bidErr, askErr); err != nil {
		t.Fatal(err)
	}
	return q
}

// drawRates draws rates for half of the pairs, in one direction or in both.
func drawRates(t *rapid.T) rates {
	all := rates{}
	codes := []string{"CLF", "IDR", "JPY", "KWD", "SGD", "USD"}
	for i, code := range codes {
		for _, other := range codes[:i] {
			var p pair
			if err := errors.Join(p.base.UnmarshalText([]byte(code)), p.quote.UnmarshalText([]byte(other))); err != nil {
				t.Fatal(err)
			}
			stored := rapid.SampledFrom([]string{"", "", "", "forwards", "backwards", "both"}).Draw(t, code+"/"+other)
			if stored == "forwards" || stored == "both" {
				all[p] = drawQuote(t, p, len(all))
			}
			if back := (pair{p.quote, p.base}); stored == "backwards" || stored == "both" {
				all[back] = drawQuote(t, back, len(all))
			}
		}
	}
	return all
}

// Somebody who exchanges an amount and exchanges it back never has more than before, whichever side
// is fixed and however the two currencies are connected.
func TestExchangeThereAndBackNeverProfits(t *testing.T) {
	seen := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		all := drawRates(t)
		a, b := drawCurrency(t, "a"), drawCurrency(t, "b")
		there := order{debit: a, credit: b, fixed: money.Amount{Minor: rapid.Int64Range(1, 1e10).Draw(t, "minor"), Currency: a}}
		if rapid.Bool().Draw(t, "receive exactly") {
			there.fixed.Currency = b
		}
		paid, err := all.price(there)
		if err != nil || a == b {
			return
		}
		for _, s := range paid.exchange.Steps {
			seen[fmt.Sprint(len(paid.exchange.Steps), " steps, inverse: ", s.Inverse)]++
		}
		seen["receive exactly: "+fmt.Sprint(there.fixed.Currency == b)]++
		// All of it is sold again.
		got, err := all.price(order{debit: b, credit: a, fixed: paid.credit})
		if err == nil {
			seen["sold again"]++
			if got.credit.Minor > paid.debit.Minor {
				t.Fatalf("%s %s became %s %s and then %s %s", paid.debit, a, paid.credit, b, got.credit, a)
			}
		}
		// One minor unit more than was paid costs more than was received.
		if more, err := all.price(order{debit: b, credit: a, fixed: money.Amount{Minor: paid.debit.Minor + 1, Currency: a}}); err == nil {
			seen["bought again"]++
			if more.debit.Minor <= paid.credit.Minor {
				t.Fatalf("%s %s became %s %s, and %s %s buy %s %s", paid.debit, a, paid.credit, b, more.debit, b, more.credit, a)
			}
		}
	})
	for _, kind := range []string{"1 steps, inverse: true", "1 steps, inverse: false", "2 steps, inverse: true", "2 steps, inverse: false",
		"receive exactly: true", "receive exactly: false", "sold again", "bought again"} {
		if seen[kind] == 0 {
			t.Errorf("%s: never drawn: %v", kind, seen)
		}
	}
}

// The fixed side of a quoted payment is what the client asked for, and the other side is the exact
// price, rounded once in the house's favour. The ledger takes such a payment, and its entries are
// those of numscript.
func TestQuotedPaymentsAreExactAndValid(t *testing.T) {
	seen := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		all := drawRates(t)
		p := payment.Payment{
			Key: "k", Sender: rapid.StringMatching(`[A-KM-Z][A-Za-z0-9_-]{0,8}`).Draw(t, "sender"), Receiver: "receiver",
			DebitCurrency: drawCurrency(t, "debit"), CreditCurrency: drawCurrency(t, "credit"),
			Minor: rapid.Int64Range(1, 1e10).Draw(t, "minor"),
		}
		p.Currency = rapid.SampledFrom([]money.Currency{p.DebitCurrency, p.CreditCurrency}).Draw(t, "fixed")
		if p.DebitCurrency == p.CreditCurrency {
			p.Currency = drawCurrency(t, "priced in")
		}
		if p.DebitCurrency == money.IDR && p.CreditCurrency == money.IDR {
			return // a payment in rupiah is priced by Convert
		}
		answer, err := newFX(&memory{all: all}, &admin{}, 0).Quote(t.Context(), rpc.QuoteOf(p))
		if err != nil {
			return
		}
		if p, err = rpc.Quoted(p, answer); err != nil {
			t.Fatal(err)
		}
		if err := p.Validate(); err != nil {
			t.Fatalf("%v: %+v", err, p)
		}
		compareEntries(t, p)
		if !p.Exchanges() {
			seen["one currency"]++
			return
		}
		seen[fmt.Sprintf("%d steps", len(p.Exchange.Steps))]++
		if p.Exchange.MidMinor < p.CreditMinor {
			t.Fatalf("at mid %d, and the receiver gets %d", p.Exchange.MidMinor, p.CreditMinor)
		}
		// The exact price in minor units, from what the payment says of its steps.
		exact := new(big.Rat).SetFrac(power(p.CreditCurrency.Digits()), power(p.DebitCurrency.Digits()))
		for _, s := range p.Exchange.Steps {
			rate, _ := new(big.Rat).SetString(s.Rate.String())
			if s.Inverse {
				rate.Inv(rate)
			}
			exact.Mul(exact, rate)
		}
		rounded, left := p.CreditMinor, new(big.Rat)
		if p.Currency == p.DebitCurrency {
			exact.Mul(exact, new(big.Rat).SetInt64(p.DebitMinor))
			left.Sub(exact, new(big.Rat).SetInt64(rounded))
		} else {
			rounded = p.DebitMinor
			exact.Quo(new(big.Rat).SetInt64(p.CreditMinor), exact)
			left.Sub(new(big.Rat).SetInt64(rounded), exact)
		}
		kept, ok := new(big.Rat).SetString(p.Exchange.Remainder)
		cut := new(big.Rat).Sub(left, kept)
		if left.Sign() < 0 || left.Cmp(big.NewRat(1, 1)) >= 0 || !ok || cut.Sign() < 0 || cut.Cmp(big.NewRat(1, 1e18)) >= 0 {
			t.Fatalf("%s is rounded to %d, and the remainder is %s", exact.FloatString(20), rounded, p.Exchange.Remainder)
		}
	})
	for _, kind := range []string{"one currency", "1 steps", "2 steps"} {
		if seen[kind] == 0 {
			t.Errorf("%s: never drawn: %v", kind, seen)
		}
	}
}

func power(digits int32) *big.Int {
	return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(digits)), nil)
}

// Numscript is Formance's language for transactions. Its interpreter states independently which
// entries a payment has.
var (
	plainScript = numscript.Parse(`
vars {
	monetary $debit
	account $sender
	account $receiver
}
send $debit (
	source = $sender
	destination = $receiver
)`)
	exchangeScript = numscript.Parse(`
vars {
	monetary $debit
	monetary $mid
	monetary $credit
	account $sender
	account $receiver
	account $liquidity
	account $spread
}
send $debit (
	source = $sender
	destination = $liquidity
)
send $mid (
	source = $liquidity
	destination = {
		max $credit to $receiver
		remaining to $spread
	}
)`)
)

// compareEntries compares the entries of a payment with numscript's, by account and currency. The
// accounts have no more than what a reservation holds.
func compareEntries(t interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}, p payment.Payment) {
	t.Helper()
	asset := func(c money.Currency) string { return fmt.Sprintf("%s/%d", c, c.Digits()) }
	monetary := func(a money.Amount) string { return fmt.Sprintf("%s %d", asset(a.Currency), a.Minor) }
	held := numscript.Balances{{Account: p.Sender, Asset: asset(p.Debit().Currency), Amount: big.NewInt(p.Debit().Minor)}}
	script, vars := plainScript, numscript.VariablesMap{"debit": monetary(p.Debit()), "sender": p.Sender, "receiver": p.Receiver}
	if p.Exchanges() {
		mid := money.Amount{Minor: p.Exchange.MidMinor, Currency: p.CreditCurrency}
		held = append(held, numscript.BalanceRow{Account: payment.LiquidityAccount, Asset: asset(mid.Currency), Amount: big.NewInt(mid.Minor)})
		script = exchangeScript
		vars["mid"], vars["credit"] = monetary(mid), monetary(p.Credit())
		vars["liquidity"], vars["spread"] = payment.LiquidityAccount, payment.SpreadAccount
	}
	ran, failure := script.Run(context.Background(), vars, numscript.StaticStore{Balances: held})
	if failure != nil {
		t.Fatal(failure)
	}
	want := map[string]int64{}
	for _, posting := range ran.Postings {
		want[posting.Source+" "+posting.Asset] -= posting.Amount.Int64()
		want[posting.Destination+" "+posting.Asset] += posting.Amount.Int64()
	}
	got, sums := map[string]int64{}, map[money.Currency]int64{}
	for _, leg := range p.Legs() {
		got[leg.Account+" "+asset(leg.Currency)] += leg.Minor
		sums[leg.Currency] += leg.Minor
	}
	if !maps.Equal(got, want) {
		t.Fatalf("%+v has the entries %v; numscript %v", p, got, want)
	}
	for currency, sum := range sums {
		if sum != 0 {
			t.Fatalf("%s sums to %d: %v", currency, sum, got)
		}
	}
}

// The kinds of payments, one by one: a rupiah payment, one between balances of one currency, and
// exchanges without and with a spread.
func TestEntriesAreThoseOfNumscript(t *testing.T) {
	sgd, jpy := currency(t, "SGD"), currency(t, "JPY")
	all := stored(t, "USD/IDR 15490 15500 15510", "USD/SGD 1.339 1.340 1.341", "JPY/IDR 103.25", "KWD/IDR 50400 50450 50500")
	quoted := func(debit, credit money.Currency, fixed money.Amount) payment.Payment {
		t.Helper()
		p := payment.Payment{
			Key: "k", Sender: "ACC001", Receiver: "ACC002", DebitCurrency: debit, CreditCurrency: credit, Currency: fixed.Currency, Minor: fixed.Minor,
		}
		answer, err := newFX(&memory{all: all}, &admin{}, 0).Quote(t.Context(), rpc.QuoteOf(p))
		if err == nil {
			p, err = rpc.Quoted(p, answer)
		}
		if err == nil {
			err = p.Validate()
		}
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for name, tc := range map[string]struct {
		payment payment.Payment
		legs    int
	}{
		"in rupiah":                {payment.Payment{Sender: "ACC001", Receiver: "ACC002", AmountIDR: 155_000}, 2},
		"in dollars":               {quoted(usd, usd, money.Amount{Minor: 1000, Currency: usd}), 2},
		"in dollars, from rupiah":  {quoted(usd, usd, money.Amount{Minor: 155_000, Currency: money.IDR}), 2},
		"exchange without spread":  {quoted(jpy, money.IDR, money.Amount{Minor: 1000, Currency: jpy}), 4},
		"exchange with spread":     {quoted(usd, sgd, money.Amount{Minor: 1000, Currency: usd}), 5},
		"exchange, receive":        {quoted(usd, sgd, money.Amount{Minor: 1340, Currency: sgd}), 5},
		"exchange through a pivot": {quoted(currency(t, "KWD"), usd, money.Amount{Minor: 12_345, Currency: currency(t, "KWD")}), 5},
	} {
		if legs := tc.payment.Legs(); len(legs) != tc.legs {
			t.Errorf("%s: %d entries, want %d: %v", name, len(legs), tc.legs, legs)
		}
		compareEntries(t, tc.payment)
	}
}
