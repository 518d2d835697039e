// Package money holds exact amounts: integers of minor units with an ISO 4217 currency. It uses no
// binary floating point. A float from JSON or proto becomes a decimal at the edge.
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

// MaxMinor is the largest amount: 10^15 minor units. It is below 2^53, so an amount passes
// unchanged through a double that the contract requires. It is also far enough below 2^63 for sums.
const MaxMinor = 1_000_000_000_000_000

// maxTextLen is the longest text that is parsed: the digits of MaxMinor, a point, a sign, and room
// for leading zeros.
const maxTextLen = 40

var (
	// ErrCurrency means that ISO 4217 does not have the code.
	ErrCurrency = errors.New("not an ISO 4217 currency code")
	// ErrSyntax means that the text is not a plain or scientific decimal number.
	ErrSyntax = errors.New("not a decimal number")
	// ErrPrecision means that there are more decimal places than the currency has.
	ErrPrecision = errors.New("more decimal places than the currency has")
	// ErrRange means that an amount is larger than MaxMinor, or that a rate is not positive.
	ErrRange = errors.New("out of range")
)

// Currency is an ISO 4217 currency. The zero value means no currency.
type Currency struct{ code string }

// IDR is the currency of the ledger.
var IDR = Currency{"IDR"}

// ParseCurrency accepts an upper-case alphabetic ISO 4217 code. It returns ErrCurrency for any
// other text.
func ParseCurrency(code string) (Currency, error) {
	if code == "" || !currency.IsValid(code) {
		return Currency{}, fmt.Errorf("currency %.8q: %w", code, ErrCurrency)
	}
	return Currency{code}, nil
}

// String returns the alphabetic code.
func (c Currency) String() string { return c.code }

// MarshalText returns the code. It is empty if there is no currency.
func (c Currency) MarshalText() ([]byte, error) { return []byte(c.code), nil }

// UnmarshalText reads what MarshalText writes.
func (c *Currency) UnmarshalText(text []byte) (err error) {
	*c = Currency{}
	if len(text) > 0 {
		*c, err = ParseCurrency(string(text))
	}
	return err
}

// Digits returns the number of decimal places of the minor unit. ISO 4217 says 2 for IDR. But no
// sen has circulated for decades, and the ledger keeps whole rupiah.
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

// ParseAmount reads an amount in major units, such as "10.25", "10" or "1e3". It accepts trailing
// zeros beyond the currency's digits, because they change nothing. It returns ErrSyntax,
// ErrPrecision or ErrRange.
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

// FromFloat reads an amount in major units from a double. It uses the shortest decimal that
// represents the double. That is the decimal that the sender wrote, if it had at most 15 digits.
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

// String returns major units with all of the currency's digits, such as "10.25".
func (a Amount) String() string {
	return apd.New(a.Minor, -a.Currency.Digits()).Text('f')
}

// Float returns major units for a contract that requires a double. It is exact to 15 digits.
func (a Amount) Float() float64 {
	f, _ := strconv.ParseFloat(a.String(), 64)
	return f
}

// Rate is the number of major units of the quote currency for one major unit of the base currency.
// It is exact and positive. The zero value means no rate.
type Rate struct{ d *apd.Decimal }

// ParseRate reads an exact decimal of at most 18 digits. It returns ErrSyntax or ErrRange.
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

// RateFromFloat reads a rate from a double.
func RateFromFloat(f float64) (Rate, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return Rate{}, fmt.Errorf("rate %g: %w", f, ErrRange)
	}
	return ParseRate(strconv.FormatFloat(f, 'g', -1, 64))
}

// IsZero reports whether there is no rate.
func (r Rate) IsZero() bool { return r.d == nil }

// Cmp compares two rates. It returns -1, 0 or +1 if r is below, equal to or above the other.
func (r Rate) Cmp(other Rate) int { return r.d.Cmp(other.d) }

// String returns the plain decimal without trailing zeros. It is empty if there is no rate.
func (r Rate) String() string {
	if r.d == nil {
		return ""
	}
	return r.d.Text('f')
}

// MarshalText returns the decimal. It is empty if there is no rate.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (r *Rate) UnmarshalText(text []byte) (err error) {
	*r = Rate{}
	if len(text) > 0 {
		*r, err = ParseRate(string(text))
	}
	return err
}

// Float returns the rate for a contract that requires a double.
func (r Rate) Float() float64 {
	f, _ := strconv.ParseFloat(r.String(), 64)
	return f
}

// exact has room for any product of an amount and a rate, so the only rounding is the last step of
// Convert. The product has at most 16 digits of MaxMinor and 18 of the rate; the precision is
// larger than that.
var exact = apd.Context{
	Precision: 60, MaxExponent: apd.MaxExponent, MinExponent: apd.MinExponent,
	Rounding: apd.RoundHalfEven, Traps: apd.DefaultTraps,
}

// Convert converts an amount to another currency. It rounds once, half to even.
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

// Cross calculates the rate base→quote from the rates base→pivot and quote→pivot. The result has 12
// significant digits and is rounded half to even.
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

// parseDecimal accepts only finite numbers. apd would also accept NaN, Infinity, and exponents that
// make a huge number of a short text.
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
