// Package history records what many clients asked of pgw and what each of them was told, with the times, and finds
// what of it can't be true: against the ledger, against what reached the broker, and against itself.
package history

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"pgw/functions/pgw/load"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// Terms are what a payment asks for, which its key stands for once it is claimed.
type Terms struct {
	Sender, Receiver string
	Sent             money.Amount
}

func (t Terms) String() string {
	return fmt.Sprintf("%s pays %s %s %s", t.Sender, t.Receiver, t.Sent, t.Sent.Currency)
}

// Kind of a call.
type Kind string

// The kinds.
const (
	Pay  Kind = "POST"
	Get  Kind = "GET"
	List Kind = "list"
)

// Call is one request of one client, and what that client heard. Times are since the beginning of the history, by
// one monotonic clock.
type Call struct {
	ID           int
	Kind         Kind
	Key          string // of Pay and Get
	Terms        Terms  // of Pay
	Malformed    bool   // of Pay: it is no payment by the contract, whatever pgw's state
	Begun, Ended time.Duration

	Told  load.Told // what Pay heard
	Read  bool      // Get and List were answered, by 404 too
	Found []State   // what that answer has
	Whole bool      // of List: the answer is of all pages, so that what is not in it is not there
}

// State is what is known of one payment: what the ledger keeps, or what Get and List tell.
type State struct {
	Key    string
	Terms  Terms
	Status payment.ReservationStatus
	Reason payment.Reason // empty while PENDING
	Ref    string
	IDR    int64      // the amount in rupiah
	Rate   money.Rate // zero where the caller did the pricing
}

func (s State) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s (%s)", s.Status, s.Reason, s.Ref, s.Terms))
}

func (s State) kept() load.Kept { return load.Kept{Ref: s.Ref, Status: s.Status, Reason: s.Reason} }

// Publish is one try to hand a payment's request to the broker.
type Publish struct {
	Call int // whose request it was
	At   time.Duration
	Sent bool // the broker has it
}

// Ledger is what stands when everything is settled.
type Ledger struct {
	At       time.Duration // when it was read
	Payments map[string]State
	Accounts map[string]Account // nil where others add the ledger up
}

// Account is one account's money, in rupiah.
type Account struct {
	Given   int64 // what it opened with, and what was funded since
	Balance int64 // what it has in the end
}

// History is all of it. Calls may stand in any order.
type History struct {
	Calls     []Call
	Publishes []Publish // nil where nobody watched them
	Ledger    Ledger
}

// txDateOf and callOf let a call's id travel with its request: a payment's tx_date is kept and sent on as it came, and
// is not part of what its key stands for.
const txDate = "2026-01-31T09:30:00"

func txDateOf(id int) string { return fmt.Sprintf("%s.%09dZ", txDate, id) }

// CallOf gives the id of the call whose request has this tx_date.
func CallOf(date string) (int, bool) {
	digits, ok := strings.CutPrefix(strings.TrimSuffix(date, "Z"), txDate+".")
	id, err := strconv.Atoi(digits)
	return id, ok && err == nil
}

// Body is a payment's request. flaw makes it one that is no payment.
func Body(id int, key string, t Terms, flaw Flaw) []byte {
	fields := map[string]any{
		"idempotency_key": key, "sender_id": t.Sender, "receiver_id": t.Receiver,
		"amount": t.Sent.String(), "currency": t.Sent.Currency.String(), "tx_date": txDateOf(id),
	}
	switch flaw {
	case NotJSON:
		return []byte(`{"idempotency_key":`)
	case Negative:
		fields["amount"] = "-" + t.Sent.String()
	case NoReceiver:
		delete(fields, "receiver_id")
	case NoCurrency:
		fields["currency"] = "XXQ"
	}
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err) // of strings alone
	}
	return text
}

// Timeline tells all that happened to a key, in the order of time.
func (h History) Timeline(key string) string {
	type line struct {
		at   time.Duration
		text string
	}
	var lines []line
	say := func(at time.Duration, format string, args ...any) {
		lines = append(lines, line{at, fmt.Sprintf(format, args...)})
	}
	own := map[int]bool{}
	listed := "" // what a list told last
	for _, c := range h.Calls {
		switch {
		case c.Kind == Pay && c.Key == key:
			own[c.ID] = true
			say(c.Begun, "call %d: %s", c.ID, c.Terms)
			say(c.Ended, "call %d is told %s", c.ID, said(c.Told))
		case c.Kind == Get && c.Key == key && c.Read:
			say(c.Ended, "GET from %s tells %v", at(c.Begun), c.Found)
		case c.Kind == List:
			for _, s := range c.Found {
				if s.Key == key && s.String() != listed {
					listed = s.String()
					say(c.Ended, "the list from %s tells %s", at(c.Begun), s)
				}
			}
		}
	}
	for _, p := range h.Publishes {
		if own[p.Call] {
			say(p.At, "the request of call %d is published; the broker has it: %t", p.Call, p.Sent)
		}
	}
	if s, ok := h.Ledger.Payments[key]; ok {
		say(h.Ledger.At, "the ledger has %s", s)
	} else {
		say(h.Ledger.At, "the ledger has nothing")
	}
	slices.SortStableFunc(lines, func(a, b line) int { return cmp.Compare(a.at, b.at) })
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "  %s %s\n", at(l.at), l.text)
	}
	return b.String()
}

func at(t time.Duration) string { return fmt.Sprintf("%.3fs", t.Seconds()) }

func said(t load.Told) string {
	return strings.TrimSpace(strings.Join([]string{strconv.Itoa(t.HTTP), string(t.Status), string(t.Reason), t.Ref, t.Message}, " "))
}
