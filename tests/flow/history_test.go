package flow

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/functions/pgw/load"
	"pgw/functions/pgw/reconcile"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/tests/history"
	"pgw/tests/processes"
)

var (
	historySeed = flag.Uint64("history.seed", 1, "seed of TestNobodyIsEverToldFalse: what clients and operators do, and which calls fail")
	historyOps  = flag.Int("history.ops", 10_000, "operations of TestNobodyIsEverToldFalse")
)

const (
	historyClients = 24
	// An operator acts once in this many operations.
	operatorEvery = 12
	// historyAnswerIn is the longest wait of a client. Calls that are held up are held for longer.
	historyAnswerIn = 500 * time.Millisecond
	// settleWithin is the time limit for the work that remains when the clients have finished.
	// Redeliveries wait for seconds.
	settleWithin = 3 * time.Minute
)

// Many clients pay, ask again, give up, lose connections, and read the state of payments. Meanwhile
// operators fund and block accounts and change rates and rules. Calls, answers, publishes and
// acknowledgements are lost, delayed and doubled. Then every answer is compared with everything
// else that is known.
func TestNobodyIsEverToldFalse(t *testing.T) {
	draw := history.Draw{Seed: *historySeed, Clients: historyClients}
	t.Logf("-history.seed=%d repeats what clients and operators do, and how often what fails", draw.Seed)
	c := &chronicle{
		system: start(t, options{answerIn: historyAnswerIn, log: slog.DiscardHandler}), draw: draw, begun: time.Now(),
		given: map[string]int64{}, operator: draw.Operator(),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4 * historyClients}, Timeout: patience},
	}
	c.openAccounts()
	mishaps := &mishaps{rng: rand.New(rand.NewPCG(draw.Seed, 7)), requests: c.kafka.RequestTopic, results: c.kafka.ResultTopic}
	c.faults.set(func(f *faults) {
		f.rpc, f.post, f.send, f.sees = mishaps.before, mishaps.after, mishaps.publish, c.sees
	})
	var done atomic.Int64
	var clients sync.WaitGroup
	for n := range historyClients {
		clients.Go(func() {
			for script := draw.Client(n); done.Load() < int64(*historyOps); {
				step := script.Next()
				time.Sleep(step.Pause)
				var asks sync.WaitGroup
				for _, ask := range step.Asks {
					if done.Add(1)%operatorEvery == 0 {
						c.operate()
						done.Add(1)
					}
					asks.Go(func() { c.ask(ask) })
				}
				asks.Wait()
			}
		})
	}
	clients.Wait()
	took := time.Since(c.begun)
	c.faults.set(func(f *faults) { f.rpc, f.post, f.send = nil, nil, nil })
	c.settle()
	c.readTopic()
	c.readLedger()
	c.readAll()

	wrong := history.Check(c.history)
	c.tell(wrong, took)
	for _, b := range c.reconcile().Breaches {
		// Result events were lost on purpose.
		if b.Check != reconcile.ResultTold {
			t.Errorf("the books do not agree: %+v", b)
		}
	}
}

// chronicle is a system, its users and their answers.
type chronicle struct {
	*system
	draw   history.Draw
	begun  time.Time
	client *http.Client
	calls  atomic.Int64

	mu      sync.Mutex
	history history.History

	operating sync.Mutex // held during one action
	operator  *history.Operator
	deeds     int
	given     map[string]int64 // by account
}

func (c *chronicle) now() time.Duration { return time.Since(c.begun) }

func (c *chronicle) add(call history.Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.history.Calls = append(c.history.Calls, call)
}

// sees records each attempt to publish a request.
func (c *chronicle) sees(topic string, e cloudevents.Event) {
	if topic != c.kafka.RequestTopic {
		return
	}
	at := c.now()
	id, err := callOf(e)
	if err != nil {
		c.t.Error(err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.history.Publishes = append(c.history.Publishes, history.Publish{Call: id, At: at})
}

// callOf returns the call whose request an event carries.
func callOf(e cloudevents.Event) (int, error) {
	request, err := event.Decode[event.PaymentRequested](e)
	if err != nil {
		return 0, err
	}
	id, ok := history.CallOf(request.TxDate)
	if !ok {
		return 0, fmt.Errorf("a request that no client made: %+v", request)
	}
	return id, nil
}

// readTopic finds the requests that the broker has.
func (c *chronicle) readTopic() {
	c.t.Helper()
	has := map[int]bool{}
	for _, m := range c.records(c.kafka.RequestTopic) {
		e, err := kafka.ReadRecord(c.t.Context(), m, nil)
		if err != nil {
			c.t.Fatal(err)
		}
		id, err := callOf(e)
		if err != nil {
			c.t.Fatal(err)
		}
		has[id] = true
	}
	for i := range c.history.Publishes {
		c.history.Publishes[i].Sent = has[c.history.Publishes[i].Call]
	}
}

func (c *chronicle) openAccounts() {
	c.t.Helper()
	in := &walletv1.SeedAccountsRequest{}
	for _, a := range history.Opening() {
		in.Accounts = append(in.Accounts, &walletv1.AccountSeed{AccountId: a.ID, Owner: a.ID, Currency: "IDR", Balance: float64(a.IDR), DailyLimit: float64(a.Limit)})
		c.given[a.ID] = a.IDR
	}
	if _, err := walletv1.NewAdminClient(c.Conn("wallet")).SeedAccounts(c.t.Context(), in); err != nil {
		c.t.Fatal(err)
	}
	for code, rate := range history.Currencies {
		if code != "IDR" {
			c.setRate(code, rate)
		}
	}
}

// ask makes one call and records its answer.
func (c *chronicle) ask(a history.Ask) {
	call := history.Call{ID: int(c.calls.Add(1)), Kind: a.Kind, Key: a.Key, Terms: a.Terms, Malformed: a.Flaw != ""}
	ctx, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	call.Begun = c.now()
	switch a.Kind {
	case history.Pay:
		ctx, answered := behave(ctx, a)
		call.Answer = load.Post(ctx, c.client, c.url, history.Body(call.ID, a.Key, a.Terms, a.Flaw))
		if !answered() {
			call.Answer = load.Answer{Reason: load.NoAnswer}
		}
	case history.Get:
		c.read(ctx, &call)
	case history.List:
		c.readPage(ctx, &call, url.Values{"limit": {"20"}})
	}
	call.Ended = c.now()
	c.add(call)
}

// behave makes a client wait in its manner. answered then reports whether the client can have got
// an answer.
func behave(ctx context.Context, a history.Ask) (_ context.Context, answered func() bool) {
	switch a.Manner {
	case history.Leaves:
		ctx, cancel := context.WithTimeout(ctx, a.Patience)
		return ctx, func() bool { cancel(); return true }
	case history.Cut:
		var timer *time.Timer
		return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
			if timer == nil {
				timer = time.AfterFunc(a.Patience, func() { reset(info.Conn) })
			}
		}}), func() bool { return timer == nil || timer.Stop() }
	case history.Deaf:
		var conn net.Conn
		return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			GotConn:              func(info httptrace.GotConnInfo) { conn = info.Conn },
			GotFirstResponseByte: func() { reset(conn) },
		}), func() bool { return false }
	}
	return ctx, func() bool { return true }
}

// reset closes a connection like a machine that is gone: bytes on the way are lost.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// fetch reads JSON. ok says whether there was an answer, 200 or 404.
func (c *chronicle) fetch(ctx context.Context, path string, into any) (code int, ok bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+path, nil)
	if err != nil {
		c.t.Error(err)
		return 0, false
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, false
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp.StatusCode, err == nil && resp.StatusCode == http.StatusNotFound
	}
	if err := json.Unmarshal(text, into); err != nil {
		c.t.Errorf("%s: %v: %s", path, err, text)
		return resp.StatusCode, false
	}
	return resp.StatusCode, true
}

// readPayment is a payment in the answer of GET or the list.
type readPayment struct {
	Key       string `json:"idempotency_key"`
	State     payment.ReservationStatus
	Reason    payment.Reason
	Ref       string
	Sender    string `json:"sender_id"`
	Receiver  string `json:"receiver_id"`
	Currency  string
	Amount    string
	AmountIDR int64 `json:"amount_idr"`
	Rate      string
}

func (p readPayment) state() (s history.State, err error) {
	s = history.State{Key: p.Key, Status: p.State, Reason: p.Reason, Ref: p.Ref, IDR: p.AmountIDR}
	s.Terms.Sender, s.Terms.Receiver = p.Sender, p.Receiver
	currency, err := money.ParseCurrency(p.Currency)
	if err != nil {
		return s, err
	}
	if s.Terms.Sent, err = money.ParseAmount(p.Amount, currency); err == nil && p.Rate != "" {
		s.Rate, err = money.ParseRate(p.Rate)
	}
	return s, err
}

func (c *chronicle) found(call *history.Call, all ...readPayment) {
	for _, p := range all {
		s, err := p.state()
		if err != nil {
			c.t.Errorf("%+v: %v", p, err)
		}
		call.Found = append(call.Found, s)
	}
}

func (c *chronicle) read(ctx context.Context, call *history.Call) {
	var got readPayment
	code, ok := c.fetch(ctx, "/api/payments/"+call.Key, &got)
	if call.Read = ok; ok && code == http.StatusOK {
		c.found(call, got)
	}
}

func (c *chronicle) readPage(ctx context.Context, call *history.Call, query url.Values) (next string) {
	var page struct {
		Payments   []readPayment
		NextBefore string `json:"next_before"`
	}
	_, call.Read = c.fetch(ctx, "/api/payments?"+query.Encode(), &page)
	c.found(call, page.Payments...)
	return page.NextBefore
}

// operate makes the operators' next action. It may fail, like everything here.
func (c *chronicle) operate() {
	c.operating.Lock()
	defer c.operating.Unlock()
	c.deeds++
	switch d := c.operator.Next(); d.Kind {
	case history.Fund:
		id := fmt.Sprint("funding-", c.deeds)
		c.account(event.TypeAccountFunded, id, d.Account, event.AccountFunded{AccountID: d.Account, AmountIDR: d.IDR})
		if d.Twice {
			c.account(event.TypeAccountFunded, id, d.Account, event.AccountFunded{AccountID: d.Account, AmountIDR: d.IDR})
		}
		c.given[d.Account] += d.IDR
	case history.Block, history.Unblock:
		profile := event.AccountOpened{AccountID: d.Account, Owner: d.Account, Currency: "IDR", Status: "ACTIVE"}
		if d.Kind == history.Block {
			profile.Status = "BLOCKED"
		}
		c.account(event.TypeAccountOpened, fmt.Sprint("profile-", c.deeds), d.Account, profile)
	case history.Rates:
		c.setRate(d.Currency, d.Rate)
	case history.Rules:
		riskv1.NewAdminClient(c.Conn("risk")).SeedRules(c.t.Context(), &riskv1.SeedRulesRequest{
			MaxAmount: d.MaxIDR, BlockedAccounts: d.Blocked, RandomRejectPpm: &d.PPM,
		})
	}
}

func (c *chronicle) setRate(code string, rate float64) {
	fxv1.NewFxServiceClient(c.Conn("fx")).UpdateRates(c.t.Context(), &fxv1.UpdateRatesRequest{
		Rates: []*fxv1.Rate{{BaseCurrency: code, QuoteCurrency: "IDR", Rate: rate}},
	})
}

// account publishes an event about an account, as a bank does.
func (c *chronicle) account(eventType, id, account string, data any) {
	e, err := event.New(eventType, id, "/bank", account, data, time.Now())
	if err == nil {
		err = c.keys.Sign(&e)
	}
	if err == nil {
		err = c.Producer().Publish(c.t.Context(), c.kafka.AccountsTopic, account, e)
	}
	if err != nil {
		c.t.Error(err)
	}
}

// settle waits until all work in progress has ended. A hold that remains waits for an event that
// will not come. Its deadline is moved forward, and it is swept.
func (c *chronicle) settle() {
	c.t.Helper()
	c.delivered()
	c.exec(`UPDATE reservations SET deadline = now() - interval '1 second' WHERE status = 'PENDING'`)
	if _, err := dbv1.NewAdminClient(c.Conn("db")).Sweep(c.t.Context(), &dbv1.SweepRequest{}); err != nil {
		c.t.Fatal(err)
	}
	c.delivered()
}

func (c *chronicle) delivered() {
	c.t.Helper()
	for deadline := time.Now().Add(settleWithin); ; time.Sleep(50 * time.Millisecond) {
		err := processes.Delivered(c.kafka.Config, c.kafka.Prefix)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("not within %s: %v", settleWithin, err)
		}
	}
}

func (c *chronicle) readLedger() {
	c.t.Helper()
	kept, err := history.ReadPayments(c.t.Context(), c.conn, c.draw.Prefix())
	if err != nil {
		c.t.Fatal(err)
	}
	c.history.Ledger = history.Ledger{At: c.now(), Payments: kept, Accounts: map[string]history.Account{}}
	for id, given := range c.given {
		c.history.Ledger.Accounts[id] = history.Account{Given: given, Balance: c.balance(id)}
	}
}

// readAll reads every payment once more, by GET and by the list.
func (c *chronicle) readAll() {
	c.t.Helper()
	keys := map[string]bool{}
	for _, call := range c.history.Calls {
		if call.Key != "" {
			keys[call.Key] = true
		}
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		c.ask(history.Ask{Kind: history.Get, Key: key})
	}
	all := history.Call{ID: int(c.calls.Add(1)), Kind: history.List, Whole: true, Begun: c.now()}
	for query := (url.Values{"limit": {"100"}}); ; {
		next := c.readPage(c.t.Context(), &all, query)
		if !all.Read {
			c.t.Fatal("the list is not answered")
		}
		if next == "" {
			break
		}
		query.Set("before", next)
	}
	all.Ended = c.now()
	c.add(all)
}

// tell reports what happened, and the contradictions in it.
func (c *chronicle) tell(wrong []history.Contradiction, took time.Duration) {
	c.t.Helper()
	answers, ends, sent, unsent := map[string]int{}, map[string]int{}, 0, 0
	for _, call := range c.history.Calls {
		name := string(call.Kind)
		if call.Kind == history.Pay {
			name = fmt.Sprintf("%d %s %s", call.Answer.HTTP, call.Answer.Status, call.Answer.Reason)
		}
		answers[name]++
	}
	for _, s := range c.history.Ledger.Payments {
		ends[fmt.Sprintf("%s %s", s.Status, s.Reason)]++
	}
	for _, p := range c.history.Publishes {
		if p.Sent {
			sent++
		} else {
			unsent++
		}
	}
	count := func(title string, of map[string]int) {
		var b strings.Builder
		for _, name := range slices.Sorted(maps.Keys(of)) {
			fmt.Fprintf(&b, "\n  %6d %s", of[name], name)
		}
		c.t.Logf("%s%s", title, &b)
	}
	count(fmt.Sprintf("%d calls and %d deeds in %.1f s, settled and read in %.1f s; calls and answers:",
		len(c.history.Calls), c.deeds, took.Seconds(), (c.now()-took).Seconds()), answers)
	count(fmt.Sprintf("%d requests sent, %d failed to be; %d payments ended:", sent, unsent, len(c.history.Ledger.Payments)), ends)
	// A history in which nothing happened shows nothing.
	for _, happened := range []string{
		"200 SUCCESS committed", "200 SUCCESS_REPLAY duplicate_idempo", "422 FAILED idempotency_mismatch", "504 FAILED queue_timeout",
	} {
		if answers[happened] == 0 {
			c.t.Errorf("no client got %s", happened)
		}
	}
	byRule := map[history.Rule][]history.Contradiction{}
	for _, w := range wrong {
		byRule[w.Rule] = append(byRule[w.Rule], w)
	}
	const shown = 3
	for _, rule := range slices.Sorted(maps.Keys(byRule)) {
		var b strings.Builder
		for _, w := range byRule[rule][:min(shown, len(byRule[rule]))] {
			fmt.Fprintf(&b, "\n%s: %s\n%s", w.Key, w.Problem, c.history.Timeline(w.Key))
		}
		c.t.Errorf("%s: %d contradictions, such as:%s", rule, len(byRule[rule]), &b)
	}
}

// mishaps are random faults between functions.
type mishaps struct {
	mu                sync.Mutex
	rng               *rand.Rand
	requests, results string // topics
}

// roll returns a number below one, and the time for which a call is held up. That is longer than a
// client waits.
func (m *mishaps) roll() (float64, time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rng.Float64(), historyAnswerIn + time.Duration(m.rng.Int64N(int64(2*historyAnswerIn)))
}

var errMishap = status.Error(codes.Unavailable, "a mishap")

const settles = "/payments.v1.PaymentsService/Settle"

// before is the fault of a call on its way there.
func (m *mishaps) before(method string) error {
	chance, hold := m.roll()
	switch {
	case method == settles && chance < 0.04:
		time.Sleep(hold)
	case method == settles && chance < 0.05, chance < 0.007:
		return errMishap
	}
	return nil
}

// after is the fault of its answer.
func (m *mishaps) after(method string) error {
	chance, hold := m.roll()
	switch {
	case method == settles && chance < 0.01:
		time.Sleep(hold)
	case chance < 0.01:
		return errMishap
	}
	return nil
}

func (m *mishaps) publish(topic string) error {
	chance, _ := m.roll()
	switch {
	case chance < 0.015:
		return errNotSent
	case chance < 0.03:
		return errNotAcknowledged
	case topic == m.results && chance < 0.04:
		return errLost
	case topic == m.results && chance < 0.07:
		return errTwice
	}
	return nil
}
