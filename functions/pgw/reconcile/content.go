package reconcile

import (
	"encoding/json"
	"hash/maphash"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"pgw/shared/payment"
)

// fields are what a payment must have in common with its signed request. The deadline is not one of
// them, because the ledger may shorten it.
var fields = [...]struct {
	name string
	of   func(payment.Payment) string
}{
	{"sender_id", func(p payment.Payment) string { return p.Sender }},
	{"receiver_id", func(p payment.Payment) string { return p.Receiver }},
	{"amount_idr", func(p payment.Payment) string { return number(p.AmountIDR) }},
	{"currency_input", func(p payment.Payment) string { return p.Currency.String() }},
	{"amount_minor", func(p payment.Payment) string { return number(p.Minor) }},
	{"rate", func(p payment.Payment) string { return p.Rate.String() }},
	{"rate_id", func(p payment.Payment) string { return p.RateID }},
	{"rate_time", func(p payment.Payment) string { return instant(p.RateTime) }},
	{"debit", func(p payment.Payment) string { return p.DebitCurrency.String() + number(p.DebitMinor) }},
	{"credit", func(p payment.Payment) string { return p.CreditCurrency.String() + number(p.CreditMinor) }},
	{"exchange", func(p payment.Payment) string { return inJSON(p.Exchange, p.Exchange.IsZero()) }},
	{"quote_id", func(p payment.Payment) string { return p.QuoteID }},
	{"attempt_id", func(p payment.Payment) string { return p.AttemptID }},
	{"accepted_at", func(p payment.Payment) string { return instant(p.AcceptedAt) }},
	{"tx_date", func(p payment.Payment) string { return p.TxDate }},
	{"rule_set", func(p payment.Payment) string { return p.RuleSet }},
	{"hold_seconds", func(p payment.Payment) string { return number(p.HoldSeconds) }},
	{"metadata", func(p payment.Payment) string { return inJSON(p.Metadata, len(p.Metadata) == 0) }},
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

// instant is a time as precise as Postgres keeps it.
func instant(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return number(t.UnixMicro())
}

func inJSON(v any, empty bool) string {
	if empty {
		return ""
	}
	text, _ := json.Marshal(v) // maps of texts and prices can always be encoded
	return string(text)
}

// content stands for the fields of a payment. Whole decides whether two payments are equal. Fields says
// in which fields they differ, so 16 bits of each are enough.
type content struct {
	Whole  uint64
	Fields [len(fields)]uint16
}

func contentOf(p payment.Payment) (c content) {
	var all maphash.Hash
	all.SetSeed(seed)
	for i, f := range fields {
		text := f.of(p)
		_, _ = all.WriteString(number(int64(len(text))) + ":" + text) // never fails
		c.Fields[i] = uint16(maphash.String(seed, text))
	}
	c.Whole = all.Sum64()
	return c
}

// difference has a bit for each field.
type difference uint32

// undefined is the difference from a payment that has not been seen.
const undefined difference = 1<<32 - 1

func (c content) difference(from content) (d difference) {
	if c.Whole == from.Whole {
		return 0
	}
	for i := range c.Fields {
		if c.Fields[i] != from.Fields[i] {
			d |= 1 << i
		}
	}
	if d == 0 {
		return 1 << len(fields) // the hashes of the differing fields are equal by chance
	}
	return d
}

// shares are the fields that change with the debit when only a part of a payment is captured.
const shares difference = 1<<amountIDRField | 1<<creditField | 1<<exchangeField

// The positions of some fields.
const amountIDRField, creditField, exchangeField = 2, 9, 10

func (d difference) count() int { return bits.OnesCount32(uint32(d)) }

// String names the fields.
func (d difference) String() string {
	var names []string
	for i, f := range fields {
		if d&(1<<i) != 0 {
			names = append(names, f.name)
		}
	}
	if len(names) == 0 {
		return "a field"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
