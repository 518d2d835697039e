package payment

import (
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
		"debit_currency":     func(p *Payment) { p.DebitCurrency = money.Currency{} },
		"credit_currency":    func(p *Payment) { p.CreditCurrency = money.Currency{} },
		"debit_minor":        func(p *Payment) { p.DebitMinor = 0 },
		"credit_minor":       func(p *Payment) { p.CreditMinor = money.MaxMinor + 1 },
		"currency":           func(p *Payment) { p.Currency = currencyOf("EUR") },
		"amount":             func(p *Payment) { p.DebitMinor = 10_000 },
		"exchange.mid_minor": func(p *Payment) { p.Exchange.MidMinor = 1338 },
		"exchange.rate":      func(p *Payment) { p.Exchange.Rate = money.Rate{} },
		"exchange.steps":     func(p *Payment) { p.Exchange.Steps = nil },
	} {
		p := exchanged()
		change(&p)
		var wrong *FieldError
		if err := p.Validate(); !errors.As(err, &wrong) || wrong.Field != field {
			t.Errorf("%s: %v", field, err)
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
