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

	"pgw/functions/pgw/replay"
	commonv1 "pgw/proto/gen/common/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	"pgw/shared/event"
	"pgw/shared/payment"
)

// ask is one attempt to pay, in rupiah.
type ask struct {
	key, from, to string
	amount        int64
}

// heard is what the caller of one way hears.
type heard struct {
	status, reason, ref string
	rejected            bool // the input is no payment
}

// way is one way into the gateway. open prepares it, and returns how it pays.
type way struct {
	name string
	open func(s *system) func(t *testing.T, a ask) heard
}

var ways = []way{
	{"HTTP", overHTTP},
	{"gRPC CreatePayment", byCreatePayment},
	{"gRPC LogAndSettle", byLogAndSettle},
	{"CloudEvent posted to worker", byPostedEvent},
	{"CloudEvent in Kafka", byEvent},
	{"plain record in Kafka", byPlainRecord},
	{"replay of a file to worker", byReplay},
}

func overHTTP(s *system) func(*testing.T, ask) heard {
	return func(_ *testing.T, a ask) heard {
		got := s.pay(a.key, a.from, a.to, "IDR", a.amount)
		return heard{got.Status, got.Reason, got.Ref, got.Code == 400}
	}
}

func byCreatePayment(s *system) func(*testing.T, ask) heard {
	payments := paymentsv1.NewPaymentsServiceClient(s.Conn("payments"))
	return func(t *testing.T, a ask) heard {
		got, err := payments.CreatePayment(t.Context(), &paymentsv1.CreatePaymentRequest{
			ClientTxId: a.key, SourceAccount: a.from, DestinationAccount: a.to,
			AmountMinor: a.amount, Currency: commonv1.Currency_IDR,
		})
		if err != nil {
			return heard{rejected: invalidArgument(t, err)}
		}
		return heard{status: got.Status, reason: got.Reason, ref: got.PaymentId}
	}
}

// byLogAndSettle calls as earlier workers do, with nothing but the contract's fields.
func byLogAndSettle(s *system) func(*testing.T, ask) heard {
	payments := paymentsv1.NewPaymentsServiceClient(s.Conn("payments"))
	return func(t *testing.T, a ask) heard {
		got, err := payments.LogAndSettle(t.Context(), &paymentsv1.LogAndSettleRequest{
			IdempotencyKey: a.key, SenderId: a.from, ReceiverId: a.to, AmountIdr: a.amount, Currency: "IDR", TxDate: txDate,
		})
		if err != nil {
			return heard{rejected: invalidArgument(t, err)}
		}
		return heard{status: got.Status, reason: got.Message, ref: got.ReservationId}
	}
}

func invalidArgument(t *testing.T, err error) bool {
	t.Helper()
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	return true
}

func byPostedEvent(s *system) func(*testing.T, ask) heard {
	results := s.consume(s.kafka.ResultTopic)
	return func(t *testing.T, a ask) heard {
		switch code := s.postEvent("http://"+s.Addr("worker")+"/", s.requested(t, a)); code {
		case 202:
			return results.heard(a)
		case 400:
			return heard{rejected: true}
		default:
			t.Fatalf("worker answered %d", code)
			return heard{}
		}
	}
}

func byEvent(s *system) func(*testing.T, ask) heard {
	results, parked := s.consume(s.kafka.ResultTopic), s.consume(s.kafka.ParkedTopic)
	return func(t *testing.T, a ask) heard {
		if err := s.Producer().Publish(t.Context(), s.kafka.RequestTopic, a.key, s.requested(t, a)); err != nil {
			t.Fatal(err)
		}
		return results.heardOrParked(parked, a)
	}
}

func byPlainRecord(s *system) func(*testing.T, ask) heard {
	results, parked := s.consume(s.kafka.ResultTopic), s.consume(s.kafka.ParkedTopic)
	return func(t *testing.T, a ask) heard {
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
		return results.heardOrParked(parked, a)
	}
}

func byReplay(s *system) func(*testing.T, ask) heard {
	results := s.consume(s.kafka.ResultTopic)
	return func(t *testing.T, a ask) heard {
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
			return heard{rejected: true}
		}
		return results.heard(a)
	}
}

// requested is the signed event of one attempt. Each call makes another attempt.
func (s *system) requested(t *testing.T, a ask) cloudevents.Event {
	t.Helper()
	r := request(a.key, a.from, a.to, a.amount)
	r.AttemptID = fmt.Sprintf("%s at %d", a.key, time.Now().UnixNano())
	e, err := event.Requested("/test", r, "", time.Now())
	if err == nil {
		err = s.keys.Sign(&e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// heard reads up to the next result of what was asked.
func (r *reader) heard(a ask) heard {
	r.t.Helper()
	result := r.await(a.key)
	return heard{status: string(result.Status), reason: string(result.Reason), ref: result.Ref}
}

// heardOrParked reads the next result of what was asked, or finds that the request was parked for a person.
func (r *reader) heardOrParked(parked *reader, a ask) heard {
	r.t.Helper()
	if a.isPayment() {
		return r.heard(a)
	}
	for {
		if m := parked.next(); string(m.Key) == a.key {
			return heard{rejected: true}
		}
	}
}

// isPayment tells whether the input can be a payment from outside at all.
func (a ask) isPayment() bool {
	return a.amount > 0 && a.from != "" && a.to != "" && a.to != payment.SettlementAccount && !strings.HasPrefix(a.key, payment.HoldPrefix)
}

// The same payments have the same outcomes, in the same words, whichever way they come in. The ledger then says the
// same of each, and the same money has moved.
func TestEveryWayInPaysAlike(t *testing.T) {
	s := start(t, options{})
	s.rules(&riskv1.SeedRulesRequest{MaxAmount: 1_000_000_000, MinAmountIdr: ptr(int64(1)), RandomRejectPpm: ptr(uint32(0))})
	for i, w := range ways {
		t.Run(w.name, func(t *testing.T) { s.conforms(t, w, fmt.Sprintf("w%d", i)) })
	}
	s.drain()
	for _, b := range s.reconcile().Breaches {
		// Events that are posted to worker were never in Kafka, where reconcile looks for them.
		if posted := strings.HasPrefix(b.Payment, "w3-") || strings.HasPrefix(b.Payment, "w6-"); !posted || b.Check != "request_kept" {
			t.Errorf("the books do not agree: %+v", b)
		}
	}
}

// conforms pays by one way, with accounts and keys of its own: all begin with prefix.
func (s *system) conforms(t *testing.T, w way, prefix string) {
	payer, payee, poor, limited, blocked := prefix+"-payer", prefix+"-payee", prefix+"-poor", prefix+"-limited", prefix+"-blocked"
	nobody := prefix + "-nobody"
	s.open(1_000_000, payer, payee, limited, blocked)
	s.open(1500, poor)
	s.exec(`UPDATE wallet_accounts SET status = 'BLOCKED' WHERE account_id = $1`, blocked)
	s.exec(`UPDATE wallet_accounts SET daily_limit_idr = 5000 WHERE account_id = $1`, limited)
	pay := w.open(s)
	refs := map[string]string{}

	for _, tc := range []struct {
		name string
		ask  ask
		want string // status and reason; empty: the input is rejected
	}{
		{"settled", ask{"1", payer, payee, 5000}, "SUCCESS committed"},
		{"a second attempt", ask{"1", payer, payee, 5000}, "SUCCESS_REPLAY duplicate_idempo"},
		{"the key of another request", ask{"1", payer, payee, 5001}, "FAILED idempotency_mismatch"},
		{"insufficient funds", ask{"2", poor, payee, 1501}, "FAILED insufficient_funds"},
		{"all funds", ask{"3", poor, payee, 1500}, "SUCCESS committed"},
		{"a refusal is final", ask{"2", poor, payee, 1501}, "FAILED insufficient_funds"},
		{"the daily limit", ask{"4", limited, payee, 5001}, "FAILED daily_limit_exceeded"},
		{"within the daily limit", ask{"5", limited, payee, 5000}, "SUCCESS committed"},
		{"a blocked sender", ask{"6", blocked, payee, 1000}, "FAILED sender_blocked"},
		{"a blocked receiver", ask{"7", payer, blocked, 1000}, "FAILED receiver_blocked"},
		{"an unknown sender", ask{"8", nobody, payee, 1000}, "FAILED unknown_sender"},
		{"an unknown receiver", ask{"9", payer, nobody, 1000}, "FAILED unknown_receiver"},
		{"to oneself", ask{"10", payer, payer, 1000}, "FAILED risk_same_party"},
		{"no amount", ask{"11", payer, payee, 0}, ""},
		{"a negative amount", ask{"12", payer, payee, -5}, ""},
		{"no sender", ask{"13", "", payee, 1000}, ""},
		{"no receiver", ask{"14", payer, "", 1000}, ""},
		{"the house's account", ask{"15", payer, payment.SettlementAccount, 1000}, ""},
		{"the key of a hold", ask{payment.HoldPrefix + "16", payer, payee, 1000}, ""},
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
				t.Errorf("%s: heard %+v, moved money: %t, the ledger: %d %+v", tc.name, got, moved, code, after)
			}
			continue
		}
		if outcome := got.status + " " + got.reason; outcome != tc.want || got.rejected {
			t.Errorf("%s: heard %s; want %s", tc.name, outcome, tc.want)
		}
		if settled := got.status == string(payment.Success); moved != settled {
			t.Errorf("%s: heard %s, and moved money: %t", tc.name, got.status, moved)
		}
		switch got.status {
		case string(payment.Success):
			refs[tc.ask.key] = got.ref
			if after.State != string(payment.Committed) || after.AmountIDR != tc.ask.amount || got.ref == "" || after.Ref != got.ref {
				t.Errorf("%s: heard ref %q, and the ledger says %+v", tc.name, got.ref, after)
			}
		case string(payment.SuccessReplay):
			if got.ref != refs[tc.ask.key] {
				t.Errorf("%s: heard ref %q; the first attempt heard %q", tc.name, got.ref, refs[tc.ask.key])
			}
		case string(payment.Failed):
			mismatch := got.reason == string(payment.IdempotencyMismatch)
			if !mismatch && (after.State != string(payment.RolledBack) || after.Reason != got.reason) {
				t.Errorf("%s: heard %s, and the ledger says %+v", tc.name, got.reason, after)
			}
		}
	}
}
