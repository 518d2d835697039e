// Package gateway is the entry point for clients. It takes a payment over HTTP, asks fx, wallet and
// risk (assess.go), publishes the payment to Kafka, and waits for its result (flight.go).
package gateway

import (
	"cmp"
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

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"

	"pgw/functions/gateway/access"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	webhooksv1 "pgw/proto/gen/webhooks/v1"
	"pgw/shared/deadletter"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// Config of the function.
type Config struct {
	ReplicaURL  string        `envconfig:"REPLICA_URL" desc:"URL at which this replica takes results; needed if there is more than one replica. $NAME is replaced by the environment's value, such as $HOSTNAME"`
	WakeURLs    []string      `envconfig:"WAKE_URLS" desc:"URLs to GET when a payment arrives after a pause; this starts the functions that are scaled to zero at the same time"`
	AnswerIn    time.Duration `envconfig:"RESULT_TIMEOUT" default:"5s" desc:"how long a client waits for its result"`
	MinWaiting  int64         `envconfig:"MIN_WAITING" default:"256" desc:"the smallest limit of payments under way, even if the flow is slow"`
	MaxWaiting  int64         `envconfig:"MAX_WAITING" default:"4096" desc:"the largest limit of payments under way, even if the flow is fast; payments above the limit get 503"`
	GrafanaURL  GrafanaURL    `envconfig:"GRAFANA_URL" desc:"URL at which browsers reach a Grafana with the dashboards; the page links to it and shows its panels; empty: no link and no panels"`
	Prometheus  string        `envconfig:"PROMETHEUS_URL" desc:"URL of a Prometheus with the gateway's metrics, for the report of activity; empty: the ledger counts"`
	TraceURL    string        `envconfig:"TRACE_URL" desc:"URL of a payment's trace, to which the page links; {trace} is replaced by the trace id; empty: no link"`
	Keys        event.Keyring `envconfig:"EVENT_KEYS" required:"true" desc:"keys that sign events, as ID:BASE64:v2, separated by commas"`
	Origins     []string      `envconfig:"CORS_ORIGINS" desc:"origins whose pages may use the API from a browser; empty: none"`
	QuoteTTL    time.Duration `envconfig:"QUOTE_TTL" default:"30s" desc:"how long a firm quote can be used; 1s to 5m"`
	MaxQuotes   int           `envconfig:"MAX_QUOTES" default:"100" desc:"the most open firm quotes of one client; requests for more get 429"`
	HoldFor     time.Duration `envconfig:"AUTHORIZE_FOR" default:"168h" desc:"how long a payment with capture: manual holds its money for a capture; 1m to 720h"`
	LogPayments bool          `envconfig:"LOG_PAYMENTS" default:"false" desc:"true: log a line at level info for each payment that is answered"`
	// GroupPrefix is that of kafkasource. The gateway only reads how far the groups are behind.
	GroupPrefix string `envconfig:"KAFKA_GROUP_PREFIX" desc:"prefix of each consumer group's name, for several systems that share a Kafka; /status reads the groups' lag"`
	// LetterToken is an operator's, and only the calls about dead letters have it.
	LetterToken string `envconfig:"DEAD_LETTER_TOKEN" desc:"an operator's RPC token, with which the gateway lists and redrives dead letters for operators; needed if db has RPC_AUTH=required; without it they are not offered there"`
	Access      access.Config
	Kafka       kafka.Config
}

// quoteTTL is the default of QUOTE_TTL.
const quoteTTL = 30 * time.Second

// Clients are the connections to the functions that the gateway asks.
type Clients struct {
	FX, Wallet, Risk, DB, Webhooks grpc.ClientConnInterface
	// HTTP reaches other replicas and the functions to wake; nil means the default transport.
	HTTP http.RoundTripper
}

// Gateway is the function.
type Gateway struct {
	cfg        Config
	fx         fxv1.FxServiceClient
	wallet     walletv1.WalletServiceClient
	risk       riskv1.RiskServiceClient
	db         dbv1.DbClient
	webhooks   webhooksv1.WebhooksClient
	publish    event.Publisher
	access     *access.Access // nil: requests are not checked
	flights    *flights[event.PaymentResult]
	asked      *flights[event.OperationResult] // operations under way
	relay      *http.Client
	waker      *waker
	admitted   *admission
	reads      *reads
	operations *operations
	letters    *deadletter.Box
	prometheus ranger // nil: there is none
	now        func() time.Time
	log        *slog.Logger
	metrics    *metrics
	seeded     atomic.Bool  // rates and accounts were found
	lacking    rpc.Lacking  // wallet's GetAccounts: accounts are read one by one
	page       func() *page // built at the first request, which keeps the start short

	senseless, relaying, counting *trace.Outage
}

type metrics struct {
	fx, wallet, risk, publish, wait *prometheus.CounterVec
	stages                          *prometheus.HistogramVec
	payments                        *prometheus.CounterVec
	left                            prometheus.Counter
	results                         *prometheus.CounterVec
	quotes, quoteReads              *prometheus.CounterVec
	operations                      *prometheus.CounterVec
	operationSeconds                *prometheus.HistogramVec
}

func newMetrics(r prometheus.Registerer, admitted *admission) *metrics {
	auto := promauto.With(r)
	counter := func(name, help, label string, values ...string) *prometheus.CounterVec {
		return function.NewCounters(r, name, help, label, values...)
	}
	m := &metrics{
		fx: counter("pgw_fx_calls_total", "Prices asked of fx, by result.", "result", "ok", "no_rate", "invalid", "error"),
		wallet: counter("pgw_wallet_check_total", "Account checks asked of wallet, by result.", "result", "ok", "error",
			string(payment.UnknownSender), string(payment.UnknownReceiver), string(payment.SenderBlocked), string(payment.ReceiverBlocked),
			string(payment.InsufficientFunds), string(payment.DailyLimitExceeded)),
		risk:    counter("pgw_risk_total", "Verdicts asked of risk, by result.", "result", append(verdicts(), "allow", "error")...),
		publish: counter("pgw_kafka_publish_total", "Payment requests published, by result: error means not sent, unknown means perhaps sent.", "result", "ok", "error", "unknown"),
		wait:    counter("pgw_kafka_wait_result_total", "Waits for a payment's result, by result.", "result", "ok", "timeout", "left"),
		payments: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_payments_total", Help: "Payments answered.",
		}, []string{"status", "reason"}),
		left: auto.NewCounter(prometheus.CounterOpts{
			Name: "pgw_payments_left_total", Help: "Payments that were not answered because the client had left.",
		}),
		results: counter("pgw_gateway_results_total", "Result events, by what was done with them.", "outcome",
			"answered", "relayed", "relay_failed", "nobody_waits", "refused"),
		quotes: counter("pgw_gateway_quotes_total", "Firm quotes asked for, by result.", "result",
			"given", "too_many", "invalid", "unsupported_currency", "unknown_account", "error"),
		quoteReads: counter("pgw_gateway_quote_reads_total",
			"Firm quotes read for payments, by result; mismatch means that there is no such quote for the payment.", "result", "ok", "mismatch", "error"),
		operations: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "pgw_gateway_operations_total",
			Help: "Operations on payments answered, by result: not_sent means that nothing was published, unknown that there was no result in time.",
		}, []string{"operation", "result"}),
		operationSeconds: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pgw_gateway_operation_seconds", Help: "How long each operation took until it was answered.", Buckets: function.Latency,
		}, []string{"operation"}),
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
	for _, kind := range payment.OperationKinds {
		m.operationSeconds.WithLabelValues(string(kind))
		for _, result := range []operationResult{
			operationDone, operationReplayed, operationRefused, operationInvalid, operationNotSent, operationUnknown,
		} {
			m.operations.WithLabelValues(string(kind), string(result))
		}
	}
	auto.NewGaugeFunc(prometheus.GaugeOpts{Name: "pgw_gateway_waiting", Help: "Payments under way now."}, admitted.waiting)
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pgw_gateway_waiting_limit", Help: "The limit of payments under way: the number that the flow answers in half of RESULT_TIMEOUT.",
	}, admitted.limit)
	return m
}

// verdicts are the reasons of risk for its refusals, without the prefix risk_.
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
		"webhooks": "tells clients what became of their payments",
	},
	Publishes: function.Always, Events: "/events",
	HTTP: func() *http.Transport { return http.DefaultTransport.(*http.Transport).Clone() },
}, build)

// expand replaces $NAME in a replica's URL by the environment's value. Replicas that share one
// description, as in Compose, differ only in HOSTNAME. expand returns an error for a variable that
// is not set.
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
	cfg.QuoteTTL = cmp.Or(cfg.QuoteTTL, quoteTTL)
	if cfg.QuoteTTL < payment.MinQuoteLifetime || cfg.QuoteTTL > payment.MaxQuoteLifetime {
		return nil, fmt.Errorf("QUOTE_TTL: is %s; must be %s to %s", cfg.QuoteTTL, payment.MinQuoteLifetime, payment.MaxQuoteLifetime)
	}
	cfg.HoldFor = cmp.Or(cfg.HoldFor, payment.DefaultAuthorize)
	if cfg.HoldFor < payment.MinAuthorize || cfg.HoldFor > payment.MaxAuthorize {
		return nil, fmt.Errorf("AUTHORIZE_FOR: is %s; must be %s to %s", cfg.HoldFor, payment.MinAuthorize, payment.MaxAuthorize)
	}
	allowed, err := access.Open(cfg.Access, on.Registry, on.Now, on.Log)
	if err != nil {
		return nil, err
	}
	to := Clients{
		FX: on.Conns["fx"], Wallet: on.Conns["wallet"], Risk: on.Conns["risk"], DB: on.Conns["db"], Webhooks: on.Conns["webhooks"], HTTP: on.HTTP,
	}
	g := &Gateway{
		cfg: cfg, reads: newReads(on.Registry), senseless: trace.NewOutage(on.Log, on.Now, "a function's answer cannot be used"),
		relaying: trace.NewOutage(on.Log, on.Now, "a result could not be relayed"),
		counting: trace.NewOutage(on.Log, on.Now, "Prometheus could not be asked"),
		fx:       fxv1.NewFxServiceClient(to.FX), wallet: walletv1.NewWalletServiceClient(to.Wallet),
		risk: riskv1.NewRiskServiceClient(to.Risk), db: dbv1.NewDbClient(to.DB), webhooks: webhooksv1.NewWebhooksClient(to.Webhooks),
		publish: on.Publisher, access: allowed, flights: newFlights[event.PaymentResult](), relay: &http.Client{Timeout: relayTimeout, Transport: to.HTTP},
		asked: newFlights[event.OperationResult](),
		waker: newWaker(cfg.WakeURLs, to.HTTP), now: on.Now, log: on.Log,
		page: sync.OnceValue(func() *page { return newPage(cfg.GrafanaURL, cfg.TraceURL) }),
	}
	if g.prometheus, err = openPrometheus(cfg.Prometheus); err != nil {
		return nil, err
	}
	g.letters = newLetters(cfg, on)
	g.operations = newOperations(cfg, on, g.db, g.letters)
	g.admitted = newAdmission(cfg.MinWaiting, cfg.MaxWaiting, cfg.AnswerIn/2, time.Now)
	g.metrics = newMetrics(on.Registry, g.admitted)
	guard, err := g.guard()
	if err != nil {
		return nil, err
	}
	return &function.Service{
		Events: g.takeResult, Routes: g.routes, Guard: guard, Ready: g.checkSeeds,
		// Results arrive over new connections, so the port stays open until no client waits for
		// one.
		BeforeDrain: g.admitted.close,
	}, nil
}

// seedsTimeout is the time limit of the check whether a new system is seeded.
const seedsTimeout = time.Second

// checkSeeds returns an error while a new system has no rates or no accounts. Without this check,
// an early payment would get a refusal that is soon wrong. A function that cannot be asked is not
// an error here: each payment reports it.
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

// anyRate reports whether there is a rate for a currency other than the rupiah. The rupiah always
// has a rate to itself.
func anyRate(rates *fxv1.ListRatesResponse) bool {
	return slices.ContainsFunc(rates.GetRates(), func(r *fxv1.RateInForce) bool { return r.BaseCurrency != money.IDR.String() })
}

// reply is an outcome with the additional data of the response.
type reply struct {
	payment.Outcome
	answered bool   // a result of the whole flow arrived
	replayed bool   // the outcome is that of an earlier request with the key
	message  string // describes the problem, for a person
	wrong    payment.Problems
	code     int       // the HTTP status, if it is not that of the reason
	deadline time.Time // the payment's deadline, if it was not decided in time
	stages   stages
}

func decline(reason payment.Reason, message string) reply {
	return reply{Outcome: payment.Decline(reason), message: message}
}

// pay serves one payment and returns its reply. It calls onStage, if not nil, at the end of each
// stage.
func (g *Gateway) pay(ctx context.Context, r payment.Payment, onStage func(stageTime)) (out reply) {
	took := stages{times: make([]stageTime, 0, len(stageNames)), onStage: onStage}
	if full := g.enter(); full != "" {
		return decline(payment.Overloaded, full)
	}
	defer func() { g.admitted.leave(out.answered) }()
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

	// If the same request is under way at this replica, this one gets its outcome, and no function
	// is asked again.
	id := flightID{r.Scoped(), r.Fingerprint()}
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
	known, replayed := true, false
	begun := time.Now()
	switch no.kind {
	case refused:
		outcome, err = g.refuse(ctx, r, no.reason)
		replayed = outcome.Replay
		g.stage(&took, "refuse", time.Since(begun))
	case unpriced:
		r, outcome, known, err = g.lookUp(ctx, r)
		replayed = known
		g.stage(&took, "lookup", time.Since(begun))
	case notAsked:
		known = false
	}
	switch {
	case err != nil:
		// The outcome in the ledger is unknown, so there is no outcome to report.
		if !left(ctx) {
			g.log.DebugContext(ctx, "a refusal could not be recorded or checked", "error", err)
		}
		return reply{Outcome: payment.Decline(payment.LedgerUnavailable), message: notSentOn, stages: took}
	case !known || outcome.Reason == no.reason:
		return reply{Outcome: payment.Decline(no.reason), message: no.message, replayed: replayed, stages: took}
	case outcome.Status != "":
		return reply{Outcome: outcome, replayed: replayed, stages: took}
	}
	// The money is held and the payment is not decided. The ledger completes the payment when it
	// gets the request again.
	return g.send(ctx, id, r, &took)
}

// enter admits a request that waits for its result, or returns why it does not.
func (g *Gateway) enter() (full string) {
	underWay, ok := g.admitted.enter()
	switch {
	case ok:
		return ""
	case g.admitted.closed():
		return "this replica is being stopped; another replica takes the same request"
	}
	return fmt.Sprintf("%d payments are under way, as many as can be answered in time", underWay)
}

// left reports whether the client has disconnected. A failure after that is not a function's fault.
func left(ctx context.Context) bool { return errors.Is(ctx.Err(), context.Canceled) }

// send publishes the request and waits for its result. If the same request was published in the
// meantime, send only waits.
func (g *Gateway) send(ctx context.Context, id flightID, r payment.Payment, took *stages) reply {
	f, leads := g.flights.start(id, r.AttemptID)
	defer g.flights.leave(id, f)
	if !leads {
		return g.await(ctx, f, r, true, took)
	}
	begun := time.Now()
	err := g.outbox().Request(ctx, g.cfg.Kafka.RequestTopic, r, g.cfg.ReplicaURL)
	g.stage(took, "publish", time.Since(begun))
	if !g.perhapsSent(ctx, err) {
		g.flights.finish(id, event.PaymentResult{Outcome: payment.Decline(payment.QueuePublishError)})
		return reply{Outcome: payment.Decline(payment.QueuePublishError), message: notSentOn, stages: *took}
	}
	return g.await(ctx, f, r, false, took)
}

func (g *Gateway) outbox() event.Outbox {
	return event.Outbox{Source: "/pgw/gateway", Keys: &g.cfg.Keys, To: g.publish, Now: g.now}
}

// perhapsSent counts the result of publishing a request, and reports whether the broker may have it. It
// may have it although it did not confirm it. In that case a result arrives.
func (g *Gateway) perhapsSent(ctx context.Context, err error) bool {
	result := "unknown"
	switch {
	case err == nil:
		result = "ok"
	case errors.Is(err, kafka.ErrNotSent):
		result = "error"
	}
	if err == nil || !left(ctx) {
		g.metrics.publish.WithLabelValues(result).Inc()
	}
	return result != "error"
}

// await waits for a flight's result. follows means that another request of the same payment leads
// the flight.
func (g *Gateway) await(ctx context.Context, f *flight[event.PaymentResult], r payment.Payment, follows bool, took *stages) reply {
	begun := time.Now()
	if !g.awaits(ctx, f.done) {
		g.stage(took, "wait", time.Since(begun))
		deadline := r.Deadline
		return reply{
			Outcome: payment.Decline(payment.QueueTimeout), deadline: deadline, stages: *took,
			message: "not decided yet; GET /api/payments/{idempotency_key} returns the outcome, which is final at the latest one minute after the deadline",
		}
	}
	result := f.result
	if !result.ReceivedAt.IsZero() && !follows {
		g.stage(took, "queue", result.ReceivedAt.Sub(f.published))
		g.stage(took, "reserve", time.Duration(result.ReserveMicros)*time.Microsecond)
		if commit := time.Duration(result.CommitMicros) * time.Microsecond; commit > 0 {
			g.stage(took, "commit", commit)
		} else {
			took.add("commit", 0) // there was no such call, and the metric has only calls that there were
		}
		g.stage(took, "settle", result.SettledAt.Sub(result.ReceivedAt))
		g.stage(took, "return", g.now().Sub(result.SettledAt))
	} else {
		g.stage(took, "wait", time.Since(begun))
	}
	// A leader that could not publish also ends the flight.
	answered := result.Reason != payment.QueuePublishError
	out := result.Outcome
	if !answered {
		return reply{Outcome: out, message: notSentOn, stages: *took}
	}
	out, replayed := toldTo(out, follows || result.AttemptID != f.attempt)
	return reply{Outcome: out, answered: answered, replayed: replayed, stages: *took}
}

// awaits waits until a flight is done, and counts how the wait ended. It returns false if ctx ends first.
func (g *Gateway) awaits(ctx context.Context, done <-chan struct{}) bool {
	_, span := trace.Start(ctx, "await result", trace.Internal)
	defer span.End()
	over := "ok"
	select {
	case <-done:
	case <-ctx.Done():
		over = "timeout"
		if left(ctx) {
			over = "left"
		}
	}
	g.metrics.wait.WithLabelValues(over).Inc()
	return over == "ok"
}

// toldTo returns a result's outcome as a request hears it, and whether it is a replay. Only the first
// attempt gets SUCCESS. A request that joined the flight gets a replay. So does a later attempt that
// gets the first attempt's result because that was delivered again.
func toldTo(o payment.Outcome, later bool) (payment.Outcome, bool) {
	replayed := later || o.Status == payment.SuccessReplay
	if replayed && o.Status == payment.Success {
		o.Status, o.Reason = payment.SuccessReplay, payment.DuplicateIdempo
	}
	return o, replayed
}

// stageNames are all stages of a payment.
var stageNames = []string{"fx", "wallet", "risk", "refuse", "lookup", "publish", "queue", "reserve", "commit", "settle", "return", "wait", "total"}

// stages are the stages of a payment in order, for Server-Timing.
type stages struct {
	times   []stageTime
	onStage func(stageTime) // called at the end of each stage; may be nil
}

type stageTime struct {
	name string
	took time.Duration
}

func (t stageTime) millis() float64 { return float64(t.took.Microseconds()) / 1000 }

func (g *Gateway) stage(s *stages, name string, took time.Duration) {
	g.stageOf(context.Background(), s, name, took)
}

// stageOf is like stage, and adds the trace of ctx as an exemplar.
func (g *Gateway) stageOf(ctx context.Context, s *stages, name string, took time.Duration) {
	// The clocks of two machines may differ by more than the length of a stage.
	took = max(took, 0)
	trace.Observe(ctx, g.metrics.stages.WithLabelValues(name), took.Seconds())
	s.add(name, took)
}

// add adds a stage without counting it in the metrics, which are those of payments.
func (s *stages) add(name string, took time.Duration) {
	s.times = append(s.times, stageTime{name, took})
	if s.onStage != nil {
		s.onStage(stageTime{name, took})
	}
}
