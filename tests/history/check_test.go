package history

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgw/functions/pgw/load"
	"pgw/shared/money"
	"pgw/shared/payment"
)

var (
	rate, _ = money.ParseRate("15500")
	usd     = mustCurrency("USD")
	ten     = Terms{Sender: "A", Receiver: "B", Sent: money.Amount{Minor: 1000, Currency: usd}}
	eleven  = Terms{Sender: "A", Receiver: "B", Sent: money.Amount{Minor: 1100, Currency: usd}}
)

func mustCurrency(code string) money.Currency {
	c, err := money.ParseCurrency(code)
	if err != nil {
		panic(err)
	}
	return c
}

// settled and refused are payments as the ledger has them and as clients read them.
func settled(key string) State {
	return State{Key: key, Terms: ten, Status: payment.Committed, Reason: payment.ReasonCommitted, Ref: "ref-" + key, IDR: 155_000, Rate: rate}
}

func refused(key string, reason payment.Reason) State {
	s := settled(key)
	s.Status, s.Reason = payment.RolledBack, reason
	return s
}

func pending(key string) State {
	s := settled(key)
	s.Status, s.Reason = payment.Pending, ""
	return s
}

func answer(code int, reason payment.Reason, ref string) load.Answer {
	return load.Answer{HTTP: code, Status: reason.Status(), Reason: reason, Ref: ref}
}

func with(t load.Answer, message string) load.Answer {
	t.Message = message
	return t
}

// story builds a history step by step. Each step takes a second.
type story struct {
	History
	second int
}

func newStory() *story {
	return &story{History: History{Publishes: []Publish{}, Ledger: Ledger{Payments: map[string]State{}}}}
}

func (s *story) next() time.Duration {
	s.second++
	return time.Duration(s.second) * time.Second
}

// pay adds one call, which ends before the next step.
func (s *story) pay(key string, t Terms, got load.Answer) *story {
	s.Calls = append(s.Calls, Call{ID: len(s.Calls) + 1, Kind: Pay, Key: key, Terms: t, Begun: s.next(), Ended: s.next(), Answer: got})
	return s
}

// sameTime makes the last call begin at the same time as the one before it.
func (s *story) sameTime() *story {
	n := len(s.Calls)
	s.Calls[n-1].Begun = s.Calls[n-2].Begun
	return s
}

func (s *story) malformed() *story {
	s.Calls[len(s.Calls)-1].Malformed = true
	return s
}

// sent adds the publish of the last call's request, which reached the broker or not.
func (s *story) sent(reached bool) *story {
	last := s.Calls[len(s.Calls)-1]
	s.Publishes = append(s.Publishes, Publish{Call: last.ID, At: last.Begun + time.Millisecond, Sent: reached})
	return s
}

func (s *story) get(key string, found ...State) *story {
	s.Calls = append(s.Calls, Call{ID: len(s.Calls) + 1, Kind: Get, Key: key, Begun: s.next(), Ended: s.next(), Read: true, Found: found})
	return s
}

func (s *story) list(whole bool, found ...State) *story {
	s.Calls = append(s.Calls, Call{ID: len(s.Calls) + 1, Kind: List, Whole: whole, Begun: s.next(), Ended: s.next(), Read: true, Found: found})
	return s
}

func (s *story) ledger(all ...State) *story {
	s.Ledger.At = s.next()
	for _, p := range all {
		s.Ledger.Payments[p.Key] = p
	}
	return s
}

var (
	success  = answer(200, payment.ReasonCommitted, "ref-k")
	replay   = answer(200, payment.DuplicateIdempo, "ref-k")
	poorly   = answer(200, payment.InsufficientFunds, "")
	timeout  = answer(504, payment.QueueTimeout, "")
	nobody   = load.Answer{Reason: load.NoAnswer}
	mismatch = answer(422, payment.IdempotencyMismatch, "")
	invalid  = answer(400, payment.InvalidInput, "")
	notSent  = with(answer(502, payment.QueuePublishError, ""), "the payment was not sent; try again with the same key")
	noFX     = with(answer(502, payment.FXUnavailable, ""), "nothing was sent; try again with the same key")
)

// Check finds no contradiction in true histories.
func TestTrueHistories(t *testing.T) {
	for name, s := range map[string]*story{
		"nothing":                       newStory().ledger(),
		"a payment, and again":          newStory().pay("k", ten, success).sent(true).pay("k", ten, replay).ledger(settled("k")),
		"one without an answer":         newStory().pay("k", ten, nobody).sent(true).get("k").get("k", pending("k")).get("k", settled("k")).ledger(settled("k")),
		"one that never arrived":        newStory().pay("k", ten, nobody).get("k").ledger(),
		"timeouts, and then it settles": newStory().pay("k", ten, timeout).sent(true).pay("k", ten, timeout).sent(true).pay("k", ten, replay).ledger(settled("k")),
		"a no, and again":               newStory().pay("k", ten, poorly).pay("k", ten, poorly).get("k", refused("k", payment.InsufficientFunds)).ledger(refused("k", payment.InsufficientFunds)),
		"a no after a timeout":          newStory().pay("k", ten, timeout).sent(true).pay("k", ten, poorly).ledger(refused("k", payment.InsufficientFunds)),
		"an unknown after an outcome":   newStory().pay("k", ten, success).sent(true).pay("k", ten, timeout).sent(true).pay("k", ten, noFXOfThis()).ledger(settled("k")),
		"the key of another":            newStory().pay("k", ten, success).sent(true).pay("k", eleven, mismatch).ledger(settled("k")),
		"another one beside it wins":    newStory().pay("k", eleven, mismatch).sent(true).pay("k", ten, success).sameTime().sent(true).ledger(settled("k")),
		"no payment":                    newStory().pay("k", ten, invalid).malformed().ledger(),
		"no payment, of a known key":    newStory().pay("k", ten, success).pay("k", ten, invalid).malformed().ledger(settled("k")),
		"not sent":                      newStory().pay("k", ten, notSent).sent(false).ledger(),
		"not sent, and then it was":     newStory().pay("k", ten, notSent).sent(false).pay("k", ten, success).sent(true).ledger(settled("k")),
		"two wait, and it was not sent": newStory().pay("k", ten, notSent).sent(false).pay("k", ten, notSent).sameTime().ledger(),
		"the other was cut off":         newStory().pay("k", ten, nobody).sent(false).pay("k", ten, notSent).ledger(),
		"nothing was sent":              newStory().pay("k", ten, noFX).pay("k", ten, success).sent(true).ledger(settled("k")),
		"lists":                         newStory().list(false).pay("k", ten, success).list(false).list(true, settled("k")).ledger(settled("k")),
		"a replay before the first":     newStory().pay("k", ten, replay).pay("k", ten, success).sameTime().ledger(settled("k")),
	} {
		t.Run(name, func(t *testing.T) {
			for _, wrong := range Check(s.History) {
				t.Errorf("%s\n%s", wrong, s.Timeline("k"))
			}
		})
	}
}

func noFXOfThis() load.Answer {
	return with(noFX, "nothing was sent for this request; try again with the same key")
}

// Check finds each history that breaks a rule, by that rule.
func TestForgedHistories(t *testing.T) {
	unpriced, others := settled("k"), settled("k")
	unpriced.IDR++
	others.Terms = eleven
	others.IDR = 170_500
	other := settled("k")
	other.Ref = "another"
	accounts := func(a, b int64) *story {
		s := newStory().pay("k", ten, success).ledger(settled("k"))
		s.Ledger.Accounts = map[string]Account{"A": {Given: 200_000, Balance: a}, "B": {Given: 1, Balance: b}}
		return s
	}
	tried := map[Rule]bool{}
	for _, tc := range []struct {
		name  string
		rule  Rule
		story *story
	}{
		{"a code that is not the reason's", Contract, newStory().pay("k", ten, answer(504, payment.InsufficientFunds, "")).ledger()},
		{"a status that is not the reason's", Contract, newStory().pay("k", ten, load.Answer{HTTP: 200, Status: payment.Success, Reason: payment.InsufficientFunds, Ref: "r"}).ledger()},
		{"a reason of nobody", Contract, newStory().pay("k", ten, answer(200, "because", "")).ledger()},
		{"success without a ref", Contract, newStory().pay("k", ten, answer(200, payment.ReasonCommitted, "")).ledger(settled("k"))},
		{"an outcome of what is no payment", Contract, newStory().pay("k", ten, success).malformed().ledger()},
		{"422 of what is no payment", Contract, newStory().pay("k", ten, success).pay("k", eleven, mismatch).malformed().ledger(settled("k"))},

		{"success that never was", Settled, newStory().pay("k", ten, success).ledger()},
		{"success that was rolled back", Settled, newStory().pay("k", ten, success).ledger(refused("k", payment.Expired))},
		{"success under another ref", Settled, newStory().pay("k", ten, success).ledger(other)},
		{"success of another payment", Settled, newStory().pay("k", eleven, timeout).pay("k", ten, success).ledger(others)},
		{"a replay that never was", Settled, newStory().pay("k", ten, replay).ledger()},
		{"a wrong price", Settled, newStory().pay("k", ten, success).ledger(unpriced)},

		{"success twice", Once, newStory().pay("k", ten, success).pay("k", ten, success).sameTime().ledger(settled("k"))},

		{"no, and then the money moves", Refused, newStory().pay("k", ten, timeout).sent(true).pay("k", ten, poorly).ledger(settled("k"))},
		{"no, and the money is held", Refused, newStory().pay("k", ten, poorly).ledger(pending("k"))},
		{"no, and nobody wrote it down", Recorded, newStory().pay("k", ten, poorly).ledger()},
		{"no for two reasons", Refused, newStory().pay("k", ten, poorly).pay("k", ten, answer(200, payment.RiskAboveMax, "")).ledger(refused("k", payment.InsufficientFunds))},
		{"no to another payment", Refused, newStory().pay("k", ten, timeout).pay("k", eleven, poorly).ledger(refused("k", payment.InsufficientFunds))},

		{"422 for the key's own request", Mismatch, newStory().pay("k", ten, mismatch).ledger(settled("k"))},
		{"422 for a key of nobody", Mismatch, newStory().pay("k", ten, mismatch).ledger()},

		{"400 of a payment", NoPayment, newStory().pay("k", ten, invalid).ledger()},
		{"400 of a payment that settles", NoPayment, newStory().pay("k", ten, timeout).sent(true).pay("k", ten, invalid).ledger(settled("k"))},

		{"not sent, and it was", NotSent, newStory().pay("k", ten, notSent).sent(true).ledger(settled("k"))},
		{"not sent, to one who waited with it", NotSent, newStory().pay("k", ten, notSent).sent(true).pay("k", ten, notSent).sameTime().ledger(settled("k"))},
		{"not sent, and nobody tried", NotSent, newStory().pay("k", ten, notSent).ledger()},
		{"nothing sent, and an earlier one was", NotSent, newStory().pay("k", ten, timeout).sent(true).pay("k", ten, noFX).ledger(settled("k"))},
		{"nothing sent of this, and it was", NotSent, newStory().pay("k", ten, noFXOfThis()).sent(true).ledger(settled("k"))},

		{"a payment of nobody in the ledger", Invented, newStory().ledger(settled("k"))},
		{"other terms in the ledger", Invented, newStory().pay("k", ten, timeout).ledger(others)},
		{"read before it was asked for", Invented, newStory().get("k", settled("k")).pay("k", ten, success).ledger(settled("k"))},
		{"a list of what was not asked for", Invented, newStory().list(false, settled("k")).ledger(settled("k"))},
		{"422 before the other one", Invented, newStory().pay("k", ten, mismatch).pay("k", eleven, timeout).ledger(others)},
		{"no payment is taken", Invented, newStory().pay("k", ten, nobody).malformed().ledger(settled("k"))},

		{"read as settled, and then it is not", Stands, newStory().pay("k", ten, timeout).get("k", settled("k")).ledger(refused("k", payment.Expired))},
		{"read for another reason", Stands, newStory().pay("k", ten, timeout).list(false, refused("k", payment.Expired)).ledger(refused("k", payment.CommitFailed))},
		{"held under another ref", Stands, newStory().pay("k", ten, timeout).get("k", func() State { s := pending("k"); s.Ref = "another"; return s }()).ledger(settled("k"))},
		{"read and gone", Stands, newStory().pay("k", ten, timeout).get("k", settled("k")).ledger()},
		{"read at another price", Stands, newStory().pay("k", ten, timeout).get("k", unpriced).ledger(settled("k"))},

		{"404 after an outcome", Order, newStory().pay("k", ten, success).get("k").ledger(settled("k"))},
		{"404 after a no", Order, newStory().pay("k", ten, poorly).get("k").ledger(refused("k", payment.InsufficientFunds))},
		{"404 after it was held", Order, newStory().pay("k", ten, timeout).get("k", pending("k")).get("k").ledger(settled("k"))},
		{"held after an outcome", Order, newStory().pay("k", ten, success).get("k", pending("k")).ledger(settled("k"))},
		{"404 after 422", Order, newStory().pay("k", ten, timeout).pay("k", eleven, mismatch).get("k").ledger(settled("k"))},
		{"not in the whole list", Order, newStory().pay("k", ten, success).list(true).ledger(settled("k"))},
		{"the first success after a replay", Order, newStory().pay("k", ten, replay).pay("k", ten, success).ledger(settled("k"))},

		{"held in the end", Decided, newStory().pay("k", ten, timeout).sent(true).ledger(pending("k"))},
		{"sent, and lost", Decided, newStory().pay("k", ten, timeout).sent(true).ledger()},

		{"money is lost", Conserved, accounts(45_000, 155_000)},
		{"money is made", Conserved, accounts(45_001, 155_001)},
	} {
		tried[tc.rule] = true
		t.Run(tc.name, func(t *testing.T) {
			found := Check(tc.story.History)
			if !slices.ContainsFunc(found, func(c Contradiction) bool { return c.Rule == tc.rule && c.Key != "" && c.Problem != "" }) {
				t.Errorf("%s finds nothing; all findings: %v\n%s", tc.rule, found, tc.story.Timeline("k"))
			}
		})
	}
	for _, rule := range rules {
		if !tried[rule] {
			t.Errorf("no history breaks %s", rule)
		}
	}
	if found := Check(accounts(45_000, 155_001).History); len(found) > 0 {
		t.Errorf("accounts that add up: %v", found)
	}
}

// The same seed gives the same steps, and another seed gives others.
func TestDrawsFollowFromTheSeed(t *testing.T) {
	script := func(seed uint64) (all []string) {
		d := Draw{Seed: seed, Clients: 3}
		client, operator := d.Client(1), d.Operator()
		for range 500 {
			all = append(all, fmt.Sprintf("%+v %+v", client.Next(), operator.Next()))
		}
		return all
	}
	if !slices.Equal(script(1), script(1)) {
		t.Error("the same seed gives two scripts")
	}
	if slices.Equal(script(1), script(2)) {
		t.Error("two seeds give one script")
	}
}

// All calls with a key request the same, except those that are meant to differ.
func TestEveryKindOfStepIsDrawn(t *testing.T) {
	d := Draw{Seed: 1, Clients: 2}
	client, operator := d.Client(0), d.Operator()
	drawn := map[string]int{}
	for range 2000 {
		drawn[string(operator.Next().Kind)]++
		step := client.Next()
		drawn[fmt.Sprintf("%d at once", len(step.Asks))]++
		for _, ask := range step.Asks {
			drawn[string(ask.Kind)]++
			drawn[string(ask.Manner)]++
			if ask.Flaw != "" {
				drawn[string(ask.Flaw)]++
			}
			if ask.Kind == Pay && ask.Terms != d.Terms(ask.Key) {
				drawn["other terms"]++
			}
		}
	}
	for _, kind := range []string{
		string(Fund), string(Block), string(Unblock), string(Rates), string(Rules), "1 at once", "2 at once", string(Pay), string(Get), string(List),
		string(Waits), string(Leaves), string(Cut), string(Deaf), string(NotJSON), string(Negative), string(NoReceiver), string(NoCurrency), "other terms",
	} {
		if drawn[kind] == 0 {
			t.Errorf("nothing of %q in 2000 steps: %v", kind, drawn)
		}
	}
}

// A call's id can be read from its tx_date.
func TestACallIsKnownByItsDate(t *testing.T) {
	for _, id := range []int{0, 7, 123_456_789} {
		date := txDateOf(id)
		if _, err := time.Parse(time.RFC3339, date); err != nil {
			t.Error(err)
		}
		if got, ok := CallOf(date); !ok || got != id {
			t.Errorf("%s: %d, %t", date, got, ok)
		}
	}
	if _, ok := CallOf("2026-01-31T09:30:00Z"); ok {
		t.Error("a date without an id gives an id")
	}
}
