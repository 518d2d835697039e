package flow

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// tools are third-party clients: kcat (librdkafka) and Kafka's own console tools (Java).
type tools struct {
	t         testing.TB
	classpath string
	broker    string
}

func otherClients(t *testing.T, s *system) tools {
	t.Helper()
	return tools{t, os.Getenv("PGW_TEST_KAFKA_CLASSPATH"), s.kafka.Brokers[0]}
}

func needOtherClients(t *testing.T) {
	t.Helper()
	if os.Getenv("PGW_TEST_KAFKA_CLASSPATH") == "" {
		t.Skip("PGW_TEST_KAFKA_CLASSPATH is not set: make test-kafka brings Kafka's own tools")
	}
}

func (c tools) run(input, name string, args ...string) string {
	c.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		c.t.Fatalf("%s: %v: %s", name, err, errs.String())
	}
	return out.String()
}

func (c tools) kcat(input string, args ...string) string {
	c.t.Helper()
	return c.run(input, "kcat", append([]string{"-b", c.broker}, args...)...)
}

func (c tools) console(input, tool string, args ...string) string {
	c.t.Helper()
	return c.run(input, "java", append([]string{"-Xmx256m", "-cp", c.classpath, "org.apache.kafka.tools." + tool, "--bootstrap-server", c.broker}, args...)...)
}

// read returns each record of a topic, by Kafka's console consumer: partition, headers, key and
// value.
func (c tools) read(topic string, n int) []string {
	c.t.Helper()
	args := []string{"--topic", topic, "--from-beginning", "--max-messages", fmt.Sprint(n), "--timeout-ms", "20000"}
	for _, show := range []string{"partition", "headers", "key"} {
		args = append(args, "--formatter-property", "print."+show+"=true")
	}
	lines := strings.Split(strings.TrimSpace(c.console("", "consumer.ConsoleConsumer", args...)), "\n")
	if len(lines) != n {
		c.t.Fatalf("%d records in %s, want %d: %q", len(lines), topic, n, lines)
	}
	return lines
}

// All records of a key are in one partition, whoever writes them: pgw, Java's producer, or kcat
// with Java's partitioner.
func TestPartitionsAreThoseOfOtherProducers(t *testing.T) {
	needOtherClients(t)
	s := start(t, options{})
	c := otherClients(t, s)
	const keys = 100
	topics := map[string]string{}
	for _, who := range []string{"pgw", "java", "kcat"} {
		topics[who] = s.kafka.Prefix + "by-" + who
		if err := kafka.EnsureTopics(s.kafka.Config, []kafka.Topic{{Name: topics[who], Partitions: 7}}); err != nil {
			t.Fatal(err)
		}
	}
	var lines strings.Builder
	for i := range keys {
		key := fmt.Sprintf("key-%d-é", i)
		fmt.Fprintf(&lines, "%s\tv\n", key)
		err := s.Producer().Send(t.Context(), &sarama.ProducerMessage{Topic: topics["pgw"], Key: sarama.StringEncoder(key), Value: sarama.StringEncoder("v")})
		if err != nil {
			t.Fatal(err)
		}
	}
	c.console(lines.String(), "ConsoleProducer", "--topic", topics["java"], "--reader-property", "parse.key=true")
	c.kcat(lines.String(), "-P", "-t", topics["kcat"], "-K", "\t", "-X", "topic.partitioner=murmur2_random")
	partitions := map[string]map[string]int32{}
	for who, topic := range topics {
		partitions[who] = map[string]int32{}
		for _, m := range s.records(topic) {
			partitions[who][string(m.Key)] = m.Partition
		}
		if len(partitions[who]) != keys {
			t.Fatalf("%s wrote %d keys", who, len(partitions[who]))
		}
	}
	for key, want := range partitions["java"] {
		if partitions["pgw"][key] != want || partitions["kcat"][key] != want {
			t.Errorf("%s: Java's producer %d, pgw %d, kcat %d", key, want, partitions["pgw"][key], partitions["kcat"][key])
		}
	}
}

// pgw's events are CloudEvents for every reader: attributes in ce_ headers, the data as the value.
func TestOtherClientsReadOurEvents(t *testing.T) {
	needOtherClients(t)
	s := start(t, options{})
	c := otherClients(t, s)
	paid := s.expect(s.pay("read by others", "A", "B", "USD", 10), "200 SUCCESS committed")

	line := c.read(s.kafka.ResultTopic, 1)[0]
	for _, want := range []string{
		"ce_specversion:1.0", "ce_type:" + event.TypePaymentResult, "ce_source:/pgw/worker", "ce_partitionkey:read by others",
		"ce_pgwsignature:v2.k1.", "content-type:application/json", "\tread by others\t", `"ref":"` + paid.Ref + `"`, `"status":"SUCCESS"`, `"reason":"committed"`,
	} {
		if !strings.Contains(line, want) {
			t.Errorf("Kafka's console consumer: no %s in %s", want, line)
		}
	}
	var record struct {
		Key     string   `json:"key"`
		Headers []string `json:"headers"`
		Payload string   `json:"payload"`
	}
	text := c.kcat("", "-C", "-t", s.kafka.RequestTopic, "-o", "beginning", "-c", "1", "-e", "-J")
	if err := json.Unmarshal([]byte(text), &record); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	headers := map[string]string{}
	for i := 0; i+1 < len(record.Headers); i += 2 {
		headers[record.Headers[i]] = record.Headers[i+1]
	}
	var data event.PaymentRequested
	if err := json.Unmarshal([]byte(record.Payload), &data); err != nil {
		t.Fatal(err)
	}
	if record.Key != "read by others" || headers["ce_type"] != event.TypePaymentRequested || headers["ce_specversion"] != "1.0" || headers["ce_id"] == "" ||
		data.Key != "read by others" || data.AmountIDR != 155_000 {
		t.Errorf("kcat: %s", text)
	}
}

// Other clients write signed events in binary mode and a plain record, and these settle. Signed
// events in structured mode are refused: they become dead letters, and their payments are closed
// out.
func TestOtherClientsEventsSettle(t *testing.T) {
	needOtherClients(t)
	s := start(t, options{})
	c := otherClients(t, s)
	signed := func(key string) cloudevents.Event {
		now := time.Now().UTC()
		e, err := event.Requested("/another/client", payment.Payment{
			Key: key, Sender: "A", Receiver: "B", Minor: 10_00, Currency: mustCurrency(t, "USD"), AmountIDR: 155_000,
			AcceptedAt: now, Deadline: now.Add(payment.DecideWithin), TxDate: txDate, AttemptID: "attempt of " + key,
		}, "", now)
		if err == nil {
			err = s.keys.Sign(&e)
		}
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	attributes := func(e cloudevents.Event) map[string]string {
		all := map[string]string{
			"ce_specversion": "1.0", "ce_id": e.ID(), "ce_type": e.Type(), "ce_source": e.Source(), "ce_subject": e.Subject(),
			"ce_time": e.Time().Format(time.RFC3339Nano), "content-type": "application/json",
		}
		for name, value := range e.Extensions() {
			all["ce_"+name] = fmt.Sprint(value)
		}
		return all
	}

	// kcat, binary mode.
	binary := signed("binary by kcat")
	args := []string{"-P", "-t", s.kafka.RequestTopic, "-k", "binary by kcat"}
	for name, value := range attributes(binary) {
		args = append(args, "-H", name+"="+value)
	}
	c.kcat(string(binary.Data()), args...)

	// kcat, structured mode.
	structured, err := json.Marshal(signed("structured by kcat"))
	if err != nil {
		t.Fatal(err)
	}
	c.kcat(string(structured), "-P", "-t", s.kafka.RequestTopic, "-k", "structured by kcat", "-H", "content-type=application/cloudevents+json; charset=utf-8")

	// Java, both modes: one line of headers, key and value each.
	binary = signed("binary by Java")
	var headers []string
	for name, value := range attributes(binary) {
		headers = append(headers, name+"="+value)
	}
	structured, err = json.Marshal(signed("structured by Java"))
	if err != nil {
		t.Fatal(err)
	}
	lines := fmt.Sprintf("%s\tbinary by Java\t%s\ncontent-type=application/cloudevents+json\tstructured by Java\t%s\n",
		strings.Join(headers, "~"), binary.Data(), structured)
	c.console(lines, "ConsoleProducer", "--topic", s.kafka.RequestTopic, "--reader-property", "parse.key=true", "--reader-property", "parse.headers=true",
		"--reader-property", "headers.separator=~", "--reader-property", "headers.key.separator==")

	// An earlier producer's plain record, without a header.
	c.kcat(fmt.Sprintf(`{"idempotency_key":"plain by kcat","sender_id":"A","receiver_id":"B","amount_idr":155000,"currency_input":"IDR","tx_date":"%s"}`, txDate),
		"-P", "-t", s.kafka.RequestTopic, "-k", "plain by kcat")

	results := s.consume(s.kafka.ResultTopic)
	keys := []string{"binary by kcat", "structured by kcat", "binary by Java", "structured by Java", "plain by kcat"}
	outcomes := map[string]event.PaymentResult{}
	for len(outcomes) < len(keys) {
		m := results.next()
		e, err := kafka.ReadRecord(t.Context(), m, nil)
		if err != nil {
			t.Fatal(err)
		}
		if outcomes[string(m.Key)], err = event.Decode[event.PaymentResult](e); err != nil {
			t.Fatal(err)
		}
	}
	settled := int64(0)
	for _, key := range keys {
		if strings.HasPrefix(key, "structured") {
			if got := outcomes[key]; got.Status != payment.Failed || got.Reason != payment.Undeliverable {
				t.Errorf("%s: %+v", key, got)
			}
			continue
		}
		settled++
		if got := outcomes[key]; got.Status != payment.Success || got.Ref == "" {
			t.Errorf("%s: %+v", key, got)
		}
	}
	if got := s.balance("B"); got != 1_000_000_000+settled*155_000 {
		t.Errorf("B has %d", got)
	}
}

func mustCurrency(t *testing.T, code string) money.Currency {
	t.Helper()
	c, err := money.ParseCurrency(code)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
