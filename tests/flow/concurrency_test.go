package flow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
)

// tally makes n payments at the same time and counts the outcomes.
func tally(n int, pay func(i int) answer) map[string]int {
	var mu sync.Mutex
	counts := map[string]int{}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			got := pay(i).outcome()
			mu.Lock()
			defer mu.Unlock()
			counts[got]++
		})
	}
	wg.Wait()
	return counts
}

func TestSixtyFourAtOnceWithOneKey(t *testing.T) {
	s := start(t, options{})
	a := s.balance("A")
	var refs sync.Map
	counts := tally(64, func(int) answer {
		got := s.pay("one key", "A", "B", "USD", 10)
		refs.Store(got.Ref, true)
		return got
	})
	if counts["200 SUCCESS committed"] != 1 || counts["200 SUCCESS_REPLAY duplicate_idempo"] != 63 {
		t.Errorf("%v", counts)
	}
	n := 0
	refs.Range(func(any, any) bool { n++; return true })
	if n != 1 || s.balance("A") != a-155_000 {
		t.Errorf("%d refs; the sender paid %d", n, a-s.balance("A"))
	}
}

func TestHotReceiver(t *testing.T) {
	s := start(t, options{})
	b := s.balance("B")
	counts := tally(200, func(i int) answer { return s.pay(fmt.Sprint("hot-", i), []string{"A", "C"}[i%2], "B", "IDR", 1000) })
	if counts["200 SUCCESS committed"] != 200 || s.balance("B") != b+200_000 {
		t.Errorf("%v; B got %d", counts, s.balance("B")-b)
	}
}

func TestTwoAccountsPayEachOther(t *testing.T) {
	s := start(t, options{})
	a := s.balance("A")
	counts := tally(200, func(i int) answer {
		from, to := "A", "B"
		if i%2 == 1 {
			from, to = to, from
		}
		return s.pay(fmt.Sprint("cross-", i), from, to, "IDR", 1000)
	})
	if counts["200 SUCCESS committed"] != 200 || s.balance("A") != a {
		t.Errorf("%v; A is off by %d", counts, s.balance("A")-a)
	}
}

func TestFundsForExactlySome(t *testing.T) {
	s := start(t, options{})
	s.open(7*1000+500, "LITTLE")
	counts := tally(40, func(i int) answer { return s.pay(fmt.Sprint("little-", i), "LITTLE", "B", "IDR", 1000) })
	if counts["200 SUCCESS committed"] != 7 || counts["200 FAILED insufficient_funds"] != 33 || s.balance("LITTLE") != 500 {
		t.Errorf("%v; %d left", counts, s.balance("LITTLE"))
	}
}

// The commit takes effect, but its answer is lost. The request is delivered again. The waiting
// client, which has no answer yet, gets SUCCESS and not SUCCESS_REPLAY.
func TestALostAnswerIsNotLostMoney(t *testing.T) {
	s := start(t, options{})
	for _, method := range []string{"ReserveAndCommit", "Settle", "Reserve", "CommitReservation"} {
		var lost atomic.Bool
		s.faults.set(func(f *faults) {
			if method == "Reserve" { // it and CommitReservation are called only where payments takes two steps
				f.rpc = inTwoSteps(func(string) error { return nil })
			}
			f.post = func(called string) error {
				if strings.HasSuffix(called, "/"+method) && lost.CompareAndSwap(false, true) {
					return status.Error(codes.Unavailable, "the answer is lost")
				}
				return nil
			}
		})
		a := s.balance("A")
		s.expect(s.pay("lost-"+method, "A", "B", "IDR", 5000), "200 SUCCESS committed")
		if !lost.Load() || s.balance("A") != a-5000 {
			t.Errorf("%s: lost %t, paid %d", method, lost.Load(), a-s.balance("A"))
		}
		s.checkSum()
	}
}

// The result could not be published. The request is delivered again, and settles nothing twice.
func TestAResultThatCouldNotBePublished(t *testing.T) {
	s := start(t, options{})
	var lost atomic.Int32
	s.faults.set(func(f *faults) {
		f.send = func(topic string) error {
			if topic == s.kafka.ResultTopic && lost.Add(1) <= 2 {
				return errors.New("no broker")
			}
			return nil
		}
	})
	a := s.balance("A")
	s.expect(s.pay("result lost", "A", "B", "IDR", 5000), "200 SUCCESS committed")
	if s.balance("A") != a-5000 {
		t.Errorf("paid %d", a-s.balance("A"))
	}
}

// A crash between reserve and commit leaves a hold. When the same event is delivered again, the
// payment is finished. Without such an event, the sweep releases the hold after its deadline.
func TestCrashBetweenReserveAndCommit(t *testing.T) {
	s := start(t, options{answerIn: 300 * time.Millisecond})
	crash := inTwoSteps(func(called string) error {
		if strings.HasSuffix(called, "CommitReservation") {
			return status.Error(codes.Unavailable, "crashed")
		}
		return nil
	})
	a := s.balance("A")
	s.faults.set(func(f *faults) { f.rpc = crash })
	s.expect(s.pay("held", "A", "B", "IDR", 5000), "504 FAILED queue_timeout")
	s.eventually("the money is held", func() error {
		if code, st := s.state("held"); code != 200 || st.State != "PENDING" || s.balance("A") != a-5000 {
			return fmt.Errorf("%d %+v", code, st)
		}
		return nil
	})
	s.checkSum()
	s.faults.set(func(f *faults) { f.rpc = nil })
	s.eventually("the redelivered event finishes it", func() error {
		if _, st := s.state("held"); st.State != "COMMITTED" {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})

	// A hold that was made directly, past its deadline. No event finishes it.
	db := dbv1.NewDbClient(s.Conn("db"))
	held, err := db.ReserveFunds(t.Context(), &dbv1.ReserveFundsRequest{
		IdempotencyKey: "orphan", SenderId: "A", ReceiverId: "B", AmountIdr: 7000, CurrencyInput: "IDR",
	})
	if err != nil || held.Status != int32(dbv1.TxStatus_OK) {
		t.Fatal(held, err)
	}
	s.exec(`UPDATE reservations SET deadline = now() - interval '1 second' WHERE idempotency_key = 'orphan'`)
	results := s.consume(s.kafka.ResultTopic)
	swept, err := dbv1.NewAdminClient(s.Conn("db")).Sweep(t.Context(), &dbv1.SweepRequest{})
	if err != nil || swept.RolledBack != 1 {
		t.Fatal(swept, err)
	}
	if r := results.await("orphan"); r.Status != payment.Failed || r.Reason != payment.Expired {
		t.Errorf("the result is %+v", r)
	}
	if _, st := s.state("orphan"); st.State != "ROLLEDBACK" || st.Reason != "expired" || s.balance("A") != a-5000 {
		t.Errorf("%+v; A is off by %d", st, s.balance("A")-a)
	}
	got, err := db.CommitReservation(t.Context(), &dbv1.CommitReservationRequest{ReservationId: held.ReservationId})
	if err != nil || got.Status != dbv1.TxStatus_BAD_STATUS {
		t.Errorf("commit after the sweep: %v, %v", got, err)
	}
}

// A request past its deadline is recorded as expired, on every way in.
func TestARequestPastItsDeadline(t *testing.T) {
	s := start(t, options{})
	r := request("late", "A", "B", 5000)
	r.AcceptedAt = time.Now().Add(-2 * time.Minute)
	r.Deadline = r.AcceptedAt.Add(payment.DecideWithin)
	results := s.consume(s.kafka.ResultTopic)
	s.publish(r)
	if got := results.await("late"); got.Status != payment.Failed || got.Reason != payment.Expired {
		t.Errorf("the result is %+v", got)
	}
	if _, st := s.state("late"); st.Reason != "expired" {
		t.Errorf("%+v", st)
	}
	s.expect(s.pay("late", "A", "B", "IDR", 5000), "200 FAILED expired")
}

// A commit that the ledger refuses is rolled back, and the client gets that outcome.
func TestCommitFailed(t *testing.T) {
	s := start(t, options{})
	a := s.balance("A")
	s.faults.set(func(f *faults) {
		f.rpc = inTwoSteps(func(called string) error {
			if strings.HasSuffix(called, "CommitReservation") {
				s.faults.set(func(f *faults) { f.rpc = nil })
				conn, err := connect(s)
				if err != nil {
					return err
				}
				defer conn.Close(context.Background())
				_, err = conn.Exec(context.Background(), `UPDATE balances SET status = 'BLOCKED' WHERE account_id = 'B'`)
				return err
			}
			return nil
		})
	})
	s.expect(s.pay("blocked meanwhile", "A", "B", "IDR", 5000), "200 FAILED commit_failed")
	if s.balance("A") != a {
		t.Errorf("A is off by %d", s.balance("A")-a)
	}
}

// A plain record of an earlier producer settles. A broken record and an unsigned CloudEvent go to
// the dead letters, do not close other payments, and hold up nothing.
func TestPlainRecordsAndForgeries(t *testing.T) {
	s := start(t, options{})
	a := s.balance("A")
	results := s.consume(s.kafka.ResultTopic)
	plain := func(key string, fields map[string]any) {
		text, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Producer().Send(t.Context(), &sarama.ProducerMessage{
			Topic: s.kafka.RequestTopic, Key: sarama.StringEncoder(key), Value: sarama.ByteEncoder(text)}); err != nil {
			t.Fatal(err)
		}
	}
	record := map[string]any{"idempotency_key": "plain-1", "sender_id": "A", "receiver_id": "B", "amount_idr": 9000, "currency_input": "USD", "tx_date": txDate}
	plain("plain-1", record)
	got := results.await("plain-1")
	if got.Status != payment.Success || got.Reason != payment.ReasonCommitted || got.Ref == "" || s.balance("A") != a-9000 {
		t.Errorf("the result is %+v; A paid %d", got, a-s.balance("A"))
	}

	plain("broken", map[string]any{"idempotency_key": "broken", "sender_id": "A"})
	plain("not JSON", nil)
	forged, err := event.Requested("/pgw/gateway", request("forged", "A", "B", 1000), "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Producer().Publish(t.Context(), s.kafka.RequestTopic, "forged", forged); err != nil {
		t.Fatal(err)
	}
	dead := s.consume(s.kafka.DeadLetterTopic)
	parked := s.consume(s.kafka.ParkedTopic)
	for range 3 {
		m := parked.next()
		if header(m, "ce_knativeerrorcode") == "" || header(m, "ce_knativeerrordest") == "" {
			t.Errorf("a parked record does not say why: %v", m.Headers)
		}
	}
	if n := len(s.records(s.kafka.DeadLetterTopic)); n != 3 {
		t.Errorf("%d dead letters, want 3", n)
	}
	dead.close()
	if code, _ := s.state("forged"); code != 404 {
		t.Errorf("the forged request reached the ledger: %d", code)
	}
	s.expect(s.pay("after them", "A", "B", "IDR", 1000), "200 SUCCESS committed")
}

// A request that its worker can never have settled is closed out from the dead letters. The client
// and the ledger get the same outcome.
func TestDeadLettersAreClosedOut(t *testing.T) {
	s := start(t, options{})
	a := s.balance("A")
	s.faults.set(func(f *faults) {
		f.rpc = inTwoSteps(func(called string) error {
			if strings.HasSuffix(called, "CommitReservation") {
				return status.Error(codes.FailedPrecondition, "never")
			}
			return nil
		})
	})
	s.expect(s.pay("hopeless", "A", "B", "IDR", 5000), "200 FAILED undeliverable")
	if _, st := s.state("hopeless"); st.State != "ROLLEDBACK" || st.Reason != "undeliverable" || s.balance("A") != a {
		t.Errorf("%+v; A is off by %d", st, s.balance("A")-a)
	}
}

// Forged results reach no client, neither unsigned ones nor ones signed with another key.
func TestForgedResultsAreRefused(t *testing.T) {
	s := start(t, options{answerIn: time.Second})
	s.faults.set(func(f *faults) {
		f.rpc = func(called string) error {
			if strings.HasPrefix(called, "/payments.v1.") {
				return status.Error(codes.Unavailable, "down")
			}
			return nil
		}
	})
	var other event.Keyring
	if err := other.Decode("k1:b3RoZXJvdGhlcm90aGVyb3RoZXJvdGhlcm90aGVyb3RoZXI="); err != nil {
		t.Fatal(err)
	}
	answered := make(chan answer)
	go func() { answered <- s.pay("forge me", "A", "B", "IDR", 5000) }()
	for _, sign := range []bool{false, true} {
		e, err := event.Result("/pgw/worker", event.PaymentResult{
			Key: "forge me", Outcome: payment.Outcome{Status: payment.Success, Reason: payment.ReasonCommitted, Ref: "free"},
			Fingerprint: request("forge me", "A", "B", 5000).Fingerprint(),
		}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if sign {
			if err := other.Sign(&e); err != nil {
				t.Fatal(err)
			}
		}
		if code := s.postEvent(s.url+"/events", e); code != 403 {
			t.Errorf("signed with an unknown key %t: %d", sign, code)
		}
	}
	if got := <-answered; got.outcome() != "504 FAILED queue_timeout" {
		t.Errorf("the client got %s", got)
	}
	s.faults.set(func(f *faults) { f.rpc = nil })
	s.drain()
}

// Events open and fund accounts. Each event id counts once, in any order of delivery.
func TestAccountEvents(t *testing.T) {
	s := start(t, options{})
	send := func(eventType, id string, data any, at time.Time) {
		e, err := event.New(eventType, id, "/bank", "NEW", data, at)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.keys.Sign(&e); err != nil {
			t.Fatal(err)
		}
		if err := s.Producer().Publish(t.Context(), s.kafka.AccountsTopic, "NEW", e); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	opened := event.AccountOpened{AccountID: "NEW", Owner: "New Owner", Currency: "SGD", Status: "ACTIVE"}
	blocked := opened
	blocked.Status = "BLOCKED"
	send(event.TypeAccountOpened, "o1", opened, now)
	for range 3 {
		send(event.TypeAccountFunded, "f1", event.AccountFunded{AccountID: "NEW", AmountIDR: 10_000}, now)
	}
	send(event.TypeAccountFunded, "f2", event.AccountFunded{AccountID: "NEW", AmountIDR: 5_000}, now)
	send(event.TypeAccountOpened, "o2", blocked, now.Add(time.Second))
	send(event.TypeAccountOpened, "o1", opened, now) // is delivered again, late
	send(event.TypeAccountFunded, "f3", event.AccountFunded{AccountID: "NEW", AmountIDR: 1}, now)
	s.eventually("the last event is applied", func() error {
		var balance int64
		if err := s.conn.QueryRow(t.Context(), `SELECT balance_idr FROM wallet_accounts WHERE account_id = 'NEW'`).Scan(&balance); err != nil {
			return err
		}
		if balance != 15_001 {
			return fmt.Errorf("balance %d", balance)
		}
		return nil
	})
	var accountStatus string
	s.query(&accountStatus, `SELECT status FROM balances WHERE account_id = 'NEW' AND currency = 'IDR'`)
	if accountStatus != "BLOCKED" {
		t.Errorf("the older event won: %s", accountStatus)
	}
	forged, err := event.New(event.TypeAccountFunded, "f9", "/bank", "A", event.AccountFunded{AccountID: "A", AmountIDR: 1_000_000}, now)
	if err != nil {
		t.Fatal(err)
	}
	if code := s.postEvent("http://"+s.Addr("db")+"/", forged); code != 403 {
		t.Errorf("an unsigned funding: %d", code)
	}
}

// The system stops and starts again on the same data. Work in progress is finished.
func TestRestartKeepsEverything(t *testing.T) {
	s := start(t, options{})
	s.expect(s.pay("before", "A", "B", "IDR", 5000), "200 SUCCESS committed")
	s.faults.set(func(f *faults) {
		f.rpc = inTwoSteps(func(called string) error {
			if strings.HasSuffix(called, "CommitReservation") {
				return status.Error(codes.Unavailable, "down")
			}
			return nil
		})
	})
	impatient := s.at(s.replica(300 * time.Millisecond))
	s.expect(impatient.pay("under way", "A", "B", "IDR", 5000), "504 FAILED queue_timeout")
	s.stop()

	again := start(t, options{database: s.conn.Config().ConnString(), kafka: &s.kafka, serial: true})
	again.eventually("what was under way is finished", func() error {
		if _, st := again.state("under way"); st.State != "COMMITTED" {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	again.expect(again.pay("before", "A", "B", "IDR", 5000), "200 SUCCESS_REPLAY duplicate_idempo")
	again.expect(again.pay("after", "A", "B", "USD", 1), "200 SUCCESS committed")
}

func request(key, from, to string, amount int64) payment.Payment {
	now := time.Now().UTC()
	r := payment.Payment{
		Key: key, Sender: from, Receiver: to, AmountIDR: amount, TxDate: txDate,
		AcceptedAt: now, Deadline: now.Add(payment.DecideWithin), AttemptID: key + "-1",
	}
	r.Minor, r.Currency = amount, idr
	return r
}

// A result that is delivered again reaches a second attempt that waits. SUCCESS was already
// reported once, so the second attempt gets SUCCESS_REPLAY.
func TestARedeliveredResultIsAReplay(t *testing.T) {
	s := start(t, options{})
	first := s.expect(s.pay("twice", "A", "B", "IDR", 5000), "200 SUCCESS committed")
	s.faults.set(func(f *faults) {
		f.rpc = func(called string) error {
			if strings.HasPrefix(called, "/payments.v1.") {
				return status.Error(codes.Unavailable, "down")
			}
			return nil
		}
	})
	second := make(chan answer)
	go func() { second <- s.pay("twice", "A", "B", "IDR", 5000) }()
	old, err := kafka.ReadRecord(t.Context(), s.records(s.kafka.ResultTopic)[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	for {
		if code := s.postEvent(s.url+"/events", old); code != 202 {
			t.Errorf("the result: %d", code)
		}
		select {
		case got := <-second:
			if s.expect(got, "200 SUCCESS_REPLAY duplicate_idempo"); got.Ref != first.Ref {
				t.Errorf("another ref: %s", got)
			}
			s.faults.set(func(f *faults) { f.rpc = nil })
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}
