// Package gateway is the front door: it takes a payment over HTTP, asks fx, wallet and risk
// (assess.go), sends it through Kafka, and waits for its result (flight.go).
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"

	"pgw/functions/gateway/access"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/trace"
)

// Config of the function.
type Config struct {
	ReplicaURL string        `envconfig:"REPLICA_URL" desc:"URL at which this very replica takes results; needed with more than one. $NAMES stand for the environment's values, such as $HOSTNAME"`
	WakeURLs   []string      `envconfig:"WAKE_URLS" desc:"URLs to GET when a payment comes after a pause, so that functions at zero start side by side"`
	AnswerIn   time.Duration `envconfig:"RESULT_TIMEOUT" default:"5s" desc:"how long a client waits for its result"`
	MinWaiting int64         `envconfig:"MIN_WAITING" default:"256" desc:"payments that may be under way at once however slow the flow is"`
	MaxWaiting int64         `envconfig:"MAX_WAITING" default:"4096" desc:"payments that may be under way at once however fast it is; more are answered 503"`
	GrafanaURL GrafanaURL    `envconfig:"GRAFANA_URL" desc:"where browsers reach a Grafana with the dashboards: the page links to it and shows panels of it; empty: neither"`
	TraceURL   string        `envconfig:"TRACE_URL" desc:"where the page links to for a payment's trace, with {trace} for its id; empty: no link"`
	Keys       event.Keyring `envconfig:"EVENT_KEYS" required:"true" desc:"ID:BASE64 keys that sign events, separated by commas"`
	Origins    []string      `envconfig:"CORS_ORIGINS" desc:"origins whose pages may use the API from a browser; none when empty"`
	Access     access.Config
	Kafka      kafka.Config
}

// Publisher publishes requests.
type Publisher interface {
	Publish(ctx context.Context, topic, key string, e cloudevents.Event) error
}

// Clients are the functions that the gateway asks.
type Clients struct {
	FX, Wallet, Risk, DB grpc.ClientConnInterface
	// HTTP reaches other replicas, and the functions to be woken; nil is the default transport.
	HTTP http.RoundTripper
}

// Gateway is the function.
type Gateway struct {
	cfg     Config
	fx      fxv1.FxServiceClient
	wallet  walletv1.WalletServiceClient
	risk    riskv1.RiskServiceClient
	db      dbv1.DbClient
	publish Publisher
	access  *access.Access // nil: everybody may
	flights *flights
	relay   *http.Client
	waker   *waker
	doors   *admission
	reads   *reads
	now     func() time.Time
	log     *slog.Logger
	metrics *metrics
	seeded  atomic.Bool  // there was something to pay with
	page    func() *page // made when it is first asked for: a start should not wait for it

	senseless, relaying *trace.Outage
}

type metrics struct {
	fx, wallet, risk, publish, wait *prometheus.CounterVec
	stages                          *prometheus.HistogramVec
	payments                        *prometheus.CounterVec
	left                            prometheus.Counter
	results                         *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, admitted *admission) *metrics {
	auto := promauto.With(r)
	counter := func(name, help, label string, values ...string) *prometheus.CounterVec {
		return function.NewCounters(r, name, help, label, values...)
	}
	m := &metrics{
		fx: counter("pgw_fx_calls_total", "Conversions asked of fx, by result.", "result", "ok", "no_rate", "invalid", "error"),
		wallet: counter("pgw_wallet_check_total", "Account checks asked of wallet, by result.", "result", "ok", "error",
			string(payment.UnknownSender), string(payment.UnknownReceiver), string(payment.SenderBlocked), string(payment.ReceiverBlocked),
			string(payment.InsufficientFunds), string(payment.DailyLimitExceeded)),
		risk:    counter("pgw_risk_total", "Verdicts asked of risk, by result.", "result", append(verdicts(), "allow", "error")...),
		publish: counter("pgw_kafka_publish_total", "Payment requests published, by result: error was not sent, unknown may have been.", "result", "ok", "error", "unknown"),
		wait:    counter("pgw_kafka_wait_result_total", "Waits for a payment's result, by result.", "result", "ok", "timeout", "left"),
		payments: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_payments_total", Help: "Payments answered.",
		}, []string{"status", "reason"}),
		left: auto.NewCounter(prometheus.CounterOpts{
			Name: "pgw_payments_left_total", Help: "Payments that were not answered, since the client had left.",
		}),
		results: counter("pgw_gateway_results_total", "Result events, by what was done with them.", "outcome",
			"answered", "relayed", "relay_failed", "nobody_waits", "refused"),
		stages: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pgw_stage_seconds", Help: "How long each stage of a payment took.", Buckets: function.Latency,
		}, []string{"stage"}),
	}
	for _, reason := range payment.Reasons {
		m.payments.WithLabelValues(string(reason.Status()), string(reason))
	}
	for _, stage := range stageNames {
		m.stages.WithLabelValues(stage)
	}
	auto.NewGaugeFunc(prometheus.GaugeOpts{Name: "pgw_gateway_waiting", Help: "Payments under way now."}, admitted.waiting)
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pgw_gateway_waiting_limit", Help: "Payments that may be under way now: what the flow gets done in half of a client's wait.",
	}, admitted.limit)
	return m
}

// verdicts are risk's own words for its refusals.
func verdicts() (all []string) {
	for _, reason := range payment.Reasons {
		if verdict, ok := strings.CutPrefix(string(reason), "risk_"); ok && reason != payment.RiskUnavailable {
			all = append(all, verdict)
		}
	}
	return all
}

// Function describes the gateway.
var Function = function.Describe(function.Function{
	Name: "gateway", About: "takes payments over HTTP and answers them",
	Port: "18080", Calls: map[string]string{
		"fx": "prices payments", "wallet": "checks accounts", "risk": "judges payments", "db": "knows what became of a payment",
	},
	Publishes: function.Always, Events: "/events",
	HTTP: func() *http.Transport { return http.DefaultTransport.(*http.Transport).Clone() },
}, build)

// expand puts the environment's values into a replica's URL: replicas that are made from one description, as
// Compose does, differ in their HOSTNAME alone.
func expand(url string) (string, error) {
	var unset []string
	expanded := os.Expand(url, func(name string) string {
		value := os.Getenv(name)
		if value == "" {
			unset = append(unset, name)
		}
		return value
	})
	if len(unset) > 0 {
		return "", fmt.Errorf("REPLICA_URL: %s: not set: %s", url, strings.Join(unset, ", "))
	}
	return expanded, nil
}

func build(cfg Config, on function.Dependencies) (*function.Service, error) {
	var err error
	if cfg.ReplicaURL, err = expand(cfg.ReplicaURL); err != nil {
		return nil, err
	}
	allowed, err := access.Open(cfg.Access, on.Registry, on.Now, on.Log)
	if err != nil {
		return nil, err
	}
	to := Clients{
		FX: on.Conns["fx"], Wallet: on.Conns["wallet"], Risk: on.Conns["risk"], DB: on.Conns["db"], HTTP: on.HTTP,
	}.watch(on.Now, on.Log)
	publish := watchPublisher(on.Publisher, on.Now, on.Log)
	g := &Gateway{
		cfg: cfg, reads: newReads(on.Registry), senseless: trace.NewOutage(on.Log, on.Now, "a function answered what can't be used"),
		relaying: trace.NewOutage(on.Log, on.Now, "a result could not be relayed"),
		fx:       fxv1.NewFxServiceClient(to.FX), wallet: walletv1.NewWalletServiceClient(to.Wallet),
		risk: riskv1.NewRiskServiceClient(to.Risk), db: dbv1.NewDbClient(to.DB),
		publish: publish, access: allowed, flights: newFlights(), relay: &http.Client{Timeout: relayTimeout, Transport: to.HTTP},
		waker: newWaker(cfg.WakeURLs, to.HTTP), now: on.Now, log: on.Log,
		page: sync.OnceValue(func() *page { return newPage(cfg.GrafanaURL, cfg.TraceURL) }),
	}
	g.doors = newAdmission(cfg.MinWaiting, cfg.MaxWaiting, cfg.AnswerIn/2, time.Now)
	g.metrics = newMetrics(on.Registry, g.doors)
	guard, err := g.guard()
	if err != nil {
		return nil, err
	}
	return &function.Service{
		Events: g.takeResult, Routes: g.routes, Guard: guard, Ready: g.checkSeeds,
		// Results arrive over new connections: the port stays open until no client waits for one.
		BeforeDrain: g.doors.close,
	}, nil
}

// seedsTimeout bounds the question whether a new system is seeded.
const seedsTimeout = time.Second

// checkSeeds says what a new system lacks before the first payment can be made: rates or accounts. A payment that came
// earlier would be refused for a reason that is not true for long. A function that can't be asked is no reason: that is
// told to each payment.
func (g *Gateway) checkSeeds(ctx context.Context) error {
	if g.seeded.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, seedsTimeout)
	defer cancel()
	var rates *fxv1.ListRatesResponse
	var ratesErr error
	var asking sync.WaitGroup
	asking.Go(func() {
		rates, ratesErr = g.fx.ListRates(ctx, &fxv1.ListRatesRequest{QuoteCurrency: money.IDR.String()})
	})
	accounts, accountsErr := g.wallet.GetRandomAccounts(ctx, &walletv1.GetRandomAccountsRequest{Count: 1})
	asking.Wait()
	switch {
	case ratesErr == nil && !anyRate(rates):
		return errors.New("there are no rates yet: try again when the system is seeded")
	case accountsErr == nil && len(accounts.AccountIds) == 0:
		return errors.New("there are no accounts yet: try again when the system is seeded")
	case ratesErr == nil && accountsErr == nil:
		g.seeded.Store(true)
	}
	return nil
}

// anyRate tells whether there is a rate of another currency than the rupiah, which always has one to itself.
func anyRate(rates *fxv1.ListRatesResponse) bool {
	return slices.ContainsFunc(rates.GetRates(), func(r *fxv1.RateInForce) bool { return r.BaseCurrency != money.IDR.String() })
}

// reply is an outcome with what else the client should know.
type reply struct {
	payment.Outcome
	answered bool      // by the whole flow: a result came
	message  string    // what is wrong, for a person
	code     int       // of HTTP, where it is not the reason's
	deadline time.Time // when the outcome of a payment that was not decided in time is final
	stages   stages
}

func decline(reason payment.Reason, message string) reply {
	return reply{Outcome: payment.Decline(reason), message: message}
}

// pay takes one payment from the client's words to its outcome. tell, where it is not nil, hears of each stage
// as it ends.
func (g *Gateway) pay(ctx context.Context, r payment.Payment, tell func(stageTime)) (out reply) {
	took := stages{tell: tell}
	underWay, ok := g.doors.enter()
	if !ok && g.doors.closed() {
		return decline(payment.Overloaded, "this replica is being stopped; another one takes the same request")
	}
	if !ok {
		return decline(payment.Overloaded, fmt.Sprintf("%d payments are under way, as many as can be answered in time", underWay))
	}
	defer func() { g.doors.leave(out.answered) }()
	g.waker.wake()

	r.AcceptedAt = g.now().UTC()
	r.Deadline = r.AcceptedAt.Add(payment.DecideWithin)
	r.AttemptID = uuid.Must(uuid.NewV7()).String()
	ctx = trace.WithKey(ctx, r.Key)
	ctx, cancel := context.WithTimeout(ctx, g.cfg.AnswerIn)
	defer cancel()

	if err := g.checkSeeds(ctx); err != nil {
		return decline(payment.Overloaded, err.Error())
	}

	// The same request is under way at this replica: its outcome is this one's, and nothing is asked twice.
	id := flightID{r.Key, r.Fingerprint()}
	if f := g.flights.join(id); f != nil {
		defer g.flights.leave(id, f)
		return g.await(ctx, f, r, true, &took)
	}

	r, no := g.assess(ctx, r, &took)
	if no.reason == "" {
		return g.send(ctx, id, r, &took)
	}
	var outcome payment.Outcome
	var err error
	known := true
	begun := time.Now()
	switch no.kind {
	case refused:
		outcome, err = g.refuse(ctx, r, no.reason)
		g.stage(&took, "refuse", time.Since(begun))
	case unpriced:
		r, outcome, known, err = g.lookUp(ctx, r)
		g.stage(&took, "lookup", time.Since(begun))
	case notAsked:
		known = false
	}
	switch {
	case err != nil:
		// What stands in the ledger is not known, so neither is the answer.
		if !left(ctx) {
			g.log.DebugContext(ctx, "a refusal could not be recorded or checked", "error", err)
		}
		return reply{Outcome: payment.Decline(payment.LedgerUnavailable), message: notSentOn, stages: took}
	case !known || outcome.Reason == no.reason:
		return reply{Outcome: payment.Decline(no.reason), message: no.message, stages: took}
	case outcome.Status != "":
		return reply{Outcome: outcome, stages: took}
	}
	// Held, and not decided: the ledger finishes it when it sees the request again.
	return g.send(ctx, id, r, &took)
}

// left tells that nobody waits for an answer any more: the client has hung up. Whatever fails because of that is no
// function's fault.
func left(ctx context.Context) bool { return errors.Is(ctx.Err(), context.Canceled) }

// send publishes the request and waits for its result, unless a twin has done so meanwhile.
func (g *Gateway) send(ctx context.Context, id flightID, r payment.Payment, took *stages) reply {
	f, leads := g.flights.start(id, r.AttemptID)
	defer g.flights.leave(id, f)
	if !leads {
		return g.await(ctx, f, r, true, took)
	}
	begun := time.Now()
	err := g.publishRequest(ctx, r)
	g.stage(took, "publish", time.Since(begun))
	switch {
	case err == nil:
		g.metrics.publish.WithLabelValues("ok").Inc()
	case errors.Is(err, kafka.ErrNotSent):
		g.flights.finish(id, event.PaymentResult{Outcome: payment.Decline(payment.QueuePublishError)})
		if !left(ctx) {
			g.metrics.publish.WithLabelValues("error").Inc()
		}
		return reply{Outcome: payment.Decline(payment.QueuePublishError), message: notSentOn, stages: *took}
	default:
		// The broker may have the request though it did not say so: then a result comes.
		if !left(ctx) {
			g.metrics.publish.WithLabelValues("unknown").Inc()
		}
	}
	return g.await(ctx, f, r, false, took)
}

func (g *Gateway) publishRequest(ctx context.Context, r payment.Payment) error {
	outbox := event.Outbox{Source: "/pgw/gateway", Keys: &g.cfg.Keys, To: g.publish, Now: g.now}
	return outbox.Request(ctx, g.cfg.Kafka.RequestTopic, r, g.cfg.ReplicaURL)
}

// await waits for a flight's result. follows tells that another request of the same payment was first.
func (g *Gateway) await(ctx context.Context, f *flight, r payment.Payment, follows bool, took *stages) reply {
	begun := time.Now()
	_, span := trace.Start(ctx, "await result", trace.Internal)
	defer span.End()
	select {
	case <-f.done:
	case <-ctx.Done():
		over := "timeout"
		if left(ctx) {
			over = "left"
		}
		g.metrics.wait.WithLabelValues(over).Inc()
		g.stage(took, "wait", time.Since(begun))
		deadline := r.Deadline
		return reply{
			Outcome: payment.Decline(payment.QueueTimeout), deadline: deadline, stages: *took,
			message: "not decided yet; GET /api/payments/{idempotency_key} tells the outcome, which is final at the latest a minute after the deadline",
		}
	}
	g.metrics.wait.WithLabelValues("ok").Inc()
	result := f.result
	if !result.ReceivedAt.IsZero() && !follows {
		g.stage(took, "queue", result.ReceivedAt.Sub(f.published))
		g.stage(took, "reserve", time.Duration(result.ReserveMicros)*time.Microsecond)
		g.stage(took, "commit", time.Duration(result.CommitMicros)*time.Microsecond)
		g.stage(took, "settle", result.SettledAt.Sub(result.ReceivedAt))
		g.stage(took, "return", g.now().Sub(result.SettledAt))
	} else {
		g.stage(took, "wait", time.Since(begun))
	}
	// A leader that could not publish ends the flight too.
	answered := result.Reason != payment.QueuePublishError
	out := result.Outcome
	if !answered {
		return reply{Outcome: out, message: notSentOn, stages: *took}
	}
	// SUCCESS is the first attempt's to hear: not that of one who waited along, nor of a later one who is
	// reached by the first one's result, delivered again.
	if (follows || result.AttemptID != f.attempt) && out.Status == payment.Success {
		out.Status, out.Reason = payment.SuccessReplay, payment.DuplicateIdempo
	}
	return reply{Outcome: out, answered: answered, stages: *took}
}

// stageNames are all stages that a payment may pass.
var stageNames = []string{"fx", "wallet", "risk", "refuse", "lookup", "publish", "queue", "reserve", "commit", "settle", "return", "wait", "total"}

// stages are a payment's stages in order, for Server-Timing.
type stages struct {
	times []stageTime
	tell  func(stageTime) // as each ends; nil where nobody listens
}

type stageTime struct {
	name string
	took time.Duration
}

func (t stageTime) millis() float64 { return float64(t.took.Microseconds()) / 1000 }

func (g *Gateway) stage(s *stages, name string, took time.Duration) {
	g.stageOf(context.Background(), s, name, took)
}

// stageOf is stage with ctx's trace as an exemplar.
func (g *Gateway) stageOf(ctx context.Context, s *stages, name string, took time.Duration) {
	// Two machines' clocks may disagree by more than a stage takes.
	took = max(took, 0)
	s.times = append(s.times, stageTime{name, took})
	trace.Observe(ctx, g.metrics.stages.WithLabelValues(name), took.Seconds())
	if s.tell != nil {
		s.tell(stageTime{name, took})
	}
}
