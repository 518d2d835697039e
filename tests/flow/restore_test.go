package flow

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/functions/db"
	"pgw/functions/pgw/replay"
	"pgw/functions/pgw/restore"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/function"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/tests/processes"
)

// rows are everything that the ledger says of payments and money, without what differs after a restore: the
// ids of refusals, which nobody was told, and the exact times.
func (s *system) rows() string {
	s.t.Helper()
	var all []string
	for _, sql := range []string{
		`SELECT string_agg(concat_ws(' ', r.client, r.idempotency_key, r.status, r.sender_id, r.receiver_id, r.amount_idr, r.debit_currency, r.debit_minor,
			r.credit_currency, r.credit_minor, r.mid_minor, r.exchange, r.authorized_minor, r.hold_seconds, r.refunded_minor, nullif(r.refunding_minor, 0),
			r.returned_minor, r.parent_id, r.note, r.metadata, encode(r.fingerprint, 'hex'), r.attempt_id,
			CASE WHEN r.status <> 'ROLLEDBACK' THEN r.reservation_id END, p.status, p.reason), E'\n' ORDER BY r.client, r.idempotency_key)
			FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id`,
		`SELECT string_agg(concat_ws(' ', account_id, currency, available, held, position, CASE WHEN spent_day > 0 THEN spent_today END), E'\n'
			ORDER BY account_id, currency) FROM balances`,
		`SELECT string_agg(concat_ws(' ', account_id, currency, transaction_id, kind, amount, value_date), E'\n'
			ORDER BY account_id, currency, transaction_id, kind, amount) FROM entries`,
		`SELECT string_agg(concat_ws(' ', client, idempotency_key, kind, reservation_id, amount_minor, status, reason, note, encode(fingerprint, 'hex')), E'\n'
			ORDER BY client, idempotency_key) FROM operations`,
		`SELECT string_agg(concat_ws(' ', reservation_id, amount_idr), E'\n' ORDER BY reservation_id) FROM authorizations`,
		`SELECT string_agg(concat_ws(' ', transfer_id, account_id, amount, currency, note), E'\n' ORDER BY transfer_id) FROM transfers`,
	} {
		var text *string
		s.query(&text, sql)
		if text != nil {
			all = append(all, *text)
		}
	}
	return strings.Join(all, "\n\n")
}

// differences are the lines that only one of two texts has.
func differences(a, b string) string {
	count := map[string]int{}
	for line := range strings.Lines(a) {
		count[line]++
	}
	for line := range strings.Lines(b) {
		count[line]--
	}
	var out strings.Builder
	for line, n := range count {
		switch {
		case n > 0:
			fmt.Fprintf(&out, "- %s", strings.TrimSuffix(line, "\n")+"\n")
		case n < 0:
			fmt.Fprintf(&out, "+ %s", strings.TrimSuffix(line, "\n")+"\n")
		}
	}
	return out.String()
}

// The database is lost, and restored from a base backup and archived WAL to a point in time. Kafka knows more
// than the ledger then. What was told after that point is recorded again, and the books are as they were.
func TestARestoreToAPointInTime(t *testing.T) {
	t.Parallel()
	archive, err := os.MkdirTemp("", "pgw-archive") //nolint:usetesting // the server's user can't enter t.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(archive) })
	if err := os.Chmod(archive, 0o777); err != nil { // the server may run as another user
		t.Fatal(err)
	}
	server := embeddedtest.NewServer(t, map[string]string{"archive_mode": "on", "archive_command": "cp %p " + archive + "/%f"})
	if err := ledger.Migrate(t.Context(), server.URL()); err != nil {
		t.Fatal(err)
	}
	backup := server.BackUp(t)
	s := start(t, options{database: server.URL(), empty: true, serial: true})
	s.exchanges()
	s.openWith("E", amountOf(1_000_000, "USD"), amountOf(1_000_000, "IDR"))
	s.openWith("F", amountOf(1_000_000, "SGD"))
	hold := func(key string) {
		r := request(key, "A", "B", 10_000)
		r.HoldSeconds = 3600
		s.publish(r)
	}

	// Before the point: two payments, three holds, and a payment whose commit is not answered until after it.
	s.expect(s.pay("before", "A", "B", "USD", 10), "200 SUCCESS committed")
	s.expect(s.pay("refunded later", "B", "C", "USD", 20), "200 SUCCESS committed")
	for _, key := range []string{"captured later", "voided later", "held"} {
		hold(key)
	}
	s.drain()
	var broken atomic.Bool
	broken.Store(true)
	tried := make(chan struct{}, 100)
	s.faults.set(func(f *faults) {
		f.rpc = inTwoSteps(func(method string) error {
			if broken.Load() && strings.HasSuffix(method, "/CommitReservation") {
				select {
				case tried <- struct{}{}:
				default:
				}
				return status.Error(codes.Unavailable, "away")
			}
			return nil
		})
	})
	s.publish(request("under way", "A", "C", 30_000))
	select {
	case <-tried: // it is reserved
	case <-time.After(patience):
		t.Fatal("the payment is not reserved")
	}
	s.exec(`SELECT pg_create_restore_point('middle')`)
	broken.Store(false)
	s.drain()

	// After the point: everything that can happen.
	s.expect(s.pay("after", "A", "B", "USD", 1), "200 SUCCESS committed")
	s.expect(s.pay("to and fro 1", "C", "A", "USD", 100), "200 SUCCESS committed")
	s.expect(s.pay("to and fro 2", "A", "C", "USD", 100), "200 SUCCESS committed")
	s.expect(s.post(body("exchanged", "E", "F", "USD", 10, "debit_currency", "USD", "credit_currency", "SGD")), "200 SUCCESS committed")
	s.expect(s.post(body("with metadata", "A", "B", "USD", 2, "metadata", map[string]string{"order": "7"})), "200 SUCCESS committed")
	s.publishAccount("NEW", payment.Active, 1000)
	s.publishAccount("RICH", payment.Active, 500_000)
	s.drain()
	s.expect(s.pay("of new money", "RICH", "NEW", "IDR", 400_000), "200 SUCCESS committed")
	s.expect(s.pay("passed on", "NEW", "B", "IDR", 350_000), "200 SUCCESS committed")
	s.publish(request("refused", "NEW", "A", 900_000)) // nobody asks wallet
	for _, key := range []string{"captured", "captured in part", "voided", "held too", "canceled"} {
		hold(key)
	}
	s.drain()
	for _, o := range []payment.Operation{
		{Kind: payment.Capture, Key: "c1", Payment: "captured"},
		{Kind: payment.Capture, Key: "c2", Payment: "captured in part", Minor: 4000, Currency: idr},
		{Kind: payment.Capture, Key: "c3", Payment: "captured later", Minor: 6000, Currency: idr},
		{Kind: payment.Capture, Key: "c4", Payment: "held", Minor: 60_000, Currency: idr}, // refused
		{Kind: payment.Void, Key: "v1", Payment: "voided", Note: "not needed"},
		{Kind: payment.Void, Key: "v2", Payment: "voided later"},
		{Kind: payment.Cancel, Key: "x1", Payment: "canceled"},
		{Kind: payment.Cancel, Key: "x2", Payment: "with metadata"}, // refunds it
	} {
		s.operate(o)
	}
	s.refund("r1", "refunded later", 31_000, "IDR")
	s.refund("r2", "exchanged", 500, "USD")
	s.refund("r3", "before", 0, "")
	s.refund("r4", "before", 100, "IDR") // refused: nothing is left
	s.drain()
	s.expectClean()
	was := s.rows()
	var last string
	s.query(&last, `SELECT pg_walfile_name(pg_current_wal_lsn())`)
	s.exec(`SELECT pg_switch_wal()`)
	s.eventually("the WAL is archived", func() error {
		if s.count(`SELECT count(*) FROM pg_stat_archiver WHERE last_archived_wal >= $1`, last) == 0 {
			return fmt.Errorf("%s is not archived", last)
		}
		return nil
	})
	s.stop()

	restored := embeddedtest.Restored(t, backup, map[string]string{
		"restore_command": "cp " + archive + "/%f %p", "recovery_target_name": "middle", "recovery_target_action": "promote",
	})
	forgot := system{t: t, conn: must(pgx.Connect(t.Context(), restored.URL()))}
	defer forgot.conn.Close(context.Background())
	forgot.eventually("the server has recovered", func() error {
		if forgot.count(`SELECT count(*) WHERE NOT pg_is_in_recovery()`) == 0 {
			return fmt.Errorf("it is recovering")
		}
		return nil
	})
	if n := forgot.count(`SELECT count(*) FROM reservations WHERE status = 'PENDING'`); n != 4 {
		t.Fatalf("%d payments are PENDING at the point in time; want 3 holds and the one under way", n)
	}
	if n := forgot.count(`SELECT count(*) FROM reservations WHERE idempotency_key = 'after'`); n != 0 {
		t.Fatal("the restored ledger knows what came after the point in time")
	}

	// Fundings and accounts first: only db runs.
	conf, err := db.Function.Configure(function.Settings{
		Lookup: function.Values{"DATABASE_URL": restored.URL()}.Lookup, Given: []any{s.kafka.Config, s.keys},
	})
	if err != nil {
		t.Fatal(err)
	}
	port, err := db.Function.Make(conf, function.Dependencies{})
	if err != nil {
		t.Fatal(err)
	}
	alone := httptest.NewServer(port.Handler())
	got, err := replay.Run(t.Context(), replay.Config{From: "topic:" + s.kafka.AccountsTopic, To: alone.URL + "/", InFlight: 1, Retries: 6, Kafka: s.kafka.Config})
	if err != nil || got.Refused+got.Failed > 0 {
		t.Fatalf("replay of fundings: %+v, %v", got, err)
	}
	alone.Close()
	if err := port.Close(t.Context()); err != nil {
		t.Error(err)
	}
	settings := restore.Config{Database: restored.URL(), Kafka: s.kafka.Config, Keys: &s.keys}
	report, err := restore.Run(t.Context(), settings)
	if err != nil || !report.Clean() || report.Results[ledger.Restored] < 20 {
		t.Fatalf("%+v, %v", report, err)
	}
	t.Logf("restored: %+v", report.Results)
	if now := forgot.rows(); now != was {
		t.Errorf("the books differ (-was +now):\n%s", differences(was, now))
	}
	again, err := restore.Run(t.Context(), settings)
	if err != nil || !again.Clean() || again.Results[ledger.Restored] != 0 {
		t.Errorf("the second run: %+v, %v", again, err)
	}

	// The functions run again, on the restored ledger.
	next := start(t, options{database: restored.URL(), kafka: &s.kafka, serial: true})
	next.expectClean()
	next.expect(next.pay("after", "A", "B", "USD", 1), "200 SUCCESS_REPLAY duplicate_idempo")
	next.expect(next.pay("new", "A", "B", "USD", 1), "200 SUCCESS committed")
	next.operate(payment.Operation{Kind: payment.Capture, Key: "c5", Payment: "held too"})
	next.drain()
	if _, held := next.state("held too"); held.State != "COMMITTED" {
		t.Errorf("captured after the restore: %+v", held)
	}
	next.expectClean()
}

// What can't be restored is named: money that only an operator's call had brought, and what the ledger has
// decided otherwise since.
func TestWhatARestoreCannotKnow(t *testing.T) {
	s := start(t, options{})
	s.open(0, "POOR")
	s.open(100_000, "ONCE")
	s.expect(s.pay("lent", "ONCE", "POOR", "IDR", 90_000), "200 SUCCESS committed")
	s.expect(s.pay("spent", "POOR", "A", "IDR", 80_000), "200 SUCCESS committed")
	s.drain()
	other := migrated.Postgres(t)
	// Another ledger, which knows neither the accounts' money nor POOR, and has refused one payment.
	late := start(t, options{database: other, empty: true, kafka: ptr(embeddedtest.Kafka(t, must(processes.Topics(4))...)), serial: true})
	late.open(0, "ONCE")
	settings := restore.Config{Database: other, Kafka: s.kafka.Config, Keys: &s.keys}
	report, err := restore.Run(context.Background(), settings)
	if err != nil || report.Results[ledger.Unfit] != 2 || len(report.Problems) != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
	late.checkSum()
	// With the money and the account, the same command goes on.
	late.open(100_000, "ONCE")
	late.open(0, "POOR")
	report, err = restore.Run(context.Background(), settings)
	if err != nil || !report.Clean() || report.Results[ledger.Restored] != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
	if late.balance("POOR") != 10_000 || late.balance("ONCE") != 10_000 {
		t.Errorf("POOR has %d, ONCE %d", late.balance("POOR"), late.balance("ONCE"))
	}
}
