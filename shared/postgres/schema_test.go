package postgres_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/postgres"
)

func TestNamesOfSchemas(t *testing.T) {
	for name, valid := range map[string]bool{
		"": true, "shop": true, "shop_1": true, "user": true, strings.Repeat("a", 40): true,
		"public": false, "information_schema": false, "pg_shop": false, "Shop": false, "1shop": false, "_shop": false,
		"shop-1": false, `shop"`: false, "shop, public": false, "läden": false, strings.Repeat("a", 41): false,
	} {
		var s postgres.Schema
		if err := s.UnmarshalText([]byte(name)); (err == nil) != valid || (valid && string(s) != name) {
			t.Errorf("%q: %q, %v; valid: %t", name, s, err, valid)
		}
	}
}

func TestAURLWithASchema(t *testing.T) {
	for before, after := range map[string]string{
		"postgres://a:b%40c@h1:1,h2:2/pgw":                    "postgres://a:b%40c@h1:1,h2:2/pgw?search_path=shop",
		"postgresql://h/pgw?sslmode=disable":                  "postgresql://h/pgw?search_path=shop&sslmode=disable",
		"postgres://h/pgw?search_path=other&sslmode=disable":  "postgres://h/pgw?search_path=shop&sslmode=disable",
		"host=h1,h2 user=a dbname=pgw":                        "host=h1,h2 user=a dbname=pgw search_path=shop",
		"host=h1 search_path=other":                           "host=h1 search_path=other search_path=shop",
		"postgres://h/pgw?default_query_exec_mode=exec&host=": "postgres://h/pgw?default_query_exec_mode=exec&host=&search_path=shop",
	} {
		got := postgres.Schema("shop").In(before)
		if got != after {
			t.Errorf("%s: %s; want %s", before, got, after)
		}
		if none := postgres.Schema("").In(before); none != before {
			t.Errorf("%s without a schema: %s", before, none)
		}
		c, err := pgx.ParseConfig(got)
		if err != nil {
			t.Errorf("%s: %v", got, err)
		} else if s := postgres.SchemaOf(c); s != "shop" {
			t.Errorf("%s has the schema %q", got, s)
		}
	}
}

// A pool uses the schema of its URL.
func TestASessionHasTheSchemaOfItsURL(t *testing.T) {
	url := postgres.Schema("shop").In(embeddedtest.Postgres(t))
	pool, err := postgres.Open(postgres.Config{URL: url, Name: "test", MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var path string
	if err := pool.QueryRow(t.Context(), "SHOW search_path").Scan(&path); err != nil || path != "shop" {
		t.Errorf("the session looks in %s: %v", path, err)
	}
}
