package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	vegeta "github.com/tsenart/vegeta/v12/lib"

	"pgw/functions/pgw/load"
	"pgw/shared/ledger"
)

// promise is the time limit for the answer to an admitted payment.
const promise = 5 * time.Second

// generated is the smallest share of the wanted load that the generator has to send.
const generated = 0.95

// phase is the result of one load. Times are in milliseconds.
type phase struct {
	Name     string         `json:"name"`
	Wanted   float64        `json:"wanted_per_second"`
	Offered  float64        `json:"offered_per_second"` // what the generator really sent
	Settled  float64        `json:"settled_per_second"` // payments with an outcome
	Answers  map[string]int `json:"answers"`
	P50      float64        `json:"settled_p50_ms"`
	P99      float64        `json:"settled_p99_ms"`
	Longest  float64        `json:"settled_max_ms"`
	Refusals float64        `json:"refused_p99_ms"` // time until a client got the refusal
	Resident int64          `json:"resident_max_mib"`

	late, noRetryAfter int
}

// overloadCommand sends several times the load that the system can serve, and then half of its
// capacity. It fails when an admitted payment was answered too late, when a refusal had no
// Retry-After, or when an answer contradicts the ledger. It also fails when the load generator
// sends less than it should, because then it measures the generator.
type overloadCommand struct {
	Payments int           `default:"20000" help:"To measure the capacity by."`
	During   time.Duration `default:"1m" help:"How long there is too much."`
	Times    float64       `default:"3" help:"The capacity that is offered."`
}

func (c overloadCommand) Run(ctx context.Context) error {
	m, err := newMachine(ctx)
	if err != nil {
		return err
	}
	defer m.close()
	s, err := m.oneProcess("overload")
	if err != nil {
		return err
	}
	defer s.stop()
	var capacity float64
	for range 2 { // the first run warms up
		done, err := s.load(spec{c.Payments, 64})
		if err != nil {
			return err
		}
		capacity = done.perSecond
	}
	fmt.Printf("capacity: %.0f payments/s over 64 connections, load generator on the same machine\n", capacity)
	a := &attack{system: s, prefix: fmt.Sprintf("over-%d-", time.Now().UnixNano())}
	var phases []phase
	for _, p := range []struct {
		name  string
		times float64
		long  time.Duration
	}{{"before", 0.5, 10 * time.Second}, {"overload", c.Times, c.During}, {"after", 0.5, 10 * time.Second}} {
		done, err := a.run(p.name, p.times*capacity, p.long)
		if err != nil {
			return err
		}
		phases = append(phases, done)
		done.print()
	}
	if err := write("overload.json", phases); err != nil {
		return err
	}
	var errs []error
	for _, p := range phases {
		if p.Offered < generated*p.Wanted {
			errs = append(errs, fmt.Errorf("%s: the load generator offered %.0f/s of %.0f/s: this machine has too few processors for both the generator and the system; use less load, such as --times %.1f",
				p.Name, p.Offered, p.Wanted, c.Times/2))
		}
		if p.late > 0 || p.noRetryAfter > 0 {
			errs = append(errs, fmt.Errorf("%s: %d admitted payments were not answered within %s, %d refusals had no Retry-After", p.Name, p.late, promise, p.noRetryAfter))
		}
	}
	if n := len(phases); phases[n-1].Answers["503 overloaded"] > 0 {
		errs = append(errs, errors.New("payments are refused when the load has dropped"))
	}
	return errors.Join(append(errs, a.judge())...)
}

// attack sends payments at a rate, whether or not they are answered.
type attack struct {
	*system
	prefix  string
	answers []load.KeyedAnswer
}

func (a *attack) run(name string, perSecond float64, during time.Duration) (phase, error) {
	targets, err := payments(func() string { return a.Gateway }, fmt.Sprintf("%s%s-", a.prefix, name))
	if err != nil {
		return phase{}, err
	}
	attacker := vegeta.NewAttacker(vegeta.Timeout(20*time.Second), vegeta.Workers(256), vegeta.MaxWorkers(8192), vegeta.Connections(8192), vegeta.KeepAlive(true))
	p := phase{Name: name, Wanted: perSecond, Answers: map[string]int{}}
	before := len(a.answers)
	var settled, refused []time.Duration
	begun, sampled := time.Now(), time.Time{}
	for r := range attacker.Attack(targets, vegeta.Rate{Freq: int(perSecond), Per: time.Second}, during, name) {
		answer := answered(r)
		p.Answers[fmt.Sprintf("%d %s", answer.HTTP, answer.Reason)]++
		switch {
		case r.Code == http.StatusServiceUnavailable, r.Code == http.StatusTooManyRequests:
			refused = append(refused, r.Latency)
			if answer.RetryAfter == "" {
				p.noRetryAfter++
			}
		case r.Code == http.StatusOK:
			settled = append(settled, r.Latency)
			if r.Latency > promise {
				p.late++
			}
		default:
			p.late++
		}
		a.answers = append(a.answers, answer)
		if time.Since(sampled) > 100*time.Millisecond {
			sampled = time.Now()
			p.Resident = max(p.Resident, resident(a.programs()["pgw"]))
		}
	}
	p.Offered = float64(len(a.answers)-before) / during.Seconds()
	p.Settled = float64(len(settled)) / time.Since(begun).Seconds()
	p.P50, p.P99, p.Longest = at(settled, 0.5), at(settled, 0.99), at(settled, 1)
	p.Refusals = at(refused, 0.99)
	return p, nil
}

func at(all []time.Duration, q float64) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return float64(all[int(q*float64(len(all)-1))].Microseconds()) / 1000
}

// resident is a process's memory in MiB; 0 when the system does not report it.
func resident(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize()) >> 20
}

func (p phase) print() {
	fmt.Printf("%s: offered %.0f/s, settled %.0f/s; settled p50 %.0f ms, p99 %.0f ms, longest %.0f ms; refused p99 %.0f ms; resident at most %d MiB\n",
		p.Name, p.Offered, p.Settled, p.P50, p.P99, p.Longest, p.Refusals, p.Resident)
	for _, name := range slices.Sorted(maps.Keys(p.Answers)) {
		fmt.Printf("  %8d %s\n", p.Answers[name], name)
	}
}

// judge compares every answer with the ledger.
func (a *attack) judge() error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, a.Database)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	verdict, err := load.Judge(ctx, conn, a.prefix, a.answers)
	if err != nil {
		return err
	}
	sum, err := ledger.ReadSum(ctx, conn)
	if err != nil {
		return err
	}
	fmt.Printf("ledger: %d payments; balances %d + holds %d, funded %d; %d answers contradict it\n", len(verdict.Ends), sum.Balances, sum.Holds, sum.Funded, len(verdict.Wrong))
	if len(verdict.Wrong) > 0 {
		return fmt.Errorf("%d answers contradict the ledger, such as %s", len(verdict.Wrong), verdict.Wrong[0])
	}
	return sum.Err()
}
