package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"

	"pgw/shared/kafka"
	"pgw/shared/rpc"
	"pgw/tests/processes"
)

// growCommand measures the cost of more connections, accounts, past payments and replicas, and of a
// replacement.
type growCommand struct {
	Only     []string      `help:"These of connections, accounts, past, replicas, flows, replaced; all when not given."`
	Runs     int           `default:"3" help:"Runs of each; medians are reported."`
	Payments int           `default:"20000" help:"In one run of the flow; ledger scenarios make three times as many."`
	Most     int           `default:"10000000" help:"Accounts, and past payments, at the most."`
	Replicas int           `default:"4" help:"Processes of db at the most."`
	Replace  time.Duration `default:"1m" help:"How long payments are made while replicas are replaced."`
}

// step is one line of grow.json.
type step struct {
	Of        string  `json:"of"`
	N         int     `json:"n"`
	PerSecond float64 `json:"payments_per_second"`
	P50       float64 `json:"p50_ms,omitempty"`
	P99       float64 `json:"p99_ms,omitempty"`
	Longest   float64 `json:"longest_ms,omitempty"`
	Late      int     `json:"late"`   // payments whose answer took longer than 5 s
	Failed    int     `json:"failed"` // payments without an outcome
}

func (c growCommand) Run(ctx context.Context) error {
	m, err := newMachine(ctx)
	if err != nil {
		return err
	}
	defer m.close()
	g := &growth{growCommand: c, m: m}
	if err := measure([]part{
		{"connections", g.connections}, {"accounts", g.accounts}, {"past", g.past}, {"replicas", g.replicas}, {"flows", g.flows}, {"replaced", g.replaced},
	}, c.Only); err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, s := range g.steps {
		fmt.Fprintf(w, "%s\t%d\t%.0f/s\t", s.Of, s.N, s.PerSecond)
		if s.P99 > 0 {
			fmt.Fprintf(w, "%.1f ms p50\t%.1f ms p99\t", s.P50, s.P99)
		}
		if s.Longest > 0 {
			fmt.Fprintf(w, "%.1f ms at most\t%d late\t%d failed\t", s.Longest, s.Late, s.Failed)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	return write("grow.json", g.steps)
}

type growth struct {
	growCommand
	m     *machine
	steps []step
}

// several adds the medians of several runs.
func (g *growth) several(of string, n int, run func() (loaded, error)) error {
	var rates, p50s, p99s []float64
	for range g.Runs {
		done, err := run()
		if err != nil {
			return fmt.Errorf("%s %d: %w", of, n, err)
		}
		rates, p50s, p99s = append(rates, done.perSecond), append(p50s, done.p50), append(p99s, done.p99)
	}
	g.steps = append(g.steps, step{Of: of, N: n, PerSecond: round(median(rates)), P50: round(median(p50s)), P99: round(median(p99s))})
	fmt.Fprintln(os.Stderr, of, n, g.steps[len(g.steps)-1].PerSecond)
	return nil
}

func (g *growth) connections() error {
	s, err := warmed(g.m.oneProcess("connections"))
	if err != nil {
		return err
	}
	for _, n := range []int{1, 8, 64, 512} {
		payments := min(g.Payments, 2000*n)
		if err := g.several("connections, whole flow in one process", n, func() (loaded, error) { return s.load(spec{payments, n}) }); err != nil {
			return errors.Join(err, s.stop())
		}
	}
	return s.stop()
}

func (g *growth) ledger(of string, n, accounts, past int) error {
	if err := g.m.rest(); err != nil {
		return err
	}
	l, err := g.m.ledger("grow", accounts)
	if err != nil {
		return err
	}
	if past > 0 {
		err = l.pastPayments(past)
	}
	if err == nil {
		_, err = l.pay(g.Payments, evenly, rupiah)
	}
	if err == nil {
		err = g.several(of, n, func() (loaded, error) {
			perSecond, err := l.pay(3*g.Payments, evenly, rupiah)
			return loaded{perSecond: perSecond}, err
		})
	}
	if err == nil {
		err = g.m.sum(l.database)
	}
	return errors.Join(err, l.close())
}

func (g *growth) accounts() error {
	for n := 10_000; n <= g.Most; n *= 10 {
		if err := g.ledger("accounts, reserve and commit in db", n, n, 0); err != nil {
			return err
		}
	}
	return nil
}

func (g *growth) past() error {
	for _, n := range []int{0, g.Most / 100, g.Most / 10, g.Most} {
		if err := g.ledger("past payments, reserve and commit in db", n, accounts, n); err != nil {
			return err
		}
	}
	return nil
}

// replicas measures several processes of db on one Postgres, called in turn over gRPC.
func (g *growth) replicas() error {
	for n := 1; n <= g.Replicas; n *= 2 {
		if err := g.replicated(n); err != nil {
			return err
		}
	}
	return nil
}

func (g *growth) replicated(n int) (err error) {
	if err := g.m.rest(); err != nil {
		return err
	}
	l, err := g.m.ledger("replicas", accounts)
	if err != nil {
		return err
	}
	if err := l.close(); err != nil { // only its database is needed
		return err
	}
	l.conns = nil
	for range n {
		procs, err := processes.New(processes.Config{
			Binary: filepath.Join(".", binary), Database: l.database, Kafka: kafka.Config{Brokers: []string{"127.0.0.1:1"}}, EventKeys: eventKeys, Log: os.Stderr,
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, procs.StopAll()) }()
		if _, err := procs.Start(g.m.ctx, "db"); err != nil {
			return err
		}
		conn, err := rpc.Dial(procs.Addr("db"))
		if err != nil {
			return err
		}
		defer conn.Close()
		l.conns = append(l.conns, grpc.ClientConnInterface(conn))
	}
	if _, err := l.pay(g.Payments, evenly, rupiah); err != nil {
		return err
	}
	err = g.several("replicas of db over gRPC, one Postgres", n, func() (loaded, error) {
		perSecond, err := l.pay(g.Payments, evenly, rupiah)
		return loaded{perSecond: perSecond}, err
	})
	return errors.Join(err, g.m.sum(l.database))
}
