package ledger

import (
	"testing"

	"pgw/shared/payment"
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
