// Package flow tests the whole system through its public interfaces: HTTP, gRPC, Kafka and
// CloudEvents. It uses a real Postgres and a broker that uses Kafka's protocol. Every test ends
// with a check that the ledger adds up.
package flow

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/functions/gateway/access"
	"pgw/functions/pgw/allinone"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/postgres"
	"pgw/shared/rpc"
	"pgw/shared/trace"
	"pgw/tests/processes"
)

func TestMain(m *testing.M) {
	transport, err := newChecked(http.DefaultTransport)
	if err != nil {
		panic(err)
	}
	http.DefaultClient.Transport = transport
	embeddedtest.Main(m)
}

const (
	riskSecret = "for the tests alone"
	testKeys   = "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	txDate     = "2026-01-31T09:30:00Z"
	patience   = 20 * time.Second // the limit for steps that normally take milliseconds
)

// system is one running system with the accounts A, B, C and rates.
type system struct {
	*allinone.System
	t      testing.TB
	url    string
	conn   *pgx.Conn
	keys   event.Keyring
	kafka  embeddedtest.Broker
	stop   func()
	faults *faults
}

// faults are faults between functions. A test sets them while the system runs.
type faults struct {
	mu   sync.Mutex
	rpc  func(method string) error               // runs before the call; its error replaces the call
	post func(method string) error               // runs after the call; its error replaces the answer
	send func(topic string) error                // runs before a publish; its error replaces the publish, except the errors below
	sees func(topic string, e cloudevents.Event) // gets every attempt to publish
}

func (f *faults) set(change func(*faults)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *faults) hook(pick func(*faults) func(string) error, name string) error {
	f.mu.Lock()
	hook := pick(f)
	f.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(name)
}

// The errors of send with a special effect on a publish.
var (
	// errLost reports success without publishing.
	errLost = errors.New("lost")
	// errNotSent fails before anything was written.
	errNotSent = fmt.Errorf("%w: the broker is away", kafka.ErrNotSent)
	// errNotAcknowledged publishes the event and then fails.
	errNotAcknowledged = errors.New("the acknowledgement is lost")
	// errTwice publishes the event twice.
	errTwice = errors.New("twice")
)

// inTwoSteps makes payments reserve and commit in two calls, as with a db of an earlier release or
// when a lock is not free in time. fault runs before every other call.
func inTwoSteps(fault func(method string) error) func(method string) error {
	return func(method string) error {
		if method == dbv1.Db_ReserveAndCommit_FullMethodName {
			return status.Error(codes.Unimplemented, "not in this release")
		}
		return fault(method)
	}
}

type faultyConn struct {
	grpc.ClientConnInterface
	faults *faults
}

func (c faultyConn) Invoke(ctx context.Context, method string, in, out any, opts ...grpc.CallOption) error {
	if err := c.faults.hook(func(f *faults) func(string) error { return f.rpc }, method); err != nil {
		return err
	}
	if err := c.ClientConnInterface.Invoke(ctx, method, in, out, opts...); err != nil {
		return err
	}
	return c.faults.hook(func(f *faults) func(string) error { return f.post }, method)
}

// dependencies are those of one more replica of a function beside this system.
func (s *system) dependencies() function.Dependencies {
	conns := map[string]grpc.ClientConnInterface{}
	for _, name := range allinone.Listening() {
		conns[name] = s.Conn(name)
	}
	return function.Dependencies{Conns: conns, Publisher: s.Producer()}
}

type faultyPublisher struct {
	event.Publisher
	faults *faults
}

func (p faultyPublisher) Publish(ctx context.Context, topic, key string, e cloudevents.Event) error {
	fault := p.faults.hook(func(f *faults) func(string) error { return f.send }, topic)
	p.faults.mu.Lock()
	sees := p.faults.sees
	p.faults.mu.Unlock()
	if sees != nil {
		sees(topic, e)
	}
	switch {
	case fault == nil:
		return p.Publisher.Publish(ctx, topic, key, e)
	case errors.Is(fault, errLost):
		return nil
	case errors.Is(fault, errTwice):
		return errors.Join(p.Publisher.Publish(ctx, topic, key, e), p.Publisher.Publish(ctx, topic, key, e))
	case errors.Is(fault, errNotAcknowledged):
		return errors.Join(fault, p.Publisher.Publish(ctx, topic, key, e))
	default:
		return fault
	}
}

type options struct {
	answerIn time.Duration        // how long a client waits; 0 means patience, so that a busy machine has time
	database string               // an existing database; empty makes one
	empty    bool                 // the existing database has to be seeded
	kafka    *embeddedtest.Broker // an existing broker
	keys     string               // EVENT_KEYS; empty: those of the tests
	seals    string               // WEBHOOK_SECRET_KEYS; empty: a new one
	logins   string               // what the functions' logins begin with; empty: those of the tests
	serial   bool                 // not in parallel with other tests
	access   access.Config        // who may use the API; the zero value means everybody
	origins  []string             // the origins whose pages may use the API
	log      slog.Handler         // nil: errors go to standard error
	callers  *rpc.Callers         // who may call over the network; nil means everybody
}

// migrated is a database with the schema.
var migrated = embeddedtest.Template{Prepare: ledger.Migrate, Distribute: ledger.Distribute, DistributeRows: ledger.DistributeRows}

func start(t testing.TB, o options) *system {
	t.Helper()
	if t, ok := t.(*testing.T); ok && !o.serial {
		t.Parallel()
	}
	o.answerIn = cmp.Or(o.answerIn, patience)
	fresh := o.database == ""
	if fresh {
		o.database = migrated.Postgres(t)
	}
	s := &system{t: t, faults: &faults{}}
	// Each function has the rights that it has in production; s.conn has the owner's.
	o.logins = cmp.Or(o.logins, "pgw_flow")
	writer, reader := loginTo(t, o.database, o.logins+"_db"), loginTo(t, o.database, o.logins+"_functions")
	hooks := loginTo(t, o.database, o.logins+"_webhooks")
	err := ledger.Roles(t.Context(), o.database,
		ledger.Login{URL: writer, Role: ledger.LedgerRole}, ledger.Login{URL: reader, Role: ledger.ReaderRole},
		ledger.Login{URL: hooks, Role: ledger.WebhooksRole})
	if err != nil {
		t.Fatal(err)
	}
	if o.kafka == nil {
		topics, err := processes.Topics(4)
		if err != nil {
			t.Fatal(err)
		}
		broker := embeddedtest.Kafka(t, topics...)
		o.kafka = &broker
	}
	s.kafka = *o.kafka
	if err := s.keys.Decode(cmp.Or(o.keys, testKeys)); err != nil {
		t.Fatal(err)
	}
	listeners := map[string]net.Listener{}
	for _, name := range allinone.Listening() {
		if listeners[name], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	if o.log == nil {
		o.log = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})
	}
	// The gateway serves only after the system is seeded.
	behind, seeded := make(chan struct{}), make(chan struct{})
	s.System, err = allinone.New(allinone.Config{
		Seed: func(ctx context.Context) error {
			close(behind)
			select {
			case <-seeded:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		Database: writer, Reader: reader, Webhooks: hooks, Kafka: s.kafka.Config, GroupPrefix: s.kafka.Prefix, Keys: s.keys, WebhookKeys: o.seals, RiskSecret: riskSecret,
		Listeners: listeners, AnswerIn: o.answerIn,
		Access: o.access, Origins: o.origins, Callers: o.callers, Log: slog.New(trace.Handler(o.log)),
		Between: func(_ string, conn grpc.ClientConnInterface) grpc.ClientConnInterface {
			return faultyConn{conn, s.faults}
		},
		Publish: func(p event.Publisher) event.Publisher { return faultyPublisher{p, s.faults} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the system ended: %v", err)
		}
	})
	s.url = "http://" + s.Addr("gateway")
	if s.conn, err = postgres.Connect(ctx, o.database, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.stop()
		s.checkSum()
		s.checkEvents()
		s.conn.Close(context.Background())
	})
	select {
	case <-behind:
	case <-time.After(patience):
		t.Fatalf("the functions behind the gateway are not ready within %s: %v", patience, s.Ready(ctx))
	}
	if fresh || o.empty {
		s.seed()
	}
	close(seeded)
	s.eventually("the system is ready", func() error { return s.Ready(ctx) })
	return s
}

// loginTo returns the URL of a ledger for one of its logins. A ledger that shares its database with
// others has logins of its own, which are dropped with its schema.
func loginTo(t testing.TB, database, user string) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(ledger.RoleOf(user, schemaOf(t, database)), "of the tests")
	return u.String()
}

func schemaOf(t testing.TB, database string) postgres.Schema {
	t.Helper()
	c, err := postgres.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	return postgres.SchemaOf(c)
}

// seed makes three rich accounts, the rates of the contract's examples, and rules without random
// refusals.
func (s *system) seed() {
	s.t.Helper()
	s.open(1_000_000_000, "A", "B", "C")
	_, err := fxv1.NewFxServiceClient(s.Conn("fx")).UpdateRates(s.t.Context(), &fxv1.UpdateRatesRequest{Rates: []*fxv1.Rate{
		{BaseCurrency: "USD", QuoteCurrency: "IDR", Rate: 15500}, {BaseCurrency: "SGD", QuoteCurrency: "IDR", Rate: 11600},
		{BaseCurrency: "JPY", QuoteCurrency: "IDR", RateDecimal: "103.25"}, {BaseCurrency: "KWD", QuoteCurrency: "IDR", RateDecimal: "50450"},
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.rules(&riskv1.SeedRulesRequest{MaxAmount: 10_000_000, MinAmountIdr: ptr(int64(1000)), RandomRejectPpm: ptr(uint32(0))})
}

func (s *system) rules(r *riskv1.SeedRulesRequest) {
	s.t.Helper()
	if _, err := riskv1.NewAdminClient(s.Conn("risk")).SeedRules(s.t.Context(), r); err != nil {
		s.t.Fatal(err)
	}
}

// ping sends what a PingSource sends each minute to a function at an address.
func ping(t *testing.T, addr string) {
	t.Helper()
	e := cloudevents.New()
	e.SetID("1")
	e.SetSource("/test")
	e.SetType(event.TypePing)
	req, err := cehttp.NewHTTPRequestFromEvent(t.Context(), "http://"+addr+"/", e)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		t.Errorf("a ping: %s", resp.Status)
	}
}

func (s *system) open(balance float64, ids ...string) {
	s.t.Helper()
	in := &walletv1.SeedAccountsRequest{}
	for _, id := range ids {
		in.Accounts = append(in.Accounts, &walletv1.AccountSeed{AccountId: id, Owner: "Owner of " + id, Currency: "IDR", Balance: balance})
	}
	if _, err := walletv1.NewAdminClient(s.Conn("wallet")).SeedAccounts(s.t.Context(), in); err != nil {
		s.t.Fatal(err)
	}
}

func (s *system) checkSum() {
	s.t.Helper()
	sum, err := ledger.ReadSum(context.Background(), s.conn)
	if err == nil {
		err = sum.Err()
	}
	if err != nil {
		s.t.Error(err)
	}
}

func (s *system) balance(id string) (balance int64) {
	s.t.Helper()
	s.query(&balance, `SELECT balance_idr FROM wallet_accounts WHERE account_id = $1`, id)
	return balance
}

func (s *system) query(into any, sql string, args ...any) {
	s.t.Helper()
	if err := s.conn.QueryRow(context.Background(), sql, args...).Scan(into); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

func (s *system) count(sql string, args ...any) (n int) {
	s.t.Helper()
	s.query(&n, sql, args...)
	return n
}

func (s *system) exec(sql string, args ...any) {
	s.t.Helper()
	if _, err := s.conn.Exec(context.Background(), sql, args...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

// eventually waits until check succeeds.
func (s *system) eventually(what string, check func() error) {
	s.t.Helper()
	eventually(s.t, what, check)
}

func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s: %v", patience, what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// answer is a client's answer.
type answer struct {
	Code     int         `json:"-"`
	Header   http.Header `json:"-"`
	Body     string      `json:"-"`
	Status   string      `json:"status"`
	Reason   string      `json:"reason"`
	Ref      string      `json:"ref"`
	Message  string      `json:"message"`
	Deadline time.Time   `json:"deadline"`
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.Code, strings.TrimSpace(a.Body)) }

// outcome is the part of an answer that the contract's table defines.
func (a answer) outcome() string { return fmt.Sprintf("%d %s %s", a.Code, a.Status, a.Reason) }

func (s *system) post(body string, headers ...string) answer {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.url+"/api/payments", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	return read(s.t, resp)
}

func read(t testing.TB, resp *http.Response) answer {
	t.Helper()
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{Code: resp.StatusCode, Header: resp.Header, Body: string(text)}
	if err := json.Unmarshal(text, &a); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return a
}

// body is the body of a payment. change overrides fields, or removes them (nil).
func body(key, from, to, currency string, amount any, change ...any) string {
	fields := map[string]any{
		"sender_id": from, "receiver_id": to, "currency": currency, "amount": amount, "tx_date": txDate, "idempotency_key": key,
	}
	for i := 0; i < len(change); i += 2 {
		if fields[change[i].(string)] = change[i+1]; change[i+1] == nil {
			delete(fields, change[i].(string))
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	if err := enc.Encode(fields); err != nil {
		panic(err)
	}
	return b.String()
}

func (s *system) pay(key, from, to, currency string, amount any) answer {
	s.t.Helper()
	return s.post(body(key, from, to, currency, amount))
}

func (s *system) expect(got answer, want string) answer {
	s.t.Helper()
	if got.outcome() != want {
		s.t.Errorf("got %s; want %s", got, want)
	}
	return got
}

// state is the answer of GET.
type state struct {
	State, Reason, Ref, Amount, Rate, Currency string
	Status                                     any    // a number in a problem's body
	AmountIDR                                  int64  `json:"amount_idr"`
	RateID                                     string `json:"rate_id"`
	RuleSet                                    string `json:"rule_set"`
	AcceptedAt, Deadline, DecidedAt            time.Time
	Metadata                                   map[string]string
}

func (s *system) state(key string) (int, state) {
	s.t.Helper()
	resp, err := http.Get(s.url + "/api/payments/" + key)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var st state
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, st
}

func ptr[T any](v T) *T { return &v }
