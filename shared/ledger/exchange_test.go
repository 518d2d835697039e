package ledger

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"

	"pgw/shared/money"
	"pgw/shared/payment"
)

func in(minor int64, code string) money.Amount {
	c, err := money.ParseCurrency(code)
	if err != nil {
		panic(err)
	}
	return money.Amount{Minor: minor, Currency: c}
}

// fund opens accounts with balances in several currencies.
func (w *world) fund(id string, balances ...money.Amount) {
	w.t.Helper()
	seed := Seed{Profile{AccountID: id, Owner: id, Currency: "IDR", Status: payment.Active}, balances}
	if err := w.SeedAccounts(context.Background(), []Seed{seed}); err != nil {
		w.t.Fatal(err)
	}
}

// liquidity gives the house money to exchange. A negative limit means none.
func (w *world) liquidity(has money.Amount, limit int64) {
	w.t.Helper()
	most := &limit
	if limit < 0 {
		most = nil
	}
	if _, err := w.SetLiquidity(context.Background(), has, most, false, Order{}); err != nil {
		w.t.Fatal(err)
	}
}

// has returns what an account has in one currency.
func (w *world) has(id, code string) (available, held int64) {
	w.t.Helper()
	rows, err := readAccounts(context.Background(), w.pool, []string{id})
	if err != nil {
		w.t.Fatal(err)
	}
	b := rows[id].In(in(0, code).Currency)
	return b.Available, b.Held
}

// exchange is a payment of debit for which the receiver gets credit. The house pays mid.
func exchange(key, from, to string, debit, credit money.Amount, mid int64) payment.Payment {
	p := pay(key, from, to, 155_000)
	rate, _ := money.ParseRate("1.339")
	p.Currency, p.Minor = debit.Currency, debit.Minor
	p.DebitCurrency, p.DebitMinor, p.CreditCurrency, p.CreditMinor = debit.Currency, debit.Minor, credit.Currency, credit.Minor
	p.Exchange = payment.Exchange{
		Rate: rate, MidRate: rate, MidMinor: mid, Remainder: "0.5",
		Steps: []payment.Step{{From: debit.Currency, To: credit.Currency, RateID: "r", Rate: rate, MidRate: rate}},
	}
	return p
}

func (w *world) entriesOf(id uuid.UUID) (entries []string) {
	w.t.Helper()
	rows, err := w.pool.Query(context.Background(), `
WITH entries AS MATERIALIZED (SELECT * FROM entries WHERE transaction_id = $1), payments AS MATERIALIZED (SELECT * FROM payments WHERE payment_id = $1)
SELECT e.account_id || ' ' || e.kind || ' ' || e.amount || ' ' || e.currency FROM entries e JOIN payments p ON p.payment_id = e.transaction_id
WHERE e.booked_at = p.decided_at`, id)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			w.t.Fatal(err)
		}
		entries = append(entries, text)
	}
	slices.Sort(entries)
	return entries
}

// The sender's money and the house's are held together, and all entries are booked together. What is
// booked is what payment.Legs says.
func TestAnExchangeBooksAllLegs(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(0, "IDR"), in(5000, "USD"))
	w.fund("B", in(0, "IDR"))
	w.liquidity(in(10_000, "SGD"), -1)
	for name, tc := range map[string]struct {
		p      payment.Payment
		commit bool
	}{
		"committed":      {exchange("committed", "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340), true},
		"without spread": {exchange("without spread", "A", "B", in(1000, "USD"), in(1340, "SGD"), 1340), true},
		"rolled back":    {exchange("rolled back", "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340), false},
	} {
		usd, _ := w.has("A", "USD")
		sgd, _ := w.has("B", "SGD")
		house, _ := w.has(payment.LiquidityAccount, "SGD")
		got := w.mustReserve(tc.p)
		if got.Status != payment.Pending {
			t.Fatalf("%s: %+v", name, got)
		}
		if available, held := w.has("A", "USD"); available != usd-1000 || held != 1000 {
			t.Errorf("%s: A has %d and holds %d", name, available, held)
		}
		if available, held := w.has(payment.LiquidityAccount, "SGD"); available != house-1340 || held != 1340 {
			t.Errorf("%s: the house has %d and holds %d", name, available, held)
		}
		w.checkSum()
		f := Finish{ReservationID: got.ReservationID}
		if !tc.commit {
			f.RollBack = payment.CommitFailed
		}
		if done := w.mustFinish(f); !done.Done {
			t.Fatalf("%s: %+v", name, done)
		}
		var want []string
		if tc.commit {
			for _, leg := range tc.p.Legs() {
				want = append(want, fmt.Sprint(leg.Account, " ", leg.Kind, " ", leg.Minor, " ", leg.Currency))
			}
			usd, sgd, house = usd-1000, sgd+tc.p.CreditMinor, house-1340
		}
		slices.Sort(want)
		if entries := w.entriesOf(got.ReservationID); !slices.Equal(entries, want) {
			t.Errorf("%s: booked %q, want %q", name, entries, want)
		}
		after := map[string]int64{}
		after["A"], _ = w.has("A", "USD")
		after["B"], _ = w.has("B", "SGD")
		after["house"], _ = w.has(payment.LiquidityAccount, "SGD")
		if after["A"] != usd || after["B"] != sgd || after["house"] != house {
			t.Errorf("%s: %v, want A %d, B %d, house %d", name, after, usd, sgd, house)
		}
		w.checkSum()
	}
	rec, err := w.Payment(t.Context(), payment.ScopedKey{Key: "committed"})
	if err != nil || rec.CreditMinor != 1339 || rec.Exchange.Remainder != "0.5" || len(rec.Exchange.Steps) != 1 || rec.Debit() != in(1000, "USD") {
		t.Errorf("kept: %+v, %v", rec, err)
	}
	if available, _ := w.has(payment.SpreadAccount, "SGD"); available != 1 {
		t.Errorf("the spread account has %d", available)
	}
	var position int64
	if err := w.pool.QueryRow(t.Context(), `SELECT sum(position) FROM balances WHERE account_id = 'LIQUIDITY'`).Scan(&position); err != nil || position != 2000-2680 {
		t.Errorf("the positions sum to %d, %v", position, err)
	}
}

// Without enough liquidity a payment is refused when it is reserved, and the sender keeps its money.
func TestLiquidityForExactlyNofM(t *testing.T) {
	for name, limited := range map[string]bool{"by what the house has": false, "by its limit": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			const n, m = 7, 40
			w.fund("A", in(0, "IDR"), in(100*m, "USD"))
			w.fund("B", in(0, "IDR"))
			if limited {
				w.liquidity(in(1_000_000, "SGD"), 134*n+50)
			} else {
				w.liquidity(in(134*n+50, "SGD"), -1)
			}
			reasons := make(chan payment.Reason, m)
			var wg sync.WaitGroup
			for i := range m {
				wg.Go(func() {
					got := w.mustReserve(exchange(fmt.Sprint("k", i), "A", "B", in(100, "USD"), in(133, "SGD"), 134))
					if got.Status == payment.Pending {
						got.Claim = w.mustFinish(Finish{ReservationID: got.ReservationID}).Claim
					}
					reasons <- got.Reason
				})
			}
			wg.Wait()
			close(reasons)
			count := map[payment.Reason]int{}
			for r := range reasons {
				count[r]++
			}
			if count[payment.ReasonCommitted] != n || count[payment.FXLiquidityExhausted] != m-n {
				t.Errorf("%v", count)
			}
			if available, held := w.has("A", "USD"); available != 100*(m-n) || held != 0 {
				t.Errorf("A has %d and holds %d", available, held)
			}
		})
	}
}

// Payments between balances of one other currency need no liquidity, and leave rupiah alone.
func TestOneCurrencyThatIsNotRupiah(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(7, "IDR"), in(500, "KWD"))
	w.fund("B", in(7, "IDR"))
	p := exchange("k", "A", "B", in(500, "KWD"), in(500, "KWD"), 0)
	p.Exchange = payment.Exchange{}
	w.mustFinish(Finish{ReservationID: w.mustReserve(p).ReservationID})
	again := exchange("again", "A", "B", in(1, "KWD"), in(1, "KWD"), 0)
	again.Exchange = payment.Exchange{}
	if got := w.mustReserve(again); got.Reason != payment.InsufficientFunds {
		t.Errorf("without money: %+v", got)
	}
	if a, _ := w.has("A", "KWD"); a != 0 {
		t.Errorf("A has %d", a)
	}
	if b, _ := w.has("B", "KWD"); b != 500 {
		t.Errorf("B has %d", b)
	}
	if w.balance("A") != 7 || w.balance("B") != 7 {
		t.Errorf("rupiah: %d and %d", w.balance("A"), w.balance("B"))
	}
}

// A blocked account is blocked in every currency, also in one that it gets later.
func TestABlockedAccountIsBlockedInEveryCurrency(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(0, "IDR"), in(5000, "USD"))
	w.fund("B", in(0, "IDR"), in(0, "USD"))
	same := func(key string) payment.Payment {
		p := exchange(key, "A", "B", in(10, "USD"), in(10, "USD"), 0)
		p.Exchange = payment.Exchange{}
		return p
	}
	held := w.mustReserve(same("held"))
	profile := Profile{AccountID: "B", Currency: "IDR", Status: payment.Blocked}
	if _, err := w.OpenAccount(t.Context(), profile, time.Now(), Origin{Source: "/test", ID: "1"}); err != nil {
		t.Fatal(err)
	}
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID}); got.Done {
		t.Error("a blocked receiver was paid")
	}
	w.mustFinish(Finish{ReservationID: held.ReservationID, RollBack: payment.CommitFailed})
	if got := w.mustReserve(same("refused")); got.Reason != payment.ReceiverBlocked {
		t.Errorf("to a blocked account: %+v", got)
	}
	if _, err := w.FundAccount(t.Context(), Funding{"B", in(5, "EUR"), ""}, Origin{Source: "/test", ID: "2"}); err != nil {
		t.Fatal(err)
	}
	p := exchange("eur", "B", "A", in(5, "EUR"), in(5, "EUR"), 0)
	p.Exchange = payment.Exchange{}
	if got := w.mustReserve(p); got.Reason != payment.SenderBlocked {
		t.Errorf("from a balance that was made later: %+v", got)
	}
}

// A profile waits for a transaction that makes a balance, and then sets the status of that one too.
func TestAProfileReachesABalanceThatIsBeingMade(t *testing.T) {
	w := newWorld(t)
	at := time.Now().Add(-time.Hour)
	profile := Profile{AccountID: "R", Owner: "R", Currency: "IDR", Status: payment.Blocked}
	open := func(status payment.AccountStatus, id string) {
		profile.Status = status
		at = at.Add(time.Minute)
		if _, err := w.OpenAccount(context.Background(), profile, at, Origin{Source: "/test", ID: id}); err != nil {
			t.Error(err)
		}
	}
	status := func(code string) (s payment.AccountStatus) {
		if err := w.pool.QueryRow(t.Context(), `SELECT status FROM balances WHERE account_id = 'R' AND currency = $1`, code).Scan(&s); err != nil {
			t.Fatal(err)
		}
		return s
	}

	// A funding makes a balance of the blocked account, which is unblocked meanwhile.
	open(payment.Blocked, "1")
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := addForTransferSQL.exec(t.Context(), tx, "R", "USD"); err != nil {
		t.Fatal(err)
	}
	var opening sync.WaitGroup
	opening.Go(func() { open(payment.Active, "2") })
	w.waitsForALock()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	opening.Wait()
	if got := status("USD"); got != payment.Active {
		t.Errorf("the balance of an active account is %s", got)
	}

	// A payment makes a balance of the active account, which is blocked meanwhile.
	w.fund("A", in(100, "IDR"), in(5000, "USD"))
	w.liquidity(in(10_000, "SGD"), -1)
	release := w.hold(`SELECT FROM balances WHERE account_id = 'A' FOR UPDATE`)
	reserved := make(chan Reserved, 1)
	go func() { reserved <- w.mustReserve(exchange("k", "A", "R", in(1000, "USD"), in(1339, "SGD"), 1340)) }()
	w.waitsForALock()
	opening.Go(func() { open(payment.Blocked, "3") })
	w.waitForLocks(2)
	release()
	opening.Wait()
	held := <-reserved
	if got := status("SGD"); got != payment.Blocked {
		t.Errorf("the balance of a blocked account is %s", got)
	}
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID}); got.Done {
		t.Error("a blocked receiver was paid")
	}
}

// A seed of several accounts and fundings of them never wait for each other in a circle, nor do
// profiles and payments.
func TestSeedsFundingsProfilesAndPaymentsDoNotDeadlock(t *testing.T) {
	w := newWorld(t)
	ids := []string{"A", "B", "C", "D"}
	for _, id := range ids {
		w.fund(id, in(1_000_000, "IDR"), in(1_000_000, "AED"))
	}
	const rounds = 60
	var running sync.WaitGroup
	running.Go(func() {
		for i := range rounds {
			var seeds []Seed
			for _, id := range ids {
				seeds = append(seeds, Seed{Profile{AccountID: id, Owner: id, Currency: "IDR", Status: payment.Active},
					[]money.Amount{in(1_000_000+int64(i), "IDR"), in(1_000_000, "AED")}})
			}
			if err := w.SeedAccounts(context.Background(), seeds); err != nil {
				t.Error(err)
			}
		}
	})
	running.Go(func() {
		for i := range rounds {
			if _, err := w.FundAccount(context.Background(), Funding{"D", in(1, "IDR"), ""}, Origin{Source: "/test", ID: fmt.Sprint(i)}); err != nil {
				t.Error(err)
			}
		}
	})
	running.Go(func() {
		for i := range rounds {
			profile := Profile{AccountID: "A", Owner: "A", Currency: "IDR", Status: []payment.AccountStatus{payment.Active, payment.Blocked}[i%2]}
			if _, err := w.OpenAccount(context.Background(), profile, time.Now(), Origin{Source: "/profile", ID: fmt.Sprint(i)}); err != nil {
				t.Error(err)
			}
		}
	})
	running.Go(func() {
		for i := range rounds {
			p := exchange(fmt.Sprint("k", i), "A", "D", in(1, "AED"), in(1, "AED"), 0)
			p.Exchange = payment.Exchange{}
			if got := w.mustReserve(p); got.Status == payment.Pending {
				w.mustFinish(Finish{ReservationID: got.ReservationID, RollBack: payment.CommitFailed})
			}
		}
	})
	running.Wait() // Postgres ends one of those that wait in a circle, with an error
}

// A broken balance does not stop the sweep of other holds, and its own is found again.
func TestABrokenBalanceDoesNotStopTheSweep(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B", "C")
	for _, from := range []string{"A", "B"} {
		w.expire(w.mustReserve(pay("of "+from, from, "C", 10)).ReservationID)
	}
	w.exec(`UPDATE balances SET held = 3 WHERE account_id = 'A'`)
	swept, err := w.Sweep(t.Context(), func(context.Context, Claim, time.Time) error { return nil })
	if err != nil || swept.RolledBack != 1 || swept.Published != 1 || swept.Pending != 1 || swept.HeldIDR != 10 || swept.Oldest.IsZero() {
		t.Errorf("swept %+v, %v", swept, err)
	}
	w.exec(`UPDATE balances SET held = 10 WHERE account_id = 'A'`)
	if rolledBack, published, err := w.sweep(t.Context()); err != nil || rolledBack != 1 || published != 1 {
		t.Errorf("when it is mended: rolled back %d, published %d, %v", rolledBack, published, err)
	}
}

// A quote is used once, whoever uses it at the same time.
func TestAQuoteIsUsedOnce(t *testing.T) {
	w := newWorld(t)
	const payers = 64
	w.fund("A", in(0, "IDR"), in(1000*payers, "USD"))
	w.fund("B", in(0, "IDR"))
	w.liquidity(in(1340*payers, "SGD"), -1)
	quoted := func(id uuid.UUID, key string) payment.Payment {
		p := exchange(key, "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340)
		p.QuoteID = id.String()
		return p
	}
	give := func(expires string) uuid.UUID {
		id := uuid.New()
		w.exec(`INSERT INTO quotes (quote_id, client, sender_id, receiver_id, currency_input, amount_minor, debit_currency, debit_minor,
			credit_currency, credit_minor, amount_idr, exchange, created_at, expires_at)
			VALUES ($1, '', 'A', 'B', 'USD', 1000, 'USD', 1000, 'SGD', 1339, 155000, '{"mid_minor": 1340}', now(), now() + $2::text::interval)`, id, expires)
		return id
	}
	id := give("1 hour")
	reasons := make(chan payment.Reason, payers)
	var wg sync.WaitGroup
	for i := range payers {
		wg.Go(func() { reasons <- w.mustReserve(quoted(id, fmt.Sprint("k", i))).Reason })
	}
	wg.Wait()
	close(reasons)
	count := map[payment.Reason]int{}
	for r := range reasons {
		count[r]++
	}
	if count[""] != 1 || count[payment.QuoteUsed] != payers-1 {
		t.Errorf("%v", count)
	}
	for name, tc := range map[string]struct {
		id     uuid.UUID
		change func(*payment.Payment)
		want   payment.Reason
	}{
		"expired":       {give("-1 second"), func(*payment.Payment) {}, payment.QuoteExpired},
		"unknown":       {uuid.New(), func(*payment.Payment) {}, payment.QuoteMismatch},
		"more":          {give("1 hour"), func(p *payment.Payment) { p.CreditMinor++ }, payment.QuoteMismatch},
		"other sender":  {give("1 hour"), func(p *payment.Payment) { p.Sender, p.Receiver = "B", "A" }, payment.QuoteMismatch},
		"other mid":     {give("1 hour"), func(p *payment.Payment) { p.Exchange.MidMinor++ }, payment.QuoteMismatch},
		"as it was":     {give("1 hour"), func(*payment.Payment) {}, ""},
		"used, expired": {id, func(*payment.Payment) {}, payment.QuoteUsed},
	} {
		p := quoted(tc.id, name)
		tc.change(&p)
		if got := w.mustReserve(p); got.Reason != tc.want {
			t.Errorf("%s: %q, want %q", name, got.Reason, tc.want)
		}
		// The outcome stays, whatever becomes of the quote.
		w.exec(`UPDATE quotes SET expires_at = now() - interval '1 minute' WHERE quote_id = $1`, tc.id)
		if got := w.mustReserve(p); got.Reason != tc.want {
			t.Errorf("%s, again: %q, want %q", name, got.Reason, tc.want)
		}
	}
}

// Entries can't be changed, not even by their owner.
func TestEntriesAreFinal(t *testing.T) {
	w := newWorld(t)
	w.open(10, "A")
	for _, sql := range []string{`UPDATE entries SET amount = 5`, `DELETE FROM entries`, `TRUNCATE entries`} {
		if _, err := w.pool.Exec(t.Context(), sql); err == nil {
			t.Errorf("%s: taken", sql)
		}
	}
}

// migrateTo applies the migrations up to a version.
func migrateTo(t *testing.T, url string, version int) {
	t.Helper()
	files, some := mustSub(t), fstest.MapFS{}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if name > fmt.Sprintf("%05d_~", version) {
			continue
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			t.Fatal(err)
		}
		some[name] = &fstest.MapFile{Data: text}
	}
	if err := migrate(t.Context(), url, some, version); err != nil {
		t.Fatal(err)
	}
}

func mustSub(t *testing.T) fs.FS {
	t.Helper()
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	return files
}
