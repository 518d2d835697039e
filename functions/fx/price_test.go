package fx

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// start is when the rates of tests come into force: each a second after the one before.
var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// stored reads rates such as "USD/IDR 15490 15500 15510", which is bid, mid and ask, or "USD/IDR
// 15500", which has no spread. The ids are a, b, c and so on.
func stored(t interface{ Fatal(...any) }, lines ...string) rates {
	all := rates{}
	for i, line := range lines {
		words := strings.Fields(line)
		base, to, _ := strings.Cut(words[0], "/")
		var p pair
		q := quote{id: string(rune('a' + i)), at: start.Add(time.Duration(i) * time.Second)}
		err := errors.Join(p.base.UnmarshalText([]byte(base)), p.quote.UnmarshalText([]byte(to)))
		if len(words) == 2 {
			err = errors.Join(err, q.rate.UnmarshalText([]byte(words[1])))
		} else {
			err = errors.Join(err, q.bid.UnmarshalText([]byte(words[1])), q.rate.UnmarshalText([]byte(words[2])), q.ask.UnmarshalText([]byte(words[3])))
		}
		if err != nil {
			t.Fatal(line, err)
		}
		all[p] = q
	}
	return all
}

// A price is at bid or ask of the pair, or of both pairs of a pivot. The credit is rounded down if the
// debit is fixed; else the debit is rounded up.
func TestPrice(t *testing.T) {
	seeds := []string{"USD/IDR 15490 15500 15510", "SGD/IDR 11590 11600 11610", "USD/SGD 1.339 1.340 1.341",
		"JPY/IDR 103 103.25 103.5", "KWD/IDR 50400 50450 50500", "CLF/IDR 600000 602000.5 604000"}
	rupiah := seeds[:2] // dollars and Singapore dollars through the rupiah
	for name, tc := range map[string]struct {
		rates []string
		order string // amount, fixed currency, debit and credit currency
		want  string // debit and credit, its value at mid, the remainder, and what the debit is worth in rupiah
		price string // rate, mid rate, and the rates' ids
	}{
		"sell dollars": {seeds, "10.00 USD USD SGD", "10.00 13.39 13.40 0 155000", "1.339 1.34 c"},
		"buy dollars exactly": {
			seeds, "13.39 SGD USD SGD", "10.00 13.39 13.40 0 155000", "1.339 1.34 c"},
		"the credit is rounded down":  {seeds, "10.01 USD USD SGD", "10.01 13.40 13.41 0.339 155155", "1.339 1.34 c"},
		"the debit is rounded up":     {seeds, "13.40 SGD USD SGD", "10.01 13.40 13.41 0.253174010455563853 155155", "1.339 1.34 c"},
		"inverse, at ask":             {seeds, "13.41 SGD SGD USD", "13.41 10.00 10.00 0 155556", "0.745712155108128262 0.74626865671641791 c"},
		"inverse, exactly":            {seeds, "10.00 USD SGD USD", "13.41 10.00 10.00 0 155556", "0.745712155108128262 0.74626865671641791 c"},
		"rupiah to dollars":           {seeds, "100000 IDR IDR USD", "100000 6.44 6.45 0.745325596389426176 100000", "0.000064474532559639 0.000064516129032258 a"},
		"dollars from rupiah":         {seeds, "6.45 USD IDR USD", "100040 6.45 6.45 0.5 100040", "0.000064474532559639 0.000064516129032258 a"},
		"dollars to rupiah":           {seeds, "10.00 USD USD IDR", "10.00 154900 155000 0 155000", "15490 15500 a"},
		"through the rupiah":          {rupiah, "100.00 USD USD SGD", "100.00 133.41 133.62 0.946597760551248923 1550000", "1.33419465977605512 1.33620689655172414 a/b"},
		"through the rupiah, exactly": {rupiah, "133.41 SGD USD SGD", "100.00 133.41 133.62 0.709489993544222078 1550000", "1.33419465977605512 1.33620689655172414 a/b"},
		"no decimal places":           {seeds, "10.00 USD USD JPY", "10.00 1496 1501 0.618357487922705314 155000", "149.661835748792271 150.121065375302663 a/d"},
		"three decimal places":        {seeds, "10000 JPY JPY KWD", "10000 20.396 20.465 0.039603960396039603 1032500", "0.00203960396039604 0.002046580773042616 d/e"},
		"four decimal places":         {seeds, "1.0000 CLF CLF KWD", "1.0000 11.881 11.932 0.188118811881188118 602000", "11.8811881188118812 11.9326164519326065 f/e"},
		"to four decimal places":      {seeds, "10000 JPY JPY CLF", "10000 1.7052 1.7151 0.980132450331125827 1032500", "0.000170529801324503 0.000171511485455577 d/f"},
		"rupiah to dinars":            {seeds, "62193 IDR IDR KWD", "62193 1.231 1.232 0.544554455445544554 62193", "0.00001980198019802 0.00001982160555005 e"},
		"one currency":                {seeds, "10.00 USD USD USD", "10.00 10.00 - - 155000", "1 - identity"},
		"one currency, priced in another": {
			seeds, "100000 IDR USD USD", "6.45 6.45 - - 99975", "0.0000645161290323 - a"},
		"rupiah, priced in dollars": {seeds, "10.00 USD IDR IDR", "155000 155000 - - 155000", "15500 - a"},
		"without a spread":          {[]string{"USD/SGD 1.340", "USD/IDR 15500"}, "10.00 USD USD SGD", "10.00 13.40 13.40 0 155000", "1.34 1.34 a"},
		"the newer direction": {
			[]string{"USD/SGD 1.339 1.340 1.341", "SGD/USD 0.74 0.75 0.76", "USD/IDR 15500"}, "0.76 USD USD SGD", "0.76 1.00 1.01 0 11780", "1.31578947368421053 1.33333333333333333 b"},
		"through the dollar": {
			[]string{"EUR/USD 1.1 1.2 1.3", "GBP/USD 1.4 1.5 1.6", "EUR/CHF 1", "GBP/CHF 1", "EUR/IDR 16850"},
			"10.00 EUR EUR GBP", "10.00 6.87 8.00 0.5 168500", "0.6875 0.8 a/b"},
		"through the first of the alphabet": {
			[]string{"EUR/CHF 1", "GBP/CHF 2", "EUR/AUD 4", "GBP/AUD 2", "EUR/IDR 16850"},
			"10.00 EUR EUR GBP", "10.00 20.00 20.00 0 168500", "2 2 c/d"},
		"worth in rupiah through the dollar": {
			[]string{"EUR/USD 1.2", "GBP/USD 1.5", "USD/IDR 15500"},
			"10.00 EUR EUR GBP", "10.00 8.00 8.00 0 186000", "0.8 0.8 a/b"},

		// TigerBeetle's recipe for currency exchange sends USD 100.00 at 82.42135 rupees, which are
		// 8,242.135 rupees. It books 8,242.14, and advises to round in favour of the liquidity account.
		// pgw does that: 8,242.13, and half a paisa stays with the house.
		"TigerBeetle's example": {
			[]string{"USD/INR 82.42135", "USD/IDR 15500"}, "100.00 USD USD INR", "100.00 8242.13 8242.13 0.5 1550000", "82.42135 82.42135 a"},
		// Its fee of USD 0.10 on top of that is a spread here: the sender pays USD 100.10, which are
		// worth 8,250.37 rupees at mid. The receiver gets the same as before, and SPREAD earns 8.24
		// rupees, which are USD 0.10.
		"TigerBeetle's example, with its fee": {
			[]string{"USD/INR 82.3390109890109891 82.42135 82.42135", "USD/IDR 15500"}, "100.10 USD USD INR",
			"100.10 8242.13 8250.37 0.500000000000891 1551550", "82.3390109890109891 82.42135 a"},

		"no rate":                     {seeds, "10.00 USD USD EUR", "there is no rate from USD to EUR", ""},
		"no rate to the rupiah":       {[]string{"USD/SGD 1.340"}, "10.00 USD USD SGD", "there is no rate from USD to IDR", ""},
		"three currencies":            {seeds, "10.00 USD JPY SGD", "fixed_currency: ", ""},
		"too little":                  {seeds, "1 IDR IDR USD", "amount_minor: 1 IDR in USD: rounds to nothing", ""},
		"too little, in one currency": {seeds, "1 IDR USD USD", "amount_minor: 1 IDR in USD: rounds to nothing", ""},
		"worth less than a rupiah":    {[]string{"USD/SGD 1", "USD/IDR 49"}, "0.01 USD USD SGD", "amount_minor: 0.01 USD in IDR: rounds to nothing", ""},
		"too much":                    {seeds, "9999999999999.99 USD USD IDR", "amount_minor: ", ""},
		"too much to pay":             {seeds, "9999999999999.99 USD IDR USD", "amount_minor: ", ""},
		"too small a rate": {
			[]string{"EUR/IDR 0.0000000001", "GBP/IDR 1000000000"}, "10.00 EUR EUR GBP", "credit_currency: the price of EUR in GBP: ", ""},
	} {
		words := strings.Fields(tc.order)
		var fixed money.Currency
		var o order
		err := errors.Join(fixed.UnmarshalText([]byte(words[1])), o.debit.UnmarshalText([]byte(words[2])), o.credit.UnmarshalText([]byte(words[3])))
		if err != nil {
			t.Fatal(name, err)
		}
		if o.fixed, err = money.ParseAmount(words[0], fixed); err != nil {
			t.Fatal(name, err)
		}
		got, err := stored(t, tc.rates...).price(o)
		if err != nil {
			var wrong *payment.FieldError
			var none noRateError
			if !errors.As(err, &wrong) && !errors.As(err, &none) || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("%s: %v; want %s", name, err, tc.want)
			}
			continue
		}
		e, mid, midRate, remainder := got.exchange, "-", "-", "-"
		if !e.IsZero() {
			mid, midRate, remainder = money.Amount{Minor: e.MidMinor, Currency: o.credit}.String(), e.MidRate.String(), e.Remainder
			if e.Rate.Cmp(got.rate) != 0 {
				t.Errorf("%s: the rate is %s and %s", name, e.Rate, got.rate)
			}
		}
		if told := fmt.Sprintf("%s %s %s %s %d", got.debit, got.credit, mid, remainder, got.amountIDR); told != tc.want {
			t.Errorf("%s: %s; want %s", name, told, tc.want)
		}
		if told := fmt.Sprintf("%s %s %s", got.rate, midRate, got.rateID); told != tc.price {
			t.Errorf("%s: %s; want %s", name, told, tc.price)
		}
	}
}
