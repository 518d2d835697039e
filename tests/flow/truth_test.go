package flow

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/payment"
	"pgw/shared/rpc"
	"pgw/tests/history"
)

// Every answer to a client is true. Each test here tries one way to cause a false answer.
// TestNobodyIsEverToldFalse searches for others.

// hold keeps requests from being settled: published requests stay under way until release.
func (s *system) hold() (release func()) {
	held := make(chan struct{})
	s.faults.set(func(f *faults) {
		f.rpc = func(method string) error {
			if strings.HasPrefix(method, "/payments.v1.") {
				<-held
			}
			return nil
		}
	})
	return sync.OnceFunc(func() {
		s.faults.set(func(f *faults) { f.rpc = nil })
		close(held)
	})
}

// decided repeats the payment until the answer has its outcome.
func (s *system) decided(key, from, to string) (got answer) {
	s.t.Helper()
	s.eventually(key+" is answered by an outcome", func() error {
		if got = s.pay(key, from, to, "IDR", 5000); got.Code != 200 {
			return errors.New(got.String())
		}
		return nil
	})
	return got
}

// The first attempt is under way in Kafka, and its client has no answer. The second attempt is
// refused at once. When the first attempt's event is settled, nothing would prevent the payment any
// more. But no money moves, and every client always gets the same refusal.
func TestANoIsFinalWhileAnEarlierAttemptIsUnderWay(t *testing.T) {
	s := start(t, options{answerIn: 2 * time.Second})
	set := func(sql string) func() {
		return func() { s.exec(`UPDATE balances SET ` + sql) }
	}
	for _, tc := range []struct {
		reason           string
		forbid, allow    func()
		sender, receiver string
	}{
		{"risk_above_max", func() { s.rules(&riskv1.SeedRulesRequest{MaxAmount: 4000}) }, func() { s.rules(&riskv1.SeedRulesRequest{MaxAmount: 1_000_000_000}) }, "A", "B"},
		{"risk_blocked_account", func() { s.rules(&riskv1.SeedRulesRequest{BlockedAccounts: []string{"A"}}) }, func() { s.rules(&riskv1.SeedRulesRequest{}) }, "A", "B"},
		{"insufficient_funds", func() { s.open(0, "LITTLE") }, func() { s.open(5000, "LITTLE") }, "LITTLE", "B"},
		{"sender_blocked", set(`status = 'BLOCKED' WHERE account_id = 'C'`), set(`status = 'ACTIVE' WHERE account_id = 'C'`), "C", "B"},
		{"receiver_blocked", set(`status = 'BLOCKED' WHERE account_id = 'C'`), set(`status = 'ACTIVE' WHERE account_id = 'C'`), "A", "C"},
		{"daily_limit_exceeded", set(`daily_limit = 1 WHERE account_id = 'C'`), set(`daily_limit = 0 WHERE account_id = 'C'`), "C", "B"},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			defer func(outer testing.TB) { s.t = outer }(s.t)
			s.t = t
			tc.allow()
			had := s.balance(tc.sender)
			release := s.hold()
			defer release()
			s.expect(s.pay(tc.reason, tc.sender, tc.receiver, "IDR", 5000), "504 FAILED queue_timeout")
			tc.forbid()
			no := "200 FAILED " + tc.reason
			s.expect(s.decided(tc.reason, tc.sender, tc.receiver), no)
			tc.allow()
			release()
			s.drain()
			if got := s.balance(tc.sender); got != had {
				t.Errorf("after the client got %s, %d was paid", tc.reason, had-got)
			}
			s.expect(s.decided(tc.reason, tc.sender, tc.receiver), no)
			s.expectRefused(tc.reason, tc.reason)
		})
	}
}

// expectRefused checks that GET and the list show the refusal.
func (s *system) expectRefused(key, reason string) {
	s.t.Helper()
	if code, got := s.state(key); code != 200 || got.State != "ROLLEDBACK" || got.Reason != reason {
		s.t.Errorf("GET: %d %+v", code, got)
	}
	var list struct{ Payments []readPayment }
	s.get("/api/payments?limit=100&status=FAILED", &list)
	if !slices.ContainsFunc(list.Payments, func(p readPayment) bool {
		return p.Key == key && p.State == payment.RolledBack && p.Reason == payment.Reason(reason)
	}) {
		s.t.Errorf("the list has no %s that was refused: %+v", key, list.Payments)
	}
}

// An early refusal is an outcome like any other. It stays, even after its cause has gone.
func TestAFastNoIsRecorded(t *testing.T) {
	s := start(t, options{})
	s.open(1000, "LITTLE")
	s.expect(s.pay("first", "LITTLE", "B", "IDR", 5000), "200 FAILED insufficient_funds")
	s.expectRefused("first", "insufficient_funds")
	s.open(10_000, "LITTLE")
	s.expect(s.pay("first", "LITTLE", "B", "IDR", 5000), "200 FAILED insufficient_funds")
	s.expect(s.pay("first", "LITTLE", "B", "IDR", 5001), "422 FAILED idempotency_mismatch")
	s.expect(s.pay("second", "LITTLE", "B", "IDR", 5000), "200 SUCCESS committed")
}

// Input that is not a payment is not recorded: the key is still free.
func TestWhatIsNoPaymentClaimsNoKey(t *testing.T) {
	s := start(t, options{})
	for i, bad := range []string{
		body("free", "A", "B", "IDR", -5), body("free", "A", "B", "IDR", "1.5"), body("free", "A", "", "IDR", 5000),
		body("free", "A", "B", "XXQ", 5000), body("free", "A", "B", "SEK", 5000), // SEK has no rate
	} {
		if got := s.post(bad); got.Code != 400 {
			t.Errorf("%d: %s", i, got)
		}
		if code, _ := s.state("free"); code != 404 {
			t.Errorf("%d: GET: %d", i, code)
		}
	}
	s.expect(s.pay("free", "A", "B", "IDR", 5000), "200 SUCCESS committed")
}

// The broker has the request, but its acknowledgement is lost. The payment settles, and the client
// and other clients that wait with it get that outcome. They get an error that nothing was sent only
// if nothing was written.
func TestALostAcknowledgementIsNoFailure(t *testing.T) {
	s := start(t, options{})
	send := func(fault error) {
		s.faults.set(func(f *faults) {
			f.send = func(topic string) error {
				if topic == s.kafka.RequestTopic {
					return fault
				}
				return nil
			}
		})
	}
	send(errNotAcknowledged)
	for n := range 5 {
		key := fmt.Sprint("unacknowledged-", n)
		b := s.balance("B")
		counts := tally(8, func(int) answer { return s.pay(key, "A", "B", "IDR", 5000) })
		if counts["200 SUCCESS committed"] != 1 || counts["200 SUCCESS_REPLAY duplicate_idempo"] != 7 || s.balance("B") != b+5000 {
			t.Errorf("%s: %v; B got %d", key, counts, s.balance("B")-b)
		}
	}
	send(errNotSent)
	if got := s.pay("unsent", "A", "B", "IDR", 5000); got.outcome() != "502 FAILED queue_publish_error" || history.SaysNothingSent(got.Message) {
		t.Errorf("got %s", got)
	}
	send(nil)
	s.drain()
	if code, _ := s.state("unsent"); code != 404 {
		t.Errorf("GET of a payment that was not sent: %d", code)
	}
	s.expect(s.pay("unsent", "A", "B", "IDR", 5000), "200 SUCCESS committed")
}

// An attempt is under way. For another attempt, fx, wallet, risk or the ledger cannot be reached.
// Its answer must not be false about the payment.
func TestUnavailableSaysNothingOfOtherAttempts(t *testing.T) {
	s := start(t, options{answerIn: 2 * time.Second})
	for _, tc := range []struct{ method, reason string }{
		{"/fx.v1.", "fx_unavailable"}, {"/wallet.v1.", "wallet_unavailable"}, {"/risk.v1.", "risk_unavailable"},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			defer func(outer testing.TB) { s.t = outer }(s.t)
			s.t = t
			release := s.hold()
			defer release()
			s.expect(s.pay(tc.reason, "A", "B", "IDR", 5000), "504 FAILED queue_timeout")
			held := s.faults.rpc
			s.faults.set(func(f *faults) {
				f.rpc = func(method string) error {
					if strings.HasPrefix(method, tc.method) {
						return status.Error(codes.Unavailable, "down")
					}
					return held(method)
				}
			})
			got := s.expect(s.pay(tc.reason, "A", "B", "IDR", 5000), "502 FAILED "+tc.reason)
			if history.SaysNothingSent(got.Message) {
				t.Errorf("an earlier attempt is under way, but the client got %q", got.Message)
			}
			release()
			s.drain()
			if _, st := s.state(tc.reason); st.State != "COMMITTED" {
				t.Errorf("%+v", st)
			}
		})
	}
}

// A caller's answer is lost, and another caller makes a change before gRPC would repeat the call. A
// call that sets a value is not repeated: SeedAccounts would undo a payment and create its money as
// funding, UpdateRates and SeedRules would undo later changes.
func TestWhatSetsIsNotRepeatedAfterALostAnswer(t *testing.T) {
	s := start(t, options{})
	dial := func(name string) grpc.ClientConnInterface {
		conn, err := rpc.Dial(s.Addr(name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	// lose runs meanwhile, and then loses the first answer of a method.
	lose := func(method string, meanwhile func()) {
		var lost atomic.Bool
		s.faults.set(func(f *faults) {
			f.post = func(called string) error {
				if strings.HasSuffix(called, method) && lost.CompareAndSwap(false, true) {
					meanwhile()
					return status.Error(codes.Unavailable, "the answer is lost")
				}
				return nil
			}
		})
	}

	lose("db.v1.Admin/SeedAccounts", func() { s.expect(s.pay("meanwhile", "D", "B", "IDR", 5000), "200 SUCCESS committed") })
	// It does not matter whether the caller gets an error.
	_, err := walletv1.NewAdminClient(dial("wallet")).SeedAccounts(t.Context(), &walletv1.SeedAccountsRequest{
		Accounts: []*walletv1.AccountSeed{{AccountId: "D", Owner: "D", Currency: "IDR", Balance: 100_000}},
	})
	if got := s.balance("D"); got != 95_000 {
		t.Errorf("SeedAccounts (%v): D had 100000, paid 5000, but has %d", err, got)
	}
	if got := s.count(`SELECT sum(amount) FROM transfers WHERE account_id = 'D' AND currency = 'IDR'`); got != 100_000 {
		t.Errorf("SeedAccounts (%v): D was given %d", err, got)
	}

	setRate := func(conn grpc.ClientConnInterface, rate float64) error {
		_, err := fxv1.NewFxServiceClient(conn).UpdateRates(t.Context(), &fxv1.UpdateRatesRequest{
			Rates: []*fxv1.Rate{{BaseCurrency: "USD", QuoteCurrency: "IDR", Rate: rate}},
		})
		return err
	}
	lose("db.v1.Admin/PutRates", func() {
		if err := setRate(s.Conn("fx"), 16000); err != nil {
			t.Error(err)
		}
	})
	err = setRate(dial("fx"), 15000)
	var rate string
	s.query(&rate, `SELECT rate::text FROM fx_rates WHERE base = 'USD' ORDER BY effective_at DESC, rate_id DESC LIMIT 1`)
	if rate != "16000" {
		t.Errorf("UpdateRates (%v): the rate is %s, but the last one that was set is 16000", err, rate)
	}

	setMax := func(conn grpc.ClientConnInterface, idr uint32) error {
		_, err := riskv1.NewAdminClient(conn).SeedRules(t.Context(), &riskv1.SeedRulesRequest{MaxAmount: idr})
		return err
	}
	lose("db.v1.Admin/PutRules", func() {
		if err := setMax(s.Conn("risk"), 20_000); err != nil {
			t.Error(err)
		}
	})
	err = setMax(dial("risk"), 10_000)
	if got := s.count(`SELECT (rules->>'max_amount_idr')::int FROM risk_rules ORDER BY rule_set DESC LIMIT 1`); got != 20_000 {
		t.Errorf("SeedRules (%v): the maximum is %d, but the last one that was set is 20000", err, got)
	}
}
