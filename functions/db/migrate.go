package db

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"pgw/shared/postgres"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate brings the schema up to date. Processes that do so at the same time wait for each other.
func Migrate(ctx context.Context, databaseURL string) error {
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	conn := stdlib.OpenDB(*cfg)
	defer conn.Close()
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, files, goose.WithSessionLocker(locker))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

//go:embed roles.sql
var rolesSQL string

// The roles that logins of functions are members of.
const (
	LedgerRole = "pgw_ledger" // db
	ReaderRole = "pgw_reader" // fx, wallet, risk
)

// Login is a user of Postgres, as a URL, with the role that it shall have.
type Login struct{ URL, Role string }

// Roles makes the roles, gives them their rights, and makes the logins that are missing, with the passwords in their
// URLs. It may be repeated, and must be after a migration: new tables belong to nobody's rights before.
func Roles(ctx context.Context, databaseURL string, logins ...Login) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// Roles are of the whole server: two databases' may be made at the same time.
	run := func(sql string) error {
		return postgres.Again(ctx, func() error { _, err := conn.Exec(ctx, sql); return err })
	}
	if err := run(rolesSQL); err != nil {
		return fmt.Errorf("make roles: %w", err)
	}
	for _, l := range logins {
		u, err := pgx.ParseConfig(l.URL)
		if err != nil {
			return fmt.Errorf("the URL of a login with the role %s: %w", l.Role, err)
		}
		if u.User == conn.Config().User {
			return fmt.Errorf("%s is who makes the tables, and can't be less: name another login for %s", u.User, l.Role)
		}
		var statement string
		// Names and passwords can't be parameters of CREATE ROLE: the server quotes them.
		if err := conn.QueryRow(ctx, `SELECT format(
	CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = $1) THEN 'ALTER' ELSE 'CREATE' END ||
	' ROLE %1$I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD %2$L; GRANT %3$I TO %1$I', $1::text, $2::text, $3::text)`,
			u.User, u.Password, l.Role).Scan(&statement); err != nil {
			return fmt.Errorf("make login %s: %w", u.User, err)
		}
		if err := run(statement); err != nil {
			return fmt.Errorf("make login %s: %w", u.User, err)
		}
	}
	return nil
}
