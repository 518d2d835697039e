package ledger

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
)

// The ledger adds up in each snapshot while payments and refused payments go on. The payments go
// through one receiver, so that each changes several balances.
func TestTheLedgerAddsUpWhilePaymentsGoOn(t *testing.T) {
	w := newWorld(t)
	accounts := []string{"A", "B", "C", "D", "E", "F"}
	w.open(10_000, accounts...)
	ctx, stop := context.WithCancel(t.Context())
	paid := make(chan int, len(accounts))
	for i, from := range accounts {
		go func() {
			n := 0
			defer func() { paid <- n }()
			for ; ctx.Err() == nil; n++ {
				to := accounts[(i+1+n%(len(accounts)-1))%len(accounts)]
				got, err := w.Reserve(context.Background(), pay(fmt.Sprint(from, n), from, to, int64(1+n%7)))
				if err == nil && n%3 > 0 {
					_, err = w.Finish(context.Background(), Finish{ReservationID: got.ReservationID})
				} else if err == nil {
					_, err = w.Finish(context.Background(), Finish{ReservationID: got.ReservationID, RollBack: "commit_failed"})
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	snapshots := 0
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until) || snapshots < 10; snapshots++ {
		if err := func() error {
			conn, err := w.pool.Acquire(t.Context())
			if err != nil {
				return err
			}
			defer conn.Release()
			tx, err := BeginSnapshot(t.Context(), conn.Conn())
			if err != nil {
				return err
			}
			defer tx.Rollback(context.Background())
			time.Sleep(10 * time.Millisecond) // more is committed before it is read
			sum, err := ReadSum(t.Context(), tx)
			if err == nil {
				err = sum.Err()
			}
			if err != nil {
				return err
			}
			trial, err := ReadTrialBalance(t.Context(), tx)
			if err == nil {
				err = trial.Err()
			}
			return err
		}(); err != nil {
			t.Errorf("snapshot %d: %v", snapshots, err)
			break
		}
	}
	stop()
	payments := 0
	for range accounts {
		payments += <-paid
	}
	t.Logf("%d snapshots, %d payments", snapshots, payments)
	w.checkBooks()
}

// On distributed rows a snapshot begins when nothing is under way that moves money.
func TestASnapshotWaitsForWhatIsUnderWay(t *testing.T) {
	if !embeddedtest.Rows(t) {
		t.Skip("one server has one snapshot")
	}
	w := newWorld(t)
	release := make(chan struct{})
	moved := make(chan error, 1)
	go func() {
		moved <- w.begin(context.Background(), func(pgx.Tx) error { <-release; return nil })
	}()
	eventually(t, "a transaction that moves money has its lock", func() error {
		held, err := w.movesHeld()
		if err == nil && held == 0 {
			err = errors.New("none has it")
		}
		return err
	})
	begun := make(chan error, 1)
	go func() {
		conn, err := w.pool.Acquire(context.Background())
		if err != nil {
			begun <- err
			return
		}
		defer conn.Release()
		tx, err := BeginSnapshot(context.Background(), conn.Conn())
		if err == nil {
			err = tx.Rollback(context.Background())
		}
		begun <- err
	}()
	w.waitsForALock()
	select {
	case err := <-begun:
		t.Errorf("the snapshot began, %v", err)
	default:
	}
	close(release)
	if err := errors.Join(<-moved, <-begun); err != nil {
		t.Error(err)
	}
}

// movesHeld counts the transactions that move money.
func (w *world) movesHeld() (n int, err error) {
	err = w.pool.QueryRow(context.Background(), `
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 21 AND objid = hashtext(current_schema())::oid AND mode = 'ShareLock' AND granted`).Scan(&n)
	return n, err
}
