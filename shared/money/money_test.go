package money

import (
	"errors"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

func currencyOf(t interface{ Fatalf(string, ...any) }, code string) Currency {
	c, err := ParseCurrency(code)
	if err != nil {
		t.Fatalf("ParseCurrency(%q): %v", code, err)
	}
	return c
}

func TestParseAmount(t *testing.T) {
	for _, tc := range []struct {
		text, code string
		minor      int64
		err        error
	}{
		{"10", "USD", 1000, nil},
		{"10.25", "USD", 1025, nil},
		{"10.2500", "USD", 1025, nil},
		{"1e3", "USD", 100000, nil},
		{"0", "USD", 0, nil},
		{"0e-10", "USD", 0, nil},
		{"-3.5", "SGD", -350, nil},
		{"10.255", "USD", 0, ErrPrecision},
		{"100.5", "JPY", 0, ErrPrecision},
		{"100", "JPY", 100, nil},
		{"1.234", "KWD", 1234, nil},
		{"1.2345", "KWD", 0, ErrPrecision},
		{"155000", "IDR", 155000, nil},
		{"155000.00", "IDR", 155000, nil},
		{"155000.50", "IDR", 0, ErrPrecision},
		{"1000000000000000", "IDR", MaxMinor, nil},
		{"1000000000000001", "IDR", 0, ErrRange},
		{"99999999999999999999999", "IDR", 0, ErrRange},
		{"1e30", "USD", 0, ErrRange},
		{"1e99999", "USD", 0, ErrRange},
		{"", "USD", 0, ErrSyntax},
		{"NaN", "USD", 0, ErrSyntax},
		{"Infinity", "USD", 0, ErrSyntax},
		{"ten", "USD", 0, ErrSyntax},
		{"1,000", "USD", 0, ErrSyntax},
		{"0000000000000000000000000000000000000000010", "USD", 0, ErrSyntax},
	} {
		a, err := ParseAmount(tc.text, currencyOf(t, tc.code))
		if !errors.Is(err, tc.err) || (err == nil && a.Minor != tc.minor) {
			t.Errorf("ParseAmount(%q, %s) = %d, %v; want %d, %v", tc.text, tc.code, a.Minor, err, tc.minor, tc.err)
		}
	}
}

func TestParseCurrency(t *testing.T) {
	for _, code := range []string{"", "usd", "XXQ", "US", "USDD", "DROP TABLE"} {
		if _, err := ParseCurrency(code); !errors.Is(err, ErrCurrency) {
			t.Errorf("ParseCurrency(%q): %v, want ErrCurrency", code, err)
		}
	}
}

func TestConvertRoundsHalfToEvenOnce(t *testing.T) {
	for _, tc := range []struct {
		amount, from, rate, to string
		minor                  int64
	}{
		{"10", "USD", "15500", "IDR", 155000},
		{"10", "SGD", "11600", "IDR", 116000},
		{"1", "IDR", "1", "IDR", 1},
		{"0.01", "USD", "50", "IDR", 0},  // 0.5 → 0
		{"0.01", "USD", "150", "IDR", 2}, // 1.5 → 2
		{"0.01", "USD", "250", "IDR", 2}, // 2.5 → 2
		{"0.01", "USD", "250.000000000001", "IDR", 3},
		{"100", "JPY", "103.25", "IDR", 10325},
		{"1.234", "KWD", "50500", "IDR", 62317},
		{"155000", "IDR", "0.0000645161290323", "USD", 1000},
	} {
		a, err := ParseAmount(tc.amount, currencyOf(t, tc.from))
		if err != nil {
			t.Fatal(err)
		}
		r, err := ParseRate(tc.rate)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Convert(a, r, currencyOf(t, tc.to))
		if err != nil || got.Minor != tc.minor {
			t.Errorf("Convert(%s %s at %s) = %d, %v; want %d", tc.amount, tc.from, tc.rate, got.Minor, err, tc.minor)
		}
	}
}

// The reference does the same with big rationals: the exact product, rounded once.
func TestConvertAgainstRationals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := currencyOf(t, rapid.SampledFrom([]string{"USD", "JPY", "KWD", "IDR"}).Draw(t, "from"))
		minor := rapid.Int64Range(0, 1_000_000_000).Draw(t, "minor")
		mantissa := rapid.Int64Range(1, 999_999_999).Draw(t, "mantissa")
		scale := rapid.IntRange(0, 9).Draw(t, "scale")

		scaleBy := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(scale)), nil)
		exactRate := new(big.Rat).SetFrac(big.NewInt(mantissa), scaleBy)
		r, err := ParseRate(exactRate.FloatString(scale))
		if err != nil {
			t.Fatal(err)
		}
		unit := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(from.Digits())), nil)
		want := roundHalfEven(new(big.Rat).Mul(new(big.Rat).SetFrac(big.NewInt(minor), unit), exactRate))

		got, err := Convert(Amount{minor, from}, r, IDR)
		if want.Cmp(big.NewInt(MaxMinor)) > 0 {
			if !errors.Is(err, ErrRange) {
				t.Fatalf("beyond MaxMinor: %v, %v", got, err)
			}
			return
		}
		if err != nil || got.Minor != want.Int64() {
			t.Fatalf("Convert(%d %s at %s) = %d, %v; want %s", minor, from, r, got.Minor, err, want)
		}
	})
}

func roundHalfEven(x *big.Rat) *big.Int {
	q, m := new(big.Int).QuoRem(x.Num(), x.Denom(), new(big.Int))
	switch new(big.Int).Lsh(m, 1).Cmp(x.Denom()) {
	case 1:
		q.Add(q, big.NewInt(1))
	case 0:
		if q.Bit(0) == 1 {
			q.Add(q, big.NewInt(1))
		}
	}
	return q
}

func TestAmountTextRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := currencyOf(t, rapid.SampledFrom([]string{"USD", "JPY", "KWD", "IDR"}).Draw(t, "currency"))
		a := Amount{rapid.Int64Range(-MaxMinor, MaxMinor).Draw(t, "minor"), c}
		if got, err := ParseAmount(a.String(), c); err != nil || got != a {
			t.Fatalf("ParseAmount(%q) = %v, %v; want %v", a.String(), got, err, a)
		}
		if c.Digits() == 0 {
			if got, err := FromFloat(a.Float(), c); err != nil || got != a {
				t.Fatalf("through a double: %v, %v; want %v", got, err, a)
			}
		}
	})
}

func TestParseRate(t *testing.T) {
	for _, text := range []string{"0", "-1", "1e40", "0.0000000000000000001", "1234567890123456789", "x", ""} {
		if r, err := ParseRate(text); err == nil {
			t.Errorf("ParseRate(%q) = %s, want an error", text, r)
		}
	}
	if r, err := ParseRate("15500.00"); err != nil || r.String() != "15500" {
		t.Errorf("ParseRate(15500.00) = %q, %v", r.String(), err)
	}
	if r, err := RateFromFloat(11600.5); err != nil || r.String() != "11600.5" {
		t.Errorf("RateFromFloat(11600.5) = %q, %v", r.String(), err)
	}
}

func TestCross(t *testing.T) {
	usd, _ := ParseRate("15500")
	sgd, _ := ParseRate("11600")
	r, err := Cross(usd, sgd)
	if err != nil || r.String() != "1.33620689655" {
		t.Errorf("USD→SGD = %s, %v", r, err)
	}
}
