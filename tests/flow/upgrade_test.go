package flow

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgw/functions/pgw/load"
	"pgw/functions/pgw/reconcile"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/tests/processes"
)

// previousRelease is the commit from which the upgrade starts. Each release sets it to the release
// before.
const previousRelease = "ed720dc37af87fb32e3e9665c1c293e2cd0d681c"

// buildRelease builds the pgw command of a commit of this repository.
func buildRelease(t *testing.T, commit string) string {
	t.Helper()
	root := filepath.Join("..", "..")
	if out, err := exec.Command("git", "-C", root, "cat-file", "-e", commit).CombinedOutput(); err != nil {
		t.Skipf("the history of this checkout lacks the previous release %.12s: %v: %s", commit, err, out)
	}
	dir, source := t.TempDir(), filepath.Join(t.TempDir(), "source.tar")
	for _, command := range [][]string{
		{"git", "-C", root, "archive", "--output", source, commit},
		{"tar", "-xf", source, "-C", dir},
		{"env", "CGO_ENABLED=0", "go", "build", "-C", dir, "-trimpath", "-o", filepath.Join(dir, "pgw"), "./functions/pgw"},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, out)
		}
	}
	return filepath.Join(dir, "pgw")
}

// clients pay all the time, one payment after the other. Each client repeats a payment with the
// same key until it gets an outcome.
type clients struct {
	t       *testing.T
	gateway string
	ending  atomic.Bool
	going   sync.WaitGroup
	settled atomic.Int64
	retried atomic.Int64
}

func (c *clients) start(n int) {
	client := &http.Client{Timeout: 2 * patience}
	for who := range n {
		c.going.Go(func() {
			for i := 0; !c.ending.Load(); i++ {
				c.pay(client, fmt.Sprintf("client-%d-%d", who, i), who, n)
			}
		})
	}
}

func (c *clients) pay(client *http.Client, key string, from, accounts int) {
	request := []byte(body(key, processes.Account(from), processes.Account((from+1)%accounts), "IDR", 1000))
	for end := time.Now().Add(4 * patience); ; c.retried.Add(1) {
		got := load.Post(context.Background(), client, "http://"+c.gateway, request)
		switch {
		case got.HTTP == 200 && (got.Status == payment.Success || got.Status == payment.SuccessReplay):
			c.settled.Add(1)
			return
		case got.HTTP == 200 || got.HTTP >= 400 && got.HTTP < 500:
			c.t.Errorf("%s: got %d %s %s", key, got.HTTP, got.Status, got.Reason)
			return
		case time.Now().After(end):
			c.t.Errorf("%s has no outcome; the last answer was %d %s", key, got.HTTP, got.Reason)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// more waits until n more payments are settled.
func (c *clients) more(n int64) {
	c.t.Helper()
	want := c.settled.Load() + n
	eventually(c.t, fmt.Sprintf("%d more payments are settled", n), func() error {
		if got := c.settled.Load(); got < want {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
}

// waitsInKafka waits until a request of the running gateway waits in Kafka, while worker is
// stopped.
func (c *clients) waitsInKafka(cfg kafka.Config) {
	c.t.Helper()
	count := func() int64 {
		r, err := kafka.OpenReader(cfg, "test", kafka.Range{Topic: cfg.RequestTopic})
		if err != nil {
			c.t.Fatal(err)
		}
		defer r.Close()
		return r.Total()
	}
	had := count()
	eventually(c.t, "a request waits in Kafka", func() error {
		if n := count(); n == had {
			return fmt.Errorf("%d records, as before", n)
		}
		return nil
	})
}

// newFunctions are functions that the previous release does not have.
var newFunctions = []string{"webhooks"}

// A release replaces the release before it while clients pay: first the schema, while the previous
// release still runs, and then one function after the other. The new release handles the records
// that the previous release left in Kafka. The way back also works on the new schema. Each client
// gets its outcome, or an answer that it must try again.
func TestAnUpgradeLetsPaymentsGoOn(t *testing.T) {
	t.Parallel()
	before, now := buildRelease(t, previousRelease), must(processes.Build(embeddedtest.Dir(t)))
	log := &processes.Output{}
	database := embeddedtest.Postgres(t)
	migrate := exec.Command(before, "migrate")
	migrate.Env = append(os.Environ(), "DATABASE_URL="+database)
	if out, err := migrate.CombinedOutput(); err != nil {
		t.Fatalf("migrate of the previous release: %v: %s", err, out)
	}
	broker := embeddedtest.Kafka(t, must(processes.Topics(4))...)
	s := must(processes.New(processes.Config{
		Binary: before, Database: database, Kafka: broker.Config, GroupPrefix: broker.Prefix, EventKeys: testKeys, Log: log,
	}))
	const payers = 4
	if err := s.StartSeeded(t.Context(), payers, newFunctions...); err != nil {
		t.Fatalf("%v: %s", err, log)
	}
	c := &clients{t: t, gateway: s.Front("gateway")}
	stop := sync.OnceFunc(func() {
		c.ending.Store(true)
		c.going.Wait()
		if err := s.StopAll(); err != nil {
			t.Errorf("%v: %s", err, log)
		}
	})
	t.Cleanup(stop)
	c.start(payers)
	c.more(50)

	// Expand: the previous release continues, and no client notices.
	retried := c.retried.Load()
	if err := ledger.Migrate(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	c.more(100)
	if n := c.retried.Load() - retried; n > 0 {
		t.Errorf("clients had to try again %d times while the schema was migrated", n)
	}

	// Deploy, and go back. Each function is stopped for a moment.
	order := processes.All
	backwards := slices.Clone(order)
	slices.Reverse(backwards)
	for _, step := range []struct {
		release string
		order   []string
	}{{now, order}, {before, backwards}, {now, order}} {
		s.Use(step.release)
		for _, name := range step.order {
			if err := s.Stop(name); err != nil {
				t.Fatalf("%v: %s", err, log)
			}
			if name == "worker" {
				c.waitsInKafka(broker.Config)
			}
			if step.release == before && slices.Contains(newFunctions, name) {
				continue
			}
			if _, err := s.Start(t.Context(), name); err != nil {
				t.Fatalf("%v: %s", err, log)
			}
			c.more(10)
		}
	}
	stop()
	t.Logf("%d payments, %d retries", c.settled.Load(), c.retried.Load())
	checkSumOf(t, database)
	var keys event.Keyring
	if err := keys.Decode(testKeys); err != nil {
		t.Fatal(err)
	}
	report, err := reconcile.Run(t.Context(), reconcile.Config{Database: database, Kafka: broker.Config, Keys: &keys, Grace: -2 * payment.DecideWithin})
	if err != nil || !report.Clean() {
		t.Errorf("the books do not agree: %+v, %v", report.Breaches, err)
	}
}
