package flow

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/functions/kafkasource"
	"pgw/functions/pgw/replay"
	"pgw/shared/deadletter"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
	"pgw/tests/processes"
)

// caseRecord is a line of testdata/records.jsonl: a record that occurred in practice, or that broke
// pgw.
type caseRecord struct {
	Why     string             `json:"why"`
	Topic   string             `json:"topic"`
	Key     string             `json:"key"`
	Headers map[string]*string `json:"headers"` // "signed": a valid signature of an event of that type
	Value   *string            `json:"value"`
	ValueOf string             `json:"value_of"` // TEXT*TIMES
	Expect  string             `json:"expect"`
}

func caseRecords(t *testing.T) (all []caseRecord) {
	t.Helper()
	f, err := os.Open("testdata/records.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var c caseRecord
		decoder := json.NewDecoder(strings.NewReader(lines.Text()))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&c); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		all = append(all, c)
	}
	return all
}

// message makes the message for a topic. On any topic but its own a payment has another key, so
// that it does not decide the payment that the test checks.
func (c caseRecord) message(t *testing.T, s *system, topic string) *sarama.ProducerMessage {
	t.Helper()
	m := &sarama.ProducerMessage{Topic: s.kafka.Renamed()[topic], Key: sarama.StringEncoder(c.Key)}
	var value []byte
	if c.Value != nil {
		value = []byte(*c.Value)
		if topic != c.Topic {
			value = []byte(strings.ReplaceAll(*c.Value, `"idempotency_key":"`, `"idempotency_key":"`+topic+"-"))
		}
	}
	if text, times, ok := strings.Cut(c.ValueOf, "*"); ok {
		n, err := strconv.Atoi(times)
		if err != nil {
			t.Fatal(err)
		}
		value = []byte(strings.Repeat(text, n))
	}
	headers := maps.Clone(c.Headers)
	if signed := headers["signed"]; signed != nil {
		delete(headers, "signed")
		e := cloudevents.New()
		e.SetID("case " + c.Key)
		e.SetSource("/cases")
		e.SetType(*signed)
		e.SetSubject(c.Key)
		e.SetTime(time.Now())
		if at := headers["ce_time"]; at != nil {
			when, err := time.Parse(time.RFC3339, *at)
			if err != nil {
				t.Fatal(err)
			}
			e.SetTime(when)
		}
		e.SetExtension(event.ExtPartitionKey, c.Key)
		e.SetDataContentType(cloudevents.ApplicationJSON)
		e.DataEncoded = value
		if err := s.keys.Sign(&e); err != nil {
			t.Fatal(err)
		}
		made := map[string]string{
			"ce_specversion": "1.0", "ce_id": e.ID(), "ce_source": e.Source(), "ce_type": e.Type(), "ce_subject": e.Subject(),
			"ce_time": e.Time().UTC().Format(time.RFC3339Nano), "content-type": cloudevents.ApplicationJSON,
		}
		for name, v := range e.Extensions() {
			made["ce_"+name] = fmt.Sprint(v)
		}
		for name, v := range made {
			headers[name] = &v
		}
	}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		h := sarama.RecordHeader{Key: []byte(name)}
		if v := headers[name]; v != nil {
			h.Value = []byte(*v)
		}
		m.Headers = append(m.Headers, h)
	}
	if value != nil {
		m.Value = sarama.ByteEncoder(value)
	}
	return m
}

// The test publishes all case records on every source's topic, and then 4,200 valid payments. That
// is more than a source reads ahead of a record that it holds. All valid payments settle, nothing
// stays in flight, every record is where it is expected, operators' commands can read everything,
// and a restart changes nothing.
func TestNoRecordStopsTheFlow(t *testing.T) {
	const good = 4200
	topics, err := processes.Topics(1) // so that all records are in one order
	if err != nil {
		t.Fatal(err)
	}
	broker := embeddedtest.Kafka(t, topics...)
	s := start(t, options{kafka: &broker})
	s.open(1_000_000_000, "ACC001", "ACC002")
	cases := caseRecords(t)
	settings := s.kafka.Client(t)
	settings.Producer.Return.Successes, settings.Producer.MaxMessageBytes = true, 2<<20
	producer, err := sarama.NewSyncProducer(s.kafka.Brokers, settings)
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	for _, topic := range []string{"payments.request", "payments.result", "payments.deadletter", "ledger.accounts"} {
		for _, c := range cases {
			if _, _, err := producer.SendMessage(c.message(t, s, topic)); err != nil {
				t.Fatalf("%s on %s: %v", c.Why, topic, err)
			}
		}
	}
	s.publishAccount("BEHIND", "ACTIVE", 5000)
	// These events follow the case record with a time in the future.
	s.publishAccount("ACC013", "BLOCKED", 1)
	var sent sync.WaitGroup
	next := make(chan int)
	for range 64 {
		sent.Go(func() {
			for i := range next {
				r := request(fmt.Sprint("good-", i), "A", "B", 1000)
				r.AcceptedAt, r.Deadline = time.Time{}, time.Time{} // a slow machine may need more than a minute
				s.publish(r)
			}
		})
	}
	for i := range good {
		next <- i
	}
	close(next)
	sent.Wait()
	s.settled(func() int { return s.count(`SELECT count(*) FROM payments`) })

	if n := s.count(`SELECT count(*) FROM reservations WHERE idempotency_key LIKE 'good-%' AND status = 'COMMITTED'`); n != good {
		t.Errorf("%d of %d good payments are settled", n, good)
	}
	if n := s.count(`SELECT count(*) FROM wallet_accounts WHERE account_id = 'BEHIND' AND balance_idr = 5000`); n != 1 {
		t.Error("the account behind the bad records is not opened and funded")
	}
	if n := s.count(`SELECT count(*) FROM balances WHERE account_id = 'ACC013' AND currency = 'IDR' AND status = 'BLOCKED'`); n != 1 {
		t.Error("an event of today is not applied after one with a future time")
	}
	s.nothingInFlight()
	for _, c := range cases {
		if problem := s.misplaced(c); problem != "" {
			t.Errorf("%s: expected: %s; %s", c.Why, c.Expect, problem)
		}
	}
	before := s.whereabouts()
	s.operatorsReadAll()

	// A restart changes nothing.
	s.stop()
	again := start(t, options{database: s.conn.Config().ConnString(), kafka: &s.kafka, serial: true})
	again.expect(again.pay("after the restart", "A", "B", "IDR", 1000), "200 SUCCESS committed")
	again.settled(func() int { return again.count(`SELECT count(*) FROM payments`) })
	again.nothingInFlight()
	if after := again.whereabouts(); after != before {
		t.Errorf("before the restart %s, after it %s", before, after)
	}
	again.operatorsReadAll()
	again.expectClean()
}

// publishAccount opens and funds an account with events.
func (s *system) publishAccount(id string, status payment.AccountStatus, amount int64) {
	s.t.Helper()
	now := time.Now()
	opened, err := event.New(event.TypeAccountOpened, "open-"+id, "/test", id, event.AccountOpened{AccountID: id, Owner: "Owner of " + id, Currency: "IDR", Status: status}, now)
	if err != nil {
		s.t.Fatal(err)
	}
	funded, err := event.New(event.TypeAccountFunded, "fund-"+id, "/test", id, event.AccountFunded{AccountID: id, AmountIDR: amount}, now)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range []cloudevents.Event{opened, funded} {
		if err := s.keys.Sign(&e); err != nil {
			s.t.Fatal(err)
		}
		if err := s.Producer().Publish(s.t.Context(), s.kafka.AccountsTopic, id, e); err != nil {
			s.t.Fatal(err)
		}
	}
}

// settled waits until everything is delivered, as long as there is progress.
func (s *system) settled(progress func() int) {
	s.t.Helper()
	last := -1
	for deadline := time.Now().Add(2 * patience); ; time.Sleep(100 * time.Millisecond) {
		err := processes.Delivered(s.kafka.Config, s.kafka.Prefix)
		if err == nil {
			return
		}
		if now := progress(); now != last {
			last, deadline = now, time.Now().Add(2*patience)
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("no progress: %v", err)
		}
	}
}

// nothingInFlight checks the sources' metrics.
func (s *system) nothingInFlight() {
	s.t.Helper()
	s.eventually("nothing is in flight, nor held", func() error {
		resp, err := http.Get("http://" + s.Addr("worker") + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		seen := 0
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			if strings.HasPrefix(name, "pgw_source_in_flight{") || strings.HasPrefix(name, "pgw_source_held_partitions{") {
				if seen++; value != "0" {
					return fmt.Errorf("%s is %s", name, value)
				}
			}
		}
		if seen != 10 {
			return fmt.Errorf("%d series of five sources", seen)
		}
		return nil
	})
}

// letters returns the dead letters of a case record, from the topic to which its own source writes
// them.
func (s *system) letters(c caseRecord) (all []cloudevents.Event) {
	s.t.Helper()
	topic := s.kafka.DeadLetterTopic
	if c.Topic == "ledger.accounts" {
		topic = s.kafka.ParkedTopic
	}
	for _, m := range s.records(topic) {
		e := kafkasource.ReadRecord(context.Background(), "test", m)
		if string(m.Key) == c.Key && header(m, "ce_knativeerrordest") != "" {
			all = append(all, e)
		}
	}
	return all
}

// misplaced returns the difference between where a record is and where it is expected.
func (s *system) misplaced(c caseRecord) string {
	s.t.Helper()
	var data struct {
		Key string `json:"idempotency_key"`
	}
	if c.Value != nil {
		json.Unmarshal([]byte(*c.Value), &data)
	}
	decided := s.count(`SELECT count(*) FROM reservations WHERE idempotency_key = $1 AND status = 'COMMITTED'`, data.Key)
	letters := s.letters(c)
	if strings.HasPrefix(c.Expect, "settles") {
		if decided != 1 || len(letters) > 0 {
			return fmt.Sprintf("%d payments, %d dead letters", decided, len(letters))
		}
		return ""
	}
	if claimed := s.count(`SELECT count(*) FROM reservations WHERE idempotency_key = $1`, data.Key); claimed > 0 || len(letters) == 0 {
		return fmt.Sprintf("%d claims, %d dead letters", claimed, len(letters))
	}
	cut := slices.ContainsFunc(letters, func(e cloudevents.Event) bool { return e.Extensions()[kafkasource.ExtCutFrom] != nil })
	if cut != strings.Contains(c.Expect, "cut") {
		return fmt.Sprintf("cut: %t", cut)
	}
	return ""
}

// whereabouts is the state that a restart must not change.
func (s *system) whereabouts() string {
	s.t.Helper()
	text := fmt.Sprintf("ACC001=%d ACC002=%d settled=%d", s.balance("ACC001"), s.balance("ACC002"),
		s.count(`SELECT count(*) FROM reservations WHERE idempotency_key <> 'after the restart'`))
	for _, topic := range []string{s.kafka.DeadLetterTopic, s.kafka.ParkedTopic} {
		text += fmt.Sprintf(" %s=%d", topic, len(s.records(topic)))
	}
	return text
}

// operatorsReadAll runs every command that reads topics, and checks that it reads everything.
func (s *system) operatorsReadAll() {
	s.t.Helper()
	box := s.letterBox()
	letters, _, err := box.Read(s.t.Context(), deadletter.Filter{})
	if err != nil || len(letters) == 0 {
		s.t.Errorf("%d letters, %v", len(letters), err)
	}
	for _, l := range letters {
		if _, err := json.Marshal(l); err != nil {
			s.t.Errorf("%s: %v", l.Place, err)
		}
		if l.CutFrom > 0 {
			if err := box.Redrive(s.t.Context(), s.Producer(), l, deadletter.Order{Operator: "test", Note: "test"}); err == nil {
				s.t.Errorf("%s was cut, but can be sent again", l.Place)
			}
		}
	}
	for name, topic := range s.kafka.Renamed() {
		to := filepath.Join(s.t.TempDir(), name+".jsonl")
		got, err := replay.Run(s.t.Context(), replay.Config{From: "topic:" + topic, To: to, Kafka: s.kafka.Config})
		if err != nil || got.Refused+got.Failed > 0 {
			s.t.Errorf("replay of %s: %+v, %v", name, got, err)
		}
	}
	if r := s.reconcile(); r.Foreign == 0 {
		s.t.Error("reconcile has seen no foreign record")
	}
}

// In an unordered source, records with one key are delivered at the same time. The ledger's claim
// decides: the money moves once, and every attempt gets the same outcome.
func TestRequestsOfOneKeySideBySideSettleOnce(t *testing.T) {
	s := start(t, options{})
	const attempts = 200
	results := s.consume(s.kafka.ResultTopic)
	for i := range attempts {
		r := request("one key", "A", "B", 700)
		r.AcceptedAt, r.Deadline, r.AttemptID = time.Time{}, time.Time{}, fmt.Sprint("attempt-", i)
		s.publish(r)
	}
	s.settled(func() int { return s.count(`SELECT count(*) FROM payments`) })
	if got := s.balance("B"); got != 1_000_000_700 {
		t.Errorf("B has %d", got)
	}
	refs := map[string]int{}
	for range attempts {
		e, err := kafka.ReadRecord(t.Context(), results.next(), nil)
		if err != nil {
			t.Fatal(err)
		}
		result, err := event.Decode[event.PaymentResult](e)
		if err != nil {
			t.Fatal(err)
		}
		refs[fmt.Sprint(result.Status, " ", result.Ref)]++
	}
	if len(refs) != 2 { // SUCCESS for the first attempt, SUCCESS_REPLAY for the others, with one reference
		t.Errorf("%v", refs)
	}
	s.expectClean()
}
