package ledger

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/postgres"
)

func loginTo(t testing.TB, database, user string) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, "it's a \"secret\" of \\ tests")
	return u.String()
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// A login has only the rights in the database that its function needs. A reader writes nothing, and
// the ledger's own login can't undo a decision. The flow tests run with these logins, which shows
// that their rights suffice.
func TestRolesHaveTheRightsTheyNeedAndNoMore(t *testing.T) {
	owner := embeddedtest.Postgres(t)
	ledger, reader := loginTo(t, owner, "pgw_test_ledger"), loginTo(t, owner, "pgw_test_reader")
	logins := []Login{{ledger, LedgerRole}, {reader, ReaderRole}}
	for range 2 { // Roles may be repeated, also after tables belong to the role
		if err := Migrate(t.Context(), owner); err != nil {
			t.Fatal(err)
		}
		if err := Roles(t.Context(), owner, logins...); err != nil {
			t.Fatal(err)
		}
	}
	conn := connect(t, owner)
	for _, sql := range []string{
		`INSERT INTO accounts (account_id) VALUES ('A'), ('B')`,
		`INSERT INTO balances (account_id, currency) VALUES ('A', 'IDR'), ('B', 'IDR')`,
		`INSERT INTO transfers (transfer_id, account_id, amount) VALUES ('f', 'A', 5)`,
		`INSERT INTO reservations (reservation_id, idempotency_key, fingerprint, sender_id, receiver_id, amount_idr, currency_input, status, deadline)
		 VALUES ('00000000-0000-0000-0000-000000000001', 'k', decode(repeat('00', 16), 'hex'), 'A', 'B', 5, 'IDR', 'COMMITTED', now())`,
		`INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason)
		 VALUES ('00000000-0000-0000-0000-000000000001', 'k', 'A', 'B', 'IDR', 5, 'SUCCESS', 'committed')`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	tables := []string{"accounts", "balances", "transfers", "entries", "quotes", "reservations", "payments", "fx_rates", "risk_rules", "sweep_state", "dead_letter_actions", "operator_changes", "verdicts", "operations"}
	admin, err := postgres.ParseConfig(owner)
	if err != nil {
		t.Fatal(err)
	}
	ownerRole := RoleOf("pgw_owner", postgres.SchemaOf(admin))
	var never []string // denied to both logins
	for _, table := range tables {
		never = append(never, "DELETE FROM "+table, "TRUNCATE "+table+" CASCADE", "DROP TABLE "+table+" CASCADE",
			"ALTER TABLE "+table+" ADD COLUMN mine text", "ALTER TABLE "+table+" DISABLE TRIGGER ALL",
			"CREATE TRIGGER t BEFORE UPDATE ON "+table+" EXECUTE FUNCTION suppress_redundant_updates_trigger()")
	}
	never = append(never,
		`CREATE TABLE mine (a text)`, `CREATE TEMPORARY TABLE mine (a text)`, `DROP VIEW payment_history`, `DROP VIEW wallet_accounts`, `CREATE ROLE mine`, `SET ROLE `+ownerRole,
		`SET SESSION AUTHORIZATION `+admin.User, `COPY balances TO PROGRAM 'cat'`, `SELECT pg_read_file('/etc/passwd')`, `ALTER ROLE `+ownerRole+` LOGIN`,
		`UPDATE payments SET status = 'FAILED'`, `UPDATE transfers SET amount = 9`, `UPDATE fundings SET amount_idr = 9`, `UPDATE entries SET amount = 9`,
		`UPDATE accounts SET account_id = 'C'`, `UPDATE accounts SET internal = true`, `UPDATE balances SET account_id = 'C'`,
		`UPDATE balances SET currency = 'USD'`, `UPDATE reservations SET debit_minor = 1`, `UPDATE quotes SET debit_minor = 1`,
		`DELETE FROM wallet_accounts`, `DELETE FROM fundings`, `UPDATE fx_rates SET rate = 1`, `UPDATE risk_rules SET rules = '{}'`,
		`UPDATE reservations SET amount_idr = 1`, `UPDATE reservations SET receiver_id = 'A'`, `UPDATE reservations SET idempotency_key = 'x'`,
		`UPDATE wallet_accounts SET account_id = 'C'`, `UPDATE wallet_accounts SET internal = true`, `UPDATE dead_letter_actions SET note = ''`, `UPDATE operator_changes SET note = ''`,
		`UPDATE reservations SET authorized_minor = 1`, `UPDATE reservations SET hold_seconds = 1`, `UPDATE operations SET reason = 'expired'`,
		`UPDATE authorizations SET expires_at = now()`, `TRUNCATE authorizations`)
	onlyLedger := []string{
		`INSERT INTO accounts (account_id) VALUES ('D')`, `UPDATE balances SET available = available + 1`,
		`UPDATE wallet_accounts SET balance_idr = balance_idr + 1`, `INSERT INTO transfers (transfer_id, account_id, amount) VALUES ('h', 'A', 5)`,
		`INSERT INTO fundings (funding_id, account_id, amount_idr) VALUES ('g', 'A', 5)`, `UPDATE reservations SET status = 'ROLLEDBACK'`,
		`UPDATE sweep_state SET swept_to = now()`, `INSERT INTO fx_rates (rate_id, base, quote, rate) VALUES (gen_random_uuid(), 'USD', 'IDR', 1)`,
		`SELECT * FROM balances FOR UPDATE`, `SELECT * FROM wallet_accounts FOR UPDATE`, `DELETE FROM authorizations`,
	}
	for user, tc := range map[string]struct {
		url     string
		refused []string
		allowed []string
	}{
		"reader": {reader, append(append([]string{}, never...), onlyLedger...), nil},
		"ledger": {ledger, never, onlyLedger},
	} {
		as := connect(t, tc.url)
		// A login can change the settings of its own session, so they are no protection.
		if _, err := as.Exec(t.Context(), `SET default_transaction_read_only = off`); err != nil {
			t.Fatal(err)
		}
		for _, table := range append(tables, "payment_history", "wallet_accounts", "fundings") {
			if _, err := as.Exec(t.Context(), "SELECT * FROM "+table); err != nil {
				t.Errorf("%s reads %s: %v", user, table, err)
			}
		}
		attempt := func(sql string) error {
			tx, err := as.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			_, err = tx.Exec(t.Context(), sql)
			return err
		}
		for _, sql := range tc.refused {
			if err := attempt(sql); err == nil || !strings.Contains(err.Error(), "42501") { // insufficient_privilege
				t.Errorf("%s may %s: %v", user, sql, err)
			}
		}
		for _, sql := range tc.allowed {
			if err := attempt(sql); err != nil {
				t.Errorf("%s may not %s: %v", user, sql, err)
			}
		}
	}
	// The owner can't lose rights by mistake, and the error does not contain a password.
	if err := Roles(t.Context(), owner, Login{owner, ReaderRole}); err == nil || !strings.Contains(err.Error(), "who makes the tables") {
		t.Errorf("the owner as reader: %v", err)
	}
	if err := Roles(t.Context(), owner, Login{strings.Replace(reader, "@", "@@", 1) + "%zz", ReaderRole}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a bad URL: %v", err)
	}
}

// Another database of the server may make the same login at the same time.
func TestALoginThatSomebodyElseMakesIsTaken(t *testing.T) {
	owner := embeddedtest.Postgres(t)
	if err := Migrate(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	other, watch := connect(t, owner), connect(t, owner)
	if _, err := other.Exec(t.Context(), `DROP ROLE IF EXISTS pgw_test_same`); err != nil {
		t.Fatal(err)
	}
	tx, err := other.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `CREATE ROLE pgw_test_same LOGIN`); err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	go func() {
		made <- Roles(context.Background(), owner, Login{loginTo(t, owner, "pgw_test_same"), ReaderRole})
	}()
	eventually(t, "the login is being made", func() error {
		var waiting bool
		err := watch.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waiting)
		if err == nil && !waiting {
			err = errors.New("no session waits for it")
		}
		return err
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-made; err != nil {
		t.Error(err)
	}
	as := connect(t, loginTo(t, owner, "pgw_test_same"))
	if _, err := as.Exec(t.Context(), `SELECT * FROM payments`); err != nil {
		t.Errorf("the login reads: %v", err)
	}
}
