package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pgw/functions/pgw/reconcile"
	"pgw/shared/payment"
	"pgw/tests/history"
	"pgw/tests/processes"
)

// report is the result of a run.
type report struct {
	Seed     uint64        `json:"seed"`
	Duration time.Duration `json:"duration_ns"`
	Schedule []fault       `json:"schedule"`

	Faults   map[string]int      `json:"faults"`   // by kind
	Targets  map[string]int      `json:"targets"`  // by the process that they hit
	Restarts map[string]int      `json:"restarts"` // processes that ended and were started again
	Recovery map[string]recovery `json:"recovery"` // by kind: time until the next payment was sent and answered SUCCESS

	Payments int            `json:"payments"`
	Requests int            `json:"requests"` // including repeated requests
	Answers  map[string]int `json:"answers"`  // by outcome
	Ledger   map[string]int `json:"ledger"`   // payments by their end; never_arrived: the ledger has none

	HealedIn   time.Duration    `json:"healed_in_ns"` // time until a payment succeeded, after everything was healed
	SettledIn  time.Duration    `json:"settled_in_ns"`
	Reconciled reconcile.Report `json:"reconciled"`
	Problems   []string         `json:"problems"` // empty: nothing was lost, and nothing happened twice
	Skipped    []string         `json:"skipped,omitempty"`
}

type recovery struct {
	Faults int           `json:"faults"`
	Median time.Duration `json:"median_ns"`
	Max    time.Duration `json:"max_ns"`
}

// judge waits for one deadline and one sweep, and then compares all answers with the ledger.
func (w *world) judge(ctx context.Context, o options, faults []fault, c *clients, healed time.Time, again time.Duration) error {
	r := report{
		Seed: o.Seed, Duration: o.Duration, Schedule: faults, Faults: map[string]int{}, Targets: map[string]int{}, Restarts: w.restarts,
		Recovery: map[string]recovery{}, Payments: c.payments, Requests: len(c.calls), Answers: map[string]int{}, Ledger: map[string]int{}, HealedIn: again,
	}
	if w.server.disk == "" {
		r.Skipped = append(r.Skipped, "full disk: no disk may be mounted here")
	}
	took := map[string][]time.Duration{}
	for _, f := range faults {
		r.Faults[f.Kind]++
		r.Targets[f.Target]++
		if d, ok := c.after(f.healed); ok {
			took[f.Kind] = append(took[f.Kind], d)
		}
	}
	for kind, all := range took {
		slices.Sort(all)
		r.Recovery[kind] = recovery{len(all), all[len(all)/2], all[len(all)-1]}
	}
	for _, a := range c.calls {
		r.Answers[strings.TrimSpace(fmt.Sprintf("%s %s", a.Answer.Status, a.Answer.Reason))]++
	}

	fmt.Printf("payments succeed again after %.1f s; waiting for one deadline and one sweep\n", again.Seconds())
	sleep(ctx, time.Until(healed.Add(payment.DecideWithin)))
	conn, err := pgx.Connect(ctx, w.server.direct())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	bounded, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := eventually(bounded, func() error { return w.settled(bounded, conn) }); err != nil {
		r.Problems = append(r.Problems, "not settled: "+err.Error())
	}
	r.SettledIn = time.Since(healed)

	if err := w.holdAgainstLedger(ctx, conn, c, &r); err != nil {
		return err
	}
	r.Reconciled, err = reconcile.Run(ctx, reconcile.Config{Database: w.server.direct(), Kafka: w.kafka, Keys: &w.keys})
	if err != nil {
		return err
	}
	for _, b := range r.Reconciled.Breaches {
		r.Problems = append(r.Problems, fmt.Sprintf("reconcile: %s: %s%s %s", b.Check, b.Payment, b.Account, b.Problem))
	}
	return r.tell(o)
}

// settled checks that no payment is PENDING, that the result of every swept payment is published,
// and that every published event has been delivered.
func (w *world) settled(ctx context.Context, conn *pgx.Conn) error {
	var pending, untold int
	err := conn.QueryRow(ctx, `SELECT count(*) FILTER (WHERE status = 'PENDING'), count(*) FILTER (WHERE untold) FROM reservations`).Scan(&pending, &untold)
	if err != nil {
		return err
	}
	if pending+untold > 0 {
		return fmt.Errorf("%d reservations are PENDING, %d results of a sweep are not published", pending, untold)
	}
	return processes.Delivered(w.kafka, "")
}

func (w *world) holdAgainstLedger(ctx context.Context, conn *pgx.Conn, c *clients, r *report) error {
	at := time.Since(c.begun)
	kept, err := history.ReadPayments(ctx, conn, keyPrefix)
	if err != nil {
		return err
	}
	for _, wrong := range history.Check(history.History{Calls: c.calls, Ledger: history.Ledger{At: at, Payments: kept}}) {
		r.Problems = append(r.Problems, wrong.String())
	}
	decided := map[string]bool{}
	for _, a := range c.calls {
		decided[a.Key] = decided[a.Key] || !a.Answer.Undecided()
	}
	// Clients that got no outcome can ask for it now, and it is final.
	asked := 0
	for key, answered := range decided {
		end := ""
		if state, known := kept[key]; known {
			end = strings.TrimSpace(fmt.Sprintf("%s %s", state.Status, state.Reason))
			r.Ledger[end]++
		} else {
			r.Ledger["never arrived"]++
		}
		if answered || asked >= 500 {
			continue
		}
		asked++
		if problem := askState(ctx, w.sys, key, end); problem != "" {
			r.Problems = append(r.Problems, problem)
		}
	}
	return nil
}

// askState asks the front door what became of a payment.
func askState(ctx context.Context, sys *processes.System, key, end string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+sys.Front("gateway")+"/api/payments/"+key, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "GET of " + key + ": " + err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var state struct{ State, Reason string }
	if end == "" {
		if resp.StatusCode != http.StatusNotFound {
			return fmt.Sprintf("GET of %s, which the ledger does not know: %s %s", key, resp.Status, text)
		}
		return ""
	}
	if json.Unmarshal(text, &state) != nil || state.State+" "+state.Reason != end {
		return fmt.Sprintf("GET of %s, which is %s: %s %s", key, end, resp.Status, text)
	}
	return ""
}

// tell prints the report and writes it down.
func (r report) tell(o options) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(o.Out, "chaos.json")
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return err
	}
	counts := func(title string, of map[string]int) {
		fmt.Println(title)
		for _, name := range slices.Sorted(maps.Keys(of)) {
			fmt.Printf("  %8d %s\n", of[name], name)
		}
	}
	counts(fmt.Sprintf("\n%d faults:", len(r.Schedule)), r.Faults)
	counts("processes started again:", r.Restarts)
	fmt.Println("until the next payment succeeded, median and longest:")
	for _, kind := range slices.Sorted(maps.Keys(r.Recovery)) {
		fmt.Printf("  %6.1f s %6.1f s %s\n", r.Recovery[kind].Median.Seconds(), r.Recovery[kind].Max.Seconds(), kind)
	}
	counts(fmt.Sprintf("%d payments, requested %d times; clients got:", r.Payments, r.Requests), r.Answers)
	counts("the payments ended:", r.Ledger)
	fmt.Printf("healed in %.1f s, all settled in %.1f s; ledger: balances %d + holds %d, funded %d\n",
		r.HealedIn.Seconds(), r.SettledIn.Seconds(), r.Reconciled.Balances, r.Reconciled.Holds, r.Reconciled.Funded)
	for _, c := range r.Reconciled.Checks {
		fmt.Printf("  %8d examined, %d breaches: %s\n", c.Examined, c.Breaches, c.Check)
	}
	for _, s := range r.Skipped {
		fmt.Println("skipped:", s)
	}
	if len(r.Problems) == 0 {
		fmt.Println("nothing was lost, and nothing happened twice; the report is in", path)
		return nil
	}
	for _, p := range r.Problems[:min(len(r.Problems), 20)] {
		fmt.Println("PROBLEM", p)
	}
	return errors.New(fmt.Sprint(len(r.Problems), " problems; SEED=", r.Seed, " repeats the schedule; see ", path))
}
