package ledger

import (
	"context"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"

	"pgw/shared/embedded/embeddedtest"
)

// wait is the time limit for steps that take milliseconds on an idle machine.
const wait = 30 * time.Second

// A release is ready only if the schema has everything that it uses. It does not change a newer
// schema.
func TestAReleaseIsReadyWhereTheSchemaFits(t *testing.T) {
	url := embeddedtest.Postgres(t)
	conn := connect(t, url)
	known := KnownSchema()
	check := func(known int, want string) {
		t.Helper()
		err := CheckSchema(t.Context(), conn, known)
		if want == "" && err != nil {
			t.Errorf("a release that knows %d: %v", known, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("a release that knows %d: %v; want %q", known, err, want)
		}
	}
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	check(known, "run pgw migrate") // the database is empty
	if err := Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	check(known, "")
	check(known+1, "run pgw migrate")
	check(known-1, "") // the schema is newer, and has everything that this release uses

	exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES ($1, true)`, known+1)
	check(known, "")
	exec(`UPDATE schema_support SET oldest_release = $1`, known+1)
	check(known, "deploy a newer release")
	check(known+1, "")
	// One line names both versions, and nothing is changed.
	want := fmt.Sprintf("migrate: the schema has version %d, and this release knows %d: migrate with the newer release", known+1, known)
	for name, change := range map[string]func(context.Context, string) error{"migrate": Migrate, "contract": Contract} {
		if err := change(t.Context(), url); err == nil || err.Error() != want {
			t.Errorf("%s of a newer schema: %v; want %s", name, err, want)
		}
	}
	var oldest int
	if err := conn.QueryRow(t.Context(), `SELECT oldest_release FROM schema_support`).Scan(&oldest); err != nil || oldest != known+1 {
		t.Errorf("the oldest release is %d, %v", oldest, err)
	}
}

// While a migration waits for a lock, other transactions pass. The migration continues after the
// lock is free.
func TestAMigrationDoesNotHoldUpThoseBehindIt(t *testing.T) {
	url := embeddedtest.Postgres(t)
	conn, reader := connect(t, url), connect(t, url)
	if _, err := conn.Exec(t.Context(), `CREATE TABLE busy (id int)`); err != nil {
		t.Fatal(err)
	}
	holder, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(context.Background())
	if _, err := holder.Exec(t.Context(), `SELECT FROM busy`); err != nil { // locks the table
		t.Fatal(err)
	}
	migrated := make(chan error, 1)
	files := fstest.MapFS{"00001_wider.sql": {Data: []byte("-- +goose Up\nALTER TABLE busy ADD COLUMN more int;\n")}}
	go func() { migrated <- migrate(context.Background(), url, files, 1) }()
	waiting := func() (n int) {
		err := reader.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for end := time.Now().Add(wait); waiting() == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the migration does not wait for the lock within %s", wait)
		}
	}
	// The holder ends only after this. Without a limit on the migration's wait, neither would ever
	// end.
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	if _, err := reader.Exec(ctx, `SELECT FROM busy`); err != nil {
		t.Errorf("a reader behind the migration: %v", err)
	}
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-migrated; err != nil {
		t.Error(err)
	}
}

// These were made before there was any data to migrate, or change tables of a few rows.
var unruly = map[string]bool{"00001_ledger.sql": true, "00004_clock.sql": true}

var (
	comments = regexp.MustCompile(`--[^\n]*`)
	created  = regexp.MustCompile(`(?i)CREATE TABLE (?:IF NOT EXISTS )?(\w+)`)
	indexed  = regexp.MustCompile(`(?i)CREATE (?:UNIQUE )?INDEX (CONCURRENTLY )?(?:IF NOT EXISTS )?\w+ ON (\w+)`)
	added    = regexp.MustCompile(`(?i)ADD COLUMN [^,]*`)
	checks   = regexp.MustCompile(`(?i)ADD CONSTRAINT [\s\S]*`)
	retyped  = regexp.MustCompile(`(?i)ALTER COLUMN \w+ (SET DATA )?TYPE\b`)
	dropped  = regexp.MustCompile(`(?i)\bDROP TABLE\b`)
	changes  = regexp.MustCompile(`(?i)\b(ADD|DROP|ALTER|VALIDATE) (COLUMN|CONSTRAINT)\b`)
)

const (
	severalChanges = "adds a constraint together with other changes of the table, which Citus refuses in a schema that is distributed"

	// firstDistributed is the first migration that may meet a distributed schema. Earlier ones
	// always come before it is distributed.
	firstDistributed = "00024"
)

// migrationProblems returns the parts of a migration that stop payments or earlier releases.
func migrationProblems(text string) (problems []string) {
	text = comments.ReplaceAllString(text, "")
	made := map[string]bool{}
	for _, table := range created.FindAllStringSubmatch(text, -1) {
		made[table[1]] = true
	}
	for statement := range strings.SplitSeq(text, ";") {
		if checks.MatchString(statement) && len(changes.FindAllString(statement, -1)) > 1 {
			problems = append(problems, severalChanges)
		}
		if dropped.MatchString(statement) {
			problems = append(problems, "drops a table")
		}
		if retyped.MatchString(statement) {
			problems = append(problems, "writes a table anew while it is locked")
		}
		if index := indexed.FindStringSubmatch(statement); index != nil && index[1] == "" && !made[index[2]] {
			problems = append(problems, "makes an index of "+index[2]+" without CONCURRENTLY")
		}
		if check := strings.ToUpper(checks.FindString(statement)); check != "" && !strings.Contains(check, "NOT VALID") {
			problems = append(problems, "validates a constraint while the table is locked (NOT VALID, then VALIDATE CONSTRAINT)")
		}
		for _, column := range added.FindAllString(statement, -1) {
			if column = strings.ToUpper(column); strings.Contains(column, "NOT NULL") && !strings.Contains(column, "DEFAULT") {
				problems = append(problems, "adds a column that releases before it don't fill")
			}
		}
	}
	return problems
}

func TestMigrationProblemsAreFound(t *testing.T) {
	for text, want := range map[string]int{
		"ALTER TABLE a ADD COLUMN b int, ADD COLUMN c text NOT NULL DEFAULT '';":  0,
		"CREATE TABLE a (b int); CREATE INDEX c ON a (b);":                        0,
		"CREATE INDEX CONCURRENTLY c ON a (b);":                                   0,
		"ALTER TABLE a ADD CONSTRAINT c CHECK (b > 0) NOT VALID; -- DROP TABLE a": 0,
		"DROP TABLE a;":                                                              1,
		"CREATE UNIQUE INDEX c ON a (b);":                                            1,
		"ALTER TABLE a ALTER COLUMN b TYPE bigint;":                                  1,
		"ALTER TABLE a ADD CONSTRAINT c CHECK (b > 0);":                              1,
		"ALTER TABLE a ADD COLUMN b int NOT NULL;":                                   1,
		"ALTER TABLE a DROP CONSTRAINT c, ADD CONSTRAINT c CHECK (b > 0) NOT VALID;": 1,
		"alter table a add column b int not null, add column c int default 1;":       1,
	} {
		if got := migrationProblems(text); len(got) != want {
			t.Errorf("%s: %q; want %d problems", text, got, want)
		}
	}
}

// Payments continue during every migration, as UPGRADES.md requires.
func TestMigrationsLetPaymentsGoOn(t *testing.T) {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil || len(files) < 6 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := migrations.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if name := strings.TrimPrefix(file, "migrations/"); !unruly[name] {
			for _, problem := range migrationProblems(string(text)) {
				if problem == severalChanges && name < firstDistributed {
					continue
				}
				t.Errorf("%s %s", name, problem)
			}
		}
	}
}

// The schema refuses outcomes that would reach a client and can't be true.
func TestTheSchemaRefusesFalseOutcomes(t *testing.T) {
	w := newWorld(t)
	const payments = `INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason)
VALUES ($1, 'k', 'A', 'B', 'IDR', $2, $3, $4)`
	for name, tc := range map[string]struct {
		amount         int64
		status, reason string
	}{
		"failed, and committed":  {1, "FAILED", "committed"},
		"success, and a refusal": {1, "SUCCESS", "insufficient_funds"},
		"no reason":              {1, "FAILED", ""},
		"no amount":              {0, "FAILED", "expired"},
	} {
		if _, err := w.pool.Exec(context.Background(), payments, uuid.New(), tc.amount, tc.status, tc.reason); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
	const reservations = `INSERT INTO reservations (reservation_id, idempotency_key, fingerprint, sender_id, receiver_id, amount_idr,
	currency_input, amount_minor, status, deadline) VALUES ($1, 'k', $2, 'A', 'B', 1, 'IDR', $3, 'PENDING', now())`
	if _, err := w.pool.Exec(context.Background(), reservations, uuid.New(), make([]byte, 15), 1); err == nil {
		t.Error("a fingerprint of 15 bytes was taken")
	}
	if _, err := w.pool.Exec(context.Background(), reservations, uuid.New(), make([]byte, 16), -1); err == nil {
		t.Error("a negative amount was taken")
	}
}
