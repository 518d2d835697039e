package db

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// Each of the ledger's errors tells the caller whether to wait, try again or give up.
func TestTheLedgersErrorsAreTranslated(t *testing.T) {
	for want, errs := range map[codes.Code][]error{
		codes.ResourceExhausted:  {ledger.ErrFull, fmt.Errorf("reads: %w", ledger.ErrFull)},
		codes.Unavailable:        {ledger.ErrLocked, &pgconn.PgError{Code: "55P03"}, errors.New("broken")},
		codes.FailedPrecondition: {&pgconn.PgError{Code: "22003"}, &pgconn.PgError{Code: "23514"}},
		codes.InvalidArgument:    {&ledger.InvalidError{Err: &payment.FieldError{Field: "rates", Problem: "0 in one call"}}},
		codes.Canceled:           {context.Canceled},
		codes.DeadlineExceeded:   {context.DeadlineExceeded},
	} {
		for _, err := range errs {
			if got := status.Code(translated(err)); got != want {
				t.Errorf("%v: %s, want %s", err, got, want)
			}
		}
	}
}

// A late commit is refused as late, and a commit to a blocked receiver is refused as failed.
func TestALateCommitIsToldToBeLate(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	held := w.mustReserve(pay("k", "A", "B", 10))
	commit := func() *dbv1.CommitReservationResponse {
		t.Helper()
		got, err := w.CommitReservation(t.Context(), &dbv1.CommitReservationRequest{ReservationId: held.ReservationID.String()})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	w.exec(`UPDATE balances SET status = 'BLOCKED' WHERE account_id = 'B'`)
	if got := commit(); got.Status != dbv1.TxStatus_BAD_STATUS || got.Reason != string(payment.CommitFailed) {
		t.Errorf("to a blocked receiver: %+v", got)
	}
	w.exec(`UPDATE reservations SET deadline = now() - interval '1 second'`)
	if got := commit(); got.Status != dbv1.TxStatus_BAD_STATUS || got.Reason != string(payment.Expired) {
		t.Errorf("past the deadline: %+v", got)
	}
}

// A payment is committed with its reserve, and counted as one of each. A second call finds it
// committed.
func TestReserveAndCommit(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	p := pay("k", "A", "B", 10)
	authorized := pay("authorized", "A", "B", 10)
	authorized.HoldSeconds = 60
	invalid := pay("invalid", "A", "", 10)
	for _, tc := range []struct {
		name string
		p    payment.Payment
		want string
	}{
		{"settled", p, "SUCCESS committed COMMITTED"},
		{"delivered again", p, "SUCCESS committed COMMITTED"},
		{"refused", pay("poor", "A", "B", 1000), "FAILED insufficient_funds ROLLEDBACK"},
		{"authorized", authorized, "SUCCESS authorized PENDING"},
		{"invalid", invalid, "InvalidArgument"},
	} {
		got, err := w.ReserveAndCommit(t.Context(), rpc.FromPayment(tc.p))
		heard := status.Code(err).String()
		if err == nil {
			out, err := rpc.ToOutcome(got)
			if err != nil {
				t.Fatal(err)
			}
			heard = fmt.Sprintf("%s %s %s", out.Status, out.Reason, out.State)
		}
		if heard != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, heard, tc.want)
		}
	}
	for status, want := range map[dbv1.TxStatus]float64{dbv1.TxStatus_OK: 2, dbv1.TxStatus_DUPLICATE: 1, dbv1.TxStatus_INSUFFICIENT: 1} {
		if got := testutil.ToFloat64(w.metrics.reserves.WithLabelValues(status.String())); got != want {
			t.Errorf("%g reserves are %s, want %g", got, status, want)
		}
	}
	if got := testutil.ToFloat64(w.metrics.commits.WithLabelValues(dbv1.TxStatus_OK.String())); got != 1 {
		t.Errorf("%g commits, want 1", got)
	}
	if w.balance("B") != 110 {
		t.Errorf("B has %d", w.balance("B"))
	}
}

// keys reads all pages of the list. It returns the keys, and the number of calls that this took.
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

func TestListPaymentsNewestFirst(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B", "C")
	for i, to := range []string{"B", "C", "B", "C", "B"} {
		r := w.mustReserve(pay(fmt.Sprint("p", i), "A", to, 10))
		if i < 3 {
			w.mustFinish(ledger.Finish{ReservationID: r.ReservationID})
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
		"of accounts":  {&dbv1.ListRequest{Accounts: []string{"C*", "D"}}, "too much p3 p1"},
		"by amount":    {&dbv1.ListRequest{Currency: "IDR", MinMinor: 11}, "too much"},
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
		"limit":      {Limit: ledger.MaxPage + 1},
		"before":     {Before: "yesterday"},
		"account_id": {AccountId: strings.Repeat("x", payment.MaxAccountID+1)},
		"state":      {State: 99},
		"ref":        {Ref: "4711"},
		"currency":   {MinMinor: 1},
		"accounts":   {Accounts: make([]string, maxAccounts+1)},
		"metadata":   {Metadata: map[string]string{"a b": "c"}},
	} {
		if _, err := w.List(t.Context(), in); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field+":") {
			t.Errorf("bad %s: %v", field, err)
		}
	}
}

// A client's metadata is stored with its payment, and every way to read the payment returns it.
// Rows of earlier releases have none.
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
		rec, err := w.ledger.Payment(t.Context(), payment.ScopedKey{Key: key})
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

// Many payments run through the RPCs while an account stays locked. The payments between other
// accounts settle, and no call waits for long.
func TestStrangersSettleBesideALockedAccount(t *testing.T) {
	w := newWorldWith(t, impatient)
	w.open(10_000, "A", "B", "LOCKED")
	w.hold(lockAccountSQL, "LOCKED")
	var all sync.WaitGroup
	for g := range 16 {
		all.Go(func() {
			for i := range 10 {
				from := "A"
				if g == 0 {
					from = "LOCKED"
				}
				key := fmt.Sprint("k", g, "-", i)
				var got *dbv1.ReserveFundsResponse
				// Another lane may hold a lock on A when a batch runs without locked rows. A
				// payment that is put off is tried again.
				for deadline := time.Now().Add(60 * time.Second); ; {
					var err error
					got, err = w.ReserveFunds(t.Context(), &dbv1.ReserveFundsRequest{IdempotencyKey: key, SenderId: from, ReceiverId: "B", AmountIdr: 1, CurrencyInput: "IDR"})
					if err == nil {
						break
					}
					if status.Code(err) != codes.Unavailable {
						t.Errorf("%s: %v", key, err)
						return
					}
					if from == "LOCKED" {
						return
					}
					if time.Now().After(deadline) {
						t.Errorf("%s, between other accounts, does not settle: %v", key, err)
						return
					}
				}
				for deadline := time.Now().Add(60 * time.Second); ; {
					committed, err := w.CommitReservation(t.Context(), &dbv1.CommitReservationRequest{ReservationId: got.ReservationId, IdempotencyKey: key})
					if err == nil && committed.Status == dbv1.TxStatus_OK {
						break
					}
					if err == nil || status.Code(err) != codes.Unavailable || time.Now().After(deadline) {
						t.Errorf("commit of %s: %+v, %v", key, committed, err)
						return
					}
				}
			}
		})
	}
	all.Wait()
	if got := w.balance("B"); got != 10_150 {
		t.Errorf("B has %d", got)
	}
}
