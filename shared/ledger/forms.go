package ledger

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgw/shared/postgres"
)

// A ledger whose rows are distributed over nodes of Citus (DistributeRows) needs some statements in
// another form. A form chooses by what the connection is to. These differ:
//
//   - No statement locks rows of several nodes without changing them. So a guard stands in the
//     UPDATE itself, which counts the rows that it has changed. A lock is an UPDATE that changes
//     nothing.
//   - A join of reservations with balances goes through a CTE, which Citus sends to the nodes.
//   - The time of a booking is the coordinator's, after the UPDATE of the balances.
//   - An INSERT of several rows has RETURNING. Without it, Citus reports what a table refuses as an
//     internal error.
//
// Citus runs the CTEs of a statement one after the other, in the order of the text. It lets two
// updates that reach several shards of a table follow each other until their transactions end. All
// transactions change reservations first, then accounts, and then balances. What still waits in a
// circle is ended by Citus, and runs again.
type form struct {
	one  string // on one server: Postgres, or a node with the whole schema
	rows string // on distributed rows
}

// RewriteQuery implements pgx.QueryRewriter.
func (f *form) RewriteQuery(_ context.Context, conn *pgx.Conn, _ string, args []any) (string, []any, error) {
	return f.of(conn), args, nil
}

func (f *form) of(conn *pgx.Conn) string {
	if postgres.Rows(conn) {
		return f.rows
	}
	return f.one
}

// and returns the form with a clause after the statement that is for one server.
func (f *form) and(clause string) *form { return &form{f.one + clause, f.rows} }

// with returns the arguments for a pgx method that gets f.one as its SQL.
func (f *form) with(args []any) []any { return append([]any{f}, args...) }

func (f *form) queue(b *pgx.Batch, args ...any) *pgx.QueuedQuery {
	return b.Queue(f.one, f.with(args)...)
}

func (f *form) query(ctx context.Context, q postgres.Querier, args ...any) (pgx.Rows, error) {
	return q.Query(ctx, f.one, f.with(args)...)
}

func (f *form) row(ctx context.Context, q postgres.Querier, args ...any) pgx.Row {
	return q.QueryRow(ctx, f.one, f.with(args)...)
}

// executor is a pool, a connection or a transaction.
type executor interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func (f *form) exec(ctx context.Context, q executor, args ...any) (pgconn.CommandTag, error) {
	return q.Exec(ctx, f.one, f.with(args)...)
}

// outcomeOf joins the outcome p of a reservation r. Both rows have the key, by which they are
// distributed.
const outcomeOf = `LEFT JOIN payments p ON p.payment_id = r.reservation_id AND p.idempotency_key = r.idempotency_key`

// gathered is the form of a statement that compares all rows of these tables. On distributed rows,
// each table comes to the coordinator first.
func gathered(sql string, tables ...string) *form {
	ctes := make([]string, len(tables))
	for i, table := range tables {
		ctes[i] = fmt.Sprintf("%[1]s AS MATERIALIZED (SELECT * FROM %[1]s)", table)
	}
	rest := "\n" + strings.TrimSpace(sql)
	if more, found := strings.CutPrefix(strings.TrimSpace(sql), "WITH "); found {
		rest = ", " + more
	}
	return &form{sql, "WITH " + strings.Join(ctes, ", ") + rest}
}

// queueSpreadLocks locks accounts and then their balances, on distributed rows. Citus lets only
// updates of several shards follow each other. So a transaction that changes accounts one by one
// locks all of them first, and in the order of payments.
func queueSpreadLocks(b *pgx.Batch, conn *pgx.Conn, accounts ...string) {
	if postgres.Rows(conn) {
		b.Queue(touchAccountsSQL, accounts)
		b.Queue(touchBalancesSQL, accounts)
	}
}

const touchAccountsSQL = `
UPDATE accounts a SET updated_at = a.updated_at FROM unnest($1::text[]) AS w(account_id) WHERE a.account_id = w.account_id`

// queueClaimsFirst locks the shards of reservations before a transaction locks balances, on
// distributed rows. There the insert of several reservations waits for updates of others.
func queueClaimsFirst(b *pgx.Batch, conn *pgx.Conn) {
	if postgres.Rows(conn) {
		b.Queue(lockPaymentSQL.rows, uuid.Nil)
	}
}
