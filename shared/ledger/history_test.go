package ledger

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
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
	var lines []string
	err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), walkSQL); err != nil {
			return err
		}
		rows, err := tx.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) `+paymentsSQL, Newest, "A", "", MaxPage, MaxSearched)
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
