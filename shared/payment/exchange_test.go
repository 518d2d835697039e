package payment

import (
	"encoding/json"
	"errors"
	"testing"

	"pgw/shared/money"
)

func currencyOf(code string) money.Currency {
	c, err := money.ParseCurrency(code)
	if err != nil {
		panic(err)
	}
	return c
}

func rateOf(text string) money.Rate {
	r, err := money.ParseRate(text)
	if err != nil {
		panic(err)
	}
	return r
}

// exchanged is a payment of USD 10.00 that the receiver gets in SGD.
func exchanged() Payment {
	return Payment{
		Key: "k", Sender: "A", Receiver: "B", AmountIDR: 155_000, Currency: currencyOf("USD"), Minor: 1000,
		DebitCurrency: currencyOf("USD"), CreditCurrency: currencyOf("SGD"), DebitMinor: 1000, CreditMinor: 1339,
		Exchange: Exchange{
			Rate: rateOf("1.339"), MidRate: rateOf("1.340"), MidMinor: 1340, Remainder: "0",
			Steps: []Step{{From: currencyOf("USD"), To: currencyOf("SGD"), RateID: "r", Rate: rateOf("1.339"), MidRate: rateOf("1.340")}},
		},
	}
}

func TestLegsSumToZeroInEachCurrency(t *testing.T) {
	sameCurrency := exchanged()
	sameCurrency.CreditCurrency, sameCurrency.CreditMinor, sameCurrency.Exchange = sameCurrency.DebitCurrency, 1000, Exchange{}
	noSpread := exchanged()
	noSpread.CreditMinor = noSpread.Exchange.MidMinor
	for name, tc := range map[string]struct {
		payment Payment
		legs    int
	}{
		"rupiah":         {Payment{Sender: "A", Receiver: "B", AmountIDR: 7}, 2},
		"one currency":   {sameCurrency, 2},
		"exchange":       {exchanged(), 5},
		"without spread": {noSpread, 4},
	} {
		legs := tc.payment.Legs()
		if len(legs) != tc.legs {
			t.Errorf("%s: %d legs, want %d: %v", name, len(legs), tc.legs, legs)
		}
		sums := map[string]int64{}
		for _, l := range legs {
			sums[l.Currency.String()] += l.Minor
			if l.Minor == 0 {
				t.Errorf("%s: %s gets nothing", name, l.Account)
			}
		}
		for currency, sum := range sums {
			if sum != 0 {
				t.Errorf("%s: %s sums to %d", name, currency, sum)
			}
		}
	}
}

func TestValidateChecksWhatIsExchanged(t *testing.T) {
	if err := exchanged().Validate(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(*Payment){
		"debit_currency":  func(p *Payment) { p.DebitCurrency = money.Currency{} },
		"credit_currency": func(p *Payment) { p.CreditCurrency = money.Currency{} },
		"debit_minor":     func(p *Payment) { p.DebitMinor = 0 },
		"credit_minor":    func(p *Payment) { p.CreditMinor = money.MaxMinor + 1 },
		"currency":        func(p *Payment) { p.Currency = currencyOf("EUR") },
		"amount":          func(p *Payment) { p.DebitMinor = 10_000 },
		"amount_idr": func(p *Payment) {
			p.Currency, p.DebitCurrency, p.DebitMinor, p.Minor = money.IDR, money.IDR, 155_001, 155_001
		},
		"exchange.mid_minor": func(p *Payment) { p.Exchange.MidMinor = 1338 },
		"exchange.rate":      func(p *Payment) { p.Exchange.Rate = money.Rate{} },
		"exchange.steps":     func(p *Payment) { p.Exchange.Steps = nil },
		"quote_id":           func(p *Payment) { p.QuoteID = "0199E0A7-2C7E-7D4A-9C43-5D2F3C1F8A10" },
	} {
		p := exchanged()
		change(&p)
		var wrong *FieldError
		if err := p.Validate(); !errors.As(err, &wrong) || wrong.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// In one currency that is not rupiah, what the client fixed is what moves.
func TestValidateChecksOneCurrency(t *testing.T) {
	p := exchanged()
	p.CreditCurrency, p.CreditMinor, p.Exchange = p.DebitCurrency, p.DebitMinor, Exchange{}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, minor := range map[string]int64{"another amount": 777, "no amount": 0} {
		other := p
		other.Minor = minor
		var wrong *FieldError
		if err := other.Validate(); !errors.As(err, &wrong) || wrong.Field != "amount" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A rupiah payment keeps the fingerprint of earlier releases. Every part of an exchange that the
// client chooses changes the fingerprint, and the price does not.
func TestFingerprintCoversTheBalances(t *testing.T) {
	p := exchanged()
	other := p
	other.CreditMinor, other.Exchange = 1340, Exchange{}
	if p.Fingerprint() != other.Fingerprint() {
		t.Error("the price changes the fingerprint")
	}
	seen := map[Fingerprint]string{p.Fingerprint(): "as it is"}
	for name, change := range map[string]func(*Payment){
		"debit":  func(p *Payment) { p.DebitCurrency = currencyOf("EUR") },
		"credit": func(p *Payment) { p.CreditCurrency = currencyOf("EUR") },
		"swap":   func(p *Payment) { p.DebitCurrency, p.CreditCurrency = p.CreditCurrency, p.DebitCurrency },
		"quote":  func(p *Payment) { p.QuoteID = "q" },
		"rupiah": func(p *Payment) { p.DebitCurrency, p.CreditCurrency = money.Currency{}, money.Currency{} },
	} {
		q := p
		change(&q)
		if before, ok := seen[q.Fingerprint()]; ok {
			t.Errorf("%s has the fingerprint of %s", name, before)
		}
		seen[q.Fingerprint()] = name
	}
}

// The two balances are in rupiah unless the order says otherwise. Only one side of an exchange is
// fixed, so a third currency is refused.
func TestOrderedCurrencies(t *testing.T) {
	for name, tc := range map[string]struct {
		order Order
		want  [3]string // of the amount, the debit and the credit
		field string    // that is refused
	}{
		"rupiah":            {Order{Currency: "USD"}, [3]string{"USD", "", ""}, ""},
		"rupiah, named":     {Order{Currency: "USD", DebitCurrency: "IDR", CreditCurrency: "IDR"}, [3]string{"USD", "", ""}, ""},
		"send exactly":      {Order{Currency: "USD", DebitCurrency: "USD", CreditCurrency: "SGD"}, [3]string{"USD", "USD", "SGD"}, ""},
		"receive exactly":   {Order{Currency: "SGD", DebitCurrency: "USD", CreditCurrency: "SGD"}, [3]string{"SGD", "USD", "SGD"}, ""},
		"to rupiah":         {Order{Currency: "IDR", DebitCurrency: "USD"}, [3]string{"IDR", "USD", "IDR"}, ""},
		"from rupiah":       {Order{Currency: "IDR", CreditCurrency: "KWD"}, [3]string{"IDR", "IDR", "KWD"}, ""},
		"one currency":      {Order{Currency: "KWD", DebitCurrency: "KWD", CreditCurrency: "KWD"}, [3]string{"KWD", "KWD", "KWD"}, ""},
		"priced in another": {Order{Currency: "USD", DebitCurrency: "KWD", CreditCurrency: "KWD"}, [3]string{"USD", "KWD", "KWD"}, ""},
		"three":             {Order{Currency: "EUR", DebitCurrency: "USD", CreditCurrency: "SGD"}, [3]string{}, "currency"},
		"three with rupiah": {Order{Currency: "EUR", DebitCurrency: "USD"}, [3]string{}, "currency"},
		"no quote":          {Order{Currency: "USD", QuoteID: "4711"}, [3]string{}, "quote_id"},
	} {
		o := tc.order
		o.Key, o.Sender, o.Receiver, o.TxDate, o.Amount = "k", "A", "B", "2026-01-31T09:30:00Z", json.RawMessage("10")
		p, err := o.Payment()
		var wrong *FieldError
		if tc.field != "" {
			if !errors.As(err, &wrong) || wrong.Field != tc.field {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if got := [3]string{p.Currency.String(), p.DebitCurrency.String(), p.CreditCurrency.String()}; err != nil || got != tc.want {
			t.Errorf("%s: %v, %v; want %v", name, got, err, tc.want)
		}
		quoted, err := o.Quote()
		if err != nil || quoted.Sent() != p.Sent() || quoted.DebitCurrency != p.DebitCurrency || quoted.CreditCurrency != p.CreditCurrency {
			t.Errorf("%s: the quote is for %+v, %v", name, quoted, err)
		}
	}
	unknown := Order{Key: "k", Sender: "A", Receiver: "B", TxDate: "2026-01-31T09:30:00Z", Amount: json.RawMessage("10"), Currency: "USD", CreditCurrency: "usd"}
	if _, err := unknown.Payment(); !errors.Is(err, money.ErrCurrency) {
		t.Errorf("an unknown currency: %v", err)
	}
	// A UUID has more than one spelling. A retry in another one is the same request.
	quoted := Order{
		Key: "k", Sender: "A", Receiver: "B", TxDate: "2026-01-31T09:30:00Z", Amount: json.RawMessage("10"), Currency: "USD",
		QuoteID: "0199E0A7-2C7E-7D4A-9C43-5D2F3C1F8A10",
	}
	p, err := quoted.Payment()
	if err != nil || p.QuoteID != "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10" {
		t.Errorf("%q, %v", p.QuoteID, err)
	}
}
