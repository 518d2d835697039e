package postgres_test

import (
	"context"
	"testing"
	"time"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/postgres"
)

// A commit waits for a standby that is away. Somebody cancels the wait. Postgres then reports success
// with a warning, and the caller must not hear of a success.
func TestACommitThatNoStandbyHas(t *testing.T) {
	url := embeddedtest.Postgres(t)
	pool, err := postgres.Open(postgres.Config{URL: url, Name: "test", MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	exec := func(sql string) error {
		_, err := pool.Exec(t.Context(), sql)
		return err
	}
	must := func(sql string) {
		t.Helper()
		if err := exec(sql); err != nil {
			t.Fatal(sql, err)
		}
	}
	must("CREATE TABLE kept (n int)")
	must("SET synchronous_commit = local")
	must("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	must("SELECT pg_reload_conf()")
	t.Cleanup(func() {
		admin, err := postgres.Open(postgres.Config{URL: url, Name: "test", MaxConns: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		for _, sql := range []string{"ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"} {
			if _, err := admin.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	for _, sql := range []string{"INSERT INTO kept VALUES (1)", "BEGIN; INSERT INTO kept VALUES (2); COMMIT"} {
		writer, err := postgres.Open(postgres.Config{URL: url, Name: "writer", MaxConns: 1})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := writer.Exec(t.Context(), sql)
			done <- err
		}()
		for cancelled := false; !cancelled; time.Sleep(10 * time.Millisecond) {
			err := pool.QueryRow(t.Context(), `SELECT coalesce(bool_or(pg_cancel_backend(pid)), false) FROM pg_stat_activity
				WHERE wait_event = 'SyncRep' AND application_name = 'pgw-writer'`).Scan(&cancelled)
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err == nil {
			t.Errorf("%s: the caller heard of a success that no standby has", sql)
		}
		writer.Close()
	}
	var rows int
	if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM kept").Scan(&rows); err != nil || rows != 2 {
		t.Errorf("%d rows, %v; this server has committed both", rows, err)
	}
}
