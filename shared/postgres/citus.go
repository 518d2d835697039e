package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// On Citus, the server that a session talks to plans statements for the servers that have the
// tables. It can't plan most of them before it knows their parameters, so it must not be told to
// make a plan only once. And a setting of a session stays with the session's server. Only what a
// transaction sets with SET LOCAL after PropagateSQL reaches the others.

// onCitus marks the connections to a database with Citus.
const onCitus = "pgw.citus"

// HasCitusSQL selects whether a database has Citus.
const HasCitusSQL = `SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')`

// fitCitusSQL lets the server choose its plans where there is Citus. It returns a row only there.
const fitCitusSQL = `SELECT set_config('plan_cache_mode', 'auto', false) FROM pg_extension WHERE extname = 'citus'`

// fitToCitus makes sessions fit a database with Citus. It costs each new connection a round trip.
func fitToCitus(c *pgx.ConnConfig) {
	before := c.AfterConnect
	c.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		if before != nil {
			if err := before(ctx, conn); err != nil {
				return err
			}
		}
		results, err := conn.Exec(ctx, fitCitusSQL).ReadAll()
		if err == nil && len(results[0].Rows) > 0 {
			conn.CustomData()[onCitus] = true
		}
		return err
	}
}

// Citus says whether a connection of a pool with Lookups is to a database with Citus.
func Citus(conn *pgx.Conn) bool { return conn.PgConn().CustomData()[onCitus] == true }

// PropagateSQL makes a transaction pass on what it sets with SET LOCAL to the servers of Citus that
// have the tables.
const PropagateSQL = `SET LOCAL citus.propagate_set_commands = 'local'`
