package flow

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pgw/functions/pgw/allinone"
	"pgw/functions/pgw/reconcile"
	"pgw/functions/pgw/replay"
	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/seeds"
	"pgw/shared/deadletter"
	"pgw/shared/event"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// books is how the tests reconcile: young payments are compared too, as if they were old.
func (s *system) books() reconcile.Config {
	return reconcile.Config{
		Database: s.conn.Config().ConnString(), Kafka: s.kafka.Config, Keys: &s.keys, AllowUnsigned: true, Grace: -2 * payment.DecideWithin,
	}
}

// reconcile checks the books of tests that also pay over gRPC.
func (s *system) reconcile() reconcile.Report {
	s.t.Helper()
	cfg := s.books()
	cfg.Direct = true
	report, err := reconcile.Run(s.t.Context(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return report
}

func (s *system) expectClean() {
	s.t.Helper()
	if r := s.reconcile(); !r.Clean() {
		s.t.Errorf("the books do not agree: %+v", r.Breaches)
	}
}

func (s *system) balances() string {
	s.t.Helper()
	var all string
	s.query(&all, `SELECT string_agg(account_id || '=' || balance_idr, ' ' ORDER BY account_id) FROM wallet_accounts`)
	return all
}

// All records from offset 0 are recorded to files, shuffled, doubled, and sent again through the
// topics and directly to the functions. No balance changes, and the books agree before and after.
func TestEverythingReplayedChangesNothing(t *testing.T) {
	s := start(t, options{})
	producer := s.Producer()
	accounts, err := seeds.Accounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range accounts[:20] {
		events, err := seeds.AccountEvents(a, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if err := s.keys.Sign(&e); err != nil {
				t.Fatal(err)
			}
			if err := producer.Publish(t.Context(), s.kafka.AccountsTopic, a.ID, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.open(5000, "poor")
	for i := range 30 {
		s.expect(s.pay(fmt.Sprint("p-", i), "A", "B", "USD", 1+i), "200 SUCCESS committed")
	}
	s.expect(s.pay("p-0", "A", "B", "USD", 1), "200 SUCCESS_REPLAY duplicate_idempo")
	// Both pass the fast check, and the ledger refuses one. That refusal must stay too.
	tally(2, func(i int) answer { return s.pay(fmt.Sprint("poor-", i), "poor", "A", "IDR", 4000) })
	s.publish(request("direct", "poor", "B", 900_000)) // refused by the ledger
	s.drain()
	s.expectClean()
	before := s.balances()

	urls := map[string]string{
		s.kafka.RequestTopic: "http://" + s.Addr("worker") + "/", s.kafka.ResultTopic: s.url + "/events", s.kafka.AccountsTopic: "http://" + s.Addr("db") + "/",
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for topic, url := range urls {
		file := filepath.Join(t.TempDir(), "recorded.jsonl")
		got, err := replay.Run(t.Context(), replay.Config{From: "topic:" + topic, To: file, Kafka: s.kafka.Config})
		if err != nil || got.Outcomes["written"] < 31 {
			t.Fatalf("%s: %+v, %v", topic, got, err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		lines = append(lines, lines...)
		rng.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{"topic:" + topic, url} {
			got, err := replay.Run(t.Context(), replay.Config{From: file, To: to, InFlight: 16, Retries: 6, Kafka: s.kafka.Config})
			if err != nil || got.Matched != int64(len(lines)) || got.Refused+got.Failed > 0 {
				t.Errorf("%s to %s: %+v, %v", topic, to, got, err)
			}
		}
	}
	s.drain()
	if after := s.balances(); after != before {
		t.Errorf("the balances were\n%s, but are\n%s", before, after)
	}
	s.expectClean()
}

// fault is something that is planted in the ledger, and what reconcile must say of it.
type fault struct {
	plant   []string
	check   reconcile.Check
	account string
	payment string
}

// moved makes the entries and balances of a payment fit what its rows say now.
const moved = `
WITH off AS (
	SELECT account_id, currency, sum(amount)::bigint AS amount FROM (
		SELECT account_id, currency, -amount AS amount FROM entries WHERE transaction_id = (SELECT reservation_id FROM reservations WHERE idempotency_key = 'KEY')
		UNION ALL SELECT sender_id, debit_currency, -debit_minor FROM reservations WHERE idempotency_key = 'KEY'
		UNION ALL SELECT receiver_id, credit_currency, credit_minor FROM reservations WHERE idempotency_key = 'KEY'
		UNION ALL SELECT 'LIQUIDITY', debit_currency, debit_minor FROM reservations WHERE idempotency_key = 'KEY' AND mid_minor IS NOT NULL
		UNION ALL SELECT 'LIQUIDITY', credit_currency, -mid_minor FROM reservations WHERE idempotency_key = 'KEY' AND mid_minor IS NOT NULL
		UNION ALL SELECT 'SPREAD', credit_currency, mid_minor - credit_minor FROM reservations WHERE idempotency_key = 'KEY' AND mid_minor > credit_minor
	) m GROUP BY account_id, currency
), made AS (
	UPDATE balances b SET available = available + off.amount, position = CASE b.account_id WHEN 'LIQUIDITY' THEN position + off.amount ELSE 0 END
	FROM off WHERE (b.account_id, b.currency) = (off.account_id, off.currency)
), gone AS (
	DELETE FROM entries WHERE transaction_id = (SELECT reservation_id FROM reservations WHERE idempotency_key = 'KEY')
)
INSERT INTO entries SELECT leg.account_id, leg.currency, p.decided_at, r.reservation_id, leg.kind, leg.amount, p.decided_at::date
FROM reservations r JOIN payments p ON p.payment_id = r.reservation_id, LATERAL (
	SELECT r.sender_id AS account_id, debit_currency AS currency, -debit_minor AS amount, 'payment' AS kind
	UNION ALL SELECT r.receiver_id, credit_currency, credit_minor, 'payment'
	UNION ALL SELECT 'LIQUIDITY', debit_currency, debit_minor, 'exchange' WHERE mid_minor IS NOT NULL
	UNION ALL SELECT 'LIQUIDITY', credit_currency, -mid_minor, 'exchange' WHERE mid_minor IS NOT NULL
	UNION ALL SELECT 'SPREAD', credit_currency, mid_minor - credit_minor, 'spread' WHERE mid_minor > credit_minor) leg
WHERE r.idempotency_key = 'KEY'
ON CONFLICT (account_id, currency, booked_at, transaction_id, kind) DO UPDATE SET amount = excluded.amount`

// counted makes the counters fit the payments of today.
const counted = `
UPDATE balances b SET spent_day = floor(extract(epoch FROM now()) / 86400), spent_today = coalesce((
	SELECT sum(debit_minor) FROM reservations WHERE sender_id = b.account_id AND debit_currency = b.currency AND status <> 'ROLLEDBACK' AND parent_id IS NULL), 0)`

// forged changes the rows of a payment, and makes everything else in the ledger fit.
func forged(key, reservation, payment string) []string {
	var sql []string
	for table, set := range map[string]string{"reservations": reservation, "payments": payment} {
		if set != "" {
			sql = append(sql, fmt.Sprintf("UPDATE %s SET %s WHERE idempotency_key = '%s'", table, set, key))
		}
	}
	return append(sql, fitting(key)...)
}

func fitting(key string) []string {
	insert := strings.Index(moved, "\nINSERT INTO entries")
	// The old entries are deleted in a statement of its own: the new ones may have the same key.
	return []string{
		strings.ReplaceAll(moved[:insert], "KEY", key) + " SELECT 1", strings.ReplaceAll(moved[insert:], "KEY", key), counted,
	}
}

// invented is a payment like the first one, with another key.
func invented(attempt string) []string {
	return append([]string{
		`CREATE TEMP TABLE kept_claim AS SELECT * FROM reservations WHERE idempotency_key = 'one'`,
		`CREATE TEMP TABLE kept_outcome AS SELECT * FROM payments WHERE idempotency_key = 'one'`,
		`UPDATE kept_claim SET reservation_id = gen_random_uuid(), idempotency_key = 'invented', attempt_id = '` + attempt + `'`,
		`UPDATE kept_outcome SET payment_id = (SELECT reservation_id FROM kept_claim), idempotency_key = 'invented'`,
		`INSERT INTO reservations SELECT * FROM kept_claim`, `INSERT INTO payments SELECT * FROM kept_outcome`,
		`DROP TABLE kept_claim, kept_outcome`,
	}, fitting("invented")...)
}

// inventedVoid is a void like the first one, with another key.
func inventedVoid() string {
	return `INSERT INTO operations (client, idempotency_key, kind, fingerprint, attempt_id, reservation_id, amount_minor, status, reason, note, accepted_at, decided_at)
		SELECT client, 'invented', kind, fingerprint, '', reservation_id, amount_minor, status, reason, note, accepted_at, decided_at FROM operations WHERE idempotency_key = 'v'`
}

// funds changes a funding, and makes its entries and balances fit.
func funds(change string) []string {
	const of = `account_id = 'C' AND transfer_id = '/bank#funds'`
	out := []string{
		`UPDATE balances b SET available = available - e.amount FROM entries e WHERE e.transaction_id = md5('/bank#funds')::uuid
			AND (b.account_id, b.currency) = (e.account_id, e.currency)`,
		`DELETE FROM entries WHERE transaction_id = md5('/bank#funds')::uuid`,
	}
	if change == "" {
		return append(out, `DELETE FROM transfers WHERE `+of)
	}
	return append(append(out, `UPDATE transfers SET `+change+` WHERE `+of), booked("/bank#funds")...)
}

// booked books a transfer whose row there is.
func booked(id string) []string {
	legs := `FROM transfers t, LATERAL (SELECT t.account_id AS account, t.amount AS leg UNION ALL SELECT 'OUTSIDE', -t.amount) l WHERE transfer_id = '` + id + `'`
	return []string{
		`INSERT INTO entries SELECT account, currency, booked_at, md5(transfer_id)::uuid, 'funding', leg, booked_at::date ` + legs,
		`INSERT INTO balances (account_id, currency) SELECT account, currency ` + legs + ` ON CONFLICT (account_id, currency) DO NOTHING`,
		`UPDATE balances b SET available = available + leg ` + legs + ` AND (b.account_id, b.currency) = (account, t.currency)`,
	}
}

// ledgerTables are the tables that faults are planted in.
var ledgerTables = []string{"balances", "transfers", "entries", "reservations", "payments", "operations"}

// keep copies the ledger. restore brings it back.
func (s *system) keep() {
	for _, table := range ledgerTables {
		s.exec(`CREATE TEMP TABLE kept_` + table + ` AS TABLE ` + table)
	}
}

func (s *system) restore() { s.replace("kept_") }

// forge runs statements on a copy of the ledger, which then takes the ledger's place. The statements
// are the same on every engine: the copy's tables are of one session, and have the names of the ledger's.
func (s *system) forge(statements ...string) {
	s.t.Helper()
	var schema string
	s.query(&schema, `SELECT current_schema()`)
	for _, table := range ledgerTables {
		s.exec(fmt.Sprintf(`CREATE TEMP TABLE %[2]s (LIKE %[1]s.%[2]s INCLUDING ALL); INSERT INTO pg_temp.%[2]s SELECT * FROM %[1]s.%[2]s`, schema, table))
	}
	for _, sql := range statements {
		s.exec(sql)
	}
	for _, table := range ledgerTables {
		s.exec(fmt.Sprintf(`ALTER TABLE pg_temp.%[1]s RENAME TO forged_%[1]s`, table))
	}
	s.replace("forged_")
	for _, table := range ledgerTables {
		s.exec(`DROP TABLE forged_` + table)
	}
}

// replace puts the rows of other tables in the place of the ledger's. It runs no trigger, on nodes of
// Citus neither. Each statement goes alone: Citus passes a setting on with the whole text around it.
func (s *system) replace(from string) {
	s.t.Helper()
	s.exec(`BEGIN`)
	s.exec(`SET LOCAL citus.propagate_set_commands = 'local'`)
	s.exec(`SET LOCAL session_replication_role = replica`)
	for _, table := range ledgerTables {
		s.exec(`DELETE FROM ` + table)
		s.exec(`INSERT INTO ` + table + ` SELECT * FROM ` + from + table)
	}
	s.exec(`COMMIT`)
}

// sendFunds publishes funding events: rupiah, and dollars.
func (s *system) sendFunds() {
	s.t.Helper()
	usd, err := money.ParseCurrency("USD")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range []struct {
		eventType, id, account string
		data                   any
	}{
		{event.TypeAccountFunded, "funds", "C", event.AccountFunded{AccountID: "C", AmountIDR: 700, Note: "gift"}},
		{event.TypeAccountFundedV2, "dollars", "A", event.AccountFundedV2{AccountID: "A", Currency: usd, Minor: 50_000}},
	} {
		e, err := event.New(f.eventType, f.id, "/bank", f.account, f.data, time.Now())
		if err == nil {
			err = s.keys.Sign(&e)
		}
		if err == nil {
			err = s.Producer().Publish(s.t.Context(), s.kafka.AccountsTopic, f.account, e)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	s.drain()
}

// fromDollars is a payment of 10 dollars for 13.39 Singapore dollars.
func fromDollars(t *testing.T, key string) payment.Payment {
	t.Helper()
	p := request(key, "A", "B", 155_000)
	for code, into := range map[string][]*money.Currency{"USD": {&p.Currency, &p.DebitCurrency}, "SGD": {&p.CreditCurrency}} {
		for _, c := range into {
			var err error
			if *c, err = money.ParseCurrency(code); err != nil {
				t.Fatal(err)
			}
		}
	}
	rate, err := money.ParseRate("1.339")
	if err != nil {
		t.Fatal(err)
	}
	mid, err := money.ParseRate("1.34")
	if err != nil {
		t.Fatal(err)
	}
	p.Minor, p.DebitMinor, p.CreditMinor = 1000, 1000, 1339
	p.Exchange = payment.Exchange{Rate: rate, MidRate: mid, MidMinor: 1340, Remainder: "0",
		Steps: []payment.Step{{From: p.DebitCurrency, To: p.CreditCurrency, RateID: "rate", Rate: rate, MidRate: mid}}}
	return p
}

// reconcile finds each planted fault, and names the payment or account, even if everything else in the
// ledger was made to fit.
func TestReconcileSeesPlantedFaults(t *testing.T) {
	s := start(t, options{})
	reconciled := func() reconcile.Report {
		t.Helper()
		report, err := reconcile.Run(t.Context(), s.books())
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	pay := func(key string) { s.expect(s.pay(key, "A", "B", "USD", 10), "200 SUCCESS committed") }
	pay("one")
	pay("two")
	s.sendFunds()
	liquidity := ":seed:" + uuid.Must(uuid.NewV7()).String() + ":SGD"
	s.forge(append([]string{
		`INSERT INTO transfers (transfer_id, account_id, currency, amount, note, booked_at) VALUES ('` + liquidity + `', 'LIQUIDITY', 'SGD', 100000, 'seeded', now())`,
	}, booked(liquidity)...)...)
	s.publish(fromDollars(t, "dollars"))
	s.drain()
	s.eventually("the exchange is settled", func() (err error) {
		var state string
		if s.query(&state, `SELECT coalesce(max(status), 'none') FROM reservations WHERE idempotency_key = 'dollars'`); state != "COMMITTED" {
			err = errors.New(state)
		}
		return err
	})
	// A payment that is captured in part, one that is voided, one that is canceled after it was settled, and a
	// refused capture.
	for _, key := range []string{"captured", "voided"} {
		held := request(key, "A", "B", 10_000)
		held.HoldSeconds = 3600
		s.publish(held)
	}
	s.expect(s.pay("canceled", "A", "C", "USD", 5), "200 SUCCESS committed")
	s.drain()
	for _, o := range []payment.Operation{
		{Kind: payment.Capture, Key: "one", Payment: "captured", Minor: 4000, Currency: idr, Note: "a part"}, // a payment has the same key
		{Kind: payment.Void, Key: "v", Payment: "voided"},
		{Kind: payment.Cancel, Key: "x", Payment: "canceled"},
		{Kind: payment.Capture, Key: "late", Payment: "voided"},
	} {
		s.operate(o)
		s.drain()
	}
	if r := reconciled(); !r.Clean() || r.Seeded != 4 || r.Direct != 0 {
		t.Fatalf("%+v", r)
	}

	hold := `INSERT INTO reservations (reservation_id, idempotency_key, fingerprint, attempt_id, sender_id, receiver_id, amount_idr, currency_input, amount_minor,
		tx_date, status, deadline, created_at, debit_currency, debit_minor, credit_currency, credit_minor)
		SELECT gen_random_uuid(), 'hold', fingerprint, '', sender_id, receiver_id, amount_idr, currency_input, amount_minor, tx_date,
		'PENDING', '2099-01-01', now(), debit_currency, debit_minor, credit_currency, credit_minor FROM reservations WHERE idempotency_key = 'one'`
	swapped := request("one", "B", "A", 155_000)
	swapped.Minor, swapped.Currency = 1000, fromDollars(t, "").Currency
	swap := `sender_id = receiver_id, receiver_id = sender_id`
	// The forger knows how fingerprints are made.
	refingered := fmt.Sprintf(`, fingerprint = '\x%x'`, swapped.Fingerprint())
	tenfold := `amount_idr = 10 * amount_idr, debit_minor = 10 * debit_minor, credit_minor = 10 * credit_minor`
	s.keep()
	for name, p := range map[string]fault{
		"a balance changed by hand": {
			plant: []string{`UPDATE balances SET available = available + 7 WHERE account_id = 'C' AND currency = 'IDR'`},
			check: reconcile.Account, account: "C",
		},
		"a doubled credit": {
			plant: []string{`UPDATE balances SET available = available + 155000 WHERE account_id = 'B' AND currency = 'IDR'`},
			check: reconcile.Account, account: "B", payment: "two",
		},
		"a payment row deleted": {
			plant: []string{`DELETE FROM payments WHERE idempotency_key = 'one'`},
			check: reconcile.Outcome, payment: "one",
		},
		"a whole payment deleted": {
			plant: []string{`DELETE FROM payments WHERE idempotency_key = 'one'`, `DELETE FROM reservations WHERE idempotency_key = 'one'`},
			check: reconcile.RequestDecided, payment: "one",
		},
		"an outcome turned": {
			plant: []string{`UPDATE reservations SET status = 'ROLLEDBACK' WHERE idempotency_key = 'two'`, `UPDATE payments SET status = 'FAILED', reason = 'expired' WHERE idempotency_key = 'two'`},
			check: reconcile.ResultTrue, payment: "two",
		},
		"money made": {
			plant: []string{`UPDATE transfers SET amount = amount + 1 WHERE account_id = 'A' AND currency = 'IDR'`},
			check: reconcile.Conservation,
		},
		"dollars made": {
			plant: []string{`UPDATE balances SET available = available + 1 WHERE account_id = 'A' AND currency = 'USD'`},
			check: reconcile.Conservation,
		},
		"an entry of another kind": {
			plant: []string{`UPDATE entries SET kind = 'refund' WHERE transaction_id = (SELECT reservation_id FROM reservations WHERE idempotency_key = 'one') AND amount > 0`},
			check: reconcile.Booking, payment: "one",
		},
		"ten times the amount":             {plant: forged("one", tenfold, `amount_idr = 10 * amount_idr`), check: reconcile.RequestTrue, payment: "one"},
		"ten times the amount sent":        {plant: forged("one", tenfold+`, amount_minor = 10 * amount_minor`, `amount_idr = 10 * amount_idr`), check: reconcile.ClaimTrue, payment: "one"},
		"ten times the amount moved alone": {plant: forged("one", `debit_minor = 10 * debit_minor, credit_minor = 10 * credit_minor`, ``), check: reconcile.ClaimTrue, payment: "one"},
		"another receiver":                 {plant: forged("one", `receiver_id = 'C'`, `receiver_id = 'C'`), check: reconcile.RequestTrue, payment: "one"},
		"another receiver in the claim":    {plant: forged("one", `receiver_id = 'C'`, `receiver_id = 'C'`), check: reconcile.ClaimTrue, payment: "one"},
		"another sender":                   {plant: forged("one", `sender_id = 'C'`, `sender_id = 'C'`), check: reconcile.RequestTrue, payment: "one"},
		"the parties swapped":              {plant: forged("one", swap, swap), check: reconcile.ClaimTrue, payment: "one"},
		"the parties swapped with skill":   {plant: forged("one", swap+refingered, swap), check: reconcile.RequestTrue, payment: "one"},
		"another rate":                     {plant: forged("one", `rate = 15501`, ``), check: reconcile.RequestTrue, payment: "one"},
		"another currency":                 {plant: forged("one", `currency_input = 'SGD'`, `currency_input = 'SGD'`), check: reconcile.RequestTrue, payment: "one"},
		"another amount sent":              {plant: forged("one", `amount_minor = 1001`, ``), check: reconcile.RequestTrue, payment: "one"},
		"a quote":                          {plant: forged("one", `quote_id = gen_random_uuid()`, ``), check: reconcile.RequestTrue, payment: "one"},
		"a price out of thin air":          {plant: forged("dollars", `credit_minor = 13390, mid_minor = 13400, exchange = jsonb_set(exchange, '{mid_minor}', '13400')`, ``), check: reconcile.RequestTrue, payment: "dollars"},
		"another price than that shown":    {plant: forged("dollars", `credit_minor = 13390, mid_minor = 13400`, ``), check: reconcile.ClaimTrue, payment: "dollars"},
		"an invented payment":              {plant: invented(""), check: reconcile.RequestKept, payment: "invented"},
		"an invented payment of a client":  {plant: invented("attempt"), check: reconcile.RequestKept, payment: "invented"},
		"an invented funding": {
			plant: append([]string{`INSERT INTO transfers (transfer_id, account_id, amount, booked_at) VALUES ('/bank#invented', 'C', 900, now())`}, booked("/bank#invented")...),
			check: reconcile.Funded, account: "C",
		},
		"an invented balance": {
			plant: append([]string{`INSERT INTO transfers (transfer_id, account_id, amount, booked_at) VALUES (':seed:1', 'C', 900, now())`}, booked(":seed:1")...),
			check: reconcile.Funded, account: "C",
		},
		"another amount of a funding":   {plant: funds(`amount = 7000`), check: reconcile.Funded, account: "C"},
		"another account of a funding":  {plant: funds(`account_id = 'B'`), check: reconcile.Funded, account: "B"},
		"another currency of a funding": {plant: funds(`currency = 'USD'`), check: reconcile.Funded, account: "C"},
		"another note of a funding":     {plant: funds(`note = 'loan'`), check: reconcile.Funded, account: "C"},
		"a funding deleted":             {plant: funds(``), check: reconcile.Funded, account: "C"},
		"a hold for ever": {
			plant: []string{hold, `UPDATE balances SET available = available - 155000, held = held + 155000 WHERE account_id = 'A' AND currency = 'IDR'`, counted},
			check: reconcile.Deadline, payment: "hold",
		},
		"a capture deleted":      {plant: []string{`DELETE FROM operations WHERE idempotency_key = 'one'`}, check: reconcile.RequestDecided, payment: "one"},
		"a cancellation deleted": {plant: []string{`DELETE FROM operations WHERE idempotency_key = 'x'`}, check: reconcile.RequestDecided, payment: "x"},
		"a void turned":          {plant: []string{`UPDATE operations SET status = 'FAILED', reason = 'expired', amount_minor = 0 WHERE idempotency_key = 'v'`}, check: reconcile.ResultTrue, payment: "v"},
		"another attempt's void": {plant: []string{`UPDATE operations SET attempt_id = 'other' WHERE idempotency_key = 'v'`}, check: reconcile.RequestTrue, payment: "v"},
		"more captured":          {plant: []string{`UPDATE operations SET amount_minor = 5000 WHERE idempotency_key = 'one'`}, check: reconcile.ClaimTrue, payment: "one"},
		"a void of no payment":   {plant: []string{`UPDATE operations SET reservation_id = gen_random_uuid() WHERE idempotency_key = 'v'`}, check: reconcile.ClaimTrue, payment: "v"},
		"an invented void":       {plant: []string{inventedVoid()}, check: reconcile.RequestKept, payment: "invented"},
		"nothing spent": {
			plant: []string{`UPDATE balances SET spent_today = 0 WHERE account_id = 'A' AND currency = 'IDR'`},
			check: reconcile.Spent, account: "A",
		},
		"nothing spent on another day": {
			plant: []string{`UPDATE balances SET spent_day = 0 WHERE account_id = 'A' AND currency = 'USD'`},
			check: reconcile.Spent, account: "A",
		},
		"a wrong position": {
			plant: []string{`UPDATE balances SET position = position + 5 WHERE account_id = 'LIQUIDITY' AND currency = 'SGD'`},
			check: reconcile.Position, account: "LIQUIDITY",
		},
	} {
		s.forge(p.plant...)
		report := reconciled()
		found := false
		for _, b := range report.Breaches {
			found = found || b.Check == p.check && (p.account == "" || b.Account == p.account) && (p.payment == "" || b.Payment == p.payment)
		}
		if !found || report.Clean() {
			t.Errorf("%s: want a breach of %s (account %q, payment %q), got %+v", name, p.check, p.account, p.payment, report.Breaches)
		}
		// A forger who made everything fit is found by nothing else.
		for _, b := range report.Breaches {
			if fitted := len(p.plant) > 3; fitted && (b.Check == reconcile.Account || b.Check == reconcile.Booking || b.Check == reconcile.Conservation || b.Check == reconcile.Spent) {
				t.Errorf("%s: the test does not make the ledger fit: %+v", name, b)
			}
		}
		s.restore()
		if r := reconciled(); !r.Clean() {
			t.Fatalf("%s: after it was undone: %+v", name, r.Breaches)
		}
	}
}

// reconcile finds events that are lost between functions.
func TestReconcileMissesEvents(t *testing.T) {
	s := start(t, options{})
	s.expect(s.pay("both-events", "A", "B", "USD", 10), "200 SUCCESS committed")
	s.faults.set(func(f *faults) {
		f.send = func(topic string) error {
			if topic == s.kafka.ResultTopic {
				return errLost
			}
			return nil
		}
	})
	impatient := s.at(s.replica(500 * time.Millisecond))
	s.expect(impatient.pay("no-result", "A", "B", "USD", 10), "504 FAILED queue_timeout")
	s.faults.set(func(f *faults) { f.send = nil })
	// This is what the worker would have done with the event.
	if _, err := paymentsv1.NewPaymentsServiceClient(s.Conn("payments")).LogAndSettle(t.Context(), &paymentsv1.LogAndSettleRequest{
		IdempotencyKey: "no-request", SenderId: "A", ReceiverId: "B", AmountIdr: 5000, Currency: "IDR", AmountMinor: 5000, AttemptId: "attempt",
		AcceptedAt: timestamppb.Now(), Deadline: timestamppb.New(time.Now().Add(time.Minute)),
	}); err != nil {
		t.Fatal(err)
	}
	got := map[string]reconcile.Check{}
	for _, b := range s.reconcile().Breaches {
		got[b.Payment] = b.Check
	}
	if len(got) != 2 || got["no-result"] != reconcile.ResultTold || got["no-request"] != reconcile.RequestKept {
		t.Errorf("%v", got)
	}
	// Events of payments that were accepted before Since are not compared. The ledger is still
	// added up.
	later, err := reconcile.Run(t.Context(), reconcile.Config{
		Database: s.conn.Config().ConnString(), Kafka: s.kafka.Config, Keys: &s.keys, Since: time.Now(), Grace: -2 * payment.DecideWithin,
	})
	if err != nil || !later.Clean() || later.Balances == 0 || later.Balances != later.Funded {
		t.Errorf("%+v, %v", later, err)
	}
	// Within the grace period nothing is compared, so nothing is missing.
	young, err := reconcile.Run(t.Context(), reconcile.Config{
		Database: s.conn.Config().ConnString(), Kafka: s.kafka.Config, Keys: &s.keys, Grace: reconcile.DefaultGrace,
	})
	if err != nil || !young.Clean() || young.TooYoung == 0 {
		t.Errorf("%+v, %v", young, err)
	}
}

// A run with a checkpoint compares only what is newer than the last run. A breach is reported again until
// it is repaired. A checkpoint that does not fit the topics is not used.
func TestReconcileGoesOnFromACheckpoint(t *testing.T) {
	s := start(t, options{})
	cfg := s.books()
	cfg.Checkpoint = filepath.Join(t.TempDir(), "checkpoint.json")
	run := func(want int64, resumed bool) reconcile.Report {
		t.Helper()
		report, err := reconcile.Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range report.Checks {
			if c.Check == reconcile.RequestDecided && c.Examined != want || report.Resumed != resumed {
				t.Errorf("%d requests are examined, resumed %t; want %d, %t", c.Examined, report.Resumed, want, resumed)
			}
		}
		return report
	}
	for i := range 3 {
		s.expect(s.pay(fmt.Sprint("old-", i), "A", "B", "USD", 10), "200 SUCCESS committed")
	}
	if r := run(3, false); !r.Clean() {
		t.Fatalf("%+v", r.Breaches)
	}
	if r := run(0, true); !r.Clean() {
		t.Errorf("%+v", r.Breaches)
	}
	// The event of an older payment comes again. Its payment is looked up.
	old := request("old", "A", "B", 5000)
	s.publish(old)
	s.drain()
	if r := run(1, true); !r.Clean() {
		t.Fatalf("%+v", r.Breaches)
	}
	s.publish(old)
	s.drain()
	if r := run(1, true); !r.Clean() {
		t.Errorf("%+v", r.Breaches)
	}
	// So is the event of an operation.
	held := request("held", "A", "B", 5000)
	held.HoldSeconds = 3600
	void := payment.Operation{Kind: payment.Void, Key: "void", Payment: "held"}
	s.publish(held)
	s.drain()
	s.operate(void)
	s.drain()
	if r := run(2, true); !r.Clean() {
		t.Fatalf("%+v", r.Breaches)
	}
	s.exec(`UPDATE operations SET decided_at = (decided_at AT TIME ZONE 'UTC' - interval '1 hour') AT TIME ZONE 'UTC'`)
	s.operate(void)
	s.drain()
	if r := run(1, true); !r.Clean() {
		t.Errorf("%+v", r.Breaches)
	}
	s.expect(s.pay("new", "A", "B", "USD", 10), "200 SUCCESS committed")
	s.keep()
	s.forge(forged("new", `receiver_id = 'C'`, `receiver_id = 'C'`)...)
	var differs reconcile.Report
	for range 2 {
		if differs = run(1, true); len(differs.Breaches) != 2 || differs.Breaches[0].Payment != "new" {
			t.Errorf("%+v", differs.Breaches)
		}
	}
	s.restore()
	// It has compared as much as the runs that found the breach, so its verdict replaces theirs.
	if r := run(1, true); !r.Clean() || r.Asked.IsZero() || !r.Asked.Equal(differs.Asked) {
		t.Errorf("asked since %s, before since %s: %+v", r.Asked, differs.Asked, r.Breaches)
	}
	text, err := os.ReadFile(cfg.Checkpoint)
	if err == nil {
		err = os.WriteFile(cfg.Checkpoint, []byte(strings.ReplaceAll(string(text), `"topic_id":"`, `"topic_id":"other`)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r := run(9, false); !r.Clean() {
		t.Errorf("%+v", r.Breaches)
	}
}

// letterBox reads the dead letters as an operator does.
func (s *system) letterBox() *deadletter.Box {
	s.t.Helper()
	manifests, err := allinone.Manifests()
	if err != nil {
		s.t.Fatal(err)
	}
	box := &deadletter.Box{Kafka: s.kafka.Config, DB: s.Conn("db"), Keys: &s.keys, Attempts: manifests.Attempts}
	for _, group := range manifests.Groups("payments.deadletter") {
		box.Groups = append(box.Groups, s.kafka.Prefix+group)
	}
	return box
}

// A dead letter has its reason. An operator sends it again through the start of the flow, or
// discards it, and the action is recorded.
func TestDeadLettersInOperatorsHands(t *testing.T) {
	s := start(t, options{})
	box := s.letterBox()
	forged, err := event.Requested("/pgw/gateway", request("forged", "A", "B", 1000), "", time.Now())
	if err == nil {
		err = s.Producer().Publish(t.Context(), s.kafka.RequestTopic, "forged", forged)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Closed out by payments itself.
	s.faults.set(func(f *faults) {
		f.rpc = inTwoSteps(func(called string) error {
			if strings.HasSuffix(called, "CommitReservation") {
				return status.Error(codes.FailedPrecondition, "never")
			}
			return nil
		})
	})
	s.expect(s.pay("hopeless", "A", "B", "IDR", 5000), "200 FAILED undeliverable")
	s.faults.set(func(f *faults) { f.rpc = nil })

	only := func(f deadletter.Filter) deadletter.Letter {
		t.Helper()
		var letters []deadletter.Letter
		s.eventually(fmt.Sprintf("one letter of %+v", f), func() (err error) {
			if letters, _, err = box.Read(t.Context(), f); err == nil && len(letters) != 1 {
				err = fmt.Errorf("%d letters: %+v", len(letters), letters)
			}
			return err
		})
		return letters[0]
	}
	closed := only(deadletter.Filter{Key: "hopeless", State: deadletter.ClosedOut})
	if closed.Topic != s.kafka.DeadLetterTopic || closed.Function != "worker" || closed.Code != 400 || closed.Attempts != 1 ||
		closed.Outcome != "ROLLEDBACK undeliverable" || !strings.Contains(closed.Message, "never") {
		t.Errorf("%+v", closed)
	}
	// Its record among the dead letters and the copy that payments could not handle are one letter.
	parked := only(deadletter.Filter{Key: "forged", State: deadletter.Parked})
	if parked.Topic != s.kafka.ParkedTopic || len(parked.Copies) != 2 || parked.Function != "payments" || parked.Code != 403 || parked.Attempts != 1 ||
		parked.Failures != 1 || parked.Reason != deadletter.BadSignature || parked.Outcome != "" || !strings.Contains(parked.Message, "signature") {
		t.Errorf("%+v", parked)
	}
	if _, ok := parked.Event.Extensions()["knativeerrordest"]; ok || parked.Event.ID() != forged.ID() {
		t.Errorf("the letter's event has changed: %s", parked.Event)
	}
	if r := s.reconcile(); !r.Clean() {
		t.Errorf("a forged request counts as a breach: %+v", r.Breaches)
	}

	// An unsigned request is not sent again, unless the operator has it signed.
	if err := box.Redrive(t.Context(), s.Producer(), parked, deadletter.Order{Operator: "ayu", Note: "once more"}); !errors.Is(err, deadletter.ErrUnsigned) {
		t.Error(err)
	}
	// An operator who has no keys and does not know the reason sends it again and again. It is refused
	// each time, and stays one letter that failed once more.
	blind := *box
	blind.Keys = nil
	for round := range 3 {
		parked.Reason = deadletter.Refused
		if err := blind.Redrive(t.Context(), s.Producer(), parked, deadletter.Order{Operator: "ayu", Note: "once more"}); err != nil {
			t.Fatal(err)
		}
		only(deadletter.Filter{Key: "forged", State: deadletter.Parked})
		s.drain()
		if parked = only(deadletter.Filter{Key: "forged"}); parked.Failures != round+2 || len(parked.Copies) != 2*(round+2) || len(parked.Actions) != round+1 {
			t.Fatalf("round %d: %+v", round, parked)
		}
	}
	if err := box.Discard(t.Context(), parked, deadletter.Order{Operator: "ayu", Note: "forged"}); err != nil {
		t.Fatal(err)
	}
	again := only(deadletter.Filter{Names: []string{parked.ID}})
	if last := len(again.Actions) - 1; again.State != deadletter.Discarded || last != 3 || again.Actions[0].Action != ledger.Redriven ||
		again.Actions[last].Note != "forged" || again.Actions[last].Operator != "ayu" {
		t.Errorf("%+v", again)
	}

	// An account's funds arrived before the account was open, and were parked. Sent again, they
	// count once.
	funded, err := event.New(event.TypeAccountFunded, "early", "/bank", "late", event.AccountFunded{AccountID: "late", AmountIDR: 700}, time.Now())
	if err == nil {
		err = s.keys.Sign(&funded)
	}
	if err == nil {
		funded.SetExtension("knativeerrordest", "http://db.pgw.svc.cluster.local/")
		funded.SetExtension("knativeerrorcode", "503")
		err = s.Producer().Publish(t.Context(), s.kafka.ParkedTopic, "late", funded)
	}
	if err != nil {
		t.Fatal(err)
	}
	early := only(deadletter.Filter{Key: "late"})
	if early.Function != "db" || early.Attempts != 11 || early.State != deadletter.Parked {
		t.Errorf("%+v", early)
	}
	s.open(0, "late")
	if err := box.Redrive(t.Context(), s.Producer(), early, deadletter.Order{Operator: "ayu", Note: "the account is open now"}); err != nil {
		t.Fatal(err)
	}
	if err := box.Redrive(t.Context(), s.Producer(), early, deadletter.Order{Operator: "bima"}); !errors.Is(err, deadletter.ErrActed) {
		t.Errorf("another operator at the same time: %v", err)
	}
	s.drain()
	if got := s.balance("late"); got != 700 {
		t.Errorf("balance %d, want 700", got)
	}
	if _, err := box.Front(deadletter.Letter{}); !errors.Is(err, deadletter.ErrNoFront) {
		t.Errorf("an event of no known type: %v", err)
	}
	if _, _, err := box.Read(t.Context(), deadletter.Filter{Names: []string{"payments.parked/0/999"}}); err == nil {
		t.Error("a letter that does not exist is found")
	}
}

// Funds for an account that is not open are parked at once, with a reason, and hold up no other
// events. When the account is open, an operator sends them again and they count.
func TestFundsForNobodyHoldUpNobody(t *testing.T) {
	s := start(t, options{})
	box := s.letterBox()
	before := s.balance("A")
	for _, to := range []string{"late", "A"} {
		e, err := event.New(event.TypeAccountFunded, "funds", "/bank/"+to, to, event.AccountFunded{AccountID: to, AmountIDR: 700}, time.Now())
		if err == nil {
			err = s.keys.Sign(&e)
		}
		if err == nil { // one partition, in this order
			err = s.Producer().Publish(t.Context(), s.kafka.AccountsTopic, "late", e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.drain()
	if got := s.balance("A"); got != before+700 {
		t.Errorf("A has %d; had %d", got, before)
	}
	letters, _, err := box.Read(t.Context(), deadletter.Filter{Key: "late", State: deadletter.Parked})
	if err != nil || len(letters) != 1 || letters[0].Code != 400 || letters[0].Attempts != 1 || !strings.Contains(letters[0].Message, "not open") {
		t.Fatalf("%+v, %v", letters, err)
	}
	s.open(0, "late")
	only := func(id string) deadletter.Letter {
		t.Helper()
		letters, _, err := box.Read(t.Context(), deadletter.Filter{Names: []string{id}})
		if err != nil || len(letters) != 1 {
			t.Fatalf("%+v, %v", letters, err)
		}
		return letters[0]
	}
	for range 2 {
		again := only(letters[0].ID)
		if err := box.Redrive(t.Context(), s.Producer(), again, deadletter.Order{Operator: "ayu", Note: "the account is open now"}); err != nil {
			t.Fatal(err)
		}
	}
	s.drain()
	if got := s.balance("late"); got != 700 {
		t.Errorf("late has %d", got)
	}
}
