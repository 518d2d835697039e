package postgres_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/postgres"
)

// Starting parallel workers takes longer than a payment's statements. The server may want them for a
// table that has grown since it was analyzed.
func TestAPoolAsksForNoParallelWorkers(t *testing.T) {
	u, err := url.Parse(embeddedtest.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	settings := u.Query()
	for _, name := range []string{"parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size", "min_parallel_index_scan_size"} {
		settings.Set(name, "0")
	}
	u.RawQuery = settings.Encode()
	conn, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `CREATE TABLE grown (n int PRIMARY KEY, amount int); INSERT INTO grown SELECT n, 1 FROM generate_series(1, 20000) n`); err != nil {
		t.Fatal(err)
	}
	const explain = `EXPLAIN (COSTS off) SELECT sum(amount) FROM grown WHERE n > 100`
	rows, _ := conn.Query(t.Context(), explain)
	usual, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || !strings.Contains(strings.Join(usual, "\n"), "Gather") {
		t.Fatalf("the server's own plan has no parallel workers, so this test shows nothing: %v, %v", usual, err)
	}
	for name, lookups := range map[string]bool{"lookups": true, "whole tables": false} {
		pool, err := postgres.Open(postgres.Config{URL: u.String(), Name: "test", MaxConns: 1, Lookups: lookups})
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		rows, _ := pool.Query(t.Context(), explain)
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || strings.Contains(strings.Join(plan, "\n"), "Gather") {
			t.Errorf("the plan of a pool for %s: %v, %v", name, plan, err)
		}
	}
}
