package flow

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pgw/functions/pgw/allinone"
	"pgw/functions/pgw/deadletter"
	"pgw/functions/pgw/reconcile"
	"pgw/functions/pgw/replay"
	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/seeds"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
)

// reconcile checks the books. It compares young payments too, as if they were old.
func (s *system) reconcile() reconcile.Report {
	s.t.Helper()
	report, err := reconcile.Run(s.t.Context(), reconcile.Config{
		Database: s.conn.Config().ConnString(), Kafka: s.kafka.Config, Keys: &s.keys, AllowUnsigned: true, Grace: -2 * payment.DecideWithin,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return report
}

func (s *system) expectClean() {
	s.t.Helper()
	if r := s.reconcile(); !r.Clean() {
		s.t.Errorf("the books do not agree: %+v", r.Breaches)
	}
}

func (s *system) balances() string {
	s.t.Helper()
	var all string
	s.query(&all, `SELECT string_agg(account_id || '=' || balance_idr, ' ' ORDER BY account_id) FROM wallet_accounts`)
	return all
}

// All records from offset 0 are recorded to files, shuffled, doubled, and sent again through the
// topics and directly to the functions. No balance changes, and the books agree before and after.
func TestEverythingReplayedChangesNothing(t *testing.T) {
	s := start(t, options{})
	producer := s.Producer()
	accounts, err := seeds.Accounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range accounts[:20] {
		events, err := seeds.AccountEvents(a, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if err := s.keys.Sign(&e); err != nil {
				t.Fatal(err)
			}
			if err := producer.Publish(t.Context(), s.kafka.AccountsTopic, a.ID, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.open(5000, "poor")
	for i := range 30 {
		s.expect(s.pay(fmt.Sprint("p-", i), "A", "B", "USD", 1+i), "200 SUCCESS committed")
	}
	s.expect(s.pay("p-0", "A", "B", "USD", 1), "200 SUCCESS_REPLAY duplicate_idempo")
	// Both pass the fast check, and the ledger refuses one. That refusal must stay too.
	tally(2, func(i int) answer { return s.pay(fmt.Sprint("poor-", i), "poor", "A", "IDR", 4000) })
	s.publish(request("direct", "poor", "B", 900_000)) // refused by the ledger
	s.drain()
	s.expectClean()
	before := s.balances()

	urls := map[string]string{
		s.kafka.RequestTopic: "http://" + s.Addr("worker") + "/", s.kafka.ResultTopic: s.url + "/events", s.kafka.AccountsTopic: "http://" + s.Addr("db") + "/",
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for topic, url := range urls {
		file := filepath.Join(t.TempDir(), "recorded.jsonl")
		got, err := replay.Run(t.Context(), replay.Config{From: "topic:" + topic, To: file, Kafka: s.kafka.Config})
		if err != nil || got.Outcomes["written"] < 31 {
			t.Fatalf("%s: %+v, %v", topic, got, err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		lines = append(lines, lines...)
		rng.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{"topic:" + topic, url} {
			got, err := replay.Run(t.Context(), replay.Config{From: file, To: to, InFlight: 16, Retries: 6, Kafka: s.kafka.Config})
			if err != nil || got.Matched != int64(len(lines)) || got.Refused+got.Failed > 0 {
				t.Errorf("%s to %s: %+v, %v", topic, to, got, err)
			}
		}
	}
	s.drain()
	if after := s.balances(); after != before {
		t.Errorf("the balances were\n%s, but are\n%s", before, after)
	}
	s.expectClean()
}

// reconcile finds each planted fault, and names the payment or account.
func TestReconcileSeesPlantedFaults(t *testing.T) {
	s := start(t, options{})
	pay := func(key string) { s.expect(s.pay(key, "A", "B", "USD", 10), "200 SUCCESS committed") }
	pay("one")
	pay("two")
	s.expectClean()

	type planted struct {
		plant, undo []string
		check       reconcile.Check
		account     string
		payment     string
	}
	for name, p := range map[string]planted{
		"a balance changed by hand": {
			plant: []string{`UPDATE wallet_accounts SET balance_idr = balance_idr + 7 WHERE account_id = 'C'`},
			undo:  []string{`UPDATE wallet_accounts SET balance_idr = balance_idr - 7 WHERE account_id = 'C'`},
			check: reconcile.Account, account: "C",
		},
		"a doubled credit": {
			plant: []string{`UPDATE wallet_accounts SET balance_idr = balance_idr + 155000 WHERE account_id = 'B'`},
			undo:  []string{`UPDATE wallet_accounts SET balance_idr = balance_idr - 155000 WHERE account_id = 'B'`},
			check: reconcile.Account, account: "B", payment: "two",
		},
		"a payment row deleted": {
			plant: []string{`CREATE TABLE kept AS SELECT * FROM payments WHERE idempotency_key = 'one'`, `DELETE FROM payments WHERE idempotency_key = 'one'`},
			undo:  []string{`INSERT INTO payments SELECT * FROM kept`, `DROP TABLE kept`},
			check: reconcile.Outcome, payment: "one",
		},
		"a whole payment deleted": {
			plant: []string{`CREATE TABLE kept AS SELECT * FROM payments WHERE idempotency_key = 'one'`, `CREATE TABLE claims AS SELECT * FROM reservations WHERE idempotency_key = 'one'`,
				`DELETE FROM payments WHERE idempotency_key = 'one'`, `DELETE FROM reservations WHERE idempotency_key = 'one'`},
			undo:  []string{`INSERT INTO reservations SELECT * FROM claims`, `INSERT INTO payments SELECT * FROM kept`, `DROP TABLE kept, claims`},
			check: reconcile.RequestDecided, payment: "one",
		},
		"an outcome turned": {
			plant: []string{`UPDATE reservations SET status = 'ROLLEDBACK' WHERE idempotency_key = 'two'`, `UPDATE payments SET status = 'FAILED', reason = 'expired' WHERE idempotency_key = 'two'`},
			undo:  []string{`UPDATE reservations SET status = 'COMMITTED' WHERE idempotency_key = 'two'`, `UPDATE payments SET status = 'SUCCESS', reason = 'committed' WHERE idempotency_key = 'two'`},
			check: reconcile.ResultTrue, payment: "two",
		},
		"money made": {
			plant: []string{`UPDATE fundings SET amount_idr = amount_idr + 1 WHERE account_id = 'A'`},
			undo:  []string{`UPDATE fundings SET amount_idr = amount_idr - 1 WHERE account_id = 'A'`},
			check: reconcile.Conservation,
		},
	} {
		for _, sql := range p.plant {
			s.exec(sql)
		}
		report := s.reconcile()
		found := false
		for _, b := range report.Breaches {
			found = found || b.Check == p.check && (p.account == "" || b.Account == p.account) && (p.payment == "" || b.Payment == p.payment)
		}
		if !found || report.Clean() {
			t.Errorf("%s: want a breach of %s (account %q, payment %q), got %+v", name, p.check, p.account, p.payment, report.Breaches)
		}
		for _, sql := range p.undo {
			s.exec(sql)
		}
		if r := s.reconcile(); !r.Clean() {
			t.Fatalf("%s: after it was undone: %+v", name, r.Breaches)
		}
	}
}

// reconcile finds events that are lost between functions.
func TestReconcileMissesEvents(t *testing.T) {
	s := start(t, options{})
	s.expect(s.pay("both-events", "A", "B", "USD", 10), "200 SUCCESS committed")
	s.faults.set(func(f *faults) {
		f.send = func(topic string) error {
			if topic == s.kafka.ResultTopic {
				return errLost
			}
			return nil
		}
	})
	impatient := s.at(s.replica(500 * time.Millisecond))
	s.expect(impatient.pay("no-result", "A", "B", "USD", 10), "504 FAILED queue_timeout")
	s.faults.set(func(f *faults) { f.send = nil })
	// This is what the worker would have done with the event.
	if _, err := paymentsv1.NewPaymentsServiceClient(s.Conn("payments")).LogAndSettle(t.Context(), &paymentsv1.LogAndSettleRequest{
		IdempotencyKey: "no-request", SenderId: "A", ReceiverId: "B", AmountIdr: 5000, Currency: "IDR", AmountMinor: 5000, AttemptId: "attempt",
		AcceptedAt: timestamppb.Now(), Deadline: timestamppb.New(time.Now().Add(time.Minute)),
	}); err != nil {
		t.Fatal(err)
	}
	got := map[string]reconcile.Check{}
	for _, b := range s.reconcile().Breaches {
		got[b.Payment] = b.Check
	}
	if len(got) != 2 || got["no-result"] != reconcile.ResultTold || got["no-request"] != reconcile.RequestKept {
		t.Errorf("%v", got)
	}
	// Events of payments that were accepted before Since are not compared. The ledger is still
	// added up.
	later, err := reconcile.Run(t.Context(), reconcile.Config{
		Database: s.conn.Config().ConnString(), Kafka: s.kafka.Config, Keys: &s.keys, Since: time.Now(), Grace: -2 * payment.DecideWithin,
	})
	if err != nil || !later.Clean() || later.Balances == 0 || later.Balances != later.Funded {
		t.Errorf("%+v, %v", later, err)
	}
	// Within the grace period nothing is compared, so nothing is missing.
	young, err := reconcile.Run(t.Context(), reconcile.Config{
		Database: s.conn.Config().ConnString(), Kafka: s.kafka.Config, Keys: &s.keys, Grace: reconcile.DefaultGrace,
	})
	if err != nil || !young.Clean() || young.TooYoung == 0 {
		t.Errorf("%+v, %v", young, err)
	}
}

// A dead letter has its reason. An operator sends it again through the start of the flow, or
// discards it, and the action is recorded.
func TestDeadLettersInOperatorsHands(t *testing.T) {
	s := start(t, options{})
	manifests, err := allinone.Manifests()
	if err != nil {
		t.Fatal(err)
	}
	box := &deadletter.Box{Kafka: s.kafka.Config, Group: s.kafka.Prefix, DB: s.Conn("db"), Manifests: manifests}
	forged, err := event.Requested("/pgw/gateway", request("forged", "A", "B", 1000), "", time.Now())
	if err == nil {
		err = s.Producer().Publish(t.Context(), s.kafka.RequestTopic, "forged", forged)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Closed out by payments itself.
	s.faults.set(func(f *faults) {
		f.rpc = func(called string) error {
			if strings.HasSuffix(called, "CommitReservation") {
				return status.Error(codes.FailedPrecondition, "never")
			}
			return nil
		}
	})
	s.expect(s.pay("hopeless", "A", "B", "IDR", 5000), "200 FAILED undeliverable")
	s.faults.set(func(f *faults) { f.rpc = nil })

	only := func(f deadletter.Filter) deadletter.Letter {
		t.Helper()
		var letters []deadletter.Letter
		s.eventually(fmt.Sprintf("one letter of %+v", f), func() error {
			if letters, err = box.Read(t.Context(), f); err == nil && len(letters) != 1 {
				err = fmt.Errorf("%d letters: %+v", len(letters), letters)
			}
			return err
		})
		return letters[0]
	}
	closed := only(deadletter.Filter{Key: "hopeless", State: deadletter.ClosedOut})
	if closed.Topic != s.kafka.DeadLetterTopic || closed.Function != "worker" || closed.Code != 400 || closed.Attempts != 1 ||
		closed.Outcome != "ROLLEDBACK undeliverable" || !strings.Contains(closed.Message, "never") {
		t.Errorf("%+v", closed)
	}
	parked := only(deadletter.Filter{Key: "forged", Topics: []string{s.kafka.ParkedTopic}, State: deadletter.Open})
	if parked.Function != "payments" || parked.Code != 403 || parked.Attempts != 1 || parked.Outcome != "" || !strings.Contains(parked.Message, "signature") {
		t.Errorf("%+v", parked)
	}
	if _, ok := parked.Event.Extensions()["knativeerrordest"]; ok || parked.Event.ID() != forged.ID() {
		t.Errorf("the letter's event has changed: %s", parked.Event)
	}
	if r := s.reconcile(); !r.Clean() {
		t.Errorf("a forged request counts as a breach: %+v", r.Breaches)
	}

	// An unsigned request that is sent again is refused again: an operator cannot get it accepted.
	if err := box.Redrive(t.Context(), s.Producer(), parked, "ayu", "once more"); err != nil {
		t.Fatal(err)
	}
	s.eventually("the forged request is parked a second time", func() error {
		letters, err := box.Read(t.Context(), deadletter.Filter{Key: "forged", Topics: []string{s.kafka.ParkedTopic}})
		if err == nil && (len(letters) != 2 || letters[0].State != deadletter.Redriven || letters[1].State != deadletter.Open) {
			err = fmt.Errorf("%+v", letters)
		}
		return err
	})
	if err := box.Discard(t.Context(), parked, "ayu", "forged"); err != nil {
		t.Fatal(err)
	}
	again := only(deadletter.Filter{Places: []kafka.Place{parked.Place}})
	if again.State != deadletter.Discarded || len(again.Actions) != 2 || again.Actions[0].Action != "REDRIVEN" || again.Actions[1].Note != "forged" || again.Actions[1].Operator != "ayu" {
		t.Errorf("%+v", again)
	}

	// An account's funds arrived before the account was open, and were parked. Sent again, they
	// count once.
	funded, err := event.New(event.TypeAccountFunded, "early", "/bank", "late", event.AccountFunded{AccountID: "late", AmountIDR: 700}, time.Now())
	if err == nil {
		err = s.keys.Sign(&funded)
	}
	if err == nil {
		funded.SetExtension("knativeerrordest", "http://db.pgw.svc.cluster.local/")
		funded.SetExtension("knativeerrorcode", "503")
		err = s.Producer().Publish(t.Context(), s.kafka.ParkedTopic, "late", funded)
	}
	if err != nil {
		t.Fatal(err)
	}
	early := only(deadletter.Filter{Key: "late"})
	if early.Function != "db" || early.Attempts != 11 || early.State != deadletter.Open {
		t.Errorf("%+v", early)
	}
	s.open(0, "late")
	for range 2 {
		if err := box.Redrive(t.Context(), s.Producer(), early, "ayu", "the account is open now"); err != nil {
			t.Fatal(err)
		}
	}
	s.drain()
	if got := s.balance("late"); got != 700 {
		t.Errorf("balance %d, want 700", got)
	}
	if _, err := box.Front(deadletter.Letter{}); !errors.Is(err, deadletter.ErrNoFront) {
		t.Errorf("an event of no known type: %v", err)
	}
	if _, err := box.Read(t.Context(), deadletter.Filter{Places: []kafka.Place{{Topic: s.kafka.ParkedTopic, Offset: 999}}}); err == nil {
		t.Error("a letter that does not exist is found")
	}
}

// Funds for an account that is not open are parked at once, with a reason, and hold up no other
// events. When the account is open, an operator sends them again and they count.
func TestFundsForNobodyHoldUpNobody(t *testing.T) {
	s := start(t, options{})
	manifests, err := allinone.Manifests()
	if err != nil {
		t.Fatal(err)
	}
	box := &deadletter.Box{Kafka: s.kafka.Config, Group: s.kafka.Prefix, DB: s.Conn("db"), Manifests: manifests}
	before := s.balance("A")
	for _, to := range []string{"late", "A"} {
		e, err := event.New(event.TypeAccountFunded, "funds", "/bank/"+to, to, event.AccountFunded{AccountID: to, AmountIDR: 700}, time.Now())
		if err == nil {
			err = s.keys.Sign(&e)
		}
		if err == nil { // one partition, in this order
			err = s.Producer().Publish(t.Context(), s.kafka.AccountsTopic, "late", e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.drain()
	if got := s.balance("A"); got != before+700 {
		t.Errorf("A has %d; had %d", got, before)
	}
	letters, err := box.Read(t.Context(), deadletter.Filter{Key: "late", State: deadletter.Open})
	if err != nil || len(letters) != 1 || letters[0].Code != 400 || letters[0].Attempts != 1 || !strings.Contains(letters[0].Message, "not open") {
		t.Fatalf("%+v, %v", letters, err)
	}
	s.open(0, "late")
	for range 2 {
		if err := box.Redrive(t.Context(), s.Producer(), letters[0], "ayu", "the account is open now"); err != nil {
			t.Fatal(err)
		}
	}
	s.drain()
	if got := s.balance("late"); got != 700 {
		t.Errorf("late has %d", got)
	}
}
