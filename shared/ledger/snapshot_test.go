package ledger

import (
	"context"
	"fmt"
	"testing"
	"time"
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
