package flow

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/functions/pgw/reconcile"
	"pgw/functions/pgw/replay"
	commonv1 "pgw/proto/gen/common/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	"pgw/shared/event"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// ask is one attempt to pay. Only rupiah move if it names no currency.
type ask struct {
	key, from, to string
	amount        int64  // minor units of currency
	currency      string // of the fixed side
	debit, credit string // the currencies of the balances
	quote         string // the id of a firm quote
}

// rupiah is an attempt to pay in rupiah.
func rupiah(key, from, to string, amount int64) ask {
	return ask{key: key, from: from, to: to, amount: amount}
}

// reply is what a caller gets, in the same form for every way.
type reply struct {
	status, reason, ref string
	rejected            bool // the input is not a payment
}

// way is one way into the gateway. open prepares it, and returns how it pays. prefix begins its
// accounts and keys. posted means that its requests do not pass through Kafka. onlyRupiah means that its
// callers cannot name other currencies.
type way struct {
	name       string
	open       func(s *system) func(t *testing.T, a ask) reply
	prefix     string
	posted     bool
	onlyRupiah bool
}

var ways = []way{
	{name: "HTTP", open: overHTTP, prefix: "http"},
	{name: "gRPC CreatePayment", open: byCreatePayment, prefix: "create", onlyRupiah: true},
	{name: "gRPC LogAndSettle", open: byLogAndSettle, prefix: "settle", onlyRupiah: true},
	{name: "gRPC Settle", open: bySettle, prefix: "priced", posted: true},
	{name: "CloudEvent posted to worker", open: byPostedEvent, prefix: "post", posted: true},
	{name: "CloudEvent in Kafka", open: byEvent, prefix: "event"},
	{name: "plain record in Kafka", open: byPlainRecord, prefix: "plain", onlyRupiah: true},
	{name: "replay of a file to worker", open: byReplay, prefix: "replay", posted: true},
}

func overHTTP(s *system) func(*testing.T, ask) reply {
	return func(_ *testing.T, a ask) reply {
		got := s.post(a.body())
		return reply{got.Status, got.Reason, got.Ref, got.Code == 400}
	}
}

// body is the body of the payment over HTTP.
func (a ask) body() string {
	if a.currency == "" {
		return body(a.key, a.from, a.to, "IDR", a.amount)
	}
	var quote any // nil leaves the field out
	if a.quote != "" {
		quote = a.quote
	}
	return body(a.key, a.from, a.to, a.currency, amountOf(a.amount, a.currency).String(),
		"debit_currency", a.debit, "credit_currency", a.credit, "quote_id", quote)
}

// bySettle calls as worker does.
func bySettle(s *system) func(*testing.T, ask) reply {
	payments := paymentsv1.NewPaymentsServiceClient(s.Conn("payments"))
	return func(t *testing.T, a ask) reply {
		got, err := payments.Settle(t.Context(), rpc.FromPayment(s.attempt(t, a)))
		if err != nil {
			return reply{rejected: invalidArgument(t, err)}
		}
		outcome, err := rpc.ToOutcome(got.Outcome)
		if err != nil {
			t.Fatal(err)
		}
		return reply{status: string(outcome.Status), reason: string(outcome.Reason), ref: outcome.Ref}
	}
}

func byCreatePayment(s *system) func(*testing.T, ask) reply {
	payments := paymentsv1.NewPaymentsServiceClient(s.Conn("payments"))
	return func(t *testing.T, a ask) reply {
		got, err := payments.CreatePayment(t.Context(), &paymentsv1.CreatePaymentRequest{
			ClientTxId: a.key, SourceAccount: a.from, DestinationAccount: a.to,
			AmountMinor: a.amount, Currency: commonv1.Currency_IDR,
		})
		if err != nil {
			return reply{rejected: invalidArgument(t, err)}
		}
		return reply{status: got.Status, reason: got.Reason, ref: got.PaymentId}
	}
}

// byLogAndSettle calls as earlier workers do, with only the contract's fields.
func byLogAndSettle(s *system) func(*testing.T, ask) reply {
	payments := paymentsv1.NewPaymentsServiceClient(s.Conn("payments"))
	return func(t *testing.T, a ask) reply {
		got, err := payments.LogAndSettle(t.Context(), &paymentsv1.LogAndSettleRequest{
			IdempotencyKey: a.key, SenderId: a.from, ReceiverId: a.to, AmountIdr: a.amount, Currency: "IDR", TxDate: txDate,
		})
		if err != nil {
			return reply{rejected: invalidArgument(t, err)}
		}
		return reply{status: got.Status, reason: got.Message, ref: got.ReservationId}
	}
}

func invalidArgument(t *testing.T, err error) bool {
	t.Helper()
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	return true
}

func byPostedEvent(s *system) func(*testing.T, ask) reply {
	results := s.consume(s.kafka.ResultTopic)
	return func(t *testing.T, a ask) reply {
		switch code := s.postEvent("http://"+s.Addr("worker")+"/", s.requested(t, a)); code {
		case 202:
			return results.reply(a)
		case 400:
			return reply{rejected: true}
		default:
			t.Fatalf("worker answered %d", code)
			return reply{}
		}
	}
}

func byEvent(s *system) func(*testing.T, ask) reply {
	results, parked := s.consume(s.kafka.ResultTopic), s.consume(s.kafka.ParkedTopic)
	return func(t *testing.T, a ask) reply {
		if err := s.Producer().Publish(t.Context(), s.kafka.RequestTopic, a.key, s.requested(t, a)); err != nil {
			t.Fatal(err)
		}
		return results.replyOrParked(parked, a)
	}
}

func byPlainRecord(s *system) func(*testing.T, ask) reply {
	results, parked := s.consume(s.kafka.ResultTopic), s.consume(s.kafka.ParkedTopic)
	return func(t *testing.T, a ask) reply {
		value, err := json.Marshal(map[string]any{
			"idempotency_key": a.key, "sender_id": a.from, "receiver_id": a.to,
			"amount_idr": a.amount, "currency_input": "IDR", "tx_date": txDate,
		})
		if err != nil {
			t.Fatal(err)
		}
		err = s.Producer().Send(t.Context(), &sarama.ProducerMessage{
			Topic: s.kafka.RequestTopic, Key: sarama.StringEncoder(a.key), Value: sarama.ByteEncoder(value),
		})
		if err != nil {
			t.Fatal(err)
		}
		return results.replyOrParked(parked, a)
	}
}

func byReplay(s *system) func(*testing.T, ask) reply {
	results := s.consume(s.kafka.ResultTopic)
	return func(t *testing.T, a ask) reply {
		line, err := json.Marshal(s.requested(t, a))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "payment.jsonl")
		if err := os.WriteFile(file, line, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := replay.Run(t.Context(), replay.Config{
			From: file, To: "http://" + s.Addr("worker") + "/", InFlight: 1, Retries: 6, KeepGoing: true, Kafka: s.kafka.Config,
		})
		if err != nil {
			t.Fatal(err)
		}
		if got.Refused > 0 {
			return reply{rejected: true}
		}
		return results.reply(a)
	}
}

// attempt returns the priced payment of one attempt. Each call makes another attempt.
func (s *system) attempt(t *testing.T, a ask) payment.Payment {
	t.Helper()
	p := request(a.key, a.from, a.to, a.amount)
	if a.currency != "" {
		p = s.priced(t, p, a)
	}
	p.AttemptID = fmt.Sprintf("%s at %d", a.key, time.Now().UnixNano())
	return p
}

// requested returns the signed event of one attempt.
func (s *system) requested(t *testing.T, a ask) cloudevents.Event {
	t.Helper()
	e, err := event.Requested("/test", s.attempt(t, a), "", time.Now())
	if err == nil {
		err = s.keys.Sign(&e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// reply reads results up to the next one for this key.
func (r *reader) reply(a ask) reply {
	r.t.Helper()
	result := r.await(a.key)
	return reply{status: string(result.Status), reason: string(result.Reason), ref: result.Ref}
}

// replyOrParked reads the next result for this key, or finds the request in the topic of parked
// events.
func (r *reader) replyOrParked(parked *reader, a ask) reply {
	r.t.Helper()
	if a.isPayment() {
		return r.reply(a)
	}
	for {
		if m := parked.next(); string(m.Key) == a.key {
			return reply{rejected: true}
		}
	}
}

// isPayment reports whether the input can be a payment from outside.
func (a ask) isPayment() bool {
	return a.amount > 0 && a.from != "" && a.to != "" && a.to != payment.SettlementAccount && !strings.HasPrefix(a.key, payment.HoldPrefix)
}

// The same payments have the same outcomes and texts in every way. The ledger then has the same
// state for each, and the same money has moved.
func TestEveryWayInPaysAlike(t *testing.T) {
	s := start(t, options{})
	s.rules(&riskv1.SeedRulesRequest{MaxAmount: 1_000_000_000, MinAmountIdr: ptr(int64(1)), RandomRejectPpm: ptr(uint32(0))})
	s.exchanges()
	posted := map[string]bool{}
	for _, w := range ways {
		posted[w.prefix] = w.posted
		t.Run(w.name, func(t *testing.T) {
			s.conforms(t, w)
			if !w.onlyRupiah {
				s.conformsInCurrencies(t, w)
			}
		})
	}
	s.drain()
	for _, b := range s.reconcile().Breaches {
		// Events that are posted to worker were never in Kafka, where reconcile looks for them.
		prefix, _, _ := strings.Cut(b.Payment, "-")
		if !posted[prefix] || b.Check != reconcile.RequestKept {
			t.Errorf("the books do not agree: %+v", b)
		}
	}
}

// conforms pays in one way.
func (s *system) conforms(t *testing.T, w way) {
	prefix := w.prefix
	payer, payee, poor, limited, blocked := prefix+"-payer", prefix+"-payee", prefix+"-poor", prefix+"-limited", prefix+"-blocked"
	nobody := prefix + "-nobody"
	s.open(1_000_000, payer, payee, limited, blocked)
	s.open(1500, poor)
	s.exec(`UPDATE balances SET status = 'BLOCKED' WHERE account_id = $1`, blocked)
	s.exec(`UPDATE balances SET daily_limit = 5000 WHERE account_id = $1`, limited)
	pay := w.open(s)
	refs := map[string]string{}

	for _, tc := range []struct {
		name string
		ask  ask
		want string // status and reason; empty: the input is rejected
	}{
		{"settled", rupiah("1", payer, payee, 5000), "SUCCESS committed"},
		{"a second attempt", rupiah("1", payer, payee, 5000), "SUCCESS_REPLAY duplicate_idempo"},
		{"the key of another request", rupiah("1", payer, payee, 5001), "FAILED idempotency_mismatch"},
		{"insufficient funds", rupiah("2", poor, payee, 1501), "FAILED insufficient_funds"},
		{"all funds", rupiah("3", poor, payee, 1500), "SUCCESS committed"},
		{"a refusal is final", rupiah("2", poor, payee, 1501), "FAILED insufficient_funds"},
		{"the daily limit", rupiah("4", limited, payee, 5001), "FAILED daily_limit_exceeded"},
		{"within the daily limit", rupiah("5", limited, payee, 5000), "SUCCESS committed"},
		{"a blocked sender", rupiah("6", blocked, payee, 1000), "FAILED sender_blocked"},
		{"a blocked receiver", rupiah("7", payer, blocked, 1000), "FAILED receiver_blocked"},
		{"an unknown sender", rupiah("8", nobody, payee, 1000), "FAILED unknown_sender"},
		{"an unknown receiver", rupiah("9", payer, nobody, 1000), "FAILED unknown_receiver"},
		{"to oneself", rupiah("10", payer, payer, 1000), "FAILED risk_same_party"},
		{"no amount", rupiah("11", payer, payee, 0), ""},
		{"a negative amount", rupiah("12", payer, payee, -5), ""},
		{"no sender", rupiah("13", "", payee, 1000), ""},
		{"no receiver", rupiah("14", payer, "", 1000), ""},
		{"the house's account", rupiah("15", payer, payment.SettlementAccount, 1000), ""},
		{"the key of a hold", rupiah(payment.HoldPrefix+"16", payer, payee, 1000), ""},
	} {
		if !strings.HasPrefix(tc.ask.key, payment.HoldPrefix) {
			tc.ask.key = prefix + "-" + tc.ask.key
		}
		before := s.balances()
		known, _ := s.state(url.PathEscape(tc.ask.key))
		got := pay(t, tc.ask)
		code, after := s.state(url.PathEscape(tc.ask.key))
		moved := s.balances() != before

		if tc.want == "" {
			if !got.rejected || moved || code != known {
				t.Errorf("%s: got %+v, moved money: %t, the ledger: %d %+v", tc.name, got, moved, code, after)
			}
			continue
		}
		if outcome := got.status + " " + got.reason; outcome != tc.want || got.rejected {
			t.Errorf("%s: got %s; want %s", tc.name, outcome, tc.want)
		}
		if settled := got.status == string(payment.Success); moved != settled {
			t.Errorf("%s: got %s, and moved money: %t", tc.name, got.status, moved)
		}
		switch got.status {
		case string(payment.Success):
			refs[tc.ask.key] = got.ref
			if after.State != string(payment.Committed) || after.AmountIDR != tc.ask.amount || got.ref == "" || after.Ref != got.ref {
				t.Errorf("%s: got ref %q, and the ledger has %+v", tc.name, got.ref, after)
			}
		case string(payment.SuccessReplay):
			if got.ref != refs[tc.ask.key] {
				t.Errorf("%s: got ref %q; the first attempt got %q", tc.name, got.ref, refs[tc.ask.key])
			}
		case string(payment.Failed):
			mismatch := got.reason == string(payment.IdempotencyMismatch)
			if !mismatch && (after.State != string(payment.RolledBack) || after.Reason != got.reason) {
				t.Errorf("%s: got %s, and the ledger has %+v", tc.name, got.reason, after)
			}
		}
	}
}
