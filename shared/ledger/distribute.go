package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"pgw/shared/postgres"
)

// A ledger in a schema of its own can be moved to one node of Citus, where other ledgers leave it
// the node's processors and disks. Everything that its statements need is on that node. CITUS.md
// says what runs there.

// The reasons why a ledger can't be distributed.
var (
	ErrNoCitus  = errors.New("the database has no Citus, so there are no nodes to distribute a ledger to: it stays as it is, on this server")
	ErrNoSchema = errors.New("the ledger is in the usual schema, which Citus does not distribute: only a ledger with LEDGER_SCHEMA can be distributed")
)

const (
	// unsafeTriggersSQL lists the triggers that change tables. On a node of Citus the tables have
	// other names, so such a trigger fails there. The triggers of this release only refuse changes.
	unsafeTriggersSQL = `
SELECT coalesce(string_agg(DISTINCT tgname, ', '), '') FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE c.relnamespace = to_regnamespace($1) AND NOT tgisinternal AND tgname NOT IN ('entries_are_final', 'amounts_only_fall')`

	// Citus refuses triggers, because it can't know what they do. The setting ends with the
	// transaction, and means nothing where there is no Citus.
	unsafeTriggersAllowedSQL = `SET LOCAL citus.enable_unsafe_triggers = on`

	distributeSQL = unsafeTriggersAllowedSQL + `;
SELECT citus_schema_distribute('%s')`
)

// Distribute moves a ledger's schema to one node of Citus. It brings the schema up to date and
// contracts it first, because no earlier release works with a distributed schema. Nobody can use
// the ledger meanwhile. Distribute may be repeated. It returns ErrNoCitus and ErrNoSchema before it
// changes anything.
func Distribute(ctx context.Context, databaseURL string) error {
	conn, err := postgres.Connect(ctx, databaseURL, map[string]string{"lock_timeout": migrationLockTimeout})
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	schema := postgres.SchemaOf(conn.Config())
	var there bool
	if err := conn.QueryRow(ctx, postgres.HasCitusSQL).Scan(&there); err != nil {
		return fmt.Errorf("distribute: %w", err)
	}
	switch {
	case !there:
		return ErrNoCitus
	case schema == "":
		return ErrNoSchema
	}
	if err := Contract(ctx, databaseURL); err != nil {
		return err
	}
	var unsafe string
	if err := conn.QueryRow(ctx, unsafeTriggersSQL, string(schema)).Scan(&unsafe); err != nil {
		return fmt.Errorf("distribute: %w", err)
	}
	if unsafe != "" {
		return fmt.Errorf("distribute: the schema %s has triggers of its own, which can't work on another server: %s", schema, strings.TrimSpace(unsafe))
	}
	// Several statements without parameters are one transaction.
	err = untilFree(ctx, func() error { _, err := conn.Exec(ctx, fmt.Sprintf(distributeSQL, schema)); return err })
	if err != nil {
		return fmt.Errorf("distribute the schema %s: %w", schema, err)
	}
	return nil
}
