package payment

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"pgw/shared/money"
)

// However a payment is given back, the parts of both sides close exactly.
func TestPartsOfAPaymentCloseExactly(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		whole := Share{Debit: 1 + rng.Int64N(money.MaxMinor), Credit: 1 + rng.Int64N(money.MaxMinor)}
		if rng.IntN(2) == 0 {
			whole = Share{1 + rng.Int64N(200), 1 + rng.Int64N(200)}
		}
		var given Share
		for given.Debit < whole.Debit {
			debit := 1 + rng.Int64N(whole.Debit-given.Debit)
			if rng.IntN(8) == 0 {
				debit = whole.Debit - given.Debit
			}
			credit := whole.Part(given, debit)
			given.Debit, given.Credit = given.Debit+debit, given.Credit+credit
			if given.Credit > whole.Credit {
				t.Fatalf("of %+v, %+v was given", whole, given)
			}
		}
		if given != whole {
			t.Fatalf("of %+v, %+v was given", whole, given)
		}
	}
}

// A part that is taken back leaves the rest to the parts after it.
func TestAPartThatIsTakenBack(t *testing.T) {
	whole := Share{Debit: 3, Credit: 100}
	first := whole.Part(Share{}, 1)
	second := whole.Part(Share{1, first}, 1)
	// The first is rolled back.
	third := whole.Part(Share{1, second}, 2)
	if second+third != 100 {
		t.Errorf("%d, %d taken back, %d", second, first, third)
	}
}

func TestOperationsAreChecked(t *testing.T) {
	usd, _ := money.ParseCurrency("USD")
	good := Operation{Kind: Refund, Key: "r-1", Payment: "p-1", Minor: 60, Currency: usd, Note: "broken"}
	for name, tc := range map[string]struct {
		change func(*Operation)
		field  string
	}{
		"good":             {func(*Operation) {}, ""},
		"all that is left": {func(o *Operation) { o.Minor, o.Currency = 0, money.Currency{} }, ""},
		"kind":             {func(o *Operation) { o.Kind = "rebate" }, "operation"},
		"no key":           {func(o *Operation) { o.Key = "" }, "idempotency_key"},
		"reserved key":     {func(o *Operation) { o.Key = CancelPrefix + "x" }, "idempotency_key"},
		"no payment":       {func(o *Operation) { o.Payment = "" }, "payment_key"},
		"of a hold":        {func(o *Operation) { o.Payment = HoldPrefix + "x" }, "payment_key"},
		"negative":         {func(o *Operation) { o.Minor = -1 }, "amount"},
		"amount of a void": {func(o *Operation) { o.Kind = Void }, "amount"},
		"no currency":      {func(o *Operation) { o.Currency = money.Currency{} }, "currency"},
		"price of capture": {func(o *Operation) { o.Kind, o.Exchange.MidMinor = Capture, 1 }, "exchange"},
		"control":          {func(o *Operation) { o.Note = "a\nb" }, "note"},
		"client":           {func(o *Operation) { o.Client = "a\x00b" }, "client"},
		"payment's client": {func(o *Operation) { *o = o.On(ScopedKey{Client: "a\x00b", Key: "p-1"}) }, "payment_client"},
	} {
		o := good
		tc.change(&o)
		err := o.Validate()
		var wrong *FieldError
		if errors.As(err, &wrong) != (tc.field != "") || wrong != nil && wrong.Field != tc.field {
			t.Errorf("%s: %v; want the field %q", name, err, tc.field)
		}
	}
}

// An event of a release that knew one client for the operation and its payment means the same as before.
func TestAnOperationOnAnotherClientsPayment(t *testing.T) {
	theirs := Operation{Kind: Refund, Key: "r", Client: "merchant"}.On(ScopedKey{"payer", "p"})
	shared := Operation{Kind: Refund, Key: "r", Client: "merchant"}.On(ScopedKey{"", "p"})
	own := Operation{Kind: Refund, Key: "r", Client: "payer"}.On(ScopedKey{"payer", "p"})
	for _, tc := range []struct {
		o    Operation
		of   ScopedKey
		json string
	}{
		{theirs, ScopedKey{"payer", "p"}, `{"operation":"refund","idempotency_key":"r","client":"merchant","payment_key":"p","payment_client":"payer"}`},
		{shared, ScopedKey{"", "p"}, `{"operation":"refund","idempotency_key":"r","client":"merchant","payment_key":"p","payment_client":""}`},
		{own, ScopedKey{"payer", "p"}, `{"operation":"refund","idempotency_key":"r","client":"payer","payment_key":"p"}`},
	} {
		text, err := json.Marshal(tc.o)
		if err != nil || string(text) != tc.json {
			t.Errorf("%s, %v; want %s", text, err, tc.json)
		}
		var read Operation
		if err := json.Unmarshal(text, &read); err != nil || read.Of() != tc.of || read.Fingerprint() != tc.o.Fingerprint() {
			t.Errorf("%s is read as %+v, %v", text, read, err)
		}
	}
	if theirs.Fingerprint() != own.Fingerprint() || theirs.Fingerprint() == shared.Fingerprint() {
		t.Error("the fingerprint is not that of the payment's client")
	}
}

// The refund of a cancellation has one key, however often the cancellation is delivered, and no other
// cancellation has it.
func TestTheKeyOfACancellationsRefund(t *testing.T) {
	const ref = "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10"
	long := strings.Repeat("k", MaxKey)
	seen := map[string]bool{}
	for _, o := range []Operation{{Key: "k"}, {Key: "l"}, {Key: "k", Client: "c"}, {Key: "c", Client: "k"}, {Key: "ck"}, {Key: long, Client: long}} {
		key := o.CancelKey(ref)
		again := o
		again.Kind, again.Note, again.AttemptID = Cancel, "another reason", "another attempt"
		if again.CancelKey(ref) != key {
			t.Errorf("a second delivery of %+v has another key", o)
		}
		refund := Operation{Kind: Refund, Key: key, Payment: "p"}
		if err := refund.ValidateRefund(); seen[key] || err != nil || !refund.ForCancel() || len(key) > MaxKey {
			t.Errorf("%+v: %s, %v", o, key, err)
		}
		if of, cancellation := CancelKeyParts(key); of != ref || cancellation == "" {
			t.Errorf("%s: %s, %s", key, of, cancellation)
		}
		seen[key] = true
	}
}

func TestTheFingerprintOfAnOperation(t *testing.T) {
	usd, _ := money.ParseCurrency("USD")
	base := Operation{Kind: Refund, Key: "r-1", Payment: "p-1", Minor: 60, Currency: usd, Note: "broken"}
	same := base
	same.AttemptID = "another"
	if same.Fingerprint() != base.Fingerprint() {
		t.Error("an attempt changes the fingerprint")
	}
	for name, change := range map[string]func(*Operation){
		"kind":     func(o *Operation) { o.Kind = Capture },
		"client":   func(o *Operation) { o.Client = "c" },
		"payment":  func(o *Operation) { o.Payment = "p-2" },
		"amount":   func(o *Operation) { o.Minor = 61 },
		"currency": func(o *Operation) { o.Currency = money.IDR },
		"note":     func(o *Operation) { o.Note = "" },
		"rate":     func(o *Operation) { o.Exchange.MidMinor = 1 },
	} {
		other := base
		change(&other)
		if other.Fingerprint() == base.Fingerprint() {
			t.Errorf("another %s has the same fingerprint", name)
		}
	}
}

// The remainder of a captured part is that of the part: what it is worth exactly is what was moved, and the
// remainder.
func TestTheRemainderOfACapturedPart(t *testing.T) {
	usd, _ := money.ParseCurrency("USD")
	jpy, _ := money.ParseCurrency("JPY")
	of := Payment{DebitCurrency: usd, CreditCurrency: jpy, DebitMinor: 1000, CreditMinor: 1507, AmountIDR: 155_000, Exchange: Exchange{MidMinor: 1510, Remainder: "0.25"}}
	for _, tc := range []struct {
		fixed money.Currency
		debit int64
		want  string
	}{
		{usd, 1000, "0.25"},
		{usd, 333, "0.91425"}, // 1507.25 × 0.333 is 501.91425, and 501 were paid
		{usd, 1, "0.50725"},
		{usd, 999, "0.74275"},
		{jpy, 500, "0.45670205706702057"}, // 753 cost 499.5432…
	} {
		p := of
		p.Currency = tc.fixed
		got := p.Captured(tc.debit).Exchange.Remainder
		if got != strings.TrimRight(tc.want, "0") {
			t.Errorf("%d of %s: %s, want %s", tc.debit, tc.fixed, got, tc.want)
		}
	}
}

// A part of an authorized payment takes its share of each amount, rounded down, in currencies of 0, 2
// and 3 decimal places.
func TestAPartIsCaptured(t *testing.T) {
	currency := func(code string) money.Currency {
		c, err := money.ParseCurrency(code)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	exchanged := func(debit, credit string, debitMinor, creditMinor, mid, idr int64) Payment {
		return Payment{
			DebitCurrency: currency(debit), CreditCurrency: currency(credit), DebitMinor: debitMinor, CreditMinor: creditMinor,
			AmountIDR: idr, Exchange: Exchange{MidMinor: mid},
		}
	}
	for name, tc := range map[string]struct {
		of                     Payment
		debit                  int64
		credit, mid, amountIDR int64
	}{
		"the whole":           {exchanged("USD", "JPY", 1000, 1507, 1510, 155_000), 1000, 1507, 1510, 155_000},
		"dollars to yen":      {exchanged("USD", "JPY", 1000, 1507, 1510, 155_000), 333, 501, 502, 51_615},
		"dollars to dinars":   {exchanged("USD", "KWD", 1000, 3071, 3075, 155_000), 1, 3, 3, 155},
		"dinars to dollars":   {exchanged("KWD", "USD", 3071, 999, 1000, 155_000), 3, 0, 0, 151},
		"rupiah to dollars":   {exchanged("IDR", "USD", 155_000, 1000, 1001, 155_000), 77_499, 499, 500, 77_499},
		"worth no rupiah":     {exchanged("VND", "USD", 1_000_000, 4000, 4000, 600_000), 1, 0, 0, 1},
		"rupiah":              {Payment{AmountIDR: 500}, 123, 123, 0, 123},
		"one other currency":  {exchanged("USD", "USD", 1000, 1000, 0, 155_000), 999, 999, 0, 154_845},
		"the largest amounts": {exchanged("USD", "JPY", money.MaxMinor, money.MaxMinor, money.MaxMinor, money.MaxMinor), money.MaxMinor - 1, money.MaxMinor - 1, money.MaxMinor - 1, money.MaxMinor - 1},
	} {
		got := tc.of.Captured(tc.debit)
		if got.Debit().Minor != tc.debit || got.Credit().Minor != tc.credit || got.Exchange.MidMinor != tc.mid || got.AmountIDR != tc.amountIDR {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
