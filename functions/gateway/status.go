package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"pgw/functions/gateway/access"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/deadletter"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// GET /status says what operators want to know of the system. It is read when a part of the system is
// away, so each part is asked on its own, with a time limit, and what is not known is absent.

const (
	// statusFor is how long a report is used. So it costs little to ask often.
	statusFor = 3 * time.Second
	// probeWithin is the time limit of one part of a report.
	probeWithin = time.Second
	// hangsAfter is how long a function may leave probes without an answer before it counts as down.
	// One that is scaled to zero needs a few seconds for the first answer.
	hangsAfter = 10 * time.Second
	// rateWithin is the longest time between the two readings of a rate.
	rateWithin = 2 * time.Minute
	// sweepLate is the age of the last sweep from which on the system is degraded. Sweeps run once a
	// minute.
	sweepLate = 5 * time.Minute
)

// dependencyState says whether a dependency can be used.
type dependencyState string

// The states of a dependency.
const (
	stateUp      dependencyState = "up"
	stateDown    dependencyState = "down"
	stateUnknown dependencyState = "unknown"
)

// systemState says whether payments can be made.
type systemState string

// The states of the system.
const (
	systemOK       systemState = "ok"
	systemDegraded systemState = "degraded" // payments are made, and an operator should look
	systemDown     systemState = "down"     // payments need a dependency that is down
)

type dependencyJSON struct {
	Name   string          `json:"name"`
	State  dependencyState `json:"state"`
	Since  time.Time       `json:"since,omitzero"`
	Detail string          `json:"detail,omitempty"`
}

type hopJSON struct {
	Hop
	Lag  *int64   `json:"lag,omitempty"`
	Rate *float64 `json:"rate_per_second,omitempty"`
}

type ledgerJSON struct {
	Pending         *int64    `json:"pending,omitempty"`
	HeldIDR         *int64    `json:"held_idr,omitempty"`
	OldestPendingAt time.Time `json:"oldest_pending_at,omitzero"`
	LastSweepAt     time.Time `json:"last_sweep_at,omitzero"`
	Schema          int32     `json:"schema,omitempty"`

	Standby *standbyJSON `json:"standby,omitempty"` // absent if there is none
}

type standbyJSON struct {
	Used        bool   `json:"used"`
	StalenessMS *int64 `json:"staleness_ms,omitempty"`
	Problem     string `json:"problem,omitempty"`
}

type lettersJSON struct {
	Waiting  *int64    `json:"waiting,omitempty"`
	Parked   *int64    `json:"parked,omitempty"`
	OldestAt time.Time `json:"oldest_at,omitzero"`
}

type verdictJSON struct {
	At       time.Time `json:"at"`
	Verdict  string    `json:"verdict"`
	Breaches int64     `json:"breaches"`
	Text     string    `json:"text"`
}

type statusJSON struct {
	At           time.Time        `json:"at"`
	State        systemState      `json:"state"`
	Dependencies []dependencyJSON `json:"dependencies,omitempty"`
	Flow         []hopJSON        `json:"flow,omitempty"`
	Ledger       *ledgerJSON      `json:"ledger,omitempty"`
	DeadLetters  *lettersJSON     `json:"dead_letters,omitempty"`
	Reconcile    *verdictJSON     `json:"reconcile,omitempty"`
}

// Hop is one way of events through Kafka. Topic and Group are the names in the manifests.
type Hop struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Topic string `json:"topic"`
	Group string `json:"group"`
}

// letters is the hop of dead letters.
const letters = 2

// Flow are the hops of the project's manifests.
var Flow = []Hop{
	{"gateway", "worker", "payments.request", "pgw-worker"},
	{"worker", "gateway", "payments.result", "pgw-gateway"},
	letters: {"worker", "payments", "payments.deadletter", "pgw-payments"},
	{"outside", "db", "ledger.accounts", "pgw-db"},
	{"worker", "webhooks", "payments.result", "pgw-webhooks"},
}

// operations makes reports of the system.
type operations struct {
	kafka   kafka.Config
	groups  string // the prefix of the groups' names
	probes  map[string]healthpb.HealthClient
	outages map[string]*trace.Outage
	db      dbv1.DbClient
	box     *deadletter.Box
	now     func() time.Time

	refreshing singleflight.Group

	mu      sync.Mutex
	latest  statusJSON
	made    time.Time
	silent  map[string]time.Time // since when a function leaves probes without an answer, or is not ready
	samples map[Hop]sample
}

// sample is a reading of the records that a group has consumed.
type sample struct {
	at   time.Time
	sum  int64
	rate *float64 // up to at; nil: not known
}

func newOperations(cfg Config, on function.Dependencies, db dbv1.DbClient, box *deadletter.Box) *operations {
	s := &operations{
		kafka: cfg.Kafka, groups: cfg.GroupPrefix, probes: map[string]healthpb.HealthClient{}, outages: on.Outages, db: db, box: box, now: on.Now,
		silent: map[string]time.Time{}, samples: map[Hop]sample{},
	}
	for _, name := range []string{"fx", "wallet", "risk"} {
		s.probes[name] = healthpb.NewHealthClient(on.Conns[name])
	}
	return s
}

// report returns a report that is at most a few seconds old. Requests that arrive during a refresh get
// its result.
func (s *operations) report(ctx context.Context) (statusJSON, error) {
	if r, ok := s.recent(); ok {
		return r, nil
	}
	made := s.refreshing.DoChan("", func() (any, error) {
		if r, ok := s.recent(); ok {
			return r, nil
		}
		// The report does not end with one client's request: others wait for it too.
		r := s.refresh(context.WithoutCancel(ctx))
		s.mu.Lock()
		defer s.mu.Unlock()
		s.latest, s.made = r, s.now()
		return r, nil
	})
	select {
	case got := <-made:
		return got.Val.(statusJSON), nil
	case <-ctx.Done():
		return statusJSON{}, ctx.Err()
	}
}

func (s *operations) recent() (statusJSON, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latest, !s.made.IsZero() && s.now().Sub(s.made) < statusFor
}

// within runs one part of a report. A part that takes too long is left behind. Its context is then
// cancelled, and has no deadline: a call that is given up says nothing about the function, which may
// have to start first.
func within[T any](ctx context.Context, limit time.Duration, read func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan result, 1)
	go func() {
		value, err := read(ctx)
		done <- result{value, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case got := <-done:
		return got.value, got.err
	case <-timer.C:
		var none T
		return none, errNoAnswer
	}
}

var errNoAnswer = fmt.Errorf("no answer within %s", probeWithin)

// refresh asks all parts at the same time.
func (s *operations) refresh(ctx context.Context) statusJSON {
	var asking sync.WaitGroup
	probed := make([]dependencyJSON, len(probedNames))
	for i, name := range probedNames {
		asking.Go(func() { probed[i] = s.probe(ctx, name) })
	}
	var db, postgres, broker dependencyJSON
	var ledger *ledgerJSON
	var verdict *verdictJSON
	asking.Go(func() { db, postgres, ledger, verdict = s.askDB(ctx) })
	var hops []hopJSON
	var dead *lettersJSON
	asking.Go(func() { broker, hops, dead = s.askKafka(ctx) })
	asking.Wait()
	r := statusJSON{
		At: s.now().UTC(), Dependencies: slices.Concat(probed, []dependencyJSON{db, broker, postgres}), Flow: hops, Ledger: ledger, DeadLetters: dead, Reconcile: verdict,
	}
	r.State = r.judge()
	return r
}

// probedNames are the functions that are asked for their health. db answers a call of its own.
var probedNames = []string{"fx", "wallet", "risk"}

// judge returns the state of the system. Every payment needs all dependencies.
func (r statusJSON) judge() systemState {
	has := func(state dependencyState) bool {
		return slices.ContainsFunc(r.Dependencies, func(d dependencyJSON) bool { return d.State == state })
	}
	switch {
	case has(stateDown):
		return systemDown
	case has(stateUnknown), r.Reconcile != nil && r.Reconcile.Verdict != "agrees",
		r.Ledger != nil && !r.Ledger.LastSweepAt.IsZero() && r.At.Sub(r.Ledger.LastSweepAt) > sweepLate:
		return systemDegraded
	}
	return systemOK
}

// errNotReady means that a function answers, and says that it can't serve.
var errNotReady = errors.New("it answers, and is not ready")

func (s *operations) probe(ctx context.Context, name string) dependencyJSON {
	_, err := within(ctx, probeWithin, func(ctx context.Context) (struct{}, error) {
		got, err := s.probes[name].Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(false))
		if err == nil && got.Status != healthpb.HealthCheckResponse_SERVING {
			err = errNotReady
		}
		return struct{}{}, err
	})
	return s.dependency(name, err)
}

// dependency returns a function's state after a probe. The calls of payments are probes too: their
// failures are in the function's Outage.
func (s *operations) dependency(name string, err error) dependencyJSON {
	d := dependencyJSON{Name: name, State: stateUp}
	state := s.outages[name].State()
	d.Since = state.Since.UTC()
	s.mu.Lock()
	defer s.mu.Unlock()
	ready := !errors.Is(err, errNoAnswer) && !errors.Is(err, errNotReady)
	if ready {
		delete(s.silent, name)
	} else if s.silent[name].IsZero() {
		s.silent[name] = s.now()
	}
	switch {
	case !ready && (errors.Is(err, errNotReady) || s.now().Sub(s.silent[name]) >= hangsAfter):
		d.State, d.Since, d.Detail = stateDown, s.silent[name].UTC(), err.Error()
	case state.Err != nil:
		d.State, d.Detail = stateDown, plain(state.Err)
	case !ready:
		d.State, d.Since, d.Detail = stateUnknown, time.Time{}, err.Error()
	case err != nil:
		d.State, d.Since, d.Detail = stateUnknown, time.Time{}, plain(err)
	}
	return d
}

// maxDetail is the most bytes of an error in a report.
const maxDetail = 300

func plain(err error) string { return fmt.Sprintf("%.*s", maxDetail, err.Error()) }

// askDB asks db for its own state, and for that of Postgres and of the ledger.
func (s *operations) askDB(ctx context.Context) (db, postgres dependencyJSON, ledger *ledgerJSON, verdict *verdictJSON) {
	got, err := within(ctx, probeWithin, func(ctx context.Context) (*dbv1.StatusResponse, error) {
		return s.db.Status(ctx, &dbv1.StatusRequest{})
	})
	db = s.dependency("db", err)
	postgres = dependencyJSON{Name: "postgres", State: stateUnknown, Detail: "db can't be asked"}
	if err != nil {
		return db, postgres, nil, nil
	}
	postgres.State, postgres.Since, postgres.Detail = stateUp, rpc.Time(got.PostgresSince), fmt.Sprintf("%.*s", maxDetail, got.PostgresProblem)
	if !got.PostgresUp {
		postgres.State = stateDown
		if postgres.Since.IsZero() {
			postgres.State = stateUnknown // it has not been tried yet
		}
	}
	if got.Schema != nil {
		ledger = &ledgerJSON{Schema: got.GetSchema()}
		if l := got.LastSweep; l != nil {
			ledger.LastSweepAt, ledger.OldestPendingAt, ledger.Pending, ledger.HeldIDR = rpc.Time(l.At), rpc.Time(l.OldestPendingAt), &l.Pending, &l.HeldIdr
		}
	}
	if s := got.Standby; s != nil && ledger != nil {
		ledger.Standby = &standbyJSON{s.Used, s.StalenessMs, s.Problem}
	}
	if v := got.Verdict; v != nil {
		verdict = &verdictJSON{rpc.Time(v.At), v.Verdict, v.Breaches, v.Text}
	}
	return db, postgres, ledger, verdict
}

// askKafka reads how far the consumers are behind, and counts the dead letters.
func (s *operations) askKafka(ctx context.Context) (broker dependencyJSON, hops []hopJSON, dead *lettersJSON) {
	var topics []string
	groups := make([]kafka.Consumption, len(Flow))
	for i, h := range Flow {
		groups[i] = kafka.Consumption{Topic: s.kafka.Renamed()[h.Topic], Group: s.groups + h.Group}
		if !slices.Contains(topics, groups[i].Topic) { // two groups may read one topic
			topics = append(topics, groups[i].Topic)
		}
	}
	got, err := within(ctx, probeWithin, func(ctx context.Context) (kafka.Standing, error) {
		return kafka.ReadStanding(ctx, s.kafka, "status", topics, groups)
	})
	var refused *kerr.Error
	var denied *kadm.AuthError
	away := err
	if errors.As(err, &refused) || errors.As(err, &denied) {
		away = nil // a broker answers
	}
	if !errors.Is(away, errNoAnswer) {
		s.outages[function.Kafka].Note(ctx, away)
	}
	broker = s.dependency(function.Kafka, away)
	if away == nil && err != nil {
		broker.Detail = plain(err)
	}
	hops = make([]hopJSON, len(Flow))
	for i, h := range Flow {
		hops[i].Hop = h
		hops[i].Topic, hops[i].Group = groups[i].Topic, groups[i].Group
		if p, ok := got.Groups[groups[i]]; ok && err == nil {
			lag := p.Lag()
			hops[i].Lag, hops[i].Rate = &lag, s.rate(h, p.Sum())
		}
	}
	if by, ok := got.Groups[groups[letters]]; ok && err == nil {
		dead = s.countLetters(ctx, by.Taken)
	}
	return broker, hops, dead
}

// rate returns the records per second that a group consumed since the reading before.
func (s *operations) rate(h Hop, sum int64) *float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, before := s.now(), s.samples[h]
	next := sample{at: now, sum: sum}
	if passed := now.Sub(before.at); passed > 0 && passed <= rateWithin && sum >= before.sum {
		rate := float64(int64(float64(sum-before.sum)/passed.Seconds()*10)) / 10
		next.rate = &rate
	}
	s.samples[h] = next
	return next.rate
}

// countLetters counts the dead letters that wait: those that payments has not handled, and those that
// wait for an operator. taken has the offsets up to which payments has handled the dead-letter topic.
func (s *operations) countLetters(ctx context.Context, taken map[int32]int64) *lettersJSON {
	n, err := within(ctx, probeWithin, func(ctx context.Context) (deadletter.Counts, error) { return s.box.Count(ctx, taken) })
	if err != nil {
		return nil
	}
	return &lettersJSON{Waiting: &n.Waiting, Parked: &n.Parked, OldestAt: n.Oldest}
}

// getStatus serves a report. A client that is not an operator gets only the time and the state.
func (g *Gateway) getStatus(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Vary", "Accept")
	if prefersHTML(r.Header.Values("Accept")) {
		http.Redirect(w, r, "/operations", http.StatusSeeOther)
		return
	}
	operator, denied := g.isOperator(r)
	if denied != nil {
		g.deny(w, r, denied)
		return
	}
	report, err := g.operations.report(r.Context())
	if err != nil {
		w.WriteHeader(clientLeft)
		return
	}
	if !operator {
		report = statusJSON{At: report.At, State: report.State}
	}
	writeJSON(w, http.StatusOK, report)
}

// isOperator reports whether the request comes from an operator: a client of all accounts, or anyone if
// requests are not authenticated. Credentials that are not valid are denied.
func (g *Gateway) isOperator(r *http.Request) (bool, *access.Denied) {
	if g.access == nil {
		return true, nil
	}
	if g.cfg.Access.Mode == access.Required && r.Header.Get(access.KeyHeader) == "" && r.Header.Get("Authorization") == "" {
		return false, nil
	}
	p, denied := g.access.Check(r)
	return denied == nil && isOperator(p), denied
}

// prefersHTML reports whether a client prefers a page to JSON, as browsers do.
func prefersHTML(accept []string) bool {
	var html, json float64
	for _, part := range strings.Split(strings.Join(accept, ","), ",") {
		media, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		q, err := strconv.ParseFloat(cmp.Or(params["q"], "1"), 64)
		if err != nil {
			continue
		}
		switch media {
		case "text/html":
			html = max(html, q)
		case "application/json", "application/*", "*/*":
			json = max(json, q)
		}
	}
	return html > json
}
