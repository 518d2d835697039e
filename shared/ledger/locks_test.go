package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// hold locks rows for as long as the test needs, as a person does who runs SELECT … FOR UPDATE and
// leaves the session open.
func (w *world) hold(sql string, args ...any) (release func()) {
	w.t.Helper()
	tx, err := w.pool.Begin(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	// A person's session has none of pgw's time limits.
	if _, err := tx.Exec(context.Background(), `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
		w.t.Fatal(err)
	}
	if _, err := tx.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
	release = sync.OnceFunc(func() { tx.Rollback(context.Background()) })
	w.t.Cleanup(release)
	return release
}

// impatient sets the lock timeout of production. The other tests must not reach a lock timeout on a
// busy machine.
func impatient(cfg *Config) { cfg.LockTimeout = 700 * time.Millisecond }

const lockAccountSQL = `SELECT FROM wallet_accounts WHERE account_id = $1 FOR UPDATE`

// One reserve of a batch needs a locked account. The other reserves are held. Only this one is put
// off, and it is held after the lock is gone.
func TestALockedSenderIsPutOffAlone(t *testing.T) {
	w := newWorldWith(t, impatient)
	w.open(100, "A", "B", "LOCKED")
	replayed := w.mustReserve(pay("before", "LOCKED", "B", 10))
	release := w.hold(lockAccountSQL, "LOCKED")
	var calls []reserve
	for i := range 20 {
		calls = append(calls, reserve{Payment: pay(fmt.Sprint("k", i), "A", "B", 1)})
	}
	calls = append(calls, reserve{Payment: pay("waits", "LOCKED", "B", 1)}, reserve{Payment: pay("waits too", "LOCKED", "B", 1)},
		reserve{Payment: pay("before", "LOCKED", "B", 10)}, reserve{Payment: pay("nobody", "X", "B", 1)})
	results := servePatiently(w.Ledger, serve(w.reserveAll), w.reserveFree)(t.Context(), calls)
	for i, r := range results[:20] {
		if r.Err != nil || r.Value.Status != payment.Pending {
			t.Errorf("another sender, %d: %+v", i, r)
		}
	}
	for _, r := range results[20:22] {
		if !errors.Is(r.Err, ErrLocked) {
			t.Errorf("on the locked account: %+v", r)
		}
	}
	if r := results[22]; r.Err != nil || r.Value.ReservationID != replayed.ReservationID {
		t.Errorf("a known key of the locked account: %+v", r)
	}
	if r := results[23]; r.Err != nil || r.Value.Reason != payment.UnknownSender {
		t.Errorf("an account that does not exist: %+v", r)
	}
	if got, err := w.Fail(t.Context(), pay("refused", "LOCKED", "B", 1), payment.Undeliverable); err != nil || got.Reason != payment.Undeliverable {
		t.Errorf("a refusal, which needs no account: %+v, %v", got, err)
	}
	release()
	if got := w.mustReserve(pay("waits", "LOCKED", "B", 1)); got.Status != payment.Pending {
		t.Errorf("once the lock is gone: %+v", got)
	}
	if w.balance("A") != 80 {
		t.Errorf("A has %d", w.balance("A"))
	}
}

// Commits, rollbacks and the sweep do not wait for other sessions' locks either, whether the
// account or the reservation is locked.
func TestALockedFinishIsPutOffAlone(t *testing.T) {
	for name, lock := range map[string]string{
		"the account":     `SELECT FROM wallet_accounts WHERE account_id = 'LOCKED' FOR UPDATE`,
		"the reservation": `SELECT FROM reservations WHERE 'LOCKED' IN (sender_id, receiver_id) FOR UPDATE`,
	} {
		t.Run(name, func(t *testing.T) {
			if name == "the reservation" && embeddedtest.Rows(t) {
				t.Skip("Citus refuses to lock rows of several shards in this way")
			}
			w := newWorldWith(t, impatient)
			w.open(100, "A", "B", "LOCKED")
			var calls []Finish
			add := func(key, from, to string, reason payment.Reason) {
				calls = append(calls, Finish{ReservationID: w.mustReserve(pay(key, from, to, 1)).ReservationID, RollBack: reason})
			}
			for i := range 10 {
				add(fmt.Sprint("c", i), "A", "B", "")
				add(fmt.Sprint("r", i), "A", "B", payment.CommitFailed)
			}
			add("to locked", "A", "LOCKED", "")
			add("from locked", "LOCKED", "B", payment.CommitFailed)
			done := w.mustReserve(pay("done", "A", "B", 1))
			w.mustFinish(Finish{ReservationID: done.ReservationID})
			calls = append(calls, Finish{ReservationID: done.ReservationID}, Finish{ReservationID: newID()})
			release := w.hold(lock)
			run := servePatiently(w.Ledger, serve(w.finishAll), w.finishFree)
			results := run(t.Context(), calls)
			for i, r := range results[:20] {
				if r.Err != nil || !r.Value.Done {
					t.Errorf("another account, %d: %+v", i, r)
				}
			}
			for _, r := range results[20:22] {
				if !errors.Is(r.Err, ErrLocked) {
					t.Errorf("the locked one: %+v", r)
				}
			}
			if r := results[22]; r.Err != nil || r.Value.Done || r.Value.Claim.Status != payment.Committed {
				t.Errorf("one that ended before: %+v", r)
			}
			if r := results[23]; r.Err != nil || r.Value.Done || r.Value.Claim.Status != "" {
				t.Errorf("one that does not exist: %+v", r)
			}

			w.exec(`UPDATE reservations SET deadline = now() - interval '1 second' WHERE idempotency_key = 'overdue'`)
			late := w.mustReserve(pay("overdue", "A", "B", 1))
			w.exec(`UPDATE reservations SET deadline = now() - interval '1 second' WHERE reservation_id = $1`, late.ReservationID)
			if name == "the account" { // a person's lock on the reservation would block this test's own update
				w.exec(`UPDATE reservations SET deadline = now() - interval '1 second' WHERE idempotency_key = 'from locked'`)
			}
			if rolledBack, _, err := w.sweep(t.Context()); err != nil || rolledBack != 1 {
				t.Errorf("swept %d, %v", rolledBack, err)
			}
			release()
			for i, r := range run(t.Context(), calls[20:22]) {
				if r.Err != nil || (!r.Value.Done && !r.Value.Overdue && i == 0) {
					t.Errorf("once the lock is gone: %+v", r)
				}
			}
		})
	}
}

// An open transaction has claimed a key. The other calls of the batch are held, and only the call
// with this key is put off.
func TestALockedKeyIsPutOffAlone(t *testing.T) {
	w := newWorldWith(t, impatient)
	w.open(100, "A", "B")
	release := w.hold(`INSERT INTO reservations (reservation_id, idempotency_key, fingerprint, sender_id, receiver_id, amount_idr, currency_input, status, deadline)
VALUES (gen_random_uuid(), 'k3', '\x00112233445566778899aabbccddeeff', 'C', 'B', 1, 'IDR', 'ROLLEDBACK', now())`)
	var calls []reserve
	for i := range 8 {
		calls = append(calls, reserve{Payment: pay(fmt.Sprint("k", i), "A", "B", 1)})
	}
	for i, r := range servePatiently(w.Ledger, serve(w.reserveAll), w.reserveFree)(t.Context(), calls) {
		if i == 3 {
			locked := postgres.LockTimeout(r.Err)
			if embeddedtest.Rows(t) {
				locked = errors.Is(r.Err, ErrLocked) // a call that waits for anything is put off
			}
			if !locked {
				t.Errorf("the claimed key: %+v", r)
			}
		} else if r.Err != nil || r.Value.Status != payment.Pending {
			t.Errorf("another key: %+v", r)
		}
	}
	release()
	if got := w.mustReserve(pay("k3", "A", "B", 1)); got.Status != payment.Pending {
		t.Errorf("once the lock is gone: %+v", got)
	}
}
