package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/gofrs/flock"
	"github.com/google/renameio/v2/maybe"

	"pgw/functions/gateway"
	"pgw/functions/gateway/access"
	"pgw/functions/pgw/allinone"
	"pgw/functions/pgw/table"
	"pgw/functions/risk"
	"pgw/shared/embedded"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/postgres"
	"pgw/shared/trace"
)

const (
	// In one process, more partitions add no parallelism. With one partition, more records are
	// produced and fetched together. That is a third more payments per second than with eight.
	localPartitions = 1

	readyWithin = 60 * time.Second
)

// runCommand runs the whole system in one process: the same functions and manifests as in
// production, with a Kafka broker and a private Postgres unless others are named.
type runCommand struct {
	DataDir     string          `env:"PGW_DATA_DIR" default:".pgw" help:"Directory of data, keys and run.json."`
	Fresh       bool            `help:"Delete the data of Postgres and Kafka in the data directory first; the keys stay."`
	Database    string          `name:"database-url" env:"DATABASE_URL" help:"Use this Postgres instead of a private one."`
	Schema      postgres.Schema `name:"ledger-schema" env:"LEDGER_SCHEMA" help:"The ledger's schema, if several ledgers share the database."`
	Brokers     []string        `name:"kafka-brokers" env:"KAFKA_BROKERS" help:"Use this Kafka instead of a broker in the process."`
	Requests    string          `name:"request-topic" env:"KAFKA_REQ_TOPIC" default:"payments.request" help:"The topic's name, if another is wanted."`
	Results     string          `name:"result-topic" env:"KAFKA_RES_TOPIC" default:"payments.result"`
	DeadLetters string          `name:"deadletter-topic" env:"KAFKA_DEADLETTER_TOPIC" default:"payments.deadletter"`
	Parked      string          `name:"parked-topic" env:"KAFKA_PARKED_TOPIC" default:"payments.parked"`
	Accounts    string          `name:"accounts-topic" env:"KAFKA_ACCOUNTS_TOPIC" default:"ledger.accounts"`
	LogLevel    string          `env:"LOG_LEVEL" help:"debug, info, warn or error. The default is warn, and info with --log-payments."`
	LogFormat   string          `env:"LOG_FORMAT" default:"text" enum:"text,json" help:"text or json."`
	LogPayments bool            `env:"LOG_PAYMENTS" help:"Log a line for each payment that the gateway answers."`
	TraceURL    string          `env:"TRACE_URL" help:"The URL of a payment's trace for the page's links, with {trace} for the trace id."`
	EventKey    string          `name:"event-keys" env:"EVENT_KEYS" help:"Keys that sign events. If empty, they are made and stored in the data directory."`
	WebhookKeys string          `name:"webhook-secret-keys" env:"WEBHOOK_SECRET_KEYS" help:"Keys that encrypt the secrets of webhooks. If empty, one is made and stored in the data directory."`
	RiskSecret  string          `env:"RISK_SECRET" help:"The secret key of risk's random draw. If empty, it is made and stored in the data directory."`

	Repository string `name:"postgres-repository" env:"PGW_POSTGRES_REPOSITORY" help:"The Maven repository to download a PostgreSQL from, if none is installed. If empty, Maven Central."`

	Grafana gateway.GrafanaURL `name:"grafana-url" env:"GRAFANA_URL" help:"The URL at which browsers reach a Grafana with the dashboards. The page links to it and shows its panels."`

	Admin     string       `name:"admin-port" env:"ADMIN_PORT" help:"A port on loopback for /metrics, /healthz and /readyz of the gateway, without its limits; /metrics is then only there. The other functions have theirs on their ports, which are on loopback too."`
	Offset    int          `name:"port-offset" env:"PGW_PORT_OFFSET" help:"Add this to each port that is not given itself, for a second pgw run on this machine. It needs a data directory of its own."`
	KafkaPort *int         `env:"PGW_KAFKA_PORT" placeholder:"${kafka_port}" help:"Port of the broker on loopback; 0 takes any free one."`
	Ports     kong.Plugins `embed:""` // one for each of allinone.Listening
}

// defaultKafkaPort is the port of the broker in the process.
const defaultKafkaPort = "19092"

// portFlags are the flags for the functions' ports.
func portFlags() (flags kong.Plugins) {
	for _, name := range allinone.Listening() {
		f, _ := table.Functions.Find(name)
		flags = append(flags, reflect.New(reflect.StructOf([]reflect.StructField{{
			Name: "Port", Type: reflect.TypeFor[*int](), Tag: reflect.StructTag(fmt.Sprintf(
				`name:"%s-port" env:"PGW_%s_PORT" placeholder:"%s" help:"Port of %s on loopback; 0 takes any free one."`, name, strings.ToUpper(name), f.Port, name)),
		}})).Interface())
	}
	return flags
}

// Run starts everything, waits until ctx ends, and drains.
func (c runCommand) Run(ctx context.Context) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel())); err != nil {
		return fmt.Errorf("LOG_LEVEL: %w", err)
	}
	log := function.LogConfig{Level: level, Format: c.LogFormat}.Logger()
	slog.SetDefault(log)
	stop, err := trace.Setup(ctx, "pgw", log)
	if err != nil {
		return err
	}
	defer stop()
	function.CollectLess()

	unlock, err := c.lockDataDir()
	if err != nil {
		return err
	}
	defer unlock()
	listeners, broker, err := c.listen()
	if err != nil {
		return err
	}
	if broker != nil {
		defer broker.Close() // Kafka has closed it already, unless the start failed before
	}
	var admin net.Listener // closed with the gateway's port
	if c.Admin != "" {
		if admin, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", c.Admin)); err != nil {
			return errors.Join(fmt.Errorf("ADMIN_PORT: %w", err), closeAll(listeners))
		}
		defer admin.Close()
	}
	keys, err := c.eventKeys()
	if err != nil {
		return err
	}
	riskSecret, err := c.riskSecret()
	if err != nil {
		return err
	}
	webhookKeys, err := c.kept("webhook-secret-keys", c.WebhookKeys, func() (string, error) { return allinone.NewWebhookKey(), nil })
	if err != nil {
		return err
	}
	sys := &system{
		log: log, keys: keys, riskSecret: riskSecret, webhookKeys: webhookKeys, listeners: listeners, broker: broker, admin: admin, dataDir: c.DataDir,
		logPayments: c.LogPayments, links: allinone.Links{Grafana: c.Grafana, Trace: c.TraceURL},
	}
	if err := function.ReadEnvironment(&sys.access); err != nil {
		return err
	}
	defer sys.abortOnSecondSignal()()
	// Everything that was started is closed in the reverse order, however this function returns.
	defer sys.close()
	if err = sys.startStores(ctx, c); err == nil {
		err = sys.serve(ctx)
	}
	if ctx.Err() != nil && !sys.ready {
		return interrupted{"before pgw was ready; everything that had started is stopped"}
	}
	return err
}

// abortOnSecondSignal ends the process and its Postgres at once when a second signal arrives, until
// stop is called. The first signal drains.
func (s *system) abortOnSecondSignal() (stop func()) {
	signals, done := make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for range 2 {
			select {
			case <-signals:
			case <-done:
				return
			}
		}
		s.abort.Now()
		os.Remove(s.runFile())
		os.Exit(report(os.Stderr, interrupted{"again: stopped at once; the next start recovers what had been accepted"}))
	}()
	return func() { signal.Stop(signals); close(done) }
}

// logLevel is the level of the log. The lines of payments have the level info.
func (c runCommand) logLevel() string {
	switch {
	case c.LogLevel != "":
		return c.LogLevel
	case c.LogPayments:
		return "info"
	}
	return "warn"
}

func (c runCommand) lockDataDir() (unlock func(), err error) {
	if err := os.MkdirAll(c.DataDir, 0o755); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock := flock.New(filepath.Join(c.DataDir, "lock"))
	locked, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", c.DataDir, err)
	}
	if !locked {
		return nil, fmt.Errorf("another pgw run uses the data directory %s: stop it, or set PGW_DATA_DIR and PGW_PORT_OFFSET for this one", c.DataDir)
	}
	if c.Fresh {
		if err := errors.Join(embedded.RemovePostgres(c.postgresDir()), os.RemoveAll(c.kafkaDir())); err != nil {
			return nil, fmt.Errorf("delete the data: %w", err)
		}
	}
	return func() { lock.Unlock() }, nil
}

func (c runCommand) postgresDir() string { return filepath.Join(c.DataDir, "postgres") }
func (c runCommand) kafkaDir() string    { return filepath.Join(c.DataDir, "kafka") }

// port returns the given port of a part of the system, or else its usual one, moved by the offset.
func (c runCommand) port(given *int, usual string) (int, error) {
	if given != nil {
		return *given, nil
	}
	port, err := strconv.Atoi(usual)
	return port + c.Offset, err
}

// functionPort is the port of the function with this place in allinone.Listening.
func (c runCommand) functionPort(i int) (int, error) {
	f, _ := table.Functions.Find(allinone.Listening()[i])
	given, _ := reflect.ValueOf(c.Ports[i]).Elem().Field(0).Interface().(*int)
	return c.port(given, f.Port)
}

// listen opens all ports first. So a busy port is reported before anything is started.
func (c runCommand) listen() (listeners map[string]net.Listener, broker net.Listener, err error) {
	listeners = map[string]net.Listener{}
	open := func(name string, port int, err error) (net.Listener, error) {
		if err != nil {
			return nil, err
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return nil, fmt.Errorf("%s needs port %d (PGW_%s_PORT chooses another one, PGW_PORT_OFFSET=10000 moves all): %w", name, port, strings.ToUpper(name), err)
		}
		return l, nil
	}
	for i, name := range allinone.Listening() {
		port, err := c.functionPort(i)
		l, err := open(name, port, err)
		if err != nil {
			return nil, nil, errors.Join(err, closeAll(listeners))
		}
		listeners[name] = l
	}
	if len(c.Brokers) > 0 {
		return listeners, nil, nil
	}
	port, err := c.port(c.KafkaPort, defaultKafkaPort)
	if broker, err = open("kafka", port, err); err != nil {
		return nil, nil, errors.Join(err, closeAll(listeners))
	}
	return listeners, broker, nil
}

func closeAll(listeners map[string]net.Listener) (err error) {
	for _, l := range listeners {
		err = errors.Join(err, l.Close())
	}
	return err
}

// eventKeys returns the keys, and stores new ones. Events that were signed before a restart are
// delivered after it.
func (c runCommand) eventKeys() (event.Keyring, error) {
	var keys event.Keyring
	text, err := c.kept("event-keys", c.EventKey, func() (string, error) {
		secret := make([]byte, 32)
		rand.Read(secret)
		return "local:" + base64.StdEncoding.EncodeToString(secret) + ":v2", nil
	})
	if err != nil {
		return keys, err
	}
	if err := keys.Decode(text); err != nil {
		return keys, fmt.Errorf("EVENT_KEYS: %w", err)
	}
	return keys, nil
}

// pagesKeys are the keys of the payments that the README, pgw run's banner and the pages for readers make. Risk's
// rules do not refuse them at random: a reader could not go on.
var pagesKeys = []string{"test-001", "test-002", "try-quote", "try-hold", "try-event", "hold-001", "curl-001", "curl-002", "curl-003", "go-001", "js-001"}

// riskSecret returns the secret, and stores a new one. So a retry gets the same verdict after a
// restart.
func (c runCommand) riskSecret() (string, error) {
	return c.kept("risk-secret", c.RiskSecret, func() (string, error) { return risk.MakeSecret(rand.Reader, pagesKeys...) })
}

// kept returns the given secret, or else the one in a file of the data directory. The first start
// makes that file.
func (c runCommand) kept(name, given string, makeOne func() (string, error)) (string, error) {
	if given != "" {
		return given, nil
	}
	path := filepath.Join(c.DataDir, name)
	text, err := os.ReadFile(path)
	if err == nil {
		return string(text), nil
	}
	made := ""
	if errors.Is(err, fs.ErrNotExist) {
		if made, err = makeOne(); err == nil {
			err = maybe.WriteFile(path, []byte(made), 0o600)
		}
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return made, nil
}

// system has everything that runs and must be closed.
type system struct {
	log         *slog.Logger
	keys        event.Keyring
	access      access.Config
	riskSecret  string
	webhookKeys string
	dataDir     string
	logPayments bool
	links       allinone.Links
	listeners   map[string]net.Listener
	broker      net.Listener // of the broker in this process; nil: another one is used
	admin       net.Listener // of the gateway; nil: its own port serves /metrics
	closers     []func() error

	server   string             // URL of the database
	schema   postgres.Schema    // the ledger's
	database string             // URL of the ledger, for its owner
	ledger   string             // URL of db's login
	reader   string             // URL of the login of fx, wallet and risk
	webhooks string             // URL of the login of webhooks
	postgres *embedded.Postgres // nil if another one is used
	abort    embedded.Abort     // ends postgres at once
	ready    bool               // the banner has been printed
	kafka    kafka.Config
	stores   []string // for the banner
	all      *allinone.System
}

func (s *system) onClose(f func() error) { s.closers = append(s.closers, f) }

func (s *system) close() {
	for i := len(s.closers) - 1; i >= 0; i-- {
		if err := s.closers[i](); err != nil {
			s.log.Warn("could not close", "error", err)
		}
	}
}

// startStores finds or starts Postgres and Kafka, and prepares their schema and topics.
func (s *system) startStores(ctx context.Context, c runCommand) error {
	for _, l := range s.listeners {
		s.onClose(func() error { l.Close(); return nil }) // its error does not matter: a function that served it has closed it already
	}
	s.server, s.schema = c.Database, c.Schema
	if s.server != "" {
		s.stores = append(s.stores, "Postgres    as DATABASE_URL says")
	} else {
		pg, err := embedded.StartPostgres(ctx, embedded.PostgresConfig{
			Dir: c.postgresDir(), Log: s.log, Repository: c.Repository, Progress: os.Stderr, Abort: &s.abort,
		})
		if err != nil {
			return err
		}
		s.onClose(pg.Stop)
		s.server, s.postgres = pg.URL(), pg
		s.stores = append(s.stores, "Postgres    private, in "+c.postgresDir())
	}
	s.database = s.schema.In(s.server)
	if err := ledger.Migrate(ctx, s.database); err != nil {
		return err
	}
	if s.ledger, s.reader, s.webhooks = s.database, s.database, s.database; s.postgres != nil {
		// Each login has only the rights that it needs, as in production. The passwords are new in
		// each run.
		var errs [3]error
		s.ledger, errs[0] = loginAs(s.database, "pgw_db")
		s.reader, errs[1] = loginAs(s.database, "pgw_functions")
		s.webhooks, errs[2] = loginAs(s.database, "pgw_webhooks_login")
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
		if err := ledger.Roles(ctx, s.database, ledger.Login{URL: s.ledger, Role: ledger.LedgerRole},
			ledger.Login{URL: s.reader, Role: ledger.ReaderRole}, ledger.Login{URL: s.webhooks, Role: ledger.WebhooksRole}); err != nil {
			return err
		}
	}

	manifests, err := allinone.Manifests()
	if err != nil {
		return err
	}
	s.kafka = kafka.Config{
		RequestTopic: c.Requests, ResultTopic: c.Results, DeadLetterTopic: c.DeadLetters, ParkedTopic: c.Parked, AccountsTopic: c.Accounts,
	}
	topics := flowTopics(s.kafka, manifests, partitions)
	if len(c.Brokers) == 0 {
		topics = flowTopics(s.kafka, manifests, localPartitions)
	}
	if s.kafka.Brokers = c.Brokers; len(c.Brokers) > 0 {
		s.stores = append(s.stores, "Kafka       "+strings.Join(c.Brokers, ",")+", as KAFKA_BROKERS says")
		return kafka.EnsureTopics(s.kafka, topics)
	}
	broker, err := embedded.StartKafka(embedded.KafkaConfig{
		Dir: c.kafkaDir(), Port: s.broker.Addr().(*net.TCPAddr).Port, Topics: topics, Log: s.log,
		Listen: func(string, string) (net.Listener, error) { return s.broker, nil },
	})
	if err != nil {
		return err
	}
	s.onClose(broker.Close)
	s.kafka.Brokers, s.kafka.Dial = []string{broker.Addr()}, broker.Dial
	s.stores = append(s.stores, "Kafka       "+broker.Addr()+", in this process, data in "+c.kafkaDir())
	return nil
}

// loginAs returns the URL for another user of the same database.
func loginAs(databaseURL, user string) (string, error) {
	u, err := url.Parse(databaseURL)
	if err != nil {
		return "", err
	}
	secret := make([]byte, 24)
	rand.Read(secret)
	u.User = url.UserPassword(user, hex.EncodeToString(secret))
	return u.String(), nil
}

// serve runs until ctx ends, and drains.
func (s *system) serve(ctx context.Context) (err error) {
	if s.all, err = allinone.New(allinone.Config{
		Database: s.ledger, Reader: s.reader, Webhooks: s.webhooks, WebhookKeys: s.webhookKeys, Kafka: s.kafka, Keys: s.keys, RiskSecret: s.riskSecret,
		Access: s.access, Listeners: s.listeners, Admin: s.admin, Links: s.links, Log: s.log, LogPayments: s.logPayments,
		Seed: s.seed,
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cancel(s.all.Run(ctx))
	}()
	if s.postgres != nil {
		go func() {
			<-s.postgres.Exited()
			cancel(errors.New("postgres ended unexpectedly; its log is in the data directory"))
		}()
	}
	if err = s.becomeReady(ctx); err != nil {
		cancel(err)
	} else {
		<-ctx.Done()
		fmt.Println("\ndraining …")
	}
	os.Remove(s.runFile())
	<-ended
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// seed puts rates, rules, accounts and liquidity into a new system.
func (s *system) seed(ctx context.Context) error {
	ready, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if err := s.all.Producer().Connect(ready); err != nil {
		return fmt.Errorf("kafka: %w", err)
	}
	seeds := newSystem{
		db: s.all.Conn("db"), fx: s.all.Conn("fx"), risk: s.all.Conn("risk"),
		producer: s.all.Producer(), topic: s.kafka.AccountsTopic, keys: &s.keys,
	}
	return seeds.applyMissing(ctx, s.database)
}

// becomeReady waits for the functions and the seeds, and then prints the addresses.
func (s *system) becomeReady(ctx context.Context) error {
	ready, cancel := context.WithTimeout(ctx, readyWithin+seededWithin)
	defer cancel()
	if err := poll(ready, func() error { return s.all.Ready(ready) }); err != nil {
		return fmt.Errorf("not ready within %s: %w", readyWithin+seededWithin, err)
	}
	if err := s.writeRunFile(); err != nil {
		return err
	}
	s.printBanner()
	s.ready = true
	return nil
}

// poll repeats a check until it succeeds or ctx ends. It returns the last error.
func poll(ctx context.Context, check func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func (s *system) runFile() string { return filepath.Join(s.dataDir, "run.json") }

func (s *system) addr(name string) string { return s.listeners[name].Addr().String() }

// writeRunFile writes the system's addresses. Their names are the lower-case names of the
// corresponding variables.
func (s *system) writeRunFile() error {
	found := map[string]any{
		"pid": os.Getpid(), "database_url": s.server, "ledger_schema": s.schema, "kafka_brokers": s.kafka.Brokers,
	}
	for name := range s.listeners {
		if s.all.Conn(name) != nil {
			found[name+"_addr"] = s.addr(name)
		} else {
			found[name+"_url"] = "http://" + s.addr(name)
		}
	}
	if s.admin != nil {
		found["admin_url"] = "http://" + s.admin.Addr().String()
	}
	text, err := json.MarshalIndent(found, "", "  ")
	if err != nil {
		return err
	}
	return maybe.WriteFile(s.runFile(), append(text, '\n'), 0o600) // it has a password
}

func (s *system) printBanner() {
	var b strings.Builder
	fmt.Fprintf(&b, "\npgw runs.\n\n  gateway     http://%s\n", s.addr("gateway"))
	if s.admin != nil {
		fmt.Fprintf(&b, "  its metrics http://%s/metrics\n", s.admin.Addr())
	}
	for _, name := range allinone.Listening()[1:] {
		takes := "HTTP"
		if f, _ := table.Functions.Find(name); s.all.Conn(name) != nil {
			takes = "gRPC"
		} else if f.Events != "" {
			takes = "events"
		}
		fmt.Fprintf(&b, "  %-11s %s (%s, /metrics)\n", name, s.addr(name), takes)
	}
	for _, store := range s.stores {
		fmt.Fprintf(&b, "  %s\n", store)
	}
	if s.access.Mode != access.Required {
		fmt.Fprintf(&b, "\nAnyone on this machine may pay: AUTH is off.\n")
	}
	fmt.Fprintf(&b, "\nTry:\n\n"+
		`  curl -s http://%s/api/payments -d '{"sender_id":"ACC001","receiver_id":"ACC002","currency":"USD",`+
		`"amount":10,"tx_date":"2026-01-31T09:30:00Z","idempotency_key":"test-001"}'`+"\n"+
		"  curl -s http://%s/api/payments/test-001\n\n"+
		"The seeded risk rules refuse 2 %% of payments at random (risk_random_reject), so that you see refusals.\n"+
		"bin/pgw rules set --random-reject-ppm 0 --note \"nothing at random\" switches that off.\n\nCtrl-C drains and stops.\n", s.addr("gateway"), s.addr("gateway"))
	fmt.Print(b.String())
}
