package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pgw/functions/pgw/reconcile"
	"pgw/functions/pgw/table"
	"pgw/shared/function"
	"pgw/shared/payment"
	"pgw/shared/trace"
)

// reconcileCommand checks the books. Its exit code is 0 if they agree, 1 if they do not, and 2 if
// the check could not be completed.
type reconcileCommand struct {
	operatorFlags
	Since timeOrAge     `help:"Compare only payments accepted since this time (RFC 3339) or this long ago (such as 24h) with events. The whole ledger is added up in any case."`
	Grace time.Duration `default:"${grace}" help:"Younger payments are added up but not compared, because their events may still be under way."`
	Every time.Duration `help:"Repeat the check at this interval, print each report, and serve /metrics on HOST and PORT like a function; by default on this machine only."`
	dataFlags

	Direct     bool   `help:"Callers pay over gRPC. Such payments have no event and no attempt id. Without this flag, a committed payment without either is a breach."`
	Checkpoint string `help:"Store in this file up to where everything agrees, and compare only what is newer in the next run. A run that finds breaches stores nothing, so the next run compares the same again."`
}

// Help implements kong.HelpProvider.
func (reconcileCommand) Help() string {
	return `The last line is the verdict. /status and the page keep it. A verdict that the books differ stays there until a reconciliation ` +
		`that compares at least as much finds that they agree: one without --since and --checkpoint always does, one from the same checkpoint ` +
		`does, and one whose --since is later does not.`
}

func (c reconcileCommand) Validate() error {
	if c.Grace < 0 || c.Every < 0 || (c.Every > 0 && c.Every < time.Second) {
		return errors.New("--grace must not be negative, --every at least 1s")
	}
	return nil
}

// memoryLimit is the memory at which Go frees what is not used any more, in bytes. What is in use stays
// below it, whatever the size of the ledger: see reconcile/README.md.
const memoryLimit = 192 << 20

// errBreach is exit code 1.
var errBreach = errors.New("the books do not agree")

// unknown is exit code 2.
type unknown struct{ error }

func (unknown) ExitCode() int   { return 2 }
func (u unknown) Unwrap() error { return u.error }

func (c reconcileCommand) Run(ctx context.Context) error {
	system, at, err := c.config()
	var database string
	if err == nil {
		database, err = system.Database.ledger()
	}
	if err != nil {
		return unknown{err}
	}
	cfg := reconcile.Config{
		Database: database, Kafka: system.Kafka, Keys: &system.Keys, AllowUnsigned: system.AllowUnsigned,
		Since: c.Since.Time, Grace: c.Grace, Direct: c.Direct, Checkpoint: c.Checkpoint,
	}
	// The records of a large ledger pass through quickly. With this limit they are collected in time.
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	tell := func(ctx context.Context, r reconcile.Report, failed error, now time.Time) error {
		return recordVerdict(ctx, at, system.RPC, reconcile.Conclude(r, failed, now))
	}
	if c.Every > 0 {
		return c.watch(ctx, cfg, tell)
	}
	report, err := reconcile.Run(ctx, cfg)
	if stopped(ctx, err) {
		return interruptedReconcile(err)
	}
	if err := tell(ctx, report, err, time.Now()); err != nil {
		fmt.Fprintln(os.Stderr, "pgw: "+notTold+":", err)
	}
	if err := c.printReport(report, err, time.Now()); err != nil {
		return unknown{err}
	}
	switch {
	case err != nil:
		return unknown{err}
	case !report.Clean():
		return errBreach
	}
	return nil
}

func interruptedReconcile(err error) error {
	var during *reconcile.InterruptedError
	if errors.As(err, &during) {
		return interrupted{"while " + during.While + "; nothing is known about the books"}
	}
	return interrupted{"before the first check; nothing is known about the books"}
}

// printReport prints a report, or why there is none. Its last line is the verdict.
func (c reconcileCommand) printReport(r reconcile.Report, failed error, now time.Time) error {
	conclusion := reconcile.Conclude(r, failed, now)
	data := struct {
		Verdict reconcile.Conclusion `json:"verdict"`
		*reconcile.Report
	}{Verdict: conclusion}
	if failed == nil {
		data.Report = &r
	}
	return c.print(data, func(to io.Writer) error {
		if failed == nil {
			if err := writeReport(to, r); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintln(to, conclusion.Text)
		return err
	})
}

func writeReport(to io.Writer, r reconcile.Report) error {
	fmt.Fprintf(to, "%s: %d accounts, balances %d + holds %d, funded %d IDR; %d pending, %d too young to compare\n",
		r.At.Format(time.RFC3339), r.Accounts, r.Balances, r.Holds, r.Funded, r.Pending, r.TooYoung)
	fmt.Fprintf(to, "without an event: payments over gRPC %d, balances that an operator has set %d; events that are not pgw's: %d\n",
		r.Direct, r.Seeded, r.Foreign)
	if r.Resumed {
		fmt.Fprintf(to, "compared with events since %s, where the last run ended\n", r.Since.Format(time.RFC3339))
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "check\texamined\tbreaches\t")
	for _, c := range r.Checks {
		fmt.Fprintf(w, "%s\t%d\t%d\t\n", c.Check, c.Examined, c.Breaches)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, b := range r.Breaches {
		what := "payment " + b.Payment
		if b.Account != "" {
			what = "account " + b.Account
		} else if b.Payment == "" {
			what = "the ledger"
		}
		fmt.Fprintf(to, "%s: %s %s\n", b.Check, what, b.Problem)
	}
	return nil
}

// watch reconciles until ctx ends.
func (c reconcileCommand) watch(ctx context.Context, cfg reconcile.Config, tell teller) error {
	age := time.Duration(0)
	if !c.Since.IsZero() {
		age = time.Since(c.Since.Time)
	}
	// It is an operator's command: others reach its port only if HOST says so.
	if _, set := os.LookupEnv("HOST"); !set {
		os.Setenv("HOST", "127.0.0.1")
	}
	watcher := function.Function{Name: "reconcile"}
	return table.Functions.Run(ctx, function.Describe(watcher, func(_ struct{}, on function.Dependencies) (*function.Service, error) {
		w := newWatch(on.Registry)
		untold := trace.NewOutage(on.Log, on.Now, notTold)
		return &function.Service{Background: func(ctx context.Context) error {
			for {
				if age > 0 {
					cfg.Since = on.Now().Add(-age)
				}
				report, err := w.once(ctx, cfg, on.Log)
				if ctx.Err() != nil {
					return nil
				}
				untold.Note(ctx, tell(ctx, report, err, on.Now()))
				if err := c.printReport(report, err, on.Now()); err != nil {
					return err
				}
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(c.Every):
				}
			}
		}}, nil
	}))
}

// watch has the metrics of the reconciliations.
type watch struct {
	breaches *prometheus.GaugeVec
	runs     *prometheus.CounterVec
	at       prometheus.Gauge
	took     prometheus.Gauge

	accounts, pending, balances, holds, funded prometheus.Gauge
}

func newWatch(r prometheus.Registerer) *watch {
	auto := promauto.With(r)
	gauge := func(name, help string) prometheus.Gauge {
		return auto.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	w := &watch{
		breaches: auto.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pgw_reconcile_breaches", Help: "Violations of the checks at the last reconciliation.",
		}, []string{"check"}),
		runs: function.NewCounters(r, "pgw_reconcile_runs_total", "Reconciliations by result: clean, breach, or unknown.",
			"result", "clean", "breach", "unknown"),
		at:       gauge("pgw_reconcile_last_told_timestamp_seconds", "When a reconciliation was last completed."),
		took:     gauge("pgw_reconcile_last_duration_seconds", "How long the last reconciliation took."),
		accounts: gauge("pgw_reconcile_accounts", "Accounts at the last reconciliation."),
		pending:  gauge("pgw_reconcile_pending", "Reservations that held money at the last reconciliation."),
		balances: gauge("pgw_reconcile_balances_idr", "Sum of all balances at the last reconciliation."),
		holds:    gauge("pgw_reconcile_holds_idr", "Sum of all holds at the last reconciliation."),
		funded:   gauge("pgw_reconcile_funded_idr", "Sum of all funding at the last reconciliation. If balances + holds differ from it, money was lost or created."),
	}
	for _, check := range reconcile.Checks {
		w.breaches.WithLabelValues(string(check))
	}
	return w
}

// once reconciles and sets the metrics.
func (w *watch) once(ctx context.Context, cfg reconcile.Config, log *slog.Logger) (reconcile.Report, error) {
	begun := time.Now()
	report, err := reconcile.Run(ctx, cfg)
	if ctx.Err() != nil {
		return report, ctx.Err()
	}
	w.took.Set(time.Since(begun).Seconds())
	if err != nil {
		w.runs.WithLabelValues("unknown").Inc()
		log.Error("the reconciliation could not be completed", "error", err)
		return report, err
	}
	w.at.SetToCurrentTime()
	w.accounts.Set(float64(report.Accounts))
	w.pending.Set(float64(report.Pending))
	w.balances.Set(float64(report.Balances))
	w.holds.Set(float64(report.Holds))
	w.funded.Set(float64(report.Funded))
	for _, c := range report.Checks {
		w.breaches.WithLabelValues(string(c.Check)).Set(float64(c.Breaches))
	}
	if report.Clean() {
		w.runs.WithLabelValues("clean").Inc()
		return report, nil
	}
	w.runs.WithLabelValues("breach").Inc()
	for _, b := range report.Breaches[:min(len(report.Breaches), 20)] {
		log.Error("the books do not agree", "check", b.Check, "idempotency_key", b.Payment, "account", payment.Masked(b.Account), "problem", b.Problem)
	}
	return report, nil
}
