package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"

	"pgw/functions/pgw/load"
	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/embedded"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/rpc"
	"pgw/tests/processes"
)

// The limits are HTTP servers that do less than a payment needs. No gateway of this kind can be faster
// than they are on the same machine, so they say what a figure of the whole flow is worth.
const (
	limitAnswer = "answer" // reads the request and answers
	limitLedger = "ledger" // and reserves and commits in between, in batches
	limitKafka  = "kafka"  // and sends the request through Kafka in between
)

const (
	// maxLimitBody is the largest request, as at the gateway.
	maxLimitBody = 16 << 10
	// maxInFlow is the number of requests that the limit with Kafka settles at the same time, for each
	// partition.
	maxInFlow = 64
)

// limitCommand serves a limit, as a process of its own, until it is interrupted.
type limitCommand struct {
	Kind     string   `arg:"" enum:"answer,ledger,kafka"`
	Port     int      `required:""`
	Database string   `required:"" help:"With the accounts of the seeds."`
	DB       string   `help:"The address of db, which reserves and commits; otherwise this process does."`
	Brokers  []string `help:"Of Kafka; otherwise a broker in this process."`
	Topic    string   `default:"limit"`
}

func (c limitCommand) Run(ctx context.Context) (err error) {
	function.CollectLess() // as the functions do
	l := &limit{ctx: ctx, topic: c.Topic, waiting: map[string]chan load.Answer{}}
	switch {
	case c.Kind == limitAnswer:
	case c.DB != "":
		conn, err := rpc.Dial(c.DB)
		if err != nil {
			return err
		}
		defer conn.Close()
		l.db = dbv1.NewDbClient(rpc.Together(conn))
	default:
		if l.ledger, err = ledger.Open(ledger.Config{URL: c.Database, Name: "limit", BatchMax: 256, BatchLanes: 1, QueueMax: 4096}); err != nil {
			return err
		}
		go l.ledger.Run(ctx)
	}
	if c.Kind == limitKafka {
		if err := l.openKafka(c.Brokers); err != nil {
			return err
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	mux.Handle("POST /api/payments", l)
	server := &http.Server{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port)), Handler: mux, ReadHeaderTimeout: patient}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// limit is a server that does less than a gateway. It has no price, no rules, no checks of who pays and
// no events; what it books is right.
type limit struct {
	ctx      context.Context
	ledger   *ledger.Ledger  // nil: db reserves and commits, or nobody
	db       dbv1.DbClient   // nil: ledger does, or nobody
	producer *kafka.Producer // nil: nothing goes through Kafka
	topic    string

	mu      sync.Mutex
	waiting map[string]chan load.Answer // by key: the requests that are on their way through Kafka
}

func (l *limit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxLimitBody))
	var order payment.Order
	if err == nil {
		err = json.Unmarshal(body, &order)
	}
	answer := load.Answer{Status: payment.Success, Reason: payment.ReasonCommitted}
	switch {
	case err != nil:
	case l.producer != nil:
		answer, err = l.through(r.Context(), order.Key, body)
	case l.ledger != nil || l.db != nil:
		answer, err = l.settle(r.Context(), order)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(answer)
}

// settle reserves and commits a payment in rupiah.
func (l *limit) settle(ctx context.Context, order payment.Order) (load.Answer, error) {
	p, err := order.Payment()
	if err != nil {
		return load.Answer{}, err
	}
	now := time.Now()
	p.AmountIDR, p.AcceptedAt, p.Deadline, p.AttemptID = p.Minor, now, now.Add(time.Minute), p.Key
	if l.db != nil {
		return l.settleInDB(ctx, p)
	}
	got, err := l.ledger.ReserveAndCommit(ctx, p)
	if err == nil && !got.Paid {
		err = fmt.Errorf("%s was not committed: %s", p.Key, got.Reason)
	}
	return load.Answer{Status: payment.Success, Reason: payment.ReasonCommitted, Ref: got.ReservationID.String()}, err
}

func (l *limit) settleInDB(ctx context.Context, p payment.Payment) (load.Answer, error) {
	got, err := l.db.ReserveAndCommit(ctx, rpc.FromPayment(p))
	if err == nil && got.State != commonv1.ReservationState_RESERVATION_STATE_COMMITTED {
		err = fmt.Errorf("%s was not committed: %s", p.Key, got)
	}
	return load.Answer{Status: payment.Success, Reason: payment.ReasonCommitted, Ref: got.GetReservationId()}, err
}

// through publishes a request, and waits until it was consumed and settled.
func (l *limit) through(ctx context.Context, key string, body []byte) (load.Answer, error) {
	settled := make(chan load.Answer, 1)
	l.mu.Lock()
	l.waiting[key] = settled
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, key)
		l.mu.Unlock()
	}()
	if err := l.producer.Send(ctx, &sarama.ProducerMessage{Topic: l.topic, Key: sarama.StringEncoder(key), Value: sarama.ByteEncoder(body)}); err != nil {
		return load.Answer{}, err
	}
	select {
	case answer := <-settled:
		return answer, nil
	case <-ctx.Done():
		return load.Answer{}, ctx.Err()
	}
}

// openKafka makes a producer and consumers. Without brokers it starts one in this process, as pgw run
// does.
func (l *limit) openKafka(brokers []string) error {
	cfg, topics := kafka.Config{Brokers: brokers}, []kafka.Topic{{Name: l.topic, Partitions: 1}}
	if len(brokers) == 0 {
		broker, err := embedded.StartKafka(embedded.KafkaConfig{Topics: topics, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
		if err != nil {
			return err
		}
		cfg = kafka.Config{Brokers: []string{broker.Addr()}, Dial: broker.Dial}
	} else {
		topics[0].Partitions = fewPartitions // as the functions that it is compared with
		if err := kafka.EnsureTopics(cfg, topics); err != nil {
			return err
		}
	}
	var err error
	if l.producer, err = kafka.NewProducer(cfg, "limit"); err != nil {
		return err
	}
	settings, err := cfg.Settings("limit")
	if err != nil {
		return err
	}
	consumer, err := sarama.NewConsumer(cfg.Brokers, settings)
	if err != nil {
		return err
	}
	for partition := range topics[0].Partitions {
		records, err := consumer.ConsumePartition(l.topic, partition, sarama.OffsetOldest)
		// A new partition may have no leader yet.
		for begun := time.Now(); err != nil && time.Since(begun) < patient/2; {
			time.Sleep(100 * time.Millisecond)
			records, err = consumer.ConsumePartition(l.topic, partition, sarama.OffsetOldest)
		}
		if err != nil {
			return err
		}
		for range maxInFlow {
			go func() {
				for m := range records.Messages() {
					l.consume(m)
				}
			}()
		}
	}
	return nil
}

func (l *limit) consume(m *sarama.ConsumerMessage) {
	var order payment.Order
	err := json.Unmarshal(m.Value, &order)
	var answer load.Answer
	if err == nil {
		answer, err = l.settle(l.ctx, order)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "limit:", err)
		return
	}
	l.mu.Lock()
	settled := l.waiting[order.Key]
	l.mu.Unlock()
	if settled != nil {
		settled <- answer
	}
}

// serveLimit starts a limit on a system's database, with further flags. stop ends it.
func (s *system) serveLimit(kind string, flags ...string) (url string, pid int, stop func() error, err error) {
	port, err := processes.FreePort()
	if err != nil {
		return "", 0, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return "", 0, nil, err
	}
	cmd := exec.CommandContext(s.m.ctx, self, append([]string{"limit", kind, "--port", strconv.Itoa(port), "--database", s.Database}, flags...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return "", 0, nil, err
	}
	stop = func() error {
		cmd.Process.Signal(syscall.SIGINT)
		return cmd.Wait()
	}
	url = fmt.Sprintf("http://127.0.0.1:%d", port)
	for begun := time.Now(); time.Since(begun) < patient; time.Sleep(10 * time.Millisecond) {
		if resp, err := http.Get(url + "/readyz"); err == nil {
			resp.Body.Close()
			return url, cmd.Process.Pid, stop, nil
		}
	}
	return "", 0, nil, errors.Join(fmt.Errorf("the limit %s is not ready within %s", kind, patient), stop())
}

// driven is the speed of a server, and its cost.
type driven struct {
	perSecond float64
	cost      map[string]float64 // microseconds of processor time a payment, by program
}

// drive makes payments, and counts what they cost the programs that serve them.
func (b *bench) drive(url string, programs map[string]int) (driven, error) {
	var perSecond float64
	cost, err := b.costOf(programs, func() (n int, err error) {
		perSecond, err = b.m.payAt(b.Payments, url)
		return b.Payments, err
	})
	return driven{perSecond, cost}, err
}

// payAt makes n payments in rupiah between the seeds' accounts at gateways in turn, 64 at the same time. Every
// one must succeed, and is asked for again until it has.
func (m *machine) payAt(n int, gateways ...string) (float64, error) {
	payers, err := load.Payers()
	if err != nil {
		return 0, err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: maxInFlow}}
	defer client.CloseIdleConnections()
	run := uuid.NewString()
	var turn atomic.Int64
	return closedLoop(m.ctx, maxInFlow, n, func(ctx context.Context, _ int, rng *rand.Rand) error {
		url := gateways[int(turn.Add(1))%len(gateways)]
		from, to := evenly(rng, len(payers))
		body := fmt.Appendf(nil, `{"sender_id":%q,"receiver_id":%q,"currency":"IDR","amount":15500,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"%016x-%s"}`,
			payers[from], payers[to], rng.Uint64(), run)
		got := load.Post(ctx, client, url, body)
		for begun := time.Now(); got.Undecided() && time.Since(begun) < patient; {
			time.Sleep(100 * time.Millisecond)
			got = load.Post(ctx, client, url, body)
		}
		if got.Status != payment.Success && got.Status != payment.SuccessReplay {
			return fmt.Errorf("a payment was answered %d %s %s", got.HTTP, got.Status, cmp.Or(got.Reason, load.NoAnswer))
		}
		return nil
	})
}

// limits compares the whole flow in one process with each limit, on the same database, driven by the
// same load generator. The ratio is the flow's share of the limit.
func (b *bench) limits() error {
	return b.withOneProcess("limits", func(s *system) error {
		return b.shares("limit", 0.6, s, nil)
	})
}

// limitsOfProcesses does the same where each function, the limit, Kafka and db are processes of their own.
// The limit uses the same Kafka, and the same db to reserve and commit.
func (b *bench) limitsOfProcesses() error {
	return b.withProcesses("limits-processes", func(s *separate) error {
		return b.shares("limit-processes", 0.5, s.system, map[string]string{
			"--db": s.Addr("db"), "--brokers": strings.Join(b.m.brokers, ","), "--topic": b.m.name("limit"),
		})
	})
}

// shares compares a system with each limit. share is the goal for the share of the last.
func (b *bench) shares(name string, share float64, s *system, flags map[string]string) error {
	programs := s.programs()
	of := maps.Clone(programs) // the programs that a limit uses as well
	maps.DeleteFunc(of, func(program string, _ int) bool { return program != "kafka" && program != "db" })
	var arguments []string
	for flag, value := range flags {
		arguments = append(arguments, flag, value)
	}
	for _, l := range []struct {
		kind, floor string
		share       float64
	}{
		{limitAnswer, "an HTTP server that reads the request and answers", 0},
		{limitLedger, "the same, with a batched reserve and commit", 0},
		{limitKafka, "the same, with a record through Kafka in between", share},
	} {
		url, pid, stop, err := s.serveLimit(l.kind, arguments...)
		if err != nil {
			return err
		}
		of["limit"] = pid
		err = b.shareOf(goal{name + "-" + l.kind, "payments/s", l.floor, l.share, false},
			func() (driven, error) { return b.drive(s.Gateway, programs) },
			func() (driven, error) { return b.drive(url, of) })
		if err := errors.Join(err, stop()); err != nil {
			return err
		}
	}
	return b.m.sum(s.Database)
}

// shareOf runs the flow and a limit in turn.
func (b *bench) shareOf(g goal, flow, limit func() (driven, error)) error {
	_, err := limit() // as warm as the system is
	var samples []sample
	var whole, least driven
	for range b.Runs {
		if err != nil {
			return err
		}
		var one sample
		one, err = inTurn(
			func() (float64, error) { whole, err = flow(); return whole.perSecond, err },
			func() (float64, error) { least, err = limit(); return least.perSecond, err })
		samples = append(samples, one)
	}
	if err != nil {
		return err
	}
	b.report(g, samples)
	f := &b.figures[len(b.figures)-1]
	f.Cost, f.FloorCost = whole.cost, least.cost
	fmt.Fprintf(os.Stderr, "  µs of processor time a payment, in the last run: %s; the limit: %s\n", costText(f.Cost), costText(f.FloorCost))
	return nil
}
