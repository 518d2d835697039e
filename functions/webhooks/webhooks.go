// Package webhooks is the function that tells clients what became of their payments. A client names
// its endpoints; each gets an HTTP request for each event, signed as Standard Webhooks 1.0.0 says.
//
// An event is first a row for each endpoint (told.go makes it, shared/ledger keeps it), and then it is
// sent (send.go) as far as the bounds allow (bounds.go). What was not sent, or failed, is sent later
// from its row. Clients choose the addresses, so guard.go checks each connection. rpc.go has the
// calls that manage endpoints.
package webhooks

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	webhooksv1 "pgw/proto/gen/webhooks/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/postgres"
	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// Config of the function.
type Config struct {
	DatabaseURL string          `envconfig:"DATABASE_URL" required:"true" desc:"the ledger's Postgres, as a user with the role pgw_webhooks"`
	Schema      postgres.Schema `envconfig:"LEDGER_SCHEMA" desc:"the ledger's schema, if several ledgers share the database; empty: the usual one"`
	Keys        event.Keyring   `envconfig:"EVENT_KEYS" required:"true" desc:"keys that sign events, as ID:BASE64:v2, separated by commas"`
	SecretKeys  Sealer          `envconfig:"WEBHOOK_SECRET_KEYS" required:"true" desc:"keys of 32 bytes that encrypt endpoints' secrets in the database, as ID:BASE64, separated by commas; the first one encrypts, all decrypt"`
	PlainHTTP   bool            `envconfig:"WEBHOOK_ALLOW_HTTP" default:"false" desc:"true: endpoints may have the scheme http, besides https"`
	Networks    []netip.Prefix  `envconfig:"WEBHOOK_ALLOW_NETWORKS" desc:"networks that endpoints may be in besides public addresses, such as 127.0.0.0/8,10.1.0.0/16; empty: none"`
	Timeout     time.Duration   `envconfig:"WEBHOOK_TIMEOUT" default:"15s" desc:"time limit of one attempt, with the whole answer; 1s to 30s"`
	Each        int             `envconfig:"WEBHOOK_EACH" default:"32" desc:"the most attempts under way at one endpoint"`
	All         int             `envconfig:"WEBHOOK_ALL" default:"512" desc:"the most attempts under way in all; endpoints that fail or are slow share a quarter of them"`
	MaxOfClient int             `envconfig:"WEBHOOK_MAX" default:"20" desc:"the most endpoints of one client"`
	Keep        time.Duration   `envconfig:"WEBHOOK_KEEP" default:"720h" desc:"for how long what was sent is kept, for the list of attempts and for sending again; longer than Kafka keeps results"`
}

// terms are the store's times.
func (c Config) terms() ledger.Terms { return ledger.Terms{Lease: 2 * c.Timeout, Keep: c.Keep} }

// store keeps endpoints, events and deliveries; ledger.Webhooks does.
type store interface {
	AddEvent(context.Context, ledger.WebhookEvent, []uuid.UUID, ledger.Terms) ([]ledger.Delivery, error)
	Due(context.Context) ([]uuid.UUID, error)
	Take(context.Context, []uuid.UUID, []int32, time.Duration) ([]ledger.Delivery, error)
	Release(ctx context.Context, endpoint uuid.UUID, event string) error
	Finish(context.Context, ledger.Attempt, time.Duration) (failing bool, err error)
	Disable(context.Context, uuid.UUID, string, ledger.Terms, func(ledger.Endpoint) ledger.WebhookEvent) (bool, error)
}

// Webhooks is the function.
type Webhooks struct {
	webhooksv1.UnimplementedWebhooksServer

	cfg       Config
	store     store
	keeper    *ledger.Webhooks
	db        dbv1.DbClient
	endpoints *postgres.Cached[*endpoints]
	last      atomic.Pointer[endpoints]
	guard     guard
	send      http.RoundTripper
	bounds    *bounds
	schedule  []time.Duration
	now       func() time.Time
	random    func() float64
	secrets   io.Reader
	log       *slog.Logger
	metrics   *metrics

	spread  time.Duration // how long the answer to a new endpoint waits, so that every replica knows it
	storing *trace.Outage
	freed   chan struct{} // gets a value when an attempt has ended
	ending  context.Context
	end     context.CancelFunc

	mu      sync.Mutex // guards closing, and that sending grows only before it
	closing bool
	sending sync.WaitGroup
}

// Function describes webhooks.
var Function = function.Describe(function.Function{
	Name: "webhooks", About: "tells clients what became of their payments",
	Port: "19099", Calls: map[string]string{"db": "knows what became of a payment"}, Events: "/",
}, build)

// maxConns is the most connections to the database.
const maxConns = 8

func build(cfg Config, on function.Dependencies) (*function.Service, error) {
	w, err := open(cfg, on)
	if err != nil {
		return nil, err
	}
	return &function.Service{
		GRPC:       func(r grpc.ServiceRegistrar) { webhooksv1.RegisterWebhooksServer(r, w) },
		Events:     w.handle,
		Ready:      w.keeper.Ready,
		Background: w.run,
		Close:      w.close,
	}, nil
}

func open(cfg Config, on function.Dependencies) (*Webhooks, error) {
	if cfg.Timeout < time.Second || cfg.Timeout > 30*time.Second {
		return nil, fmt.Errorf("WEBHOOK_TIMEOUT: is %s; must be 1s to 30s", cfg.Timeout)
	}
	if cfg.Each < 1 || cfg.All < 4 || cfg.MaxOfClient < 1 {
		return nil, errors.New("WEBHOOK_EACH and WEBHOOK_MAX must be at least 1, and WEBHOOK_ALL at least 4")
	}
	kept, err := ledger.OpenWebhooks(postgres.Config{
		URL: cfg.Schema.In(cfg.DatabaseURL), Name: "webhooks", MaxConns: maxConns, Lookups: true, Now: on.Now, Registerer: on.Registry,
		Outage: trace.NewOutage(on.Log, on.Now, "the database is away"),
	})
	if err != nil {
		return nil, err
	}
	g := guard{cfg.PlainHTTP, cfg.Networks}
	w := &Webhooks{
		cfg: cfg, store: kept, keeper: kept, db: dbv1.NewDbClient(on.Conns["db"]), guard: g, send: g.transport(),
		bounds: newBounds(cfg.Each, cfg.All), schedule: schedule, now: on.Now, random: on.Random, secrets: rand.Reader, log: on.Log,
		spread: listAge, storing: trace.NewOutage(on.Log, on.Now, "what was sent could not be recorded"), freed: make(chan struct{}, 1),
	}
	w.metrics = newMetrics(on.Registry, w.bounds)
	w.endpoints = postgres.NewCached(w.load, on.Log)
	w.ending, w.end = context.WithCancel(context.Background())
	return w, nil
}

// close waits for the attempts under way, until ctx ends. No attempt begins after it. An attempt that
// is cut off, or did not begin, is made when its lease ends.
func (w *Webhooks) close(ctx context.Context) error {
	w.mu.Lock()
	w.closing = true
	w.mu.Unlock()
	ended := make(chan struct{})
	go func() { w.sending.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	w.end()
	<-ended
	w.keeper.Close()
	return nil
}

type metrics struct {
	events   *prometheus.CounterVec
	attempts *prometheus.CounterVec
	seconds  prometheus.Histogram
	disabled *prometheus.CounterVec

	pending, behind prometheus.Gauge
	endpoints       *prometheus.GaugeVec
}

// The outcomes of an event, used as a metric's label.
const (
	eventTold    = "told"
	eventNobody  = "nobody" // the client has no endpoint, or there is nothing to tell
	eventRefused = "refused"
	eventPutOff  = "put_off"
)

func newMetrics(r prometheus.Registerer, b *bounds) *metrics {
	auto := promauto.With(r)
	m := &metrics{
		events: function.NewCounters(r, "pgw_webhooks_events_total", "Result events, by what was done with them; nobody: there is no endpoint for it.", "outcome",
			eventTold, eventNobody, eventRefused, eventPutOff),
		attempts: function.NewCounters(r, "pgw_webhooks_attempts_total", "Attempts to send an event to an endpoint, by result.", "result", results...),
		seconds: auto.NewHistogram(prometheus.HistogramOpts{
			Name: "pgw_webhooks_attempt_seconds", Help: "How long an attempt took.", Buckets: function.Latency,
		}),
		disabled: function.NewCounters(r, "pgw_webhooks_disabled_total", "Endpoints that were disabled because they answered 410, or failed for five days.", "reason",
			ledger.DisabledGone, ledger.DisabledFailing),
		pending: auto.NewGauge(prometheus.GaugeOpts{Name: "pgw_webhooks_pending", Help: "Deliveries that wait, at the last minute's ping."}),
		behind:  auto.NewGauge(prometheus.GaugeOpts{Name: "pgw_webhooks_behind_seconds", Help: "How long the oldest due delivery has waited, at the last minute's ping."}),
		endpoints: auto.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pgw_webhooks_endpoints", Help: "Endpoints at the last minute's ping; failing ones are enabled too, and their last attempt failed.",
		}, []string{"state"}),
	}
	for _, state := range []string{"enabled", "failing", "disabled"} {
		m.endpoints.WithLabelValues(state)
	}
	for class, name := range map[int]string{good: "good", bad: "failing"} {
		auto.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "pgw_webhooks_under_way", Help: "Attempts under way, by whether their endpoint fails or is slow.", ConstLabels: prometheus.Labels{"endpoints": name},
		}, func() float64 { return float64(b.underWay(class)) })
	}
	return m
}

// listAge bounds the age of the list of endpoints by which an event is judged. Each replica reads the list
// every second. A client that adds an endpoint has the answer after this time, so it is told everything
// that happens from then on, whichever replica gets the event.
const listAge = 2 * time.Second

// endpoints are all endpoints, in memory.
type endpoints struct {
	version string
	of      map[string][]*endpoint
	all     map[uuid.UUID]*endpoint
}

// endpoint is an endpoint with its secrets decrypted.
type endpoint struct {
	ledger.Endpoint
	secrets []expiring
	broken  error // why its secrets can't be used
}

type expiring struct {
	secret
	expires time.Time
}

// signing returns the secrets that sign at a time.
func (e *endpoint) signing(at time.Time) (all []secret) {
	for _, s := range e.secrets {
		if s.expires.IsZero() || at.Before(s.expires) {
			all = append(all, s.secret)
		}
	}
	return all
}

// wants reports whether the endpoint gets events of a type now.
func (e *endpoint) wants(of string) bool {
	if e.Status != ledger.EndpointEnabled {
		return false
	}
	for _, t := range e.Types {
		if t == of {
			return true
		}
	}
	return len(e.Types) == 0
}

// load reads the endpoints, if any of them has changed.
func (w *Webhooks) load(ctx context.Context) (*endpoints, error) {
	version, err := w.keeper.Version(ctx)
	if err != nil {
		return nil, err
	}
	if known := w.known(); known != nil && known.version == version {
		return known, nil
	}
	read, err := w.keeper.Endpoints(ctx, ledger.Scope{All: true}, uuid.Nil, 0)
	if err != nil {
		return nil, err
	}
	w.bounds.know(read)
	found := &endpoints{version, map[string][]*endpoint{}, map[uuid.UUID]*endpoint{}}
	for _, e := range read {
		in := &endpoint{Endpoint: e}
		for _, s := range e.Secrets {
			plain, err := w.cfg.SecretKeys.open(e.ID, s)
			if err != nil {
				in.broken = err
				w.log.ErrorContext(ctx, "an endpoint's secret can't be used", "endpoint", e.ID.String(), "error", err)
				continue
			}
			in.secrets = append(in.secrets, expiring{plain, s.Expires})
		}
		found.of[e.Client] = append(found.of[e.Client], in)
		found.all[e.ID] = in
	}
	w.last.Store(found)
	return found, nil
}

// known returns what load has read last; nil if nothing was read.
func (w *Webhooks) known() *endpoints { return w.last.Load() }

// handle takes the results of payments and of operations, and the minute's ping.
func (w *Webhooks) handle(ctx context.Context, e cloudevents.Event) error {
	if e.Type() == event.TypePing {
		// A ping is not signed. It carries no data, and looking for due deliveries does no harm.
		return w.minute(ctx)
	}
	told, err := w.take(ctx, e)
	outcome := eventNobody
	switch {
	case err != nil && event.Refused(err):
		outcome = eventRefused
	case err != nil:
		outcome = eventPutOff
	case told:
		outcome = eventTold
	}
	w.metrics.events.WithLabelValues(outcome).Inc()
	return err
}

// take makes rows of a result event, and begins to send them.
func (w *Webhooks) take(ctx context.Context, e cloudevents.Event) (told bool, err error) {
	// Without any endpoint nobody is told, so the event is not even read. It costs next to nothing then.
	// The gateway, which gets the same events, refuses those that are not signed.
	known, err := w.endpoints.Within(ctx, listAge)
	if err != nil || len(known.all) == 0 {
		return false, err
	}
	var client, key, refund string
	var result event.OperationResult
	var fp payment.Fingerprint
	isAuthorized, fails := false, false
	if event.IsOperationResult(e) {
		if result, err = event.ReadOperationResult(e, &w.cfg.Keys); err != nil {
			return false, err
		}
		// The payment's client is told. The client of the operation, if it is another one, hears the answer.
		of := result.Of()
		client, key, fails = of.Client, of.Key, result.Status == payment.Failed
		switch {
		case result.Kind == payment.Refund:
			refund = result.Key
		case result.RefundKey != "":
			refund = result.RefundKey
		}
	} else {
		r, err := event.ReadResult(e, &w.cfg.Keys)
		if err != nil {
			return false, err
		}
		client, key, fp, isAuthorized = r.Client, r.Key, r.Fingerprint, r.Reason == payment.Authorized
	}
	// A refused operation changes nothing about its payment, and its client hears it by the answer.
	// Wallet holds are not payments of a client.
	if fails || strings.HasPrefix(key, payment.HoldPrefix) {
		return false, nil
	}
	// If an endpoint is missing here, it gets its row all the same, because the database makes the rows
	// (AddEvent).
	to := known.of[client]
	if len(to) == 0 {
		return false, nil
	}
	got, err := w.db.Find(ctx, &dbv1.FindRequest{IdempotencyKey: key, Client: client})
	if status.Code(err) == codes.NotFound {
		return false, nil // it was refused before the ledger knew it
	}
	if err != nil {
		return false, fmt.Errorf("find payment %s: %w", key, err)
	}
	r, err := rpc.ToRecord(got)
	if err != nil {
		return false, fmt.Errorf("find payment %s: the ledger's answer cannot be used: %w", key, err)
	}
	r.Client = client
	var tell ledger.WebhookEvent
	switch {
	case refund != "":
		at, note := w.refundedAt(ctx, refund, result)
		tell, err = refunded(r, refund, note, result, at)
	case result.Key == "" && fp != r.Claimed:
		return false, nil // another request with the key: its own outcome is a mismatch
	case isAuthorized:
		tell, err = authorized(r)
	case decidedType(r) == "":
		return false, nil
	default:
		tell, err = decided(r)
	}
	if err != nil {
		return false, err
	}
	return true, w.tell(ctx, to, tell)
}

// refundedAt returns when a refund was decided, and its client's words.
func (w *Webhooks) refundedAt(ctx context.Context, key string, result event.OperationResult) (time.Time, string) {
	got, err := w.db.Find(ctx, &dbv1.FindRequest{IdempotencyKey: key, Client: result.Client})
	if err == nil {
		if at := rpc.Time(got.GetDecidedAt()); !at.IsZero() {
			return at, got.GetNote()
		}
	}
	return result.SettledAt, ""
}

// ackWithin is how long an event waits for its first attempts before it is acknowledged. Its rows are
// stored by then. Waiting keeps the function awake, and slows the source down when endpoints are slow.
const ackWithin = time.Second

// tell stores an event with its deliveries, and sends as many of them as the bounds allow.
func (w *Webhooks) tell(ctx context.Context, to []*endpoint, e ledger.WebhookEvent) error {
	slots, mine := map[uuid.UUID]*slot{}, []uuid.UUID{}
	for _, n := range to {
		if !n.wants(e.Type) {
			continue
		}
		if s := w.bounds.take(n.ID); s != nil {
			slots[n.ID] = s
			mine = append(mine, n.ID)
		}
	}
	taken, err := w.store.AddEvent(ctx, e, mine, w.cfg.terms())
	var first sync.WaitGroup
	for _, d := range taken {
		s := slots[d.Endpoint]
		delete(slots, d.Endpoint)
		w.begin(d, s, &first)
	}
	for _, s := range slots {
		s.done(unknown)
	}
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { first.Wait(); close(ended) }()
	wait := time.NewTimer(ackWithin)
	defer wait.Stop()
	select {
	case <-ended:
	case <-wait.C:
	case <-ctx.Done():
	}
	return nil
}
