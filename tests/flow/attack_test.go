package flow

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/functions/gateway/access"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/event"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// Attacks. Each attempt is refused with a clear error, nothing is lost (every test ends with a
// check that the ledger adds up), and other clients are served meanwhile.
// functions/gateway/THREATS.md says which test belongs to which threat.

// send posts an event as KafkaSource would, and returns the status.
func (s *system) send(url string, e cloudevents.Event) int {
	s.t.Helper()
	req, err := cehttp.NewHTTPRequestFromEvent(s.t.Context(), url, e)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// A client waits. An attacker that can reach the gateway's path for events tries to tell it that
// the payment was settled.
func TestForgedResultsReachNobody(t *testing.T) {
	s := start(t, options{})
	release := make(chan struct{})
	s.faults.set(func(f *faults) {
		f.rpc = func(method string) error {
			if strings.HasPrefix(method, "/payments.v1.") {
				<-release
			}
			return nil
		}
	})
	answered := make(chan answer, 1)
	go func() { answered <- s.pay("waits", "A", "B", "USD", 10) }()
	s.eventually("the client waits", func() error {
		if _, text := (client{s, ""}).do("GET", "/metrics", ""); !strings.Contains(text, "pgw_gateway_waiting 1\n") {
			return errors.New("no function settles it")
		}
		return nil
	})
	r := payment.Payment{Key: "waits", Sender: "A", Receiver: "B", Minor: 1000, Currency: must(money.ParseCurrency("USD"))}
	forged := func() cloudevents.Event {
		e, err := event.Result("/pgw/worker", event.PaymentResult{
			Key: "waits", Outcome: payment.Outcome{Status: payment.Success, Reason: payment.ReasonCommitted, Ref: "forged"}, Fingerprint: r.Fingerprint(),
		}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	var stolen event.Keyring
	if err := stolen.Decode("k1:" + strings.Repeat("QUFB", 11)); err != nil { // the right id with another secret
		t.Fatal(err)
	}
	for name, change := range map[string]func(*cloudevents.Event){
		"unsigned":          func(*cloudevents.Event) {},
		"by another secret": func(e *cloudevents.Event) { stolen.Sign(e) },
		"signed, then changed": func(e *cloudevents.Event) {
			s.keys.Sign(e)
			e.DataEncoded = bytes.Replace(e.DataEncoded, []byte("forged"), []byte("FORGED"), 1)
		},
		"another's signature": func(e *cloudevents.Event) { e.SetExtension(event.ExtSignature, "k1.AAAA") },
		"signed as another type": func(e *cloudevents.Event) {
			e.SetType(event.TypePaymentRequested)
			s.keys.Sign(e)
			e.SetType(event.TypePaymentResult)
		},
	} {
		e := forged()
		change(&e)
		if got := s.send(s.url+"/events", e); got != http.StatusForbidden {
			t.Errorf("%s: %d", name, got)
		}
	}
	select {
	case got := <-answered:
		t.Fatalf("the client got %s", got)
	default:
	}
	close(release)
	if got := s.expect(<-answered, "200 SUCCESS committed"); got.Ref == "forged" {
		t.Errorf("got %s", got)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A valid event that is sent again moves no money and changes no client's answer. Events without a
// signature, or with a key that was rotated out, are refused.
func TestReplayedAndUnsignedEventsMoveNothing(t *testing.T) {
	s := start(t, options{})
	s.expect(s.pay("once", "A", "B", "USD", 10), "200 SUCCESS committed")
	a, paid := s.balance("A"), s.count(`SELECT count(*) FROM payments`)
	rate := must(money.ParseRate("15500"))
	r := payment.Payment{
		Key: "once", Sender: "A", Receiver: "B", Minor: 1000, Currency: must(money.ParseCurrency("USD")), AmountIDR: 155_000, Rate: rate,
		TxDate: txDate, AcceptedAt: time.Now(), Deadline: time.Now().Add(time.Minute), AttemptID: "replayed",
	}
	signed := func(r payment.Payment, keys *event.Keyring) cloudevents.Event {
		e := must(event.Requested("/pgw/gateway", r, "", time.Now()))
		if keys != nil {
			if err := keys.Sign(&e); err != nil {
				t.Fatal(err)
			}
		}
		return e
	}
	worker := "http://" + s.Addr("worker") + "/"
	for range 3 {
		if got := s.send(worker, signed(r, &s.keys)); got != http.StatusAccepted {
			t.Errorf("the same request again: %d", got)
		}
	}
	richer := r
	richer.AmountIDR, richer.Minor = 999_999_999, 100
	var old event.Keyring
	if err := old.Decode("k0:" + strings.Repeat("QUFB", 11)); err != nil {
		t.Fatal(err)
	}
	fresh := r
	fresh.Key = "unsigned"
	for name, e := range map[string]cloudevents.Event{"unsigned": signed(fresh, nil), "by a key that was rotated out": signed(fresh, &old)} {
		for _, to := range []string{worker, "http://" + s.Addr("payments") + "/"} {
			if got := s.send(to, e); got != http.StatusForbidden {
				t.Errorf("%s to %s: %d", name, to, got)
			}
		}
	}
	result := must(event.Result("/pgw/worker", event.PaymentResult{
		Key: "once", Outcome: payment.Outcome{Status: payment.Success, Reason: payment.ReasonCommitted}, Fingerprint: r.Fingerprint(),
	}, time.Now()))
	if err := s.keys.Sign(&result); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := s.send(s.url+"/events", result); got != http.StatusAccepted {
			t.Errorf("the same result again: %d", got)
		}
	}
	if s.balance("A") != a || s.count(`SELECT count(*) FROM payments`) != paid {
		t.Errorf("A has %d; had %d", s.balance("A"), a)
	}
	s.expect(s.pay("once", "A", "B", "USD", 10), "200 SUCCESS_REPLAY duplicate_idempo")
}

// A key was stolen and rotated out. The thief is refused within seconds. The client with its new
// key, and other clients, never are.
func TestAStolenKeyIsWorthNothingAfterRotation(t *testing.T) {
	cfg, path, keys := keyed(t, map[string][]string{"acme-1": {"senders=A"}})
	s := start(t, options{access: cfg})
	thief := client{s, keys["acme-1"]}
	if resp, text := thief.do("POST", "/api/payments", body("stolen", "A", "B", "USD", 1)); resp.StatusCode != 200 {
		t.Fatalf("before: %s %s", resp.Status, text)
	}
	given, line, err := access.NewKey("acme-2", "senders=A")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.eventually("the stolen key is refused", func() error {
		if resp, text := thief.do("GET", "/api/payments/stolen", ""); resp.StatusCode != http.StatusUnauthorized {
			return fmt.Errorf("%s %s", resp.Status, text)
		}
		return nil
	})
	before := s.balance("A")
	resp, text := thief.do("POST", "/api/payments", body("stolen too", "A", "B", "USD", 1))
	problem(t, "the thief", resp, text, http.StatusUnauthorized)
	if s.balance("A") != before {
		t.Error("the thief's payment was made")
	}
	if resp, text := (client{s, given}).do("POST", "/api/payments", body("new key", "A", "B", "USD", 1)); resp.StatusCode != 200 {
		t.Errorf("the client: %s %s", resp.Status, text)
	}
}

func TestInjectionIsText(t *testing.T) {
	s := start(t, options{})
	before := s.count(`SELECT count(*) FROM wallet_accounts`)
	for i, text := range []string{
		`'; DROP TABLE payments; --`, `A' OR '1'='1`, `A"; DELETE FROM wallet_accounts; --`, `$1`, `%s%n`, `A\'; SELECT pg_sleep(10); --`, `{{.}}`, `${jndi:ldap://x}`,
	} {
		s.expect(s.pay(text, "A", "B", "USD", 1), "200 SUCCESS committed") // a key may be any printable text
		s.expect(s.pay(fmt.Sprint("from ", i), text, "B", "USD", 1), "200 FAILED unknown_sender")
		s.expect(s.pay(fmt.Sprint("to ", i), "A", text, "USD", 1), "200 FAILED unknown_receiver")
		if got := s.pay(fmt.Sprint("in ", i), "A", "B", text, 1); got.Code != http.StatusBadRequest {
			t.Errorf("currency %q: %s", text, got)
		}
		if got := s.pay(fmt.Sprint("of ", i), "A", "B", "USD", text); got.Code != http.StatusBadRequest {
			t.Errorf("amount %q: %s", text, got)
		}
	}
	if got := s.count(`SELECT count(*) FROM wallet_accounts`); got != before {
		t.Errorf("%d accounts; had %d", got, before)
	}
	// Line ends in text that travels in HTTP or Kafka headers are refused at the entry.
	for _, text := range []string{"k\r\nX-Admin: 1", "k\n", "k\x00", "k\u2028"} {
		s.expect(s.pay(text, "A", "B", "USD", 1), "400 FAILED invalid_input")
		if resp, _ := (client{s, ""}).do("GET", "/api/payments/"+strings.NewReplacer("\r", "%0d", "\n", "%0a", "\x00", "%00", " ", "%20").Replace(text), ""); resp.StatusCode != http.StatusBadRequest || resp.Header.Get("X-Admin") != "" {
			t.Errorf("GET of %q: %s", text, resp.Status)
		}
	}
}

func TestPathsLeadNowhereElse(t *testing.T) {
	s := start(t, options{})
	for _, path := range []string{
		"/../../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/.git/config", "/api/../../etc/passwd", "/api/payments/../../../etc/passwd",
		"/api/payments/..%2f..%2f..%2fetc%2fpasswd", "/%00", "//etc/passwd", `/..\..\etc\passwd`, "/debug/pprof/", "/debug/vars",
	} {
		conn, err := net.Dial("tcp", s.Addr("gateway"))
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path)
		text, err := io.ReadAll(conn)
		conn.Close()
		if err != nil || bytes.Contains(text, []byte("root:")) || !regexp.MustCompile(`^HTTP/1.1 (30[178]|400|404) `).Match(text) {
			t.Errorf("%s: %.200s (%v)", path, text, err)
		}
	}
}

// endless is a body of any number of bytes. It counts the bytes that were read. The client's
// goroutine that reads it may continue after the answer has arrived.
type endless struct {
	left  int64
	taken atomic.Int64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), e.left)
	e.left -= n
	e.taken.Add(n)
	return int(n), nil
}

func TestABodyOfAGibibyteIsNotRead(t *testing.T) {
	s := start(t, options{})
	for _, path := range []string{"/api/payments", "/events"} {
		for _, length := range []int64{1 << 30, -1} { // with a Content-Length, and in chunks
			sent := &endless{left: 1 << 30}
			req, err := http.NewRequest(http.MethodPost, s.url+path, sent)
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = length
			req.Header.Set("Content-Type", "application/cloudevents+json")
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err == nil {
				if resp.Body.Close(); resp.StatusCode != http.StatusRequestEntityTooLarge {
					t.Errorf("%s: %s", path, resp.Status)
				}
			} // or the connection was closed while the body was still being sent
			if taken := sent.taken.Load(); taken > 32<<20 {
				t.Errorf("%s: %d bytes of the body were read", path, taken)
			}
		}
	}
	s.expect(s.pay("meanwhile", "A", "B", "USD", 1), "200 SUCCESS committed")
}

// An attacker opens as many slow connections as possible. Normal clients are answered as usual.
func TestTenThousandSlowConnections(t *testing.T) {
	s := start(t, options{serial: true})
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	most := int(min(files.Cur, 1<<20)) // both ends are in this process
	slow := make([]net.Conn, 0, 10_000)
	defer func() {
		for _, conn := range slow {
			conn.Close()
		}
	}()
	for i := range min(10_000, most-min(8192, most/2)-most/16) {
		conn, err := net.Dial("tcp", s.Addr("gateway"))
		if err != nil {
			t.Fatalf("the connection %d: %v", i, err)
		}
		slow = append(slow, conn)
		io.WriteString(conn, []string{
			"", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", "POST /api/payments HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{",
		}[i%3])
		if i%500 == 0 {
			s.expect(s.pay(fmt.Sprint("meanwhile ", i), "A", "B", "USD", 1), "200 SUCCESS committed")
		}
	}
	t.Logf("%d slow connections", len(slow))
	// New clients are answered too.
	fresh := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range 20 {
		resp, err := fresh.Post(s.url+"/api/payments", "application/json", strings.NewReader(body(fmt.Sprint("anew ", i), "A", "B", "USD", 1)))
		if err != nil {
			t.Fatal(err)
		}
		s.expect(read(t, resp), "200 SUCCESS committed")
	}
}

// Callers in the functions' network without an operator's token cannot change accounts, rates or
// rules.
func TestAdminNeedsAnOperator(t *testing.T) {
	const ordinary = "the-token-of-functions-in-tests-0123456789"
	open := func(sec rpc.Security) *rpc.Callers { return must(sec.Open(slog.New(slog.DiscardHandler))) }
	s := start(t, options{callers: open(rpc.Security{Mode: "required", Tokens: ordinary})})
	before := s.balance("A")
	calls := map[string]func(map[string]*grpc.ClientConn) error{
		"wallet's accounts": func(c map[string]*grpc.ClientConn) error {
			_, err := walletv1.NewAdminClient(c["wallet"]).SeedAccounts(t.Context(), &walletv1.SeedAccountsRequest{Accounts: []*walletv1.AccountSeed{{AccountId: "A", Balance: 1e12}}})
			return err
		},
		"db's accounts": func(c map[string]*grpc.ClientConn) error {
			_, err := dbv1.NewAdminClient(c["db"]).SeedAccounts(t.Context(), &dbv1.SeedAccountsRequest{Accounts: []*dbv1.Account{{AccountId: "A", Currency: "IDR", Status: "ACTIVE", BalanceIdr: 1e12}}})
			return err
		},
		"fx's rates": func(c map[string]*grpc.ClientConn) error {
			_, err := fxv1.NewFxServiceClient(c["fx"]).UpdateRates(t.Context(), &fxv1.UpdateRatesRequest{Rates: []*fxv1.Rate{{BaseCurrency: "USD", QuoteCurrency: "IDR", Rate: 1}}})
			return err
		},
		"fx's random rates": func(c map[string]*grpc.ClientConn) error {
			_, err := fxv1.NewFxAdminServiceClient(c["fx"]).RefreshRandomRates(t.Context(), &fxv1.RefreshRandomRatesRequest{})
			return err
		},
		"risk's rules": func(c map[string]*grpc.ClientConn) error {
			_, err := riskv1.NewAdminClient(c["risk"]).SeedRules(t.Context(), &riskv1.SeedRulesRequest{MaxAmount: 1})
			return err
		},
		"db's letters": func(c map[string]*grpc.ClientConn) error {
			_, err := dbv1.NewAdminClient(c["db"]).ListDeadLetterActions(t.Context(), &dbv1.ListDeadLetterActionsRequest{})
			return err
		},
	}
	for who, tc := range map[string]struct {
		callers *rpc.Callers
		want    codes.Code
	}{
		"a stranger": {open(rpc.Security{}), codes.Unauthenticated},
		"a function": {open(rpc.Security{Tokens: ordinary}), codes.PermissionDenied},
	} {
		conns := map[string]*grpc.ClientConn{}
		for _, name := range []string{"wallet", "db", "fx", "risk"} {
			conns[name] = must(tc.callers.Dial(s.Addr(name)))
			defer conns[name].Close()
		}
		for what, call := range calls {
			if err := call(conns); status.Code(err) != tc.want {
				t.Errorf("%s changes %s: %v", who, what, err)
			}
		}
		if _, err := dbv1.NewDbClient(conns["db"]).ReserveFunds(t.Context(), &dbv1.ReserveFundsRequest{}); (status.Code(err) == codes.Unauthenticated) != (who == "a stranger") {
			t.Errorf("%s holds funds: %v", who, err)
		}
	}
	if s.balance("A") != before {
		t.Errorf("A has %d; had %d", s.balance("A"), before)
	}
	s.expect(s.pay("meanwhile", "A", "B", "USD", 1), "200 SUCCESS committed")
}

// The page of threats names existing tests.
func TestThreatsNameTheirTests(t *testing.T) {
	text, err := os.ReadFile("../../functions/gateway/THREATS.md")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, dir := range []string{".", "../../functions/db", "../../shared/ledger", "../../functions/gateway", "../../functions/gateway/access", "../../shared/function", "../../shared/secret", "../../shared/event", "../../functions/kafkasource", "../manifests"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if strings.HasSuffix(entry.Name(), "_test.go") {
				source, err := os.ReadFile(dir + "/" + entry.Name())
				if err != nil {
					t.Fatal(err)
				}
				all.Write(source)
			}
		}
	}
	named := regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(string(text), -1)
	if len(named) < 15 {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, name := range named {
		if !strings.Contains(all.String(), "\nfunc "+name+"(") {
			t.Errorf("there is no %s", name)
		}
	}
}
