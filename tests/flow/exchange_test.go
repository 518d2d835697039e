package flow

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

func currencyOf(code string) money.Currency {
	c, err := money.ParseCurrency(code)
	if err != nil {
		panic(err)
	}
	return c
}

func amountOf(minor int64, code string) money.Amount {
	return money.Amount{Minor: minor, Currency: currencyOf(code)}
}

// exchanges gives the system rates with spreads, and money to exchange.
func (s *system) exchanges() {
	s.t.Helper()
	_, err := fxv1.NewFxServiceClient(s.Conn("fx")).UpdateRates(s.t.Context(), &fxv1.UpdateRatesRequest{Rates: []*fxv1.Rate{
		{BaseCurrency: "USD", QuoteCurrency: "SGD", RateDecimal: "1.340", Bid: "1.339", Ask: "1.341"},
		{BaseCurrency: "USD", QuoteCurrency: "IDR", RateDecimal: "15500", Bid: "15490", Ask: "15510"},
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.liquidity(10_000_000, "USD", "SGD", "KWD")
	s.liquidity(100_000_000_000, "IDR")
}

// liquidity gives the house so many minor units of each currency to exchange.
func (s *system) liquidity(minor int64, currencies ...string) {
	s.t.Helper()
	for _, currency := range currencies {
		in := &dbv1.SetLiquidityRequest{Currency: currency, AvailableMinor: minor}
		if _, err := dbv1.NewAdminClient(s.Conn("db")).SetLiquidity(s.t.Context(), in); err != nil {
			s.t.Fatal(err)
		}
	}
}

// openWith opens an account with balances.
func (s *system) openWith(id string, balances ...money.Amount) {
	s.t.Helper()
	account := &dbv1.Account{AccountId: id, Owner: id, Currency: "IDR", Status: string(payment.Active)}
	for _, b := range balances {
		if b.Currency == money.IDR {
			account.BalanceIdr = b.Minor
			continue
		}
		account.Balances = append(account.Balances, &commonv1.Amount{Minor: b.Minor, Currency: b.Currency.String()})
	}
	if _, err := dbv1.NewAdminClient(s.Conn("db")).SeedAccounts(s.t.Context(), &dbv1.SeedAccountsRequest{Accounts: []*dbv1.Account{account}}); err != nil {
		s.t.Fatal(err)
	}
}

// has returns what an account has and holds in one currency, in minor units.
func (s *system) has(id, currency string) (available, held int64) {
	s.t.Helper()
	s.query(&available, `SELECT coalesce(sum(available), 0)::bigint FROM balances WHERE account_id = $1 AND currency = $2`, id, currency)
	s.query(&held, `SELECT coalesce(sum(held), 0)::bigint FROM balances WHERE account_id = $1 AND currency = $2`, id, currency)
	return available, held
}

// everything is the sum of all balances in all currencies, as a text.
func (s *system) everything() (all string) {
	s.t.Helper()
	s.query(&all, `SELECT string_agg(concat(account_id, ' ', currency, '=', available, '+', held), ', ' ORDER BY account_id, currency)
		FROM balances WHERE available <> 0 OR held <> 0`)
	return all
}

// priced gives a payment the currencies and the price of an attempt, as the gateway does.
func (s *system) priced(t *testing.T, p payment.Payment, a ask) payment.Payment {
	t.Helper()
	p.Currency, p.DebitCurrency, p.CreditCurrency, p.QuoteID = currencyOf(a.currency), currencyOf(a.debit), currencyOf(a.credit), a.quote
	if a.quote != "" {
		got, err := dbv1.NewDbClient(s.Conn("db")).FindQuote(t.Context(), &dbv1.FindQuoteRequest{QuoteId: a.quote})
		if err == nil {
			quoted, err := rpc.ToPayment(got.Payment)
			if err != nil {
				t.Fatal(err)
			}
			p.AmountIDR, p.DebitMinor, p.CreditMinor, p.Exchange = quoted.AmountIDR, quoted.DebitMinor, quoted.CreditMinor, quoted.Exchange
			if p.Minor == quoted.Minor {
				return p
			}
		}
	}
	got, err := fxv1.NewFxServiceClient(s.Conn("fx")).Quote(t.Context(), rpc.QuoteOf(p))
	if err != nil {
		// A payment of nothing, for example, has no price. It must be refused all the same.
		p.AmountIDR = 0
		return p
	}
	if p, err = rpc.Quoted(p, got); err != nil {
		t.Fatal(err)
	}
	return p
}

// firm is a firm quote, or the problem for which there is none.
type firm struct {
	Code       int    `json:"-"`
	RetryAfter string `json:"-"`

	ID           string `json:"quote_id"`
	DebitAmount  string `json:"debit_amount"`
	CreditAmount string `json:"credit_amount"`
	Rate, Spread string
	MidRate      string    `json:"mid_rate"`
	AmountIDR    int64     `json:"amount_idr"`
	ExpiresAt    time.Time `json:"expires_at"`
	Detail       string
}

// quote asks for a firm quote for an attempt.
func (c client) quote(a ask) (got firm) {
	c.s.t.Helper()
	in, err := json.Marshal(map[string]string{
		"sender_id": a.from, "receiver_id": a.to, "debit_currency": a.debit, "credit_currency": a.credit, "currency": a.currency,
		"amount": amountOf(a.amount, a.currency).String(),
	})
	if err != nil {
		c.s.t.Fatal(err)
	}
	resp, text := c.do(http.MethodPost, "/api/quotes", string(in))
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		c.s.t.Fatalf("%s: %v", text, err)
	}
	got.Code, got.RetryAfter = resp.StatusCode, resp.Header.Get("Retry-After")
	return got
}

func (s *system) quote(a ask) firm {
	s.t.Helper()
	return client{s, ""}.quote(a)
}

// kept is what GET tells of a payment's money.
type kept struct {
	State, Reason string
	Debit         string `json:"debit_currency"`
	DebitAmount   string `json:"debit_amount"`
	Credit        string `json:"credit_currency"`
	CreditAmount  string `json:"credit_amount"`
	QuoteID       string `json:"quote_id"`
	Exchange      struct{ Rate, Spread, Remainder string }
	Entries       []struct {
		Account  string `json:"account_id"`
		Currency string
		Amount   string
		Kind     string
		BookedAt time.Time `json:"booked_at"`
	}
	DecidedAt time.Time `json:"decided_at"`
	Events    []struct{ Type string }
}

func (c client) kept(key string) (got kept) {
	c.s.t.Helper()
	_, text := c.do(http.MethodGet, "/api/payments/"+key, "")
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		c.s.t.Fatalf("%s: %v", text, err)
	}
	return got
}

func (s *system) kept(key string) kept {
	s.t.Helper()
	return client{s, ""}.kept(key)
}

func (k kept) moved() string {
	return fmt.Sprintf("%s %s %s -> %s %s", k.State, k.Debit, k.DebitAmount, k.Credit, k.CreditAmount)
}

// conformsInCurrencies pays in one way from and to balances in several currencies.
func (s *system) conformsInCurrencies(t *testing.T, w way) {
	prefix := w.prefix
	payer, payee := prefix+"-usd", prefix+"-sgd"
	s.openWith(payer, amountOf(100_00, "USD"), amountOf(5_000, "KWD"))
	s.openWith(payee)
	pay := w.open(s)
	send := func(key string, minor int64) ask {
		return ask{key: key, from: payer, to: payee, amount: minor, currency: "USD", debit: "USD", credit: "SGD"}
	}
	by := func(a ask, quote string) ask {
		a.quote = quote
		return a
	}
	receive := func(key string, minor int64) ask {
		return ask{key: key, from: payer, to: payee, amount: minor, currency: "SGD", debit: "USD", credit: "SGD"}
	}
	kwd := func(key string, minor int64) ask {
		return ask{key: key, from: payer, to: payee, amount: minor, currency: "KWD", debit: "KWD", credit: "KWD"}
	}
	given, expired := s.quote(send("", 1000)), s.quote(send("", 1000))
	if given.Code != http.StatusCreated || given.CreditAmount != "13.39" || expired.Code != http.StatusCreated {
		t.Fatalf("quotes: %+v, %+v", given, expired)
	}
	s.exec(`UPDATE quotes SET expires_at = now() - interval '1 second' WHERE quote_id = $1`, expired.ID)

	for _, tc := range []struct {
		name  string
		ask   ask
		want  string // status and reason
		moved string // by a payment that settles
	}{
		{"send exactly", send("x1", 1001), "SUCCESS committed", "COMMITTED USD 10.01 -> SGD 13.40"},
		{"a second attempt", send("x1", 1001), "SUCCESS_REPLAY duplicate_idempo", ""},
		{"the key with the other side fixed", receive("x1", 1340), "FAILED idempotency_mismatch", ""},
		{"the key with a quote", by(send("x1", 1001), given.ID), "FAILED idempotency_mismatch", ""},
		{"receive exactly", receive("x2", 1340), "SUCCESS committed", "COMMITTED USD 10.01 -> SGD 13.40"},
		{"one currency", kwd("x3", 1234), "SUCCESS committed", "COMMITTED KWD 1.234 -> KWD 1.234"},
		{"too little of it", kwd("x4", 5_000), "FAILED insufficient_funds", ""},
		{"too few dollars", send("x5", 99_99), "FAILED insufficient_funds", ""},
		{
			"more than the house has",
			ask{key: "x6", from: payer, to: payee, amount: 100, currency: "USD", debit: "USD", credit: "JPY"},
			"FAILED fx_liquidity_exhausted", "",
		},
		{"by a quote", by(send("x7", 1000), given.ID), "SUCCESS committed", "COMMITTED USD 10.00 -> SGD 13.39"},
		{"by a quote, again", by(send("x7", 1000), given.ID), "SUCCESS_REPLAY duplicate_idempo", ""},
		{"by a used quote", by(send("x8", 1000), given.ID), "FAILED quote_used", ""},
		{"by an expired quote", by(send("x9", 1000), expired.ID), "FAILED quote_expired", ""},
		{"by no quote", by(send("x10", 1000), "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10"), "FAILED quote_mismatch", ""},
		{"by a quote for less", by(send("x11", 1001), given.ID), "FAILED quote_mismatch", ""},
	} {
		tc.ask.key = prefix + "-" + tc.ask.key
		before := s.everything()
		got := pay(t, tc.ask)
		if outcome := got.status + " " + got.reason; outcome != tc.want || got.rejected {
			t.Errorf("%s: got %s, rejected: %t; want %s", tc.name, outcome, got.rejected, tc.want)
		}
		if changed := s.everything() != before; changed != (tc.moved != "") {
			t.Errorf("%s: got %s, and moved money: %t", tc.name, tc.want, changed)
		}
		after := s.kept(tc.ask.key)
		if tc.moved != "" {
			s.checkKept(t, tc.name, after, tc.ask, tc.moved)
		} else if got.status == string(payment.Failed) && got.reason != string(payment.IdempotencyMismatch) &&
			(after.State != string(payment.RolledBack) || after.Reason != got.reason) {
			t.Errorf("%s: the ledger has %+v", tc.name, after)
		}
	}
	usd, _ := s.has(payer, "USD")
	sgd, _ := s.has(payee, "SGD")
	if usd != 10000-1001-1001-1000 || sgd != 1340+1340+1339 {
		t.Errorf("the payer has USD %d, the payee SGD %d", usd, sgd)
	}
}

// checkKept checks what GET tells of a settled payment.
func (s *system) checkKept(t *testing.T, name string, k kept, a ask, moved string) {
	t.Helper()
	if k.moved() != moved || k.QuoteID != a.quote {
		t.Errorf("%s: the ledger has %+v; want %s by %q", name, k, moved, a.quote)
	}
	sums := map[string]string{}
	for _, e := range k.Entries {
		sums[e.Currency] += " " + e.Amount
		if !e.BookedAt.Equal(k.DecidedAt) {
			t.Errorf("%s: booked at %s, decided at %s", name, e.BookedAt, k.DecidedAt)
		}
	}
	if want := map[bool]int{true: 5, false: 2}[a.debit != a.credit]; len(k.Entries) != want {
		t.Errorf("%s: %d entries, want %d: %+v", name, len(k.Entries), want, k.Entries)
	}
	if len(k.Events) == 0 || k.Events[0].Type != "pgw.payment.requested.v2" {
		t.Errorf("%s: the events are %+v", name, k.Events)
	}
}

// Many payers use one quote at the same time. One of them pays, and all others hear that it was used.
func TestOneOfManyPaysByAQuote(t *testing.T) {
	s := start(t, options{})
	s.exchanges()
	const payers = 64
	s.openWith("rich", amountOf(10_00*payers, "USD"))
	a := ask{from: "rich", to: "B", amount: 1000, currency: "USD", debit: "USD", credit: "SGD"}
	a.quote = s.quote(a).ID
	outcomes := make(chan string, payers)
	var wg sync.WaitGroup
	for i := range payers {
		wg.Go(func() {
			one := a
			one.key = fmt.Sprint("payer-", i)
			outcomes <- s.post(one.body()).outcome()
		})
	}
	wg.Wait()
	close(outcomes)
	count := map[string]int{}
	for o := range outcomes {
		count[o]++
	}
	if count["200 SUCCESS committed"] != 1 || count["200 FAILED quote_used"] != payers-1 {
		t.Errorf("%v", count)
	}
	if sgd, _ := s.has("B", "SGD"); sgd != 1339 {
		t.Errorf("B has SGD %d", sgd)
	}
}

// The price of a quote holds while the rates move. A replay hears the first outcome after the quote
// has expired.
func TestAQuoteHoldsWhileRatesMove(t *testing.T) {
	s := start(t, options{})
	s.exchanges()
	s.openWith("traveller", amountOf(100_00, "USD"))
	a := ask{key: "held", from: "traveller", to: "B", amount: 1000, currency: "USD", debit: "USD", credit: "SGD"}
	given := s.quote(a)
	if lasts := time.Until(given.ExpiresAt); given.Rate != "1.339" || given.MidRate != "1.34" || given.Spread != "0.01" || lasts <= 0 || lasts > time.Minute {
		t.Errorf("the quote is %+v", given)
	}
	fx := fxv1.NewFxServiceClient(s.Conn("fx"))
	if _, err := fx.UpdateRates(t.Context(), &fxv1.UpdateRatesRequest{Rates: []*fxv1.Rate{
		{BaseCurrency: "USD", QuoteCurrency: "SGD", RateDecimal: "2"},
	}}); err != nil {
		t.Fatal(err)
	}
	now := a
	now.key = "at the rate of now"
	s.eventually("the new rate applies", func() error {
		now.key += "."
		s.expect(s.post(now.body()), "200 SUCCESS committed")
		if k := s.kept(strings.ReplaceAll(now.key, " ", "%20")); k.CreditAmount != "20.00" {
			return fmt.Errorf("%+v", k)
		}
		return nil
	})
	a.quote = given.ID
	first := s.expect(s.post(a.body()), "200 SUCCESS committed")
	if k := s.kept("held"); k.CreditAmount != "13.39" || k.Exchange.Rate != "1.339" {
		t.Errorf("paid by the quote: %+v", k)
	}
	s.exec(`UPDATE quotes SET expires_at = now() - interval '1 hour' WHERE quote_id = $1`, given.ID)
	if again := s.expect(s.post(a.body()), "200 SUCCESS_REPLAY duplicate_idempo"); again.Ref != first.Ref {
		t.Errorf("the replay has the ref %s, the first attempt %s", again.Ref, first.Ref)
	}
	// The retry of a payment without a quote has the new price in its request. Its result and the
	// ledger have the first price.
	results := s.consume(s.kafka.ResultTopic)
	plain := ask{key: "plain", from: "traveller", to: "B", amount: 1000, currency: "USD", debit: "USD", credit: "SGD"}
	s.expect(s.post(plain.body()), "200 SUCCESS committed")
	if _, err := fx.UpdateRates(t.Context(), &fxv1.UpdateRatesRequest{Rates: []*fxv1.Rate{
		{BaseCurrency: "USD", QuoteCurrency: "SGD", RateDecimal: "3"},
	}}); err != nil {
		t.Fatal(err)
	}
	s.eventually("the third rate applies", func() error {
		if q := s.quote(plain); q.CreditAmount != "30.00" {
			return fmt.Errorf("%+v", q)
		}
		return nil
	})
	s.expect(s.post(plain.body()), "200 SUCCESS_REPLAY duplicate_idempo")
	for range 2 {
		if r := results.await("plain"); r.CreditMinor != 2000 || len(r.Entries) != 4 {
			t.Errorf("the result tells %+v", r.Moved)
		}
	}
}

// A payment between rupiah balances can have a firm price too.
func TestAQuoteInRupiah(t *testing.T) {
	s := start(t, options{})
	a := ask{key: "firm rupiah", from: "A", to: "B", amount: 1000, currency: "USD", debit: "IDR", credit: "IDR"}
	given := s.quote(a)
	if given.Code != http.StatusCreated || given.DebitAmount != "155000" || given.AmountIDR != 155_000 || given.Spread != "0" {
		t.Fatalf("%+v", given)
	}
	a.quote = given.ID
	s.expect(s.post(a.body()), "200 SUCCESS committed")
	s.expect(s.post(a.body()), "200 SUCCESS_REPLAY duplicate_idempo")
	if got := s.balance("B"); got != 1_000_155_000 {
		t.Errorf("B has %d", got)
	}
	k := s.kept("firm%20rupiah")
	if k.moved() != "COMMITTED IDR 155000 -> IDR 155000" || k.QuoteID != given.ID || len(k.Entries) != 2 {
		t.Errorf("%+v", k)
	}
}

// A quote needs both accounts and a price, and the sender must be the client's own. Input that is no
// payment is refused as it is for a payment.
func TestNoQuote(t *testing.T) {
	cfg, _, keys := keyed(t, map[string][]string{"acme": {"senders=A"}})
	s := start(t, options{access: cfg})
	s.exchanges()
	for name, tc := range map[string]struct {
		ask  ask
		want int
	}{
		"as usual":            {ask{from: "A", to: "B", amount: 100, currency: "USD", debit: "USD", credit: "SGD"}, 201},
		"three currencies":    {ask{from: "A", to: "B", amount: 100, currency: "EUR", debit: "USD", credit: "SGD"}, 400},
		"no rate":             {ask{from: "A", to: "B", amount: 100, currency: "USD", debit: "USD", credit: "CHF"}, 400},
		"nothing":             {ask{from: "A", to: "B", amount: 0, currency: "USD", debit: "USD", credit: "SGD"}, 400},
		"too little":          {ask{from: "A", to: "B", amount: 1, currency: "IDR", debit: "IDR", credit: "USD"}, 400},
		"the house's account": {ask{from: "A", to: payment.SpreadAccount, amount: 100, currency: "USD", debit: "USD", credit: "SGD"}, 400},
		"another's account":   {ask{from: "B", to: "A", amount: 100, currency: "USD", debit: "USD", credit: "SGD"}, 403},
		"an unknown receiver": {ask{from: "A", to: "nobody", amount: 100, currency: "USD", debit: "USD", credit: "SGD"}, 404},
	} {
		if got := (client{s, keys["acme"]}).quote(tc.ask); got.Code != tc.want || tc.want != 201 && got.Detail == "" {
			t.Errorf("%s: %+v, want %d", name, got, tc.want)
		}
	}
	// The same input is not a payment, and is not recorded.
	three := ask{key: "three", from: "A", to: "B", amount: 100, currency: "EUR", debit: "USD", credit: "SGD"}
	resp, text := client{s, keys["acme"]}.do(http.MethodPost, "/api/payments", three.body())
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(text, "invalid_input") || !strings.Contains(text, "currency: must be") {
		t.Errorf("three currencies: %s %s", resp.Status, text)
	}
	if n := s.count(`SELECT count(*) FROM reservations`); n != 0 {
		t.Errorf("%d are recorded", n)
	}
}

// A client has few open quotes, and its quotes are its own: another client can't pay by them, even from
// the same account. Each client sees the entries of its own accounts, and an operator sees all.
func TestQuotesBelongToTheirClient(t *testing.T) {
	cfg, _, keys := keyed(t, map[string][]string{
		"acme": {"senders=A", "rate=100000"}, "twin": {"senders=A"}, "shop": {"senders=B"}, "operator": {"senders=*"},
	})
	s := start(t, options{access: cfg})
	s.exchanges()
	s.openWith("A", amountOf(100_00, "USD"))
	acme, twin := client{s, keys["acme"]}, client{s, keys["twin"]}
	a := ask{from: "A", to: "B", amount: 1000, currency: "USD", debit: "USD", credit: "SGD"}
	const most = 100 // the default of MAX_QUOTES
	var last firm
	for i := range most {
		if last = acme.quote(a); last.Code != http.StatusCreated {
			t.Fatalf("number %d: %+v", i+1, last)
		}
	}
	// On a machine that needs longer than a quote lasts for these requests, the first have expired.
	if got := acme.quote(a); got.Code == http.StatusTooManyRequests {
		if got.RetryAfter == "" || got.RetryAfter == "0" {
			t.Errorf("too many: %+v", got)
		}
	} else if s.count(`SELECT count(*) FROM quotes WHERE client = 'acme' AND expires_at > now()`) >= most {
		t.Errorf("one too many: %+v", got)
	}
	if got := twin.quote(a); got.Code != http.StatusCreated {
		t.Errorf("of another client: %+v", got)
	}
	pay := func(c client, key, quote string) string {
		one := a
		one.key, one.quote = key, quote
		_, text := c.do(http.MethodPost, "/api/payments", one.body())
		return text
	}
	if got := pay(twin, "stolen", last.ID); !strings.Contains(got, "quote_mismatch") {
		t.Errorf("by another client's quote: %s", got)
	}
	if k := twin.kept("stolen"); k.State != "ROLLEDBACK" || k.Reason != "quote_mismatch" {
		t.Errorf("the refusal is not recorded: %+v", k)
	}
	if got := pay(acme, "own", last.ID); !strings.Contains(got, "committed") {
		t.Errorf("by one's own quote: %s", got)
	}
	for name, want := range map[string]string{
		"acme": "A", "shop": "", "operator": "A B LIQUIDITY LIQUIDITY SPREAD",
	} {
		var accounts []string
		for _, e := range (client{s, keys[name]}).kept("own").Entries {
			accounts = append(accounts, e.Account)
		}
		if got := strings.Join(accounts, " "); got != want {
			t.Errorf("%s sees the entries of %q, want %q", name, got, want)
		}
	}
}

// The house's money is refused when it is exhausted: exactly as many exchanges settle as it can pay,
// and the refusals are recorded.
func TestLiquidityForSomeOfMany(t *testing.T) {
	s := start(t, options{})
	s.exchanges()
	const payers, enough = 24, 9
	s.liquidity(1340*enough, "SGD")
	s.openWith("rich", amountOf(10_00*payers, "USD"))
	outcomes := make(chan string, payers)
	var wg sync.WaitGroup
	for i := range payers {
		wg.Go(func() {
			a := ask{key: fmt.Sprint("one-of-many-", i), from: "rich", to: "B", amount: 1000, currency: "USD", debit: "USD", credit: "SGD"}
			outcomes <- s.post(a.body()).outcome()
		})
	}
	wg.Wait()
	close(outcomes)
	count := map[string]int{}
	for o := range outcomes {
		count[o]++
	}
	if count["200 SUCCESS committed"] != enough || count["200 FAILED fx_liquidity_exhausted"] != payers-enough {
		t.Errorf("%v", count)
	}
	if n := s.count(`SELECT count(*) FROM payments WHERE reason = 'fx_liquidity_exhausted'`); n != payers-enough {
		t.Errorf("%d refusals are recorded", n)
	}
	usd, held := s.has("rich", "USD")
	if usd != 1000*(payers-enough) || held != 0 {
		t.Errorf("the payer has USD %d and %d held", usd, held)
	}
}
