package payment

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/big"
	"math/bits"
	"strings"
	"time"

	"pgw/shared/money"
)

const (
	// CancelPrefix is the prefix of the keys of refunds that a cancellation makes. A payment's key and a
	// client's own operation must not start with it.
	CancelPrefix = "cancel:"
	// MaxClient is the maximum length of a client's name, in bytes. The subject of a token has up to 255.
	MaxClient = 300

	// MinAuthorize and MaxAuthorize bound how long an authorized payment holds its money.
	MinAuthorize, MaxAuthorize = time.Minute, 30 * 24 * time.Hour
	// DefaultAuthorize is how long it does if nobody says otherwise.
	DefaultAuthorize = 7 * 24 * time.Hour
)

// OperationKind says what a client asks for after its payment.
type OperationKind string

// The kinds of operations.
const (
	Refund  OperationKind = "refund"  // gives a part of a settled payment, or all of it, back to its sender
	Capture OperationKind = "capture" // pays the receiver from the money that an authorized payment holds
	Void    OperationKind = "void"    // gives the money that an authorized payment holds back
	Cancel  OperationKind = "cancel"  // rolls back a payment that is not settled, or refunds what is left of a settled one
)

// OperationKinds lists all kinds.
var OperationKinds = []OperationKind{Refund, Capture, Void, Cancel}

// Valid reports whether the kind exists.
func (k OperationKind) Valid() bool {
	switch k {
	case Refund, Capture, Void, Cancel:
		return true
	}
	return false
}

// Operation is what a client asks for after its payment. Its JSON is the data of the events that
// request operations. Its protobuf message is common.v1.Operation; shared/rpc converts between them.
type Operation struct {
	Kind    OperationKind `json:"operation"`
	Key     string        `json:"idempotency_key"` // the operation's own, in the scope of its client
	Client  string        `json:"client,omitempty"`
	Payment string        `json:"payment_key"` // the payment's idempotency key, in the scope of its client
	// PaymentClient is the payment's client; nil: it is Client.
	PaymentClient *string `json:"payment_client,omitempty"`
	// Minor is the amount in minor units of Currency, in which the payment's sender has paid. It is 0
	// for all that is left, and for kinds without an amount.
	Minor    int64          `json:"amount_minor,omitempty"`
	Currency money.Currency `json:"currency,omitzero"`
	Note     string         `json:"note,omitempty"` // why, in the client's words
	// Exchange is the price of now, for a refund between two currencies that the client wants at the
	// current rate. It is zero for the payment's own price. Its MidMinor is not used: the ledger applies
	// the middle rate to the amount that it decides.
	Exchange Exchange `json:"exchange,omitzero"`

	AcceptedAt time.Time `json:"accepted_at,omitzero"`
	Deadline   time.Time `json:"deadline,omitzero"`
	// AttemptID distinguishes a redelivery of the same attempt from a second attempt, as in Payment.
	AttemptID string `json:"attempt_id,omitempty"`
}

// Amount returns the amount that the client named; its Minor is 0 for all that is left.
func (o Operation) Amount() money.Amount { return money.Amount{Minor: o.Minor, Currency: o.Currency} }

// Of returns the payment's key in its client's scope.
func (o Operation) Of() ScopedKey { return scopeOf(o.Client, o.PaymentClient, o.Payment) }

// On returns the operation for the payment of a key.
func (o Operation) On(of ScopedKey) Operation {
	o.Payment, o.PaymentClient = of.Key, OtherClient(o.Client, of.Client)
	return o
}

// scopeOf returns the key of an operation's payment. other is the payment's client; nil: it is client.
func scopeOf(client string, other *string, key string) ScopedKey {
	if other != nil {
		client = *other
	}
	return ScopedKey{client, key}
}

// OtherClient returns a payment's client, or nil if it is the client of the operation on the payment.
func OtherClient(client, ofPayment string) *string {
	if client == ofPayment {
		return nil
	}
	return &ofPayment
}

// Fingerprint returns the fingerprint of what the client sent. The payment's client is part of it: the keys
// of two clients' payments may be the same, and an operation on one must not be taken for that on the other.
// Whether the current rate is asked for is part of it, and the rate is not. The note of a cancellation
// is not part of that of its refund.
func (o Operation) Fingerprint() Fingerprint {
	note := o.Note
	if o.ForCancel() {
		note = ""
	}
	buf := make([]byte, 0, 256)
	for _, field := range [...]string{"operation", o.Of().Client, string(o.Kind), o.Payment, o.Currency.String(), note} {
		buf = append(binary.BigEndian.AppendUint32(buf, uint32(len(field))), field...)
	}
	buf = binary.BigEndian.AppendUint64(buf, uint64(o.Minor))
	if !o.Exchange.IsZero() {
		buf = append(buf, 'x')
	}
	sum := sha256.Sum256(buf)
	return Fingerprint(sum[:16])
}

// Validate checks an operation that comes from outside pgw. The error is a FieldError.
func (o Operation) Validate() error {
	if !o.Kind.Valid() {
		return &FieldError{"operation", fmt.Sprintf("is %.20q; want refund, capture, void or cancel", o.Kind)}
	}
	if err := CheckID("idempotency_key", o.Key, MaxKey); err != nil {
		return err
	}
	if err := CheckNames(o.Key, "", ""); err != nil {
		return err
	}
	if err := CheckID("payment_key", o.Payment, MaxKey); err != nil {
		return err
	}
	if strings.HasPrefix(o.Payment, HoldPrefix) {
		return &FieldError{"payment_key", "is the key of a wallet hold"}
	}
	if err := CheckClient(o.Client); err != nil {
		return err
	}
	if err := CheckText("payment_client", o.Of().Client, MaxClient); err != nil {
		return err
	}
	none := money.Currency{}
	switch {
	case o.Minor < 0 || o.Minor > money.MaxMinor:
		return &FieldError{"amount", fmt.Sprintf("must be positive and at most %d minor units", int64(money.MaxMinor))}
	case o.Minor != 0 && (o.Kind == Void || o.Kind == Cancel):
		return &FieldError{"amount", "is not taken by a " + string(o.Kind)}
	case (o.Minor == 0) != (o.Currency == none):
		return &FieldError{"currency", "must be given together with the amount"}
	case !o.Exchange.IsZero() && o.Kind != Refund:
		return &FieldError{"exchange", "is only for a refund"}
	}
	return CheckText("note", o.Note, MaxNote)
}

// CheckClient checks the name of a client. The error is a FieldError.
func CheckClient(name string) error { return CheckText("client", name, MaxClient) }

// Share is what a part of a payment is worth on its two sides, in minor units.
type Share struct{ Debit, Credit int64 }

// Part returns the credit side of the next part of a payment whose sender has paid whole.Debit for
// whole.Credit. given is what earlier parts took; debit is this part's debit side. All parts together
// take exactly whole: a part takes the rounded share of everything up to it, less what was taken before.
// It returns 0 if the part is worth less than the rounding.
func (whole Share) Part(given Share, debit int64) int64 {
	upTo := big.NewInt(given.Debit + debit)
	upTo.Mul(upTo, big.NewInt(whole.Credit)).Mul(upTo, big.NewInt(2)).Add(upTo, big.NewInt(whole.Debit))
	upTo.Div(upTo, big.NewInt(2*whole.Debit)) // half up: no amount is negative
	return max(0, upTo.Int64()-given.Credit)
}

// Authorizes reports whether a reservation of the payment only holds the money, until somebody captures
// it: a manual payment, or a wallet hold, which is an authorization of the house.
func (p Payment) Authorizes() bool { return p.Manual() || p.IsHold() }

// HeldUntil returns the deadline of a reservation that is made at a time. A manual payment is held for
// as long as its client has asked; its own deadline only limits when it may be reserved.
func (p Payment) HeldUntil(now time.Time) time.Time {
	if p.Manual() {
		return now.Add(time.Duration(p.HoldSeconds) * time.Second)
	}
	return ClampDeadline(p.Deadline, now)
}

// Captured returns the payment of which only a part of the debit is captured: 1 to the whole debit, in
// minor units. The other amounts become their shares, rounded down. So no share is above what is held,
// and the credit is 0 if the part is worth less than one minor unit.
func (p Payment) Captured(debit int64) Payment {
	whole := p.Debit().Minor
	share := func(of int64) int64 {
		high, low := bits.Mul64(uint64(of), uint64(debit))
		part, _ := bits.Div64(high, low, uint64(whole))
		return int64(part)
	}
	switch {
	case debit == whole:
		return p
	case p.InRupiah():
		p.AmountIDR = debit
		return p
	case p.DebitCurrency == money.IDR:
		p.AmountIDR = debit
	default:
		p.AmountIDR = max(1, share(p.AmountIDR)) // it is only for the rules, which know no payment of nothing
	}
	of := p
	p.DebitMinor, p.CreditMinor = debit, share(p.CreditMinor)
	p.Exchange.MidMinor = share(p.Exchange.MidMinor)
	p.Exchange.Remainder = p.remainder(of)
	return p
}

// remainder returns what rounding left to the house of a captured part of a payment: what the part is
// exactly at the payment's price, less what was moved. It is cut to 18 digits after the point.
func (p Payment) remainder(of Payment) string {
	left, ok := new(big.Rat).SetString(of.Exchange.Remainder)
	if !ok {
		return of.Exchange.Remainder // a payment that exchanges nothing has none
	}
	if p.Currency == p.DebitCurrency {
		left.Add(left, big.NewRat(of.CreditMinor, 1)).Mul(left, big.NewRat(p.DebitMinor, of.DebitMinor))
		left.Sub(left, big.NewRat(p.CreditMinor, 1))
	} else {
		left.Sub(big.NewRat(of.DebitMinor, 1), left).Mul(left, big.NewRat(p.CreditMinor, of.CreditMinor))
		left.Sub(big.NewRat(p.DebitMinor, 1), left)
	}
	cut := new(big.Int).Exp(big.NewInt(10), big.NewInt(18), nil)
	digits := new(big.Int).Mul(left.Num(), cut)
	text := new(big.Rat).SetFrac(digits.Div(digits, left.Denom()), cut).FloatString(18)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}
