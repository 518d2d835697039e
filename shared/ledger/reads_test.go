package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgw/shared/payment"
)

const patience = time.Minute

func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// Payments are settled and single payments are read, however many lists are stuck. When the clients
// of the lists hang up, the database has no more queries of theirs.
func TestListsDoNotHoldUpPayments(t *testing.T) {
	w := newPlainWorldWith(t, func(cfg *Config) { cfg.ReadTimeout = time.Hour })
	w.open(1_000_000, "A", "B")
	watch := connect(t, w.cfg.URL)
	// Each row makes a list slower than its time limit.
	if _, err := watch.Exec(t.Context(), `
		ALTER TABLE reservations RENAME TO reservations_kept;
		CREATE VIEW reservations AS SELECT * FROM reservations_kept
		WHERE CASE WHEN current_query() LIKE '%ORDER BY r.reservation_id DESC%' THEN pg_sleep(60) IS NOT NULL ELSE true END`); err != nil {
		t.Fatal(err)
	}
	reserve := func(key string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		got, err := w.Reserve(ctx, pay(key, "A", "B", 10))
		if err != nil || got.Status != payment.Pending {
			t.Fatalf("payment %s: %+v, %v", key, got, err)
		}
	}
	reserve("first")
	listing, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	ended := make(chan error)
	const lists = 300
	for range lists {
		go func() {
			_, _, err := w.Payments(listing, Search{Limit: 20, Before: Newest, Account: "A"})
			ended <- err
		}()
	}
	stuck := func() (n int) {
		if err := watch.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'PgSleep'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "lists wait at the database", func() error {
		if n := stuck(); n < maxLists {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
	for i := range 20 {
		reserve(fmt.Sprint("k", i))
	}
	if got, err := w.Balance(t.Context(), "A"); err != nil || got < 1 {
		t.Errorf("the read of a single payment: %v, %v", got, err)
	}
	if n := stuck(); n > maxLists {
		t.Errorf("%d lists are at the database; at most %d may be", n, maxLists)
	}
	hangUp()
	for range lists {
		err := <-ended
		if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrFull) {
			t.Errorf("a list: %v", err)
		}
	}
	eventually(t, "what nobody waits for is cancelled", func() error {
		if n := stuck(); n > 0 {
			return fmt.Errorf("%d lists are still at the database", n)
		}
		return nil
	})
	if _, err := watch.Exec(t.Context(), `DROP VIEW reservations; ALTER TABLE reservations_kept RENAME TO reservations`); err != nil {
		t.Fatal(err)
	}
	if got, _, err := w.Payments(t.Context(), Search{Limit: 100, Before: Newest, Account: "A"}); err != nil || len(got) != 21 {
		t.Errorf("a list afterwards: %v, %v", got, err)
	}
}

// The number of waiting reads is limited.
func TestReadsThatWaitAreBounded(t *testing.T) {
	const most = 5
	r := newReaders(2, most, patience)
	block := make(chan struct{})
	ended := make(chan error)
	for range most {
		go func() {
			ended <- r.run(t.Context(), func(context.Context) error {
				<-block
				return nil
			})
		}()
	}
	eventually(t, "as many as may be are there", func() error {
		if n := r.there.Load(); n < most {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	err := r.run(t.Context(), func(context.Context) error { return errors.New("was run") })
	if !errors.Is(err, ErrFull) {
		t.Errorf("one more: %v", err)
	}
	close(block)
	for range most {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if err := r.run(t.Context(), func(context.Context) error { return nil }); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Payments that are read at the same time are read together, and each reader gets its own. One that can't
// be read fails alone.
func TestPaymentsAreReadTogether(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	const payments = 40
	for i := range payments {
		if _, err := w.Reserve(t.Context(), pay(fmt.Sprint("k", i), "A", "B", int64(i+1))); err != nil {
			t.Fatal(err)
		}
	}
	broken := "k0"
	w.exec(`UPDATE reservations SET currency_input = '???' WHERE idempotency_key = $1`, broken)
	read := func(key string) (payment.Record, error) {
		return w.Payment(t.Context(), payment.ScopedKey{Key: key})
	}
	var readers sync.WaitGroup
	for i := range 3 * payments {
		readers.Go(func() {
			i = i % (2 * payments) // of half of the keys there is no payment
			key := fmt.Sprint("k", i)
			got, err := read(key)
			switch {
			case i >= payments:
				if !errors.Is(err, ErrNotFound) {
					t.Errorf("%s: %+v, %v", key, got, err)
				}
			case key == broken:
				if err == nil || errors.Is(err, ErrNotFound) {
					t.Errorf("%s can't be read: %+v, %v", key, got, err)
				}
			case err != nil || got.Key != key || got.AmountIDR != int64(i+1):
				t.Errorf("%s: %+v, %v", key, got, err)
			}
		})
	}
	readers.Wait()

	// One batch has them all, however the calls arrive.
	keys := []string{"k1", "nothing", broken, "k2"}
	var finds []find
	for _, key := range keys {
		finds = append(finds, find{paymentSQL, []any{key, "", false}})
	}
	for i, got := range together(w.reads.pool, nil, find.queue)(t.Context(), finds) {
		switch found := got.Value; keys[i] {
		case broken:
			if got.Err == nil {
				t.Errorf("in one batch, %s: %+v", keys[i], found)
			}
		case "nothing":
			if found != nil || got.Err != nil {
				t.Errorf("in one batch, %s: %+v, %v", keys[i], found, got.Err)
			}
		default:
			if got.Err != nil || found == nil || found.Key != keys[i] {
				t.Errorf("in one batch, %s: %+v, %v", keys[i], found, got.Err)
			}
		}
	}

	hungUp, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Payment(hungUp, payment.ScopedKey{Key: "k1"}); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that has hung up: %v", err)
	}
	// A broken payment would fail the checks that end the test.
	w.exec(`UPDATE reservations SET currency_input = 'IDR' WHERE idempotency_key = $1`, broken)
}
