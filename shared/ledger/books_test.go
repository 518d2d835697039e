package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// settle makes a payment that is committed.
func (w *world) settle(p payment.Payment) {
	w.t.Helper()
	held := w.mustReserve(p)
	if done := w.mustFinish(Finish{ReservationID: held.ReservationID}); !done.Done {
		w.t.Fatalf("%s: %+v", p.Key, done)
	}
}

// statement reads all pages, and checks that each page adds up and begins where the last one ended.
func (w *world) statement(of StatementOf) (whole Statement, pages int) {
	w.t.Helper()
	for {
		page, err := w.Statement(context.Background(), of)
		if err != nil {
			w.t.Fatal(err)
		}
		if pages == 0 {
			whole = page
		} else {
			if page.Opening != whole.Closing {
				w.t.Errorf("%s: page %d begins with %d, and the page before it ended with %d", of.Account, pages, page.Opening, whole.Closing)
			}
			whole.To, whole.Closing, whole.Entries = page.To, page.Closing, append(whole.Entries, page.Entries...)
		}
		pages++
		balance := page.Opening
		for _, e := range page.Entries {
			if balance += e.Amount; e.Balance != balance {
				w.t.Errorf("%s: the balance after %+v should be %d", of.Account, e, balance)
			}
		}
		if balance != page.Closing {
			w.t.Errorf("%s: page %d closes with %d, and its entries with %d", of.Account, pages, page.Closing, balance)
		}
		if of.After = page.Next; of.After == nil {
			return whole, pages
		}
	}
}

func amounts(s Statement) (all []int64) {
	for _, e := range s.Entries {
		all = append(all, e.Amount)
	}
	return all
}

func TestPagesOfAStatementAreTheWholeStatement(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(0, "IDR"), in(50_000, "USD"))
	w.fund("B", in(0, "IDR"))
	w.liquidity(in(1_000_000, "SGD"), -1)
	for i := range 7 {
		w.settle(exchange(fmt.Sprint("k", i), "A", "B", in(int64(1000+i), "USD"), in(1339, "SGD"), 1340))
	}
	usd, sgd := in(0, "USD").Currency, in(0, "SGD").Currency
	for place, want := range map[place][]int64{
		{"A", usd}:                      {50_000, -1000, -1001, -1002, -1003, -1004, -1005, -1006},
		{"B", sgd}:                      {1339, 1339, 1339, 1339, 1339, 1339, 1339},
		{payment.LiquidityAccount, sgd}: {1_000_000, -1340, -1340, -1340, -1340, -1340, -1340, -1340},
		{payment.SpreadAccount, sgd}:    {1, 1, 1, 1, 1, 1, 1},
		{payment.OutsideAccount, usd}:   {-50_000},
		{"A", money.IDR}:                nil,
		{"A", sgd}:                      nil, // there is no such balance
	} {
		of := StatementOf{Account: place.account, Currency: place.currency, Limit: MaxStatement}
		whole, pages := w.statement(of)
		if got := amounts(whole); !slices.Equal(got, want) || pages != 1 || whole.Opening != 0 {
			t.Errorf("%v: %v in %d pages, opened with %d; want %v", place, got, pages, whole.Opening, want)
		}
		if available, held := w.has(place.account, place.currency.String()); whole.Closing != available+held {
			t.Errorf("%v: closed with %d, and the balance is %d", place, whole.Closing, available+held)
		}
		for _, of.Limit = range []int{1, 2, 3, 7, 8} {
			got, pages := w.statement(of)
			if wanted := max(1, (len(want)+of.Limit-1)/of.Limit); !slices.Equal(got.Entries, whole.Entries) || got.Closing != whole.Closing || pages != wanted {
				t.Errorf("%v, %d a page: %v in %d pages", place, of.Limit, amounts(got), pages)
			}
		}
		of.Limit = MaxStatement
		// A period begins and ends at each entry, and between any two of them.
		for i, e := range whole.Entries {
			for _, at := range []time.Time{e.BookedAt, e.BookedAt.Add(time.Microsecond)} {
				of.From, of.To = time.Time{}, at
				before, _ := w.statement(of)
				of.From, of.To = at, time.Time{}
				after, _ := w.statement(of)
				if got := append(amounts(before), amounts(after)...); !slices.Equal(got, want) || before.Closing != after.Opening || before.To != at {
					t.Errorf("%v, cut at entry %d: %v and %v, from %d to %d", place, i, amounts(before), amounts(after), before.Closing, after.Opening)
				}
				balances, err := w.BalancesAt(t.Context(), place.account, at)
				if err != nil || !slices.Contains(balances, money.Amount{Minor: before.Closing, Currency: place.currency}) {
					t.Errorf("%v at entry %d: %v, %v; want %d", place, i, balances, err, before.Closing)
				}
			}
		}
	}
	if whole, _ := w.statement(StatementOf{Account: "A", Currency: usd, Limit: 1}); whole.Entries[0].Kind != payment.KindFunding ||
		whole.Entries[1].Kind != payment.KindPayment || !whole.Entries[1].ValueDate.Equal(whole.Entries[1].BookedAt.Truncate(24*time.Hour)) {
		t.Errorf("%+v", whole.Entries[:2])
	}
}

// While payments go on, statements that follow each other leave no entry out and count none twice.
func TestStatementsFollowEachOtherWhilePaymentsGoOn(t *testing.T) {
	w := newWorld(t)
	parties := []string{"A", "B", "C"}
	for _, id := range parties {
		w.fund(id, in(1_000_000, "IDR"), in(1_000_000, "USD"))
	}
	w.liquidity(in(1_000_000, "IDR"), -1)
	ends := map[place]Statement{}
	read := func() {
		for _, at := range []place{{"A", money.IDR}, {"B", in(0, "USD").Currency}, {payment.LiquidityAccount, money.IDR}, {payment.SpreadAccount, money.IDR}} {
			last := ends[at]
			next, _ := w.statement(StatementOf{Account: at.account, Currency: at.currency, From: last.To, Limit: 5})
			if next.Opening != last.Closing {
				t.Errorf("%v: a statement begins at %s with %d, and the one before it closed with %d", at, last.To, next.Opening, last.Closing)
			}
			ends[at] = next
		}
		trial, err := w.TrialBalance(t.Context())
		if err := errors.Join(err, trial.Err()); err != nil {
			t.Error(err)
		}
	}
	var paying sync.WaitGroup
	for i := range 8 {
		paying.Go(func() {
			for j := range 15 {
				from, to, key := parties[(i+j)%3], parties[(i+j+1)%3], fmt.Sprint(i, "-", j)
				p := pay(key, from, to, 10)
				if j%2 == 0 {
					p = exchange(key, from, to, in(10, "USD"), in(1549, "IDR"), 1550)
				}
				way := w.ReserveAndCommit
				if j%3 == 0 {
					way = w.Reserve
				}
				got, err := way(t.Context(), p)
				if err == nil && got.Status == payment.Pending {
					_, err = w.Finish(t.Context(), Finish{ReservationID: got.ReservationID})
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { paying.Wait(); close(done) }()
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		read()
	}
	for at, last := range ends {
		if available, held := w.has(at.account, at.currency.String()); last.Closing != available+held {
			t.Errorf("%v: the last statement closes with %d, and the balance is %d", at, last.Closing, available+held)
		}
	}
}

func TestStatementsThatCannotBe(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A")
	now := time.Now()
	for field, of := range map[string]StatementOf{
		"limit":  {Account: "A", Limit: MaxStatement + 1},
		"to":     {Account: "A", Limit: 1, From: now, To: now},
		"cursor": {Account: "A", Limit: 1, From: now, After: &Cursor{BookedAt: now.Add(-time.Hour)}},
	} {
		of.Currency = money.IDR
		_, err := w.Statement(t.Context(), of)
		var invalid *InvalidError
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := w.Statement(t.Context(), StatementOf{Account: "NOBODY", Currency: money.IDR, Limit: 1}); !errors.Is(err, ErrNotFound) {
		t.Errorf("of nobody: %v", err)
	}
	if _, err := w.BalancesAt(t.Context(), "NOBODY", now.Add(-time.Hour)); !errors.Is(err, ErrNotFound) {
		t.Errorf("the balances of nobody: %v", err)
	}
	var invalid *InvalidError
	if _, err := w.BalancesAt(t.Context(), "A", now.Add(time.Hour)); !errors.As(err, &invalid) {
		t.Errorf("the balances in an hour: %v", err)
	}
	if got, err := w.BalancesAt(t.Context(), "A", now.Add(-time.Hour)); err != nil || !slices.Equal(got, []money.Amount{in(0, "IDR")}) {
		t.Errorf("the balances before the account was opened: %v, %v", got, err)
	}
}

// A statement that ends now, or later, says where the next one may begin.
func TestTheEndOfAStatement(t *testing.T) {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	at := func(second int) time.Time { return now.Add(time.Duration(second) * time.Second) }
	for name, tc := range map[string]struct{ from, to, newest, want time.Time }{
		"of a past day":                    {at(-100), at(-50), at(-40), at(-50)},
		"no end, an entry just now":        {at(-100), time.Time{}, at(-1), at(-1).Add(time.Microsecond)},
		"no end, no entry of late":         {at(-100), time.Time{}, at(-80), now.Add(-settleWithin)},
		"no end, no entry ever":            {time.Time{}, time.Time{}, time.Time{}, now.Add(-settleWithin)},
		"an end that has not come":         {at(-100), at(50), at(-80), now.Add(-settleWithin)},
		"an end after the newest entry":    {at(-100), at(-1), at(-2), at(-2).Add(time.Microsecond)},
		"a beginning that is hardly past":  {at(-1), time.Time{}, at(-80), at(-1)},
		"a beginning that has not come":    {at(1), at(2), at(-80), at(1)},
		"an end just before a newer entry": {at(-100), at(-2), at(-1), at(-2)},
	} {
		if got := (StatementOf{From: tc.from, To: tc.to}).end(now, tc.newest); !got.Equal(tc.want) {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// A page costs what it has, however many entries there are: it walks the primary key.
func TestStatementsUseThePrimaryKey(t *testing.T) {
	if embeddedtest.Citus(t) {
		t.Skip("on Citus the node that has the tables makes the plans, by what it knows of their sizes")
	}
	w := newWorld(t)
	w.open(1000, "A", "B")
	explain := func(sql string, args ...any) string {
		t.Helper()
		var lines []string
		err := w.readBooks(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `EXPLAIN (COSTS off) `+sql, args...)
			if err == nil {
				lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(lines, "\n")
	}
	page := explain(entriesSQL.one, "A", "IDR", time.Now(), newID(), "payment", time.Now(), 10)
	if !strings.Contains(page, "Index Scan using entries_pkey") || strings.Contains(page, "Sort") || strings.Contains(page, "Filter") {
		t.Errorf("the plan of a page:\n%s", page)
	}
	for name, plan := range map[string]string{
		"the balances":        explain(spansSQL, "A"),
		"a step of a sum":     explain(stepSQL, "A", "IDR", time.Now(), time.Now(), step),
		"the sum of a step":   explain(sumStepSQL, "A", "IDR", time.Now(), time.Now()),
		"a step of the trial": explain(trialStepSQL, "A", step),
		"the sum of a trial":  explain(trialSQL, "A", "B"),
	} {
		if strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Sort Key: b.") {
			t.Errorf("the plan of %s:\n%s", name, plan)
		}
	}
}

// Sums are the same in steps of any length.
func TestSumsAreReadInSteps(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(10_000, "IDR"), in(5000, "USD"))
	w.open(1000, "B", "C")
	for i := range 6 {
		w.settle(pay(fmt.Sprint("k", i), "A", "B", int64(10+i)))
	}
	err := w.readBooks(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		spans, err := readSpans(ctx, tx, "A")
		if err != nil {
			return err
		}
		whole, err := readTrials(ctx, tx, step)
		if err != nil {
			return err
		}
		for n := 1; n < 9; n++ {
			idr := spans[0]
			sum, err := sumEntries(ctx, tx, idr.place, idr.first, idr.newest.Add(time.Microsecond), n)
			if err != nil || sum != 10_000-75 || sum != idr.balance {
				t.Errorf("in steps of %d: %d, %v; the balance is %d", n, sum, err, idr.balance)
			}
			trials, err := readTrials(ctx, tx, n)
			if err != nil || fmt.Sprint(trials) != fmt.Sprint(whole) {
				t.Errorf("in steps of %d: %v, %v; want %v", n, trials, err, whole)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheTrialBalance(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(2000, "IDR"), in(5000, "USD"))
	w.fund("B", in(0, "IDR"))
	w.liquidity(in(10_000, "SGD"), 5000)
	w.settle(exchange("settled", "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340))
	w.mustReserve(exchange("held", "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340))

	trial, err := w.TrialBalance(t.Context())
	if err := errors.Join(err, trial.Err()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range trial.Currencies {
		text := fmt.Sprintf("%s %d: %d accounts have %d and hold %d", c.Currency, c.Sum, c.Accounts, c.Available, c.Held)
		for _, h := range c.House {
			if h.Available != 0 || h.Held != 0 {
				text += fmt.Sprintf("; %s %d %d %d", h.Account, h.Available, h.Held, h.Position)
			}
			if h.PositionLimit != nil {
				text += fmt.Sprintf(" of %d", *h.PositionLimit)
			}
		}
		got = append(got, text)
	}
	want := []string{
		"IDR 0: 2 accounts have 2000 and hold 0; OUTSIDE -2000 0 0",
		"SGD 0: 1 accounts have 1339 and hold 0; LIQUIDITY 7320 1340 -2680 of 5000; OUTSIDE -10000 0 0; SPREAD 1 0 0",
		"USD 0: 1 accounts have 3000 and hold 1000; LIQUIDITY 1000 0 1000; OUTSIDE -5000 0 0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the trial balance:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	w.exec(`UPDATE balances SET available = available + 1 WHERE account_id = 'B' AND currency = 'SGD'`)
	trial, err = w.TrialBalance(t.Context())
	if wrong := trial.Err(); err != nil || wrong == nil || !strings.Contains(wrong.Error(), "SGD sum to 0.01,") {
		t.Errorf("with a cent too many: %v, %v", wrong, err)
	}
	w.exec(`UPDATE balances SET available = available - 1 WHERE account_id = 'B' AND currency = 'SGD'`)
}
