package payment

import (
	"errors"
	"math/rand/v2"
	"testing"

	"pgw/shared/money"
)

func paidRecord(debit, credit money.Amount, mid int64) Record {
	p := Payment{Key: "p", Sender: "A", Receiver: "B", AmountIDR: debit.Minor, Currency: debit.Currency, Minor: debit.Minor}
	if debit.Currency != money.IDR || credit.Currency != money.IDR {
		p.DebitCurrency, p.CreditCurrency, p.DebitMinor, p.CreditMinor, p.Exchange.MidMinor = debit.Currency, credit.Currency, debit.Minor, credit.Minor, mid
	}
	return Record{Payment: p, Outcome: Standing(Committed, ReasonCommitted, "ref", false)}
}

// Whatever the parts are, all of them together give back what was paid, on both sides.
func TestRefundsInPartsCloseExactly(t *testing.T) {
	usd, _ := money.ParseCurrency("USD")
	jpy, _ := money.ParseCurrency("JPY")
	random := rand.New(rand.NewPCG(20, 26))
	for range 200 {
		of := paidRecord(money.Amount{Minor: 1 + random.Int64N(5000), Currency: usd}, money.Amount{Minor: 1 + random.Int64N(5000), Currency: jpy}, 5000)
		var given Share
		for given.Debit < of.DebitMinor {
			o := Operation{Kind: Refund, Key: "r", Payment: "p", Minor: min(of.DebitMinor-given.Debit, 1+random.Int64N(of.DebitMinor)), Currency: usd}
			p, reason, err := RefundOf(of, given, o)
			if err != nil || reason != "" && reason != RefundTooSmall {
				t.Fatalf("%+v of %+v after %+v: %s, %v", o, of.Payment, given, reason, err)
			}
			if reason == RefundTooSmall {
				o.Minor = 0
				if p, reason, err = RefundOf(of, given, o); err != nil || reason != "" {
					t.Fatalf("the rest of %+v after %+v: %s, %v", of.Payment, given, reason, err)
				}
			}
			if p.Exchange.MidMinor != p.CreditMinor || p.Sender != "B" || p.Receiver != "A" || p.DebitCurrency != jpy || p.CreditCurrency != usd {
				t.Fatalf("%+v", p)
			}
			given = Share{given.Debit + p.CreditMinor, given.Credit + p.DebitMinor}
		}
		if given.Debit != of.DebitMinor || given.Credit != of.CreditMinor {
			t.Fatalf("%+v of %+v", given, of.Payment)
		}
	}
}

func TestRefundsThatDoNotFit(t *testing.T) {
	usd, _ := money.ParseCurrency("USD")
	one, _ := money.ParseRate("1")
	of := paidRecord(money.Amount{Minor: 100, Currency: money.IDR}, money.Amount{Minor: 100, Currency: money.IDR}, 0)
	price := Exchange{Rate: one, MidRate: one, Steps: []Step{{From: usd, To: money.IDR, MidRate: one, RateID: "r"}}}
	for name, o := range map[string]Operation{
		"another currency":          {Minor: 1, Currency: usd},
		"a price for nothing":       {Exchange: price},
		"a price without its steps": {Exchange: Exchange{MidMinor: 1}},
	} {
		var wrong *FieldError
		if _, _, err := RefundOf(of, Share{}, o); !errors.As(err, &wrong) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refund := of
	refund.PaymentKey = "p"
	pending := of
	pending.State = Pending
	for name, tc := range map[string]struct {
		of    Record
		given Share
		minor int64
		want  Reason
	}{
		"of a refund":      {refund, Share{}, 1, PaymentNotSettled},
		"of a pending one": {pending, Share{}, 1, PaymentNotSettled},
		"too much":         {of, Share{60, 60}, 41, RefundExceedsPayment},
		"nothing left":     {of, Share{100, 100}, 0, RefundExceedsPayment},
		"what is left":     {of, Share{60, 60}, 0, ""},
	} {
		o := Operation{Kind: Refund, Minor: tc.minor}
		if tc.minor != 0 {
			o.Currency = money.IDR
		}
		p, reason, err := RefundOf(tc.of, tc.given, o)
		if err != nil || reason != tc.want || p.AmountIDR <= 0 {
			t.Errorf("%s: %s, %v", name, reason, err)
		}
	}
}
