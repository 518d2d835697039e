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

// onCitus marks the connections to a database with Citus, and onRows those to a ledger whose rows
// are distributed.
const (
	onCitus = "pgw.citus"
	onRows  = "pgw.rows"
)

// HasCitusSQL selects whether a database has Citus.
const HasCitusSQL = `SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')`

// fitCitusSQL lets the server choose its plans where there is Citus. It returns a row only there.
const fitCitusSQL = `SELECT set_config('plan_cache_mode', 'auto', false) FROM pg_extension WHERE extname = 'citus'`

// fitToRowsSQL says whether the rows of the session's ledger are distributed. Then a statement has
// one connection to each node. Only the rows of an INSERT with a SELECT go to each shard on a
// connection of its own. These are kept for the next transaction, because making them anew costs
// more than the rest of it. The coordinator joins what the nodes return, which has no index, so it
// needs the joins that the pools turn off elsewhere.
const fitToRowsSQL = `
SELECT set_config('citus.max_adaptive_executor_pool_size', '1', false), set_config('citus.max_cached_conns_per_worker', (
		SELECT least(max(shards), 8)::text FROM (
			SELECT count(*) AS shards FROM pg_dist_shard s JOIN pg_dist_placement USING (shardid) WHERE s.logicalrelid = p.logicalrelid GROUP BY groupid
		) n), false),
	set_config('enable_seqscan', 'on', false), set_config('enable_hashjoin', 'on', false), set_config('enable_mergejoin', 'on', false)
FROM pg_dist_partition p WHERE logicalrelid = to_regclass('reservations') AND partmethod = 'h'`

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
		if err != nil || len(results[0].Rows) == 0 {
			return err
		}
		conn.CustomData()[onCitus] = true
		if results, err = conn.Exec(ctx, fitToRowsSQL).ReadAll(); err == nil && len(results[0].Rows) > 0 {
			conn.CustomData()[onRows] = true
		}
		return err
	}
}

// Citus says whether a connection is to a database with Citus.
func Citus(conn *pgx.Conn) bool { return conn.PgConn().CustomData()[onCitus] == true }

// Rows says whether a connection is to a ledger whose rows are distributed over nodes of Citus.
// Connections from before the distribution do not know it, and fail.
func Rows(conn *pgx.Conn) bool { return conn.PgConn().CustomData()[onRows] == true }

// PropagateSQL makes a transaction pass on what it sets with SET LOCAL to the servers of Citus that
// have the tables.
const PropagateSQL = `SET LOCAL citus.propagate_set_commands = 'local'`
