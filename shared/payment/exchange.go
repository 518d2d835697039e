package payment

import (
	"fmt"

	"pgw/shared/money"
)

// The house's own accounts. Nobody can have them from outside, and a payment must not name them.
const (
	// SettlementAccount receives the money of captured wallet holds, because a hold has no receiver.
	SettlementAccount = "SETTLEMENT"
	// LiquidityAccount exchanges one currency for another.
	LiquidityAccount = "LIQUIDITY"
	// SpreadAccount earns the difference between the mid rate and the applied rate.
	SpreadAccount = "SPREAD"
	// OutsideAccount is the world outside the ledger. Its balances are negative: what came in.
	OutsideAccount = "OUTSIDE"
)

// HouseAccounts lists the house's own accounts.
var HouseAccounts = []string{LiquidityAccount, OutsideAccount, SettlementAccount, SpreadAccount}

// IsHouse reports whether an account is one of the house's own.
func IsHouse(account string) bool {
	switch account {
	case SettlementAccount, LiquidityAccount, SpreadAccount, OutsideAccount:
		return true
	}
	return false
}

// Exchange is the price of a payment between balances of two currencies. The zero value means that
// nothing is exchanged.
type Exchange struct {
	// Rate is what one major unit of the debit currency buys, in major units of the credit currency.
	// MidRate is the same between bid and ask. Both are rounded to 18 significant digits; Steps have
	// the exact rates.
	Rate    money.Rate `json:"rate"`
	MidRate money.Rate `json:"mid_rate"`
	// MidMinor is what the debit is worth at the mid rate, in minor units of the credit currency,
	// rounded down. LIQUIDITY pays it: CreditMinor to the receiver, and the rest to SPREAD.
	MidMinor int64 `json:"mid_minor"`
	// Remainder is what rounding left to the house: a decimal fraction of one minor unit, of the
	// credit currency if the debit is fixed, else of the debit currency. It may be more than one unit
	// if only a part of the payment was captured.
	Remainder string `json:"remainder"`
	Steps     []Step `json:"steps"` // one or two
}

// Step is one stored rate of a price.
type Step struct {
	From    money.Currency `json:"from_currency"`
	To      money.Currency `json:"to_currency"`
	RateID  string         `json:"rate_id"`
	Rate    money.Rate     `json:"rate"` // as applied: bid, or ask if Inverse
	MidRate money.Rate     `json:"mid_rate"`
	Inverse bool           `json:"inverse,omitempty"` // the stored rate is from To to From: divide by it
}

// The limits of a price.
const (
	// MaxSteps is the number of stored rates that a price is made of.
	MaxSteps = 2
	// MaxRemainder and MaxRateID are maximum lengths, in bytes.
	MaxRemainder, MaxRateID = 40, 100
)

// IsZero reports whether nothing is exchanged.
func (e Exchange) IsZero() bool { return e.Rate.IsZero() && e.MidMinor == 0 && len(e.Steps) == 0 }

// InRupiah reports whether the payment moves rupiah between rupiah balances.
func (p Payment) InRupiah() bool {
	return p.DebitCurrency == (money.Currency{}) && p.CreditCurrency == (money.Currency{})
}

// Debit returns what the sender pays.
func (p Payment) Debit() money.Amount {
	if p.InRupiah() {
		return money.Amount{Minor: p.AmountIDR, Currency: money.IDR}
	}
	return money.Amount{Minor: p.DebitMinor, Currency: p.DebitCurrency}
}

// Credit returns what the receiver gets.
func (p Payment) Credit() money.Amount {
	if p.InRupiah() {
		return p.Debit()
	}
	return money.Amount{Minor: p.CreditMinor, Currency: p.CreditCurrency}
}

// Exchanges reports whether the sender pays in another currency than the receiver gets.
func (p Payment) Exchanges() bool { return p.DebitCurrency != p.CreditCurrency }

// Kind says why an amount was booked.
type Kind string

// The kinds of entries.
const (
	KindPayment    Kind = "payment"    // from the sender, to the receiver
	KindRefund     Kind = "refund"     // from the payment's receiver, back to its sender
	KindExchange   Kind = "exchange"   // to and from LIQUIDITY
	KindSpread     Kind = "spread"     // to SPREAD
	KindFunding    Kind = "funding"    // from OUTSIDE
	KindWithdrawal Kind = "withdrawal" // to OUTSIDE
)

// Leg is one entry of a transaction: an amount that an account gets, or pays if it is negative.
type Leg struct {
	Account string
	money.Amount
	Kind Kind
}

// Legs returns the entries of the committed payment. They sum to zero in each currency.
func (p Payment) Legs() []Leg {
	debit, credit := p.Debit(), p.Credit()
	legs := []Leg{
		{p.Sender, money.Amount{Minor: -debit.Minor, Currency: debit.Currency}, KindPayment},
		{p.Receiver, credit, KindPayment},
	}
	if !p.Exchanges() {
		return legs
	}
	legs = append(legs,
		Leg{LiquidityAccount, debit, KindExchange},
		Leg{LiquidityAccount, money.Amount{Minor: -p.Exchange.MidMinor, Currency: credit.Currency}, KindExchange})
	if spread := p.Exchange.MidMinor - credit.Minor; spread != 0 {
		legs = append(legs, Leg{SpreadAccount, money.Amount{Minor: spread, Currency: credit.Currency}, KindSpread})
	}
	return legs
}

// checkAmounts checks what is moved, and its price.
func (p Payment) checkAmounts() error {
	if p.InRupiah() {
		if p.DebitMinor != 0 || p.CreditMinor != 0 || !p.Exchange.IsZero() {
			return &FieldError{"debit_minor", "is given without debit_currency"}
		}
		return nil
	}
	none := money.Currency{}
	switch {
	case p.DebitCurrency == none:
		return &FieldError{"debit_currency", "is missing"}
	case p.CreditCurrency == none:
		return &FieldError{"credit_currency", "is missing"}
	case p.DebitCurrency == money.IDR && p.CreditCurrency == money.IDR:
		return &FieldError{"debit_currency", "is left out if both balances are in rupiah"}
	case p.DebitMinor <= 0 || p.DebitMinor > money.MaxMinor:
		return &FieldError{"debit_minor", fmt.Sprintf("must be positive and at most %d", int64(money.MaxMinor))}
	case p.CreditMinor <= 0 || p.CreditMinor > money.MaxMinor:
		return &FieldError{"credit_minor", fmt.Sprintf("must be positive and at most %d", int64(money.MaxMinor))}
	}
	switch named := p.Currency == p.DebitCurrency || p.Currency == p.CreditCurrency; {
	case p.Minor <= 0:
		return &FieldError{"amount", "is missing"}
	case named && p.fixed().Minor != p.Minor:
		return &FieldError{"amount", fmt.Sprintf("is %d, and the amount moved is %d", p.Minor, p.fixed().Minor)}
	case p.DebitCurrency == money.IDR && p.DebitMinor != p.AmountIDR:
		return &FieldError{"amount_idr", fmt.Sprintf("is %d, and the sender pays IDR %d", p.AmountIDR, p.DebitMinor)}
	}
	if !p.Exchanges() {
		if p.DebitMinor != p.CreditMinor || !p.Exchange.IsZero() {
			return &FieldError{"credit_minor", "must be debit_minor, because nothing is exchanged"}
		}
		return nil
	}
	return p.checkExchange()
}

func (p Payment) checkExchange() error {
	e := p.Exchange
	if p.Currency != p.DebitCurrency && p.Currency != p.CreditCurrency {
		return &FieldError{"currency", "must be debit_currency or credit_currency"}
	}
	if e.MidMinor < p.CreditMinor || e.MidMinor > money.MaxMinor {
		return &FieldError{"exchange.mid_minor", fmt.Sprintf("must be between credit_minor and %d", int64(money.MaxMinor))}
	}
	if e.Rate.IsZero() || e.MidRate.IsZero() {
		return &FieldError{"exchange.rate", "is missing"}
	}
	if len(e.Steps) == 0 || len(e.Steps) > MaxSteps {
		return &FieldError{"exchange.steps", fmt.Sprintf("must be 1 to %d", MaxSteps)}
	}
	for _, s := range e.Steps {
		if err := CheckID("exchange.steps.rate_id", s.RateID, MaxRateID); err != nil {
			return err
		}
	}
	return CheckText("exchange.remainder", e.Remainder, MaxRemainder)
}

// fixed returns the amount that the client has fixed: the side whose currency it named.
func (p Payment) fixed() money.Amount {
	if p.Currency == p.DebitCurrency {
		return p.Debit()
	}
	return p.Credit()
}
