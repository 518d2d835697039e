package ledger

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/payment"
)

// earlierSQL is what the release before balances writes: an account, a funding, and payments in every
// state.
const earlierSQL = `
INSERT INTO wallet_accounts (account_id, owner, currency, status, daily_limit_idr, spent_day, spent_today_idr, balance_idr)
VALUES ('A', 'Ayu', 'USD', 'ACTIVE', 5000, floor(extract(epoch FROM now()) / 86400)::int, 300, 1000 - 300), ('B', 'Bima', 'IDR', 'BLOCKED', 0, 0, 0, 200);
INSERT INTO fundings (funding_id, account_id, amount_idr, note) VALUES ('/bank#1', 'A', 1100, 'first'), ('/bank#2', 'A', -100, 'back');
INSERT INTO reservations (reservation_id, idempotency_key, fingerprint, sender_id, receiver_id, amount_idr, currency_input, status, deadline) VALUES
	('01900000-0000-7000-8000-000000000001', 'paid', decode(repeat('00', 16), 'hex'), 'A', 'B', 200, 'IDR', 'COMMITTED', now()),
	('01900000-0000-7000-8000-000000000002', 'held', decode(repeat('00', 16), 'hex'), 'A', 'B', 100, 'IDR', 'PENDING', now() + interval '1 minute'),
	('01900000-0000-7000-8000-000000000003', 'refused', decode(repeat('00', 16), 'hex'), 'A', 'B', 900, 'IDR', 'ROLLEDBACK', now());
INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason) VALUES
	('01900000-0000-7000-8000-000000000001', 'paid', 'A', 'B', 'IDR', 200, 'SUCCESS', 'committed'),
	('01900000-0000-7000-8000-000000000003', 'refused', 'A', 'B', 'IDR', 900, 'FAILED', 'insufficient_funds');`

// endEarlierSQL is how the release before balances pays from a hold.
const endEarlierSQL = `
WITH done AS (
	UPDATE reservations r SET status = $2 WHERE r.idempotency_key = $1 AND r.status = 'PENDING' RETURNING r.*
), account AS (
	UPDATE wallet_accounts a SET balance_idr = a.balance_idr + done.amount_idr, updated_at = now() FROM done
	WHERE a.account_id = CASE WHEN $2 = 'COMMITTED' THEN done.receiver_id ELSE done.sender_id END
)
INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason)
SELECT reservation_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr,
	CASE WHEN $2 = 'COMMITTED' THEN 'SUCCESS' ELSE 'FAILED' END, CASE WHEN $2 = 'COMMITTED' THEN 'committed' ELSE 'expired' END FROM done`

// The books of the release before balances become books of this one: every balance, hold and entry is
// right afterwards. Then the earlier release's statements go on, and the books stay right.
func TestEarlierBooksBecomeBalancesAndEntries(t *testing.T) {
	url := embeddedtest.Postgres(t)
	migrateTo(t, url, 7)
	conn := connect(t, url)
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatalf("%.60s: %v", sql, err)
		}
	}
	sum := func(step string) {
		t.Helper()
		if s, err := ReadSum(t.Context(), conn); err != nil || s.Err() != nil {
			t.Errorf("%s: %v, %v", step, err, s.Err())
		}
	}
	count := func(want int, sql string) {
		t.Helper()
		var n int
		if err := conn.QueryRow(t.Context(), sql, pgx.QueryExecModeSimpleProtocol).Scan(&n); err != nil || n != want {
			t.Errorf("%s: %d, %v; want %d", sql, n, err, want)
		}
	}
	exec(earlierSQL)
	// Each step that fills tables may be interrupted, and runs again.
	for _, version := range []int{10, 12} {
		migrateTo(t, url, version)
		exec(`DELETE FROM goose_db_version WHERE version_id = $1`, version)
	}
	if err := Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	sum("migrated")
	count(1, `SELECT count(*) FROM balances WHERE account_id = 'A' AND currency = 'IDR' AND available = 700 AND held = 100 AND daily_limit = 5000 AND spent_today = 300`)
	count(1, `SELECT count(*) FROM accounts WHERE account_id = 'B' AND owner = 'Bima' AND status = 'BLOCKED'`)
	count(2, `SELECT count(*) FROM entries WHERE kind = 'payment'`)
	count(3, `SELECT count(DISTINCT transaction_id) FROM entries`)
	count(700, `SELECT balance_idr FROM wallet_accounts WHERE account_id = 'A'`)

	// Now the earlier release works with the new schema.
	exec(endEarlierSQL, "held", "COMMITTED")
	sum("an earlier release paid")
	exec(`INSERT INTO fundings (funding_id, account_id, amount_idr, note, source) SELECT '/bank#3', account_id, 50, '', '' FROM wallet_accounts
		WHERE account_id = 'B' ON CONFLICT (funding_id) DO NOTHING`)
	exec(`UPDATE wallet_accounts SET balance_idr = balance_idr + 50 WHERE account_id = 'B'`)
	sum("an earlier release funded")
	for i, status := range []string{"COMMITTED", "ROLLEDBACK"} {
		exec(`INSERT INTO reservations (reservation_id, idempotency_key, fingerprint, sender_id, receiver_id, amount_idr, currency_input, status, deadline)
			VALUES (gen_random_uuid(), $1, decode(repeat('00', 16), 'hex'), 'A', 'B', 10, 'IDR', 'PENDING', now())`, status)
		exec(`UPDATE wallet_accounts SET balance_idr = balance_idr - 10 WHERE account_id = 'A'`)
		sum("an earlier release held")
		exec(endEarlierSQL, status, status)
		sum("an earlier release ended " + status)
		count(i, `SELECT count(*) FROM payments WHERE reason = 'expired'`)
	}
	// It must not end a payment that it can't book, and goes on with the others.
	exec(`INSERT INTO reservations (reservation_id, idempotency_key, fingerprint, sender_id, receiver_id, amount_idr, currency_input, status, deadline,
		debit_currency, debit_minor, credit_currency, credit_minor) VALUES (gen_random_uuid(), 'dollars', decode(repeat('00', 16), 'hex'), 'A', 'B', 10,
		'USD', 'PENDING', now(), 'USD', 5, 'USD', 5)`)
	exec(endEarlierSQL, "dollars", "COMMITTED")
	count(1, `SELECT count(*) FROM reservations WHERE idempotency_key = 'dollars' AND status = 'PENDING'`)
	count(0, `SELECT count(*) FROM payments WHERE idempotency_key = 'dollars'`)
	exec(`DELETE FROM reservations WHERE idempotency_key = 'dollars'`)

	// When no earlier release runs any more, what was for it goes.
	for range 2 {
		if err := Contract(t.Context(), url); err != nil {
			t.Fatal(err)
		}
	}
	if err := CheckSchema(t.Context(), conn, KnownSchema()); err != nil {
		t.Error(err)
	}
	if err := CheckSchema(t.Context(), conn, 7); err == nil {
		t.Error("an earlier release is ready")
	}
	count(0, `SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
		WHERE c.relnamespace = current_schema()::regnamespace AND NOT tgisinternal AND tgname NOT IN ('entries_are_final', 'amounts_only_fall')`)
	count(1, `SELECT count(*) FROM wallet_accounts WHERE account_id = 'A' AND balance_idr > 0`)
	conn.Close(t.Context()) // it has prepared statements for the table as it was
	w := &world{t: t, now: time.Now, published: map[string]payment.Reason{}}
	w.cfg = Config{URL: url, Name: "test", BatchMax: 64, BatchLanes: 1, QueueMax: 64, Log: slog.New(slog.DiscardHandler)}
	var err error
	if w.Ledger, err = Open(w.cfg); err != nil {
		t.Fatal(err)
	}
	defer w.Close(context.Background())
	w.open(500, "B", "C")
	w.mustFinish(Finish{ReservationID: w.mustReserve(pay("after", "B", "C", 10)).ReservationID})
	w.checkSum()
	if w.balance("C") != 510 {
		t.Errorf("C has %d", w.balance("C"))
	}
}

// The migration that locks the tables takes them in the order in which payments do, so it waits for a
// payment under way, and the payment ends.
func TestTheSwitchWaitsForPaymentsUnderWay(t *testing.T) {
	url := embeddedtest.Postgres(t)
	migrateTo(t, url, 10)
	conn, other := connect(t, url), connect(t, url)
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`INSERT INTO wallet_accounts (account_id, balance_idr) VALUES ('A', 1000), ('B', 0)`)
	exec(`INSERT INTO fundings (funding_id, account_id, amount_idr) VALUES ('f', 'A', 1000)`)
	exec(`BEGIN`)
	exec(`INSERT INTO reservations (reservation_id, idempotency_key, fingerprint, sender_id, receiver_id, amount_idr, currency_input, status, deadline)
		VALUES (gen_random_uuid(), 'k', decode(repeat('00', 16), 'hex'), 'A', 'B', 100, 'IDR', 'PENDING', now() + interval '1 minute')`)
	migrated := make(chan error, 1)
	go func() { migrated <- Migrate(context.Background(), url) }()
	for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		var waiting bool
		if err := other.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'relation'
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		if waiting {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the migration waits for no table")
		}
	}
	exec(`UPDATE wallet_accounts SET balance_idr = balance_idr - 100 WHERE account_id = 'A'`)
	exec(`COMMIT`)
	if err := <-migrated; err != nil {
		t.Error(err)
	}
	if s, err := ReadSum(t.Context(), other); err != nil || s.Err() != nil {
		t.Errorf("%v, %v", err, s.Err())
	}
}
