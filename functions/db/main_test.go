package db

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/function"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// world is a db function with its own database.
type world struct {
	*DB
	t         testing.TB
	published *published
	pool      *pgxpool.Pool    // for the test's own reads and changes of the tables
	now       func() time.Time // the process's clock
}

type published struct {
	mu     sync.Mutex
	events []cloudevents.Event
	fail   error
}

func (p *published) Publish(_ context.Context, _, _ string, e cloudevents.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	p.events = append(p.events, e)
	return nil
}

const testKeys = "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

// migrated is a database with the schema.
var migrated = embeddedtest.Template{Prepare: ledger.Migrate, Distribute: ledger.Distribute, DistributeRows: ledger.DistributeRows}

func newWorld(t testing.TB) *world { return newWorldWith(t, func(*Config) {}) }

// newWorldWith lets a test change the usual configuration.
func newWorldWith(t testing.TB, change func(*Config)) *world {
	t.Helper()
	url := migrated.Postgres(t)
	cfg := Config{DatabaseURL: url, BatchMax: 64, BatchLanes: 2, QueueMax: 4096, LockTimeout: time.Minute}
	change(&cfg)
	if err := cfg.Keys.Decode(testKeys); err != nil {
		t.Fatal(err)
	}
	cfg.Kafka.ResultTopic = "payments.result"
	w := &world{t: t, published: &published{}, now: time.Now}
	var err error
	if w.pool, err = postgres.Open(postgres.Config{URL: url, MaxConns: 8}); err != nil {
		t.Fatal(err)
	}
	w.DB, err = open(cfg, function.Dependencies{
		Publisher: w.published, Now: func() time.Time { return w.now() }, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.checkSum()
		if err := w.ledger.Close(context.Background()); err != nil {
			t.Error(err)
		}
		w.pool.Close()
	})
	return w
}

// open makes accounts with funds.
func (w *world) open(balance int64, ids ...string) {
	w.t.Helper()
	in := &dbv1.SeedAccountsRequest{}
	for _, id := range ids {
		in.Accounts = append(in.Accounts, &dbv1.Account{AccountId: id, Owner: id, Currency: "IDR", Status: "ACTIVE", BalanceIdr: balance})
	}
	if _, err := w.SeedAccounts(context.Background(), in); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) balance(id string) (balance int64) {
	w.t.Helper()
	if err := w.pool.QueryRow(context.Background(), `SELECT balance_idr FROM wallet_accounts WHERE account_id = $1`, id).Scan(&balance); err != nil {
		w.t.Fatal(err)
	}
	return balance
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

// checkSum checks that the ledger adds up.
func (w *world) checkSum() {
	w.t.Helper()
	sum, err := ledger.ReadSum(context.Background(), w.pool)
	if err == nil {
		err = sum.Err()
	}
	if err != nil {
		w.t.Error(err)
	}
}

func pay(key, from, to string, amount int64) payment.Payment {
	return payment.Payment{
		Key: key, Sender: from, Receiver: to, AmountIDR: amount, Minor: amount, Currency: money.IDR,
		AcceptedAt: time.Now(), Deadline: time.Now().Add(payment.DecideWithin), AttemptID: key + "-1",
	}
}

func (w *world) mustReserve(p payment.Payment) ledger.Reserved {
	w.t.Helper()
	got, err := w.ledger.Reserve(context.Background(), p)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func (w *world) mustFinish(f ledger.Finish) {
	w.t.Helper()
	if _, err := w.ledger.Finish(context.Background(), f); err != nil {
		w.t.Fatal(err)
	}
}

// expire moves a reservation's deadline into the past.
func (w *world) expire(id uuid.UUID) {
	w.t.Helper()
	w.exec(`UPDATE reservations SET deadline = statement_timestamp() - interval '1 microsecond' WHERE reservation_id = $1`, id)
}

// hold locks rows until the test ends, as a person does who runs SELECT … FOR UPDATE and leaves the
// session open.
func (w *world) hold(sql string, args ...any) {
	w.t.Helper()
	tx, err := w.pool.Begin(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := tx.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { tx.Rollback(context.Background()) })
}

// impatient sets the lock timeout of production. The other tests must not reach a lock timeout on a
// busy machine.
func impatient(cfg *Config) { cfg.LockTimeout = 700 * time.Millisecond }

const lockAccountSQL = `SELECT FROM wallet_accounts WHERE account_id = $1 FOR UPDATE`
