package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"

	"pgw/functions/pgw/load"
	"pgw/shared/embedded"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/payment"
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
	limitTopic = "limit"
	// maxLimitBody is the largest request, as at the gateway.
	maxLimitBody = 16 << 10
	// maxInFlow is the number of requests that the limit with Kafka settles at the same time.
	maxInFlow = 64
)

// limitCommand serves a limit, as a process of its own, until it is interrupted.
type limitCommand struct {
	Kind     string `arg:"" enum:"answer,ledger,kafka"`
	Port     int    `required:""`
	Database string `required:"" help:"With the accounts of the seeds."`
}

func (c limitCommand) Run(ctx context.Context) (err error) {
	function.CollectLess() // as the functions do
	l := &limit{ctx: ctx, waiting: map[string]chan load.Answer{}}
	if c.Kind != limitAnswer {
		if l.ledger, err = ledger.Open(ledger.Config{URL: c.Database, Name: "limit", BatchMax: 256, BatchLanes: 1, QueueMax: 4096}); err != nil {
			return err
		}
		go l.ledger.Run(ctx)
	}
	if c.Kind == limitKafka {
		if err := l.openKafka(); err != nil {
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
	ledger   *ledger.Ledger  // nil: it only answers
	producer *kafka.Producer // nil: nothing goes through Kafka

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
	case l.ledger != nil:
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
	got, err := l.ledger.Reserve(ctx, p)
	if err != nil {
		return load.Answer{}, err
	}
	done, err := l.ledger.Finish(ctx, ledger.Finish{ReservationID: got.ReservationID, Key: p.Key})
	if err == nil && !done.Done {
		err = fmt.Errorf("%s was not committed: %s", p.Key, done.Claim.Reason)
	}
	return load.Answer{Status: payment.Success, Reason: payment.ReasonCommitted, Ref: got.ReservationID.String()}, err
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
	if err := l.producer.Send(ctx, &sarama.ProducerMessage{Topic: limitTopic, Key: sarama.StringEncoder(key), Value: sarama.ByteEncoder(body)}); err != nil {
		return load.Answer{}, err
	}
	select {
	case answer := <-settled:
		return answer, nil
	case <-ctx.Done():
		return load.Answer{}, ctx.Err()
	}
}

// openKafka starts a broker in this process, as pgw run does, with a producer and a consumer.
func (l *limit) openKafka() error {
	broker, err := embedded.StartKafka(embedded.KafkaConfig{
		Topics: []kafka.Topic{{Name: limitTopic, Partitions: 1}}, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	cfg := kafka.Config{Brokers: []string{broker.Addr()}, Dial: broker.Dial}
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
	records, err := consumer.ConsumePartition(limitTopic, 0, sarama.OffsetOldest)
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

// serveLimit starts a limit on a system's database. stop ends it.
func (s *system) serveLimit(kind string) (url string, pid int, stop func() error, err error) {
	port, err := processes.FreePort()
	if err != nil {
		return "", 0, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return "", 0, nil, err
	}
	cmd := exec.CommandContext(s.m.ctx, self, "limit", kind, "--port", strconv.Itoa(port), "--database", s.Database)
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

// drive makes payments in rupiah between the seeds' accounts, 64 at the same time. Every one must
// succeed. program and pid are the server's.
func (b *bench) drive(url, program string, pid int) (driven, error) {
	before, err := b.spentBy(program, pid)
	if err != nil {
		return driven{}, err
	}
	perSecond, err := b.payAt(url)
	if err != nil {
		return driven{}, err
	}
	after, err := b.spentBy(program, pid)
	return driven{perSecond, after.each(before, b.Payments)}, err
}

func (b *bench) payAt(url string) (float64, error) {
	payers, err := load.Payers()
	if err != nil {
		return 0, err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: maxInFlow}}
	defer client.CloseIdleConnections()
	run := uuid.NewString()
	return closedLoop(b.m.ctx, maxInFlow, b.Payments, func(ctx context.Context, _ int, rng *rand.Rand) error {
		from, to := evenly(rng, len(payers))
		body := fmt.Appendf(nil, `{"sender_id":%q,"receiver_id":%q,"currency":"IDR","amount":15500,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"%016x-%s"}`,
			payers[from], payers[to], rng.Uint64(), run)
		if got := load.Post(ctx, client, url, body); got.HTTP != http.StatusOK || got.Status != payment.Success {
			return fmt.Errorf("a payment was answered %d %s %s", got.HTTP, got.Status, cmp.Or(got.Reason, load.NoAnswer))
		}
		return nil
	})
}

// limits compares the whole flow in one process with each limit, on the same database, driven by the
// same load generator. The ratio is the flow's share of the limit.
func (b *bench) limits() error {
	s, err := warmed(b.m.oneProcess("limits"))
	if err != nil {
		return err
	}
	for _, l := range []struct {
		kind, floor string
		share       float64
	}{
		{limitAnswer, "an HTTP server that reads the request and answers", 0},
		{limitLedger, "the same, with a batched reserve and commit", 0},
		{limitKafka, "the same, with a record through Kafka in between", 0.6},
	} {
		if err := b.shareOf(goal{"limit-" + l.kind, "payments/s", l.floor, l.share, false}, l.kind, s); err != nil {
			return errors.Join(err, s.stop())
		}
	}
	return errors.Join(b.m.sum(s.Database), s.stop())
}

func (b *bench) shareOf(g goal, kind string, s *system) error {
	url, pid, stop, err := s.serveLimit(kind)
	if err != nil {
		return err
	}
	_, err = b.payAt(url) // as warm as the system is
	var samples []sample
	var flow, least driven
	for range b.Runs {
		if err != nil {
			break
		}
		var one sample
		one, err = inTurn(
			func() (float64, error) { flow, err = b.drive(s.Gateway, "pgw", s.pid); return flow.perSecond, err },
			func() (float64, error) { least, err = b.drive(url, "limit", pid); return least.perSecond, err })
		samples = append(samples, one)
	}
	if err == nil {
		b.report(g, samples)
		f := &b.figures[len(b.figures)-1]
		f.Cost, f.FloorCost = flow.cost, least.cost
		fmt.Fprintf(os.Stderr, "  µs of processor time a payment, in the last run: %s; the limit: %s\n", costText(f.Cost), costText(f.FloorCost))
	}
	return errors.Join(err, stop())
}
