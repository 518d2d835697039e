package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"pgw/shared/postgres"
)

// A ledger in a schema of its own can be moved to one node of Citus, where other ledgers leave it
// the node's processors and disks. Everything that its statements need is on that node. CITUS.md
// says what runs there.

// The reasons why a ledger can't be distributed.
var (
	ErrNoCitus  = errors.New("the database has no Citus, so there are no nodes to distribute a ledger to: it stays as it is, on this server")
	ErrNoSchema = errors.New("the ledger is in the usual schema, which Citus does not distribute: only a ledger with LEDGER_SCHEMA can be distributed")

	ErrRowsDistributed   = errors.New("the rows of this ledger are distributed over all nodes already: it can't move to one node")
	ErrSchemaDistributed = errors.New("this ledger is on one node of Citus: its rows can't be distributed from there")
)

const (
	// unsafeTriggersSQL lists the triggers that change tables. On a node of Citus the tables have
	// other names, so such a trigger fails there. The triggers of this release only refuse changes.
	unsafeTriggersSQL = `
SELECT coalesce(string_agg(DISTINCT tgname, ', '), '') FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE c.relnamespace = current_schema()::regnamespace AND NOT tgisinternal AND tgname NOT IN ('entries_are_final', 'amounts_only_fall')`

	// Citus refuses triggers, because it can't know what they do. The setting ends with the
	// transaction, and means nothing where there is no Citus.
	unsafeTriggersAllowedSQL = `SET LOCAL citus.enable_unsafe_triggers = on`

	distributeSQL = unsafeTriggersAllowedSQL + `;
SELECT citus_schema_distribute('%s')`

	schemaDistributedSQL = `SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = to_regclass('reservations'))`
)

// distributeRowsSQL distributes the tables that grow with payments and that every payment needs.
// What is known of a payment is together, by its idempotency key, which the gateway has before any
// id. What is known of an account is together, by the account's id. A transfer's id makes it
// unique, so it is distributed by that, and can't refer to its account any more. The other tables
// stay on the coordinator, as they are: they are small, or they need locks, unique keys and pages
// over all of their rows, and nothing joins them with distributed rows. CITUS.md says which.
//
// The key must be part of a primary key, and of the join of payment_history. reservations_key
// already makes the key unique for its client.
const distributeRowsSQL = unsafeTriggersAllowedSQL + `;
SET LOCAL citus.multi_shard_modify_mode = 'sequential';
ALTER TABLE transfers DROP CONSTRAINT IF EXISTS transfers_account;
DO $$ BEGIN
	EXECUTE 'CREATE OR REPLACE VIEW payment_history AS ' || replace(pg_get_viewdef('payment_history'::regclass),
		'p.payment_id = r.reservation_id', 'p.payment_id = r.reservation_id AND p.idempotency_key = r.idempotency_key');
END $$;
ALTER TABLE reservations DROP CONSTRAINT reservations_pkey, ADD CONSTRAINT reservations_pkey PRIMARY KEY (reservation_id, idempotency_key);
ALTER TABLE payments DROP CONSTRAINT payments_pkey, ADD CONSTRAINT payments_pkey PRIMARY KEY (payment_id, idempotency_key);
SELECT create_distributed_table('reservations', 'idempotency_key', colocate_with => 'none');
SELECT create_distributed_table('payments', 'idempotency_key', colocate_with => 'reservations');
SELECT create_distributed_table('operations', 'idempotency_key', colocate_with => 'reservations');
SELECT create_distributed_table('accounts', 'account_id', colocate_with => 'none');
SELECT create_distributed_table('balances', 'account_id', colocate_with => 'accounts');
SELECT create_distributed_table('entries', 'account_id', colocate_with => 'accounts');
SELECT create_distributed_table('transfers', 'transfer_id', colocate_with => 'none')`

// Distribute moves a ledger's schema to one node of Citus. It brings the schema up to date and
// contracts it first, because no earlier release works with a distributed schema. Nobody can use
// the ledger meanwhile. Distribute may be repeated. It returns ErrNoCitus and ErrNoSchema before it
// changes anything.
func Distribute(ctx context.Context, databaseURL string) error {
	conn, err := connectToDistribute(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	schema := postgres.SchemaOf(conn.Config())
	switch {
	case schema == "":
		return ErrNoSchema
	case postgres.Rows(conn):
		return ErrRowsDistributed
	}
	if err := prepareToDistribute(ctx, conn, databaseURL); err != nil {
		return err
	}
	// Several statements without parameters are one transaction.
	err = untilFree(ctx, func() error { _, err := conn.Exec(ctx, fmt.Sprintf(distributeSQL, schema)); return err })
	if err != nil {
		return fmt.Errorf("distribute the schema %s: %w", schema, err)
	}
	return nil
}

// DistributeRows spreads the rows of one ledger over all nodes of Citus, in as many parts as the
// setting citus.shard_count says. Like Distribute it brings the schema up to date and contracts it
// first, nobody can use the ledger meanwhile, and it may be repeated. Connections from before fail
// afterwards, so functions are started again. It returns ErrNoCitus and ErrSchemaDistributed before
// it changes anything.
func DistributeRows(ctx context.Context, databaseURL string) error {
	conn, err := connectToDistribute(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if postgres.Rows(conn) {
		return nil
	}
	var whole bool
	if err := conn.QueryRow(ctx, schemaDistributedSQL).Scan(&whole); err != nil {
		return fmt.Errorf("distribute: %w", err)
	}
	if whole {
		return ErrSchemaDistributed
	}
	if err := prepareToDistribute(ctx, conn, databaseURL); err != nil {
		return err
	}
	err = untilFree(ctx, func() error { _, err := conn.Exec(ctx, distributeRowsSQL); return err })
	if err != nil {
		return fmt.Errorf("distribute the rows: %w", err)
	}
	return nil
}

// connectToDistribute connects to a database with Citus.
func connectToDistribute(ctx context.Context, databaseURL string) (*pgx.Conn, error) {
	conn, err := postgres.Connect(ctx, databaseURL, map[string]string{"lock_timeout": migrationLockTimeout})
	if err != nil {
		return nil, err
	}
	if !postgres.Citus(conn) {
		conn.Close(context.WithoutCancel(ctx))
		return nil, ErrNoCitus
	}
	return conn, nil
}

// prepareToDistribute contracts the schema, and checks that it has only what can be distributed.
func prepareToDistribute(ctx context.Context, conn *pgx.Conn, databaseURL string) error {
	if err := Contract(ctx, databaseURL); err != nil {
		return err
	}
	var unsafe string
	if err := conn.QueryRow(ctx, unsafeTriggersSQL).Scan(&unsafe); err != nil {
		return fmt.Errorf("distribute: %w", err)
	}
	if unsafe != "" {
		return fmt.Errorf("distribute: the schema has triggers of its own, which can't work on another server: %s", strings.TrimSpace(unsafe))
	}
	return nil
}
