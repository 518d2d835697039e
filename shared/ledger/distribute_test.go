package ledger

import (
	"context"
	"errors"
	"os"
	"testing"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/payment"
)

// Where there is no Citus, nothing is changed. The error says what to do.
func TestOnlyCitusDistributes(t *testing.T) {
	if embeddedtest.Citus(t) {
		t.Skip("this database has Citus")
	}
	url := embeddedtest.Postgres(t)
	for _, distribute := range []func(context.Context, string) error{Distribute, DistributeRows} {
		if err := distribute(t.Context(), url); !errors.Is(err, ErrNoCitus) {
			t.Errorf("%v; want %v", err, ErrNoCitus)
		}
	}
	var tables int
	if err := connect(t, url).QueryRow(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()`).Scan(&tables); err != nil || tables != 0 {
		t.Errorf("%d tables, %v; want none", tables, err)
	}
}

// A ledger with accounts and holds is distributed, and goes on. All of its tables are on one node.
// Its logins have their rights there.
func TestALedgerIsDistributed(t *testing.T) {
	if !embeddedtest.Citus(t) {
		t.Skip("there is no Citus: set PGW_TEST_DATABASE_URL")
	}
	w := newPlainWorld(t)
	w.open(100, "A", "B")
	held := w.mustReserve(pay("before", "A", "B", 10))
	if err := Distribute(t.Context(), os.Getenv("PGW_TEST_DATABASE_URL")); !errors.Is(err, ErrNoSchema) {
		t.Errorf("in the usual schema: %v; want %v", err, ErrNoSchema)
	}
	for range 2 {
		if err := Distribute(t.Context(), w.cfg.URL); err != nil {
			t.Fatal(err)
		}
	}
	conn := connect(t, w.cfg.URL)
	var tables, local, nodes int
	if err := conn.QueryRow(t.Context(), `
SELECT count(*), count(*) FILTER (WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = c.oid)),
	(SELECT count(DISTINCT p.groupid) FROM pg_dist_placement p JOIN pg_dist_shard s USING (shardid) JOIN pg_class t ON t.oid = s.logicalrelid
	 WHERE t.relnamespace = current_schema()::regnamespace)
FROM pg_class c WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'`).Scan(&tables, &local, &nodes); err != nil || tables == 0 || local != 0 || nodes != 1 {
		t.Errorf("%d tables, %d of them not distributed, on %d nodes, %v", tables, local, nodes, err)
	}
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID}); !got.Done {
		t.Errorf("a hold from before: %+v", got)
	}
	if err := DistributeRows(t.Context(), w.cfg.URL); !errors.Is(err, ErrSchemaDistributed) {
		t.Errorf("its rows: %v; want %v", err, ErrSchemaDistributed)
	}
	w.goesOnDistributed(t)
}

// The rows of a ledger with accounts and holds are distributed, and it goes on. Each node has a
// part.
func TestRowsAreDistributed(t *testing.T) {
	if !embeddedtest.Citus(t) {
		t.Skip("there is no Citus: set PGW_TEST_DATABASE_URL")
	}
	w := newPlainWorld(t)
	w.open(100, "A", "B")
	held := w.mustReserve(pay("before", "A", "B", 10))
	for range 2 {
		if err := DistributeRows(t.Context(), w.cfg.URL); err != nil {
			t.Fatal(err)
		}
	}
	if err := Distribute(t.Context(), w.cfg.URL); !errors.Is(err, ErrRowsDistributed) {
		t.Errorf("to one node: %v; want %v", err, ErrRowsDistributed)
	}
	conn := connect(t, w.cfg.URL)
	var tables string
	var idle int
	if err := conn.QueryRow(t.Context(), `
SELECT (SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid
		WHERE c.relnamespace = current_schema()::regnamespace AND partmethod = 'h'),
	(SELECT count(*) FROM pg_dist_node n WHERE shouldhaveshards AND NOT EXISTS (SELECT FROM pg_dist_placement p JOIN pg_dist_shard s USING (shardid)
		WHERE p.groupid = n.groupid AND s.logicalrelid = to_regclass('reservations')))`).Scan(&tables, &idle); err != nil ||
		tables != "accounts balances entries operations payments reservations transfers" || idle != 0 {
		t.Errorf("%q are distributed, and %d nodes have none of their rows, %v", tables, idle, err)
	}
	// A connection from before the distribution moves no money.
	if got, err := w.Finish(t.Context(), Finish{ReservationID: held.ReservationID}); err == nil {
		t.Errorf("over a connection from before: %+v", got)
	}
	w.pool.Reset()
	if got := w.mustFinish(Finish{ReservationID: held.ReservationID}); !got.Done {
		t.Errorf("a hold from before: %+v", got)
	}
	w.goesOnDistributed(t)
	w.checkBooks()
}

// goesOnDistributed checks that a distributed ledger can be migrated, and that its logins have
// their rights on the nodes.
func (w *world) goesOnDistributed(t *testing.T) {
	t.Helper()
	if err := Migrate(t.Context(), w.cfg.URL); err != nil {
		t.Errorf("migrate afterwards: %v", err)
	}
	login := Login{loginTo(t, w.cfg.URL, "pgw_test_distributed"), LedgerRole}
	if err := Roles(t.Context(), w.cfg.URL, login); err != nil {
		t.Fatal(err)
	}
	cfg := w.cfg
	cfg.URL = login.URL
	as, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer as.Close(t.Context())
	got, err := as.Reserve(t.Context(), pay("after", "B", "A", 50))
	if err != nil || got.Status != payment.Pending {
		t.Errorf("a payment by db's login: %+v, %v", got, err)
	}
	if ended, err := as.Finish(t.Context(), Finish{ReservationID: got.ReservationID}); err != nil || !ended.Done {
		t.Errorf("its commit: %+v, %v", ended, err)
	}
	if trial, err := as.TrialBalance(t.Context()); err != nil || trial.Err() != nil {
		t.Errorf("its trial balance: %+v, %v", trial, err)
	}
}
