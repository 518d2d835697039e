package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	vegeta "github.com/tsenart/vegeta/v12/lib"

	"pgw/functions/pgw/load"
)

// schedule holds the planned start of each payment of an open loop. The starts are random, as those
// of many independent clients, and as pgbench does it. It implements vegeta.Pacer.
type schedule []time.Duration

func newSchedule(perSecond float64, during time.Duration) schedule {
	rng := rand.New(rand.NewPCG(1, 7))
	var s schedule
	for at := time.Duration(0); ; {
		at += time.Duration(rng.ExpFloat64() / perSecond * float64(time.Second))
		if at > during {
			return s
		}
		s = append(s, at)
	}
}

// Pace implements vegeta.Pacer.
func (s schedule) Pace(elapsed time.Duration, hits uint64) (wait time.Duration, stop bool) {
	if hits >= uint64(len(s)) {
		return 0, true
	}
	return max(0, s[hits]-elapsed), false
}

// Rate implements vegeta.Pacer.
func (s schedule) Rate(time.Duration) float64 { return float64(len(s)) / s[len(s)-1].Seconds() }

// openLoop pays at a rate, whether or not answers come. Latencies, in microseconds, are measured
// from the planned start and not from the sending, so a system that stalls cannot hide its delays.
// All outcomes must match the ledger; failed counts the payments without one.
func (s *system) openLoop(perSecond float64, during time.Duration) (latencies *hdrhistogram.Histogram, failed int, err error) {
	return s.openLoopAt(func() string { return s.Gateway }, perSecond, during)
}

// openLoopAt is openLoop at the gateway that is named for each payment.
func (s *system) openLoopAt(gateway func() string, perSecond float64, during time.Duration) (latencies *hdrhistogram.Histogram, failed int, err error) {
	due := newSchedule(perSecond, during)
	prefix := fmt.Sprintf("open-%d-", time.Now().UnixNano())
	targets, err := payments(gateway, prefix)
	if err != nil {
		return nil, 0, err
	}
	attacker := vegeta.NewAttacker(vegeta.Timeout(20*time.Second), vegeta.Workers(64), vegeta.MaxWorkers(4096), vegeta.Connections(4096), vegeta.KeepAlive(true))
	latencies = newHistogram()
	var answers []load.KeyedAnswer
	begun := time.Now()
	for r := range attacker.Attack(targets, due, 0, "open") {
		answers = append(answers, answered(r))
		latencies.RecordValue((r.Timestamp.Sub(begun) + r.Latency - due[r.Seq]).Microseconds())
	}
	if err := s.m.sum(s.Database); err != nil {
		return nil, 0, err
	}
	failed, err = s.m.judge(s.Database, prefix, answers)
	return latencies, failed, err
}

// payments are targets with one key each. The key is also the URL's fragment, which is not sent: a
// result has the URL, but not its request.
func payments(gateway func() string, prefix string) (vegeta.Targeter, error) {
	payers, err := load.Payers()
	if err != nil {
		return nil, err
	}
	var serial atomic.Int64
	return func(t *vegeta.Target) error {
		n := int(serial.Add(1))
		from := n % len(payers)
		to := (from + 1 + n/len(payers)%(len(payers)-1)) % len(payers)
		key := fmt.Sprint(prefix, n)
		t.Method, t.URL = http.MethodPost, gateway()+"/api/payments#"+key
		t.Body = fmt.Appendf(nil, `{"sender_id":%q,"receiver_id":%q,"currency":"USD","amount":1,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":%q}`,
			payers[from], payers[to], key)
		return nil
	}, nil
}

// answered reads the answer to a payment.
func answered(r *vegeta.Result) load.KeyedAnswer {
	_, key, _ := strings.Cut(r.URL, "#")
	answer := load.Answer{Reason: load.NoAnswer}
	if json.Unmarshal(r.Body, &answer) == nil {
		answer.HTTP, answer.RetryAfter = int(r.Code), r.Headers.Get("Retry-After")
	}
	return load.KeyedAnswer{Key: key, Answer: answer}
}

// openOneProcess and openProcesses send a fifth of the floor's rate.
func (b *bench) openOneProcess() error {
	return b.withOneProcess("open-loop-one-process", func(s *system) error { return b.atAFifth("open-loop-one-process", 5, s) })
}

func (b *bench) openProcesses() error {
	return b.withProcesses("open-loop-processes", func(s *separate) error { return b.atAFifth("open-loop-processes", 10, s.system) })
}

func (b *bench) atAFifth(name string, times float64, s *system) error {
	floor, err := b.m.floor(b.Floor)
	if err != nil {
		return err
	}
	return b.paced(goal{name: name, ratio: times}, s, 0.2*floor, (b.Runs+1)/2, nil)
}

// latencyOneProcess and latencyProcesses send rates at which the processors are not busy.
func (b *bench) latencyOneProcess() error {
	return b.withOneProcess("latency-one-process", func(s *system) error {
		return b.atRates("latency-one-process", s, map[int]map[float64]float64{1000: {99: 10}})
	})
}

func (b *bench) latencyProcesses() error {
	return b.withProcesses("latency-processes", func(s *separate) error {
		return b.atRates("latency-processes", s.system, map[int]map[float64]float64{200: {50: 8, 99: 40}})
	})
}

// atRates measures three rates. wanted has milliseconds by rate and percentile.
func (b *bench) atRates(name string, s *system, wanted map[int]map[float64]float64) error {
	for _, rate := range []int{50, 200, 1000} {
		if err := b.paced(goal{name: fmt.Sprintf("%s-%d", name, rate)}, s, float64(rate), b.Runs, wanted[rate]); err != nil {
			return err
		}
	}
	return nil
}

// paced sends payments at a rate, in turn with pgbench's transfers at the same rate. The ratio is that of the
// 99th percentiles. wanted has milliseconds by percentile, for all runs together.
func (b *bench) paced(g goal, s *system, rate float64, runs int, wanted map[float64]float64) error {
	all := newHistogram()
	var samples []sample
	var cost map[string]float64
	failed := 0
	for range runs {
		var payments *hdrhistogram.Histogram
		var lost int
		var err error
		cost, err = b.costOf(s.programs(), func() (n int, err error) {
			if payments, lost, err = s.openLoop(rate, b.Open); err == nil {
				n = int(payments.TotalCount())
			}
			return n, err
		})
		if err != nil {
			return err
		}
		failed += lost
		all.Merge(payments)
		transfers, err := b.m.pacedTransfers(rate, b.Open)
		if err != nil {
			return err
		}
		samples = append(samples, sample{millis(payments, 99), millis(transfers, 99)})
	}
	g.unit, g.floor, g.atMost = fmt.Sprintf("ms p99 at %.0f/s", rate), "pgbench's transfer at the same rate, p99", true
	b.report(g, samples)
	f := &b.figures[len(b.figures)-1]
	f.Met = f.Met || g.ratio == 0
	f.Latency, f.Wanted = map[string]float64{}, map[string]float64{}
	for _, percent := range []float64{50, 99, 99.9} {
		name, is := fmt.Sprint("p", percent), millis(all, percent)
		f.Latency[name] = round(is)
		if most := wanted[percent]; most > 0 {
			f.Wanted[name] = most
			f.Met = f.Met && is <= most
		}
	}
	f.Cost = cost
	fmt.Fprintf(os.Stderr, "  ms: %v; wanted at most: %v\n", f.Latency, f.Wanted)
	fmt.Fprintf(os.Stderr, "  µs of processor time a payment, in the last run: %s\n", costText(f.Cost))
	if failed > 0 {
		f.Failed, f.Met = failed, false
		fmt.Fprintf(os.Stderr, "  %d payments had no outcome\n", failed)
	}
	return nil
}
