package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"pgw/functions/pgw/load"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/tests/history"
)

// This file has what clients do besides plain payments: they authorize, capture and void, cancel, and
// refund, often two of them at the same time.

// heldPrefix and laterPrefix begin the keys of payments that are only authorized, and of operations.
// The checks of plain payments do not look at them.
const heldPrefix, laterPrefix = "held-", "later-"

// action is what a client asked for.
type action string

// The actions; the others are the kinds of operations.
const authorize action = "authorize"

// request is a request of a client for one action, and its answer.
type request struct {
	Action  action
	Key     string // the operation's, or that of the authorized payment
	Payment string // the payment's key
	Body    []byte
	// Told means that the client had been told before that the payment succeeded.
	Told   bool
	Answer load.Answer
	// Amount is what the answer says was given back or captured, in major units; empty: it says nothing.
	Amount string
}

func (r request) String() string {
	return fmt.Sprintf("%s %s of %s: %d %s %s %s", r.Action, r.Key, r.Payment, r.Answer.HTTP, r.Answer.Status, r.Answer.Reason, r.Answer.Ref)
}

// decided reports whether the answer has an outcome.
func (r request) decided() bool {
	return r.Answer.HTTP == http.StatusOK && r.Answer.Status != "" && !r.Answer.Undecided()
}

// operate asks for an operation on a payment. told means that the client knows that it succeeded.
func (c *clients) operate(kind payment.OperationKind, key, of string, told bool, fields map[string]any) {
	fields["idempotency_key"] = key
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err) // texts can always be encoded
	}
	r := request{Action: action(kind), Key: key, Payment: of, Body: text, Told: told}
	c.insist(&r)
}

// insist asks until there is an outcome, four times at most, and records every answer.
func (c *clients) insist(r *request) {
	for range 4 {
		c.send(context.Background(), r)
		if r.decided() || r.Answer.HTTP == http.StatusNotFound {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// paths are the last parts of the paths of operations.
var paths = map[action]string{
	action(payment.Refund): "refunds", action(payment.Capture): "capture", action(payment.Void): "void", action(payment.Cancel): "cancel",
}

// send sends a request once, and records its answer.
func (c *clients) send(ctx context.Context, r *request) {
	path := "/api/payments"
	if r.Action != authorize {
		path += "/" + r.Payment + "/" + paths[r.Action]
	}
	sent := time.Now()
	r.Answer, r.Amount = c.post(ctx, path, r.Body)
	answered := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life = append(c.life, *r)
	if r.Answer.Status == payment.Success {
		c.successes = append(c.successes, success{sent, answered})
	}
}

func (c *clients) post(ctx context.Context, path string, body []byte) (load.Answer, string) {
	none := load.Answer{Reason: load.NoAnswer}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.gateway+path, bytes.NewReader(body))
	if err != nil {
		return none, ""
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return none, ""
	}
	defer resp.Body.Close()
	var got struct {
		load.Answer
		Refund  struct{ Amount string }
		Payment struct{ Captured string }
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
		return none, "" // a load balancer's own page: pgw did not answer
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	// A problem document has a number as its status.
	if err == nil && resp.Header.Get("Content-Type") == "application/json" {
		err = json.Unmarshal(text, &got)
	}
	if err != nil {
		return none, ""
	}
	got.HTTP, got.RetryAfter = resp.StatusCode, resp.Header.Get("Retry-After")
	if got.Refund.Amount == "" {
		got.Refund.Amount = got.Payment.Captured
	}
	return got.Answer, got.Refund.Amount
}

// debitOf returns what a payment takes from its sender, if that is known without its price.
func debitOf(t history.Terms) (money.Amount, bool) {
	if t.Debit == (money.Currency{}) {
		return money.Amount{Minor: t.Sent.Minor * 155, Currency: money.IDR}, t.Sent.Currency == usd // at 15,500 for a dollar
	}
	return t.Sent, t.Sent.Currency == t.Debit
}

// part returns the fields that ask for a share of an amount; all of it if the amount is not known.
func part(of money.Amount, known bool, percent int64) map[string]any {
	of.Minor = of.Minor * percent / 100
	if !known || of.Minor == 0 {
		return map[string]any{}
	}
	return map[string]any{"amount": of.String(), "currency": of.Currency.String()}
}

// goOn continues the life of a payment that was asked for.
func (c *clients) goOn(rng *rand.Rand, n int64, key string, terms history.Terms, told bool) {
	switch draw := rng.IntN(100); {
	case draw < 12 && told:
		c.refund(rng, n, key, terms, true)
	case draw < 14:
		// Also of payments that were refused, and of those whose client knows nothing.
		c.both(
			func() { c.operate(payment.Cancel, c.key("cancel-a", n), key, told, map[string]any{"reason": "by a"}) },
			func() { c.operate(payment.Cancel, c.key("cancel-b", n), key, told, map[string]any{"reason": "by b"}) },
		)
	}
}

// refund has two clients give 60 % of a payment back at the same time, and then perhaps the rest.
func (c *clients) refund(rng *rand.Rand, n int64, key string, terms history.Terms, told bool) {
	debit, known := debitOf(terms)
	fx := payment.FXOriginal
	if rng.IntN(4) == 0 {
		fx = payment.FXCurrent
	}
	ask := func(who string) func() {
		return func() {
			fields := part(debit, known, 60)
			fields["fx"] = fx
			c.operate(payment.Refund, c.key(who, n), key, told, fields)
		}
	}
	c.both(ask("back-a"), ask("back-b"))
	switch rng.IntN(4) {
	case 0, 1:
		c.operate(payment.Refund, c.key("rest", n), key, told, map[string]any{})
	case 2:
		c.operate(payment.Cancel, c.key("cancel", n), key, told, map[string]any{})
	}
}

// hold authorizes a payment, and ends the hold in one of the ways, or in two at the same time. Some
// holds are left to the sweep.
func (c *clients) hold(rng *rand.Rand, n int64, terms history.Terms) {
	r := request{Action: authorize, Key: fmt.Sprintf("%s%d-%d", heldPrefix, c.o.Seed, n)}
	r.Payment, r.Body = r.Key, body(r.Key, terms, "manual")
	c.insist(&r)
	if r.Answer.Status == payment.Failed && r.decided() {
		return
	}
	told := r.decided()
	debit, known := debitOf(terms)
	capture := func(percent int64) func() {
		fields := map[string]any{}
		if percent < 100 {
			fields = part(debit, known, percent)
		}
		return func() { c.operate(payment.Capture, c.key("capture", n), r.Key, told, fields) }
	}
	void := func() {
		c.operate(payment.Void, c.key("void", n), r.Key, told, map[string]any{"reason": "out of stock"})
	}
	cancel := func() { c.operate(payment.Cancel, c.key("cancel", n), r.Key, told, map[string]any{}) }
	switch rng.IntN(10) {
	case 0, 1:
		capture(100)()
	case 2, 3:
		capture(70)()
		c.refund(rng, n, r.Key, terms, told)
	case 4:
		void()
	case 5:
		cancel()
	case 6:
		c.both(capture(100), void)
	case 7:
		c.both(capture(30), cancel)
	case 8:
		c.both(capture(50), func() { c.operate(payment.Capture, c.key("capture-b", n), r.Key, told, part(debit, known, 80)) })
	}
}

func (c *clients) key(what string, n int64) string {
	return fmt.Sprintf("%s%s-%d-%d", laterPrefix, what, c.o.Seed, n)
}

func (c *clients) both(one, other func()) {
	var at sync.WaitGroup
	at.Go(one)
	at.Go(other)
	at.Wait()
}

// mostAgain is the most operations that are asked for again in the end.
const mostAgain = 1000

// askAgain asks once more for operations that no client has an outcome of. Now they get one.
func (c *clients) askAgain(ctx context.Context) {
	var undecided []request
	c.mu.Lock()
	decided := map[string]bool{}
	for _, r := range c.life {
		decided[r.Key] = decided[r.Key] || r.decided()
	}
	for _, r := range c.life {
		if !decided[r.Key] && len(undecided) < mostAgain {
			decided[r.Key] = true
			undecided = append(undecided, r)
		}
	}
	c.mu.Unlock()
	next := make(chan request)
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			for r := range next {
				c.send(ctx, &r)
			}
		})
	}
	for _, r := range undecided {
		next <- r
	}
	close(next)
	asking.Wait()
}
