package payment

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"

	"pgw/shared/money"
)

// RefundOf returns the payment that gives a part of a payment back: from its receiver to its sender.
// given is what refunds of it took before, with those on their way. If the reason is not "", the refund
// is refused. It then moves nothing, and names the amounts of the whole payment. The error is a
// FieldError for a refund that does not fit the payment at all.
//
// The amount of a refund is what the sender gets back. At the payment's price the receiver gives its
// share of that amount, and LIQUIDITY exchanges one for the other without a spread. At the price of now
// LIQUIDITY pays what the receiver's share is worth. The sender gets its amount all the same, and
// SPREAD gets the difference, or pays it.
func RefundOf(of Record, given Share, o Operation) (Payment, Reason, error) {
	paid, got := of.Debit(), of.Credit()
	whole := Share{Debit: paid.Minor, Credit: got.Minor}
	if err := o.fits(paid.Currency, got.Currency); err != nil {
		return Payment{}, "", err
	}
	part, reason := Share{Debit: o.Minor}, Reason("")
	left := whole.Debit - given.Debit
	if o.Minor == 0 {
		part.Debit = left
	}
	switch {
	case of.State != Committed, of.PaymentKey != "", of.IsHold():
		reason = PaymentNotSettled
	case left <= 0, part.Debit > left:
		reason = RefundExceedsPayment
	default:
		// The part that closes the payment gives what is left, also if the receiver has given all before.
		if part.Credit = whole.Part(given, part.Debit); part.Credit == 0 && part.Debit < left {
			reason = RefundTooSmall
		}
	}
	if reason != "" {
		part = whole
	}
	refund := Payment{
		Key: o.Key, Client: o.Client, Sender: of.Receiver, Receiver: of.Sender, AmountIDR: of.worth(part.Debit),
		Currency: paid.Currency, Minor: o.Minor, AcceptedAt: o.AcceptedAt, Deadline: o.Deadline, AttemptID: o.AttemptID,
	}
	if of.InRupiah() {
		return refund, reason, nil
	}
	refund.DebitCurrency, refund.CreditCurrency = got.Currency, paid.Currency
	refund.DebitMinor, refund.CreditMinor = part.Credit, part.Debit
	if !refund.Exchanges() {
		return refund, reason, nil
	}
	refund.Exchange = o.Exchange
	refund.Exchange.MidMinor = part.Debit
	if !o.Exchange.IsZero() {
		worth, err := o.Exchange.atMid(refund.Debit(), paid.Currency)
		if err != nil && reason == "" {
			reason = FXLiquidityExhausted // more than any balance can have
		}
		refund.Exchange.MidMinor = worth
	}
	return refund, reason, nil
}

// fits checks that a refund is in the currency that the payment's sender has paid, and that its price
// is one for the payment's two currencies.
func (o Operation) fits(paid, got money.Currency) error {
	if o.Minor != 0 && o.Currency != paid {
		return &FieldError{"currency", "must be " + paid.String() + ", which the payment's sender has paid"}
	}
	if o.Exchange.IsZero() {
		return nil
	}
	steps := o.Exchange.Steps
	if paid == got || len(steps) == 0 || len(steps) > MaxSteps || steps[0].From != got || steps[len(steps)-1].To != paid {
		return &FieldError{"exchange", "is not a price from " + got.String() + " to " + paid.String()}
	}
	for i, s := range steps {
		if s.MidRate.IsZero() || i > 0 && s.From != steps[i-1].To {
			return &FieldError{"exchange.steps", "do not lead from " + got.String() + " to " + paid.String()}
		}
	}
	return nil
}

// atMid returns what an amount is worth in another currency at the exact middle rates, rounded down.
func (e Exchange) atMid(a money.Amount, to money.Currency) (int64, error) {
	var mid money.Price
	for _, s := range e.Steps {
		if s.Inverse {
			mid = mid.Over(s.MidRate)
		} else {
			mid = mid.Times(s.MidRate)
		}
	}
	worth, _, err := mid.Convert(a, to, money.Down)
	if errors.Is(err, money.ErrTooSmall) {
		return 0, nil
	}
	return worth.Minor, err
}

// worth returns what a part of the payment's debit is worth in rupiah; at least one.
func (p Payment) worth(part int64) int64 {
	return max(1, Share{p.Debit().Minor, p.AmountIDR}.Part(Share{}, part))
}

// IsRefund reports whether the record is that of a refund.
func (r Record) IsRefund() bool { return r.PaymentKey != "" }

// Refund returns the operation that has made the record of a refund.
func (r Record) Refund() Operation {
	o := Operation{
		Kind: Refund, Key: r.Key, Client: r.Client, Payment: r.PaymentKey, PaymentClient: r.PaymentClient,
		Minor: r.Minor, Note: r.Note,
		AcceptedAt: r.AcceptedAt, Deadline: r.Deadline, AttemptID: r.AttemptID,
	}
	if o.Minor != 0 {
		o.Currency = r.Currency
	}
	if len(r.Exchange.Steps) > 0 {
		o.Exchange = r.Exchange
	}
	return o
}

// Asked returns the fingerprint of what the client sent, as far as the record still has it. It is
// Claimed, unless somebody has changed the record.
func (r Record) Asked() Fingerprint {
	if r.IsRefund() {
		return r.Refund().Fingerprint()
	}
	return r.Fingerprint()
}

// Legs returns the entries of the committed payment or refund. They sum to zero in each currency.
func (r Record) Legs() []Leg {
	legs := r.Payment.Legs()
	if !r.IsRefund() {
		return legs
	}
	var moved []Leg
	for _, l := range legs {
		if l.Kind == KindPayment {
			l.Kind = KindRefund
		}
		if l.Minor != 0 { // at the price of now, a small part may be worth nothing
			moved = append(moved, l)
		}
	}
	return moved
}

// CancelKey returns the key of the refund that the cancellation makes of a settled payment, whose
// reservation is ref. The key depends on whose cancellation it is and on its key. So a cancellation that
// is delivered again makes the same refund, and another cancellation makes one of its own. A hash bounds
// the key's length.
func (o Operation) CancelKey(ref string) string {
	buf := make([]byte, 0, 256)
	for _, part := range [...]string{"cancellation", o.Client, o.Key} {
		buf = append(binary.BigEndian.AppendUint32(buf, uint32(len(part))), part...)
	}
	sum := sha256.Sum256(buf)
	return CancelPrefix + ref + ":" + base64.RawURLEncoding.EncodeToString(sum[:16])
}

// CancelKeyParts returns the parts of a key that CancelKey has made: the payment's reservation, and what
// stands for the cancellation.
func CancelKeyParts(key string) (ref, cancellation string) {
	ref, cancellation, _ = strings.Cut(strings.TrimPrefix(key, CancelPrefix), ":")
	return ref, cancellation
}

// ForCancel reports whether the operation is the refund that a cancellation makes.
func (o Operation) ForCancel() bool {
	return o.Kind == Refund && strings.HasPrefix(o.Key, CancelPrefix)
}

// ValidateRefund is Validate for the ledger, which also takes the refunds that cancellations make.
func (o Operation) ValidateRefund() error {
	if o.Kind != Refund {
		return &FieldError{"operation", "is not a refund"}
	}
	if o.ForCancel() {
		if o.Minor != 0 || !o.Exchange.IsZero() {
			return &FieldError{"amount", "is not taken by a cancellation"}
		}
		o.Key = strings.TrimPrefix(o.Key, CancelPrefix)
	}
	return o.Validate()
}
