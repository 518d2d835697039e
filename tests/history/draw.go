package history

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"pgw/shared/money"
)

// Flaw is the mistake that makes a request not a payment.
type Flaw string

// The flaws; empty means none.
const (
	NotJSON    Flaw = "not JSON"
	Negative   Flaw = "a negative amount"
	NoReceiver Flaw = "no receiver"
	NoCurrency Flaw = "not a currency"
)

var flaws = []Flaw{NotJSON, Negative, NoReceiver, NoCurrency}

// Manner is how a client waits for its answer.
type Manner string

// The manners.
const (
	Waits  Manner = "waits"
	Leaves Manner = "leaves"      // gives up after Patience
	Cut    Manner = "cut"         // its connection is closed after Patience
	Deaf   Manner = "answer lost" // its connection is closed when the answer begins to arrive
)

// Step is a client's next action: one call, or two at the same time.
type Step struct {
	Pause time.Duration // before the step
	Asks  []Ask
}

// Ask is one call to make.
type Ask struct {
	Kind     Kind
	Key      string
	Terms    Terms
	Flaw     Flaw
	Manner   Manner
	Patience time.Duration
}

// Draw draws the actions of clients and operators. They depend only on the seed, and not on the
// answers.
type Draw struct {
	Seed    uint64
	Clients int
}

// The numbers of accounts for payments, by their opening balance.
const (
	rich    = 12 // accounts that can always pay
	poor    = 6  // accounts that often cannot
	limited = 2  // accounts with a daily limit
	Limit   = 3_000_000
)

// Opening returns every account with its opening balance in rupiah. limited means that its daily
// limit is Limit.
func Opening() (all []Opened) {
	for i := range rich {
		all = append(all, Opened{ID: fmt.Sprintf("RICH%d", i), IDR: 1_000_000_000})
	}
	for i := range poor {
		all = append(all, Opened{ID: fmt.Sprintf("POOR%d", i), IDR: 200_000})
	}
	for i := range limited {
		all = append(all, Opened{ID: fmt.Sprintf("LIMITED%d", i), IDR: 100_000_000, Limit: Limit})
	}
	return all
}

// Opened is an account to open.
type Opened struct {
	ID         string
	IDR, Limit int64
}

// Currencies are the currencies of the payments, with their first rates.
var Currencies = map[string]float64{"IDR": 1, "JPY": 103.25, "KWD": 50450, "SGD": 11600, "USD": 15500}

var currencies = []string{"IDR", "JPY", "KWD", "SGD", "USD"} // in a fixed order

func (d Draw) rng(stream string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(stream))
	return rand.New(rand.NewPCG(d.Seed, h.Sum64()))
}

// Prefix is the prefix of all keys.
func (d Draw) Prefix() string { return fmt.Sprintf("history-%d-", d.Seed) }

func (d Draw) key(client, n int) string { return fmt.Sprintf("%s%d-%d", d.Prefix(), client, n) }

// Terms returns the terms of a key. Every call with the key requests the same, unless it is meant
// to differ.
func (d Draw) Terms(key string) Terms {
	rng := d.rng("terms " + key)
	t := Terms{Sender: sender(rng), Receiver: receiver(rng)}
	for t.Receiver == t.Sender && rng.IntN(20) > 0 { // some pay themselves
		t.Receiver = receiver(rng)
	}
	code := currencies[rng.IntN(len(currencies))]
	currency, err := money.ParseCurrency(code)
	if err != nil {
		panic(err)
	}
	// Between about 10,000 and 800,000 rupiah.
	idr := 10_000 + rng.Float64()*790_000
	minor := idr / Currencies[code]
	for range currency.Digits() {
		minor *= 10
	}
	t.Sent = money.Amount{Minor: max(1, int64(minor)), Currency: currency}
	return t
}

func sender(rng *rand.Rand) string {
	switch n := rng.IntN(100); {
	case n < 1:
		return "NOBODY"
	case n < 30:
		return fmt.Sprintf("POOR%d", rng.IntN(poor))
	case n < 36:
		return fmt.Sprintf("LIMITED%d", rng.IntN(limited))
	default:
		return fmt.Sprintf("RICH%d", rng.IntN(rich))
	}
}

func receiver(rng *rand.Rand) string {
	switch n := rng.IntN(100); {
	case n < 1:
		return "NOBODY"
	case n < 10:
		return fmt.Sprintf("POOR%d", rng.IntN(poor))
	default:
		return fmt.Sprintf("RICH%d", rng.IntN(rich))
	}
}

// another returns similar terms that differ from t.
func another(t Terms, rng *rand.Rand) Terms {
	if rng.IntN(3) == 0 {
		t.Sender, t.Receiver = t.Receiver, t.Sender
		if t.Sender != t.Receiver {
			return t
		}
	}
	t.Sent.Minor += 1 + rng.Int64N(9)
	return t
}

// Client draws the actions of one client.
type Client struct {
	draw  Draw
	n     int
	rng   *rand.Rand
	keys  int    // the number of keys that it has paid with
	again string // a key with which it asks again at once
}

// Client returns the n-th client.
func (d Draw) Client(n int) *Client {
	return &Client{draw: d, n: n, rng: d.rng(fmt.Sprint("client ", n))}
}

// Next returns the client's next step.
func (c *Client) Next() Step {
	if key := c.again; key != "" {
		c.again = ""
		if c.rng.IntN(3) == 0 {
			c.again = key
		}
		return Step{Pause: time.Duration(c.rng.IntN(150)) * time.Millisecond, Asks: []Ask{c.pay(key)}}
	}
	switch n := c.rng.IntN(100); {
	case n < 40:
		return c.fresh()
	case n < 58:
		return Step{Asks: []Ask{c.pay(c.recent())}}
	case n < 64: // another client's key, perhaps before that client has used it
		return Step{Asks: []Ask{c.pay(c.others())}}
	case n < 70: // two calls at the same time
		key := c.recent()
		if c.rng.IntN(2) == 0 {
			key = c.newKey()
		}
		return Step{Asks: []Ask{c.pay(key), c.pay(key)}}
	case n < 75: // the key of another request, after it or at the same time
		key := c.recent()
		if c.rng.IntN(2) == 0 {
			key = c.newKey()
		}
		other := c.pay(key)
		other.Terms = another(other.Terms, c.rng)
		if c.rng.IntN(2) == 0 {
			return Step{Asks: []Ask{other}}
		}
		return Step{Asks: []Ask{c.pay(key), other}}
	case n < 78:
		ask := c.pay(c.recent())
		ask.Flaw = flaws[c.rng.IntN(len(flaws))]
		return Step{Asks: []Ask{ask}}
	case n < 92:
		key := c.recent()
		switch c.rng.IntN(3) {
		case 0:
			key = c.others()
		case 1: // perhaps nobody has used it yet
			key = c.draw.key(c.n, c.keys+c.rng.IntN(2))
		}
		return Step{Asks: []Ask{{Kind: Get, Key: key, Manner: Waits}}}
	default:
		return Step{Asks: []Ask{{Kind: List, Manner: Waits}}}
	}
}

// fresh pays with a new key. About half of the time it asks again, whatever the answer.
func (c *Client) fresh() Step {
	key := c.newKey()
	if c.rng.IntN(2) == 0 {
		c.again = key
	}
	return Step{Asks: []Ask{c.pay(key)}}
}

func (c *Client) newKey() string {
	c.keys++
	return c.draw.key(c.n, c.keys-1)
}

// recent returns a key that the client has used, later ones more often.
func (c *Client) recent() string {
	if c.keys == 0 {
		return c.newKey()
	}
	back := min(c.keys, 1+int(c.rng.ExpFloat64()*4))
	return c.draw.key(c.n, c.keys-back)
}

// others returns a key that another client may have used lately, if that client is about as fast.
func (c *Client) others() string {
	return c.draw.key(c.rng.IntN(c.draw.Clients), max(0, c.keys-c.rng.IntN(6)))
}

func (c *Client) pay(key string) Ask {
	ask := Ask{Kind: Pay, Key: key, Terms: c.draw.Terms(key), Manner: Waits}
	switch n := c.rng.IntN(100); {
	case n < 8:
		ask.Manner, ask.Patience = Leaves, time.Duration(1+c.rng.IntN(40))*time.Millisecond
	case n < 14:
		ask.Manner, ask.Patience = Cut, time.Duration(c.rng.IntN(40_000))*time.Microsecond
	case n < 18:
		ask.Manner = Deaf
	}
	return ask
}

// Deed is an action of an operator. Only the fields of its kind are set.
type Deed struct {
	Kind     DeedKind
	Account  string
	IDR      int64 // for Fund
	Twice    bool  // for Fund: its event is published twice
	Currency string
	Rate     float64
	MaxIDR   uint32   // for Rules
	Blocked  []string // for Rules
	PPM      uint32   // for Rules: the share refused at random
}

// DeedKind is the kind of a deed.
type DeedKind string

// The kinds.
const (
	Fund    DeedKind = "fund"
	Block   DeedKind = "block"
	Unblock DeedKind = "unblock"
	Rates   DeedKind = "rates"
	Rules   DeedKind = "rules"
)

// Operator draws the actions of operators.
type Operator struct {
	rng     *rand.Rand
	blocked []string
}

// Operator returns the only operator.
func (d Draw) Operator() *Operator { return &Operator{rng: d.rng("operator")} }

// Next returns the next action.
func (o *Operator) Next() Deed {
	switch n := o.rng.IntN(10); {
	case n < 3:
		return Deed{Kind: Fund, Account: fmt.Sprintf("POOR%d", o.rng.IntN(poor)), IDR: 50_000 + o.rng.Int64N(400_000), Twice: o.rng.IntN(4) == 0}
	case n < 6:
		if len(o.blocked) > 1 || (len(o.blocked) == 1 && o.rng.IntN(2) == 0) {
			account := o.blocked[0]
			o.blocked = o.blocked[1:]
			return Deed{Kind: Unblock, Account: account}
		}
		account := fmt.Sprintf("RICH%d", o.rng.IntN(rich))
		o.blocked = append(o.blocked, account)
		return Deed{Kind: Block, Account: account}
	case n < 8:
		code := currencies[1+o.rng.IntN(len(currencies)-1)] // never rupiah
		return Deed{Kind: Rates, Currency: code, Rate: Currencies[code] * (0.95 + o.rng.Float64()/10)}
	default:
		d := Deed{Kind: Rules, MaxIDR: 1_000_000_000, Blocked: []string{"VILLAIN"}, PPM: 20_000}
		if o.rng.IntN(2) == 0 {
			d.MaxIDR = 400_000
		}
		if o.rng.IntN(3) == 0 {
			d.Blocked = []string{fmt.Sprintf("RICH%d", o.rng.IntN(rich))}
		}
		return d
	}
}
