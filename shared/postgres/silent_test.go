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

// patience is the limit for steps that take seconds on an idle machine.
const patience = 60 * time.Second

// All connections of a pool become silent, both idle and busy ones, and none is ever closed. The
// pool's users continue on new connections, although their own contexts have no end.
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
	// All four connections are open. When the silence begins, two are idle and two wait for their
	// answers.
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
				t.Errorf("on a new connection: %v", err)
			}
		case <-time.After(patience):
			t.Fatal("no call uses a new connection")
		}
	}
}

// A server accepts connections and never answers. Callers get an error, with any context. When the
// server answers again, the next caller is served.
func TestADialIsBounded(t *testing.T) {
	wire, url := embeddedtest.NewWireTo(t, embeddedtest.Postgres(t))
	pool, err := postgres.Open(postgres.Config{URL: url, Name: "test", MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	wire.Deafen(true)
	pinged := make(chan error, 3)
	for range 3 { // two of them wait for the only connection
		go func() { pinged <- pool.Ping(context.Background()) }()
	}
	for range 3 {
		select {
		case err := <-pinged:
			if err == nil {
				t.Error("a server that never answers counts as alive")
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

// A slow statement is not a silent server: the server itself ends the statement.
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
		t.Error("its connection was closed")
	}
}

// A process's clock is compared with the database's.
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
