package ledger

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// The standby is lost, and the wait of each commit for it is cancelled. So the server shows rows that no
// standby has, and they are gone when another server takes over. Nobody is told what such a row says:
// neither a client that asks again, nor one that reads the payment.
func TestWhatNoStandbyHasIsNotTold(t *testing.T) {
	if embeddedtest.Given() {
		t.Skip("it changes the settings of a server that other tests use")
	}
	owner := ""
	w := newWorldWith(t, func(cfg *Config) {
		owner = cfg.URL
		cfg.URL = loginTo(t, owner, "pgw_test_ledger") // whose rights suffice
		if err := Roles(t.Context(), owner, Login{cfg.URL, LedgerRole}); err != nil {
			t.Fatal(err)
		}
	})
	w.open(1000, "A", "B")
	settle := func(key string) (payment.Payment, uuid.UUID) {
		p := pay(key, "A", "B", 100)
		id := w.mustReserve(p).ReservationID
		if f, err := w.Finish(t.Context(), Finish{ReservationID: id}); err != nil || !f.Done {
			t.Fatal(f, err)
		}
		return p, id
	}
	paid, id := settle("paid")
	back := payment.Operation{
		Kind: payment.Refund, Key: "back", Payment: "paid", AttemptID: "back-1", AcceptedAt: paid.AcceptedAt, Deadline: paid.Deadline,
	}
	if _, err := w.Refund(t.Context(), back); err != nil {
		t.Fatal(err)
	}
	void := payment.Operation{Kind: payment.Void, Key: "void", Payment: "paid", AttemptID: "void-1", AcceptedAt: paid.AcceptedAt, Deadline: paid.Deadline}
	if _, err := w.Operate(t.Context(), void); err != nil {
		t.Fatal(err)
	}
	asks := map[string]func() error{
		"a replay":                 func() error { _, err := w.Reserve(t.Context(), paid); return err },
		"a replay of a refund":     func() error { _, err := w.Refund(t.Context(), back); return err },
		"a replay of an operation": func() error { _, err := w.Operate(t.Context(), void); return err },
		"a second commit":          func() error { _, err := w.Finish(t.Context(), Finish{ReservationID: id}); return err },
		"a late rollback": func() error {
			_, err := w.Finish(t.Context(), Finish{ReservationID: id, RollBack: payment.Expired})
			return err
		},
		"a refusal":      func() error { _, err := w.Refuse(t.Context(), paid, payment.RiskOther); return err },
		"GET":            func() error { _, err := w.Payment(t.Context(), paid.Scoped()); return err },
		"GET by ref":     func() error { _, err := w.PaymentByRef(t.Context(), id); return err },
		"GET of refunds": func() error { _, err := w.Refunds(t.Context(), paid.Scoped(), 10); return err },
	}
	for name, ask := range asks {
		if err := ask(); err != nil {
			t.Errorf("%s, without a standby: %v", name, err)
		}
	}

	admin, err := postgres.Open(postgres.Config{URL: owner, Name: "admin", MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	exec := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(context.Background(), sql); err != nil {
			t.Fatal(sql, err)
		}
	}
	// A sweep could not publish the end of this payment, so the next one does.
	w.mustReserve(pay("untold", "A", "B", 100))
	exec("UPDATE reservations SET deadline = statement_timestamp() - interval '1 microsecond' WHERE idempotency_key = 'untold'")
	w.failPublish = context.DeadlineExceeded
	if _, _, err := w.sweep(t.Context()); err == nil {
		t.Fatal("the sweep has published")
	}
	w.failPublish = nil
	exec("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	exec("SELECT pg_reload_conf()")
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			admin.Exec(ctx, `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
			time.Sleep(5 * time.Millisecond)
		}
	}()
	defer func() {
		exec("ALTER SYSTEM RESET synchronous_standby_names")
		exec("SELECT pg_reload_conf()")
		cancel()
		<-ended
	}()
	// The server's processes learn of the setting one after the other.
	refused := func(what string, ask func() error) {
		t.Helper()
		for begun := time.Now(); ask() == nil; {
			if time.Since(begun) > 10*time.Second {
				t.Errorf("%s is answered by what no standby has", what)
				return
			}
		}
	}
	serial := 0
	refused("a reservation", func() error {
		serial++
		_, err := w.Reserve(t.Context(), pay(fmt.Sprint("new", serial), "A", "B", 1))
		return err
	})
	for name, ask := range asks {
		refused(name, ask)
	}
	if _, published, err := w.sweep(t.Context()); err == nil || published > 0 {
		t.Errorf("a sweep has published %d results that no standby has: %v", published, err)
	}
}
