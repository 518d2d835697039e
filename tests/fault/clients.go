package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"pgw/functions/pgw/load"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/tests/history"
	"pgw/tests/processes"
)

// keyPrefix is the beginning of every key of a run.
const keyPrefix = "chaos-"

var usd = mustCurrency("USD")

// currencies are those of the accounts' balances. worth has about a dollar in each.
var (
	currencies = []money.Currency{money.IDR, usd, mustCurrency("SGD"), mustCurrency("JPY")}
	worth      = map[money.Currency]money.Amount{
		currencies[0]: {Minor: 15_500, Currency: currencies[0]}, currencies[1]: {Minor: 100, Currency: currencies[1]},
		currencies[2]: {Minor: 134, Currency: currencies[2]}, currencies[3]: {Minor: 148, Currency: currencies[3]},
	}
)

func mustCurrency(code string) money.Currency {
	c, err := money.ParseCurrency(code)
	if err != nil {
		panic(err)
	}
	return c
}

// balances returns the currencies of the two balances that numbers drawn for a payment choose. The
// payment is in rupiah if on is false.
func balances(kind, debit, credit int) (between [2]money.Currency, on bool) {
	between = [2]money.Currency{currencies[debit], currencies[credit]}
	return between, kind == 0 && (between[0] != money.IDR || between[1] != money.IDR)
}

// clients send payments at a steady rate, whatever happens to them.
type clients struct {
	o       options
	gateway string
	http    *http.Client
	begun   time.Time
	next    atomic.Int64

	mu        sync.Mutex
	payments  int
	calls     []history.Call
	life      []request // what was asked for besides plain payments
	successes []success // in the order of the answers
}

// success is a payment that was sent and answered SUCCESS.
type success struct{ sent, answered time.Time }

func newClients(o options, gateway string) *clients {
	return &clients{o: o, gateway: gateway, begun: time.Now(), http: &http.Client{
		Timeout:   8 * time.Second, // longer than the gateway's own limit
		Transport: &http.Transport{MaxIdleConnsPerHost: o.Connections},
	}}
}

func (c *clients) run(ctx context.Context) {
	limiter := rate.NewLimiter(rate.Limit(c.o.Rate), 1)
	var paying sync.WaitGroup
	for range c.o.Connections {
		paying.Go(func() {
			for limiter.Wait(ctx) == nil {
				c.pay(c.next.Add(1))
			}
		})
	}
	paying.Wait()
}

// pay makes one payment. When an answer does not decide it, many clients ask again with the same
// key, and some do not. A few clients send the same request twice at the same time. Some payments are
// only authorized, and some are refunded or canceled later.
func (c *clients) pay(n int64) {
	rng := rand.New(rand.NewPCG(c.o.Seed, uint64(n)))
	key := fmt.Sprintf("%s%d-%d", keyPrefix, c.o.Seed, n)
	from := rng.IntN(accounts)
	to := (from + 1 + rng.IntN(accounts-1)) % accounts
	amount := 1 + rng.IntN(30)
	if rng.IntN(50) == 0 {
		amount = 60_000 // nearly all that an account has, so it cannot be paid twice
	}
	terms := history.Terms{
		Sender: processes.Account(from), Receiver: processes.Account(to), Sent: money.Amount{Minor: int64(amount) * 100, Currency: usd},
	}
	// A third of the payments is between balances in any two of the four currencies.
	if between, on := balances(rng.IntN(3), rng.IntN(len(currencies)), rng.IntN(len(currencies))); on {
		terms.Debit, terms.Credit = between[0], between[1]
		// One of the two amounts is fixed; about the same value in each currency.
		terms.Sent = worth[between[rng.IntN(2)]]
		terms.Sent.Minor *= int64(1 + rng.IntN(30))
	}
	if rng.IntN(8) == 0 {
		c.hold(rng, n, terms)
		return
	}
	text := body(key, terms, "")
	c.mu.Lock()
	c.payments++
	c.mu.Unlock()
	var twin sync.WaitGroup
	if rng.IntN(30) == 0 {
		twin.Go(func() { c.ask(key, terms, text) })
	}
	asks := 1
	if rng.IntN(10) < 6 {
		asks = 4
	}
	var answer load.Answer
	for range asks {
		if answer = c.ask(key, terms, text); !answer.Undecided() {
			break
		}
		time.Sleep(time.Duration(200+rng.IntN(800)) * time.Millisecond)
	}
	twin.Wait()
	c.goOn(rng, n, key, terms, answer.Status == payment.Success || answer.Status == payment.SuccessReplay)
}

// body returns a payment's request. capture is "manual" if it is only authorized.
func body(key string, terms history.Terms, capture string) []byte {
	fields := map[string]any{
		"sender_id": terms.Sender, "receiver_id": terms.Receiver, "currency": terms.Sent.Currency.String(), "amount": terms.Sent.String(),
		"tx_date": "2026-01-31T09:30:00Z", "idempotency_key": key,
	}
	if terms.Debit != (money.Currency{}) {
		fields["debit_currency"], fields["credit_currency"] = terms.Debit.String(), terms.Credit.String()
	}
	if capture != "" {
		fields["capture"] = capture
	}
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err) // strings can always be encoded
	}
	return text
}

func (c *clients) ask(key string, terms history.Terms, body []byte) load.Answer {
	sent := time.Now()
	answer := load.Post(context.Background(), c.http, c.gateway, body)
	answered := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, history.Call{
		ID: len(c.calls) + 1, Kind: history.Pay, Key: key, Terms: terms, Begun: sent.Sub(c.begun), Ended: answered.Sub(c.begun), Answer: answer,
	})
	if answer.Status == payment.Success {
		c.successes = append(c.successes, success{sent, answered})
	}
	return answer
}

// after returns the time from t until the first SUCCESS of a payment that was sent after t.
func (c *clients) after(t time.Time) (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.successes {
		if s.sent.After(t) {
			return s.answered.Sub(t), true
		}
	}
	return 0, false
}

// recovered waits until payments succeed again.
func (c *clients) recovered(ctx context.Context, since time.Time, within time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var took time.Duration
	return took, eventually(ctx, func() error {
		var ok bool
		if took, ok = c.after(since); !ok {
			return fmt.Errorf("no payment has succeeded for %s after everything was healed", within)
		}
		return nil
	})
}
