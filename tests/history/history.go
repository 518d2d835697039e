// Package history records what many clients requested of pgw and which answers they got, with the
// times. It finds contradictions: with the ledger, with what reached the broker, and within the
// history.
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

// Terms are the terms of a payment. A claimed key stands for its terms.
type Terms struct {
	Sender, Receiver string
	Sent             money.Amount
	Debit, Credit    money.Currency // of the two balances; both zero: rupiah
}

func (t Terms) String() string {
	text := fmt.Sprintf("%s pays %s %s %s", t.Sender, t.Receiver, t.Sent, t.Sent.Currency)
	if t.Debit != (money.Currency{}) {
		text += fmt.Sprintf(" from %s to %s", t.Debit, t.Credit)
	}
	return text
}

// Kind is the kind of a call.
type Kind string

// The kinds.
const (
	Pay  Kind = "POST"
	Get  Kind = "GET"
	List Kind = "list"
)

// Call is one request of one client, and its answer. Times are since the beginning of the history,
// by one monotonic clock.
type Call struct {
	ID           int
	Kind         Kind
	Key          string // for Pay and Get
	Terms        Terms  // for Pay
	Malformed    bool   // for Pay: by the contract it is not a payment, whatever pgw's state
	Begun, Ended time.Duration

	Answer load.Answer // the answer to Pay
	Read   bool        // Get or List was answered, also by 404
	Found  []State     // the payments in that answer
	Whole  bool        // for List: the answer has all pages, so a payment that is missing does not exist
}

// State is what is known of one payment: in the ledger, or in the answer of Get or List.
type State struct {
	Key    string
	Terms  Terms
	Status payment.ReservationStatus
	Reason payment.Reason // empty while PENDING
	Ref    string
	IDR    int64           // the amount in rupiah
	Rate   money.Rate      // zero when the caller converted the amount
	Moved  [2]money.Amount // what the sender paid and the receiver got; zero: rupiah
}

func (s State) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s (%s)", s.Status, s.Reason, s.Ref, s.Terms))
}

func (s State) kept() load.Kept { return load.Kept{Ref: s.Ref, Status: s.Status, Reason: s.Reason} }

// Publish is one attempt to publish a payment's request.
type Publish struct {
	Call int // the call whose request it was
	At   time.Duration
	Sent bool // the broker has it
}

// Ledger is the ledger's content after everything is settled.
type Ledger struct {
	At       time.Duration // when it was read
	Payments map[string]State
	Accounts map[string]Account // nil when the ledger is added up elsewhere
}

// Account is one account's money, in rupiah.
type Account struct {
	Given   int64 // the opening balance and later funding
	Balance int64 // the balance in the end
}

// History is a whole history. Its calls may be in any order.
type History struct {
	Calls     []Call
	Publishes []Publish // nil when nobody recorded them
	Ledger    Ledger
}

// txDateOf and CallOf put a call's id into its request. A payment's tx_date is stored and passed on
// unchanged, and is not part of the terms that its key stands for.
const txDate = "2026-01-31T09:30:00"

func txDateOf(id int) string { return fmt.Sprintf("%s.%09dZ", txDate, id) }

// CallOf returns the id of the call whose request has this tx_date.
func CallOf(date string) (int, bool) {
	digits, ok := strings.CutPrefix(strings.TrimSuffix(date, "Z"), txDate+".")
	id, err := strconv.Atoi(digits)
	return id, ok && err == nil
}

// Body returns a payment's request. flaw makes it one that is not a payment.
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
		panic(err) // strings can always be encoded
	}
	return text
}

// Timeline lists everything that happened to a key, in the order of time.
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
	listed := "" // the latest answer of a list
	for _, c := range h.Calls {
		switch {
		case c.Kind == Pay && c.Key == key:
			own[c.ID] = true
			say(c.Begun, "call %d: %s", c.ID, c.Terms)
			say(c.Ended, "call %d got %s", c.ID, describe(c.Answer))
		case c.Kind == Get && c.Key == key && c.Read:
			say(c.Ended, "GET from %s returns %v", at(c.Begun), c.Found)
		case c.Kind == List:
			for _, s := range c.Found {
				if s.Key == key && s.String() != listed {
					listed = s.String()
					say(c.Ended, "the list from %s returns %s", at(c.Begun), s)
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

func describe(t load.Answer) string {
	return strings.TrimSpace(strings.Join([]string{strconv.Itoa(t.HTTP), string(t.Status), string(t.Reason), t.Ref, t.Message}, " "))
}
