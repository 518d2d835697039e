// Package money holds exact amounts: integers of minor units with an ISO 4217 currency. No binary
// floating point: a float from JSON or proto is turned into a decimal where it comes in.
package money

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/bojanz/currency"
	"github.com/cockroachdb/apd/v3"
)

// MaxMinor bounds every amount: 10^15 minor units. It is below 2^53, so that an amount which has to pass
// through a contract's double comes out as it went in, and far enough below 2^63 for sums.
const MaxMinor = 1_000_000_000_000_000

// maxTextLen bounds what is parsed: digits of MaxMinor, a point, a sign, and room for leading zeros.
const maxTextLen = 40

var (
	// ErrCurrency means a code that ISO 4217 does not know.
	ErrCurrency = errors.New("not an ISO 4217 currency code")
	// ErrSyntax means text that is not a plain or scientific decimal number.
	ErrSyntax = errors.New("not a decimal number")
	// ErrPrecision means more digits than the currency has.
	ErrPrecision = errors.New("more decimal places than the currency has")
	// ErrRange means an amount beyond MaxMinor, or a rate that is not positive.
	ErrRange = errors.New("out of range")
)

// Currency is an ISO 4217 currency. The zero value is none.
type Currency struct{ code string }

// IDR is the currency of the ledger.
var IDR = Currency{"IDR"}

// ParseCurrency accepts an upper-case alphabetic ISO 4217 code.
func ParseCurrency(code string) (Currency, error) {
	if code == "" || !currency.IsValid(code) {
		return Currency{}, fmt.Errorf("currency %.8q: %w", code, ErrCurrency)
	}
	return Currency{code}, nil
}

// String is the alphabetic code.
func (c Currency) String() string { return c.code }

// Digits is how many decimal places the minor unit is away from the major unit. ISO 4217 says 2 for IDR;
// no sen has circulated for decades, and the ledger keeps whole rupiah.
func (c Currency) Digits() int32 {
	if c == IDR {
		return 0
	}
	digits, _ := currency.GetDigits(c.code)
	return int32(digits)
}

// Amount is an exact amount of money.
type Amount struct {
	Minor    int64 // minor units of Currency
	Currency Currency
}

// ParseAmount reads major units, such as "10.25", "10" or "1e3", into minor units. Trailing zeros beyond
// the currency's digits are accepted, since they change nothing.
func ParseAmount(major string, c Currency) (Amount, error) {
	if len(major) > maxTextLen {
		return Amount{}, fmt.Errorf("amount of %d characters: %w: at most %d", len(major), ErrSyntax, maxTextLen)
	}
	d, err := parseDecimal(major)
	if err != nil {
		return Amount{}, fmt.Errorf("amount %q: %w", major, err)
	}
	return amountOf(d, c)
}

// FromFloat reads major units that had to travel as a double, by the shortest decimal that names the
// double, which is what the sender wrote if it wrote at most 15 digits.
func FromFloat(major float64, c Currency) (Amount, error) {
	if math.IsNaN(major) || math.IsInf(major, 0) || math.Abs(major) > MaxMinor {
		return Amount{}, fmt.Errorf("amount %g: %w", major, ErrRange)
	}
	return ParseAmount(strconv.FormatFloat(major, 'g', -1, 64), c)
}

func amountOf(d *apd.Decimal, c Currency) (Amount, error) {
	minor := new(apd.Decimal).Set(d)
	if !minor.IsZero() {
		minor.Exponent += c.Digits()
	}
	if minor.NumDigits()+int64(minor.Exponent) > 18 {
		return Amount{}, fmt.Errorf("amount %s %s: %w: at most %d minor units", d, c, ErrRange, int64(MaxMinor))
	}
	reduced, _ := new(apd.Decimal).Reduce(minor)
	if reduced.Exponent < 0 {
		return Amount{}, fmt.Errorf("amount %s %s: %w (%d)", d, c, ErrPrecision, c.Digits())
	}
	n, err := reduced.Int64()
	if err != nil || n > MaxMinor || n < -MaxMinor {
		return Amount{}, fmt.Errorf("amount %s %s: %w: at most %d minor units", d, c, ErrRange, int64(MaxMinor))
	}
	return Amount{Minor: n, Currency: c}, nil
}

// String gives major units with all of the currency's digits, such as "10.25".
func (a Amount) String() string {
	return apd.New(a.Minor, -a.Currency.Digits()).Text('f')
}

// Float gives major units for a contract that asks for a double. It is exact to 15 digits.
func (a Amount) Float() float64 {
	f, _ := strconv.ParseFloat(a.String(), 64)
	return f
}

// Rate is how many major units of the quote currency one major unit of the base buys: exact, positive.
// The zero value is no rate.
type Rate struct{ d *apd.Decimal }

// ParseRate reads an exact decimal of at most 18 digits.
func ParseRate(text string) (Rate, error) {
	if len(text) > maxTextLen {
		return Rate{}, fmt.Errorf("rate of %d characters: %w: at most %d", len(text), ErrSyntax, maxTextLen)
	}
	d, err := parseDecimal(text)
	if err != nil {
		return Rate{}, fmt.Errorf("rate %q: %w", text, err)
	}
	d, _ = d.Reduce(d)
	if d.Sign() <= 0 || d.NumDigits() > 18 || d.Exponent < -18 || d.NumDigits()+int64(d.Exponent) > 18 {
		return Rate{}, fmt.Errorf("rate %q: %w: positive, at most 18 digits before and after the point", text, ErrRange)
	}
	return Rate{d}, nil
}

// RateFromFloat reads a rate that had to travel as a double.
func RateFromFloat(f float64) (Rate, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return Rate{}, fmt.Errorf("rate %g: %w", f, ErrRange)
	}
	return ParseRate(strconv.FormatFloat(f, 'g', -1, 64))
}

// IsZero tells that there is no rate.
func (r Rate) IsZero() bool { return r.d == nil }

// String is the plain decimal, without trailing zeros; empty when there is no rate.
func (r Rate) String() string {
	if r.d == nil {
		return ""
	}
	return r.d.Text('f')
}

// Float gives the rate for a contract that asks for a double.
func (r Rate) Float() float64 {
	f, _ := strconv.ParseFloat(r.String(), 64)
	return f
}

// exact has room for any product of an amount and a rate, so that the only rounding is Convert's last
// step. Precision: 16 digits of MaxMinor and 18 of a rate, with slack.
var exact = apd.Context{
	Precision: 60, MaxExponent: apd.MaxExponent, MinExponent: apd.MinExponent,
	Rounding: apd.RoundHalfEven, Traps: apd.DefaultTraps,
}

// Convert prices an amount in another currency, rounding half to even, once.
func Convert(a Amount, r Rate, to Currency) (Amount, error) {
	if r.IsZero() {
		return Amount{}, fmt.Errorf("rate from %s to %s: %w", a.Currency, to, ErrRange)
	}
	product := new(apd.Decimal)
	if _, err := exact.Mul(product, apd.New(a.Minor, -a.Currency.Digits()), r.d); err != nil {
		return Amount{}, fmt.Errorf("convert %s %s at %s: %w", a, a.Currency, r, err)
	}
	if _, err := exact.Quantize(product, product, -to.Digits()); err != nil {
		return Amount{}, fmt.Errorf("convert %s %s at %s: %w", a, a.Currency, r, ErrRange)
	}
	return amountOf(product, to)
}

// Cross gives the rate base→quote from the two rates base→pivot and quote→pivot, to 12 significant digits,
// rounding half to even.
func Cross(base, quote Rate) (Rate, error) {
	if base.IsZero() || quote.IsZero() {
		return Rate{}, fmt.Errorf("cross rate: %w", ErrRange)
	}
	ctx := exact
	ctx.Precision = 12
	q := new(apd.Decimal)
	if _, err := ctx.Quo(q, base.d, quote.d); err != nil {
		return Rate{}, fmt.Errorf("cross rate %s over %s: %w", base, quote, err)
	}
	return ParseRate(q.Text('f'))
}

// parseDecimal refuses what apd would accept beyond numbers: NaN, Infinity, and exponents that make
// small texts into huge numbers.
func parseDecimal(text string) (*apd.Decimal, error) {
	if text == "" || strings.Trim(text, "+-.0123456789eE") != "" {
		return nil, ErrSyntax
	}
	d, _, err := apd.NewFromString(text)
	if err != nil || d.Form != apd.Finite {
		return nil, ErrSyntax
	}
	if d.Exponent > 40 || d.Exponent < -80 {
		return nil, ErrRange
	}
	return d, nil
}
