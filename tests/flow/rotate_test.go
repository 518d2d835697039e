package flow

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pgw/functions/pgw/reconcile"
	"pgw/shared/event"
	"pgw/tests/processes"
)

// The event keys are rotated as the runbook says, while clients pay: append the new key, put it first, remove the
// old one. Each step replaces all functions, and the old ones run until the new ones do. Every payment succeeds.
func TestEventKeysAreRotatedUnderLoad(t *testing.T) {
	t.Parallel()
	const first, second = testKeys + ":v2", "k2:YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY=:v2"
	now := start(t, options{serial: true, keys: first})
	var at atomic.Pointer[system]
	at.Store(now)
	var paid, failed atomic.Int64
	done := make(chan struct{})
	var clients sync.WaitGroup
	for client := range 4 {
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				resp, err := http.Post(at.Load().url+"/api/payments", "application/json",
					strings.NewReader(body(fmt.Sprintf("rotate-%d-%d", client, n), "A", "B", "IDR", 1000)))
				if err != nil {
					t.Error(err)
					return
				}
				got := read(t, resp)
				if paid.Add(1); got.outcome() != "200 SUCCESS committed" {
					failed.Add(1)
					t.Errorf("%d-%d: %s", client, n, got)
				}
			}
		})
	}
	for _, keys := range []string{first + "," + second, second + "," + first, second} {
		if keys == second { // the old key is removed when no event of it is under way any more
			published, err := processes.ReadPublished(now.kafka.Config)
			if err != nil {
				t.Fatal(err)
			}
			now.eventually("what the old key has signed is delivered", func() error { return published.Delivered(now.kafka.Config, now.kafka.Prefix) })
		}
		next := start(t, options{serial: true, keys: keys, database: now.conn.Config().ConnString(), kafka: &now.kafka})
		at.Store(next)
		before := paid.Load()
		next.eventually("payments are made by the new functions", func() error {
			if paid.Load() < before+20 {
				return fmt.Errorf("%d payments", paid.Load()-before)
			}
			return nil
		})
		now.stop()
		now = next
	}
	close(done)
	clients.Wait()
	t.Logf("%d payments, %d not settled at once", paid.Load(), failed.Load())
	now.drain()
	// Old events are signed by the old key. Who reads them keeps it.
	cfg := now.books()
	cfg.Direct = true
	var both event.Keyring
	if err := both.Decode(second + "," + first); err != nil {
		t.Fatal(err)
	}
	cfg.Keys = &both
	if report, err := reconcile.Run(t.Context(), cfg); err != nil || !report.Clean() {
		t.Errorf("%+v, %v", report.Breaches, err)
	}
}
