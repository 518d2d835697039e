package flow

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/functions/pgw/replay"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
)

// operate publishes the event of an operation, as the gateway does.
func (s *system) operate(o payment.Operation) {
	s.t.Helper()
	now := time.Now().UTC()
	o.AcceptedAt, o.Deadline, o.AttemptID = now, now.Add(payment.DecideWithin), o.Key+"-1"
	outbox := event.Outbox{Source: "/test", Keys: &s.keys, To: s.Producer(), Now: time.Now}
	if err := outbox.RequestOperation(s.t.Context(), s.kafka.RequestTopic, o, ""); err != nil {
		s.t.Fatal(err)
	}
}

func (s *system) refund(key, of string, minor int64, currency string) {
	s.t.Helper()
	o := payment.Operation{Kind: payment.Refund, Key: key, Payment: of, Minor: minor, Note: "broken"}
	if minor != 0 {
		o.Currency = currencyOf(currency)
	}
	s.operate(o)
}

// told returns the results of operations, by the keys of the operations.
func (s *system) told() map[string]event.OperationResult {
	s.t.Helper()
	results := map[string]event.OperationResult{}
	for _, m := range s.records(s.kafka.ResultTopic) {
		e, err := kafka.ReadRecord(s.t.Context(), m, nil)
		if err != nil || !event.IsOperationResult(e) {
			continue
		}
		got, err := event.ReadOperationResult(e, &s.keys)
		if err != nil {
			s.t.Fatal(err)
		}
		if string(m.Key) != got.Payment {
			s.t.Errorf("the result of %s is in the partition of %s", got.Key, m.Key)
		}
		if before, twice := results[got.Key]; twice && (before.Status != got.Status && got.Status != payment.SuccessReplay || before.Reason != got.Reason) {
			s.t.Errorf("%s is told as %+v and as %+v", got.Key, before.Outcome, got.Outcome)
		}
		results[got.Key] = got
	}
	return results
}

// replayAll sends everything again from offset 0: through the topics and directly to the functions.
func (s *system) replayAll() {
	s.t.Helper()
	for topic, url := range map[string]string{
		s.kafka.RequestTopic: "http://" + s.Addr("worker") + "/", s.kafka.ResultTopic: s.url + "/events", s.kafka.AccountsTopic: "http://" + s.Addr("db") + "/",
	} {
		file := filepath.Join(s.t.TempDir(), "recorded.jsonl")
		if _, err := replay.Run(s.t.Context(), replay.Config{From: "topic:" + topic, To: file, Kafka: s.kafka.Config}); err != nil {
			s.t.Fatal(err)
		}
		if text, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(text)) == "" {
			continue // nothing was published
		}
		for _, to := range []string{"topic:" + topic, url} {
			got, err := replay.Run(s.t.Context(), replay.Config{From: file, To: to, InFlight: 16, Retries: 6, Kafka: s.kafka.Config})
			if err != nil || got.Refused+got.Failed > 0 {
				s.t.Errorf("%s to %s: %+v, %v", topic, to, got, err)
			}
		}
	}
	s.drain()
}

// Refunds travel as payments do: each has one outcome and one result, whatever answers are lost on the
// way, and everything sent again changes nothing.
func TestRefundsByEvent(t *testing.T) {
	s := start(t, options{})
	s.exchanges()
	s.openWith("payer", amountOf(100_000, "USD"), amountOf(1_000_000, "IDR"))
	s.openWith("merchant", amountOf(1, "IDR"), amountOf(0, "SGD"))
	begin := s.everything()
	s.expect(s.post(body("dollars", "payer", "merchant", "USD", "100.00", "debit_currency", "USD", "credit_currency", "SGD")), "200 SUCCESS committed")
	s.expect(s.post(body("rupiah", "payer", "merchant", "IDR", 100_000)), "200 SUCCESS committed")

	var lost atomic.Int64 // of every third commit, the answer is lost
	s.faults.set(func(f *faults) {
		f.post = func(method string) error {
			if strings.HasSuffix(method, "/CommitReservation") && lost.Add(1)%3 == 0 {
				return status.Error(codes.Unavailable, "the answer is lost")
			}
			return nil
		}
	})
	s.refund("d1", "dollars", 6_000, "USD")
	s.refund("d2", "dollars", 6_000, "USD")
	s.refund("r1", "rupiah", 60_000, "IDR")
	s.refund("r2", "rupiah", 60_000, "IDR")
	s.drain()
	s.refund("of r1", "r1", 1, "IDR")
	s.refund("of r2", "r2", 1, "IDR")
	s.refund("d3", "dollars", 0, "")
	s.refund("r3", "rupiah", 0, "")
	s.drain()
	s.refund("too much", "dollars", 0, "")
	// A part is captured, and its payment canceled afterwards: the part is refunded.
	s.expect(s.post(body("held", "payer", "merchant", "IDR", 1_000, "capture", "manual")), "200 SUCCESS authorized")
	s.operate(payment.Operation{Kind: payment.Capture, Key: "capture", Payment: "held", Minor: 600, Currency: currencyOf("IDR")})
	s.drain()
	s.operate(payment.Operation{Kind: payment.Cancel, Key: "cancel", Payment: "held"})
	s.drain()
	s.operate(payment.Operation{Kind: payment.Cancel, Key: "cancel again", Payment: "held"})
	s.drain()
	s.faults.set(func(f *faults) { f.post = nil })

	told := s.told()
	for _, pair := range [][2]string{{"d1", "d2"}, {"r1", "r2"}} {
		one, other := told[pair[0]].Reason, told[pair[1]].Reason
		if one == payment.RefundExceedsPayment {
			one, other = other, one
		}
		if one != payment.ReasonCommitted || other != payment.RefundExceedsPayment {
			t.Errorf("twice 60 of 100: %s and %s", one, other)
		}
	}
	for key, want := range map[string]payment.Reason{
		"d3": payment.ReasonCommitted, "r3": payment.ReasonCommitted, "too much": payment.RefundExceedsPayment,
		"capture": payment.ReasonCommitted, "cancel": payment.ReasonCommitted, "cancel again": payment.DuplicateIdempo,
		"of r1": payment.PaymentNotSettled, "of r2": payment.PaymentNotSettled,
	} {
		if told[key].Reason != want {
			t.Errorf("%s: %+v, want %s", key, told[key], want)
		}
	}
	if d := told["d3"]; d.SenderMinor != 4_000 || d.RefundedMinor != 10_000 || d.AmountMinor != 10_000 || len(d.Entries) != 4 || d.SenderCurrency.String() != "USD" {
		t.Errorf("the rest of the dollars: %+v", d)
	}
	// The house's spread of the payment stays in SPREAD, and LIQUIDITY has paid it.
	for _, account := range []string{"payer", "merchant"} {
		for _, currency := range []string{"USD", "SGD", "IDR"} {
			available, held := s.has(account, currency)
			if want := fmt.Sprintf("%s %s=%d+0", account, currency, available); held != 0 || available != 0 && !strings.Contains(begin, want) {
				t.Errorf("%s has %d and %d on hold in %s; at the beginning: %s", account, available, held, currency, begin)
			}
		}
	}
	s.expectClean()
	before := s.everything()
	s.replayAll()
	if after := s.everything(); after != before {
		t.Errorf("the balances were\n%s, but are\n%s", before, after)
	}
	s.told()
	s.expectClean()
}

// A cancellation that is published together with its payment comes before it, or rolls it back, or gives
// it back. The payer never loses anything, and the client hears which.
func TestCancelAgainstCommit(t *testing.T) {
	s := start(t, options{})
	s.open(1_000_000, "buyer", "shop")
	const n = 24
	for i := range n {
		key := fmt.Sprint("order-", i)
		s.publish(request(key, "buyer", "shop", 10_000))
		s.operate(payment.Operation{Kind: payment.Cancel, Key: "cancel-of-" + key, Payment: key})
		if i%4 == 0 {
			s.operate(payment.Operation{Kind: payment.Cancel, Key: "another-cancel-of-" + key, Payment: key, Note: "in a hurry"})
			s.refund("refund-of-"+key, key, 4_000, "IDR")
		}
	}
	s.drain()
	told := s.told()
	for i := range n {
		key := fmt.Sprint("order-", i)
		var state string
		var refunded int64
		if err := s.conn.QueryRow(t.Context(), `SELECT status, coalesce(refunded_minor, 0) FROM reservations WHERE idempotency_key = $1`, key).Scan(&state, &refunded); err != nil {
			t.Fatal(err)
		}
		got := told["cancel-of-"+key]
		if got.Status == payment.Failed && (got.RefundKey == "" || got.Reason != payment.RefundExceedsPayment) || got.Payment != key {
			t.Errorf("%s is told as %+v", key, got)
		}
		if state == "COMMITTED" && refunded != 10_000 || state == "PENDING" {
			t.Errorf("%s is %s, and %d are given back; %+v", key, state, refunded, got.Outcome)
		}
	}
	for _, account := range []string{"buyer", "shop"} {
		if balance := s.balance(account); balance != 1_000_000 {
			t.Errorf("%s has %d", account, balance)
		}
	}
	s.expectClean()
	before := s.everything()
	s.replayAll()
	if after := s.everything(); after != before {
		t.Errorf("the balances were\n%s, but are\n%s", before, after)
	}
	s.expectClean()
}
