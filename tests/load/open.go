package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
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
	due := newSchedule(perSecond, during)
	prefix := fmt.Sprintf("open-%d-", time.Now().UnixNano())
	targets, err := payments(s.Gateway, prefix)
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
func payments(gateway, prefix string) (vegeta.Targeter, error) {
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
		t.Method, t.URL = http.MethodPost, gateway+"/api/payments#"+key
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
