package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pgw/functions/db"
	"pgw/functions/pgw/load"
	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/shared/function"
	"pgw/shared/payment"
	"pgw/shared/rpc"
	"pgw/tests/processes"
)

// callers is the number of concurrent calls in the measurements of RPCs. It is enough to fill
// batches.
const callers = 512

// rich is each account's opening balance in rupiah. It is more than any run can spend, and the sum
// over ten million accounts still fits the ledger's integers.
const rich = 100_000_000_000

// testLedger is db in this process, called as payments calls it.
type testLedger struct {
	m        *machine
	database string
	accounts int
	conns    []grpc.ClientConnInterface // more than one for replicas, which are called in turn
	close    func() error
}

// ledger makes a database with the given number of accounts, and db in front of it.
func (m *machine) ledger(kind string, accounts int) (*testLedger, error) {
	database, err := m.database(kind)
	if err != nil {
		return nil, err
	}
	l := &testLedger{m: m, database: database, accounts: accounts}
	if err := l.open(kind); err != nil {
		return nil, err
	}
	return l, m.openAccounts(database, accounts)
}

func (l *testLedger) open(kind string) error {
	cfg := db.Config{DatabaseURL: l.database, BatchMax: 256, BatchLanes: 1, QueueMax: 4096}
	if err := cfg.Keys.Decode(eventKeys); err != nil { // they sign where a statement goes on
		return err
	}
	f, err := db.Function.Make(cfg, function.Dependencies{})
	if err != nil {
		return err
	}
	profiles := ""
	if l.m.profiles != "" {
		profiles = filepath.Join(l.m.profiles, kind)
	}
	stop, err := function.Profile(profiles, "db")
	if err != nil {
		return err
	}
	l.conns = []grpc.ClientConnInterface{f.InProcess()}
	l.close = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patient)
		defer cancel()
		return errors.Join(stop(), f.Close(ctx))
	}
	return nil
}

// openAccounts opens and funds accounts by SQL, a day before all past payments. Otherwise the result
// is the same as by RPC, in a fraction of the time.
func (m *machine) openAccounts(database string, n int) error {
	return m.exec(database,
		fmt.Sprintf(`INSERT INTO accounts (account_id) SELECT 'A' || i FROM generate_series(0, %d) i`, n-1),
		fmt.Sprintf(`INSERT INTO balances (account_id, currency, available) SELECT 'A' || i, 'IDR', %d FROM generate_series(0, %d) i`, rich, n-1),
		fmt.Sprintf(`INSERT INTO transfers (transfer_id, account_id, amount, booked_at) SELECT 'first-A' || i, 'A' || i, %d, timestamptz '2023-11-13 00:00Z' FROM generate_series(0, %d) i`, rich, n-1),
		`INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date)
SELECT leg.account, t.currency, t.booked_at, md5(t.transfer_id)::uuid, 'funding', leg.amount, t.booked_at::date
FROM transfers t, LATERAL (VALUES (t.account_id, t.amount), ('OUTSIDE', -t.amount)) leg(account, amount)`,
		`UPDATE balances SET available = -(SELECT sum(amount) FROM transfers) WHERE account_id = 'OUTSIDE' AND currency = 'IDR'`,
		`VACUUM ANALYZE accounts`, `VACUUM ANALYZE balances`, `VACUUM ANALYZE transfers`, `VACUUM ANALYZE entries`)
}

// pastPayments fills the tables with finished payments. Each is paid back by the next, so the
// ledger still adds up. Their keys are spread over the index like clients' keys.
func (l *testLedger) pastPayments(n int) error {
	return l.m.exec(l.database,
		`DROP INDEX reservations_key`,
		fmt.Sprintf(`
INSERT INTO reservations (reservation_id, idempotency_key, fingerprint, attempt_id, sender_id, receiver_id, amount_idr, currency_input,
	amount_minor, rate, rate_id, rate_time, rule_set, tx_date, status, accepted_at, deadline, created_at, ended_at,
	debit_currency, debit_minor, credit_currency, credit_minor)
SELECT (lpad(to_hex(1700000000000 + i), 12, '0') || '70008' || lpad(to_hex(i), 15, '0'))::uuid, md5('past' || i), decode(md5('print' || i), 'hex'), md5('try' || i),
	'A' || CASE i %% 2 WHEN 0 THEN a ELSE b END, 'A' || CASE i %% 2 WHEN 0 THEN b ELSE a END, 15500, 'USD', 100, 15500, 'rate', at, 'rules',
	'2026-01-31T09:30:00Z', 'COMMITTED', at, at + interval '1 minute', at, at, 'IDR', 15500, 'IDR', 15500
FROM (SELECT i, (i / 2 * 7919) %% %[2]d AS a, (i / 2 * 7919 + 1) %% %[2]d AS b, timestamptz '2023-11-14 00:00Z' + i * interval '1 ms' AS at
	FROM generate_series(0::bigint, %[1]d) i) past`, n-1, l.accounts),
		`INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason, decided_at)
SELECT reservation_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, 'SUCCESS', 'committed', created_at FROM reservations`,
		`INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date)
SELECT leg.account, 'IDR', r.created_at, r.reservation_id, 'payment', leg.amount, r.created_at::date
FROM reservations r, LATERAL (VALUES (r.sender_id, -r.amount_idr), (r.receiver_id, r.amount_idr)) leg(account, amount) WHERE r.status = 'COMMITTED'`,
		`CREATE UNIQUE INDEX reservations_key ON reservations (idempotency_key, client)`,
		`VACUUM ANALYZE entries`, `VACUUM ANALYZE reservations`, `VACUUM ANALYZE payments`, `CHECKPOINT`)
}

// pastTime is when the past payment number i was booked.
func pastTime(i int) time.Time {
	return time.Date(2023, 11, 14, 0, 0, 0, 0, time.UTC).Add(time.Duration(i) * time.Millisecond)
}

// statements reads the first page of account A0's statement n times, one after another. A zero time
// means from the first entry on.
func (l *testLedger) statements(n int, from time.Time) (loaded, error) {
	ask := &dbv1.StatementRequest{AccountId: "A0", Currency: "IDR"}
	if !from.IsZero() {
		ask.From = timestamppb.New(from)
	}
	took := hdrhistogram.New(1, patient.Microseconds(), 3)
	begun := time.Now()
	for range n {
		ctx, cancel := context.WithTimeout(l.m.ctx, patient)
		at := time.Now()
		page, err := dbv1.NewDbClient(l.conns[0]).Statement(ctx, ask)
		cancel()
		if err != nil {
			return loaded{}, err
		}
		if len(page.GetEntries()) == 0 {
			return loaded{}, fmt.Errorf("the statement from %s is empty", from)
		}
		if err := took.RecordValue(time.Since(at).Microseconds()); err != nil {
			return loaded{}, err
		}
	}
	ms := func(p float64) float64 { return float64(took.ValueAtPercentile(p)) / 1000 }
	return loaded{perSecond: float64(n) / time.Since(begun).Seconds(), p50: ms(50), p95: ms(95), p99: ms(99)}, nil
}

// way chooses the sender and the receiver.
type way func(rng *rand.Rand, accounts int) (from, to int)

func evenly(rng *rand.Rand, accounts int) (from, to int) {
	from = rng.IntN(accounts)
	return from, (from + 1 + rng.IntN(accounts-1)) % accounts
}

func toOne(rng *rand.Rand, accounts int) (from, to int) { return 1 + rng.IntN(accounts-1), 0 }

func fromOne(rng *rand.Rand, accounts int) (from, to int) { return 0, 1 + rng.IntN(accounts-1) }

// rupiah prices a payment that moves rupiah.
func rupiah(*commonv1.Payment) {}

// exchanged prices a payment from a balance in dollars to one in Singapore dollars. With the spread it
// has five entries.
func exchanged(p *commonv1.Payment) {
	p.DebitCurrency, p.CreditCurrency, p.DebitMinor, p.CreditMinor = "USD", "SGD", 100, 133
	p.Exchange = &commonv1.Exchange{
		Rate: "1.339", MidRate: "1.34", MidMinor: 134, Remainder: "0.9",
		Steps: []*commonv1.Step{{FromCurrency: "USD", ToCurrency: "SGD", RateId: "rate", Rate: "1.339", MidRate: "1.34"}},
	}
}

// openExchange gives all accounts dollars, and the house Singapore dollars.
func (l *testLedger) openExchange() error {
	return l.m.exec(l.database,
		fmt.Sprintf(`INSERT INTO balances (account_id, currency, available) SELECT account_id, 'USD', %d FROM accounts WHERE NOT internal
UNION ALL VALUES ('LIQUIDITY', 'SGD', %[1]d), ('LIQUIDITY', 'USD', 0), ('OUTSIDE', 'USD', 0), ('OUTSIDE', 'SGD', 0)`, int64(rich)),
		`INSERT INTO transfers (transfer_id, account_id, currency, amount, booked_at)
SELECT account_id || currency, account_id, currency, available, now() FROM balances WHERE currency IN ('USD', 'SGD') AND available > 0`,
		`INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date)
SELECT leg.account, t.currency, t.booked_at, md5(t.transfer_id)::uuid, 'funding', leg.amount, t.booked_at::date
FROM transfers t, LATERAL (VALUES (t.account_id, t.amount), ('OUTSIDE', -t.amount)) leg(account, amount) WHERE t.currency IN ('USD', 'SGD')`,
		`UPDATE balances b SET available = -(SELECT sum(amount) FROM transfers t WHERE t.currency = b.currency)
WHERE account_id = 'OUTSIDE' AND currency IN ('USD', 'SGD')`,
		`VACUUM ANALYZE balances`, `VACUUM ANALYZE entries`)
}

// pay reserves and commits n payments, and returns the payments per second. It fails if any payment
// is not in the ledger exactly once.
func (l *testLedger) pay(n int, choose way, price func(*commonv1.Payment)) (float64, error) {
	run := fmt.Sprintf("run-%d", time.Now().UnixNano())
	perSecond, err := closedLoop(l.m.ctx, callers, n, func(ctx context.Context, worker int, rng *rand.Rand) error {
		conn := dbv1.NewDbClient(l.conns[worker%len(l.conns)])
		from, to := choose(rng, l.accounts)
		key := fmt.Sprintf("%016x%016x", rng.Uint64(), rng.Uint64()) // spread over the whole index
		p := &commonv1.Payment{
			IdempotencyKey: key, SenderId: processes.Account(from), ReceiverId: processes.Account(to), AmountIdr: 15500,
			CurrencyInput: "USD", AmountMinor: 100, Rate: "15500", RateId: "rate", RateTime: timestamppb.Now(), RuleSet: "rules",
			TxDate: "2026-01-31T09:30:00Z", AcceptedAt: timestamppb.Now(), Deadline: timestamppb.New(time.Now().Add(time.Minute)), AttemptId: run,
		}
		price(p)
		got, err := conn.ReserveAndCommit(ctx, p)
		if err == nil && got.State != commonv1.ReservationState_RESERVATION_STATE_COMMITTED {
			err = fmt.Errorf("not committed: %s", got)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	conn, err := pgx.Connect(l.m.ctx, l.database)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(l.m.ctx))
	var committed int
	if err := conn.QueryRow(l.m.ctx, `SELECT count(*) FROM reservations WHERE attempt_id = $1 AND status = 'COMMITTED'`, run).Scan(&committed); err != nil {
		return 0, err
	}
	if committed != n {
		return 0, fmt.Errorf("%d of %d payments are in the ledger", committed, n)
	}
	return perSecond, nil
}

// closedLoop runs n calls with the given number of workers, and returns the calls per second. The
// first error ends it.
func closedLoop(ctx context.Context, workers, n int, call func(ctx context.Context, worker int, rng *rand.Rand) error) (float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var running sync.WaitGroup
	begun := time.Now()
	for w := range workers {
		running.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(begun.UnixNano()), uint64(w)))
			for next.Add(1) <= int64(n) && ctx.Err() == nil {
				if err := call(ctx, w, rng); err != nil {
					cancel(err)
				}
			}
		})
	}
	running.Wait()
	return float64(n) / time.Since(begun).Seconds(), context.Cause(ctx)
}

// settle calls LogAndSettle over gRPC, over as many connections as a worker's replicas would use,
// and compares the answers with the ledger.
func (s *system) settle(n int) (float64, error) {
	payers, err := load.Payers()
	if err != nil {
		return 0, err
	}
	conns := make([]paymentsv1.PaymentsServiceClient, 4)
	for i := range conns {
		conn, err := rpc.Dial(s.Payments)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		conns[i] = paymentsv1.NewPaymentsServiceClient(conn)
	}
	prefix := fmt.Sprintf("settle-%d-", time.Now().UnixNano())
	var serial atomic.Int64
	var mu sync.Mutex
	answers := make([]load.KeyedAnswer, 0, n)
	perSecond, err := closedLoop(s.m.ctx, callers, n, func(ctx context.Context, worker int, rng *rand.Rand) error {
		from, to := evenly(rng, len(payers))
		key := fmt.Sprint(prefix, serial.Add(1))
		out, err := conns[worker%len(conns)].LogAndSettle(ctx, &paymentsv1.LogAndSettleRequest{
			IdempotencyKey: key, SenderId: payers[from], ReceiverId: payers[to], AmountIdr: 15500, Currency: "USD", AmountMinor: 100,
			Rate: "15500", RateId: "rate", RateTime: timestamppb.Now(), RuleSet: "rules", TxDate: "2026-01-31T09:30:00Z",
			AcceptedAt: timestamppb.Now(), Deadline: timestamppb.New(time.Now().Add(time.Minute)), AttemptId: key,
		})
		if err != nil {
			return err
		}
		mu.Lock()
		answers = append(answers, load.KeyedAnswer{Key: key, Answer: load.Answer{Status: payment.Status(out.Status), Reason: payment.Reason(out.Message), Ref: out.ReservationId}})
		mu.Unlock()
		return nil
	})
	if err != nil {
		return 0, err
	}
	undecided, err := s.m.judge(s.Database, prefix, answers)
	if err == nil && undecided > 0 {
		err = fmt.Errorf("%d payments had no outcome", undecided)
	}
	return perSecond, errors.Join(err, s.m.sum(s.Database))
}

// judge compares answers with a ledger. It returns the number of answers without an outcome:
// refusals, and missing answers.
func (m *machine) judge(database, prefix string, answers []load.KeyedAnswer) (undecided int, err error) {
	conn, err := pgx.Connect(m.ctx, database)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(m.ctx))
	verdict, err := load.Judge(m.ctx, conn, prefix, answers)
	if err == nil && len(verdict.Wrong) > 0 {
		err = fmt.Errorf("%d answers contradict the ledger, such as %s", len(verdict.Wrong), verdict.Wrong[0])
	}
	return verdict.Undecided, err
}
