package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
	"pgregory.net/rapid"

	"pgw/shared/batch"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// world is a ledger with its own database.
type world struct {
	*Ledger
	t   testing.TB
	cfg Config
	now func() time.Time // the process's clock

	mu          sync.Mutex
	published   map[string]payment.Reason // by key: the results that sweeps have published
	failPublish error
}

// migrated is a database with the schema; on Citus a distributed schema.
var migrated = embeddedtest.Template{Prepare: Migrate, Distribute: Distribute, DistributeRows: DistributeRows}

func newWorld(t testing.TB) *world { return newWorldWith(t, func(*Config) {}) }

// newWorldWith lets a test change the usual configuration.
func newWorldWith(t testing.TB, change func(*Config)) *world {
	t.Helper()
	return newWorldOn(t, migrated.Postgres(t), change)
}

// newPlainWorld is for tests that change the schema. On Citus they need one that is not
// distributed.
func newPlainWorld(t testing.TB) *world { return newPlainWorldWith(t, func(*Config) {}) }

func newPlainWorldWith(t testing.TB, change func(*Config)) *world {
	t.Helper()
	if !embeddedtest.Citus(t) {
		return newWorldWith(t, change)
	}
	url := embeddedtest.Postgres(t)
	if err := Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	return newWorldOn(t, url, change)
}

func newWorldOn(t testing.TB, url string, change func(*Config)) *world {
	t.Helper()
	w := &world{t: t, now: time.Now, published: map[string]payment.Reason{}}
	w.cfg = Config{
		URL: url, Name: "test", BatchMax: 64, BatchLanes: 2, QueueMax: 4096, LockTimeout: time.Minute, ReadTimeout: patience,
		Now: func() time.Time { return w.now() }, Log: slog.New(slog.DiscardHandler),
	}
	change(&w.cfg)
	var err error
	if w.Ledger, err = Open(w.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.checkSum()
		if err := w.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}

// sweep runs a sweep, and records the published results.
func (w *world) sweep(ctx context.Context) (rolledBack, published int, err error) {
	swept, err := w.Sweep(ctx, func(_ context.Context, c Claim, _ time.Time) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.failPublish == nil {
			w.published[c.Key] = c.Reason
		}
		return w.failPublish
	})
	return swept.RolledBack, swept.Published, err
}

// open makes accounts with funds.
func (w *world) open(balance int64, ids ...string) {
	w.t.Helper()
	var accounts []Seed
	for _, id := range ids {
		accounts = append(accounts, Seed{Profile{AccountID: id, Owner: id, Currency: "IDR", Status: payment.Active}, []money.Amount{{Minor: balance, Currency: money.IDR}}})
	}
	if err := w.SeedAccounts(context.Background(), accounts); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) balance(id string) int64 {
	w.t.Helper()
	balance, err := w.Balance(context.Background(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return balance
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

// checkSum checks that the ledger adds up.
func (w *world) checkSum() {
	w.t.Helper()
	sum, err := ReadSum(context.Background(), w.pool)
	if err == nil {
		err = sum.Err()
	}
	if err != nil {
		w.t.Error(err)
	}
}

func pay(key, from, to string, amount int64) payment.Payment {
	return payment.Payment{
		Key: key, Sender: from, Receiver: to, AmountIDR: amount, Minor: amount, Currency: money.IDR,
		AcceptedAt: time.Now(), Deadline: time.Now().Add(payment.DecideWithin), AttemptID: key + "-1",
	}
}

func (w *world) mustReserve(r payment.Payment) Reserved {
	w.t.Helper()
	got, err := w.Reserve(context.Background(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func (w *world) mustFinish(f Finish) Finished {
	w.t.Helper()
	got, err := w.Finish(context.Background(), f)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func TestReserveCommitMovesMoneyOnce(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	held := w.mustReserve(pay("k", "A", "B", 400))
	if held.Status != payment.Pending || held.Replay || held.Balance != 600 {
		t.Fatalf("reserve: %+v", held)
	}
	if w.balance("A") != 600 || w.balance("B") != 1000 {
		t.Fatalf("held: A %d, B %d", w.balance("A"), w.balance("B"))
	}
	w.checkSum()
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID, Key: "other"}); got.Done {
		t.Fatal("committed with another key")
	}
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID, Key: "k"}); !got.Done {
		t.Fatalf("commit: %+v", got)
	}
	again := w.mustFinish(Finish{ReservationID: held.ReservationID, Key: "k"})
	if again.Done || again.Claim.Status != payment.Committed {
		t.Fatalf("second commit: %+v", again)
	}
	late := w.mustFinish(Finish{ReservationID: held.ReservationID, RollBack: payment.Expired})
	if late.Done || late.Claim.Status != payment.Committed {
		t.Fatalf("rollback after commit: %+v", late)
	}
	if w.balance("A") != 600 || w.balance("B") != 1400 {
		t.Fatalf("A %d, B %d", w.balance("A"), w.balance("B"))
	}
	// A redelivery of the same attempt is not a replay. A second attempt is one.
	if got := w.mustReserve(pay("k", "A", "B", 400)); got.Replay || got.Status != payment.Committed || got.ReservationID != held.ReservationID {
		t.Errorf("redelivered: %+v", got)
	}
	second := pay("k", "A", "B", 400)
	second.AttemptID = "k-2"
	if got := w.mustReserve(second); !got.Replay || got.ReservationID != held.ReservationID {
		t.Errorf("second attempt: %+v", got)
	}
	other := pay("k", "A", "B", 401)
	if got := w.mustReserve(other); !got.Mismatch(other) {
		t.Errorf("other amount: %+v", got)
	}
}

func TestRefusalsAreForEver(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B", "BLOCKED")
	w.exec(`UPDATE balances SET status = 'BLOCKED' WHERE account_id = 'BLOCKED'`)
	late := pay("late", "A", "B", 10)
	late.Deadline = time.Now().Add(-time.Second)
	for _, tc := range []struct {
		request payment.Payment
		want    payment.Reason
	}{
		{pay("poor", "A", "B", 101), payment.InsufficientFunds},
		{pay("who", "X", "B", 1), payment.UnknownSender},
		{pay("whom", "A", "X", 1), payment.UnknownReceiver},
		{pay("from blocked", "BLOCKED", "B", 1), payment.SenderBlocked},
		{pay("to blocked", "A", "BLOCKED", 1), payment.ReceiverBlocked},
		{pay("self", "A", "A", 1), payment.RiskSameParty},
		{late, payment.Expired},
	} {
		if got := w.mustReserve(tc.request); got.Status != payment.RolledBack || got.Reason != tc.want || got.Replay {
			t.Errorf("%s: %+v", tc.want, got)
		}
	}
	w.open(1000, "A", "X") // now there would be enough, and the account exists
	for key, want := range map[string]payment.Reason{"poor": payment.InsufficientFunds, "who": payment.UnknownSender} {
		r := pay(key, "A", "B", 101)
		if key == "who" {
			r = pay(key, "X", "B", 1)
		}
		if got := w.mustReserve(r); got.Status != payment.RolledBack || got.Reason != want {
			t.Errorf("%s, again: %+v", key, got)
		}
	}
	if w.balance("A") != 1000 || w.balance("B") != 100 {
		t.Errorf("A %d, B %d", w.balance("A"), w.balance("B"))
	}
}

func TestFundsForExactlyNofM(t *testing.T) {
	w := newWorld(t)
	const n, m = 7, 40
	w.open(n*10+5, "A")
	w.open(0, "B")
	outcomes := make(chan payment.ReservationStatus, m)
	var wg sync.WaitGroup
	for i := range m {
		wg.Go(func() { outcomes <- w.mustReserve(pay(fmt.Sprint("k", i), "A", "B", 10)).Status })
	}
	wg.Wait()
	close(outcomes)
	count := map[payment.ReservationStatus]int{}
	for s := range outcomes {
		count[s]++
	}
	if count[payment.Pending] != n || count[payment.RolledBack] != m-n || w.balance("A") != 5 {
		t.Errorf("%v; A has %d", count, w.balance("A"))
	}
}

// In one batch: a payment that is too large does not affect the smaller ones after it, a repeated
// key counts once, and values that the database refuses fail only their own call.
func TestABadMemberFailsAlone(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	w.open(money.MaxMinor, "FULL")
	calls := []reserve{
		{Payment: pay("too large", "A", "B", 1000)},
		{Payment: pay("fits", "A", "B", 60)},
		{Payment: pay("fits", "A", "B", 60)},
		{Payment: pay("too large for the rest", "A", "B", 41)},
		{Payment: pay("the rest", "A", "B", 40)},
	}
	got, err := w.reserveAll(t.Context(), calls)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []payment.ReservationStatus{payment.RolledBack, payment.Pending, payment.Pending, payment.RolledBack, payment.Pending} {
		if got[i].Status != want {
			t.Errorf("%s: %+v", calls[i].Key, got[i])
		}
	}
	if got[1].ReservationID != got[2].ReservationID || w.balance("A") != 0 {
		t.Errorf("the repeated key: %v and %v; A has %d", got[1].ReservationID, got[2].ReservationID, w.balance("A"))
	}

	// The edge checks amounts. The ledger's constraint still works when a caller bypasses the edge.
	bad := pay("bad", "B", "A", 10)
	bad.AmountIDR = -5
	results := serve(w.reserveAll)(t.Context(), []reserve{{Payment: pay("good", "B", "A", 10)}, {Payment: bad}, {Payment: pay("good too", "B", "A", 10)}})
	if results[0].Err != nil || results[2].Err != nil || results[0].Value.Status != payment.Pending || results[2].Value.Status != payment.Pending {
		t.Errorf("the neighbours: %+v, %+v", results[0], results[2])
	}
	if !postgres.BadData(results[1].Err) {
		t.Errorf("the bad one: %+v", results[1])
	}
	if w.balance("B") != 80 {
		t.Errorf("B has %d", w.balance("B"))
	}
}

func TestCommitToABlockedReceiverIsRefused(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	held := w.mustReserve(pay("k", "A", "B", 60))
	w.exec(`UPDATE balances SET status = 'BLOCKED' WHERE account_id = 'B'`)
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID}); got.Done || got.Claim.Status != payment.Pending {
		t.Fatalf("commit: %+v", got)
	}
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID, RollBack: payment.CommitFailed}); !got.Done || got.Claim.Reason != payment.CommitFailed {
		t.Fatalf("roll back: %+v", got)
	}
	if w.balance("A") != 100 || w.balance("B") != 100 {
		t.Errorf("A %d, B %d", w.balance("A"), w.balance("B"))
	}
}

func TestDailyLimit(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	w.exec(`UPDATE balances SET daily_limit = 100 WHERE account_id = 'A'`)
	first := w.mustReserve(pay("1", "A", "B", 80))
	if got := w.mustReserve(pay("2", "A", "B", 21)); got.Reason != payment.DailyLimitExceeded {
		t.Fatalf("past the limit: %+v", got)
	}
	// A hold that is rolled back does not count any more.
	w.mustFinish(Finish{ReservationID: first.ReservationID, RollBack: payment.CommitFailed})
	if got := w.mustReserve(pay("3", "A", "B", 100)); got.Status != payment.Pending {
		t.Fatalf("after the rollback: %+v", got)
	}
	// Each day has its own limit. This moves the spent amount to yesterday.
	w.exec(`UPDATE balances SET spent_day = spent_day - 1 WHERE account_id = 'A'`)
	if got := w.mustReserve(pay("4", "A", "B", 100)); got.Status != payment.Pending {
		t.Fatalf("the day after: %+v", got)
	}
}

func TestFailClosesAPaymentOut(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	ctx := t.Context()

	unseen, err := w.Fail(ctx, pay("unseen", "A", "B", 10), payment.Undeliverable)
	if err != nil || unseen.Status != payment.RolledBack || unseen.Reason != payment.Undeliverable {
		t.Errorf("unseen: %+v, %v", unseen, err)
	}
	w.mustReserve(pay("held", "A", "B", 10))
	held, err := w.Fail(ctx, pay("held", "A", "B", 10), payment.Undeliverable)
	if err != nil || held.Status != payment.RolledBack || held.Reason != payment.Undeliverable {
		t.Errorf("held: %+v, %v", held, err)
	}
	done := w.mustReserve(pay("done", "A", "B", 10))
	w.mustFinish(Finish{ReservationID: done.ReservationID})
	settled, err := w.Fail(ctx, pay("done", "A", "B", 10), payment.Undeliverable)
	if err != nil || settled.Status != payment.Committed {
		t.Errorf("settled: %+v, %v", settled, err)
	}
	if w.balance("A") != 90 || w.balance("B") != 110 {
		t.Errorf("A %d, B %d", w.balance("A"), w.balance("B"))
	}
}

func TestSweepRollsBackAndTells(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	ctx := t.Context()
	w.expire(w.mustReserve(pay("short", "A", "B", 10)).ReservationID)
	w.mustReserve(pay("long", "A", "B", 20))

	w.failPublish = context.DeadlineExceeded
	if _, _, err := w.sweep(ctx); err == nil {
		t.Fatal("a sweep that could not publish returns no error")
	}
	w.failPublish = nil
	rolledBack, published, err := w.sweep(ctx)
	if err != nil || rolledBack != 0 || published != 1 {
		t.Fatalf("second sweep: %d, %d, %v", rolledBack, published, err)
	}
	if len(w.published) != 1 || w.published["short"] != payment.Expired {
		t.Errorf("published %v", w.published)
	}
	if _, published, err := w.sweep(ctx); err != nil || published != 0 {
		t.Errorf("third sweep: %d, %v", published, err)
	}
	if w.balance("A") != 80 {
		t.Errorf("A has %d", w.balance("A"))
	}
}

func TestSweepMarkNeverPassesAHold(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	old := w.madeBefore("k", time.Hour)
	w.exec(`UPDATE reservations SET deadline = now() + interval '1 hour'`)
	if _, _, err := w.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if mark := w.mark(); mark.After(timeOf(old)) {
		t.Fatalf("the mark is at %s, past a hold", mark)
	}
	w.mustFinish(Finish{ReservationID: old})
	if _, _, err := w.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if mark := w.mark(); !mark.After(timeOf(old)) || mark.After(time.Now()) {
		t.Fatalf("the mark stays at %s", mark)
	}
}

// madeBefore holds 10 from A for B, as if this had happened a while ago.
func (w *world) madeBefore(key string, ago time.Duration) uuid.UUID {
	w.t.Helper()
	id := firstID(time.Now().Add(-ago))
	copy(id[6:], uuid.New().NodeID())
	held := w.mustReserve(pay(key, "A", "B", 10))
	w.exec(`UPDATE reservations SET reservation_id = $2, created_at = $3, deadline = $4 WHERE reservation_id = $1`,
		held.ReservationID, id, timeOf(id), timeOf(id).Add(payment.DecideWithin))
	return id
}

// expire moves a reservation's deadline into the past. It does not change a decided reservation.
func (w *world) expire(id uuid.UUID) {
	w.t.Helper()
	w.exec(`UPDATE reservations SET deadline = statement_timestamp() - interval '1 microsecond'
		WHERE reservation_id = $1 AND status = 'PENDING'`, id)
}

func (w *world) mark() (mark time.Time) {
	w.t.Helper()
	if err := w.pool.QueryRow(context.Background(), `SELECT swept_to FROM sweep_state`).Scan(&mark); err != nil {
		w.t.Fatal(err)
	}
	return mark
}

func TestCommitPastTheDeadlineIsRefused(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	held := w.mustReserve(pay("k", "A", "B", 10))
	w.expire(held.ReservationID)
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID}); got.Done {
		t.Fatal("committed past the deadline")
	}
	w.mustFinish(Finish{ReservationID: held.ReservationID, RollBack: payment.Expired})
}

// A commit that waits for the receiver's account depends on the state after the wait, not on the
// state before it.
func TestCommitIsJudgedAfterTheWait(t *testing.T) {
	for name, tc := range map[string]struct {
		deadline  time.Duration
		meanwhile string // what the holder of the lock does to the account
	}{
		"the deadline passes": {1500 * time.Millisecond, `SELECT pg_sleep(greatest(0, extract(epoch FROM deadline - clock_timestamp())) + 0.1)
			FROM reservations WHERE idempotency_key = 'k' AND receiver_id = $1`},
		"the receiver is blocked": {time.Minute, `UPDATE balances SET status = 'BLOCKED' WHERE account_id = $1`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.open(100, "A", "B", "C")
			r := pay("k", "A", "B", 10)
			r.Deadline = time.Now().Add(tc.deadline)
			held, other := w.mustReserve(r), w.mustReserve(pay("other", "A", "C", 10))
			holder, err := w.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Rollback(context.Background())
			if _, err := holder.Exec(t.Context(), `UPDATE balances SET updated_at = now() WHERE account_id = $1`, "B"); err != nil {
				t.Fatal(err)
			}
			results := make(chan []batch.Result[Finished])
			go func() {
				results <- serve(w.finishAll)(context.Background(), []Finish{{ReservationID: held.ReservationID}, {ReservationID: other.ReservationID}})
			}()
			w.waitsForALock()
			if _, err := holder.Exec(t.Context(), tc.meanwhile, "B"); err != nil {
				t.Fatal(err)
			}
			if err := holder.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := <-results
			if got[0].Err != nil || got[0].Value.Done || got[0].Value.Claim.Status != payment.Pending {
				t.Errorf("a commit that is no longer allowed: %+v", got[0])
			}
			if got[1].Err != nil || !got[1].Value.Done {
				t.Errorf("the other commit: %+v", got[1])
			}
			if b, c := w.balance("B"), w.balance("C"); b != 100 || c != 110 {
				t.Errorf("balances %d and %d", b, c)
			}
			w.mustFinish(Finish{ReservationID: held.ReservationID, RollBack: payment.CommitFailed})
		})
	}
}

// waitsForALock returns as soon as one of the world's transactions waits for a lock.
func (w *world) waitsForALock() { w.t.Helper(); w.waitForLocks(1) }

// waitingSQL is the rest of a statement that selects the transactions which wait for locks, with
// their pid. On Citus they wait on the node that has the tables.
func waitingSQL(t testing.TB) string {
	activity := `pg_stat_activity`
	if embeddedtest.Citus(t) {
		activity = `(SELECT global_pid AS pid, datname, wait_event_type FROM citus_stat_activity) a`
	}
	return activity + ` WHERE datname = current_database() AND wait_event_type = 'Lock'`
}

// waitForLocks waits until n transactions wait for locks.
func (w *world) waitForLocks(n int) {
	w.t.Helper()
	waiting := 0
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if err := w.pool.QueryRow(context.Background(), `SELECT count(*) FROM `+waitingSQL(w.t)).Scan(&waiting); err != nil {
			w.t.Fatal(err)
		}
		if waiting >= n {
			return
		}
	}
	w.t.Fatalf("%d transactions wait for locks, want %d", waiting, n)
}

// Commit, rollback and sweep run at the same time on the same reservations. Exactly one of them
// ends each reservation.
func TestOneWinner(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B", "C")
	const n = 300
	var wg sync.WaitGroup
	for i := range n {
		from, to := "A", "B"
		if i%2 == 0 {
			from, to = to, from
		}
		held := w.mustReserve(pay(fmt.Sprint("k", i), from, to, 1+int64(i)))
		wins := make([]bool, 4)
		for j := range wins {
			wg.Go(func() {
				f := Finish{ReservationID: held.ReservationID}
				if j%2 == 1 {
					f.RollBack = payment.CommitFailed
				}
				wins[j] = w.mustFinish(f).Done
			})
		}
		if i%20 == 19 {
			wg.Wait()
		}
		t.Cleanup(func() {
			won := 0
			for _, win := range wins {
				if win {
					won++
				}
			}
			if won != 1 {
				t.Errorf("reservation %d has %d winners", i, won)
			}
		})
	}
	wg.Wait()
}

// Thousands of reservations are committed around their deadlines while sweeps run all the time.
// Each is either committed or swept, and only the swept ones are published as expired. One third
// expires before its commit begins, one third at the same moment, and one third after its commit
// has ended.
func TestCommitAndSweepRace(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	const n = 3000
	ids := make([]uuid.UUID, n)
	var holding sync.WaitGroup
	for i := range n {
		holding.Go(func() { ids[i] = w.mustReserve(pay(fmt.Sprint("k", i), "A", "B", 1+int64(i%7))).ReservationID })
	}
	holding.Wait()
	// Only this test sets deadlines, however long it takes.
	w.exec(`UPDATE reservations SET deadline = statement_timestamp() + interval '1 hour'`)

	var committing, sweeping sync.WaitGroup
	stop := make(chan struct{})
	var swept atomic.Int64
	for range 2 {
		sweeping.Go(func() {
			for {
				rolledBack, _, err := w.sweep(context.Background())
				if err != nil {
					t.Error(err)
				}
				swept.Add(int64(rolledBack))
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	committed := make([]bool, n)
	gate := make(chan struct{}, 64) // the most at the same time
	for i := range n {
		gate <- struct{}{}
		committing.Go(func() {
			defer func() { <-gate }()
			var expiring sync.WaitGroup
			expire := func() { w.expire(ids[i]) }
			switch i % 3 {
			case 0:
				expire()
			case 1:
				expiring.Go(expire)
			}
			committed[i] = w.mustFinish(Finish{ReservationID: ids[i]}).Done
			if i%3 == 2 {
				expire()
			}
			expiring.Wait()
		})
	}
	committing.Wait()
	close(stop)
	sweeping.Wait()
	if rolledBack, _, err := w.sweep(t.Context()); err != nil {
		t.Fatal(err)
	} else {
		swept.Add(int64(rolledBack))
	}

	expired := map[string]bool{}
	for key, reason := range w.published {
		if reason != payment.Expired {
			t.Fatalf("published %s: %s", key, reason)
		}
		expired[key] = true
	}
	won := 0
	for i, done := range committed {
		if done {
			won++
		}
		if done == expired[fmt.Sprint("k", i)] {
			t.Errorf("reservation %d: committed %t, published as expired %t", i, done, expired[fmt.Sprint("k", i)])
		}
	}
	if int64(won)+swept.Load() != n || won < n/3 || swept.Load() < n/3 {
		t.Errorf("%d were committed and %d swept of %d: the sum must match, and each must be a third at least", won, swept.Load(), n)
	}
}

// Commit and sweep run at the same moment on one row, whatever the deadline says. Exactly one of
// them wins, in thousands of races.
func TestCommitAgainstSweepOnOneRow(t *testing.T) {
	if testing.Short() {
		t.Skip("too long for make check")
	}
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	const n = 2000
	byCommit := 0
	for i := range n {
		id := w.mustReserve(pay(fmt.Sprint("k", i), "A", "B", 1)).ReservationID
		var racing sync.WaitGroup
		var committed bool
		var swept []pgtype.UUID
		begin := make(chan struct{})
		racing.Go(func() {
			<-begin
			committed = w.mustFinish(Finish{ReservationID: id}).Done
		})
		racing.Go(func() {
			<-begin
			if embeddedtest.Rows(t) {
				time.Sleep(time.Duration(i%8) * time.Millisecond) // a commit reads there before it changes anything
			}
			var err error
			if swept, _, err = w.rollBackOverdue(context.Background(), []pgtype.UUID{pgUUID(id)}, payment.Expired); err != nil {
				t.Error(err)
			}
		})
		close(begin)
		racing.Wait()
		if committed == (len(swept) == 1) {
			t.Fatalf("reservation %d: committed %t, swept %d", i, committed, len(swept))
		}
		if committed {
			byCommit++
		}
	}
	if byCommit < n/100 || byCommit > n-n/100 {
		t.Errorf("of %d races the commit won %d: that is not a race", n, byCommit)
	}
}

// Payments in both directions between few accounts, in concurrent batches with common keys. The
// retries overcome every deadlock, and the sum is right.
func TestCrossTrafficAddsUp(t *testing.T) {
	w := newWorld(t)
	ids := []string{"A", "B", "C", "D"}
	w.open(10_000, ids...)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			for i := range 60 {
				from, to := ids[rng.IntN(4)], ids[rng.IntN(4)]
				r := pay(fmt.Sprint("k", rng.IntN(400)), from, to, 1+rng.Int64N(300))
				r.AttemptID = fmt.Sprint(g, "-", i)
				way := w.Reserve
				if rng.IntN(2) == 0 {
					way = w.ReserveAndCommit
				}
				got, err := way(t.Context(), r)
				if err != nil {
					t.Error(err)
					return
				}
				if got.Status != payment.Pending || got.Mismatch(r) {
					continue
				}
				f := Finish{ReservationID: got.ReservationID}
				if rng.IntN(4) == 0 {
					f.RollBack = payment.CommitFailed
				}
				if _, err := w.Finish(t.Context(), f); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// Large batches share accounts and reservations in every way at the same time. No transactions wait
// in a circle. Deadlocks would be retried, but each one delays all waiting calls by a second.
func TestBatchesNeverDeadlock(t *testing.T) { neverDeadlock(t, newWorld(t)) }

func neverDeadlock(t *testing.T, w *world) {
	t.Helper()
	var ids []string
	for i := range 40 {
		ids = append(ids, fmt.Sprintf("A%02d", i))
	}
	w.open(1_000_000, ids...)
	batch := func(rng *rand.Rand, prefix string) (calls []reserve) {
		for i := range 60 {
			pair := rng.Perm(len(ids))[:2]
			// Of more than are held, half are paid at once.
			calls = append(calls, reserve{Payment: pay(fmt.Sprint(prefix, i), ids[pair[0]], ids[pair[1]], 1), commit: prefix[0] == 'm' && i%2 == 0})
		}
		return calls
	}
	var wg sync.WaitGroup
	for round := range 15 {
		var held []uuid.UUID
		for i := range 2 {
			decided, err := w.reserveAll(t.Context(), batch(rand.New(rand.NewPCG(uint64(round), uint64(i))), fmt.Sprintf("held-%d-%d-", round, i)))
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range decided {
				held = append(held, d.ReservationID)
			}
		}
		for g := range 6 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(round), uint64(10+g)))
				var err error
				switch g % 3 {
				case 0:
					_, err = w.reserveAll(t.Context(), batch(rng, fmt.Sprintf("more-%d-%d-", round, g)))
				case 1, 2: // both use each reservation: some commit it and some roll it back
					var calls []Finish
					for _, i := range rng.Perm(len(held)) {
						f := Finish{ReservationID: held[i]}
						if rng.IntN(4) == 0 {
							f.RollBack = payment.CommitFailed
						}
						calls = append(calls, f)
					}
					_, err = w.finishAll(t.Context(), calls)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

// Compares the ledger with a simple model, for any sequence of reserve, commit and rollback in
// batches, and of payments that are both at once.
func TestLedgerAgainstModel(t *testing.T) {
	w := newWorld(t)
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		name := func(id string) string { return fmt.Sprintf("%s%d", id, round) }
		ids := []string{"A", "B", "C"}
		balances := map[string]int64{}
		for _, id := range ids {
			balances[id] = rapid.Int64Range(0, 500).Draw(t, "balance")
			w.open(balances[id], name(id))
		}
		type held struct {
			id       uuid.UUID
			from, to string
			amount   int64
			status   payment.ReservationStatus
		}
		claims := map[string]*held{}
		var order []*held
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "reserve") || len(order) == 0 {
				var calls []reserve
				for range rapid.IntRange(1, 5).Draw(t, "batch") {
					from, to := rapid.SampledFrom(ids).Draw(t, "from"), rapid.SampledFrom(ids).Draw(t, "to")
					key := fmt.Sprintf("k%d-%d", round, rapid.IntRange(0, 8).Draw(t, "key"))
					calls = append(calls, reserve{
						Payment: pay(key, name(from), name(to), rapid.Int64Range(1, 300).Draw(t, "amount")), commit: rapid.Bool().Draw(t, "commit"),
					})
				}
				got, err := w.reserveAll(context.Background(), calls)
				if err != nil {
					t.Fatal(err)
				}
				brought := map[string]int64{} // a batch does not pass on what it brings
				for i, c := range calls {
					h, seen := claims[c.Key]
					if !seen {
						h = &held{id: got[i].ReservationID, from: c.Sender, to: c.Receiver, amount: c.AmountIDR, status: payment.RolledBack}
						sender := c.Sender[:1]
						if c.Sender != c.Receiver && balances[sender] >= c.AmountIDR {
							balances[sender] -= c.AmountIDR
							h.status = payment.Pending
							if c.commit {
								h.status = payment.Committed
								brought[h.to[:1]] += h.amount
							}
						}
						claims[c.Key] = h
						order = append(order, h)
					}
					if got[i].Status != h.status || got[i].ReservationID != h.id {
						t.Fatalf("%s: ledger says %s %s, model %s %s", c.Key, got[i].Status, got[i].ReservationID, h.status, h.id)
					}
				}
				for id, amount := range brought {
					balances[id] += amount
				}
				continue
			}
			h := rapid.SampledFrom(order).Draw(t, "finish")
			f := Finish{ReservationID: h.id}
			if rapid.Bool().Draw(t, "roll back") {
				f.RollBack = payment.CommitFailed
			}
			got, err := w.finishAll(context.Background(), []Finish{f, f})
			if err != nil {
				t.Fatal(err)
			}
			if got[0].Done != (h.status == payment.Pending) || got[1].Done {
				t.Fatalf("finish of a %s reservation: %+v", h.status, got)
			}
			if h.status == payment.Pending {
				h.status = payment.Committed
				balances[h.to[:1]] += h.amount
				if f.RollBack != "" {
					h.status = payment.RolledBack
					balances[h.to[:1]] -= h.amount
					balances[h.from[:1]] += h.amount
				}
			}
		}
		for id, want := range balances {
			if got := w.balance(name(id)); got != want {
				t.Fatalf("%s has %d, model %d", id, got, want)
			}
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A", "B")
	// A lock on the sender blocks the only lane.
	w.cfg.BatchLanes, w.cfg.BatchMax, w.cfg.QueueMax = 1, 1, 1
	small, err := Open(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close(context.Background())
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM wallet_accounts WHERE account_id = 'A' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	full := make(chan error, 8)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := small.Reserve(context.Background(), pay(fmt.Sprint(i), "A", "B", 1)); err != nil {
				full <- err
			}
		})
	}
	if err := <-full; !errors.Is(err, ErrFull) {
		t.Errorf("beyond the queue: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

// The check itself must find errors.
func TestSumSeesWhatIsOff(t *testing.T) {
	for name, break_ := range map[string]string{
		"a balance changed by hand":     `UPDATE balances SET available = available + 1 WHERE account_id = 'A'`,
		"two balances that cancel out":  `UPDATE balances SET available = available + CASE account_id WHEN 'A' THEN 1 ELSE -1 END WHERE account_id IN ('A', 'B')`,
		"a payment deleted":             `DELETE FROM payments`,
		"an outcome turned":             `UPDATE payments SET status = 'FAILED', reason = 'expired'`,
		"a reservation deleted":         `DELETE FROM reservations`,
		"a hold that was never taken":   `UPDATE reservations SET status = 'ROLLEDBACK'`,
		"a funding deleted":             `DELETE FROM transfers WHERE account_id = 'A'`,
		"another amount":                `UPDATE payments SET amount_idr = amount_idr + 1`,
		"a payment of another's key":    `UPDATE payments SET idempotency_key = 'other'`,
		"funds for nobody's account":    `DELETE FROM transfers WHERE account_id = 'B'`,
		"a reservation opened up again": `UPDATE reservations SET status = 'PENDING'`,
	} {
		t.Run(name, func(t *testing.T) {
			if embeddedtest.Rows(t) && name == "a payment of another's key" {
				t.Skip("Citus refuses to change the column by which rows are distributed")
			}
			w := newWorld(t)
			w.open(100, "A", "B")
			w.mustFinish(Finish{ReservationID: w.mustReserve(pay("k", "A", "B", 10)).ReservationID})
			w.checkSum()
			tx, err := w.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.Background())
			if _, err := tx.Exec(t.Context(), break_); err != nil {
				t.Fatal(err)
			}
			sum, err := ReadSum(t.Context(), tx)
			if err != nil {
				t.Fatal(err)
			}
			if sum.Err() == nil {
				t.Errorf("not found: %+v", sum)
			}
			accounts, err := ReadAccountsOff(t.Context(), tx, 10)
			if err != nil || int64(len(accounts)) != sum.AccountsOff {
				t.Errorf("listed %+v, %v; counted %d", accounts, err, sum.AccountsOff)
			}
			outcomes, err := ReadOutcomesOff(t.Context(), tx, 10)
			if err != nil || int64(len(outcomes)) != sum.OutcomesOff+sum.KeysUnclaimed {
				t.Errorf("listed %+v, %v; counted %d and %d", outcomes, err, sum.OutcomesOff, sum.KeysUnclaimed)
			}
		})
	}
}

// Simultaneous payments can't exceed the rules' limit per minute, because they are counted while
// the sender is locked.
func TestVelocityIsEnforcedWhereItIsCounted(t *testing.T) {
	w := newWorld(t)
	w.open(1_000, "A", "B")
	put := func(rules string) error {
		_, err := w.PutRules(t.Context(), []byte(rules), "", Order{})
		return err
	}
	if err := put(`{"velocity_per_min":3}`); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	reasons := make([]payment.Reason, 100)
	for i := range reasons {
		all.Go(func() { reasons[i] = w.mustReserve(pay(fmt.Sprint("k", i), "A", "B", 1)).Reason })
	}
	all.Wait()
	held := 0
	for _, reason := range reasons {
		switch reason {
		case "":
			held++
		case payment.RiskVelocity:
		default:
			t.Errorf("refused for %s", reason)
		}
	}
	var most, refused int
	if err := w.pool.QueryRow(t.Context(), `SELECT max(n) FROM (
		SELECT count(*) AS n FROM reservations WHERE status = 'PENDING' GROUP BY floor(extract(epoch FROM created_at) / 60)) m`).Scan(&most); err != nil || most > 3 {
		t.Errorf("%d in one minute, %v", most, err)
	}
	if err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM payments WHERE status = 'FAILED' AND reason = 'risk_velocity'`).Scan(&refused); err != nil || refused != 100-held {
		t.Errorf("%d refusals are recorded, of %d: %v", refused, 100-held, err)
	}
	if held < 3 || w.balance("A") != int64(1_000-held) {
		t.Errorf("%d are held, and A has %d", held, w.balance("A"))
	}
	if r := w.mustReserve(pay("other", "B", "A", 1)); r.Reason != "" {
		t.Errorf("another sender: %s", r.Reason)
	}
	if err := put(`{"velocity_per_min":0}`); err != nil {
		t.Fatal(err)
	}
	if r := w.mustReserve(pay("no limit", "A", "B", 1)); r.Reason != "" {
		t.Errorf("without a limit: %s", r.Reason)
	}
}

// Pure: counts payments of the batch, and earlier payments of the same minute.
func TestVelocityByTheMinute(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 59, 0, time.UTC)
	s := &balance{Balance: payment.Balance{Available: 100}}
	try := func(at time.Time, velocity uint32) payment.Reason {
		r := pay("k", "A", "B", 10)
		r.Deadline = at
		return state{
			balances: map[place]*balance{{"A", money.IDR}: s}, now: at,
			accounts: map[string]payment.AccountStatus{"A": payment.Active, "B": payment.Active},
		}.hold(r, newID(), velocity)
	}
	for i, want := range []payment.Reason{"", "", payment.RiskVelocity, payment.RiskVelocity} {
		if got := try(now, 2); got != want {
			t.Errorf("%d: %q", i, got)
		}
	}
	if s.Available != 80 || s.SpentToday != 20 || s.started != 2 {
		t.Errorf("a refusal changed the account: %+v", s)
	}
	if got := try(now.Add(time.Second), 2); got != "" || s.started != 1 {
		t.Errorf("in the next minute: %q, %+v", got, s)
	}
	s.Available = 0
	if got := try(now.Add(time.Second), 1); got != payment.InsufficientFunds {
		t.Errorf("too little money, and too fast: %q", got)
	}
}

// pgw's own accounts pay nobody, and only holds are paid to them, even if a payment bypasses the
// checks at the edge.
func TestTheHousesAccountsTakeNoPartInPayments(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A")
	w.exec(`UPDATE balances SET available = 100 WHERE account_id = 'LIQUIDITY'`)
	defer w.exec(`UPDATE balances SET available = 0 WHERE account_id = 'LIQUIDITY'`)
	for name, tc := range map[string]struct {
		key, from, to string
		want          payment.Reason
	}{
		"from one":         {"k1", payment.LiquidityAccount, "A", payment.UnknownSender},
		"to one":           {"k2", "A", payment.LiquidityAccount, payment.UnknownReceiver},
		"to the house":     {"k3", "A", payment.SettlementAccount, payment.UnknownReceiver},
		"from the house":   {"k4", payment.SettlementAccount, "A", payment.UnknownSender},
		"a hold":           {"wallet:1", "A", payment.SettlementAccount, payment.Authorized},
		"a hold of its":    {"wallet:2", payment.LiquidityAccount, payment.SettlementAccount, payment.UnknownSender},
		"a hold for other": {"wallet:3", "A", payment.LiquidityAccount, payment.UnknownReceiver},
	} {
		if got := w.mustReserve(pay(tc.key, tc.from, tc.to, 10)).Reason; got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// Rules that risk could not use are not stored.
func TestRulesAreValidatedBeforeTheyAreKept(t *testing.T) {
	w := newWorld(t)
	for _, bad := range []string{`null`, `[]`, `{"max_amount_idr":"x"}`, `{"velocity_per_min":-1}`, `{"min_amount_idr":5,"max_amount_idr":4}`, `{"blocked_accounts":["\u0000"]}`} {
		var invalid *InvalidError
		if _, err := w.PutRules(t.Context(), []byte(bad), "", Order{}); !errors.As(err, &invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
