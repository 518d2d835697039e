package gateway

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"pgw/functions/gateway/access"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/rpc"
)

// neighbour is a function that the gateway asks for its state.
type neighbour struct {
	grpc.ClientConnInterface
	mode atomic.Value // of neighbourMode; none: works
	asks atomic.Int32
	// answer, if not nil, answers a call before the others do.
	answer func(in, out any) (answers bool, err error)
}

type neighbourMode string

const (
	works    neighbourMode = "works"
	hangs    neighbourMode = "hangs"
	gone     neighbourMode = "gone"
	notReady neighbourMode = "not ready"
)

var sweptAt = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func (n *neighbour) Invoke(ctx context.Context, _ string, in, out any, _ ...grpc.CallOption) error {
	n.asks.Add(1)
	if n.answer != nil {
		if answers, err := n.answer(in, out); answers {
			return err
		}
	}
	mode, _ := n.mode.Load().(neighbourMode)
	switch mode {
	case hangs:
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	case gone:
		return status.Error(codes.Unavailable, "connection refused")
	}
	switch out := out.(type) {
	case *healthpb.HealthCheckResponse:
		out.Status = healthpb.HealthCheckResponse_SERVING
		if mode == notReady {
			out.Status = healthpb.HealthCheckResponse_NOT_SERVING
		}
	case *dbv1.StatusResponse:
		proto.Merge(out, &dbv1.StatusResponse{
			PostgresUp: true, PostgresSince: rpc.Timestamp(sweptAt), Schema: proto.Int32(14),
			LastSweep: &dbv1.LastSweep{At: rpc.Timestamp(sweptAt), Pending: 2, HeldIdr: 300},
			Verdict:   &dbv1.Verdict{At: rpc.Timestamp(sweptAt), Verdict: "agrees", Text: "the books agree"},
		})
	case *dbv1.ActedLettersResponse:
		if strings.HasSuffix(in.(*dbv1.ActedLettersRequest).Topic, "payments.parked") {
			out.Acted = map[int32]*dbv1.Offsets{0: {Offsets: []int64{0}}}
		}
	}
	return nil
}

// system is a gateway with functions that a test can break, and a Kafka.
type system struct {
	*function.Port
	fx, wallet, risk, db *neighbour
	kafka                embeddedtest.Broker
	ahead                atomic.Int64
	published            []cloudevents.Event
}

// Publish implements event.Publisher.
func (s *system) Publish(_ context.Context, _, _ string, e cloudevents.Event) error {
	s.published = append(s.published, e)
	return nil
}

func newSystem(t *testing.T, change func(*Config)) *system {
	t.Helper()
	s := &system{fx: &neighbour{}, wallet: &neighbour{}, risk: &neighbour{}, db: &neighbour{}}
	var topics []kafka.Topic
	for _, name := range []string{"payments.request", "payments.result", "payments.deadletter", "payments.parked", "ledger.accounts"} {
		topics = append(topics, kafka.Topic{Name: name, Partitions: 1})
	}
	s.kafka = embeddedtest.Kafka(t, topics...)
	cfg := Config{AnswerIn: time.Second, MinWaiting: 8, MaxWaiting: 8, Kafka: s.kafka.Config, GroupPrefix: s.kafka.Prefix}
	if err := cfg.Keys.Decode("k:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	s.Port, err = Function.Make(cfg, function.Dependencies{
		Conns: map[string]grpc.ClientConnInterface{"fx": s.fx, "wallet": s.wallet, "risk": s.risk, "db": s.db}, Publisher: s,
		Now: func() time.Time { return sweptAt.Add(time.Duration(s.ahead.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *system) get(t *testing.T, headers ...string) (code int, report statusJSON, header http.Header) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "http://localhost/status", nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	if w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), &report); err != nil {
			t.Fatalf("%v: %s", err, w.Body)
		}
	}
	return w.Code, report, w.Header()
}

func anyEvent(id string) cloudevents.Event {
	e := cloudevents.New()
	e.SetID(id)
	e.SetType("test")
	e.SetSource("/test")
	return e
}

// later gets a report after a while.
func (s *system) later(t *testing.T, passed time.Duration) statusJSON {
	t.Helper()
	s.ahead.Add(int64(passed))
	_, report, _ := s.get(t)
	return report
}

func (r statusJSON) dependency(name string) dependencyJSON {
	return r.Dependencies[slices.IndexFunc(r.Dependencies, func(d dependencyJSON) bool { return d.Name == name })]
}

func TestStatusSaysWhatIsKnown(t *testing.T) {
	s := newSystem(t, nil)
	producer, err := kafka.NewProducer(s.kafka.Config, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close(context.Background())
	send := func(topic string, ids ...string) {
		t.Helper()
		for _, id := range ids {
			if err := producer.Publish(t.Context(), topic, "k", anyEvent(id)); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(s.kafka.RequestTopic, "a", "b", "c")
	send(s.kafka.DeadLetterTopic, "waits", "acted", "parked", "parked too")
	send(s.kafka.ParkedTopic, "acted", "parked", "parked", "parked too") // db says that the first one has an action

	code, got, _ := s.get(t)
	if code != http.StatusOK || got.State != systemOK || len(got.Dependencies) != 6 {
		t.Fatalf("%d %+v", code, got)
	}
	for _, d := range got.Dependencies {
		if d.State != stateUp || d.Since.IsZero() || d.Detail != "" {
			t.Errorf("%+v", d)
		}
	}
	if l := got.Ledger; l == nil || *l.Pending != 2 || *l.HeldIDR != 300 || !l.LastSweepAt.Equal(sweptAt) || l.Schema != 14 {
		t.Errorf("the ledger: %+v", l)
	}
	if v := got.Reconcile; v == nil || v.Verdict != "agrees" || v.Text == "" {
		t.Errorf("the verdict: %+v", v)
	}
	if d := got.DeadLetters; d == nil || *d.Waiting != 1 || *d.Parked != 2 || d.OldestAt.IsZero() {
		t.Errorf("the letters: %+v", d)
	}
	if len(got.Flow) != len(Flow) || got.Flow[0].Group != s.kafka.Prefix+"pgw-worker" || *got.Flow[0].Lag != 3 || *got.Flow[1].Lag != 0 {
		t.Errorf("the flow: %+v", got.Flow)
	}
	if rate := s.later(t, 10*time.Second).Flow[0].Rate; rate == nil || *rate != 0 {
		t.Errorf("the rate: %v", rate)
	}
}

// A part that is away or hangs does not hide the others, and the report comes within seconds.
func TestStatusWithoutHalfOfTheSystem(t *testing.T) {
	s := newSystem(t, func(cfg *Config) { cfg.Kafka.Brokers = []string{"127.0.0.1:1"} })
	s.db.mode.Store(hangs)
	s.risk.mode.Store(gone)
	s.wallet.mode.Store(notReady)
	begun := time.Now()
	code, got, _ := s.get(t)
	if took := time.Since(begun); code != http.StatusOK || took > 30*time.Second {
		t.Fatalf("%d after %s", code, took)
	}
	for name, want := range map[string]dependencyState{
		"fx": stateUp, "wallet": stateDown, "risk": stateDown, "db": stateUnknown, "postgres": stateUnknown, "kafka": stateDown,
	} {
		if d := got.dependency(name); d.State != want || (d.State == stateUp) != (d.Detail == "") || (d.State == stateUnknown) != d.Since.IsZero() {
			t.Errorf("%+v, want %s", d, want)
		}
	}
	if got.State != systemDown || got.Ledger != nil || got.DeadLetters != nil || got.Reconcile != nil || got.Flow[0].Lag != nil {
		t.Errorf("%+v", got)
	}
	// A function that never answers is down.
	if d := s.later(t, hangsAfter).dependency("db"); d.State != stateDown || !d.Since.Equal(sweptAt) {
		t.Errorf("%+v", d)
	}
	for _, n := range []*neighbour{s.db, s.risk, s.wallet} {
		n.mode.Store(works)
	}
	s.later(t, 20*time.Second)
	got = s.later(t, 20*time.Second)
	for _, name := range []string{"db", "risk", "wallet", "postgres"} {
		if d := got.dependency(name); d.State != stateUp {
			t.Errorf("at last: %+v", d)
		}
	}
}

// Requests that arrive together, or soon after each other, cost one refresh.
func TestStatusIsReadOnce(t *testing.T) {
	s := newSystem(t, nil)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() { s.get(t) })
	}
	all.Wait()
	s.later(t, time.Second)
	if n := s.fx.asks.Load(); n != 1 {
		t.Errorf("fx was asked %d times", n)
	}
	s.later(t, statusFor)
	if n := s.fx.asks.Load(); n != 2 {
		t.Errorf("fx was asked %d times after a while", n)
	}
}

// With AUTH=required, only operators get the report. Everyone gets the state.
func TestStatusIsForOperators(t *testing.T) {
	var lines []string
	keys := map[string]string{}
	for name, senders := range map[string]string{"operator": "*", "shop": "SHOP"} {
		key, line, err := access.NewKey(name, "senders="+senders)
		if err != nil {
			t.Fatal(err)
		}
		keys[name], lines = key, append(lines, line)
	}
	s := newSystem(t, func(cfg *Config) { cfg.Access = access.Config{Mode: access.Required, Keys: lines[0] + ";" + lines[1]} })
	for key, want := range map[string]struct{ code, dependencies int }{
		"": {200, 0}, keys["shop"]: {200, 0}, keys["operator"]: {200, 6}, "wrong": {401, 0},
	} {
		var headers []string
		if key != "" {
			headers = []string{access.KeyHeader, key}
		}
		code, got, _ := s.get(t, headers...)
		if code != want.code || len(got.Dependencies) != want.dependencies || code == 200 && got.State != systemOK {
			t.Errorf("%q: %d %+v", key, code, got)
		}
	}
}

func TestABrowserGetsThePage(t *testing.T) {
	s := newSystem(t, nil)
	for accept, want := range map[string]int{
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": http.StatusSeeOther, "*/*": http.StatusOK, "application/json": http.StatusOK,
		"text/html;q=0.5, application/json": http.StatusOK, "": http.StatusOK,
	} {
		if code, _, header := s.get(t, "Accept", accept); code != want || header.Get("Vary") != "Accept" {
			t.Errorf("%q: %d %v", accept, code, header)
		}
	}
}
