package flow

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/pb33f/jsonschema/v6"
	"sigs.k8s.io/yaml"

	"pgw/functions/gateway/docs"
	"pgw/functions/pgw/allinone"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
)

// asyncAPI is what asyncapi.yaml says about topics and their records.
type asyncAPI struct {
	channels map[string][]message // by topic
	reasons  []payment.Reason     // of results
}

type message struct {
	name                  string
	eventType             string // empty for any type
	plain                 bool   // a plain record, not an event
	headers, key, payload *jsonschema.Schema
	examples              []example
}

type example struct{ Headers, Payload any }

var eventDocument = sync.OnceValues(readAsyncAPI)

func readAsyncAPI() (*asyncAPI, error) {
	text, err := yaml.YAMLToJSON(docs.AsyncAPI)
	if err != nil {
		return nil, err
	}
	root, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	var document struct {
		Channels map[string]struct {
			Address  string
			Messages map[string]json.RawMessage
		}
		Components struct {
			Messages map[string]struct {
				Headers  any
				Examples []example
			}
			Schemas struct {
				PaymentResult struct {
					Properties struct {
						Reason struct{ Enum []payment.Reason }
					}
				}
			}
		}
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return nil, err
	}
	// Readers ignore unknown fields. But pgw must not write a field that the document does not
	// have.
	forbidMore(root.(map[string]any)["components"].(map[string]any)["schemas"])
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft7) // AsyncAPI's own schemas are based on this draft
	compiler.AssertFormat()
	const url = "asyncapi.yaml"
	if err := compiler.AddResource(url, root); err != nil {
		return nil, err
	}
	a := &asyncAPI{channels: map[string][]message{}, reasons: document.Components.Schemas.PaymentResult.Properties.Reason.Enum}
	for _, channel := range document.Channels {
		for name := range channel.Messages {
			at := "#/components/messages/" + name
			m := message{name: name, examples: document.Components.Messages[name].Examples, plain: document.Components.Messages[name].Headers == nil}
			for part, into := range map[string]**jsonschema.Schema{"/headers": &m.headers, "/payload": &m.payload, "/bindings/kafka/key": &m.key} {
				if lookUp(root, at+part) == nil {
					continue
				}
				if *into, err = compiler.Compile(url + at + part); err != nil {
					return nil, fmt.Errorf("asyncapi.yaml: %s: %w", name, err)
				}
			}
			m.eventType, _ = lookUp(root, at+"/headers/allOf/1/properties/ce_type/const").(string)
			a.channels[channel.Address] = append(a.channels[channel.Address], m)
		}
	}
	return a, nil
}

// forbidMore makes objects with listed properties strict. Headers stay open, as CloudEvents allow
// extensions.
func forbidMore(schemas any) {
	for _, schema := range schemas.(map[string]any) {
		object := schema.(map[string]any)
		properties, _ := object["properties"].(map[string]any)
		if properties != nil && properties["ce_id"] == nil {
			object["additionalProperties"] = false
		}
	}
}

// lookUp follows a JSON pointer without escapes. It returns nil when there is nothing.
func lookUp(v any, pointer string) any {
	for step := range strings.SplitSeq(strings.TrimPrefix(pointer, "#/"), "/") {
		switch node := v.(type) {
		case map[string]any:
			v = node[step]
		case []any:
			i := int(step[0] - '0')
			if len(step) != 1 || i < 0 || i >= len(node) {
				return nil
			}
			v = node[i]
		default:
			return nil
		}
	}
	return v
}

// check returns the difference between a record and the document.
func (a *asyncAPI) check(topic string, m *sarama.ConsumerMessage) error {
	headers, payload, err := parts(m)
	if err != nil {
		return err
	}
	for _, message := range a.channels[topic] {
		eventType, _ := headers["ce_type"].(string)
		if message.plain != (len(headers) == 0) || (message.eventType != "" && message.eventType != eventType) {
			continue
		}
		if err := errors.Join(fits(message.headers, headers), fits(message.key, string(m.Key)), fits(message.payload, payload)); err != nil {
			return fmt.Errorf("%s: %w", message.name, err)
		}
		return nil
	}
	return fmt.Errorf("%s has no message of type %v", topic, headers["ce_type"])
}

// fits checks a value if there is a schema.
func fits(schema *jsonschema.Schema, value any) error {
	if schema == nil {
		return nil
	}
	return schema.Validate(value)
}

// parts returns the headers and the payload of a record as in binary mode, also for structured
// mode.
func parts(m *sarama.ConsumerMessage) (headers map[string]any, payload any, err error) {
	headers = map[string]any{}
	for _, h := range m.Headers {
		headers[string(h.Key)] = string(h.Value)
	}
	data := m.Value
	if contentType, _ := headers["content-type"].(string); strings.HasPrefix(contentType, cloudevents.ApplicationCloudEventsJSON) {
		e, err := kafka.ReadRecord(context.Background(), m, nil)
		if err != nil {
			return nil, nil, err
		}
		headers = map[string]any{
			"content-type": e.DataContentType(), "ce_specversion": e.SpecVersion(), "ce_id": e.ID(), "ce_type": e.Type(),
			"ce_source": e.Source(), "ce_subject": e.Subject(), "ce_time": e.Time().Format(time.RFC3339Nano),
		}
		for name, value := range e.Extensions() {
			headers["ce_"+name] = fmt.Sprint(value)
		}
		data = e.Data()
	}
	payload, err = jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		payload, err = string(data), nil // dead letters may contain anything
	}
	return headers, payload, err
}

// checkEvents checks all published records against asyncapi.yaml. Wrong records that tests publish
// must have been refused, and are among the dead letters.
func (s *system) checkEvents() {
	s.t.Helper()
	document, err := eventDocument()
	if err != nil {
		s.t.Fatal(err)
	}
	published, refused := map[string][]*sarama.ConsumerMessage{}, map[string]bool{}
	for topic := range document.channels {
		published[topic] = s.records(s.kafka.Renamed()[topic])
	}
	for _, m := range slices.Concat(published["payments.deadletter"], published["payments.parked"]) {
		if isLetter(m) {
			refused[string(m.Key)] = true
		}
	}
	for topic, records := range published {
		for _, m := range records {
			// A wrong record that a test puts among the dead letters is refused like any other.
			deadLetters := topic == "payments.parked" || (topic == "payments.deadletter" && isLetter(m))
			if err := document.check(topic, m); err != nil && (deadLetters || !refused[string(m.Key)]) {
				s.t.Errorf("%s, against asyncapi.yaml: %v: %.500s", topic, err, m.Value)
			}
		}
	}
}

// isLetter says whether a source wrote the record because it could not deliver an event.
func isLetter(m *sarama.ConsumerMessage) bool { return header(m, "ce_knativeerrordest") != "" }

// The document and the code have the same topics, event types, golden files, examples and reasons
// of results.
func TestTheEventDocumentIsWhole(t *testing.T) {
	document, err := eventDocument()
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := allinone.Manifests()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(document.channels)), slices.Sorted(slices.Values(manifests.Topics())); !slices.Equal(got, want) {
		t.Errorf("the document has the topics %q, the manifests %q", got, want)
	}
	inCode := map[string]bool{}
	for _, file := range []string{"event.go", "operation.go"} {
		source, err := os.ReadFile("../../shared/event/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`Type\w+\s+= "(pgw\..*)"`).FindAllSubmatch(source, -1) {
			inCode[string(m[1])] = true
		}
	}
	topicOf := map[string]string{}
	for topic, messages := range document.channels {
		for _, m := range messages {
			if m.eventType != "" {
				topicOf[m.eventType] = topic
			}
			if len(m.examples) == 0 {
				t.Errorf("%s has no example", m.name)
			}
			for _, e := range m.examples {
				if err := errors.Join(fits(m.headers, e.Headers), fits(m.payload, e.Payload)); err != nil {
					t.Errorf("the example of %s: %v", m.name, err)
				}
			}
		}
	}
	if got, want := slices.Sorted(maps.Keys(topicOf)), slices.Sorted(maps.Keys(inCode)); !slices.Equal(got, want) || len(got) == 0 {
		t.Errorf("the document has the types %q, shared/event %q", got, want)
	}
	for eventType, topic := range topicOf {
		text, err := os.ReadFile(filepath.Join("../../shared/event/testdata", eventType+".json"))
		if err != nil {
			t.Errorf("%s has no golden file: %v", eventType, err)
			continue
		}
		m := &sarama.ConsumerMessage{Key: []byte("key"), Value: text, Headers: []*sarama.RecordHeader{{Key: []byte("content-type"), Value: []byte(cloudevents.ApplicationCloudEventsJSON)}}}
		if err := document.check(topic, m); err != nil {
			t.Errorf("the golden file of %s: %v", eventType, err)
		}
	}
	for _, reason := range document.reasons {
		if !reason.Known() {
			t.Errorf("%s is not a reason", reason)
		}
	}
}

// The check finds a record that differs from the document.
func TestTheEventDocumentForbids(t *testing.T) {
	document, err := eventDocument()
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("../../shared/event/testdata/" + event.TypePaymentResult + ".json")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(map[string]any){
		"another reason":   func(e map[string]any) { e["data"].(map[string]any)["reason"] = "because" },
		"an unknown field": func(e map[string]any) { e["data"].(map[string]any)["more"] = 1 },
		"a field less":     func(e map[string]any) { delete(e["data"].(map[string]any), "ref") },
		"no signature":     func(e map[string]any) { delete(e, "pgwsignature") },
		"another version":  func(e map[string]any) { e["type"] = "pgw.payment.result.v2" },
	} {
		var e map[string]any
		if err := json.Unmarshal(golden, &e); err != nil {
			t.Fatal(err)
		}
		change(e)
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		m := &sarama.ConsumerMessage{Key: []byte("key"), Value: text, Headers: []*sarama.RecordHeader{{Key: []byte("content-type"), Value: []byte(cloudevents.ApplicationCloudEventsJSON)}}}
		if document.check("payments.result", m) == nil {
			t.Errorf("the check accepts %s", name)
		}
	}
}
