package db

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/function"
)

// Postgres becomes silent: the existing connections never answer again, and none is closed.
// Payments under way learn that their outcome is unknown, and are not refused. The next payments
// settle over new connections. While new connections get no answer either, the function is not
// ready.
func TestASilentPostgresIsLeft(t *testing.T) {
	w := newWorld(t)
	w.open(1_000_000, "A", "B")
	wire, url := embeddedtest.NewWireTo(t, w.cfg.DatabaseURL)
	cfg := w.cfg
	cfg.DatabaseURL = url
	f, err := Function.Make(cfg, function.Dependencies{Publisher: w.published})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close(context.Background())
	client := dbv1.NewDbClient(f.InProcess())
	settle := func(key string) error {
		got, err := client.ReserveFunds(t.Context(), &dbv1.ReserveFundsRequest{IdempotencyKey: key, SenderId: "A", ReceiverId: "B", AmountIdr: 1, CurrencyInput: "IDR"})
		if err != nil {
			return err
		}
		committed, err := client.CommitReservation(t.Context(), &dbv1.CommitReservationRequest{ReservationId: got.ReservationId, IdempotencyKey: key})
		if err == nil && committed.Status != dbv1.TxStatus_OK && committed.Status != dbv1.TxStatus_DUPLICATE {
			t.Errorf("%s was refused: %+v", key, committed)
		}
		return err
	}
	// The calls run at the same time, so several connections are open.
	round := func(name string) {
		t.Helper()
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				for begun := time.Now(); ; {
					err := settle(fmt.Sprint(name, i))
					if err == nil {
						return
					}
					if status.Code(err) != codes.Unavailable {
						t.Errorf("%s: the answer does not say that the outcome is unknown: %v", name, err)
						return
					}
					if time.Since(begun) > time.Minute {
						t.Errorf("%s: nothing settles: %v", name, err)
						return
					}
				}
			})
		}
		all.Wait()
	}
	ready := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		return f.Ready(ctx)
	}
	round("before")
	if err := ready(); err != nil {
		t.Fatal(err)
	}
	wire.Silence()
	round("after")

	wire.Deafen(true)
	wire.Silence()
	if ready() == nil {
		t.Error("ready while Postgres is silent")
	}
	wire.Deafen(false)
	for begun := time.Now(); ready() != nil; {
		if time.Since(begun) > time.Minute {
			t.Fatal("not ready again")
		}
	}
	round("at last")
}
