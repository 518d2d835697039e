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

// Rule is a rule that holds in every history, whatever goes wrong.
type Rule string

// The rules.
const (
	// Contract: every answer to a payment is in the contract: its HTTP status, status and reason
	// belong together.
	Contract Rule = "contract"
	// Settled: a client that got SUCCESS has paid. The ledger has committed exactly that payment,
	// under the ref of the answer.
	Settled Rule = "settled"
	// Once: at most one call of a key gets SUCCESS; the others get SUCCESS_REPLAY.
	Once Rule = "once"
	// Refused: a refusal is final. The ledger has the key as rolled back, for the reason of the
	// answer.
	Refused Rule = "refused"
	// Recorded: a client that was refused can read that afterwards. The ledger has the key.
	Recorded Rule = "recorded"
	// Mismatch: a call gets 422 only if the key belongs to another request.
	Mismatch Rule = "mismatch"
	// NoPayment: a call gets 400 if it is not a payment, and never otherwise.
	NoPayment Rule = "no_payment"
	// NotSent: if an answer says that something was not sent, it was not sent.
	NotSent Rule = "not_sent"
	// Invented: nothing is known of a payment before it was requested, nor of a payment that nobody
	// requested.
	Invented Rule = "invented"
	// Stands: what GET and the list return is what the ledger has in the end. An outcome that was
	// read is final.
	Stands Rule = "stands"
	// Order: a client never gets the opposite of what another client knew before the call began.
	Order Rule = "order"
	// Decided: in the end every payment that was sent is decided.
	Decided Rule = "decided"
	// Conserved: an account has what it was given, plus what came in, minus what went out.
	Conserved Rule = "conserved"
)

// rules lists all rules.
var rules = []Rule{Contract, Settled, Once, Refused, Recorded, Mismatch, NoPayment, NotSent, Invented, Stands, Order, Decided, Conserved}

// Contradiction is one violation of a rule.
type Contradiction struct {
	Rule    Rule
	Key     string // or the account's id, for the rule Conserved
	Problem string
}

func (c Contradiction) String() string { return fmt.Sprintf("%s: %s: %s", c.Rule, c.Key, c.Problem) }

// Check finds the contradictions in a history. Every call and every event of it must have ended.
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

// codes are the HTTP statuses of answers that are not the outcome of a payment.
var codes = map[payment.Reason]int{
	payment.BadJSON: 400, payment.InvalidInput: 400, payment.UnsupportedCurrency: 400, payment.IdempotencyMismatch: 422,
	payment.FXUnavailable: 502, payment.WalletUnavailable: 502, payment.RiskUnavailable: 502, payment.LedgerUnavailable: 502,
	payment.QueuePublishError: 502, payment.QueueTimeout: 504, payment.Overloaded: 503,
}

func (c *checker) checkPay(call Call) {
	answer := call.Answer
	if answer.Reason == load.NoAnswer {
		return
	}
	code, refused := codes[answer.Reason]
	if !refused {
		code = 200
	}
	if !answer.Reason.Known() || answer.HTTP != code || answer.Status != answer.Reason.Status() || (answer.Status != payment.Failed && answer.Ref == "") {
		c.wrong(Contract, call.Key, "call %d got %s", call.ID, describe(answer))
		return
	}
	c.checkWords(call)
	kept, known := c.Ledger.Payments[call.Key]
	switch {
	case code == 400:
		switch {
		case call.Malformed:
		case known && kept.Terms == call.Terms:
			c.wrong(NoPayment, call.Key, "call %d got %s for a payment that the ledger has: %s", call.ID, describe(answer), kept)
		default:
			c.wrong(NoPayment, call.Key, "call %d got %s for a payment", call.ID, describe(answer))
		}
	case code == 422:
		c.see(call, call.Key, sight{rank: claimed, least: true, what: describe(answer)})
		switch {
		case call.Malformed:
			c.wrong(Contract, call.Key, "call %d is not a payment, but got %s", call.ID, describe(answer))
		case !known:
			c.wrong(Mismatch, call.Key, "call %d got %s, but the ledger has nothing of that key", call.ID, describe(answer))
		case kept.Terms == call.Terms:
			c.wrong(Mismatch, call.Key, "call %d got %s, but the key belongs to the same request: %s", call.ID, describe(answer), kept)
		case !c.askedFor(kept, call.Ended):
			c.wrong(Invented, call.Key, "call %d got %s before the other request was made: %s", call.ID, describe(answer), kept)
		}
	case code == 200:
		rule := Refused
		switch {
		case answer.Status != payment.Failed:
			rule = Settled
		case !known:
			rule = Recorded
		}
		c.see(call, call.Key, sight{rank: decided, first: answer.Status == payment.Success, what: describe(answer)})
		if call.Malformed {
			c.wrong(Contract, call.Key, "call %d is not a payment, but got %s", call.ID, describe(answer))
			return
		}
		if problem := answer.Contradiction(kept.kept(), known); problem != "" {
			c.wrong(rule, call.Key, "call %d got %s: %s", call.ID, describe(answer), problem)
		} else if kept.Terms != call.Terms {
			c.wrong(rule, call.Key, "call %d got %s, but the ledger has another request: %s instead of %s", call.ID, describe(answer), kept, call.Terms)
		}
		if answer.Status == payment.Success {
			for _, other := range c.pays[call.Key] {
				if other.ID < call.ID && other.Answer.Status == payment.Success {
					c.wrong(Once, call.Key, "calls %d and %d both got SUCCESS", other.ID, call.ID)
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

// SaysNothingSent says whether a message claims that nothing of the payment was sent, by any call.
// Messages about the client's own request only do not claim that.
func SaysNothingSent(message string) bool {
	return saysNothingSent.MatchString(message) && !saysOfThis.MatchString(message)
}

// checkWords compares an answer's claims about sending with the published events. The reason
// queue_publish_error is such a claim. "nothing was sent" without other words is about the payment,
// by any call. Other messages are about this call only.
func (c *checker) checkWords(call Call) {
	answer := call.Answer
	if c.Publishes == nil || (answer.Reason != payment.QueuePublishError && !saysNotSent.MatchString(answer.Message)) {
		return
	}
	for _, p := range c.published[call.ID] {
		if p.Sent {
			c.wrong(NotSent, call.Key, "call %d got %s, but its request was published at %s", call.ID, describe(answer), at(p.At))
			return
		}
	}
	if SaysNothingSent(answer.Message) {
		for _, other := range c.twins(call) {
			for _, p := range c.published[other.ID] {
				if p.Sent && p.At < call.Ended {
					c.wrong(NotSent, call.Key, "call %d got %s, but call %d of the same payment was published at %s", call.ID, describe(answer), other.ID, at(p.At))
					return
				}
			}
		}
	}
	if answer.Reason != payment.QueuePublishError || len(c.published[call.ID]) > 0 {
		return
	}
	// The call waited with another call of the same payment, and got the result of that call's
	// request.
	for _, other := range c.twins(call) {
		// A call that was cut off may continue at the gateway.
		overlaps := other.Begun < call.Ended && (call.Begun < other.Ended || other.Answer.Reason == load.NoAnswer)
		for _, p := range c.published[other.ID] {
			if overlaps && !p.Sent && p.At < call.Ended {
				return
			}
		}
	}
	c.wrong(NotSent, call.Key, "call %d got %s, but no request that it waited for failed to be published", call.ID, describe(answer))
}

// twins returns the other calls of the same payment.
func (c *checker) twins(call Call) []Call {
	return slices.DeleteFunc(slices.Clone(c.pays[call.Key]), func(o Call) bool {
		return o.ID == call.ID || o.Malformed || o.Terms != call.Terms
	})
}

// askedFor says whether any call had begun to request a payment before a time.
func (c *checker) askedFor(s State, before time.Duration) bool {
	return slices.ContainsFunc(c.pays[s.Key], func(p Call) bool { return !p.Malformed && p.Terms == s.Terms && p.Begun < before })
}

func (c *checker) checkRead(call Call) {
	if !call.Read {
		return
	}
	found := map[string]bool{}
	for _, s := range call.Found {
		found[s.Key] = true
		if !c.askedFor(s, call.Ended) {
			c.wrong(Invented, s.Key, "%s of call %d returned %s, but nobody had requested that payment by then", call.Kind, call.ID, s)
		}
		kept, ok := c.Ledger.Payments[s.Key]
		rank := decided
		if s.Status == payment.Pending {
			rank = claimed
			kept.Status, kept.Reason = s.Status, s.Reason // the outcome was not known yet
		}
		c.see(call, s.Key, sight{rank: rank, what: s.String()})
		switch {
		case !ok:
			c.wrong(Stands, s.Key, "%s of call %d returned %s, but the ledger has nothing", call.Kind, call.ID, s)
		case kept.kept() != s.kept() || kept.Terms != s.Terms || kept.IDR != s.IDR:
			c.wrong(Stands, s.Key, "%s of call %d returned %s, but the ledger has %s", call.Kind, call.ID, s, c.Ledger.Payments[s.Key])
		}
	}
	if call.Kind == Get && !found[call.Key] {
		c.see(call, call.Key, sight{rank: absent, what: "404"})
	}
	if call.Whole {
		for key := range c.pays {
			if !found[key] {
				c.see(call, key, sight{rank: absent, what: "not in the list"})
			}
		}
	}
}

// checkKept checks one row of the ledger on its own.
func (c *checker) checkKept(s State) {
	if !c.askedFor(s, c.Ledger.At) {
		c.wrong(Invented, s.Key, "the ledger has %s, but nobody requested that payment", s)
	}
	rank := decided
	if s.Status == payment.Pending {
		rank = claimed
		c.wrong(Decided, s.Key, "in the end the ledger has %s", s)
	}
	c.sights[s.Key] = append(c.sights[s.Key], sight{begun: c.Ledger.At, ended: c.Ledger.At, rank: rank, what: "the ledger: " + s.String()})
	if s.Terms.Debit != (money.Currency{}) {
		// One side is what the client asked for, if it named the currency of a balance.
		named := s.Terms.Sent.Currency == s.Terms.Debit || s.Terms.Sent.Currency == s.Terms.Credit
		if named && s.Moved[0] != s.Terms.Sent && s.Moved[1] != s.Terms.Sent {
			c.wrong(Settled, s.Key, "the ledger moves %s %s and %s %s for %s", s.Moved[0], s.Terms.Debit, s.Moved[1], s.Terms.Credit, s.Terms)
		}
		return
	}
	if s.Rate.IsZero() {
		return
	}
	if priced, err := money.Convert(s.Terms.Sent, s.Rate, money.IDR); err != nil || priced.Minor != s.IDR {
		c.wrong(Settled, s.Key, "the ledger has IDR %d for %s %s at %s", s.IDR, s.Terms.Sent, s.Terms.Sent.Currency, s.Rate)
	}
}

// What is known of a payment only increases.
const (
	absent  = iota // the ledger has nothing of the key
	claimed        // the ledger has the key
	decided        // the ledger has the outcome
)

// sight is what a client knew of a payment at a moment between begun and ended.
type sight struct {
	begun, ended time.Duration
	rank         int
	least        bool // the client may have known more than rank
	first        bool // it claims to be the first to know
	what         string
}

func (c *checker) see(call Call, key string, s sight) {
	s.begun, s.ended, s.what = call.Begun, call.Ended, fmt.Sprintf("%s of call %d: %s", call.Kind, call.ID, s.what)
	c.sights[key] = append(c.sights[key], s)
}

// checkOrder compares each sight with the sights that ended before it began.
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
			c.wrong(Order, key, "%s at %s, but later, from %s, %s", best.what, at(best.ended), at(s.begun), s.what)
		case s.first && best.rank == decided:
			c.wrong(Order, key, "%s at %s, but a call that began at %s is answered as the first: %s", best.what, at(best.ended), at(s.begun), s.what)
		}
	}
}

// checkSent checks that each request that the broker has is in the ledger.
func (c *checker) checkSent() {
	keys := map[int]string{}
	for _, call := range c.Calls {
		keys[call.ID] = call.Key
	}
	reported := map[string]bool{}
	for _, p := range c.Publishes {
		key := keys[p.Call]
		if _, known := c.Ledger.Payments[key]; known || !p.Sent || reported[key] {
			continue
		}
		reported[key] = true
		c.wrong(Decided, key, "call %d was published at %s, but in the end the ledger has nothing", p.Call, at(p.At))
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
