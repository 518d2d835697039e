package postgres_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/postgres"
)

// A URL may name several servers, in both spellings. The first that answers, and that
// target_session_attrs suits, is used: by readers too, whose own sessions can't write.
func TestSeveralHosts(t *testing.T) {
	cfg, err := pgxpool.ParseConfig(embeddedtest.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	c := cfg.ConnConfig
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := gone.Addr().(*net.TCPAddr).Port
	gone.Close()
	for _, attrs := range []string{"any", "primary", "read-write"} {
		for spelling, url := range map[string]string{
			"URL": fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d,%s:%d/%s?sslmode=disable&target_session_attrs=%s",
				c.User, c.Password, nobody, c.Host, c.Port, c.Database, attrs),
			"keywords": fmt.Sprintf("host=127.0.0.1,%s port=%d,%d user=%s password='%s' dbname=%s sslmode=disable target_session_attrs=%s",
				c.Host, nobody, c.Port, c.User, c.Password, c.Database, attrs),
		} {
			for _, readOnly := range []bool{false, true} {
				pool, err := postgres.Open(postgres.Config{URL: url, Name: "test", MaxConns: 1, ReadOnly: readOnly})
				if err != nil {
					t.Fatal(err)
				}
				var got string
				err = pool.QueryRow(context.Background(), "SHOW transaction_read_only").Scan(&got)
				if want := map[bool]string{false: "off", true: "on"}[readOnly]; err != nil || got != want {
					t.Errorf("%s, %s, reader %v: transaction_read_only is %s, %v", spelling, attrs, readOnly, got, err)
				}
				pool.Close()
			}
		}
	}
}

// A server that can't write is passed over, and the error says so.
func TestAStandbyIsNoPrimary(t *testing.T) {
	url := embeddedtest.Postgres(t)
	owner, err := postgres.Open(postgres.Config{URL: url, Name: "test", MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	var database string
	if err := owner.QueryRow(t.Context(), "SELECT current_database()").Scan(&database); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.Exec(t.Context(), fmt.Sprintf("ALTER DATABASE %q SET default_transaction_read_only = on", database)); err != nil {
		t.Fatal(err)
	}
	mark := "?"
	if strings.Contains(url, "?") {
		mark = "&"
	}
	for _, readOnly := range []bool{false, true} {
		pool, err := postgres.Open(postgres.Config{URL: url + mark + "target_session_attrs=read-write", Name: "test", MaxConns: 1, ReadOnly: readOnly})
		if err != nil {
			t.Fatal(err)
		}
		if err := pool.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "read only") {
			t.Errorf("reader %v: %v", readOnly, err)
		}
		pool.Close()
	}
}
