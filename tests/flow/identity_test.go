package flow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// Anybody who can read an event can post it to payments, with attributes that make it look like a
// dead letter. It is closed out only if it is really among the dead letters.
func TestOnlyWhatDeliveryGaveUpOnIsClosedOut(t *testing.T) {
	s := start(t, options{})
	s.faults.set(func(f *faults) {
		f.rpc = inTwoSteps(func(called string) error {
			if strings.HasSuffix(called, "CommitReservation") {
				return status.Error(codes.FailedPrecondition, "never")
			}
			return nil
		})
	})
	s.expect(s.pay("hopeless", "A", "B", "IDR", 5000), "200 FAILED undeliverable")
	letter := s.records(s.kafka.DeadLetterTopic)[0]

	release := make(chan struct{})
	s.faults.set(func(f *faults) {
		f.rpc = func(called string) error {
			if strings.HasPrefix(called, "/payments.v1.") {
				<-release
			}
			return nil
		}
	})
	answered := make(chan answer, 1)
	go func() { answered <- s.pay("under way", "A", "B", "IDR", 5000) }()
	requests := s.consume(s.kafka.RequestTopic)
	var m *sarama.ConsumerMessage
	for m = requests.next(); string(m.Key) != "under way"; m = requests.next() {
	}
	captured, err := kafka.ReadRecord(t.Context(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := func(partition int32, offset int64) func(*cloudevents.Event) {
		return func(e *cloudevents.Event) {
			e.SetExtension("knativekafkapartition", strconv.Itoa(int(partition)))
			e.SetExtension("knativekafkaoffset", strconv.FormatInt(offset, 10))
			e.SetExtension("knativeerrordest", "http://worker.pgw.svc.cluster.local/")
			e.SetExtension("knativeerrorcode", "400")
		}
	}
	url := "http://" + s.Addr("payments") + "/"
	for name, change := range map[string]func(*cloudevents.Event){
		"as it was read":              func(*cloudevents.Event) {},
		"at its place as a request":   at(m.Partition, m.Offset),
		"at another letter's place":   at(letter.Partition, letter.Offset),
		"behind the last letter":      at(letter.Partition, letter.Offset+1),
		"at a place that can't be":    at(-1, -1),
		"at a place that is no place": func(e *cloudevents.Event) { at(0, 0)(e); e.SetExtension("knativekafkaoffset", "first") },
	} {
		e := captured.Clone()
		change(&e)
		if code := s.postEvent(url, e); code != http.StatusBadRequest {
			t.Errorf("%s: %d", name, code)
		}
	}
	close(release)
	s.expect(<-answered, "200 SUCCESS committed")

	// A record that is there is closed out, any number of times, with the ledger's outcome.
	again, err := kafka.ReadRecord(t.Context(), letter, nil)
	if err != nil {
		t.Fatal(err)
	}
	at(letter.Partition, letter.Offset)(&again)
	if code := s.postEvent(url, again); code != http.StatusAccepted {
		t.Errorf("a letter, again: %d", code)
	}
}

// A wallet hold belongs to its caller. A payment with its key cannot capture or close it, on any
// way in. The house account pays nobody.
func TestNamesOfOursCannotBeHadFromOutside(t *testing.T) {
	s := start(t, options{})
	wallet := walletv1.NewWalletServiceClient(s.Conn("wallet"))
	hold, err := wallet.Reserve(t.Context(), &walletv1.ReserveRequest{PaymentId: "order-7", AccountId: "A", AmountMinor: 10_000, Currency: commonv1.Currency_IDR})
	if err != nil || !hold.Ok {
		t.Fatalf("%v, %v", hold, err)
	}
	earlier, err := wallet.Reserve(t.Context(), &walletv1.ReserveRequest{PaymentId: "order-6", AccountId: "A", AmountMinor: 10_000, Currency: commonv1.Currency_IDR})
	if err != nil || !earlier.Ok {
		t.Fatalf("%v, %v", earlier, err)
	}
	if got, err := wallet.Capture(t.Context(), &walletv1.CaptureRequest{ReservationId: earlier.ReservationId}); err != nil || !got.Ok {
		t.Fatalf("%v, %v", got, err)
	}
	if got, err := wallet.Reserve(t.Context(), &walletv1.ReserveRequest{PaymentId: "order-8", AccountId: payment.SettlementAccount, AmountMinor: 5_000, Currency: commonv1.Currency_IDR}); err != nil || got.Ok || got.Reason != "invalid_input" {
		t.Errorf("a hold of the house's money: %v, %v", got, err)
	}
	before := s.balance("A")
	const house = payment.SettlementAccount
	ledger, settle := dbv1.NewDbClient(s.Conn("db")), paymentsv1.NewPaymentsServiceClient(s.Conn("payments"))
	for name, r := range map[string]payment.Payment{
		"the hold's key":       request("wallet:order-7", "A", house, 10_000),
		"its key to another":   request("wallet:order-7", "A", "B", 10_000),
		"a new key of a hold":  request("wallet:order-9", "A", "B", 10_000),
		"from the house":       request("from the house", house, "A", 10_000),
		"to the house":         request("to the house", "A", house, 10_000),
		"from the house to it": request("wallet:from the house", house, house, 10_000),
	} {
		s.expect(s.pay(r.Key, r.Sender, r.Receiver, "IDR", 10_000), "400 FAILED invalid_input")
		reserve := &dbv1.ReserveFundsRequest{IdempotencyKey: r.Key, SenderId: r.Sender, ReceiverId: r.Receiver, AmountIdr: r.AmountIDR, CurrencyInput: "IDR", AmountMinor: r.AmountIDR}
		calls := map[string]func() error{
			"CreatePayment": func() error {
				_, err := settle.CreatePayment(t.Context(), &paymentsv1.CreatePaymentRequest{
					ClientTxId: r.Key, SourceAccount: r.Sender, DestinationAccount: r.Receiver, AmountMinor: r.AmountIDR, Currency: commonv1.Currency_IDR,
				})
				return err
			},
			"LogAndSettle": func() error {
				_, err := settle.LogAndSettle(t.Context(), &paymentsv1.LogAndSettleRequest{
					IdempotencyKey: r.Key, SenderId: r.Sender, ReceiverId: r.Receiver, AmountIdr: r.AmountIDR, Currency: "IDR", AmountMinor: r.AmountIDR,
				})
				return err
			},
			"Settle":       func() error { _, err := settle.Settle(t.Context(), rpc.FromPayment(r)); return err },
			"Reserve":      func() error { _, err := ledger.Reserve(t.Context(), rpc.FromPayment(r)); return err },
			"ReserveFunds": func() error { _, err := ledger.ReserveFunds(t.Context(), reserve); return err },
			"Fail": func() error {
				_, err := ledger.Fail(t.Context(), &dbv1.CloseRequest{Payment: rpc.FromPayment(r), Reason: string(payment.Undeliverable)})
				return err
			},
			"Refuse": func() error {
				_, err := ledger.Refuse(t.Context(), &dbv1.CloseRequest{Payment: rpc.FromPayment(r), Reason: string(payment.RiskOther)})
				return err
			},
			"FailPayment": func() error {
				_, err := ledger.FailPayment(t.Context(), &dbv1.FailPaymentRequest{Payment: reserve, Reason: string(payment.Undeliverable)})
				return err
			},
		}
		for call, make := range calls {
			if err := make(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s by %s: %v", name, call, err)
			}
		}
		s.publish(r)
		plain := fmt.Sprintf(`{"idempotency_key":%q,"sender_id":%q,"receiver_id":%q,"amount_idr":%d,"currency_input":"IDR"}`, r.Key, r.Sender, r.Receiver, r.AmountIDR)
		err := s.Producer().Send(t.Context(), &sarama.ProducerMessage{Topic: s.kafka.RequestTopic, Key: sarama.StringEncoder(r.Key), Value: sarama.StringEncoder(plain)})
		if err != nil {
			t.Fatal(err)
		}
	}
	s.eventually("each of the events is parked", func() error {
		if n := len(s.records(s.kafka.ParkedTopic)); n != 12 {
			return fmt.Errorf("%d of 12 are", n)
		}
		return nil
	})
	if s.balance("A") != before || s.balance(house) != 10_000 {
		t.Errorf("A has %d, and had %d; the house has %d", s.balance("A"), before, s.balance(house))
	}
	if n := s.count(`SELECT count(*) FROM reservations WHERE status = 'PENDING' AND idempotency_key = 'wallet:order-7'`); n != 1 {
		t.Error("the hold is gone")
	}
	if got, err := wallet.Capture(t.Context(), &walletv1.CaptureRequest{ReservationId: hold.ReservationId}); err != nil || !got.Ok || s.balance(house) != 20_000 {
		t.Errorf("%v, %v; the house has %d", got, err, s.balance(house))
	}
}

// A hundred payments at once come by HTTP, by gRPC, and by events that skip risk. No more are held
// in a minute than the rule allows. The refused ones get the refusal, and it is recorded.
func TestAHundredAtOnceKeepTheVelocity(t *testing.T) {
	s := start(t, options{answerIn: patience})
	s.rules(&riskv1.SeedRulesRequest{MaxAmount: 10_000_000, VelocityPerMin: 3, RandomRejectPpm: ptr(uint32(0))})
	settle := paymentsv1.NewPaymentsServiceClient(s.Conn("payments"))
	var all sync.WaitGroup
	var mu sync.Mutex
	counts := map[string]int{}
	for i := range 90 {
		key := fmt.Sprint("at once ", i)
		all.Go(func() {
			var outcome string
			if i%2 == 0 {
				got := s.pay(key, "A", "B", "IDR", 5000)
				outcome = got.Status + " " + got.Reason
			} else {
				got, err := settle.LogAndSettle(context.Background(), &paymentsv1.LogAndSettleRequest{IdempotencyKey: key, SenderId: "A", ReceiverId: "B", AmountIdr: 5000, Currency: "IDR"})
				outcome = fmt.Sprint(got.GetStatus(), " ", got.GetMessage())
				if err != nil {
					outcome = err.Error()
				}
			}
			mu.Lock()
			counts[outcome]++
			mu.Unlock()
		})
	}
	for i := range 10 {
		s.publish(request(fmt.Sprint("event ", i), "A", "B", 5000))
	}
	all.Wait()
	s.drain()
	most := s.count(`SELECT max(n) FROM (SELECT count(*) AS n FROM reservations WHERE sender_id = 'A' AND status <> 'ROLLEDBACK'
		GROUP BY floor(extract(epoch FROM created_at) / 60)) m`)
	if most > 3 || counts["SUCCESS committed"]+counts["FAILED risk_velocity"] != 90 {
		t.Errorf("%d in one minute; answers %v", most, counts)
	}
	for i := range 10 {
		if _, st := s.state(fmt.Sprint("event ", i)); st.State != "COMMITTED" && st.Reason != "risk_velocity" {
			t.Errorf("event %d: %+v", i, st)
		}
	}
}

// The signed time of an account event decides, wherever the event comes from.
func TestACapturedEventUnblocksNobody(t *testing.T) {
	s := start(t, options{})
	url := "http://" + s.Addr("db") + "/"
	send := func(id string, accountStatus payment.AccountStatus, at time.Time) (cloudevents.Event, int) {
		t.Helper()
		e, err := event.New(event.TypeAccountOpened, id, "/bank", "NEW", event.AccountOpened{AccountID: "NEW", Owner: "New Owner", Currency: "SGD", Status: accountStatus}, at)
		if err == nil {
			err = s.keys.Sign(&e)
		}
		if err != nil {
			t.Fatal(err)
		}
		return e, s.postEvent(url, e)
	}
	now := time.Now()
	captured, code := send("o1", "ACTIVE", now.Add(-time.Hour))
	if code != 202 {
		t.Fatal(code)
	}
	if _, code := send("o2", "BLOCKED", now.Add(-time.Minute)); code != 202 {
		t.Fatal(code)
	}
	if code := s.postEvent(url, captured); code != 202 { // unchanged: it is older, and ignored
		t.Errorf("unchanged: %d", code)
	}
	captured.SetTime(now)
	if code := s.postEvent(url, captured); code != 403 {
		t.Errorf("with a later time: %d", code)
	}
	if _, code := send("o3", "BLOCKED", time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)); code != 400 {
		t.Errorf("from 2099: %d", code)
	}
	var got string
	s.query(&got, `SELECT status FROM balances WHERE account_id = 'NEW' AND currency = 'IDR'`)
	if got != "BLOCKED" {
		t.Errorf("the account is %s", got)
	}
	s.eventually("the metrics count the events", func() error {
		resp, err := http.Get("http://" + s.Addr("db") + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text := string(must(io.ReadAll(resp.Body)))
		for _, want := range []string{`outcome="ignored"} 1`, `outcome="refused"} 2`, `outcome="applied"} 2`} {
			if !strings.Contains(text, "pgw_db_account_events_total{"+want) {
				return errors.New(want + " is missing")
			}
		}
		return nil
	})
}
