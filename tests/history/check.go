package history

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"pgw/functions/pgw/load"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// Rule is one thing that holds whatever goes wrong.
type Rule string

// The rules.
const (
	// Contract: every answer to a payment is one of the contract's: its HTTP status, status and reason belong together.
	Contract Rule = "contract"
	// Settled: who is told success has paid: the ledger has committed just that payment, under the ref that was told.
	Settled Rule = "settled"
	// Once: at most one call of a key is told SUCCESS; the others hear that it is a replay.
	Once Rule = "once"
	// Refused: who is told no is told so for ever: the ledger has the key as rolled back, for that very reason.
	Refused Rule = "refused"
	// Recorded: who is told no can read it afterwards: the ledger has the key.
	Recorded Rule = "recorded"
	// Mismatch: 422 is told only where the key belongs to another request.
	Mismatch Rule = "mismatch"
	// NoPayment: 400 is told for what is no payment, and for nothing else.
	NoPayment Rule = "no_payment"
	// NotSent: where the words are that something was not sent, it was not.
	NotSent Rule = "not_sent"
	// Invented: nothing is known of a payment before somebody asked for it, nor of one that nobody asked for.
	Invented Rule = "invented"
	// Stands: what GET and the list tell is what the ledger has in the end; an outcome that was read is for ever.
	Stands Rule = "stands"
	// Order: what one client knew before another one asked, the other one is not told the contrary of.
	Order Rule = "order"
	// Decided: in the end every payment that was sent is decided.
	Decided Rule = "decided"
	// Conserved: an account has what it was given, plus what came in, less what went out.
	Conserved Rule = "conserved"
)

// rules are all of them.
var rules = []Rule{Contract, Settled, Once, Refused, Recorded, Mismatch, NoPayment, NotSent, Invented, Stands, Order, Decided, Conserved}

// Contradiction is one thing that can't be true.
type Contradiction struct {
	Rule    Rule
	Key     string // or the account's id, where the rule is Conserved
	Problem string
}

func (c Contradiction) String() string { return fmt.Sprintf("%s: %s: %s", c.Rule, c.Key, c.Problem) }

// Check finds what can't be true of a history. Everything in it must be over: each call, and each event on its way.
func Check(h History) []Contradiction {
	c := &checker{History: h, pays: map[string][]Call{}, published: map[int][]Publish{}, sights: map[string][]sight{}}
	for _, call := range h.Calls {
		if call.Kind == Pay {
			c.pays[call.Key] = append(c.pays[call.Key], call)
		}
	}
	for _, p := range h.Publishes {
		c.published[p.Call] = append(c.published[p.Call], p)
	}
	for _, call := range h.Calls {
		switch call.Kind {
		case Pay:
			c.checkPay(call)
		default:
			c.checkRead(call)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(h.Ledger.Payments)) {
		c.checkKept(h.Ledger.Payments[key])
	}
	for _, key := range slices.Sorted(maps.Keys(c.sights)) {
		c.checkOrder(key)
	}
	c.checkSent()
	c.checkAccounts()
	return c.found
}

type checker struct {
	History
	pays      map[string][]Call
	published map[int][]Publish
	sights    map[string][]sight
	found     []Contradiction
}

func (c *checker) wrong(rule Rule, key, format string, args ...any) {
	c.found = append(c.found, Contradiction{rule, key, fmt.Sprintf(format, args...)})
}

// codes of the answers that are no outcome of a payment.
var codes = map[payment.Reason]int{
	payment.BadJSON: 400, payment.InvalidInput: 400, payment.UnsupportedCurrency: 400, payment.IdempotencyMismatch: 422,
	payment.FXUnavailable: 502, payment.WalletUnavailable: 502, payment.RiskUnavailable: 502, payment.LedgerUnavailable: 502,
	payment.QueuePublishError: 502, payment.QueueTimeout: 504, payment.Overloaded: 503,
}

func (c *checker) checkPay(call Call) {
	told := call.Told
	if told.Reason == load.NoAnswer {
		return
	}
	code, refused := codes[told.Reason]
	if !refused {
		code = 200
	}
	if !told.Reason.Known() || told.HTTP != code || told.Status != told.Reason.Status() || (told.Status != payment.Failed && told.Ref == "") {
		c.wrong(Contract, call.Key, "call %d is told %s", call.ID, said(told))
		return
	}
	c.checkWords(call)
	kept, known := c.Ledger.Payments[call.Key]
	switch {
	case code == 400:
		switch {
		case call.Malformed:
		case known && kept.Terms == call.Terms:
			c.wrong(NoPayment, call.Key, "call %d is told %s of a payment that the ledger has: %s", call.ID, said(told), kept)
		default:
			c.wrong(NoPayment, call.Key, "call %d is told %s of a payment", call.ID, said(told))
		}
	case code == 422:
		c.see(call, call.Key, sight{rank: claimed, least: true, what: said(told)})
		switch {
		case call.Malformed:
			c.wrong(Contract, call.Key, "call %d is no payment, and is told %s", call.ID, said(told))
		case !known:
			c.wrong(Mismatch, call.Key, "call %d is told %s, and the ledger has nothing of that key", call.ID, said(told))
		case kept.Terms == call.Terms:
			c.wrong(Mismatch, call.Key, "call %d is told %s, and the key is that very request's: %s", call.ID, said(told), kept)
		case !c.askedFor(kept, call.Ended):
			c.wrong(Invented, call.Key, "call %d is told %s before the other request was made: %s", call.ID, said(told), kept)
		}
	case code == 200:
		rule := Refused
		switch {
		case told.Status != payment.Failed:
			rule = Settled
		case !known:
			rule = Recorded
		}
		c.see(call, call.Key, sight{rank: decided, first: told.Status == payment.Success, what: said(told)})
		if call.Malformed {
			c.wrong(Contract, call.Key, "call %d is no payment, and is told %s", call.ID, said(told))
			return
		}
		if problem := told.Contradiction(kept.kept(), known); problem != "" {
			c.wrong(rule, call.Key, "call %d is told %s: %s", call.ID, said(told), problem)
		} else if kept.Terms != call.Terms {
			c.wrong(rule, call.Key, "call %d is told %s, and the ledger has that of another request: %s instead of %s", call.ID, said(told), kept, call.Terms)
		}
		if told.Status == payment.Success {
			for _, other := range c.pays[call.Key] {
				if other.ID < call.ID && other.Told.Status == payment.Success {
					c.wrong(Once, call.Key, "calls %d and %d are both told SUCCESS", other.ID, call.ID)
				}
			}
		}
	}
}

var (
	saysNotSent     = regexp.MustCompile(`(?i)not sent|nothing (was|has been) sent`)
	saysNothingSent = regexp.MustCompile(`(?i)nothing (was|has been) sent`)
	saysOfThis      = regexp.MustCompile(`(?i)\bthis (attempt|request|try|time)\b`)
)

// SaysNothingSent tells that words for a client claim that nothing of a payment was sent, whoever asked for it: they do not
// speak of the client's own request alone.
func SaysNothingSent(message string) bool {
	return saysNothingSent.MatchString(message) && !saysOfThis.MatchString(message)
}

// checkWords holds what an answer says of sending against what was published. queue_publish_error says it by itself.
// Without more words, "nothing was sent" speaks of the payment, whoever asked for it; the rest speaks of the one call.
func (c *checker) checkWords(call Call) {
	told := call.Told
	if c.Publishes == nil || (told.Reason != payment.QueuePublishError && !saysNotSent.MatchString(told.Message)) {
		return
	}
	for _, p := range c.published[call.ID] {
		if p.Sent {
			c.wrong(NotSent, call.Key, "call %d is told %s, and its request was sent at %s", call.ID, said(told), at(p.At))
			return
		}
	}
	if SaysNothingSent(told.Message) {
		for _, other := range c.twins(call) {
			for _, p := range c.published[other.ID] {
				if p.Sent && p.At < call.Ended {
					c.wrong(NotSent, call.Key, "call %d is told %s, and call %d of the same payment was sent at %s", call.ID, said(told), other.ID, at(p.At))
					return
				}
			}
		}
	}
	if told.Reason != payment.QueuePublishError || len(c.published[call.ID]) > 0 {
		return
	}
	// It waited with another call of the same payment, and hears what became of that one's request.
	for _, other := range c.twins(call) {
		// A call that was cut off may go on at the gateway.
		overlaps := other.Begun < call.Ended && (call.Begun < other.Ended || other.Told.Reason == load.NoAnswer)
		for _, p := range c.published[other.ID] {
			if overlaps && !p.Sent && p.At < call.Ended {
				return
			}
		}
	}
	c.wrong(NotSent, call.Key, "call %d is told %s, and no request that it waited for failed to be sent", call.ID, said(told))
}

// twins are the other calls of the same payment.
func (c *checker) twins(call Call) []Call {
	return slices.DeleteFunc(slices.Clone(c.pays[call.Key]), func(o Call) bool {
		return o.ID == call.ID || o.Malformed || o.Terms != call.Terms
	})
}

// askedFor tells that somebody had begun to ask for a payment before a time.
func (c *checker) askedFor(s State, before time.Duration) bool {
	return slices.ContainsFunc(c.pays[s.Key], func(p Call) bool { return !p.Malformed && p.Terms == s.Terms && p.Begun < before })
}

func (c *checker) checkRead(call Call) {
	if !call.Read {
		return
	}
	told := map[string]bool{}
	for _, s := range call.Found {
		told[s.Key] = true
		if !c.askedFor(s, call.Ended) {
			c.wrong(Invented, s.Key, "%s of call %d tells %s, and nobody had asked for that by then", call.Kind, call.ID, s)
		}
		kept, ok := c.Ledger.Payments[s.Key]
		rank := decided
		if s.Status == payment.Pending {
			rank = claimed
			kept.Status, kept.Reason = s.Status, s.Reason // how it ends was not known yet
		}
		c.see(call, s.Key, sight{rank: rank, what: s.String()})
		switch {
		case !ok:
			c.wrong(Stands, s.Key, "%s of call %d tells %s, and the ledger has nothing", call.Kind, call.ID, s)
		case kept.kept() != s.kept() || kept.Terms != s.Terms || kept.IDR != s.IDR:
			c.wrong(Stands, s.Key, "%s of call %d tells %s, and the ledger has %s", call.Kind, call.ID, s, c.Ledger.Payments[s.Key])
		}
	}
	if call.Kind == Get && !told[call.Key] {
		c.see(call, call.Key, sight{rank: absent, what: "404"})
	}
	if call.Whole {
		for key := range c.pays {
			if !told[key] {
				c.see(call, key, sight{rank: absent, what: "it is not there"})
			}
		}
	}
}

// checkKept looks at one row of the ledger by itself.
func (c *checker) checkKept(s State) {
	if !c.askedFor(s, c.Ledger.At) {
		c.wrong(Invented, s.Key, "the ledger has %s, and nobody asked for that", s)
	}
	rank := decided
	if s.Status == payment.Pending {
		rank = claimed
		c.wrong(Decided, s.Key, "the ledger has %s in the end", s)
	}
	c.sights[s.Key] = append(c.sights[s.Key], sight{begun: c.Ledger.At, ended: c.Ledger.At, rank: rank, what: "the ledger: " + s.String()})
	if s.Rate.IsZero() {
		return
	}
	if priced, err := money.Convert(s.Terms.Sent, s.Rate, money.IDR); err != nil || priced.Minor != s.IDR {
		c.wrong(Settled, s.Key, "the ledger has IDR %d for %s %s at %s", s.IDR, s.Terms.Sent, s.Terms.Sent.Currency, s.Rate)
	}
}

// What is known of a payment only grows.
const (
	absent  = iota // the ledger has nothing of its key
	claimed        // it has the key
	decided        // and how it ended
)

// sight is what somebody knew of a payment at some moment between begun and ended.
type sight struct {
	begun, ended time.Duration
	rank         int
	least        bool // more than rank may be so
	first        bool // it claims to be the first to know
	what         string
}

func (c *checker) see(call Call, key string, s sight) {
	s.begun, s.ended, s.what = call.Begun, call.Ended, fmt.Sprintf("%s of call %d: %s", call.Kind, call.ID, s.what)
	c.sights[key] = append(c.sights[key], s)
}

// checkOrder compares each sight with those that were over before it began.
func (c *checker) checkOrder(key string) {
	byBegin := c.sights[key]
	byEnd := slices.Clone(byBegin)
	slices.SortFunc(byBegin, func(a, b sight) int { return cmp.Compare(a.begun, b.begun) })
	slices.SortFunc(byEnd, func(a, b sight) int { return cmp.Compare(a.ended, b.ended) })
	best := sight{rank: absent}
	for _, s := range byBegin {
		for len(byEnd) > 0 && byEnd[0].ended < s.begun {
			if byEnd[0].rank > best.rank {
				best = byEnd[0]
			}
			byEnd = byEnd[1:]
		}
		switch {
		case s.rank < best.rank && !s.least:
			c.wrong(Order, key, "%s at %s, and afterwards, from %s, %s", best.what, at(best.ended), at(s.begun), s.what)
		case s.first && best.rank == decided:
			c.wrong(Order, key, "%s at %s, and one who asked at %s is told as the first: %s", best.what, at(best.ended), at(s.begun), s.what)
		}
	}
}

// checkSent wants an end for each request that the broker has.
func (c *checker) checkSent() {
	keys := map[int]string{}
	for _, call := range c.Calls {
		keys[call.ID] = call.Key
	}
	told := map[string]bool{}
	for _, p := range c.Publishes {
		key := keys[p.Call]
		if _, known := c.Ledger.Payments[key]; known || !p.Sent || told[key] {
			continue
		}
		told[key] = true
		c.wrong(Decided, key, "call %d was sent at %s, and the ledger has nothing in the end", p.Call, at(p.At))
	}
}

func (c *checker) checkAccounts() {
	if c.Ledger.Accounts == nil {
		return
	}
	want := map[string]int64{}
	for id, a := range c.Ledger.Accounts {
		want[id] = a.Given
	}
	for _, s := range c.Ledger.Payments {
		switch s.Status {
		case payment.Committed:
			want[s.Terms.Sender] -= s.IDR
			want[s.Terms.Receiver] += s.IDR
		case payment.Pending:
			want[s.Terms.Sender] -= s.IDR
		}
	}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if has := c.Ledger.Accounts[id].Balance; has != want[id] {
			c.wrong(Conserved, id, "has %d, and should have %d: %+d", has, want[id], has-want[id])
		}
	}
}
