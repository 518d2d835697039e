package main

import (
	"cmp"
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
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pgw/functions/pgw/reconcile"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/tests/history"
	"pgw/tests/processes"
)

// report is the result of a run.
type report struct {
	Seed     uint64        `json:"seed"`
	Duration time.Duration `json:"duration_ns"`
	Schedule []fault       `json:"schedule"`

	Faults   map[string]int      `json:"faults"`           // by kind
	Targets  map[string]int      `json:"targets"`          // by the process that they hit
	Restarts map[string]int      `json:"restarts"`         // processes that ended and were started again
	Copied   map[string]int      `json:"copied,omitempty"` // standbys of a cluster that a person would have had to copy anew
	Recovery map[string]recovery `json:"recovery"`         // by kind: time until the next payment was sent and answered SUCCESS

	Goals []goalReport `json:"goals,omitempty"` // of a cluster

	Payments int            `json:"payments"`
	Requests int            `json:"requests"` // including repeated requests
	Answers  map[string]int `json:"answers"`  // by outcome
	Ledger   map[string]int `json:"ledger"`   // payments by their end; never_arrived: the ledger has none

	Life     map[string]int `json:"life"`      // answers to authorizations and operations, by action and outcome
	LifeEnds map[string]int `json:"life_ends"` // authorized payments, refunds and operations, by their end in the ledger
	Webhooks webhookReport  `json:"webhooks"`

	HealedIn   time.Duration    `json:"healed_in_ns"` // time until a payment succeeded, after everything was healed
	SettledIn  time.Duration    `json:"settled_in_ns"`
	Reconciled reconcile.Report `json:"reconciled"`
	Problems   []string         `json:"problems"` // empty: nothing was lost, and nothing happened twice
	Skipped    []string         `json:"skipped,omitempty"`
}

// webhookReport is what a client's endpoint saw.
type webhookReport struct {
	Taken   map[string]int `json:"taken"`   // by type; some more than once
	Facts   int            `json:"facts"`   // what it had to be told
	Turned  int            `json:"turned"`  // requests that it did not take, because it was broken
	Waiting int            `json:"waiting"` // facts that waited for a later attempt in the end, and were then asked for
}

// goalReport compares the times until the next success with what is wanted.
type goalReport struct {
	Name   string        `json:"name"`
	Within time.Duration `json:"within_ns"`
	recovery
}

type recovery struct {
	Faults int           `json:"faults"`
	Median time.Duration `json:"median_ns"`
	Max    time.Duration `json:"max_ns"`
}

// judge waits for one deadline and one sweep, and then compares all answers with the ledger.
func (w *world) judge(ctx context.Context, o options, faults []fault, wrong []string, c *clients, healed time.Time, again time.Duration) error {
	r := report{
		Seed: o.Seed, Duration: o.Duration, Schedule: faults, Faults: map[string]int{}, Targets: map[string]int{}, Restarts: w.restarts, Copied: w.copied,
		Recovery: map[string]recovery{}, Payments: c.payments, Requests: len(c.calls), Answers: map[string]int{}, Ledger: map[string]int{}, HealedIn: again,
		Life: map[string]int{}, LifeEnds: map[string]int{}, Webhooks: webhookReport{Taken: map[string]int{}}, Skipped: w.skipped(), Problems: wrong,
	}
	for i, f := range faults {
		r.Faults[f.class()]++
		r.Targets[f.Target]++
		if o.Cluster {
			faults[i].Decided, _ = c.after(f.since)
		}
	}
	for kind := range r.Faults {
		if got := c.recovery(faults, func(f fault) bool { return f.class() == kind }); got.Faults > 0 {
			r.Recovery[kind] = got
		}
	}
	if o.Cluster {
		for _, g := range goals {
			r.Goals = append(r.Goals, goalReport{g.Name, g.Within, c.recovery(faults, g.of)})
		}
	}
	for _, a := range c.life {
		r.Life[strings.TrimSpace(fmt.Sprintf("%s: %s %s", a.Action, a.Answer.Status, cmp.Or(string(a.Answer.Reason), strconv.Itoa(a.Answer.HTTP))))]++
	}
	for _, a := range c.calls {
		r.Answers[strings.TrimSpace(fmt.Sprintf("%s %s", a.Answer.Status, a.Answer.Reason))]++
	}

	fmt.Printf("payments succeed again after %.1f s; waiting for one deadline and one sweep\n", again.Seconds())
	sleep(ctx, time.Until(healed.Add(payment.DecideWithin)))
	c.askAgain(ctx)
	// A payment may be authorized at its deadline, and holds its money until a sweep after that.
	bounded, cancel := context.WithTimeout(ctx, holdFor+4*time.Minute)
	defer cancel()
	if err := eventually(bounded, func() error { return w.settled(bounded) }); err != nil {
		r.Problems = append(r.Problems, "not settled: "+err.Error())
	}
	r.SettledIn = time.Since(healed)
	conn, err := pgx.Connect(ctx, w.database())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))

	if err := w.holdAgainstLedger(ctx, conn, c, &r); err != nil {
		return err
	}
	if err := w.holdLives(ctx, conn, c, &r); err != nil {
		return err
	}
	trial, err := ledger.ReadTrialBalance(ctx, conn)
	if err = errors.Join(err, trial.Err()); err != nil {
		r.Problems = append(r.Problems, "trial balance: "+err.Error())
	}
	r.Reconciled, err = reconcile.Run(ctx, reconcile.Config{Database: w.database(), Kafka: w.kafka, Keys: &w.keys})
	if err != nil {
		return err
	}
	for _, b := range r.Reconciled.Breaches {
		r.Problems = append(r.Problems, fmt.Sprintf("reconcile: %s: %s%s %s", b.Check, b.Payment, b.Account, b.Problem))
	}
	return r.tell(o)
}

// recovery returns the times until the first payment that was sent after a fault succeeded.
func (c *clients) recovery(faults []fault, of func(fault) bool) recovery {
	var all []time.Duration
	for _, f := range faults {
		if took, ok := c.after(f.since); ok && of(f) {
			all = append(all, took)
		}
	}
	if len(all) == 0 {
		return recovery{}
	}
	slices.Sort(all)
	return recovery{len(all), all[len(all)/2], all[len(all)-1]}
}

// settled checks that no payment is PENDING, that the result of every swept payment is published,
// and that every published event has been delivered.
func (w *world) settled(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, w.database()) // a cluster's primary may still change
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var pending, untold int
	err = conn.QueryRow(ctx, `SELECT count(*) FILTER (WHERE status = 'PENDING'), count(*) FILTER (WHERE untold) FROM reservations`).Scan(&pending, &untold)
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
		if problem := askState(ctx, w.gateway(), key, end); problem != "" {
			r.Problems = append(r.Problems, problem)
		}
	}
	return nil
}

// holdLives compares authorizations, operations and webhooks with the ledger.
func (w *world) holdLives(ctx context.Context, conn *pgx.Conn, c *clients, r *report) error {
	b, err := readBooks(ctx, conn)
	if err != nil {
		return err
	}
	r.Problems = append(append(r.Problems, checkLife(c.life, b)...), b.check()...)
	for _, k := range b.kept {
		switch {
		case k.Parent != "":
			r.LifeEnds["refund: "+k.end()]++
		case k.Authorized > 0:
			r.LifeEnds["authorized: "+k.end()]++
		}
	}
	for _, o := range b.operations {
		r.LifeEnds[fmt.Sprintf("%s: %s %s", o.Kind, o.Status, o.Reason)]++
	}
	return w.holdWebhooks(ctx, b, r)
}

// holdWebhooks waits until the client has been told everything. What has failed waits for its next attempt,
// which may be hours later, so the client asks for it, as it can after an outage of its own. Each of
// these has to be known to pgw: nothing is repaired by asking.
func (w *world) holdWebhooks(ctx context.Context, b books, r *report) error {
	taken, _, _ := w.shop.told()
	late := b.untold(taken)
	r.Webhooks.Facts, r.Webhooks.Waiting = len(b.facts()), len(late)
	for _, f := range late {
		if b.rows[f] == "" {
			r.Problems = append(r.Problems, fmt.Sprintf("webhooks: there is no row for %s", f))
		}
	}
	if len(late) > 0 {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+w.gateway()+"/api/webhooks/"+w.hook+"/redeliver", strings.NewReader(`{"since":"2000-01-01T00:00:00Z"}`))
		if err != nil {
			return err
		}
		if err := ask(req, http.StatusAccepted, &struct{}{}); err != nil {
			r.Problems = append(r.Problems, "webhooks: "+err.Error())
		}
		bounded, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		// What is still missing then is a problem, which checkTold names.
		eventually(bounded, func() error {
			if taken, _, _ = w.shop.told(); len(b.untold(taken)) > 0 {
				return errors.New("not told yet")
			}
			return nil
		})
	}
	taken, turned, wrong := w.shop.told()
	r.Webhooks.Turned = turned
	for _, m := range taken {
		r.Webhooks.Taken[m.Type]++
	}
	r.Problems = append(append(r.Problems, wrong...), b.checkTold(taken)...)
	return nil
}

// askState asks the front door what became of a payment.
func askState(ctx context.Context, gateway, key, end string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+gateway+"/api/payments/"+key, nil)
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
	if len(r.Copied) > 0 {
		counts("standbys copied anew by hand:", r.Copied)
	}
	fmt.Println("until the next payment succeeded, median and longest:")
	for _, kind := range slices.Sorted(maps.Keys(r.Recovery)) {
		fmt.Printf("  %6.1f s %6.1f s %s\n", r.Recovery[kind].Median.Seconds(), r.Recovery[kind].Max.Seconds(), kind)
	}
	for _, g := range r.Goals {
		verdict := "held"
		if g.Median > g.Within {
			verdict = "missed"
		}
		fmt.Printf("  goal %s: %s, median %.1f s of %s in %d faults\n", verdict, g.Name, g.Median.Seconds(), g.Within, g.Faults)
	}
	counts(fmt.Sprintf("%d payments, requested %d times; clients got:", r.Payments, r.Requests), r.Answers)
	counts("the payments ended:", r.Ledger)
	counts("authorizations and operations; clients got:", r.Life)
	counts("they ended:", r.LifeEnds)
	counts(fmt.Sprintf("webhooks: %d facts, %d requests turned away by a broken endpoint, %d facts asked for in the end; told:",
		r.Webhooks.Facts, r.Webhooks.Turned, r.Webhooks.Waiting), r.Webhooks.Taken)
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
