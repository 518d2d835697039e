package ledger

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/postgres"
)

// ledgerIn makes a ledger in a schema of a database, with a login of its own. It returns the owner's URL
// and the login's.
func ledgerIn(t *testing.T, database string, schema postgres.Schema) (owner, login string) {
	t.Helper()
	owner = schema.In(database)
	u, err := url.Parse(owner)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("pgw_test_of_"+string(schema), "secret") // PgBouncer's file takes no quotes
	login = u.String()
	for range 2 { // both may be repeated
		if err := Migrate(t.Context(), owner); err != nil {
			t.Fatal(err)
		}
		if err := Roles(t.Context(), owner, Login{login, LedgerRole}); err != nil {
			t.Fatal(err)
		}
	}
	return owner, login
}

// Ledgers in schemas of one database, beside one in public, know nothing of each other, and neither do
// their logins.
func TestLedgersShareADatabase(t *testing.T) {
	if embeddedtest.Schemas(t) {
		t.Skip("it makes schemas of a database of its own")
	}
	database := migrated.Postgres(t)
	// Migrations grant rights to the roles of public, if they exist.
	if err := Roles(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	worlds := map[postgres.Schema]*world{}
	logins := map[postgres.Schema]string{}
	for _, schema := range []postgres.Schema{"", "shop", "user"} { // user is a word of SQL
		login := database
		if schema != "" {
			_, login = ledgerIn(t, database, schema)
		}
		logins[schema] = login
		worlds[schema] = newWorldWith(t, func(cfg *Config) { cfg.URL = login })
	}
	for schema, w := range worlds {
		if err := w.Ready(t.Context()); err != nil {
			t.Errorf("%q: %v", schema, err)
		}
		w.open(100, "A", "B") // each has accounts of the same names
	}
	amounts := map[postgres.Schema]int64{"": 1, "shop": 20, "user": 30}
	for schema, w := range worlds {
		held := w.mustReserve(pay("same key", "A", "B", amounts[schema]))
		if held.Replay {
			t.Errorf("%q: the key is another ledger's", schema)
		}
		if f := w.mustFinish(Finish{ReservationID: held.ReservationID}); !f.Done {
			t.Errorf("%q: %+v", schema, f)
		}
	}
	for schema, w := range worlds {
		if a, b := w.balance("A"), w.balance("B"); a != 100-amounts[schema] || b != 100+amounts[schema] {
			t.Errorf("%q: A has %d, B has %d", schema, a, b)
		}
		sum, err := ReadSum(t.Context(), w.pool)
		if err != nil || sum.Err() != nil || sum.Funded != 200 {
			t.Errorf("%q: %+v, %v, %v", schema, sum, err, sum.Err())
		}
	}
	// A breach of one ledger is not the others'.
	owner := connect(t, database)
	if _, err := owner.Exec(t.Context(), `UPDATE shop.balances SET available = available + 1 WHERE account_id = 'A'`); err != nil {
		t.Fatal(err)
	}
	for schema, w := range worlds {
		sum, err := ReadSum(t.Context(), w.pool)
		if err != nil || (sum.AccountsOff == 1) != (schema == "shop") {
			t.Errorf("%q: %+v, %v", schema, sum, err)
		}
	}
	if _, err := owner.Exec(t.Context(), `UPDATE shop.balances SET available = available - 1 WHERE account_id = 'A'`); err != nil {
		t.Fatal(err)
	}
	// A login has rights on its own ledger only, whatever its session says.
	shop := connect(t, logins["shop"])
	for _, sql := range []string{`SELECT FROM public.balances`, `SELECT FROM "user".balances`, `SET search_path = public; SELECT FROM balances`} {
		if _, err := shop.Exec(t.Context(), sql); err == nil {
			t.Errorf("the login of shop may %s", sql)
		}
	}
	var may bool
	if err := owner.QueryRow(t.Context(), `SELECT has_table_privilege('pgw_ledger', 'shop.balances', 'SELECT, INSERT, UPDATE, DELETE')
		OR has_any_column_privilege('pgw_ledger', 'shop.reservations', 'UPDATE')`).Scan(&may); err != nil || may {
		t.Errorf("the role of public has rights in shop: %t, %v", may, err)
	}
	// A login is of one ledger: its setting names that one.
	err := Roles(t.Context(), postgres.Schema("user").In(database), Login{logins["shop"], LedgerRole})
	if err == nil || !strings.Contains(err.Error(), "belongs to the ledger in shop") {
		t.Errorf("a login of two ledgers: %v", err)
	}
}

// PgBouncer drops the schema that a URL names. The logins that Roles made have it as their setting. Any
// other login is refused, and does not work on another ledger.
func TestSchemasBehindPgBouncer(t *testing.T) {
	if embeddedtest.Schemas(t) {
		t.Skip("it makes schemas of a database of its own")
	}
	database := migrated.Postgres(t)
	_, login := ledgerIn(t, database, "shop")
	w := newWorldWith(t, func(cfg *Config) { cfg.URL = behindPgBouncer(t, login) })
	w.open(100, "A", "B")
	held := w.mustReserve(pay("k", "A", "B", 10))
	if f := w.mustFinish(Finish{ReservationID: held.ReservationID}); !f.Done || w.balance("B") != 110 {
		t.Errorf("%+v; B has %d", f, w.balance("B"))
	}
	var there int
	if err := connect(t, database).QueryRow(t.Context(), `SELECT count(*) FROM public.reservations`).Scan(&there); err != nil || there != 0 {
		t.Errorf("%d reservations in public, %v", there, err)
	}

	cfg := Config{
		URL: postgres.Schema("shop").In(behindPgBouncer(t, database)), Name: "test", BatchMax: 1, BatchLanes: 1, QueueMax: 1,
		Log: slog.New(slog.DiscardHandler),
	}
	other, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.Background())
	var schema *postgres.SchemaError
	if err := other.Ready(t.Context()); !errors.As(err, &schema) || schema.Want != "shop" {
		t.Errorf("a login without the schema: %v", err)
	}
	if _, err := other.Reserve(t.Context(), pay("other", "A", "B", 10)); !errors.As(err, &schema) {
		t.Errorf("a reserve by a login without the schema: %v", err)
	}
}

// A ledger whose schema is missing says what to do.
func TestAMissingSchema(t *testing.T) {
	if embeddedtest.Schemas(t) {
		t.Skip("it makes schemas of a database of its own")
	}
	conn := connect(t, postgres.Schema("nowhere").In(migrated.Postgres(t)))
	if err := CheckSchema(t.Context(), conn, KnownSchema()); !errors.Is(err, ErrSchema) || !strings.Contains(err.Error(), "pgw migrate") {
		t.Errorf("%v", err)
	}
}
