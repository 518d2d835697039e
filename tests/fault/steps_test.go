package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"

	"pgw/functions/pgw/load"
	"pgw/functions/pgw/reconcile"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/embedded"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/rpc"
	"pgw/tests/processes"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

const (
	testKeys = "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	// patience is the limit for steps that end within the retries of a delivery.
	patience = 60 * time.Second
)

// rig is a system of processes with a tap on every connection between them.
type rig struct {
	*processes.System
	t      *testing.T
	taps   *taps
	conn   *pgx.Conn
	kafka  kafka.Config
	keys   event.Keyring
	client *http.Client
	said   *processes.Output
	order  string // what a payment's JSON says of the amount and the balances
	// What the client asks for at a step, and what is there before it asks. The key is that of the
	// reservation whose state is looked at.
	ask     func(key string) string
	prepare func(key string) // may be nil
}

// A payment in rupiah moves money between two balances. An exchange has five entries.
const (
	inRupiah = `"currency":"USD","amount":10`
	exchange = `"currency":"USD","amount":10,"debit_currency":"USD","credit_currency":"SGD"`
)

// migrated is a database with the schema.
var migrated = embeddedtest.Template{Prepare: ledger.Migrate}

func newRig(t *testing.T) *rig {
	t.Helper()
	binary, err := processes.Build(embeddedtest.Dir(t))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, taps: &taps{}, client: &http.Client{Timeout: 20 * time.Second}, said: &processes.Output{}, order: inRupiah}
	r.ask = r.pay
	if err := r.keys.Decode(testKeys); err != nil {
		t.Fatal(err)
	}
	database := migrated.Postgres(t)
	if r.conn, err = pgx.Connect(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	topics, err := processes.Topics(1)
	if err != nil {
		t.Fatal(err)
	}
	broker, err := embedded.StartKafka(embedded.KafkaConfig{Topics: topics, Listen: r.taps.listenKafka, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { broker.Close() })
	r.kafka = kafka.Config{
		Brokers: []string{broker.Addr()}, RequestTopic: "payments.request", ResultTopic: "payments.result",
		DeadLetterTopic: "payments.deadletter", ParkedTopic: "payments.parked", AccountsTopic: "ledger.accounts",
	}
	tapped, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	tapped.Host = r.taps.postgres(t, tapped.Host)
	if r.System, err = processes.New(processes.Config{
		Binary: binary, Database: tapped.String(), Kafka: r.kafka, EventKeys: testKeys, Log: r.said,
		Env: []string{"HTTP2=" + string(function.Mixed)}, // the taps mix
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range processes.Functions {
		r.SetFront(name, r.taps.front(t, name, r.Addr(name)))
	}
	if err := r.StartSeeded(t.Context(), 2); err != nil {
		t.Fatalf("%v: %s", err, r.said)
	}
	if err := r.SeedExchange(t.Context(), 2); err != nil {
		t.Fatalf("%v: %s", err, r.said)
	}
	t.Cleanup(func() {
		if err := r.StopAll(); err != nil {
			t.Errorf("%v: %s", err, r.said)
		}
		r.prove()
		r.conn.Close(context.Background())
	})
	return r
}

// prove checks that the books agree, including the youngest payment.
func (r *rig) prove() {
	r.t.Helper()
	report, err := reconcile.Run(context.Background(), reconcile.Config{
		Database: r.conn.Config().ConnString(), Kafka: r.kafka, Keys: &r.keys, Grace: -2 * payment.DecideWithin,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if !report.Clean() {
		r.t.Errorf("the books do not agree: %+v", report.Breaches)
	}
}

// pay makes a payment and returns the client's answer.
func (r *rig) pay(key string) string {
	answer := load.Post(context.Background(), r.client, "http://"+r.Addr("gateway"), fmt.Appendf(nil,
		`{"sender_id":%q,"receiver_id":%q,%s,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":%q}`,
		processes.Account(0), processes.Account(1), r.order, key))
	return strings.TrimSpace(fmt.Sprintf("%s %s", answer.Status, answer.Reason))
}

// operate asks for an operation on a payment and returns the client's answer.
func (r *rig) operate(of, what, body string) string {
	url := "http://" + r.Addr("gateway") + "/api/payments/" + of + "/" + what
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		return noAnswer
	}
	defer resp.Body.Close()
	var answer struct{ Status, Reason string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return noAnswer
	}
	return answer.Status + " " + answer.Reason
}

// kept is the ledger's state of a key: nothing, PENDING, COMMITTED or ROLLEDBACK.
func (r *rig) kept(key string) string {
	r.t.Helper()
	status := "nothing"
	err := r.conn.QueryRow(context.Background(), `SELECT coalesce((SELECT status FROM reservations WHERE idempotency_key = $1), 'nothing')`, key).Scan(&status)
	if err != nil {
		r.t.Fatal(err)
	}
	return status
}

func (r *rig) eventually(what string, check func() error) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not within %s: %s: %v\n%s", patience, what, err, r.said)
		}
	}
}

const (
	committed = "SUCCESS committed"
	replayed  = "SUCCESS_REPLAY duplicate_idempo"
	timeout   = "FAILED queue_timeout"
	noAnswer  = string(load.NoAnswer)
)

// step is one step of settling at which a process is killed.
type step struct {
	name string
	at   point
	kill string // the process that is killed
	kept string // the ledger's state at that moment
	// The possible answers for the client that waits meanwhile, and for a client that asks again
	// after the restart.
	hears, again []string
	ends         string // the final state of the payment; COMMITTED when empty
	between      func() // is called before the client asks again; may be nil
}

// A process is killed at every step of settling a payment, before and after each commit, publish
// and acknowledgement. The ledger has the expected state at that moment, the payment continues
// after the restart without help, and no client gets a false answer.
func TestAStopAtEveryStep(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const (
		settle   = "/payments.v1.PaymentsService/Settle"
		inOneRPC = dbv1.Db_ReserveAndCommit_FullMethodName
	)
	waits := []string{committed}
	// The stand-in's consumer group waits for its dead member, and so does the client, possibly for
	// longer than 5 s.
	mayTimeOut := []string{committed, timeout}
	for _, s := range []step{
		{"gateway before its request is published", point{client: "pgw-gateway", api: produce}, "gateway", "nothing", []string{noAnswer}, []string{committed}, "", nil},
		{"gateway after its request is published", point{function: "worker", path: "/"}, "gateway", "nothing", []string{noAnswer}, []string{replayed}, "", nil},
		{"worker before it has settled", point{function: "worker", path: "/"}, "worker", "nothing", waits, []string{replayed}, "", nil},
		{"payments before it has settled", point{function: "payments", path: settle}, "payments", "nothing", waits, []string{replayed}, "", nil},
		{"db before it has begun", point{function: "db", path: inOneRPC}, "db", "nothing", waits, []string{replayed}, "", nil},
		{"db before its transaction is committed", point{sql: "COMMIT\n"}, "db", "nothing", waits, []string{replayed}, "", nil},
		{"db after its transaction is committed", point{sql: "INSERT INTO reservations", after: true}, "db", "COMMITTED", waits, []string{replayed}, "", nil},
		{"payments after it has settled", point{function: "db", path: inOneRPC, after: true}, "payments", "COMMITTED", waits, []string{replayed}, "", nil},
		{"worker after it has settled", point{function: "payments", path: settle, after: true}, "worker", "COMMITTED", waits, []string{replayed}, "", nil},
		{"worker before the result is published", point{client: "pgw-worker", api: produce}, "worker", "COMMITTED", waits, []string{replayed}, "", nil},
		{"worker before it has acknowledged", point{function: "worker", path: "/", after: true}, "worker", "COMMITTED", waits, []string{replayed}, "", nil},
		{"the source before it has the acknowledgement", point{function: "worker", path: "/", after: true}, processes.StandIn, "COMMITTED", mayTimeOut, []string{replayed}, "", nil},
		{"the source before it has committed its offset", point{client: "pgw-payments-request", api: offsetCommit}, processes.StandIn, "COMMITTED", mayTimeOut, []string{replayed}, "", nil},
		{"gateway before it has the result", point{function: "gateway", path: "/events"}, "gateway", "COMMITTED", []string{noAnswer}, []string{replayed}, "", nil},
		{"gateway after it has the result", point{function: "gateway", path: "/events", after: true}, "gateway", "COMMITTED", []string{noAnswer, committed}, []string{replayed}, "", nil},
	} {
		r.stopAtEachOf(t, s)
	}
}

// The same where db can't commit what it reserves in one transaction, as one of an earlier release: it
// takes two.
func TestAStopAtEveryStepOfTwoTransactions(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.taps.instead(inTwoSteps)
	const (
		reserve = "/db.v1.Db/Reserve"
		commit  = "/db.v1.Db/CommitReservation"
	)
	waits := []string{committed}
	for _, s := range []step{
		{"db before it has begun", point{function: "db", path: reserve}, "db", "nothing", waits, []string{replayed}, "", nil},
		{"db before the reserve is committed", point{sql: "COMMIT\n"}, "db", "nothing", waits, []string{replayed}, "", nil},
		{"db after the reserve is committed", point{sql: "INSERT INTO reservations", after: true}, "db", "PENDING", waits, []string{replayed}, "", nil},
		{"payments after it has reserved", point{function: "db", path: reserve, after: true}, "payments", "PENDING", waits, []string{replayed}, "", nil},
		{"db before it has begun to commit", point{function: "db", path: commit}, "db", "PENDING", waits, []string{replayed}, "", nil},
		{"db before the commit is committed", point{sql: "SET status = 'COMMITTED'"}, "db", "PENDING", waits, []string{replayed}, "", nil},
		{"db after the commit is committed", point{sql: "SET status = 'COMMITTED'", after: true}, "db", "COMMITTED", waits, []string{replayed}, "", nil},
		{"payments after it has committed", point{function: "db", path: commit, after: true}, "payments", "COMMITTED", waits, []string{replayed}, "", nil},
	} {
		r.stopAtEachOf(t, s)
	}
}

// inTwoSteps answers as a db of an earlier release.
func inTwoSteps(path string) int {
	if path == dbv1.Db_ReserveAndCommit_FullMethodName {
		return int(codes.Unimplemented)
	}
	return 0
}

// stopAtEachOf makes a payment in rupiah, and an exchange.
func (r *rig) stopAtEachOf(t *testing.T, s step) {
	for _, kind := range []struct{ name, order string }{{"", inRupiah}, {" of an exchange", exchange}} {
		if kind.name != "" && s.kill != "db" && s.kill != "payments" {
			continue // what is exchanged makes no difference to the others
		}
		s.name += kind.name
		t.Run(s.name, func(t *testing.T) {
			r.order = kind.order
			r.stopAt(t, s)
		})
	}
}

// stopAt makes one payment, or one operation, and kills a process at one step of it.
func (r *rig) stopAt(t *testing.T, s step) {
	defer func(outer *testing.T) { r.t = outer }(r.t)
	r.t = t
	key := strings.ReplaceAll(s.name, " ", "-")
	if r.prepare != nil {
		r.prepare(key)
	}
	struck := make(chan string, 1)
	r.taps.arm(s.at, func() {
		if err := r.Kill(s.kill); err != nil {
			t.Error(err)
		}
		struck <- r.kept(key)
	})
	answered := make(chan string, 1)
	go func() { answered <- r.ask(key) }()
	select {
	case kept := <-struck:
		if kept != s.kept {
			t.Errorf("when %s stopped, the ledger had %s, want %s", s.kill, kept, s.kept)
		}
	case <-time.After(patience):
		t.Fatalf("the step was never reached; the client got %s\n%s", <-answered, r.said)
	}
	if _, err := r.Start(context.Background(), s.kill); err != nil {
		t.Fatalf("%v\n%s", err, r.said)
	}
	if got := <-answered; !slices.Contains(s.hears, got) {
		t.Errorf("the client that waited got %q, want one of %q", got, s.hears)
	}
	ends := s.ends
	if ends == "" {
		ends = "COMMITTED"
	}
	if slices.Contains(s.again, committed) { // nothing continues by itself: the client has to ask again
		if got := r.kept(key); got != "nothing" {
			t.Errorf("the ledger has %s of a request that was never published", got)
		}
	} else {
		r.eventually("the payment ends "+ends, func() error {
			if got := r.kept(key); got != ends {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
	}
	if s.between != nil {
		s.between()
	}
	if got := r.ask(key); !slices.Contains(s.again, got) {
		t.Errorf("the client that asked again got %q, want one of %q", got, s.again)
	}
	if got := r.kept(key); got != ends {
		t.Errorf("in the end the ledger has %s, want %s", got, ends)
	}
	r.settled()
}

// The same for refunds of parts of a payment. In the end the payment has counted each of them once.
func TestAStopAtEveryStepOfARefund(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.order = exchange
	if got := r.pay("paid"); got != committed {
		t.Fatal(got)
	}
	r.ask = func(key string) string {
		return r.operate("paid", "refunds", fmt.Sprintf(`{"idempotency_key":%q,"amount":"0.10"}`, key))
	}
	const (
		operate = "/payments.v1.PaymentsService/Operate"
		reserve = "/db.v1.Db/ReserveRefund"
		commit  = "/db.v1.Db/CommitReservation"
	)
	waits, again := []string{committed, timeout}, []string{replayed}
	steps := []step{
		{"worker before it has refunded", point{function: "worker", path: "/"}, "worker", "nothing", waits, again, "", nil},
		{"payments before it has reserved", point{function: "payments", path: operate}, "payments", "nothing", waits, again, "", nil},
		{"db before the reserve is committed", point{sql: "COMMIT\n"}, "db", "nothing", waits, again, "", nil},
		{"db after the reserve is committed", point{sql: "INSERT INTO reservations", after: true}, "db", "PENDING", waits, again, "", nil},
		{"payments after it has reserved", point{function: "db", path: reserve, after: true}, "payments", "PENDING", waits, again, "", nil},
		{"db before the commit is committed", point{sql: "SET status = 'COMMITTED'"}, "db", "PENDING", waits, again, "", nil},
		{"db after the commit is committed", point{sql: "SET status = 'COMMITTED'", after: true}, "db", "COMMITTED", waits, again, "", nil},
		{"payments after it has committed", point{function: "db", path: commit, after: true}, "payments", "COMMITTED", waits, again, "", nil},
		{"worker after it has refunded", point{function: "payments", path: operate, after: true}, "worker", "COMMITTED", waits, again, "", nil},
		{"worker before the result is published", point{client: "pgw-worker", api: produce}, "worker", "COMMITTED", waits, again, "", nil},
		{"worker before it has acknowledged", point{function: "worker", path: "/", after: true}, "worker", "COMMITTED", waits, again, "", nil},
		{"gateway before it has the result", point{function: "gateway", path: "/events"}, "gateway", "COMMITTED", []string{noAnswer}, again, "", nil},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) { r.stopAt(t, s) })
	}
	var refunded, refunding int64
	err := r.conn.QueryRow(t.Context(), `SELECT refunded_minor, refunding_minor FROM reservations WHERE idempotency_key = 'paid'`).Scan(&refunded, &refunding)
	if err != nil || !t.Failed() && (refunded != int64(10*len(steps)) || refunding != 0) {
		t.Errorf("%d was refunded and %d is on its way after %d refunds, %v", refunded, refunding, len(steps), err)
	}
}

// The same for captures. A capture is one transaction, so the payment is authorized or captured.
func TestAStopAtEveryStepOfACapture(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.prepare = func(key string) {
		r.order = exchange + `,"capture":"manual"`
		if got := r.pay(key); got != "SUCCESS authorized" {
			r.t.Fatal(got)
		}
		r.settled()
	}
	r.ask = func(key string) string {
		return r.operate(key, "capture", fmt.Sprintf(`{"idempotency_key":"capture-%s","amount":"6.00"}`, key))
	}
	const (
		operate = "/payments.v1.PaymentsService/Operate"
		capture = "/db.v1.Db/Capture"
	)
	waits, again := []string{committed, timeout}, []string{replayed}
	for _, s := range []step{
		{"worker before it has captured", point{function: "worker", path: "/"}, "worker", "PENDING", waits, again, "", nil},
		{"payments before it has captured", point{function: "payments", path: operate}, "payments", "PENDING", waits, again, "", nil},
		{"db before it has begun", point{function: "db", path: capture}, "db", "PENDING", waits, again, "", nil},
		{"db before the rest goes back", point{sql: "UPDATE balances b SET available = b.available + w.amount"}, "db", "PENDING", waits, again, "", nil},
		{"db after the payment has moved", point{sql: "SET status = 'COMMITTED'", after: true}, "db", "PENDING", waits, again, "", nil},
		{"db before the capture is committed", point{sql: "INSERT INTO operations"}, "db", "PENDING", waits, again, "", nil},
		{"db after the capture is committed", point{sql: "INSERT INTO operations", after: true}, "db", "COMMITTED", waits, again, "", nil},
		{"payments after it has captured", point{function: "db", path: capture, after: true}, "payments", "COMMITTED", waits, again, "", nil},
		{"worker before the result is published", point{client: "pgw-worker", api: produce}, "worker", "COMMITTED", waits, again, "", nil},
		{"gateway before it has the result", point{function: "gateway", path: "/events"}, "gateway", "COMMITTED", []string{noAnswer}, again, "", nil},
	} {
		t.Run(s.name, func(t *testing.T) { r.stopAt(t, s) })
	}
}

// settled waits until every published event has been delivered, so that the next step affects only
// its own payment.
func (r *rig) settled() {
	r.t.Helper()
	r.eventually("all is delivered", func() error { return processes.Delivered(r.kafka, "") })
}

// The same when the commit is refused, because the receiver was blocked after the hold, and the
// payment has to be rolled back.
func TestAStopAtEveryStepOfRollingBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	block := func(status string) {
		// This writes directly to the table, as if an operator's event had just arrived.
		if _, err := r.conn.Exec(context.Background(), `UPDATE wallet_accounts SET status = $1 WHERE account_id = $2`, status, processes.Account(1)); err != nil {
			r.t.Fatal(err)
		}
	}
	const rollBack = "/db.v1.Db/RollbackReservation"
	failed := []string{"FAILED commit_failed"}
	for _, s := range []step{
		{"payments before it has rolled back", point{function: "db", path: rollBack}, "payments", "PENDING", failed, failed, "ROLLEDBACK", nil},
		{"db before the rollback is committed", point{sql: "SET status = 'ROLLEDBACK'"}, "db", "PENDING", failed, failed, "ROLLEDBACK", nil},
		{"db after the rollback is committed", point{sql: "SET status = 'ROLLEDBACK'", after: true}, "db", "ROLLEDBACK", failed, failed, "ROLLEDBACK", nil},
		{"payments after it has rolled back", point{function: "db", path: rollBack, after: true}, "payments", "ROLLEDBACK", failed, failed, "ROLLEDBACK", nil},
	} {
		s.between = func() {
			r.taps.instead(nil)
			block("ACTIVE")
			time.Sleep(2100 * time.Millisecond) // wallet may use its cached data for this long
		}
		t.Run(s.name, func(t *testing.T) {
			r.taps.instead(func(path string) int {
				if strings.HasSuffix(path, "/CommitReservation") {
					block("BLOCKED")
				}
				return inTwoSteps(path)
			})
			r.stopAt(t, s)
		})
	}
}

// A hold past its deadline is swept. db is killed at every step of the sweep, and the next sweep
// continues.
func TestAStopAtEveryStepOfSweeping(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn, err := rpc.Dial(r.Addr("db"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sweep := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := dbv1.NewAdminClient(conn).Sweep(ctx, &dbv1.SweepRequest{})
		return err
	}
	for _, s := range []step{
		{"before it has rolled back", point{sql: "SET status = 'ROLLEDBACK'"}, "db", "PENDING", nil, nil, "", nil},
		{"after it has rolled back", point{sql: "SET status = 'ROLLEDBACK'", after: true}, "db", "ROLLEDBACK", nil, nil, "", nil},
		{"before it has published", point{client: "pgw-db", api: produce}, "db", "ROLLEDBACK", nil, nil, "", nil},
		{"before it has recorded the publish", point{sql: "SET untold = false"}, "db", "ROLLEDBACK", nil, nil, "", nil},
		{"after it has recorded the publish", point{sql: "SET untold = false", after: true}, "db", "ROLLEDBACK", nil, nil, "", nil},
		{"before swept_to moves", point{sql: "UPDATE sweep_state"}, "db", "ROLLEDBACK", nil, nil, "", nil},
	} {
		t.Run(s.name, func(t *testing.T) {
			key := "swept-" + strings.ReplaceAll(s.name, " ", "-")
			if _, err := dbv1.NewDbClient(conn).ReserveFunds(t.Context(), &dbv1.ReserveFundsRequest{
				IdempotencyKey: key, SenderId: processes.Account(0), ReceiverId: processes.Account(1), AmountIdr: 5000, CurrencyInput: "IDR", AmountMinor: 5000,
			}); err != nil {
				t.Fatal(err)
			}
			_, err := r.conn.Exec(t.Context(), `UPDATE reservations SET deadline = clock_timestamp() WHERE idempotency_key = $1`, key)
			if err != nil {
				t.Fatal(err)
			}
			struck := make(chan string, 1)
			r.taps.arm(s.at, func() {
				r.Kill("db")
				struck <- r.kept(key)
			})
			if err := sweep(); err == nil {
				t.Error("a sweep that was killed reports success")
			}
			if kept := <-struck; kept != s.kept {
				t.Errorf("when db stopped, the ledger had %s, want %s", kept, s.kept)
			}
			if _, err := r.Start(context.Background(), "db"); err != nil {
				t.Fatal(err)
			}
			r.eventually("the next sweep", sweep)
			if got := r.kept(key); got != "ROLLEDBACK" {
				t.Errorf("in the end the ledger has %s", got)
			}
			if n := r.results(key); n < 1 || n > 2 {
				t.Errorf("the result was published %d times, want once, or twice with the same id", n)
			}
		})
	}
}

// results counts the result events of a key. They must all have one id.
func (r *rig) results(key string) int {
	r.t.Helper()
	ids, n := map[string]bool{}, 0
	err := kafka.Read(context.Background(), r.kafka, "test", kafka.Range{Topic: r.kafka.ResultTopic}, func(m *sarama.ConsumerMessage) error {
		if string(m.Key) == key {
			e, err := kafka.ReadRecord(context.Background(), m, nil)
			if err != nil {
				return err
			}
			ids[e.ID()] = true
			n++
		}
		return nil
	})
	if err != nil || len(ids) > 1 {
		r.t.Errorf("%d ids, %v", len(ids), err)
	}
	return n
}

// A request that the worker can never have settled is closed out from the dead letters. Each
// process that takes part is killed at every step.
func TestAStopAtEveryStepOfClosingOut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.taps.instead(func(path string) int {
		if strings.HasSuffix(path, "/Settle") {
			return 9 // FAILED_PRECONDITION: never retried
		}
		return 0
	})
	const fail = "/db.v1.Db/Fail"
	failed := []string{"FAILED undeliverable"}
	mayTimeOut := append([]string{timeout}, failed...)
	for _, s := range []step{
		{"the source before the dead letter is published", point{client: "pgw-kafkasource", api: produce}, processes.StandIn, "nothing", mayTimeOut, failed, "ROLLEDBACK", nil},
		{"payments before it has closed out", point{function: "payments", path: "/"}, "payments", "nothing", failed, failed, "ROLLEDBACK", nil},
		{"db before the failure is committed", point{sql: "COMMIT\n"}, "db", "nothing", failed, failed, "ROLLEDBACK", nil},
		{"db after the failure is committed", point{sql: "INSERT INTO payments", after: true}, "db", "ROLLEDBACK", failed, failed, "ROLLEDBACK", nil},
		{"payments after the failure is recorded", point{function: "db", path: fail, after: true}, "payments", "ROLLEDBACK", failed, failed, "ROLLEDBACK", nil},
		{"payments before the failure is published", point{client: "pgw-payments", api: produce}, "payments", "ROLLEDBACK", failed, failed, "ROLLEDBACK", nil},
		{"payments before it has acknowledged the dead letter", point{function: "payments", path: "/", after: true}, "payments", "ROLLEDBACK", failed, failed, "ROLLEDBACK", nil},
	} {
		t.Run(s.name, func(t *testing.T) { r.stopAt(t, s) })
	}
}
