package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"pgw/functions/pgw/replay"
	fxv1 "pgw/proto/gen/fx/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
)

// fixedFX prices every payment at 15,000 rupiah for a dollar.
type fixedFX struct{}

func (fixedFX) Invoke(_ context.Context, method string, asked, answer any, _ ...grpc.CallOption) error {
	in, ok := asked.(*fxv1.ConvertRequest)
	if !ok || in.FromCurrency != "USD" || in.ToCurrency != "IDR" {
		return status.Error(codes.NotFound, method)
	}
	minor := in.GetAmountMinor() * 150
	proto.Merge(answer.(proto.Message), &fxv1.ConvertResponse{AmountMinor: minor, Rate: "15000", RateId: "r1"})
	return nil
}

func (fixedFX) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no stream")
}

var signedAt = time.Date(2026, 1, 31, 9, 30, 0, 123456789, time.UTC)

// signed makes the event of a payment whose texts would break a line that is not quoted.
func signed(t *testing.T) (cloudevents.Event, *event.Keyring) {
	t.Helper()
	keys := &event.Keyring{}
	if err := keys.Decode("k1:" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + ":v2"); err != nil {
		t.Fatal(err)
	}
	c := signCommand{
		Sender: "A", Receiver: "B", Currency: "USD", Amount: "10.50", ValidFor: time.Minute,
		Metadata: map[string]string{"note": `it's "$HOME" <&>`},
	}
	order, err := c.order(nil, signedAt, "it's a key: $(false) = 1%")
	if err != nil {
		t.Fatal(err)
	}
	p, err := order.Payment()
	if err == nil {
		p, err = priced(t.Context(), fixedFX{}, p)
	}
	if err != nil {
		t.Fatal(err)
	}
	e, err := c.event(p, keys, signedAt, "attempt")
	if err != nil {
		t.Fatal(err)
	}
	return e, keys
}

// check requires that the functions accept the event as the request of the signed payment.
func check(t *testing.T, e cloudevents.Event, keys *event.Keyring) {
	t.Helper()
	got, err := event.ReadRequest(e, keys, false)
	if err != nil {
		t.Fatal(err)
	}
	if got.Key != "it's a key: $(false) = 1%" || got.AmountIDR != 157_500 || got.Minor != 1050 || got.RateID != "r1" || got.AttemptID != "attempt" ||
		got.Metadata["note"] != `it's "$HOME" <&>` || !got.AcceptedAt.Equal(signedAt) || got.Deadline.Sub(signedAt) != payment.DecideWithin ||
		got.TxDate != "2026-01-31T09:30:00Z" {
		t.Errorf("%+v", got)
	}
}

// The printed JSON is what pgw replay reads, and the printed YAML keeps the signed bytes.
func TestSignedEventsCanBeReadAgain(t *testing.T) {
	e, keys := signed(t)
	for _, as := range []string{"json", "yaml"} {
		text, err := shape{}.write(t.Context(), as, e)
		if err != nil {
			t.Fatal(err)
		}
		asJSON, err := yaml.YAMLToJSON([]byte(text)) // JSON is YAML too, but its data is written anew
		if as == "json" {
			asJSON = []byte(text)
		}
		if err != nil {
			t.Fatal(err)
		}
		read := 0
		err = replay.ReadEvents(strings.NewReader(string(asJSON)), func(e cloudevents.Event) error {
			read++
			check(t, e, keys)
			return nil
		})
		if err != nil || read != 1 {
			t.Errorf("%s: %d events, %v", as, read, err)
		}
	}
}

// tool runs a printed line in a shell. It skips the test if the tool is not there.
func tool(t *testing.T, name, line string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
	if out, err := exec.CommandContext(t.Context(), "sh", "-ec", line).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// What curl posts is accepted by a function.
func TestCurlSendsASignedEvent(t *testing.T) {
	e, keys := signed(t)
	arrived := make(chan cloudevents.Event, 1)
	server := httptest.NewServer(event.NewReceiver(func(_ context.Context, e cloudevents.Event) error {
		arrived <- e
		return nil
	}, slog.New(slog.DiscardHandler)))
	defer server.Close()
	line, err := shape{to: server.URL + "/"}.write(t.Context(), "curl", e)
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "curl", line)
	select {
	case got := <-arrived:
		check(t, got, keys)
	default:
		t.Error("the function got no event")
	}
}

// What kcat publishes is what pgw itself would publish, in the same partition.
func TestKcatSendsASignedEvent(t *testing.T) {
	if _, err := exec.LookPath("kcat"); err != nil {
		t.Skip(err)
	}
	e, keys := signed(t)
	broker := embeddedtest.Kafka(t, kafka.Topic{Name: "payments.request", Partitions: 8})
	line, err := shape{topic: broker.Config.RequestTopic, brokers: broker.Config.Brokers}.write(t.Context(), "kcat", e)
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "kcat", line)
	producer, err := kafka.NewProducer(broker.Config, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close(context.Background())
	if err := producer.Publish(t.Context(), broker.Config.RequestTopic, e.Subject(), e); err != nil {
		t.Fatal(err)
	}
	var records []*sarama.ConsumerMessage
	err = kafka.Read(t.Context(), broker.Config, "test", kafka.Range{Topic: broker.Config.RequestTopic}, func(m *sarama.ConsumerMessage) error {
		records = append(records, m)
		got, err := kafka.ReadRecord(t.Context(), m, nil)
		if err == nil {
			check(t, got, keys)
		}
		return err
	})
	if err != nil || len(records) != 2 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	if a, b := records[0], records[1]; a.Partition != b.Partition || string(a.Key) != string(b.Key) || string(a.Value) != string(b.Value) {
		t.Errorf("partition %d, %s: %s; partition %d, %s: %s", a.Partition, a.Key, a.Value, b.Partition, b.Key, b.Value)
	}
}

// stand-ins for kn and func write their arguments, one a line.
func arguments(t *testing.T, name, line string) []string {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\nprintf '%s\\n' \"$@\" > " + dir + "/arguments\n"
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	tool(t, "sh", "PATH="+dir+":$PATH; "+line)
	text, err := os.ReadFile(filepath.Join(dir, "arguments"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// kn and func can't send a signature. What they are told to send settles where plain records may.
func TestKnAndFuncSendAPlainRecord(t *testing.T) {
	e, keys := signed(t)
	for _, name := range []string{"kn", "func"} {
		line, err := shape{to: "http://worker/"}.write(t.Context(), name, e)
		if err != nil {
			t.Fatal(err)
		}
		sent := cloudevents.New()
		sent.SetSource("/tool")
		fields, flag := map[string]string{}, ""
		for _, word := range arguments(t, name, line) {
			switch flag {
			case "--type":
				sent.SetType(word)
			case "--id":
				sent.SetID(word)
			case "--data":
				sent.DataEncoded = []byte(word)
			case "--field", "--raw-field":
				field, value, _ := strings.Cut(word, "=")
				if fields[field] = value; flag == "--raw-field" {
					fields[field] = `"` + value + `"`
				}
			}
			flag = word
		}
		if len(fields) > 0 {
			var parts []string
			for field, value := range fields {
				parts = append(parts, `"`+field+`":`+value)
			}
			sent.DataEncoded = []byte("{" + strings.Join(parts, ",") + "}")
		}
		got, err := event.ReadRequest(sent, keys, true)
		if err != nil || got.AmountIDR != 157_500 || got.Sender != "A" || got.Receiver != "B" || got.Currency.String() != "USD" || got.Key != "it's a key: $(false) = 1%" {
			t.Errorf("%s: %+v, %v: %s", name, got, err, line)
		}
		if _, err := event.ReadRequest(sent, keys, false); err == nil {
			t.Errorf("%s: accepted without a signature", name)
		}
	}
	v2 := e.Clone()
	v2.SetType(event.TypePaymentRequestedV2)
	if _, err := (shape{}).write(t.Context(), "kn", v2); err == nil || !strings.Contains(err.Error(), "use curl or kcat") {
		t.Error(err)
	}
}

// A body is read as the gateway reads it, and flags replace its fields.
func TestAPaymentToSignIsReadFromABody(t *testing.T) {
	body := `{"sender_id":"A","receiver_id":"B","currency":"USD","amount":10.5,"tx_date":"2026-01-01T00:00:00Z","idempotency_key":"k","metadata":{"a":"b"}}`
	order, err := signCommand{Body: "-", Receiver: "C"}.order(strings.NewReader(body), signedAt, "new")
	if err != nil {
		t.Fatal(err)
	}
	p, err := order.Payment()
	if err != nil || p.Sender != "A" || p.Receiver != "C" || p.Minor != 1050 || p.Key != "k" || p.Metadata["a"] != "b" || p.TxDate != "2026-01-01T00:00:00Z" {
		t.Errorf("%+v, %v", p, err)
	}
	file := filepath.Join(t.TempDir(), "body.json")
	if err := os.WriteFile(file, []byte(`{"sender":"A"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (signCommand{Body: file}).order(nil, signedAt, "new"); err == nil || !strings.Contains(err.Error(), `unknown field "sender"`) {
		t.Error(err)
	}
	p.Currency = p.CreditCurrency // no currency that fx knows
	if _, err := priced(t.Context(), fixedFX{}, p); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	for _, bad := range []signCommand{{}, {Sender: "A", Receiver: "B", Currency: "USD"}, {Body: "-", ValidFor: -1}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

func TestASignedOperationCanBeReadAgain(t *testing.T) {
	_, keys := signed(t)
	now := time.Now()
	for name, tc := range map[string]struct {
		c    signCommand
		want string // the kind and amount; "": an error
	}{
		"all that is left":     {signCommand{Operation: "refund", Of: "p", Note: "broken"}, "refund 0"},
		"a part":               {signCommand{Operation: "refund", Of: "p", Amount: "1.50", Currency: "USD"}, "refund 150"},
		"a capture":            {signCommand{Operation: "capture", Of: "p", Amount: "100", Currency: "IDR", ValidFor: time.Minute}, "capture 100"},
		"a cancellation":       {signCommand{Operation: "cancel", Of: "p"}, "cancel 0"},
		"a void of a part":     {signCommand{Operation: "void", Of: "p", Amount: "1", Currency: "IDR"}, ""},
		"nothing":              {signCommand{Operation: "refund", Of: "p", Amount: "0", Currency: "IDR"}, ""},
		"of nobody":            {signCommand{Operation: "refund"}, ""},
		"a part of a currency": {signCommand{Operation: "refund", Of: "p", Amount: "1"}, ""},
	} {
		e, err := cloudevents.Event{}, tc.c.Validate()
		if err == nil {
			e, err = tc.c.operation(keys, now, "attempt", "new")
		}
		if (err != nil) != (tc.want == "") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		got, err := event.ReadOperation(e, keys)
		if text := fmt.Sprint(got.Kind, " ", got.Minor); err != nil || text != tc.want || got.Key != "new" || got.AttemptID != "attempt" || e.Subject() != "p" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
