package postgres_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/postgres"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// patience is for what takes seconds on an idle machine.
const patience = 60 * time.Second

// Every connection of a pool falls silent, idle ones and those that are being asked, and none is ever closed. The pool's
// users go on by new connections, although their own contexts have no end.
func TestASilentServerIsLeft(t *testing.T) {
	wire, url := embeddedtest.NewWireTo(t, embeddedtest.Postgres(t))
	pool, err := postgres.Open(postgres.Config{URL: url, Name: "test", MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ask := func(sql string) error {
		var one int
		return pool.QueryRow(context.Background(), sql).Scan(&one)
	}
	// All four are open: two are idle when the silence begins, two wait for their answers.
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := ask(`SELECT 1 FROM pg_sleep(0.2)`); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	asked := make(chan error, 2)
	for range 2 {
		go func() { asked <- ask(`SELECT 1 FROM pg_sleep(0.5)`) }()
	}
	for pool.Stat().AcquiredConns() < 2 {
		time.Sleep(time.Millisecond)
	}
	wire.Silence()
	for range 2 {
		select {
		case err := <-asked:
			if err == nil {
				t.Error("an answer came through a silent wire")
			}
		case <-time.After(patience):
			t.Fatal("a statement waits for a silent server")
		}
	}
	again := make(chan error, 4)
	for range 4 {
		go func() { again <- ask(`SELECT 1 FROM pg_sleep(0.2)`) }()
	}
	for range 4 {
		select {
		case err := <-again:
			if err != nil {
				t.Errorf("by a new connection: %v", err)
			}
		case <-time.After(patience):
			t.Fatal("nobody asks by a new connection")
		}
	}
}

// A server that accepts connections and says nothing: who asks hears so, whatever context it has, and the next one is served
// once the server answers again.
func TestADialIsBounded(t *testing.T) {
	wire, url := embeddedtest.NewWireTo(t, embeddedtest.Postgres(t))
	pool, err := postgres.Open(postgres.Config{URL: url, Name: "test", MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	wire.Deafen(true)
	pinged := make(chan error, 3)
	for range 3 { // two of them wait for the one connection that there may be
		go func() { pinged <- pool.Ping(context.Background()) }()
	}
	for range 3 {
		select {
		case err := <-pinged:
			if err == nil {
				t.Error("a deaf server was found to be alive")
			}
		case <-time.After(patience):
			t.Fatal("a dial or an acquire has no end")
		}
	}
	wire.Deafen(false)
	if err := pool.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// A statement that the server is slow with is told from a silent server: it is the server that ends it.
func TestASlowStatementIsEndedByTheServer(t *testing.T) {
	pool, err := postgres.Open(postgres.Config{URL: embeddedtest.Postgres(t), Name: "test", MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	_, err = pool.Exec(t.Context(), `SELECT pg_sleep(60)`)
	if !postgres.TookTooLong(err) {
		t.Fatalf("a statement of a minute: %v", err)
	}
	if pool.Stat().TotalConns() != 1 || pool.Stat().NewConnsCount() != 1 {
		t.Error("its connection was given up")
	}
}

// The clock of a process is held against the database's.
func TestSkewIsMeasured(t *testing.T) {
	r := prometheus.NewRegistry()
	ahead := func() time.Time { return time.Now().Add(90 * time.Second) }
	pool, err := postgres.Open(postgres.Config{URL: embeddedtest.Postgres(t), Name: "test", MaxConns: 1, Registerer: r, Now: ahead})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := pool.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := testutil.GatherAndCount(r, "pgw_postgres_clock_skew_seconds")
	if err != nil || n != 1 {
		t.Fatalf("%d gauges, %v", n, err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "pgw_postgres_clock_skew_seconds" {
			if got := f.Metric[0].Gauge.GetValue(); got < 30 || got > 90 {
				t.Errorf("a clock that is 90 s ahead is measured as %g", got)
			}
		}
	}
}
