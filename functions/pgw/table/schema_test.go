package table

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/function"
	"pgw/shared/ledger"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// patience is the time limit for steps that take a second on an idle machine.
const patience = time.Minute

// Each function that uses the database is ready only if the schema has everything that its release
// uses.
func TestFunctionsAreReadyWhereTheSchemaFits(t *testing.T) {
	database := embeddedtest.Postgres(t)
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	ports := map[string]*function.Port{}
	for _, name := range []string{"db", "fx", "wallet", "risk", "webhooks"} {
		ports[name] = run(t, name, database)
	}
	check := func(want string) {
		t.Helper()
		for name, port := range ports {
			eventually(t, name, func() error {
				err := port.Ready(t.Context())
				if want == "" {
					return err
				}
				if err == nil || !strings.Contains(err.Error(), want) {
					return fmt.Errorf("%v; want %q", err, want)
				}
				return nil
			})
		}
	}
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	known := ledger.KnownSchema()
	check("run pgw migrate")
	if err := ledger.Migrate(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	check("")
	exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES ($1, true)`, known+1)
	check("") // newer, and nothing was removed
	exec(`UPDATE schema_support SET oldest_release = $1`, known+1)
	check("deploy a newer release")
	exec(`UPDATE schema_support SET oldest_release = $1`, known)
	check("")
	exec(`DELETE FROM goose_db_version WHERE version_id >= $1`, known)
	check("run pgw migrate")
}

// run builds a function on a database, and runs its background work.
func run(t *testing.T, name, database string) *function.Port {
	t.Helper()
	f, _ := Functions.Find(name)
	set := map[string]string{
		"DATABASE_URL": database, "KAFKA_BROKERS": "nowhere.invalid:9092", "RISK_SECRET": "of no use to anybody",
		"EVENT_KEYS": "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "WEBHOOK_SECRET_KEYS": "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
	}
	config, err := f.Configure(function.Settings{Lookup: func(name string) (string, bool) { value, is := set[name]; return value, is }})
	if err != nil {
		t.Fatal(err)
	}
	port, err := f.Make(config, function.Dependencies{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		if port.Background == nil {
			ended <- nil
			return
		}
		ended <- port.Background(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := port.Close(context.Background()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	return port
}

func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
