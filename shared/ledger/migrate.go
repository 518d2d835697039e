package ledger

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"sync"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"pgw/shared/postgres"
)

//go:embed migrations/*.sql
var migrations embed.FS

// A migration waits at most migrationLockTimeout for a lock, because payments queue up behind it.
// It is tried at most migrationTries times.
const (
	migrationLockTimeout = "2s"
	migrationTries       = 30
)

// Migrate brings the schema up to date, and makes the one that the URL names (postgres.Schema) if it is
// missing. Processes that migrate at the same time wait for each other. If a newer release has migrated the schema already, Migrate changes nothing and returns an
// error. UPGRADES.md lists what a migration may do while payments go on.
func Migrate(ctx context.Context, databaseURL string) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	return migrate(ctx, databaseURL, files, KnownSchema())
}

func migrate(ctx context.Context, databaseURL string, files fs.FS, known int) error {
	cfg, err := postgres.ParseConfig(databaseURL)
	if err != nil {
		return err
	}
	cfg.RuntimeParams["lock_timeout"] = migrationLockTimeout
	if schema := postgres.SchemaOf(cfg); schema != "" {
		if err := makeSchema(ctx, databaseURL, schema); err != nil {
			return fmt.Errorf("make the schema %s: %w", schema, err)
		}
	}
	conn := stdlib.OpenDB(*cfg)
	defer conn.Close()
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, files, goose.WithSessionLocker(locker))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	at, err := provider.GetDBVersion(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if at > int64(known) {
		return fmt.Errorf("migrate: the schema has version %d, and this release knows %d: migrate with the newer release", at, known)
	}
	if err := untilFree(ctx, func() error { _, err := provider.Up(ctx); return err }); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// makeSchemaSQL makes a schema, unless it is there: who makes it beforehand need not give the right to make
// others. It is never a distributed schema of Citus, because the migrations need a plain one: see CITUS.md.
const makeSchemaSQL = `
DO $$
BEGIN
	IF to_regnamespace('%[1]s') IS NULL THEN
		PERFORM set_config('citus.enable_schema_based_sharding', 'off', true);
		CREATE SCHEMA %[2]s;
	END IF;
EXCEPTION WHEN duplicate_schema OR unique_violation THEN -- another process has just made it
END $$`

func makeSchema(ctx context.Context, databaseURL string, schema postgres.Schema) error {
	conn, err := postgres.Connect(ctx, databaseURL, nil)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, fmt.Sprintf(makeSchemaSQL, schema, quoted(schema)))
	return err
}

// quoted returns the schema's name as an identifier in SQL, because the name may be a word of SQL.
func quoted(schema postgres.Schema) string { return pgx.Identifier{string(schema)}.Sanitize() }

// untilFree runs a change of the schema again while other transactions keep it from its locks.
func untilFree(ctx context.Context, change func() error) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := change()
		if err != nil && !postgres.LockTimeout(err) && !postgres.Transient(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxTries(migrationTries), backoff.WithMaxElapsedTime(0))
	return err
}

//go:embed contract.sql
var contractSQL string

// Contract takes away what only earlier releases use. It brings the schema up to date first. No
// earlier release can work with the schema afterwards. It may be repeated.
func Contract(ctx context.Context, databaseURL string) error {
	if err := Migrate(ctx, databaseURL); err != nil {
		return err
	}
	conn, err := postgres.Connect(ctx, databaseURL, map[string]string{"lock_timeout": migrationLockTimeout})
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = untilFree(ctx, func() error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			// In a schema that is distributed already, Citus would not even drop a trigger that is
			// not there. It passes on the text of a statement, so each one comes by itself.
			for _, sql := range append([]string{unsafeTriggersAllowedSQL}, strings.Split(contractSQL, ";\n")...) {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("contract the schema: %w", err)
	}
	return nil
}

// KnownSchema is the newest migration that this release knows.
var KnownSchema = sync.OnceValue(func() int {
	files, err := migrations.ReadDir("migrations")
	if err != nil || len(files) == 0 {
		panic(fmt.Sprintf("migrations are not embedded: %v", err))
	}
	digits, _, _ := strings.Cut(files[len(files)-1].Name(), "_") // sorted by name
	version, err := strconv.Atoi(digits)
	if err != nil {
		panic(err)
	}
	return version
})

const schemaSQL = `SELECT (SELECT max(version_id) FROM goose_db_version), (SELECT oldest_release FROM schema_support)`

// CheckSchema returns an ErrSchema if a release that knows a schema can't work with the current
// one: the current schema is older, or it is newer and has lost something that this release uses.
// Other errors come from the database.
func CheckSchema(ctx context.Context, q postgres.Querier, known int) error {
	var version, oldest int
	err := q.QueryRow(ctx, schemaSQL).Scan(&version, &oldest)
	switch {
	case postgres.NoSuchTable(err), errors.Is(err, pgx.ErrNoRows):
		return schemaError(fmt.Sprintf("the schema is older than this release, which needs version %d: run pgw migrate", known))
	case err != nil:
		return err
	case version < known:
		return schemaError(fmt.Sprintf("the schema has version %d, and this release needs version %d: run pgw migrate", version, known))
	case known < oldest:
		return schemaError(fmt.Sprintf("the schema has version %d, which releases that know less than version %d can't work with; this one knows %d: "+
			"deploy a newer release", version, oldest, known))
	}
	return nil
}

//go:embed roles.sql
var rolesSQL string

// The roles of the functions' logins.
const (
	LedgerRole   = "pgw_ledger"   // db
	ReaderRole   = "pgw_reader"   // fx, wallet, risk
	WebhooksRole = "pgw_webhooks" // webhooks
)

// RoleOf returns the role of a ledger's logins that is one of the roles above in the usual schema. Each
// ledger has roles of its own, because roles belong to the whole server.
func RoleOf(role string, schema postgres.Schema) string {
	if schema == "" {
		return role
	}
	return role + "_of_" + string(schema)
}

// rolesIn returns the statements that make the roles of a ledger.
func rolesIn(schema postgres.Schema) string {
	if schema == "" {
		return rolesSQL
	}
	names := []string{"SCHEMA public", "SCHEMA " + quoted(schema), "'public'", "'" + string(schema) + "'"}
	for _, role := range []string{"pgw_owner", LedgerRole, ReaderRole, WebhooksRole} {
		names = append(names, role, RoleOf(role, schema))
	}
	return strings.NewReplacer(names...).Replace(rolesSQL) + fmt.Sprintf(revokeOthersSQL, schema)
}

// revokeOthersSQL takes rights in a schema from the roles of public. Migrations grant them rights if these roles
// exist, and a login may have a role there too.
const revokeOthersSQL = `
DO $$
DECLARE name text;
BEGIN
	FOR name IN SELECT rolname FROM pg_roles WHERE rolname IN ('` + LedgerRole + `', '` + ReaderRole + `', '` + WebhooksRole + `') LOOP
		EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %%I FROM %%I', '%s', name);
	END LOOP;
END $$`

// Login is a user of Postgres, as a URL, with its role: the one of the usual schema.
type Login struct{ URL, Role string }

// Roles makes the roles, grants their rights, and makes the missing logins with the passwords in
// their URLs. It may be repeated. It must run after each migration, because nobody has rights on a
// new table before that. The ledger of a schema has roles and logins of its own, and that schema becomes
// the setting of its logins: PgBouncer does not pass on what a URL says.
func Roles(ctx context.Context, databaseURL string, logins ...Login) error {
	conn, err := postgres.Connect(ctx, databaseURL, nil)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	schema := postgres.SchemaOf(conn.Config())
	if err := changeRoles(ctx, conn, rolesIn(schema)); err != nil {
		return fmt.Errorf("make roles: %w", err)
	}
	for _, l := range logins {
		u, err := pgx.ParseConfig(l.URL)
		if err != nil {
			return fmt.Errorf("the URL of a login with the role %s: %w", l.Role, err)
		}
		if u.User == conn.Config().User {
			return fmt.Errorf("%s is the user who makes the tables, and cannot have fewer rights: name another login for %s", u.User, l.Role)
		}
		if err := makeLogin(ctx, conn, u.User, u.Password, RoleOf(l.Role, schema)); err != nil {
			return fmt.Errorf("make login %s: %w", u.User, err)
		}
		if schema == "" {
			continue
		}
		if err := setSchema(ctx, conn, u.User, schema); err != nil {
			return fmt.Errorf("set the schema of login %s: %w", u.User, err)
		}
	}
	return nil
}

const (
	// loginSchemaSQL reads the schema that a login has in this database.
	loginSchemaSQL = `
SELECT coalesce(max(option_value), '') FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole JOIN pg_database d ON d.oid = s.setdatabase,
	pg_options_to_table(s.setconfig) WHERE r.rolname = $1 AND d.datname = current_database() AND option_name = 'search_path'`

	setSchemaSQL = `SELECT format('ALTER ROLE %I IN DATABASE %I SET search_path = %I', $1::text, current_database(), $2::text)`
)

// setSchema sets the schema of a login in this database. A login has one ledger.
func setSchema(ctx context.Context, conn *pgx.Conn, user string, schema postgres.Schema) error {
	var is, statement string
	if err := conn.QueryRow(ctx, loginSchemaSQL, user).Scan(&is); err != nil {
		return err
	}
	switch is = strings.Trim(is, `"`); is {
	case string(schema):
		return nil
	case "":
	default:
		return fmt.Errorf("it belongs to the ledger in %s: name another login", is)
	}
	if err := conn.QueryRow(ctx, setSchemaSQL, user, string(schema)).Scan(&statement); err != nil {
		return err
	}
	return changeRoles(ctx, conn, statement)
}

// loginSQL returns the statement that makes a login, or changes an existing one. Names and
// passwords can't be parameters of CREATE ROLE, so the server quotes them.
const loginSQL = `SELECT format(
	CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = $1) THEN 'ALTER' ELSE 'CREATE' END ||
	' ROLE %1$I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD %2$L; GRANT %3$I TO %1$I', $1::text, $2::text, $3::text)`

// loginTries is how often Roles tries to make a login. Another process may make it at the same
// time.
const loginTries = 5

func makeLogin(ctx context.Context, conn *pgx.Conn, user, password, role string) (err error) {
	for range loginTries {
		var statement string
		if err = conn.QueryRow(ctx, loginSQL, user, password, role).Scan(&statement); err != nil {
			return err
		}
		if err = changeRoles(ctx, conn, statement); !postgres.Exists(err) {
			return err
		}
	}
	return err
}

// changeRoles runs a change of the server's roles. They belong to the whole server, so another
// database may change them at the same time.
func changeRoles(ctx context.Context, conn *pgx.Conn, sql string) error {
	return postgres.Again(ctx, func() error { _, err := conn.Exec(ctx, sql); return err })
}
