package money

import (
	"errors"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

func rateOf(t interface{ Fatalf(string, ...any) }, text string) Rate {
	r, err := ParseRate(text)
	if err != nil {
		t.Fatalf("ParseRate(%q): %v", text, err)
	}
	return r
}

// The currencies have 0, 2, 3 and 4 digits.
func TestPriceConverts(t *testing.T) {
	for _, tc := range []struct {
		minor     int64
		from      string
		times     string
		over      string
		to        string
		how       Rounding
		want      int64
		remainder string
		err       error
	}{
		{1000, "USD", "1.339", "1", "SGD", Down, 1339, "0", nil},
		{1001, "USD", "1.339", "1", "SGD", Down, 1340, "0.339", nil},
		{1001, "USD", "1.339", "1", "SGD", Up, 1341, "0.661", nil},
		{1001, "USD", "1.339", "1", "SGD", HalfEven, 1340, "0.339", nil},
		{1, "USD", "50", "1", "IDR", HalfEven, 0, "", ErrTooSmall},                    // 0.5
		{1, "USD", "150", "1", "IDR", HalfEven, 2, "0.5", nil},                        // 1.5
		{1, "USD", "250", "1", "IDR", HalfEven, 2, "0.5", nil},                        // 2.5
		{100_000, "IDR", "1", "15510", "USD", Down, 644, "0.745325596389426176", nil}, // cut, not rounded
		{100_000, "IDR", "1", "15510", "USD", Up, 645, "0.254674403610573823", nil},
		{1_000, "JPY", "103", "1", "IDR", Down, 103_000, "0", nil},
		{1_234, "KWD", "50400", "1", "IDR", Down, 62_193, "0.6", nil},
		{62_193, "IDR", "1", "50500", "KWD", Down, 1_231, "0.544554455445544554", nil},
		{62_193, "IDR", "1", "602000", "CLF", Down, 1033, "0.106312292358803986", nil},
		{10_001, "CLF", "602000.5", "1", "IDR", Down, 602_060, "0.70005", nil},
		{1, "CLF", "5320", "1", "JPY", Up, 1, "0.468", nil},
		{1, "CLF", "5320", "1", "JPY", Down, 0, "", ErrTooSmall},
		{1, "JPY", "1", "5320", "CLF", Down, 1, "0.879699248120300751", nil},
		{MaxMinor, "IDR", "1", "1", "IDR", Down, MaxMinor, "0", nil},
		{MaxMinor, "IDR", "1.000000000000001", "1", "IDR", Down, 0, "", ErrRange},
		{MaxMinor, "KWD", "999999999999999999", "0.000000000000000001", "IDR", Up, 0, "", ErrRange},
		{1, "IDR", "0.000000000000000001", "999999999999999999", "USD", Down, 0, "", ErrTooSmall},
		{1, "IDR", "0.000000000000000001", "1", "IDR", Up, 1, "0.999999999999999999", nil},
	} {
		p := Price{}.Times(rateOf(t, tc.times)).Over(rateOf(t, tc.over))
		got, remainder, err := p.Convert(Amount{tc.minor, currencyOf(t, tc.from)}, currencyOf(t, tc.to), tc.how)
		if !errors.Is(err, tc.err) || got.Minor != tc.want || remainder != tc.remainder {
			t.Errorf("%d %s × %s ÷ %s in %s: %d and %s, %v; want %d and %s", tc.minor, tc.from, tc.times, tc.over, tc.to,
				got.Minor, remainder, err, tc.want, tc.remainder)
		}
	}
	if got, _, err := (Price{}).Convert(Amount{7, IDR}, IDR, Down); err != nil || got.Minor != 7 {
		t.Errorf("at no rate: %v, %v", got, err)
	}
}

func TestPriceAsARate(t *testing.T) {
	for _, tc := range []struct{ times, over, want string }{
		{"1.339", "1", "1.339"},
		{"1", "15510", "0.000064474532559639"}, // 18 places
		{"1", "50500", "0.00001980198019802"},
		{"15490", "11610", "1.33419465977605512"},
		{"2", "3", "0.666666666666666667"},
		{"602000.5", "3", "200666.833333333333"},
		{"999999999999999999", "1", "999999999999999999"},
		{"999999999999999999", "0.999999999999999999", "1000000000000000000"}, // too large
		{"0.000000000000000001", "1", "0.000000000000000001"},
		{"0.000000000000000001", "2", "0"}, // half to even
		{"0.000000000000000003", "2", "0.000000000000000002"},
		{"0.000000000000000001", "999999999999999999", "0"},
	} {
		got, err := Price{}.Times(rateOf(t, tc.times)).Over(rateOf(t, tc.over)).Rate()
		if _, none := ParseRate(tc.want); none != nil {
			if !errors.Is(err, ErrRange) {
				t.Errorf("%s ÷ %s = %s, %v; want ErrRange", tc.times, tc.over, got, err)
			}
			continue
		}
		if err != nil || got.String() != tc.want {
			t.Errorf("%s ÷ %s = %s, %v; want %s", tc.times, tc.over, got, err, tc.want)
		}
	}
}

// drawRate draws a rate with up to 18 digits before and after the point.
func drawRate(t *rapid.T, name string) Rate {
	digits := rapid.Int64Range(1, 999_999_999_999_999_999).Draw(t, name)
	places := rapid.IntRange(0, 18).Draw(t, name+" places")
	return rateOf(t, new(big.Rat).Mul(new(big.Rat).SetInt64(digits), powerOfTen(-places)).FloatString(places))
}

// A price as a rate is within half of its last digit, and ParseRate reads it.
func TestPriceAsARateIsClose(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Price{}.Times(drawRate(t, "a")).Over(drawRate(t, "b"))
		if rapid.Bool().Draw(t, "two steps") {
			p = p.Times(drawRate(t, "c"))
		}
		got, err := p.Rate()
		x := p.ratio()
		if err != nil {
			small, large := new(big.Rat).Mul(big.NewRat(1, 2), powerOfTen(-18)), powerOfTen(18)
			if !errors.Is(err, ErrRange) || x.Cmp(small) > 0 && x.Cmp(new(big.Rat).Sub(large, big.NewRat(1, 2))) < 0 {
				t.Fatalf("%s: %v", x.FloatString(40), err)
			}
			return
		}
		if again, err := ParseRate(got.String()); err != nil || again.Cmp(got) != 0 {
			t.Fatalf("%s is read as %s, %v", got, again, err)
		}
		off := new(big.Rat).Sub(got.ratio(), x)
		allowed := new(big.Rat).Mul(x, powerOfTen(-17)) // relative, as 18 digits are
		if floor := new(big.Rat).Mul(big.NewRat(1, 2), powerOfTen(-18)); allowed.Cmp(floor) < 0 {
			allowed = floor // 18 places
		}
		if off.Abs(off).Cmp(allowed) > 0 {
			t.Fatalf("%s for %s", got, x.FloatString(40))
		}
	})
}

// Rounding down and up enclose the exact amount, and the remainders say by how much.
func TestPriceRoundings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		codes := rapid.SampledFrom([]string{"IDR", "JPY", "USD", "KWD", "CLF"})
		from, to := currencyOf(t, codes.Draw(t, "from")), currencyOf(t, codes.Draw(t, "to"))
		a := Amount{rapid.Int64Range(1, MaxMinor).Draw(t, "minor"), from}
		p := Price{}.Times(rateOf(t, "15500.25")).Over(drawRate(t, "rate"))
		down, below, errDown := p.Convert(a, to, Down)
		up, above, errUp := p.Convert(a, to, Up)
		near, _, errNear := p.Convert(a, to, HalfEven)
		if errDown != nil || errUp != nil || errNear != nil {
			if errUp == nil && errDown == nil {
				t.Fatal(errNear)
			}
			return
		}
		fractions := 0
		for _, text := range []string{below, above} {
			if x, ok := new(big.Rat).SetString(text); !ok || x.Sign() < 0 || x.Cmp(big.NewRat(1, 1)) >= 0 {
				t.Fatalf("remainder %q", text)
			} else if x.Sign() > 0 {
				fractions++
			}
		}
		if whole := up.Minor == down.Minor; up.Minor-down.Minor > 1 || whole && fractions != 0 || near != up && near != down {
			t.Fatalf("%d and %s, %d and %s, %d", down.Minor, below, up.Minor, above, near.Minor)
		}
	})
}
