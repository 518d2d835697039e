package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Schema names the schema of a ledger that shares its database with other ledgers. The zero Schema
// leaves it to the login, which usually means public.
type Schema string

// searchPath is the parameter of a URL, and of a session, that names the schema.
const searchPath = "search_path"

// schemaName leaves room for the names of roles, which contain the schema's.
var schemaName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Schema) UnmarshalText(text []byte) error {
	name := string(text)
	if name != "" && !usable(name) {
		return errors.New("is not a name for a ledger's schema: up to 40 characters a-z, 0-9 and _, the first one a letter; " +
			"not public, information_schema or pg_ and more")
	}
	*s = Schema(name)
	return nil
}

func usable(name string) bool {
	return schemaName.MatchString(name) && name != "public" && name != "information_schema" && !strings.HasPrefix(name, "pg_")
}

// In returns the URL of a database with the schema. Every connection of this package to such a URL uses
// only this schema. A URL that can't be read is returned as it is, for the one who connects.
func (s Schema) In(databaseURL string) string {
	if s == "" {
		return databaseURL
	}
	if !strings.HasPrefix(databaseURL, "postgres://") && !strings.HasPrefix(databaseURL, "postgresql://") {
		return strings.TrimSpace(databaseURL + " " + searchPath + "=" + string(s)) // the last value counts
	}
	u, err := url.Parse(databaseURL)
	if err != nil {
		return databaseURL
	}
	q := u.Query()
	q.Set(searchPath, string(s))
	u.RawQuery = q.Encode()
	return u.String()
}

// SchemaOf returns the schema that a URL names.
func SchemaOf(c *pgx.ConnConfig) Schema {
	if name := c.RuntimeParams[searchPath]; usable(name) {
		return Schema(name)
	}
	return ""
}

// ParseConfig reads the URL of a ledger for a single connection. An error names DATABASE_URL.
func ParseConfig(databaseURL string) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err) // pgx's error repeats the URL, without its password
	}
	requireSchema(c)
	return c, nil
}

// Connect opens a single connection to a ledger, with further settings of its session. It gives up after
// 10 s if the URL has no connect_timeout, and detects a silent host. An error names DATABASE_URL.
func Connect(ctx context.Context, databaseURL string, settings map[string]string) (*pgx.Conn, error) {
	c, err := ParseConfig(databaseURL)
	if err != nil {
		return nil, err
	}
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 10*time.Second)
	c.DialFunc = (&net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 10 * time.Second, Count: 3},
	}).DialContext
	maps.Copy(c.RuntimeParams, settings)
	fitToCitus(c)
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	return conn, nil
}

// requireSchema makes a connection fail if its session has another schema than the URL names. PgBouncer
// drops the parameter if it is told to ignore it, and then the login's own setting counts. Without this
// check, a login without that setting would work on another ledger.
func requireSchema(c *pgx.ConnConfig) {
	want := SchemaOf(c)
	if want == "" {
		return
	}
	c.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		results, err := conn.Exec(ctx, "SELECT current_setting('"+searchPath+"')").ReadAll()
		if err != nil {
			return err
		}
		if got := strings.Trim(string(results[0].Rows[0][0]), `"`); got != string(want) {
			return &SchemaError{Want: want, Got: got}
		}
		return nil
	}
}

// SchemaError says that a session has another schema than the ledger's.
type SchemaError struct {
	Want Schema
	Got  string // the session's search_path
}

func (e *SchemaError) Error() string {
	return fmt.Sprintf("the session looks for tables in %s, and the ledger is in the schema %s: something between here and Postgres, such as "+
		"PgBouncer, drops the setting search_path; set it for the login, as pgw migrate --roles does", e.Got, e.Want)
}
