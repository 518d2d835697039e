package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"pgw/shared/postgres"
)

// A transaction that is REPEATABLE READ sees one state of the ledger on one server. On distributed
// rows it sees one state of each node, and each is of the time when it first read there. A payment
// that commits in between is seen on one node and not on another. So a snapshot of distributed rows
// begins on all nodes while no payment is under way. Every transaction that moves money has a
// shared lock on an advisory number of the coordinator until all nodes have its end (see limits),
// and the snapshot has that lock alone for the moment in which it begins.

const (
	// whileMovingSQL and noMovesSQL lock the number.
	movesSQL       = `(21, hashtext(current_schema()))`
	whileMovingSQL = `SELECT pg_advisory_xact_lock_shared` + movesSQL
	noMovesSQL     = `SELECT pg_advisory_lock` + movesSQL
	movesAgainSQL  = `SELECT pg_advisory_unlock` + movesSQL

	// Payments wait behind a snapshot that waits. So it gives up soon, and tries again.
	waitForMovesSQL = `SET LOCAL lock_timeout = '1s'`

	// preparedSQL lists what the nodes have prepared, and neither committed nor rolled back.
	preparedSQL = `
SELECT nodeid, success, result
FROM run_command_on_all_nodes('SELECT coalesce(json_agg(gid), ''[]'') FROM pg_prepared_xacts WHERE database = current_database()')`

	// A transaction's first statement on a node fixes what it sees there. These reach all nodes
	// that have rows.
	seeSQL = `
SELECT (SELECT count(*) FROM (SELECT 1 FROM reservations LIMIT 1) r), (SELECT count(*) FROM (SELECT 1 FROM balances LIMIT 1) b),
	(SELECT count(*) FROM (SELECT 1 FROM transfers LIMIT 1) t)`

	// What is compared comes to the coordinator, however much it is.
	anySizeSQL = `SET LOCAL citus.max_intermediate_result_size = -1`
)

const (
	snapshotTries = 10
	settleFor     = time.Second // payments wait for so long at most while a snapshot waits for the nodes
)

// ErrUnsettled means that a node of Citus has a transaction that it has prepared and not ended,
// because a node or the coordinator failed. Citus ends it within about a minute.
var ErrUnsettled = errors.New("a node of Citus has not yet ended a transaction that the others have ended: try again in a minute")

// BeginSnapshot begins a transaction that only reads, and sees one state of the whole ledger.
func BeginSnapshot(ctx context.Context, conn *pgx.Conn) (tx pgx.Tx, err error) {
	if !postgres.Rows(conn) {
		return beginSnapshot(ctx, conn)
	}
	for range snapshotTries {
		if tx, err = beginOnNodes(ctx, conn); !postgres.LockTimeout(err) {
			break
		}
	}
	return tx, err
}

func beginSnapshot(ctx context.Context, conn *pgx.Conn) (pgx.Tx, error) {
	return conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
}

func beginOnNodes(ctx context.Context, conn *pgx.Conn) (tx pgx.Tx, err error) {
	if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		b.Queue(waitForMovesSQL)
		b.Queue(noMovesSQL) // is the session's
		return tx.SendBatch(ctx, b).Close()
	}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && tx != nil {
			err = errors.Join(err, tx.Rollback(context.WithoutCancel(ctx)))
		}
		if _, again := conn.Exec(context.WithoutCancel(ctx), movesAgainSQL); again != nil {
			conn.Close(context.WithoutCancel(ctx)) // its end releases the lock
			err = errors.Join(err, again)
		}
	}()
	if err := settle(ctx, conn); err != nil {
		return nil, err
	}
	if tx, err = beginSnapshot(ctx, conn); err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, anySizeSQL)
	if err == nil {
		_, err = tx.Exec(ctx, seeSQL)
	}
	return tx, err
}

// settle waits until the nodes have ended all that they had prepared when it was called. It also
// waits for other ledgers of the database, because a transaction's id does not say whose it is.
func settle(ctx context.Context, conn *pgx.Conn) error {
	waiting, err := prepared(ctx, conn)
	for until := time.Now().Add(settleFor); err == nil && len(waiting) > 0; {
		if time.Now().After(until) {
			return ErrUnsettled
		}
		time.Sleep(5 * time.Millisecond)
		var now []string
		now, err = prepared(ctx, conn)
		waiting = slices.DeleteFunc(waiting, func(id string) bool { return !slices.Contains(now, id) })
	}
	return err
}

func prepared(ctx context.Context, conn *pgx.Conn) (ids []string, err error) {
	rows, err := conn.Query(ctx, preparedSQL)
	if err != nil {
		return nil, err
	}
	var node int
	var answered bool
	var result string
	_, err = pgx.ForEachRow(rows, []any{&node, &answered, &result}, func() error {
		if !answered {
			return fmt.Errorf("node %d of Citus does not answer: %s", node, result)
		}
		var of []string
		err := json.Unmarshal([]byte(result), &of)
		ids = append(ids, of...)
		return err
	})
	return ids, err
}
