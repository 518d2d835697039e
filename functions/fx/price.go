package fx

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// order is what a client wants to pay from one balance to another.
type order struct {
	debit, credit money.Currency // of the sender's and of the receiver's balance
	// fixed is the amount of one side, in its currency. If both balances have the same currency, it
	// may be in any currency.
	fixed money.Amount
}

// price is what an order costs.
type price struct {
	debit, credit money.Amount
	exchange      payment.Exchange // zero if both balances have the same currency
	amountIDR     int64            // what the debit is worth in rupiah at mid
	rate          money.Rate
	rateID        string
	at            time.Time // when the newest of the rates came into force; zero if there is none
}

// noRateError means that two currencies have no rate, neither directly nor through a third one.
type noRateError pair

func (e noRateError) Error() string {
	return fmt.Sprintf("there is no rate from %s to %s", e.base, e.quote)
}

// step is a stored rate that is used to get from one currency to another.
type step struct {
	from, to money.Currency
	quote
	inverse bool // the rate is stored for the other direction
}

// step returns the newest rate that was stored for two currencies in either direction.
func (rs rates) step(from, to money.Currency) (step, bool) {
	q, ok := rs[pair{from, to}]
	back, okBack := rs[pair{to, from}]
	if okBack && (!ok || back.newer(q)) {
		return step{from, to, back, true}, true
	}
	return step{from, to, q, false}, ok
}

// applied returns the rate at which the house exchanges: it buys the base of a stored pair at bid and
// sells it at ask.
func (s step) applied() money.Rate {
	bid, ask := s.spread()
	if s.inverse {
		return ask
	}
	return bid
}

// after returns a price that is continued by this step at one of its rates.
func (s step) after(p money.Price, at money.Rate) money.Price {
	if s.inverse {
		return p.Over(at)
	}
	return p.Times(at)
}

var usd, _ = money.ParseCurrency("USD")

// route returns the stored rates that lead from one currency to another: the rate of the pair, or else
// the two rates through one pivot. The rupiah is the first choice, the dollar the second, and then the
// alphabet decides.
func (rs rates) route(from, to money.Currency) ([]step, error) {
	if direct, ok := rs.step(from, to); ok {
		return []step{direct}, nil
	}
	for _, pivot := range slices.Concat([]money.Currency{money.IDR, usd}, rs.currencies()) {
		first, ok := rs.step(from, pivot)
		second, okToo := rs.step(pivot, to)
		if ok && okToo {
			return []step{first, second}, nil
		}
	}
	return nil, noRateError{from, to}
}

// price prices an order. A fixed debit is exchanged at bid or ask, and the credit is rounded down. A
// fixed credit is exchanged in the other direction, and the debit is rounded up. So rounding is always
// in the house's favour. An error is a noRateError, or a payment.FieldError that names a field of
// fx.v1.QuoteRequest.
func (rs rates) price(o order) (price, error) {
	if o.debit == o.credit {
		return rs.priceWithin(o)
	}
	if o.fixed.Currency != o.debit && o.fixed.Currency != o.credit {
		return price{}, &payment.FieldError{Field: "fixed_currency", Problem: "must be debit_currency or credit_currency"}
	}
	steps, err := rs.route(o.debit, o.credit)
	if err != nil {
		return price{}, err
	}
	out := price{debit: o.fixed, credit: o.fixed}
	var applied, mid money.Price
	for _, s := range steps {
		applied, mid = s.after(applied, s.applied()), s.after(mid, s.rate)
		out.exchange.Steps = append(out.exchange.Steps, payment.Step{
			From: s.from, To: s.to, RateID: s.id, Rate: s.applied(), MidRate: s.rate, Inverse: s.inverse,
		})
	}
	out.rateID, out.at = together(steps)
	var rateErr, midErr error
	out.exchange.Rate, rateErr = applied.Rate()
	out.exchange.MidRate, midErr = mid.Rate()
	if err := cmp.Or(rateErr, midErr); err != nil {
		return price{}, &payment.FieldError{Field: "credit_currency", Problem: fmt.Sprintf("the price of %s in %s: %v", o.debit, o.credit, err)}
	}
	out.rate = out.exchange.Rate
	if o.fixed.Currency == o.debit {
		out.credit, out.exchange.Remainder, err = applied.Convert(o.fixed, o.credit, money.Down)
	} else {
		out.debit, out.exchange.Remainder, err = applied.Inverse().Convert(o.fixed, o.debit, money.Up)
	}
	if err != nil {
		return price{}, badAmount(err)
	}
	// Never below the credit: mid is at least what was applied, and the debit at least its exact price.
	atMid, _, err := mid.Convert(out.debit, o.credit, money.Down)
	if err != nil {
		return price{}, badAmount(err)
	}
	out.exchange.MidMinor = atMid.Minor
	out.amountIDR, err = rs.inRupiah(out.debit)
	return out, err
}

// priceWithin prices an order between two balances of the same currency. Nothing is exchanged: an
// amount in another currency only says how much is paid, at mid, as Convert does for the rupiah.
func (rs rates) priceWithin(o order) (price, error) {
	amount, q, err := rs.atMid(o.fixed, o.debit)
	if err != nil {
		return price{}, err
	}
	out := price{debit: amount, credit: amount, rate: q.rate, rateID: q.id, at: q.at}
	out.amountIDR, err = rs.inRupiah(amount)
	return out, err
}

func (rs rates) inRupiah(a money.Amount) (int64, error) {
	worth, _, err := rs.atMid(a, money.IDR)
	return worth.Minor, err
}

// atMid converts an amount at mid, rounding half to even. It uses the rate that Convert uses. Only
// where Convert has no rate, because it knows no other pivot than the rupiah, it takes price's route.
func (rs rates) atMid(a money.Amount, to money.Currency) (converted money.Amount, q quote, err error) {
	q, ok := rs.find(pair{a.Currency, to})
	if ok {
		converted, err = money.Convert(a, q.rate, to)
		if err == nil && converted.Minor == 0 {
			err = fmt.Errorf("%s %s in %s: %w", a, a.Currency, to, money.ErrTooSmall)
		}
	} else {
		var steps []step
		if steps, err = rs.route(a.Currency, to); err != nil {
			return converted, q, err
		}
		var mid money.Price
		for _, s := range steps {
			mid = s.after(mid, s.rate)
		}
		q.id, q.at = together(steps)
		if q.rate, err = mid.Rate(); err == nil {
			converted, _, err = mid.Convert(a, to, money.HalfEven)
		}
	}
	if err != nil {
		return money.Amount{}, q, badAmount(err)
	}
	return converted, q, nil
}

// together returns the ids of the rates, joined, and the time of the newest.
func together(steps []step) (id string, at time.Time) {
	ids := make([]string, len(steps))
	for i, s := range steps {
		ids[i] = s.id
		if s.at.After(at) {
			at = s.at
		}
	}
	return strings.Join(ids, "/"), at
}

func badAmount(err error) error {
	return &payment.FieldError{Field: "amount_minor", Problem: err.Error()}
}
