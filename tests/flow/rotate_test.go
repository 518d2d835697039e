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

// step is one step of the runbook: all functions are replaced by those of its options, and the old ones run
// until the new ones do.
type step struct {
	options
	before func(old *system) // what the operator waits for before the step
	beside func(new *system) // what happens while the old functions still run
	after  func(new *system) // and when they have ended
}

// rotate makes the steps while clients pay, and returns the last system when no client pays any more. Every
// payment has to succeed at once.
func rotate(t *testing.T, first options, steps ...step) *system {
	t.Helper()
	first.serial = true
	now := start(t, first)
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
	defer clients.Wait()
	defer close(done)
	for _, step := range steps {
		if step.before != nil {
			step.before(now)
		}
		step.serial, step.database, step.kafka = true, now.conn.Config().ConnString(), &now.kafka
		next := start(t, step.options)
		at.Store(next)
		before := paid.Load()
		next.eventually("payments are made by the new functions", func() error {
			if paid.Load() < before+20 {
				return fmt.Errorf("%d payments", paid.Load()-before)
			}
			return nil
		})
		if step.beside != nil {
			step.beside(next)
		}
		now.stop()
		if now = next; step.after != nil {
			step.after(now)
		}
	}
	t.Logf("%d payments, %d not settled at once", paid.Load(), failed.Load())
	return now
}

// The event keys are rotated as the runbook says, while clients pay: append the new key, put it first, remove the
// old one.
func TestEventKeysAreRotatedUnderLoad(t *testing.T) {
	t.Parallel()
	const first, second = testKeys + ":v2", "k2:YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY=:v2"
	// The old key is removed when no event of it is under way any more.
	delivered := func(now *system) {
		published, err := processes.ReadPublished(now.kafka.Config)
		if err != nil {
			t.Fatal(err)
		}
		now.eventually("what the old key has signed is delivered", func() error { return published.Delivered(now.kafka.Config, now.kafka.Prefix) })
	}
	now := rotate(t, options{keys: first},
		step{options: options{keys: first + "," + second}},
		step{options: options{keys: second + "," + first}},
		step{options: options{keys: second}, before: delivered})
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

// The keys that encrypt the secrets of webhooks are rotated as the runbook says, while clients pay: append the
// new key, put it first, remove the old one when all secrets are encrypted anew. Each refund is told to each
// webhook that was there, also to one that was added while functions of two steps run.
func TestKeysOfWebhooksAreRotatedUnderLoad(t *testing.T) {
	t.Parallel()
	const first, second = "s1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "s2:YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY="
	var shops []*shop
	open := func(s *system) {
		there := newShop(t)
		var made struct{ Secret string }
		there.mu.Lock() // until it knows the secret
		defer there.mu.Unlock()
		call(t, client{s, ""}, http.MethodPost, "/api/webhooks", `{"url":"`+there.URL+`","types":["payment.refunded"]}`, http.StatusCreated, &made)
		there.secret = made.Secret
		shops = append(shops, there)
	}
	// Each of some refunds goes to one of the functions that run. All webhooks are told of each.
	asked := 0
	told := func(s *system) {
		for range 8 {
			asked++
			key := fmt.Sprintf("told-%d", asked)
			s.expect(s.pay(key, "A", "C", "IDR", 1000), "200 SUCCESS committed")
			call(t, client{s, ""}, http.MethodPost, "/api/payments/"+key+"/refunds", `{"idempotency_key":"back-`+key+`","amount":"400"}`, http.StatusOK, nil)
			for i, there := range shops {
				s.eventually(fmt.Sprintf("webhook %d is told of %s", i, key), func() error {
					_, err := there.about(key)
					return err
				})
			}
		}
	}
	both := func(s *system) {
		open(s)
		told(s)
	}
	sealed := func(s *system) {
		s.eventually("all secrets are encrypted by the new key", func() error {
			ping(t, s.Addr("webhooks")) // the minute's, which does it
			if n := s.count(`SELECT count(*) FROM webhook_secrets WHERE key_id <> 's2'`); n > 0 {
				return fmt.Errorf("%d are not", n)
			}
			return nil
		})
	}
	now := rotate(t, options{seals: first},
		step{options: options{seals: first + "," + second}, beside: both, after: told},
		step{options: options{seals: second + "," + first}, beside: both, after: sealed},
		step{options: options{seals: second}, beside: both, after: told})
	for i, there := range shops {
		there.mu.Lock()
		if len(there.errs) > 0 {
			t.Errorf("webhook %d: %v", i, there.errs)
		}
		there.mu.Unlock()
	}
	now.drain()
}

// The database passwords are rotated as the runbook says, while clients pay: make second logins, replace the
// functions, drop the first ones.
func TestLoginsAreRotatedUnderLoad(t *testing.T) {
	t.Parallel()
	const first, second = "pgw_rotate_first", "pgw_rotate_second"
	drop := func(s *system) {
		for _, name := range []string{"_db", "_functions", "_webhooks"} {
			s.exec(`DROP ROLE ` + first + name)
		}
	}
	now := rotate(t, options{logins: first},
		step{options: options{logins: second}, after: drop},
		step{options: options{logins: second}}) // functions also start without the first ones
	now.drain()
}
