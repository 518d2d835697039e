package db

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/function"
)

const patience = time.Minute

// wholeDB gives a whole db with one account A and B each, and the database's URL.
func wholeDB(t *testing.T) (dbv1.DbClient, string) {
	t.Helper()
	url := embeddedtest.Postgres(t)
	if err := Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	cfg := Config{DatabaseURL: url, BatchMax: 64, BatchLanes: 2, QueueMax: 4096, readWithin: time.Hour}
	if err := cfg.Keys.Decode(testKeys); err != nil {
		t.Fatal(err)
	}
	f, err := Function.Make(cfg, function.Dependencies{Publisher: &published{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	conn := f.InProcess()
	_, err = dbv1.NewAdminClient(conn).SeedAccounts(t.Context(), &dbv1.SeedAccountsRequest{Accounts: []*dbv1.Account{
		{AccountId: "A", Owner: "A", Currency: "IDR", Status: "ACTIVE", BalanceIdr: 1_000_000}, {AccountId: "B", Owner: "B", Currency: "IDR", Status: "ACTIVE"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return dbv1.NewDbClient(conn), url
}

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

// However many lists are stuck, payments are settled and single payments are read. Those who list hang up, and nothing of
// theirs is left at the database.
func TestListsDoNotHoldUpPayments(t *testing.T) {
	ledger, url := wholeDB(t)
	watch := connect(t, url)
	// Each row that a list looks at takes it longer than it has.
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
		got, err := ledger.ReserveFunds(ctx, &dbv1.ReserveFundsRequest{
			IdempotencyKey: key, SenderId: "A", ReceiverId: "B", AmountIdr: 10, CurrencyInput: "IDR", AmountMinor: 10,
		})
		if err != nil || got.Status != int32(dbv1.TxStatus_OK) {
			t.Fatalf("payment %s: %v, %v", key, got, err)
		}
	}
	reserve("first")
	listing, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	ended := make(chan error)
	const lists = 300
	for range lists {
		go func() {
			_, err := ledger.List(listing, &dbv1.ListRequest{AccountId: "A"})
			ended <- err
		}()
	}
	stuck := func() (n int) {
		if err := watch.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%ORDER BY r.reservation_id DESC%'
			AND pid <> pg_backend_pid()`).Scan(&n); err != nil {
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
	if got, err := ledger.CheckBalance(t.Context(), &dbv1.CheckBalanceRequest{AccountId: "A", AmountIdr: 1}); err != nil || !got.Sufficient {
		t.Errorf("a read that is no list: %v, %v", got, err)
	}
	if n := stuck(); n > maxLists {
		t.Errorf("%d lists are at the database; at most %d may be", n, maxLists)
	}
	hangUp()
	for range lists {
		err := <-ended
		if code := status.Code(err); code != codes.Canceled && code != codes.DeadlineExceeded && code != codes.ResourceExhausted {
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
	if got, err := ledger.List(t.Context(), &dbv1.ListRequest{AccountId: "A", Limit: 100}); err != nil || len(got.Payments) != 21 {
		t.Errorf("a list afterwards: %v, %v", got, err)
	}
}

// Reads that wait are bounded in number.
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
	if got := status.Code(unavailable(err)); got != codes.ResourceExhausted {
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
