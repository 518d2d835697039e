package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"pgw/shared/batch"
	"pgw/shared/payment"
)

func (w *world) mustPay(p payment.Payment) Reserved {
	w.t.Helper()
	got, err := w.ReserveAndCommit(context.Background(), p)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

// rows returns everything that a payment leaves in the database, without ids and times.
func (w *world) rows() (rows []string) {
	w.t.Helper()
	for _, sql := range []string{
		`SELECT to_jsonb(b) - 'updated_at' - 'spent_day' - 'started_minute' - 'profile_at' - 'profile_event' FROM balances b ORDER BY account_id, currency`,
		`SELECT to_jsonb(e) - 'booked_at' - 'value_date' - 'transaction_id' FROM entries e WHERE kind <> 'funding' ORDER BY account_id, currency, kind, amount`,
		`SELECT to_jsonb(p) - 'payment_id' - 'decided_at' FROM payments p ORDER BY idempotency_key`,
		`SELECT to_jsonb(r) - 'reservation_id' - 'accepted_at' - 'deadline' - 'created_at' - 'ended_at' FROM reservations r ORDER BY idempotency_key`,
		`SELECT to_jsonb(a) - 'expires_at' - 'reservation_id' FROM authorizations a`,
		// One time for all of a payment, after it was reserved.
		`WITH entries AS MATERIALIZED (SELECT * FROM entries), payments AS MATERIALIZED (SELECT * FROM payments),
				reservations AS MATERIALIZED (SELECT * FROM reservations)
			SELECT to_jsonb(bool_and(e.booked_at = p.decided_at AND p.decided_at >= r.created_at AND r.ended_at >= r.created_at))
			FROM entries e JOIN payments p ON p.payment_id = e.transaction_id JOIN reservations r ON r.reservation_id = e.transaction_id`,
	} {
		got, err := w.pool.Query(context.Background(), sql)
		if err != nil {
			w.t.Fatal(err)
		}
		for got.Next() {
			var text string
			if err := got.Scan(&text); err != nil {
				w.t.Fatal(err)
			}
			rows = append(rows, text)
		}
		if err := got.Err(); err != nil {
			w.t.Fatal(err)
		}
	}
	return rows
}

// One transaction leaves the same rows as two.
func TestOneTransactionBooksWhatTwoDo(t *testing.T) {
	same := exchange("dollars", "A", "B", in(700, "USD"), in(700, "USD"), 0)
	same.Exchange = payment.Exchange{}
	payments := []payment.Payment{
		pay("rupiah", "A", "B", 400), pay("poor", "A", "B", 1_000_000), pay("whom", "A", "X", 1), manual(pay("authorized", "A", "B", 10)), same,
		exchange("exchange", "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340),
		exchange("back", "B", "A", in(133, "SGD"), in(99, "USD"), 99),
	}
	left := map[string][]string{}
	for _, way := range []string{"two transactions", "one", "one, after a wait for the locks", "one batch"} {
		w := newWorld(t)
		w.fund("A", in(1000, "IDR"), in(5000, "USD"))
		w.fund("B", in(0, "IDR"), in(500, "SGD"))
		w.liquidity(in(10_000, "SGD"), -1)
		w.liquidity(in(10_000, "USD"), 500)
		var calls []reserve
		for _, p := range payments {
			calls = append(calls, reserve{Payment: p, commit: true})
			switch way {
			case "two transactions":
				if got := w.mustReserve(p); got.Status == payment.Pending && !p.Manual() {
					w.mustFinish(Finish{ReservationID: got.ReservationID, Key: p.Key})
				}
			case "one":
				got := w.mustPay(p)
				if want := got.Status == payment.Committed; got.Paid != want || want != (got.Reason == payment.ReasonCommitted) {
					t.Errorf("%s: %+v", p.Key, got)
				}
				if again := w.mustPay(p); again.Paid || again.Replay || again.Claim.ReservationID != got.ReservationID || again.Status != got.Status {
					t.Errorf("%s, delivered again: %+v", p.Key, again)
				}
			case "one, after a wait for the locks":
				conn, err := w.pool.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				_, _, err = w.reserveOn(t.Context(), conn, calls[len(calls)-1:], 0, true, nil)
				conn.Release()
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if way == "one batch" {
			if _, err := w.reserveAll(t.Context(), calls); err != nil {
				t.Fatal(err)
			}
		}
		w.checkBooks()
		left[way] = w.rows()
	}
	want := left["two transactions"]
	for way, got := range left {
		if len(got) != len(want) {
			t.Errorf("%s leaves %d rows, and two transactions %d", way, len(got), len(want))
			continue
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%s leaves\n%s\nand two transactions\n%s", way, got[i], want[i])
			}
		}
	}
}

// What is decided rests on the state after the wait for a balance, not on the state before it.
func TestAPaymentIsJudgedAfterTheWait(t *testing.T) {
	for name, tc := range map[string]struct {
		deadline  time.Duration
		locked    string
		meanwhile string
		want      payment.Reason
	}{
		"the deadline passes": {1500 * time.Millisecond, "B", `SELECT pg_sleep(2) FROM balances WHERE account_id = $1`, payment.Expired},
		"the receiver is blocked": {time.Minute, "B", `UPDATE balances SET status = 'BLOCKED' WHERE account_id = $1`,
			payment.ReceiverBlocked},
		"the sender is blocked": {time.Minute, "A", `UPDATE balances SET status = 'BLOCKED' WHERE account_id = $1`, payment.SenderBlocked},
		"the receiver pays others": {time.Minute, "B", `UPDATE balances SET spent_today = spent_today + 1, started_count = started_count + 1 WHERE account_id = $1`,
			payment.ReasonCommitted},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.open(100, "A", "B", "C", "D")
			holder, err := w.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Rollback(context.Background())
			if _, err := holder.Exec(t.Context(), `UPDATE balances SET updated_at = now() WHERE account_id = $1`, tc.locked); err != nil {
				t.Fatal(err)
			}
			p := pay("k", "A", "B", 10)
			p.Deadline = time.Now().Add(tc.deadline)
			results := make(chan []batch.Result[Reserved])
			go func() {
				results <- serve(w.reserveAll)(context.Background(), []reserve{{Payment: p, commit: true}, {Payment: pay("other", "D", "C", 10), commit: true}})
			}()
			w.waitsForALock()
			if _, err := holder.Exec(t.Context(), tc.meanwhile, tc.locked); err != nil {
				t.Fatal(err)
			}
			if err := holder.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := <-results
			if got[0].Err != nil || got[0].Value.Reason != tc.want || got[0].Value.Paid != (tc.want == payment.ReasonCommitted) {
				t.Errorf("%+v, want %s", got[0], tc.want)
			}
			if got[1].Err != nil || !got[1].Value.Paid {
				t.Errorf("the other payment: %+v", got[1])
			}
			moved := int64(0)
			if tc.want == payment.ReasonCommitted {
				moved = 10
			}
			if a, b, c := w.balance("A"), w.balance("B"), w.balance("C"); a != 100-moved || b != 100+moved || c != 110 {
				t.Errorf("balances %d, %d and %d", a, b, c)
			}
		})
	}
}

// While somebody else has locked the receiver, the money is held. A commit pays it when the lock is
// gone.
func TestALockedReceiverIsPaidLater(t *testing.T) {
	w := newWorldWith(t, impatient)
	w.open(100, "A", "B", "LOCKED")
	release := w.hold(lockAccountSQL, "LOCKED")
	held := w.mustPay(pay("held", "A", "LOCKED", 10))
	if held.Status != payment.Pending || held.Paid || w.balance("A") != 90 {
		t.Fatalf("%+v; A has %d", held, w.balance("A"))
	}
	w.checkBooks()
	release()
	if again := w.mustPay(pay("held", "A", "LOCKED", 10)); again.Status != payment.Pending || again.Paid {
		t.Errorf("a key that holds money already: %+v", again)
	}
	if done := w.mustFinish(Finish{ReservationID: held.ReservationID, Key: "held"}); !done.Done || w.balance("LOCKED") != 110 {
		t.Errorf("%+v; the receiver has %d", done, w.balance("LOCKED"))
	}
}

// A batch pays out only what was there before it, so that its order does not matter.
func TestABatchDoesNotPassMoneyOn(t *testing.T) {
	w := newWorld(t)
	w.open(10, "A")
	w.open(0, "B", "C")
	got, err := w.reserveAll(t.Context(), []reserve{{Payment: pay("in", "A", "B", 10), commit: true}, {Payment: pay("out", "B", "C", 10), commit: true}})
	if err != nil || !got[0].Paid || got[1].Reason != payment.InsufficientFunds {
		t.Errorf("%+v, %v", got, err)
	}
	if got := w.mustPay(pay("next", "B", "C", 10)); !got.Paid {
		t.Errorf("%+v", got)
	}
}

// Exchanges in both directions, in batches that share senders, receivers and the house's balances, and
// that hold, pay, commit and roll back: nobody waits in a circle. A deadlock would end a transaction.
func TestExchangesNeverDeadlock(t *testing.T) {
	w := newWorld(t)
	var ids []string
	for i := range 12 {
		ids = append(ids, fmt.Sprintf("A%02d", i))
		w.fund(ids[i], in(1_000_000, "IDR"), in(1_000_000, "USD"), in(1_000_000, "SGD"))
	}
	w.liquidity(in(1_000_000, "SGD"), -1)
	w.liquidity(in(1_000_000, "USD"), -1)
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			for round := range 12 {
				var calls []reserve
				for i := range 20 {
					pair, key := rng.Perm(len(ids))[:2], fmt.Sprintf("k-%d-%d-%d", g, round, i)
					from, to := ids[pair[0]], ids[pair[1]]
					c := reserve{Payment: pay(key, from, to, 1), commit: rng.IntN(3) > 0}
					switch rng.IntN(3) {
					case 0:
						c.Payment = exchange(key, from, to, in(100, "USD"), in(133, "SGD"), 134)
					case 1:
						c.Payment = exchange(key, from, to, in(100, "SGD"), in(74, "USD"), 75)
					}
					calls = append(calls, c)
				}
				// When its decisions are outdated, reserveAll runs a batch again, and locks first.
				got, err := w.reserveAll(t.Context(), calls)
				if err != nil {
					t.Error(err)
					return
				}
				var ends []Finish
				for _, r := range got {
					if r.Status == payment.Pending {
						ends = append(ends, Finish{ReservationID: r.ReservationID})
						if rng.IntN(4) == 0 {
							ends[len(ends)-1].RollBack = payment.CommitFailed
						}
					}
				}
				if _, err := w.finishAll(t.Context(), ends); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	w.checkBooks()
}

// A run that locks first makes the missing balances before it locks others, as everybody does who locks
// an account and then its balances: an operator's change of the receiver, and another batch.
func TestNewBalancesAreMadeBeforeTheLocks(t *testing.T) {
	dollars := func(key, from string) []reserve {
		p := exchange(key, from, "B", in(7, "USD"), in(7, "USD"), 0)
		p.Exchange = payment.Exchange{}
		return []reserve{{Payment: p, commit: true}}
	}
	missing := []place{{"B", in(0, "USD").Currency}}
	world := func(t *testing.T) (*world, func(lock bool, calls ...reserve) <-chan error) {
		w := newWorld(t)
		w.fund("A", in(1000, "IDR"), in(1000, "USD"))
		w.fund("B", in(0, "IDR")) // no dollars yet
		w.fund("C", in(1000, "IDR"), in(1000, "USD"))
		return w, func(lock bool, calls ...reserve) <-chan error {
			done := make(chan error, 1)
			go func() {
				conn, err := w.pool.Acquire(context.Background())
				if err == nil {
					_, _, err = w.reserveOn(context.Background(), conn, calls, 0, lock, missing)
					conn.Release()
				}
				done <- err
			}()
			return done
		}
	}
	t.Run("a change of the receiver", func(t *testing.T) {
		w, run := world(t)
		opening, err := w.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer opening.Rollback(context.Background())
		if _, err := opening.Exec(t.Context(), lockAccountRowSQL, "B"); err != nil {
			t.Fatal(err)
		}
		paid := run(true, dollars("k", "A")...)
		w.waitsForALock()
		if _, err = openSQL.exec(t.Context(), opening, "B", "B", "IDR", 0, payment.Active, time.Now(), "x"); err == nil {
			err = opening.Commit(t.Context())
		}
		if err := errors.Join(err, <-paid); err != nil {
			t.Error(err)
		}
	})
	t.Run("another batch", func(t *testing.T) {
		w, run := world(t)
		release := w.hold(`SELECT FROM balances WHERE account_id = 'A' FOR UPDATE`)
		first := run(false, append(dollars("1", "A"), reserve{Payment: pay("2", "C", "B", 1), commit: true})...) // makes the balance
		w.waitForLocks(1)
		second := run(true, dollars("3", "C")...) // waits for it
		w.waitForLocks(2)
		release()
		if err := errors.Join(<-first, <-second); err != nil {
			t.Error(err)
		}
	})
}

// One key, asked for in both ways at the same time, pays once.
func TestBothWaysAtOncePayOnce(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	for i := range 20 {
		key := fmt.Sprint("k", i)
		paid := make(chan uuid.UUID, 8)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				p := pay(key, "A", "B", 10)
				p.AttemptID = fmt.Sprint(g)
				way := w.mustPay
				if g%2 == 0 {
					way = w.mustReserve
				}
				got := way(p)
				if got.Paid || got.Status == payment.Pending && w.mustFinish(Finish{ReservationID: got.ReservationID, Key: key}).Done {
					paid <- got.ReservationID
				}
			})
		}
		wg.Wait()
		if len(paid) != 1 || w.balance("B") != int64(1000+10*(i+1)) {
			t.Fatalf("%s was paid %d times; B has %d", key, len(paid), w.balance("B"))
		}
	}
}
