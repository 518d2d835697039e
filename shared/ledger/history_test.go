package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// keys reads all pages of a search. It returns the keys, and the number of calls that this took.
func (w *world) keys(s Search) (keys []string, calls int) {
	w.t.Helper()
	for {
		found, next, err := w.Payments(context.Background(), s)
		if err != nil {
			w.t.Fatal(err)
		}
		calls++
		for _, p := range found {
			keys = append(keys, p.Key)
		}
		if next == "" {
			return keys, calls
		}
		s.Before = uuid.MustParse(next)
	}
}

// One call looks at a limited number of payments, however long the ledger is. The next call
// continues from there.
func TestListPaymentsIsBounded(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B", "C")
	oldest := w.mustReserve(pay("oldest", "A", "B", 10))
	w.mustFinish(Finish{ReservationID: oldest.ReservationID})
	w.exec(`
WITH r AS (
	INSERT INTO reservations (reservation_id, idempotency_key, fingerprint, sender_id, receiver_id, amount_idr, currency_input, status, deadline)
	SELECT overlay('ffffffff-0000-7000-8000-000000000000' PLACING lpad(i::text, 12, '0') FROM 25)::uuid, 'k' || i, decode(repeat('00', 16), 'hex'), 'B', 'C', 1, 'IDR', 'ROLLEDBACK', now()
	FROM generate_series(1, $1) i RETURNING *)
INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason)
SELECT reservation_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, 'FAILED', 'expired' FROM r`, 2*MaxSearched+1)

	if keys, calls := w.keys(Search{Limit: 20, Before: Newest, Account: "A"}); strings.Join(keys, " ") != "oldest" || calls != 3 {
		t.Errorf("%q after %d calls; want the oldest after 3", keys, calls)
	}
	if embeddedtest.Citus(t) {
		return // the node that has the tables makes the plan, by what it knows of their sizes
	}
	var lines []string
	err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), walkSQL); err != nil {
			return err
		}
		rows, err := tx.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) `+paymentsSQL.one, Search{Limit: MaxPage, Before: Newest, Account: "A"}.arguments()...)
		if err == nil {
			lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	plan := strings.Join(lines, "\n")
	if !strings.Contains(plan, "Index Scan Backward using reservations_pkey") || !strings.Contains(plan, fmt.Sprintf("rows=%d ", MaxSearched)) ||
		strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Sort") {
		t.Errorf("the plan:\n%s", plan)
	}
}

// Each filter selects, and all of them together. The cursor goes on within the filters.
func TestSearches(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "SHOP-1", "SHOP-2", "SHOPX", "B", "C")
	settle := func(p payment.Payment) (ref uuid.UUID) {
		t.Helper()
		got := w.mustReserve(p)
		w.mustFinish(Finish{ReservationID: got.ReservationID})
		return got.ReservationID
	}
	noted := pay("k1", "SHOP-1", "B", 10)
	noted.Metadata = map[string]string{"order": "1", "x": "y"}
	settle(noted)
	dollars := pay("k2", "B", "SHOP-2", 31_000)
	usd, err := money.ParseCurrency("USD")
	if err != nil {
		t.Fatal(err)
	}
	dollars.Currency, dollars.Minor = usd, 200
	ref := settle(dollars)
	settle(pay("k3", "SHOPX", "B", 30))
	settle(pay("k4", "B", "C", 40))
	w.mustReserve(pay("k5", "C", "SHOP-1", 50))
	var at [5]time.Time
	for i := range at {
		if err := w.pool.QueryRow(t.Context(), `SELECT created_at FROM reservations WHERE idempotency_key = $1`, fmt.Sprint("k", i+1)).Scan(&at[i]); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		search Search
		want   string
	}{
		"all":                 {Search{}, "k5 k4 k3 k2 k1"},
		"accounts":            {Search{Accounts: []string{"SHOP-1", "SHOP-2"}}, "k5 k2 k1"},
		"a prefix":            {Search{Accounts: []string{"SHOP-*", "NOBODY"}}, "k5 k2 k1"},
		"a prefix is no mask": {Search{Accounts: []string{"SHOP_*", "%", "*P"}}, ""},
		"accounts of one":     {Search{Accounts: []string{"SHOP*"}, Account: "C"}, "k5"},
		"currency":            {Search{Currency: "USD"}, "k2"},
		"at least":            {Search{Currency: "IDR", MinMinor: 30}, "k5 k4 k3"},
		"at most":             {Search{Currency: "IDR", MaxMinor: 30}, "k3 k1"},
		"between":             {Search{Currency: "IDR", MinMinor: 30, MaxMinor: 40}, "k4 k3"},
		"dollars":             {Search{Currency: "USD", MinMinor: 200, MaxMinor: 200}, "k2"},
		"more dollars":        {Search{Currency: "USD", MinMinor: 201}, ""},
		"from":                {Search{From: at[2]}, "k5 k4 k3"},
		"to":                  {Search{To: at[2]}, "k2 k1"},
		"a time":              {Search{From: at[1], To: at[3]}, "k3 k2"},
		"never":               {Search{From: at[4].Add(time.Hour)}, ""},
		"ref":                 {Search{Ref: ref}, "k2"},
		"ref of another":      {Search{Ref: ref, Account: "C"}, ""},
		"an older ref":        {Search{Ref: ref, To: at[1]}, ""},
		"the last ref":        {Search{Ref: uuid.Max}, ""},
		"metadata":            {Search{Metadata: map[string]string{"order": "1"}}, "k1"},
		"all metadata":        {Search{Metadata: map[string]string{"order": "1", "x": "z"}}, ""},
		"state":               {Search{Status: payment.Pending, Accounts: []string{"SHOP-1"}}, "k5"},
	} {
		for _, limit := range []int{1, 2, MaxPage} {
			tc.search.Limit, tc.search.Before = limit, Newest
			if keys, _ := w.keys(tc.search); strings.Join(keys, " ") != tc.want {
				t.Errorf("%s, %d a page: %q; want %q", name, limit, keys, tc.want)
			}
		}
	}
	if got, err := w.PaymentByRef(t.Context(), ref); err != nil || got.Key != "k2" {
		t.Errorf("by ref: %q, %v", got.Key, err)
	}
	if _, err := w.PaymentByRef(t.Context(), uuid.Max); !errors.Is(err, ErrNotFound) {
		t.Errorf("by an unknown ref: %v", err)
	}
}
