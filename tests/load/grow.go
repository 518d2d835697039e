package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"

	"pgw/shared/kafka"
	"pgw/shared/rpc"
	"pgw/tests/processes"
)

// growCommand measures the cost of more connections, accounts, past payments, entries, webhooks and
// replicas, and of a replacement.
type growCommand struct {
	Only     []string      `help:"These of connections, accounts, past, statements, webhooks, replicas, flows, replaced; all when not given."`
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
		{"connections", g.connections}, {"accounts", g.accounts}, {"past", g.past}, {"statements", g.statements},
		{"webhooks", g.webhooks}, {"replicas", g.replicas}, {"flows", g.flows}, {"replaced", g.replaced},
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

// statements measures pages of 100 entries of an account that has many: the first page, the page
// that begins in the middle of the account's entries, and the first page of the last minute.
func (g *growth) statements() error {
	for n := g.Most / 100; n <= g.Most; n *= 10 {
		if err := g.statementsOf(n); err != nil {
			return err
		}
	}
	return nil
}

func (g *growth) statementsOf(entries int) (err error) {
	if err := g.m.rest(); err != nil {
		return err
	}
	l, err := g.m.ledger("statements", 2) // each payment is an entry of both
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if err := l.pastPayments(entries); err != nil {
		return err
	}
	first, newest := pastTime(0), pastTime(entries-1)
	for _, page := range []struct {
		name string
		from time.Time
	}{{"first", time.Time{}}, {"middle", first.Add(newest.Sub(first) / 2)}, {"last minute's", newest.Add(-time.Minute)}} {
		err := g.several("entries of an account, its "+page.name+" page", entries, func() (loaded, error) { return l.statements(20, page.from) })
		if err != nil {
			return err
		}
	}
	return g.m.sum(l.database)
}

// webhooks measures the flow while endpoints are told of every payment. Their receiver belongs to
// the load generator, and answers at once.
func (g *growth) webhooks() error {
	for _, n := range []int{0, 1, 4} {
		if err := g.told(n); err != nil {
			return err
		}
	}
	return nil
}

func (g *growth) told(n int) (err error) {
	s, err := warmed(g.m.oneProcess("webhooks"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	var told atomic.Int64
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	receiver := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			told.Add(1)
		}
		w.WriteHeader(http.StatusNoContent)
	})}
	go receiver.Serve(listener)
	defer receiver.Close()
	for range n {
		if err := s.addWebhook("http://" + listener.Addr().String()); err != nil {
			return err
		}
	}
	if err := g.several("webhooks of every payment, whole flow in one process", n, func() (loaded, error) { return s.load(spec{g.Payments, 64}) }); err != nil {
		return err
	}
	for deadline := time.Now().Add(patient); told.Load() < int64(n*g.Runs*g.Payments); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%d webhooks: the receiver was told %d times, of %d payments", n, told.Load(), g.Runs*g.Payments)
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
