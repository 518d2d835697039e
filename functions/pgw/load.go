package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/google/uuid"

	"pgw/functions/pgw/load"
	"pgw/shared/ledger"
	"pgw/shared/postgres"
)

// loadCommand makes payments over HTTP, and then compares every answer with the ledger.
type loadCommand struct {
	Payments    int     `default:"20000" help:"The number of requests."`
	Connections int     `default:"64" help:"Requests at the same time."`
	Duplicates  float64 `default:"0.1" help:"Share of requests that repeat an earlier one with the same key."`
	Hot         float64 `default:"0.1" help:"Share of payments that go to one account."`
	Seed        uint64  `default:"1" help:"Seed number of the random choices."`
	operatorFlags
	dataFlags
	Gateway  string `name:"gateway-url" help:"The gateway's URL, instead of GATEWAY_URL."`
	Database string `name:"database-url" help:"The gateway's ledger, instead of DATABASE_URL. Every answer is compared with it."`
	Settle   bool   `help:"Wait until no payment is pending before the comparison."`
}

func (c loadCommand) Validate() error {
	if c.Payments < 1 || c.Payments > 10_000_000 || c.Connections < 1 || c.Connections > 10_000 {
		return fmt.Errorf("--payments must be between 1 and 10000000, --connections between 1 and 10000")
	}
	if c.Duplicates < 0 || c.Duplicates > 0.9 || c.Hot < 0 || c.Hot > 1 {
		return fmt.Errorf("--duplicates must be between 0 and 0.9, --hot between 0 and 1")
	}
	return nil
}

// askAgainFor is how long a request without an answer is repeated.
const askAgainFor = time.Minute

// underLoad is the part of the system that the command needs.
type underLoad struct {
	Gateway  string          `envconfig:"GATEWAY_URL" required:"true"`
	Database string          `envconfig:"DATABASE_URL" required:"true"`
	Schema   postgres.Schema `envconfig:"LEDGER_SCHEMA"`
}

func (c loadCommand) system() (at underLoad, err error) {
	settings, err := c.find(map[string]string{"GATEWAY_URL": c.Gateway, "DATABASE_URL": c.Database})
	if err == nil {
		err = settings.Read(&at)
	}
	return at, err
}

func (c loadCommand) Run(ctx context.Context) error {
	at, err := c.system()
	if err != nil {
		return err
	}
	requests, prefix, err := c.requests()
	if err != nil {
		return err
	}
	answers, latencies, took := c.fire(ctx, at.Gateway, requests)
	report := newLoadReport(answers, latencies, took)
	if ctx.Err() != nil {
		err = interrupted{fmt.Sprintf("after %d of %d requests; the answers were not compared with the ledger", report.Answered, report.Requests)}
		return errors.Join(c.print(report, report.text), err)
	}
	report.Ledger, err = c.compare(ctx, prefix, requests, answers)
	if stopped(ctx, err) {
		err = interrupted{fmt.Sprintf("after %d requests; the answers were not all compared with the ledger", report.Answered)}
	}
	return errors.Join(c.print(report, report.text), err)
}

// compare compares the answers with the ledger.
func (c loadCommand) compare(ctx context.Context, prefix string, requests []loadRequest, answers []load.Answer) (*loadVerdict, error) {
	// The system may have been restarted meanwhile with another database URL. It answers payments a
	// moment before it writes run.json.
	bounded, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	var at underLoad
	if err := poll(bounded, func() (err error) { at, err = c.system(); return err }); err != nil {
		return nil, err
	}
	return c.judge(ctx, at.Schema.In(at.Database), prefix, requests, answers)
}

// loadRequest is one body and its key.
type loadRequest struct {
	key  string
	body []byte
}

func (c loadCommand) requests() ([]loadRequest, string, error) {
	payers, err := load.Payers()
	if err != nil {
		return nil, "", err
	}
	rng := rand.New(rand.NewPCG(c.Seed, 3))
	prefix := "load-" + uuid.Must(uuid.NewV7()).String() + "-"
	requests := make([]loadRequest, c.Payments)
	for i := range requests {
		if i > 0 && rng.Float64() < c.Duplicates {
			requests[i] = requests[rng.IntN(i)]
			continue
		}
		from := rng.IntN(len(payers))
		to := payers[(from+1+rng.IntN(len(payers)-1))%len(payers)]
		if rng.Float64() < c.Hot && payers[from] != "ACC002" {
			to = "ACC002"
		}
		key := fmt.Sprint(prefix, i)
		requests[i] = loadRequest{key, fmt.Appendf(nil, `{"sender_id":%q,"receiver_id":%q,"currency":"USD","amount":%d.%02d,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":%q}`,
			payers[from], to, 1+rng.IntN(3), rng.IntN(100), key)}
	}
	return requests, prefix, nil
}

func (c loadCommand) fire(ctx context.Context, gateway string, requests []loadRequest) ([]load.Answer, *hdrhistogram.Histogram, time.Duration) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		MaxIdleConnsPerHost: c.Connections, MaxConnsPerHost: c.Connections,
	}}
	answers := make([]load.Answer, len(requests))
	histograms := make([]*hdrhistogram.Histogram, c.Connections)
	bar := progressBar(int64(len(requests)), "requests")
	defer bar.Finish()
	var running sync.WaitGroup
	begun := time.Now()
	for n := range c.Connections {
		histograms[n] = hdrhistogram.New(1, 60_000_000, 3)
		running.Go(func() {
			for i := n; i < len(requests) && ctx.Err() == nil; i += c.Connections {
				sent := time.Now()
				answers[i] = postUntilAnswered(ctx, client, gateway, requests[i].body)
				if answers[i].HTTP != 0 || ctx.Err() == nil {
					histograms[n].RecordValue(time.Since(sent).Microseconds())
				}
				bar.Add(1)
			}
		})
	}
	running.Wait()
	took := time.Since(begun)
	for _, h := range histograms[1:] {
		histograms[0].Merge(h)
	}
	return answers, histograms[0], took
}

// postUntilAnswered does what a client should do: without an answer, it repeats the request with
// the same key.
func postUntilAnswered(ctx context.Context, client *http.Client, gateway string, body []byte) load.Answer {
	for until := time.Now().Add(askAgainFor); ; {
		out := load.Post(ctx, client, gateway, body)
		if out.Reason != load.NoAnswer || ctx.Err() != nil || time.Now().After(until) {
			return out
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// loadReport is the result of a load.
type loadReport struct {
	Requests  int            `json:"requests"`
	Answered  int            `json:"answered"` // fewer than requests if there was no answer in time, or the command was interrupted
	Seconds   float64        `json:"seconds"`
	PerSecond float64        `json:"per_second"`
	P50       float64        `json:"p50_ms"`
	P95       float64        `json:"p95_ms"`
	P99       float64        `json:"p99_ms"`
	Max       float64        `json:"max_ms"`
	Outcomes  map[string]int `json:"outcomes"` // by status and reason
	Ledger    *loadVerdict   `json:"ledger,omitempty"`
}

// loadVerdict is what the ledger says about the answers. Amounts are in whole rupiah.
type loadVerdict struct {
	Keys        int      `json:"keys"`
	Balances    int64    `json:"balances_idr"`
	Holds       int64    `json:"holds_idr"`
	Funded      int64    `json:"funded_idr"`
	Contradicts int      `json:"contradictions"`
	Undecided   int      `json:"undecided"`
	Problems    []string `json:"problems,omitempty"` // the first contradictions
}

func newLoadReport(answers []load.Answer, latencies *hdrhistogram.Histogram, took time.Duration) loadReport {
	millis := func(micros int64) float64 { return float64(micros) / 1000 }
	r := loadReport{
		Requests: len(answers), Seconds: took.Seconds(), P50: millis(latencies.ValueAtQuantile(50)), P95: millis(latencies.ValueAtQuantile(95)),
		P99: millis(latencies.ValueAtQuantile(99)), Max: millis(latencies.Max()), Outcomes: map[string]int{},
	}
	for _, a := range answers {
		if a == (load.Answer{}) {
			continue // not sent
		}
		if a.HTTP != 0 {
			r.Answered++
		}
		r.Outcomes[fmt.Sprintf("%s %s", a.Status, a.Reason)]++
	}
	r.PerSecond = float64(r.Answered) / took.Seconds()
	return r
}

func (r loadReport) text(to io.Writer) error {
	fmt.Fprintf(to, "%d requests in %.1f s: %.0f/s; p50 %.1f ms, p95 %.1f ms, p99 %.1f ms, max %.1f ms\n",
		r.Answered, r.Seconds, r.PerSecond, r.P50, r.P95, r.P99, r.Max)
	for _, name := range slices.Sorted(maps.Keys(r.Outcomes)) {
		fmt.Fprintf(to, "  %7d %s\n", r.Outcomes[name], name)
	}
	if v := r.Ledger; v != nil {
		for _, problem := range v.Problems {
			fmt.Fprintln(to, " ", problem)
		}
		fmt.Fprintf(to, "ledger: %d keys of this run; balances %d + holds %d, funded %d; %d answers contradict it, %d had no outcome to compare\n",
			v.Keys, v.Balances, v.Holds, v.Funded, v.Contradicts, v.Undecided)
	}
	return nil
}

// judge compares every answer with the ledger, and checks that the ledger adds up.
func (c loadCommand) judge(ctx context.Context, database, prefix string, requests []loadRequest, answers []load.Answer) (*loadVerdict, error) {
	conn, err := postgres.Connect(ctx, database, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if c.Settle {
		bounded, cancel := context.WithTimeout(ctx, 3*time.Minute)
		defer cancel()
		if err := poll(bounded, func() error {
			sum, err := ledger.ReadSum(bounded, conn)
			if err == nil && sum.Pending > 0 {
				err = fmt.Errorf("%d reservations are still pending", sum.Pending)
			}
			return err
		}); err != nil {
			return nil, err
		}
	}
	keyed := make([]load.KeyedAnswer, len(answers))
	for i, a := range answers {
		keyed[i] = load.KeyedAnswer{Key: requests[i].key, Answer: a}
	}
	verdict, err := load.Judge(ctx, conn, prefix, keyed)
	if err != nil {
		return nil, err
	}
	sum, err := ledger.ReadSum(ctx, conn)
	if err != nil {
		return nil, err
	}
	judged := &loadVerdict{
		Keys: len(verdict.Ends), Balances: sum.Balances, Holds: sum.Holds, Funded: sum.Funded, Contradicts: len(verdict.Wrong),
		Undecided: verdict.Undecided, Problems: verdict.Wrong[:min(len(verdict.Wrong), 10)],
	}
	if len(verdict.Wrong) > 0 {
		return judged, fmt.Errorf("%d answers contradict the ledger", len(verdict.Wrong))
	}
	return judged, sum.Err()
}
