package db

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/payment"
)

// keys pages through the list and gives the keys it saw, and how many calls that took.
func (w *world) keys(in *dbv1.ListRequest) (keys []string, calls int) {
	w.t.Helper()
	for {
		got, err := w.List(context.Background(), in)
		if err != nil {
			w.t.Fatal(err)
		}
		calls++
		for _, p := range got.Payments {
			keys = append(keys, p.Payment.IdempotencyKey)
		}
		if in.Before = got.NextBefore; in.Before == "" {
			return keys, calls
		}
	}
}

func TestListNewestFirst(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B", "C")
	for i, to := range []string{"B", "C", "B", "C", "B"} {
		r := w.mustReserve(pay(fmt.Sprint("p", i), "A", to, 10))
		if i < 3 {
			w.mustFinish(Finish{ReservationID: r.ReservationID})
		}
	}
	w.mustReserve(pay("too much", "B", "C", 5_000))

	for name, tc := range map[string]struct {
		in   *dbv1.ListRequest
		want string
	}{
		"all":          {&dbv1.ListRequest{}, "too much p4 p3 p2 p1 p0"},
		"by two":       {&dbv1.ListRequest{Limit: 2}, "too much p4 p3 p2 p1 p0"},
		"sent":         {&dbv1.ListRequest{AccountId: "A", Limit: 3}, "p4 p3 p2 p1 p0"},
		"received too": {&dbv1.ListRequest{AccountId: "B", Limit: 1}, "too much p4 p2 p0"},
		"nobody's":     {&dbv1.ListRequest{AccountId: "NOBODY"}, ""},
		"pending":      {&dbv1.ListRequest{State: commonv1.ReservationState_RESERVATION_STATE_PENDING}, "p4 p3"},
		"refused":      {&dbv1.ListRequest{State: commonv1.ReservationState_RESERVATION_STATE_ROLLEDBACK}, "too much"},
		"settled, C's": {&dbv1.ListRequest{State: commonv1.ReservationState_RESERVATION_STATE_COMMITTED, AccountId: "C"}, "p1"},
	} {
		if keys, _ := w.keys(tc.in); strings.Join(keys, " ") != tc.want {
			t.Errorf("%s: %q, want %q", name, keys, tc.want)
		}
	}
	got, err := w.List(t.Context(), &dbv1.ListRequest{Limit: 1, State: commonv1.ReservationState_RESERVATION_STATE_ROLLEDBACK})
	if err != nil || len(got.Payments) != 1 || got.Payments[0].Outcome.Reason != string(payment.InsufficientFunds) || got.Payments[0].DecidedAt == nil {
		t.Errorf("%v: %v", got, err)
	}
	for field, in := range map[string]*dbv1.ListRequest{
		"limit":      {Limit: maxPage + 1},
		"before":     {Before: "yesterday"},
		"account_id": {AccountId: strings.Repeat("x", payment.MaxAccountID+1)},
		"state":      {State: 99},
	} {
		if _, err := w.List(t.Context(), in); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field+":") {
			t.Errorf("bad %s: %v", field, err)
		}
	}
}

// What a client notes with its payment is kept, and told by each way to read it. Rows of before
// have none.
func TestMetadataIsKept(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B")
	noted := pay("noted", "A", "B", 10)
	noted.Metadata = map[string]string{"order": "4711", "note": `"<&>" 山田`}
	w.mustReserve(pay("bare", "A", "B", 10))
	w.mustReserve(noted)
	if again := w.mustReserve(noted); again.Mismatch(noted) || again.Status != payment.Pending {
		t.Errorf("again: %+v", again)
	}
	other := noted
	other.Metadata = map[string]string{"order": "4712"}
	if got := w.mustReserve(other); !got.Mismatch(other) {
		t.Errorf("with other metadata: %+v", got)
	}
	for key, want := range map[string]map[string]string{"noted": noted.Metadata, "bare": nil} {
		rec, err := w.reads.payment(t.Context(), key)
		if err != nil || !maps.Equal(rec.Metadata, want) || rec.Claimed != rec.Fingerprint() {
			t.Errorf("%s: %v, %v", key, rec.Metadata, err)
		}
	}
	got, err := w.List(t.Context(), &dbv1.ListRequest{})
	if err != nil || len(got.Payments) != 2 || !maps.Equal(got.Payments[0].Payment.Metadata, noted.Metadata) || got.Payments[1].Payment.Metadata != nil {
		t.Errorf("the list: %v, %v", got, err)
	}
	var order string
	err = w.pool.QueryRow(t.Context(), `SELECT metadata->>'order' FROM payment_history WHERE idempotency_key = 'noted'`).Scan(&order)
	if err != nil || order != "4711" {
		t.Errorf("the view: %q, %v", order, err)
	}
}

// However long the ledger is, one call looks at so many payments and no more; the next goes on from there.
func TestListIsBounded(t *testing.T) {
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
SELECT reservation_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, 'FAILED', 'expired' FROM r`, 2*maxSearched+1)

	if keys, calls := w.keys(&dbv1.ListRequest{AccountId: "A"}); strings.Join(keys, " ") != "oldest" || calls != 3 {
		t.Errorf("%q after %d calls; want the oldest after 3", keys, calls)
	}
	var lines []string
	err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), walkSQL); err != nil {
			return err
		}
		rows, err := tx.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) `+paymentsSQL, newest, "A", "", maxPage, maxSearched)
		if err == nil {
			lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	plan := strings.Join(lines, "\n")
	if !strings.Contains(plan, "Index Scan Backward using reservations_pkey") || !strings.Contains(plan, fmt.Sprintf("rows=%d ", maxSearched)) ||
		strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Sort") {
		t.Errorf("the plan:\n%s", plan)
	}
}
