package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// growKeys is the EVENT_KEYS of the measurement.
const growKeys = "grow:Z3Jvd2luZyBncm93aW5nIGdyb3dpbmcgZ3Jvd2luZyE=:v2"

// growAccounts is how many accounts pay each other in a circle, so balances stay as they are.
const growAccounts = 1000

// TestMemoryDoesNotGrow measures the command's memory with PGW_GROW payments, such as 1000000. It is
// skipped without that variable: it needs minutes, and some gigabytes on disk. README.md has its figures.
func TestMemoryDoesNotGrow(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("PGW_GROW"))
	if err != nil {
		t.Skip("PGW_GROW is not set")
	}
	database := embeddedtest.Postgres(t)
	if err := ledger.Migrate(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	var topics []kafka.Topic
	for _, name := range []string{"payments.request", "payments.result", "payments.deadletter", "payments.parked", "ledger.accounts"} {
		topics = append(topics, kafka.Topic{Name: name, Partitions: 10})
	}
	broker := embeddedtest.Kafka(t, topics...)
	var keys event.Keyring
	if err := keys.Decode(growKeys); err != nil {
		t.Fatal(err)
	}
	grown := &grown{n: n, begun: time.Now().Add(-48 * time.Hour).Truncate(time.Microsecond), keys: &keys}
	begun := time.Now()
	t.Run("fill", func(t *testing.T) {
		t.Run("ledger", func(t *testing.T) { t.Parallel(); grown.fillLedger(t, database) })
		t.Run("topics", func(t *testing.T) { t.Parallel(); grown.fillTopics(t, broker) })
	})
	t.Logf("filled in %s", time.Since(begun).Round(time.Second))

	binary := filepath.Join(t.TempDir(), "pgw")
	if out, err := exec.Command("go", "build", "-o", binary, "pgw/functions/pgw").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	checkpoint := filepath.Join(t.TempDir(), "checkpoint.json")
	for _, run := range []string{"everything", "from the checkpoint"} {
		cmd := exec.Command(binary, "reconcile", "--json", "--checkpoint", checkpoint)
		cmd.Env = append(os.Environ(), "DATABASE_URL="+database, "KAFKA_BROKERS="+broker.Brokers[0], "EVENT_KEYS="+growKeys,
			"KAFKA_REQ_TOPIC="+broker.RequestTopic, "KAFKA_RES_TOPIC="+broker.ResultTopic, "KAFKA_DEADLETTER_TOPIC="+broker.DeadLetterTopic,
			"KAFKA_PARKED_TOPIC="+broker.ParkedTopic, "KAFKA_ACCOUNTS_TOPIC="+broker.AccountsTopic)
		var out, problem bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &problem
		begun = time.Now()
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %s%.2000s", err, &problem, &out)
		}
		took := time.Since(begun)
		var report Report
		if err := json.Unmarshal(out.Bytes(), &report); err != nil {
			t.Fatal(err)
		}
		peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss >> 10
		t.Logf("%d payments, %s: %s, %d MiB at most, resumed %t", n, run, took.Round(100*time.Millisecond), peak, report.Resumed)
		if peak > 256 || !report.Clean() || report.Resumed != (run != "everything") {
			t.Errorf("%d MiB, %+v", peak, report)
		}
	}
}

// grown makes past payments in the ledger, and their events.
type grown struct {
	n     int
	only  int // the buckets of the keys that add makes
	begun time.Time
	keys  *event.Keyring
}

func growAccount(i int) string { return fmt.Sprintf("ACC%04d", i%growAccounts) }

// payment is the payment of a number, with its reservation's id.
func (g *grown) payment(i int) (payment.Payment, uuid.UUID) {
	at := g.begun.Add(time.Duration(i) * 10 * time.Microsecond)
	var id uuid.UUID
	ms := at.UnixMilli()
	for b := range 6 {
		id[b] = byte(ms >> (40 - 8*b))
	}
	id[6], id[8] = 0x70, 0x80
	for b := range 7 {
		id[9+b] = byte(i >> (48 - 8*b))
	}
	return payment.Payment{
		Key: fmt.Sprintf("order-%032d", i), Sender: growAccount(i), Receiver: growAccount(i + 1), AmountIDR: 5000, Minor: 5000, Currency: money.IDR,
		TxDate: "2026-01-31T09:30:00Z", RuleSet: "019bb3d4-0000-7000-8000-000000000000", AcceptedAt: at, Deadline: at.Add(payment.DecideWithin),
		AttemptID: fmt.Sprintf("attempt-%028d", i),
	}, id
}

func (g *grown) fillLedger(t *testing.T, database string) {
	l, err := ledger.Open(ledger.Config{URL: database, BatchMax: 1, BatchLanes: 1, QueueMax: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close(context.Background())
	var seeds []ledger.Seed
	for i := range growAccounts {
		seeds = append(seeds, ledger.Seed{
			Profile:  ledger.Profile{AccountID: growAccount(i), Currency: "IDR", Status: payment.Active},
			Balances: []money.Amount{{Minor: 1_000_000, Currency: money.IDR}},
		})
	}
	for some := range slices.Chunk(seeds, 50) {
		if err := l.SeedAccounts(t.Context(), some); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	copied := func(table string, columns []string, rows int, row func(i int) []any) {
		if _, err := conn.CopyFrom(t.Context(), pgx.Identifier{table}, columns, pgx.CopyFromSlice(rows, func(i int) ([]any, error) { return row(i), nil })); err != nil {
			t.Fatal(err)
		}
	}
	copied("reservations", []string{"reservation_id", "idempotency_key", "fingerprint", "attempt_id", "sender_id", "receiver_id", "amount_idr",
		"currency_input", "amount_minor", "rule_set", "tx_date", "status", "accepted_at", "deadline", "created_at", "debit_currency", "debit_minor",
		"credit_currency", "credit_minor", "ended_at"}, g.n, func(i int) []any {
		p, id := g.payment(i)
		fp := p.Fingerprint()
		return []any{id, p.Key, fp[:], p.AttemptID, p.Sender, p.Receiver, p.AmountIDR, "IDR", p.Minor, p.RuleSet, p.TxDate, "COMMITTED",
			p.AcceptedAt, p.Deadline, p.AcceptedAt, "IDR", p.AmountIDR, "IDR", p.AmountIDR, p.AcceptedAt}
	})
	copied("payments", []string{"payment_id", "idempotency_key", "sender_id", "receiver_id", "currency_input", "amount_idr", "status", "reason", "decided_at"}, g.n, func(i int) []any {
		p, id := g.payment(i)
		return []any{id, p.Key, p.Sender, p.Receiver, "IDR", p.AmountIDR, "SUCCESS", "committed", p.AcceptedAt}
	})
	copied("entries", []string{"account_id", "currency", "booked_at", "transaction_id", "kind", "amount", "value_date"}, 2*g.n, func(i int) []any {
		p, id := g.payment(i / 2)
		leg := p.Legs()[i%2]
		return []any{leg.Account, "IDR", p.AcceptedAt, id, string(leg.Kind), leg.Minor, p.AcceptedAt}
	})
	// The circle is closed only if all accounts have paid equally often.
	for i := g.n - g.n%growAccounts; i < g.n; i++ {
		for account, amount := range map[string]int{growAccount(i): -5000, growAccount(i + 1): 5000} {
			if _, err := conn.Exec(t.Context(), `UPDATE balances SET available = available + $2 WHERE account_id = $1`, account, amount); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := conn.Exec(t.Context(), `VACUUM ANALYZE`); err != nil {
		t.Fatal(err)
	}
}

func (g *grown) fillTopics(t *testing.T, broker embeddedtest.Broker) {
	settings := broker.Client(t)
	settings.Producer.Compression, settings.Producer.Return.Successes = sarama.CompressionZSTD, false
	settings.Producer.Flush.Messages, settings.Producer.Flush.Frequency = 1000, 10*time.Millisecond
	settings.Producer.Idempotent, settings.Net.MaxOpenRequests = false, 1
	p, err := sarama.NewAsyncProducer(broker.Brokers, settings)
	if err != nil {
		t.Fatal(err)
	}
	send := func(topic, key string, at time.Time, e cloudevents.Event, err error) {
		if err == nil {
			err = g.keys.Sign(&e)
		}
		m := &sarama.ProducerMessage{Topic: topic, Key: sarama.StringEncoder(key), Timestamp: at}
		if err == nil {
			err = kafka_sarama.WriteProducerMessage(t.Context(), binding.ToMessage(&e), m)
		}
		if err != nil {
			t.Fatal(err)
		}
		select {
		case p.Input() <- m:
		case err := <-p.Errors():
			t.Fatal(err)
		}
	}
	for i := range g.n {
		paid, id := g.payment(i)
		e, err := event.Requested("/pgw/gateway", paid, "", paid.AcceptedAt)
		send(broker.RequestTopic, paid.Key, paid.AcceptedAt, e, err)
		e, err = event.Result("/pgw/worker", event.PaymentResult{
			Key: paid.Key, Outcome: payment.Standing(payment.Committed, "", id.String(), false), Fingerprint: paid.Fingerprint(), AttemptID: paid.AttemptID,
		}, paid.AcceptedAt)
		send(broker.ResultTopic, paid.Key, paid.AcceptedAt, e, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestComparingManyPayments measures the part of a run whose memory could grow with the ledger: the
// temporary files and the comparison. It makes PGW_COMPARE payments, such as 10000000, with their events.
// Without that variable it makes a few, and only checks that the one wrong payment among them is found.
func TestComparingManyPayments(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("PGW_COMPARE"))
	measured := err == nil
	if !measured {
		n = 20_000
	}
	r := &reconciliation{examined: map[Check]int64{}, breaches: map[Check]int64{}, judged: time.Now()}
	spills := []*spill{&r.claims, &r.requests, &r.results}
	for _, s := range spills {
		s.dir = t.TempDir()
		defer s.close()
	}
	g := &grown{n: n, begun: r.judged.Add(-48 * time.Hour)}
	// A million payments in 10 of the 1,024 buckets are as many in a bucket as 100 million in all buckets.
	if g.only, err = strconv.Atoi(os.Getenv("PGW_COMPARE_BUCKETS")); err != nil {
		g.only = buckets
	}
	begun := time.Now()
	for i := range n {
		if err := g.add(r, i); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.comparePayments(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(r.report.Breaches) != 1 || r.report.Breaches[0].Check != RequestTrue || r.examined[RequestTrue] != int64(n) || r.examined[ResultTold] != int64(n) {
		t.Errorf("%d requests and %d results are examined: %+v", r.examined[RequestTrue], r.examined[ResultTold], r.report.Breaches)
	}
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	var disk int64
	for _, s := range spills {
		disk += int64(s.blocks) * blockSize
	}
	t.Logf("%d payments: %s, %d MiB at most, %d MiB on disk", n, time.Since(begun).Round(100*time.Millisecond), used.Maxrss>>10, disk>>20)
	if measured && used.Maxrss>>10 > 256 {
		t.Error("that is more than 256 MiB")
	}
}

// add adds a payment and its two events to what is compared. The amount of one of them was changed.
func (g *grown) add(r *reconciliation, i int) error {
	paid, id := g.payment(i)
	for tail := 0; bucketOf(paid.Key) >= g.only; tail++ {
		paid.Key = fmt.Sprintf("order-%d-%d", i, tail)
	}
	fp := paid.Fingerprint()
	asked := request{fp, contentOf(paid), place{Offset: int64(i)}, false}
	if i == g.n/2 {
		paid.AmountIDR *= 10
	}
	e, err := entryOf(payment.Record{
		Payment: paid, Outcome: payment.Standing(payment.Committed, "", id.String(), false), Claimed: fp, ReservedAt: paid.AcceptedAt, DecidedAt: paid.AcceptedAt,
	})
	if err != nil {
		return err
	}
	for _, each := range []struct {
		into  *spill
		fixed any
		texts []string
	}{
		{&r.claims, e.claim, []string{e.Key, e.Client, e.attempt, string(e.reason), string(e.state)}},
		{&r.requests, asked, []string{paid.Key, paid.Client, paid.Key, paid.Key}},
		{&r.results, result{Fingerprint: fp, Place: asked.Place}, []string{paid.Key, paid.Client, string(payment.Success), string(payment.ReasonCommitted), id.String(), paid.AttemptID}},
	} {
		record, err := pack(each.fixed, each.texts...)
		if err == nil {
			err = each.into.add(paid.Key, record)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
