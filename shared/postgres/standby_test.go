package postgres_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/postgres"
)

// Reads go to a standby as long as it follows. If it stops replaying, or ends, they go to the primary, and
// none fails. An idle primary makes no standby stale.
func TestReadsFromAStandby(t *testing.T) {
	t.Parallel()
	primary := embeddedtest.NewServer(t, nil)
	standby := primary.Standby(t)
	const bound = 500 * time.Millisecond
	from, err := postgres.OpenReaders(postgres.Config{URL: primary.URL(), Name: "test", MaxConns: 3},
		postgres.Standby{URL: standby.URL(), MaxStale: bound}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	exec := func(url, sql string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(primary.URL(), "CREATE TABLE kept (n int)")
	// read returns the newest row, and whether the standby has answered.
	read := func() (n int, behind bool) {
		t.Helper()
		behind, err := from.Read(t.Context(), 0, func(ctx context.Context, q postgres.Queries) error {
			return q.QueryRow(ctx, "SELECT coalesce(max(n), 0) FROM kept").Scan(&n)
		})
		if err != nil {
			t.Fatal("a read fails:", err)
		}
		return n, behind
	}
	await := func(what string, is func() bool) {
		t.Helper()
		for until := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("%s: %+v", what, from.State())
			}
		}
	}
	used := func() bool { _, behind := read(); return behind }
	await("the standby is not used", used)

	// What was written before ShowFrom is shown, wherever it is read.
	for n := 1; n <= 20; n++ {
		exec(primary.URL(), "INSERT INTO kept SELECT coalesce(max(n), 0) + 1 FROM kept")
		from.ShowFrom(time.Now())
		if got, behind := read(); got != n {
			t.Fatalf("%d after ShowFrom, by the standby: %t; want %d", got, behind, n)
		}
	}
	await("the standby is not used after ShowFrom", used)

	// An idle primary.
	for until := time.Now().Add(3 * bound); time.Now().Before(until); time.Sleep(bound / 10) {
		if s := from.State(); s.Used && s.Stale > bound {
			t.Errorf("used, and %s behind", s.Stale)
		}
	}
	await("the standby of an idle primary is not used", used)

	// It stops replaying. From the bound on, nothing that it shows is used.
	exec(standby.URL(), "SELECT pg_wal_replay_pause()")
	await("replay is not paused", func() bool {
		conn, err := pgx.Connect(t.Context(), standby.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		var state string
		if err := conn.QueryRow(t.Context(), "SELECT pg_get_wal_replay_pause_state()").Scan(&state); err != nil {
			t.Fatal(err)
		}
		return state == "paused"
	})
	exec(primary.URL(), "INSERT INTO kept VALUES (100)")
	written := time.Now()
	for time.Since(written) < 3*bound {
		asked := time.Now()
		if n, behind := read(); n != 100 && asked.Sub(written) > bound {
			t.Fatalf("what was written %s before is not shown; by the standby: %t", asked.Sub(written), behind)
		}
	}
	if s := from.State(); s.Used || s.Stale <= bound || s.Err == nil || !s.There {
		t.Errorf("of a standby that does not replay: %+v", s)
	}
	exec(standby.URL(), "SELECT pg_wal_replay_resume()")
	await("the standby is not used again", used)

	standby.Stop()
	for until := time.Now().Add(2 * bound); time.Now().Before(until); time.Sleep(bound / 20) {
		read()
	}
	if s := from.State(); s.Used || s.Err == nil {
		t.Errorf("of a standby that is away: %+v", s)
	}
}

// A server that is no standby, and the standby of another primary, are not read from.
func TestAServerThatIsNoStandby(t *testing.T) {
	t.Parallel()
	url := embeddedtest.Postgres(t)
	from, err := postgres.OpenReaders(postgres.Config{URL: url, Name: "test", MaxConns: 2},
		postgres.Standby{URL: url, MaxStale: 100 * time.Millisecond}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for until := time.Now().Add(500 * time.Millisecond); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		behind, err := from.Read(t.Context(), 0, func(ctx context.Context, q postgres.Queries) error {
			var one int
			return q.QueryRow(ctx, "SELECT 1").Scan(&one)
		})
		if err != nil || behind {
			t.Fatalf("by the standby: %t, %v", behind, err)
		}
	}
	if s := from.State(); s.Used || s.Err == nil {
		t.Errorf("%+v", s)
	}
}
