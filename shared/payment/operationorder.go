package payment

import (
	"encoding/json"
	"errors"
	"fmt"

	"pgw/shared/money"
)

// OperationOrder is a client's request for an operation over HTTP.
type OperationOrder struct {
	Key      string          `json:"idempotency_key"`
	Amount   json.RawMessage `json:"amount"`   // in major units, as in Order; absent: all that is left
	Currency string          `json:"currency"` // in which the payment's sender has paid; empty: the same
	Reason   string          `json:"reason"`   // why, in the client's words
	FX       string          `json:"fx"`       // FXOriginal or FXCurrent; empty: original
}

// The price at which a refund between two currencies is exchanged.
const (
	FXOriginal = "original" // the price of the payment
	FXCurrent  = "current"  // the price of now
)

// Operation checks the order and returns its operation, without its payment and its price. paidIn is
// the currency in which the payment's sender has paid. If it is zero, the payment is not known yet: the
// amount is then checked only as far as that is possible, and left out. The error is a Problems: it has
// all wrong fields.
func (o OperationOrder) Operation(kind OperationKind, paidIn money.Currency) (Operation, error) {
	op := Operation{Kind: kind, Key: o.Key, Note: o.Reason}
	wrong := Problems{}.with("idempotency_key", CheckID("idempotency_key", o.Key, MaxKey))
	wrong = wrong.with("idempotency_key", CheckNames(o.Key, "", ""))
	amounts := kind == Refund || kind == Capture
	for _, field := range [...]struct {
		name         string
		given, taken bool
	}{
		{"amount", o.hasAmount(), amounts},
		{"currency", o.Currency != "", amounts},
		{"reason", o.Reason != "", kind != Capture},
		{"fx", o.FX != "", kind == Refund},
	} {
		// An ignored amount would void or cancel more than the client means.
		if field.given && !field.taken {
			wrong = wrong.with(field.name, &FieldError{field.name, "is not a field of a " + string(kind)})
		}
	}
	if amounts {
		op, wrong = o.withAmount(op, paidIn, wrong)
	}
	switch o.FX {
	case "", FXOriginal, FXCurrent:
	default:
		wrong = wrong.with("fx", &FieldError{"fx", fmt.Sprintf("is %.20q; must be %s or %s", o.FX, FXOriginal, FXCurrent)})
	}
	wrong = wrong.with("reason", CheckText("reason", o.Reason, MaxNote))
	return op, wrong.Err()
}

func (o OperationOrder) hasAmount() bool { return len(o.Amount) > 0 && string(o.Amount) != "null" }

// withAmount returns the operation with the order's amount, and the problems with those of the amount
// and its currency added.
func (o OperationOrder) withAmount(op Operation, paidIn money.Currency, wrong Problems) (Operation, Problems) {
	unknown := money.Currency{}
	currency := paidIn
	if o.Currency != "" {
		given, err := money.ParseCurrency(o.Currency)
		switch {
		case err != nil:
			return op, wrong.with("currency", err)
		case !o.hasAmount():
			return op, wrong.with("currency", &FieldError{"currency", "must be given together with the amount"})
		case paidIn != unknown && given != paidIn:
			return op, wrong.with("currency", &FieldError{"currency", fmt.Sprintf("must be %s, in which the payment's sender has paid", paidIn)})
		}
		currency = given
	}
	if !o.hasAmount() {
		return op, wrong
	}
	text, err := decimalText(o.Amount)
	if err != nil {
		return op, wrong.with("amount", err)
	}
	if currency == unknown {
		// The digits of the currency are not known. A text that is not a number is wrong in any currency.
		if _, err := money.ParseAmount(text, money.IDR); errors.Is(err, money.ErrSyntax) {
			wrong = wrong.with("amount", err)
		}
		return op, wrong
	}
	amount, err := money.ParseAmount(text, currency)
	if err == nil && amount.Minor <= 0 {
		err = &FieldError{"amount", "must be positive"}
	}
	if err != nil {
		return op, wrong.with("amount", err)
	}
	op.Minor, op.Currency = amount.Minor, amount.Currency
	return op, wrong
}
