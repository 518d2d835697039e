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

	"github.com/google/uuid"

	"pgw/shared/payment"
)

// by returns the payment as a request of a client.
func by(client string, p payment.Payment) payment.Payment {
	p.Client, p.AttemptID = client, client+p.AttemptID
	return p
}

// paid reserves and commits a payment.
func (w *world) paid(p payment.Payment) Reserved {
	w.t.Helper()
	got := w.mustReserve(p)
	if got.Status == payment.Pending {
		w.mustFinish(Finish{ReservationID: got.ReservationID, Key: p.Key})
	}
	return got
}

// Clients have their keys for themselves, and so has the scope that callers without a client share.
func TestClientsWithTheSameKeyAllPay(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B", "C", "D")
	clients := map[string]payment.Payment{
		"a": by("a", pay("k", "A", "D", 10)), "b": by("b", pay("k", "B", "D", 20)), "": pay("k", "C", "D", 30),
		"same": by("same", pay("k", "A", "D", 10)), // the same content as a's
	}
	refs := map[string]uuid.UUID{}
	for client, p := range clients {
		got := w.paid(p)
		if refs[client] = got.ReservationID; got.Replay || got.Status != payment.Pending || got.Client != client {
			t.Errorf("%q: %+v", client, got)
		}
	}
	if w.balance("D") != 1_070 {
		t.Errorf("D has %d", w.balance("D"))
	}
	for client, p := range clients {
		p.AttemptID = "again"
		if got := w.mustReserve(p); !got.Replay || got.ReservationID != refs[client] || got.Outcome(p).Status != payment.SuccessReplay {
			t.Errorf("%q again: %+v", client, got)
		}
		p.AmountIDR, p.Minor = 40, 40
		if got := w.mustReserve(p); !got.Mismatch(p) || got.ReservationID != refs[client] {
			t.Errorf("%q with another amount: %+v", client, got)
		}
		rec, err := w.Payment(t.Context(), payment.ScopedKey{Client: client, Key: "k"})
		if err != nil || rec.Ref != refs[client].String() || rec.Client != client {
			t.Errorf("%q reads %s of %q, %v", client, rec.Ref, rec.Client, err)
		}
	}
	if claims, err := ReadClaims(t.Context(), w.pool, "k"); err != nil || len(claims) != len(clients) {
		t.Errorf("%d claims, %v", len(claims), err)
	}
	for of, want := range map[string]struct {
		clients []string
		want    string
	}{
		"all":             {nil, " a b same"},
		"a's":             {[]string{"a"}, "a"},
		"a's, and shared": {[]string{"a", ""}, " a"},
		"nobody's":        {[]string{"c"}, ""},
	} {
		found, _, err := w.Payments(t.Context(), Search{Limit: 10, Before: Newest, Clients: want.clients})
		names := make([]string, len(found))
		for i, rec := range found {
			names[i] = rec.Client
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); err != nil || got != want.want {
			t.Errorf("%s: %q, %v; want %q", of, got, err, want.want)
		}
	}
}

// In one batch and in many at once, each client's key is claimed once.
func TestClientsWithTheSameKeysAtOnce(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B", "C")
	const clients, keys, times = 5, 8, 4
	var mu sync.Mutex
	first := map[payment.ScopedKey]int{}
	var wg sync.WaitGroup
	for n := range clients * keys * times {
		client, key := fmt.Sprint("client-", n%clients), fmt.Sprint("key-", n/clients%keys)
		if n%clients == 0 {
			client = ""
		}
		wg.Go(func() {
			p := by(client, pay(key, "A", "B", int64(100+n%clients)))
			p.AttemptID = fmt.Sprint(n)
			got, err := w.Reserve(t.Context(), p)
			if err == nil && got.Mismatch(p) {
				err = errors.New("its key is claimed by another request")
			}
			if err == nil {
				_, err = w.Finish(t.Context(), Finish{ReservationID: got.ReservationID, Key: key})
			}
			if err != nil {
				t.Errorf("%s of %q: %v", key, client, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if !got.Replay {
				first[p.Scoped()]++
			}
		})
	}
	wg.Wait()
	if len(first) != clients*keys {
		t.Errorf("%d claims; want %d", len(first), clients*keys)
	}
	for key, n := range first {
		if n != 1 {
			t.Errorf("%+v was claimed %d times", key, n)
		}
	}
	if got := w.balance("B"); got != 1_000_000+keys*(100+101+102+103+104) {
		t.Errorf("B has %d", got)
	}
}

// A release before clients took payments without names. Its clients repeat them, and must not pay twice.
func TestAPaymentFromBeforeClientsIsNotPaidTwice(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B")
	before := w.paid(pay("old", "A", "B", 10))
	again := by("a", pay("old", "A", "B", 10))
	if got := w.mustReserve(again); !got.Replay || got.ReservationID != before.ReservationID || got.Mismatch(again) {
		t.Errorf("repeated with a name: %+v", got)
	}
	if rec, err := w.Payment(t.Context(), again.Scoped()); err != nil || rec.Ref != before.ReservationID.String() {
		t.Errorf("read with a name: %+v, %v", rec, err)
	}
	other := by("b", pay("old", "A", "B", 11))
	if got := w.paid(other); got.Replay || got.ReservationID == before.ReservationID {
		t.Errorf("another payment of another client: %+v", got)
	}

	// A gateway that is not replaced yet, or was put back, names no client.
	named := w.paid(by("a", pay("new", "A", "B", 10)))
	nameless := pay("new", "A", "B", 10)
	if got := w.mustReserve(nameless); !got.Replay || got.ReservationID != named.ReservationID {
		t.Errorf("repeated without a name: %+v", got)
	}
	if _, err := w.Payment(t.Context(), nameless.Scoped()); !errors.Is(err, ErrNotFound) {
		t.Errorf("read in the shared scope: %v", err)
	}
	if rec, err := w.PaymentOfAny(t.Context(), nameless.Scoped()); err != nil || rec.Ref != named.ReservationID.String() {
		t.Errorf("read in any scope: %+v, %v", rec, err)
	}
	if got := w.balance("B"); got != 1_000+10+11+10 {
		t.Errorf("B has %d", got)
	}
}

// Closing a client's payment closes no other client's.
func TestClosingAndSweepingKeepToTheClient(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B")
	of := map[string]Reserved{}
	for _, client := range []string{"a", "b", "c"} {
		of[client] = w.mustReserve(by(client, pay("k", "A", "B", int64(10+len(of)))))
	}
	failed, err := w.Fail(t.Context(), by("b", pay("k", "A", "B", 11)), payment.Undeliverable)
	if err != nil || failed.ReservationID != of["b"].ReservationID || failed.Reason != payment.Undeliverable {
		t.Errorf("fail: %+v, %v", failed, err)
	}
	refused, err := w.Refuse(t.Context(), by("d", pay("k", "A", "B", 10)), payment.RiskAboveMax)
	if err != nil || refused.Replay || refused.Reason != payment.RiskAboveMax {
		t.Errorf("refuse: %+v, %v", refused, err)
	}
	w.exec(`UPDATE reservations SET deadline = now() - interval '1 second' WHERE status = 'PENDING'`)
	var told []string
	if _, err := w.Sweep(t.Context(), func(_ context.Context, c Claim, _ time.Time) error {
		told = append(told, c.Client+"/"+c.Key+"/"+string(c.Reason))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(told)
	if want := []string{"a/k/expired", "c/k/expired"}; !slices.Equal(told, want) {
		t.Errorf("told %q; want %q", told, want)
	}
}

// Only the client that asked for a quote pays by it. A gateway of a release before clients has checked
// that itself, and names no client.
func TestTheLedgerJudgesWhoseQuoteItIs(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	for client, want := range map[string]payment.Reason{"acme": "", "other": payment.QuoteMismatch, "": ""} {
		n := quoteOf("acme", 10)
		n.Payment = pay("", "A", "B", 10)
		n.Payment.AcceptedAt, n.Payment.Deadline, n.Payment.AttemptID = time.Time{}, time.Time{}, ""
		q, err := w.PutQuote(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		p := by(client, pay("by quote of "+client, "A", "B", 10))
		p.QuoteID = q.ID.String()
		if got := w.mustReserve(p); got.Reason != want {
			t.Errorf("%q: %s; want %q", client, got.Reason, want)
		}
	}
}

// A migration that was interrupted runs again, and keys stay unique meanwhile.
func TestTheScopeOfKeysIsMigratedAgain(t *testing.T) {
	w := newPlainWorld(t)
	w.open(1_000, "A", "B")
	w.paid(by("a", pay("k", "A", "B", 10)))
	w.exec(`DELETE FROM goose_db_version WHERE version_id >= 17`)
	w.exec(`DROP VIEW payment_history`) // a later migration has given it more columns
	if err := Migrate(t.Context(), w.cfg.URL); err != nil {
		t.Fatal(err)
	}
	if got := w.mustReserve(by("a", pay("k", "A", "B", 10))); got.Status != payment.Committed {
		t.Errorf("%+v", got)
	}
	var n int
	if err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM payment_history WHERE client = 'a'`).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
}
