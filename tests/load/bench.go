package main

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"pgw/functions/pgw/load"
	"pgw/tests/processes"
)

// benchCommand measures the table of goals.
type benchCommand struct {
	Only     []string      `help:"These scenarios; all when not given."`
	Runs     int           `default:"5" help:"Runs of each; medians are reported."`
	Payments int           `default:"20000" help:"In one run of the flow; ledger scenarios make three times as many."`
	Floor    time.Duration `default:"5s" help:"How long pgbench runs, before and after each run."`
	Open     time.Duration `default:"1m" help:"How long an open loop lasts."`
	Past     int           `default:"10000000" help:"Past payments in the tables of ten-million."`
}

// bench is one run of the table.
type bench struct {
	benchCommand
	m       *machine
	figures []figure
}

// scenario is a part of the table.
type scenario struct {
	name    string
	measure func(*bench) error
}

var scenarios = []scenario{
	{"flow-one-process", (*bench).flowOneProcess},
	{"limits", (*bench).limits},
	{"settle-rpc", (*bench).settleRPC},
	{"ledger-batch", (*bench).ledgerBatch},
	{"exchange", (*bench).exchange},
	{"hot-receiver", func(b *bench) error { return b.hot("hot-receiver", toOne) }},
	{"hot-sender", func(b *bench) error { return b.hot("hot-sender", fromOne) }},
	{"ten-million", (*bench).tenMillion},
	{"lone", (*bench).lone},
	{"open-loop-one-process", (*bench).openOneProcess},
	{"latency-one-process", (*bench).latencyOneProcess},
	{"flow-processes", (*bench).flowProcesses},
	{"limits-processes", (*bench).limitsOfProcesses},
	{"open-loop-processes", (*bench).openProcesses},
	{"latency-processes", (*bench).latencyProcesses},
	{"start", (*bench).start},
	{"image", (*bench).image},
	{"cold", (*bench).cold},
}

func (c benchCommand) Run(ctx context.Context) error {
	m, err := newMachine(ctx)
	if err != nil {
		return err
	}
	defer m.close()
	b := &bench{benchCommand: c, m: m}
	var all []part
	for _, s := range scenarios {
		all = append(all, part{s.name, func() error {
			fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format(time.TimeOnly), s.name)
			return errors.Join(m.rest(), s.measure(b))
		}})
	}
	if err := measure(all, c.Only); err != nil {
		return err
	}
	printFigures(b.figures)
	return write("bench.json", b.figures)
}

func (b *bench) report(g goal, samples []sample) {
	f := g.figure(samples)
	b.figures = append(b.figures, f)
	fmt.Fprintf(os.Stderr, "  %s: %g %s, floor %g: %g (%g to %g)\n", f.Name, f.Value, f.Unit, f.Floor, f.Ratio, f.Low, f.High)
}

const pgbenchFloor = "pgbench's transfers, 32 clients"

// beside measures pgbench's floor before and after each run, and compares the run with the mean of
// the two.
func (b *bench) beside(g goal, run func() (float64, error)) error {
	before, err := b.m.floor(b.Floor)
	if err != nil {
		return err
	}
	g.unit, g.floor = "payments/s", pgbenchFloor
	var samples []sample
	for range b.Runs {
		value, err := run()
		if err != nil {
			return err
		}
		after, err := b.m.floor(b.Floor)
		if err != nil {
			return err
		}
		samples = append(samples, sample{value, (before + after) / 2})
		before = after
	}
	b.report(g, samples)
	return nil
}

// warmed returns a system with open connections, prepared statements and a heap of its usual size.
func warmed(s *system, err error) (*system, error) {
	if err != nil {
		return nil, err
	}
	if _, err := s.load(spec{4000, 64}); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (b *bench) flow(g goal, s *system) error {
	return b.beside(g, func() (float64, error) {
		done, err := s.load(spec{b.Payments, 64})
		return done.perSecond, err
	})
}

func (b *bench) flowOneProcess() error {
	return b.withOneProcess("flow-one-process", func(s *system) error { return b.flow(goal{name: "flow-one-process", ratio: 0.75}, s) })
}

func (b *bench) flowProcesses() error {
	return b.withProcesses("flow-processes", func(s *separate) error { return b.flow(goal{name: "flow-processes", ratio: 0.25}, s.system) })
}

func (b *bench) settleRPC() error {
	return b.withOneProcess("settle-rpc", func(s *system) error {
		return b.beside(goal{name: "settle-rpc", ratio: 2}, func() (float64, error) { return s.settle(b.Payments) })
	})
}

// withOneProcess measures a warmed system, and stops it.
func (b *bench) withOneProcess(scenario string, measure func(*system) error) error {
	s, err := warmed(b.m.oneProcess(scenario))
	if err != nil {
		return err
	}
	return errors.Join(measure(s), s.stop())
}

// fewPartitions are those of each topic, unless a measurement is about more.
const fewPartitions = 2

// withProcesses does the same with one process for each function.
func (b *bench) withProcesses(scenario string, measure func(*separate) error) error {
	s, err := b.m.separate(scenario, fewPartitions)
	if err != nil {
		return err
	}
	// Kafka has to compile its code first: a broker that has just been started spends as much time on
	// that as on its work.
	_, err = s.load(spec{b.Payments, 64})
	if err == nil {
		err = measure(s)
	}
	return errors.Join(err, s.stop())
}

const accounts = 10_000

// pastImages is the number of payments after which nearly every page of the full key index has
// changed since the last checkpoint. The first change of a page writes the whole page to the WAL,
// and a checkpoint comes every quarter of an hour.
const pastImages = 250_000

// fullLedger returns a warmed ledger with past payments; n = 0 means none.
func (b *bench) fullLedger(name string, past int) (*testLedger, error) {
	l, err := b.m.ledger(name, accounts)
	if err != nil {
		return nil, err
	}
	warm := b.Payments
	if past > 0 {
		warm = pastImages
		err = l.pastPayments(past)
	}
	if err == nil {
		_, err = l.pay(warm, evenly, rupiah)
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (b *bench) ledgerBatch() error {
	l, err := b.fullLedger("ledger-batch", 0)
	if err != nil {
		return err
	}
	err = b.beside(goal{name: "ledger-batch", ratio: 3}, func() (float64, error) { return l.pay(3*b.Payments, evenly, rupiah) })
	return errors.Join(err, l.m.sum(l.database), l.close())
}

// exchange compares payments that exchange with payments in rupiah.
func (b *bench) exchange() error {
	l, err := b.fullLedger("exchange", 0)
	if err != nil {
		return err
	}
	if err := l.openExchange(); err != nil {
		return errors.Join(err, l.close())
	}
	if _, err := l.pay(b.Payments, evenly, exchanged); err != nil {
		return errors.Join(err, l.close())
	}
	return b.compare(goal{"exchange", "payments/s", "the same in rupiah", 0.7, false}, l,
		func() (float64, error) { return l.pay(3*b.Payments, evenly, exchanged) })
}

func (b *bench) hot(name string, choose way) error {
	l, err := b.fullLedger(name, 0)
	if err != nil {
		return err
	}
	return b.compare(goal{name, "payments/s", "the same, evenly", 0.8, false}, l,
		func() (float64, error) { return l.pay(3*b.Payments, choose, rupiah) })
}

// compare compares payments of another kind with payments in rupiah between all accounts, on the same
// ledger. It closes the ledger.
func (b *bench) compare(g goal, l *testLedger, other func() (float64, error)) error {
	var samples []sample
	for range b.Runs {
		s, err := inTurn(other, func() (float64, error) { return l.pay(3*b.Payments, evenly, rupiah) })
		if err != nil {
			return errors.Join(err, l.close())
		}
		samples = append(samples, s)
	}
	b.report(g, samples)
	return errors.Join(l.m.sum(l.database), l.close())
}

func (b *bench) tenMillion() error {
	empty, err := b.fullLedger("empty", 0)
	if err != nil {
		return err
	}
	full, err := b.fullLedger("ten-million", b.Past)
	if err != nil {
		return errors.Join(err, empty.close())
	}
	var samples []sample
	for range b.Runs {
		var s sample
		s, err = inTurn(
			func() (float64, error) { return full.pay(3*b.Payments, evenly, rupiah) },
			func() (float64, error) { return empty.pay(3*b.Payments, evenly, rupiah) })
		if err != nil {
			break
		}
		samples = append(samples, s)
	}
	if err == nil {
		b.report(goal{"ten-million", "payments/s", "the same on empty tables", 0.9, false}, samples)
		err = errors.Join(b.m.sum(full.database), b.m.sum(empty.database))
	}
	return errors.Join(err, full.close(), empty.close())
}

// inTurn runs the baseline before and after the measurement.
func inTurn(value, floor func() (float64, error)) (sample, error) {
	before, err := floor()
	if err != nil {
		return sample{}, err
	}
	got, err := value()
	if err != nil {
		return sample{}, err
	}
	after, err := floor()
	return sample{got, (before + after) / 2}, err
}

func (b *bench) lone() error {
	return b.withOneProcess("lone", func(s *system) error {
		var samples []sample
		for range b.Runs {
			one, err := inTurn(
				func() (float64, error) { done, err := s.load(spec{1000, 1}); return done.p50, err },
				func() (float64, error) {
					h, err := b.m.loneTransfers(1000)
					if err != nil {
						return 0, err
					}
					return millis(h, 50), nil
				})
			if err != nil {
				return err
			}
			samples = append(samples, one)
		}
		b.report(goal{"lone", "ms p50", "pgbench's transfer, 1 client, p50", 4, true}, samples)
		return nil
	})
}

// start measures the slowest function's start, and the largest idle function's memory.
func (b *bench) start() error {
	s, err := b.m.separate("start", fewPartitions)
	if err != nil {
		return err
	}
	defer s.stop()
	bare := filepath.Join(b.m.dir, "bare")
	build := exec.CommandContext(b.m.ctx, "go", "build", "-o", bare, "./tests/load/bare")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as for bin/pgw
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the bare program: %w: %s", err, out)
	}
	var starts, residents []sample
	for range b.Runs {
		least, err := startBare(b.m.ctx, bare)
		if err != nil {
			return err
		}
		var slowest time.Duration
		for _, name := range processes.Functions {
			if err := s.Stop(name); err != nil {
				return err
			}
			took, err := s.Start(b.m.ctx, name)
			if err != nil {
				return err
			}
			slowest = max(slowest, took)
		}
		starts = append(starts, sample{inMillis(slowest), inMillis(least)})
		time.Sleep(2 * time.Second)
		var largest int64
		for _, name := range processes.Functions {
			bytes, err := s.Resident(name)
			if err != nil {
				return err
			}
			largest = max(largest, bytes)
		}
		residents = append(residents, sample{float64(largest) / (1 << 20), 30})
	}
	b.report(goal{"start", "ms, the slowest", "a bare net/http program's start to ready", 3, true}, starts)
	b.report(goal{"resident", "MiB, the largest", "the limit, 30 MiB", 1, true}, residents)
	return nil
}

func inMillis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func startBare(ctx context.Context, path string) (time.Duration, error) {
	port, err := processes.FreePort()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(os.Environ(), "PORT="+strconv.Itoa(port))
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	for time.Since(begun) < patient {
		if resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", port)); err == nil {
			resp.Body.Close()
			return time.Since(begun), nil
		}
		time.Sleep(time.Millisecond)
	}
	return 0, errors.New("the bare program is not ready")
}

// staticBase is the compressed size in MiB of a minimal static base image: certificates, a passwd
// file, time zones.
const staticBase = 0.8

// image measures the program as a layer of an image: static, stripped as ko does, and compressed.
func (b *bench) image() error {
	path := filepath.Join(b.m.dir, "pgw")
	build := exec.CommandContext(b.m.ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./functions/pgw")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w: %s", err, out)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var size counter
	w := gzip.NewWriter(&size)
	if _, err := io.Copy(w, f); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	b.report(goal{"image", "MiB", "the limit, 25 MiB", 1, true}, []sample{{float64(size)/(1<<20) + staticBase, 25}})
	return nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// cold measures the first request with worker, payments and db at zero. The first connection to
// each of them starts it. The floor is twice the slowest start plus a single payment.
func (b *bench) cold() error {
	s, err := b.m.separate("cold", fewPartitions)
	if err != nil {
		return err
	}
	defer s.stop()
	payers, err := load.Payers()
	if err != nil {
		return err
	}
	var serial int
	pay := func() (time.Duration, error) {
		serial++
		body := fmt.Appendf(nil, `{"sender_id":%q,"receiver_id":%q,"currency":"USD","amount":1,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"cold-%d"}`,
			payers[0], payers[1], serial)
		begun := time.Now()
		answer := load.Post(b.m.ctx, http.DefaultClient, "http://"+s.Addr("gateway"), body)
		if answer.HTTP != http.StatusOK || !strings.HasPrefix(string(answer.Status), "SUCCESS") {
			return 0, fmt.Errorf("the payment was answered %d %s %s", answer.HTTP, answer.Status, answer.Reason)
		}
		return time.Since(begun), nil
	}
	atZero := []string{"worker", "payments", "db"}
	var samples []sample
	for range b.Runs {
		var lone []float64
		for range 20 {
			took, err := pay()
			if err != nil {
				return err
			}
			lone = append(lone, inMillis(took))
		}
		one, asleep, err := b.firstPayment(s, atZero, pay, median(lone))
		for _, z := range asleep {
			defer z.Close() // the other functions reach the three through them until the run ends
		}
		if err != nil {
			return err
		}
		samples = append(samples, one)
	}
	b.report(goal{"cold", "ms", "2 × the slowest start + a lone payment", 1, true}, samples)
	return b.m.sum(s.Database)
}

// sourceAtRest is longer than the first fetches of a source that has just been started. It fetches
// some of its partitions, waits a quarter of a second for them, and only then fetches all. A
// KafkaSource does not start together with the functions.
const sourceAtRest = time.Second

func (b *bench) firstPayment(s *separate, atZero []string, pay func() (time.Duration, error), lone float64) (_ sample, asleep []*processes.Sleeper, err error) {
	others := []string{"gateway", processes.StandIn, "wallet", "risk", "fx"}
	for _, name := range append(slices.Clone(others), atZero...) {
		if err := s.Stop(name); err != nil {
			return sample{}, asleep, err
		}
	}
	for _, name := range atZero {
		z, err := s.Sleep(b.m.ctx, name)
		if err != nil {
			return sample{}, asleep, err
		}
		asleep = append(asleep, z)
	}
	slices.Reverse(others)
	for _, name := range others { // they find the sleepers in their configuration
		if _, err := s.Start(b.m.ctx, name); err != nil {
			return sample{}, asleep, err
		}
	}
	time.Sleep(sourceAtRest)
	took, err := pay()
	if err != nil {
		return sample{}, asleep, err
	}
	var slowest time.Duration
	for i, z := range asleep {
		_, ready, start := z.Awake()
		if ready.IsZero() {
			return sample{}, asleep, fmt.Errorf("%s was not woken", atZero[i])
		}
		slowest = max(slowest, start)
	}
	return sample{inMillis(took), 2*inMillis(slowest) + lone}, asleep, nil
}
