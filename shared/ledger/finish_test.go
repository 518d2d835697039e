package ledger

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// Two attempts of one payment may end it at the same moment, so both calls can be in one batch. Each
// of them hears what it would hear alone: a refused commit does not keep the rollback from ending the
// reservation, and a call with a wrong key does not keep the right one from committing it.
func TestCallsForOneReservationInOneBatch(t *testing.T) {
	commit := func(h Reserved, key string) Finish { return Finish{ReservationID: h.ReservationID, Key: key} }
	rollBack := func(h Reserved, reason payment.Reason) Finish {
		return Finish{ReservationID: h.ReservationID, RollBack: reason}
	}
	for name, c := range map[string]struct {
		block bool // the receiver, so that a commit is refused
		calls func(held Reserved) []Finish
		done  []bool
		ends  payment.ReservationStatus
	}{
		"a refused commit, then a rollback": {
			block: true, done: []bool{false, true}, ends: payment.RolledBack,
			calls: func(h Reserved) []Finish { return []Finish{commit(h, "k"), rollBack(h, payment.CommitFailed)} },
		},
		"a rollback, then a refused commit": {
			block: true, done: []bool{true, false}, ends: payment.RolledBack,
			calls: func(h Reserved) []Finish { return []Finish{rollBack(h, payment.CommitFailed), commit(h, "k")} },
		},
		"a commit, then a rollback": {
			done: []bool{true, false}, ends: payment.Committed,
			calls: func(h Reserved) []Finish { return []Finish{commit(h, "k"), rollBack(h, payment.Expired)} },
		},
		"a wrong key, then the right one": {
			done: []bool{false, true}, ends: payment.Committed,
			calls: func(h Reserved) []Finish { return []Finish{commit(h, "other"), commit(h, "k")} },
		},
		"equal commits": {
			done: []bool{true, false}, ends: payment.Committed,
			calls: func(h Reserved) []Finish { return []Finish{commit(h, "k"), commit(h, "k")} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			for how, finish := range map[string]func(*world, []Finish) []Finished{
				"waiting for locks": func(w *world, calls []Finish) []Finished {
					got, err := w.finishAll(t.Context(), calls)
					if err != nil {
						t.Fatal(err)
					}
					return got
				},
				"around locks": func(w *world, calls []Finish) (got []Finished) {
					results, err := w.finishFree(t.Context(), calls)
					if err != nil {
						t.Fatal(err)
					}
					for _, r := range results {
						if r.Err != nil {
							t.Fatal(r.Err)
						}
						got = append(got, r.Value)
					}
					return got
				},
			} {
				t.Run(how, func(t *testing.T) {
					w := newWorld(t)
					w.open(100, "A", "B")
					held := w.mustReserve(pay("k", "A", "B", 10))
					if c.block {
						w.exec(`UPDATE balances SET status = 'BLOCKED' WHERE account_id = 'B'`)
					}
					for i, got := range finish(w, c.calls(held)) {
						if got.Done != c.done[i] || got.Claim.ReservationID != held.ReservationID {
							t.Errorf("call %d: %+v, want done %v", i, got, c.done[i])
						}
						if got.Claim.Status != c.ends {
							t.Errorf("call %d hears %s, want %s", i, got.Claim.Status, c.ends)
						}
					}
				})
			}
		})
	}
}

// loser is a pool whose rollbacks lose against another transaction once.
type loser struct {
	*pgxpool.Pool
	lost bool
}

func (l *loser) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if len(args) > 0 && args[0] == rollBackSQL && !l.lost {
		l.lost = true
		return nil, &pgconn.PgError{Code: "40P01", Message: "deadlock detected"}
	}
	return l.Pool.Query(ctx, sql, args...)
}

// The commits of a batch are a transaction of their own. They stay this batch's doing when its rollbacks
// have to run again.
func TestABatchKnowsWhatItHasCommittedBeforeADeadlock(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	calls := []Finish{
		{ReservationID: w.mustReserve(pay("committed", "A", "B", 10)).ReservationID},
		{ReservationID: w.mustReserve(pay("rolled back", "A", "B", 10)).ReservationID, RollBack: payment.CallerRolledBack},
	}
	q := &loser{Pool: w.pool}
	got, err := finishOn(t.Context(), q, calls, byCall, again(t.Context(), asItIs))
	if err != nil || !q.lost {
		t.Fatalf("lost %t, %v", q.lost, err)
	}
	if !got[0].Done || got[0].Claim.Status != payment.Committed || !got[1].Done || got[1].Claim.Status != payment.RolledBack {
		t.Errorf("%+v", got)
	}
	w.checkCounters()
}

// A transaction that always loses is tried maxTries times, and not again for each try of its batch.
func TestALosingBatchIsTriedSoManyTimes(t *testing.T) {
	if embeddedtest.Citus(t) {
		t.Skip("Citus allows no such trigger")
	}
	w := newWorld(t)
	w.open(1000, "A", "B")
	held := w.mustReserve(pay("k", "A", "B", 10))
	w.exec(`CREATE SEQUENCE tries`)
	w.exec(`CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM nextval('tries'); RAISE 'deadlock detected' USING ERRCODE = '40P01'; END $$`)
	w.exec(`CREATE TRIGGER lose BEFORE UPDATE ON reservations FOR EACH ROW EXECUTE FUNCTION lose()`)
	got := serve(w.finishAll)(t.Context(), []Finish{{ReservationID: held.ReservationID}})
	if !postgres.Transient(got[0].Err) {
		t.Errorf("%+v", got)
	}
	var tries int
	if err := w.pool.QueryRow(t.Context(), `SELECT last_value FROM tries`).Scan(&tries); err != nil || tries != maxTries {
		t.Errorf("%d tries, want %d: %v", tries, maxTries, err)
	}
	w.exec(`DROP TRIGGER lose ON reservations`)
	w.mustFinish(Finish{ReservationID: held.ReservationID})
	w.checkBooks()
}
