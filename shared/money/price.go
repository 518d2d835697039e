package money

import (
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// ErrTooSmall means that an amount rounds to zero in another currency.
var ErrTooSmall = errors.New("rounds to nothing")

const (
	// rateDigits is the maximum number of digits of a Rate, before and after the point.
	rateDigits = 18
	// remainderDigits is the number of digits that a remainder keeps after the point.
	remainderDigits = 18
)

// Price is an exact rate: a product and quotient of rates, in major units. The zero value is the
// price of a currency in itself, 1.
type Price struct{ r *big.Rat }

// Times returns the price multiplied by a rate. The rate must not be zero.
func (p Price) Times(r Rate) Price { return Price{new(big.Rat).Mul(p.ratio(), r.ratio())} }

// Over returns the price divided by a rate. The rate must not be zero.
func (p Price) Over(r Rate) Price { return Price{new(big.Rat).Quo(p.ratio(), r.ratio())} }

// Inverse returns the price of the other direction.
func (p Price) Inverse() Price { return Price{new(big.Rat).Inv(p.ratio())} }

func (p Price) ratio() *big.Rat {
	if p.r == nil {
		return big.NewRat(1, 1)
	}
	return p.r
}

// ratio returns the exact value of the rate.
func (r Rate) ratio() *big.Rat {
	exact, ok := new(big.Rat).SetString(r.String())
	if !ok {
		panic("money: a price of no rate")
	}
	return exact
}

// Rate returns the price as a rate, rounded half to even to 18 significant digits and at most 18
// decimal places. It returns ErrRange if no rate is that large or that small.
func (p Price) Rate() (Rate, error) {
	x := p.ratio()
	// The exponent of the first significant digit.
	first := len(x.Num().String()) - len(x.Denom().String())
	if x.Cmp(powerOfTen(first)) < 0 {
		first--
	}
	if first >= rateDigits {
		return Rate{}, fmt.Errorf("a rate of 10^%d: %w", first, ErrRange)
	}
	places := min(rateDigits-1-first, rateDigits)
	digits := new(big.Rat).SetInt(nearest(new(big.Rat).Mul(x, powerOfTen(places))))
	return ParseRate(digits.Mul(digits, powerOfTen(-places)).FloatString(places))
}

// Rounding says how an amount is rounded to minor units.
type Rounding int

// The roundings of Price.Convert.
const (
	HalfEven Rounding = iota
	Down
	Up
)

// Convert converts an amount to another currency and rounds it once. The remainder is what rounding
// down took from the amount, or what rounding up added to it: a decimal fraction of one minor unit,
// cut to 18 digits after the point. Convert returns ErrTooSmall if the result is zero, and ErrRange
// if it is larger than MaxMinor.
func (p Price) Convert(a Amount, to Currency, how Rounding) (converted Amount, remainder string, err error) {
	exact := new(big.Rat).SetInt64(a.Minor)
	exact.Mul(exact, p.ratio()).Mul(exact, powerOfTen(int(to.Digits()-a.Currency.Digits())))
	var minor *big.Int
	switch how {
	case Down:
		minor = floor(exact)
	case Up:
		minor = floor(new(big.Rat).Neg(exact))
		minor.Neg(minor)
	default:
		minor = nearest(exact)
	}
	switch {
	case minor.Sign() == 0:
		err = ErrTooSmall
	case minor.CmpAbs(big.NewInt(MaxMinor)) > 0:
		err = fmt.Errorf("%w: at most %d minor units", ErrRange, int64(MaxMinor))
	}
	if err != nil {
		return Amount{}, "", fmt.Errorf("%s %s in %s: %w", a, a.Currency, to, err)
	}
	left := exact.Sub(exact, new(big.Rat).SetInt(minor))
	return Amount{minor.Int64(), to}, fraction(left.Abs(left)), nil
}

// fraction returns the decimal of a number below 1, cut to remainderDigits and without trailing
// zeros.
func fraction(x *big.Rat) string {
	digits := floor(new(big.Rat).Mul(x, powerOfTen(remainderDigits))).String()
	digits = strings.TrimRight(strings.Repeat("0", remainderDigits-len(digits))+digits, "0")
	if digits == "" {
		return "0"
	}
	return "0." + digits
}

func powerOfTen(n int) *big.Rat {
	power := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(n, -n))), nil)
	if n < 0 {
		return new(big.Rat).SetFrac(big.NewInt(1), power)
	}
	return new(big.Rat).SetInt(power)
}

// floor rounds towards minus infinity, because the divisor is positive.
func floor(x *big.Rat) *big.Int { return new(big.Int).Div(x.Num(), x.Denom()) }

// nearest rounds half to even.
func nearest(x *big.Rat) *big.Int {
	whole := floor(x)
	twice := new(big.Rat).Sub(x, new(big.Rat).SetInt(whole))
	switch twice.Add(twice, twice).Cmp(big.NewRat(1, 1)) {
	case 1:
		whole.Add(whole, big.NewInt(1))
	case 0:
		whole.Add(whole, new(big.Int).SetUint64(uint64(whole.Bit(0))))
	}
	return whole
}
