package kafkasource

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/event"
)

// These tests compare kafkasource with KafkaSource.

func recordOf(key, value string, headers ...string) *sarama.ConsumerMessage {
	m := &sarama.ConsumerMessage{Topic: "in", Partition: 3, Offset: 7, Key: []byte(key), Value: []byte(value), Timestamp: time.UnixMilli(1767225600120)}
	for i := 0; i < len(headers); i += 2 {
		h := &sarama.RecordHeader{Key: []byte(headers[i])}
		if headers[i+1] != null {
			h.Value = []byte(headers[i+1])
		}
		m.Headers = append(m.Headers, h)
	}
	return m
}

// null represents a header value that is null.
const null = "\x00null"

func event1(headers ...string) []string {
	return append([]string{"ce_specversion", "1.0", "ce_id", "1", "ce_type", "t", "ce_source", "/s"}, headers...)
}

func structuredOf(text string) *sarama.ConsumerMessage {
	return recordOf("k", text, "content-type", "application/cloudevents+json")
}

func TestEveryEventHasThePositionOfItsRecord(t *testing.T) {
	for name, m := range map[string]*sarama.ConsumerMessage{
		"binary":     recordOf("k", "{}", event1()...),
		"its own":    recordOf("k", "{}", event1("ce_knativekafkapartition", "9", "ce_knativekafkaoffset", "9")...),
		"structured": structuredOf(`{"specversion":"1.0","id":"1","type":"t","source":"/s"}`),
		"plain":      recordOf("k", "{}"),
	} {
		got := readRecord(kafkaSource{}, m)
		if got.header.Get("Ce-Knativekafkapartition") != "3" || got.header.Get("Ce-Knativekafkaoffset") != "7" {
			t.Errorf("%s: %v", name, got.header)
		}
	}
}

func TestAWrappedRecordCarriesItsKeyAndHeaders(t *testing.T) {
	got := readRecord(kafkaSource{}, recordOf("the key", "{}", "X-Trace_Id", "42", "x-none", null, "tag", "a\x07b", "Content-Type", "Text/Plain"))
	for name, want := range map[string]string{
		"Ce-Type": "dev.knative.kafka.event", "Ce-Key": "the key", "Ce-Partitionkey": "the key", "Ce-Kafkaheaderxtraceid": "42",
		"Ce-Kafkaheaderxnone": "", "Ce-Kafkaheadertag": "a%07b", "Content-Type": "text/plain", "Ce-Time": "2026-01-01T00:00:00.12Z",
	} {
		if got.header.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, got.header.Get(name), want)
		}
	}
	got = readRecord(kafkaSource{}, recordOf("\x00\x00\x00\x02", "{}"))
	if got.refused != nil || got.header["Ce-Key"] != nil || got.header["Ce-Partitionkey"] != nil || got.header["Content-Type"] != nil {
		t.Errorf("a key that no header can carry: %v", got)
	}
}

func TestABrokenCloudEventIsWrapped(t *testing.T) {
	for name, headers := range map[string][]string{
		"letter O in the version": {"ce_specversion", "1.O", "ce_id", "1", "ce_type", "t", "ce_source", "/s"},
		"a version to come":       {"ce_specversion", "7.9", "ce_id", "1", "ce_type", "t", "ce_source", "/s"},
		"version that is null":    {"ce_specversion", null, "ce_id", "1", "ce_type", "t", "ce_source", "/s"},
		"no id":                   {"ce_specversion", "1.0", "ce_type", "t", "ce_source", "/s"},
		"id that is null":         {"ce_specversion", "1.0", "ce_id", null, "ce_type", "t", "ce_source", "/s"},
		"time is not a time":      event1("ce_time", "yesterday"),
		"hyphen":                  event1("ce_my-ext", "1"),
		"space":                   event1("ce_my ext", "1"),
		"empty subject":           event1("ce_subject", ""),
		"source is not a URI":     {"ce_specversion", "1.0", "ce_id", "1", "ce_type", "t", "ce_source", "://"},
		"source with a space":     {"ce_specversion", "1.0", "ce_id", "1", "ce_type", "t", "ce_source", "/a b"},
		"dataschema is not a URI": event1("ce_dataschema", "%zz"),
		"content type is null":    event1("content-type", null),
		"another format":          event1("content-type", "application/cloudevents+avro"),
	} {
		got := readRecord(kafkaSource{}, recordOf("k", "{}", headers...))
		if got.header.Get("Ce-Type") != event.TypeKafkaRecord || got.refused != nil {
			t.Errorf("%s: %v", name, got.header)
		}
	}
	for name, headers := range map[string][]string{
		"header without a name": event1("ce_", "x"), "null attribute": event1("ce_subject", null), "another header": event1("x-trace", "1"),
		"capitals in a name": event1("ce_MyExt", "1"),
	} {
		if got := readRecord(kafkaSource{}, recordOf("k", "{}", headers...)); got.header.Get("Ce-Type") != "t" {
			t.Errorf("%s: %v", name, got.header)
		}
	}
}

func TestTimesAreRewrittenAsJavaWritesThem(t *testing.T) {
	// Each text is parsed by java.time.OffsetDateTime and formatted by
	// DateTimeFormatter.ISO_OFFSET_DATE_TIME.
	for text, want := range map[string]string{
		"2026-03-01T12:00:00Z": "2026-03-01T12:00:00Z", "2026-03-01T12:00:00.000Z": "2026-03-01T12:00:00Z", "2026-03-01T12:00:00.120Z": "2026-03-01T12:00:00.12Z",
		"2026-03-01T12:00:00.123456789Z": "2026-03-01T12:00:00.123456789Z", "2026-03-01T12:00:00.1234567890Z": "",
		"2026-03-01T12:00:00+00:00": "2026-03-01T12:00:00Z", "2026-03-01T12:00:00-00:00": "2026-03-01T12:00:00Z", "2026-03-01T12:00:00+07:00": "2026-03-01T12:00:00+07:00",
		"2026-03-01t12:00:00z": "2026-03-01T12:00:00Z", "2026-03-01T12:00Z": "2026-03-01T12:00:00Z", "2026-03-01T12:00:60Z": "", "2026-03-01T24:00:00Z": "",
		"2026-03-01 12:00:00Z": "", "2026-03-01T12:00:00": "", "2026-03-01T12:00:00+19:00": "", "2026-03-01T12:00:00.Z": "2026-03-01T12:00:00Z",
		"2026-03-01T12:00:00+07": "2026-03-01T12:00:00+07:00", "2026-03-01T12:00:00+07:00:30": "2026-03-01T12:00:00+07:00:30", "2026-02-30T12:00:00Z": "",
		"2026-03-01T12:00:00,5Z": "", "2026-03-01T12:00:00.5z": "2026-03-01T12:00:00.5Z", "yesterday": "", "": "",
	} {
		if got, err := rewriteTime(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", text, got, err, want)
		}
	}
	got := readRecord(kafkaSource{}, recordOf("k", "{}", event1("ce_time", "2026-03-01T12:00:00.120+07:00")...))
	if got.header.Get("Ce-Time") != "2026-03-01T12:00:00.12+07:00" {
		t.Errorf("%v", got.header)
	}
	got = readRecord(kafkaSource{}, structuredOf(`{"specversion":"1.0","id":"1","type":"t","source":"/s","time":"2026-03-01T12:00:00.000+07:00"}`))
	if got.header.Get("Ce-Time") != "2026-03-01T12:00:00+07:00" {
		t.Errorf("structured: %v", got.header)
	}
}

func TestStructuredDataIsEncodedAgain(t *testing.T) {
	got := readRecord(kafkaSource{}, structuredOf(`{"specversion":"1.0","id":"1","type":"t","source":"/s","data": {"b" : "x\u0026y", "a": [1, 1.10]}}`))
	if string(got.body) != `{"b":"x&y","a":[1,1.10]}` || got.refused != nil {
		t.Errorf("%s %v", got.body, got.refused)
	}
	got = readRecord(kafkaSource{}, structuredOf(`{"specversion":"1.0","id":"1","type":"t","source":"/s","data_base64":"IHsgfQ=="}`))
	if string(got.body) != ` { }` {
		t.Errorf("%s", got.body)
	}
}

// The event is not sent to the sink, and the dead letter has the reason.
func TestASignedStructuredEventIsRefusedWithAReason(t *testing.T) {
	r := newRig(t, 1, func(http.ResponseWriter, *http.Request) { t.Error("the sink is asked") })
	r.start(manifest(), nil)
	r.send("k", `{"specversion":"1.0","id":"1","type":"t","source":"/s","data":{},"pgwsignature":"k1.x"}`, "content-type", "application/cloudevents+json")
	m := r.deadLetters(1)[0]
	if header(m, "ce_knativeerrorcode") != "403" || !strings.Contains(why(m), "binary mode") || header(m, "ce_id") != "1" {
		t.Errorf("%s: %v", why(m), m.Headers)
	}
}

// The headers kne-NAME of a sink's response are added to the dead letter. They cannot change the
// event's own attributes.
func TestReplyHeadersAreInTheDeadLetter(t *testing.T) {
	r := newRig(t, 1, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Kne-Why", "because")
		w.Header().Set("Kne-Id", "another")
		w.Header().Set("Kne-Bad-Name", "x")
		w.WriteHeader(http.StatusBadRequest)
	})
	r.start(manifest(), nil)
	r.sendEvent("key", "value")
	m := r.deadLetters(1)[0]
	if header(m, "ce_why") != "because" || header(m, "ce_id") != "value" || header(m, "ce_knativeerrordata") != "" || header(m, "ce_knativeerrorcode") != "400" {
		t.Errorf("%v", m.Headers)
	}
	for _, h := range m.Headers {
		if strings.Contains(string(h.Key), "bad") || string(h.Key) == "ce_knativeerrordata" {
			t.Errorf("%s: %s", h.Key, h.Value)
		}
	}
}

// At most 50 deliveries of a consumer are under way. When there are 50, no partition is read.
func TestFiftyInFlightForEachConsumer(t *testing.T) {
	const events, partitions = 120, 4
	var now, most atomic.Int32
	full, release := make(chan struct{}), make(chan struct{})
	r := newRig(t, partitions, func(http.ResponseWriter, *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		if n == 50 {
			close(full)
		}
		<-release
	})
	done := sync.OnceFunc(func() { close(release) })
	t.Cleanup(done)
	for i := range events {
		key := string(rune('a' + i))
		r.sendEvent(key, "v"+key)
	}
	r.start(manifest("timeout: PT2S", "timeout: PT10M"), nil)
	await(t, full)
	time.Sleep(100 * time.Millisecond) // further deliveries would have started by now
	if n := most.Load(); n != 50 {
		t.Errorf("%d are under way", n)
	}
	done()
	r.committed(events)
}

// A record of a kind that once stopped a partition or the process is settled, and the records after
// it are delivered.
func TestNoRecordStopsAPartition(t *testing.T) {
	h := event.NewReceiver(func(_ context.Context, e cloudevents.Event) error {
		if e.Type() != "good" {
			return event.ErrRefused
		}
		return nil
	}, slog.New(slog.DiscardHandler))
	for name, headers := range map[string][]string{
		"attribute with no name":           event1("ce_", "x"),
		"letter O in the version":          {"ce_specversion", "1.O", "ce_id", "1", "ce_type", "t", "ce_source", "/s"},
		"time is not a time":               event1("ce_time", "yesterday"),
		"hyphen in an extension":           event1("ce_my-ext", "1"),
		"empty id":                         {"ce_specversion", "1.0", "ce_id", "", "ce_type", "t", "ce_source", "/s"},
		"source is not a URI":              {"ce_specversion", "1.0", "ce_id", "1", "ce_type", "t", "ce_source", "://"},
		"content type is not valid":        event1("ce_datacontenttype", "foo;;"),
		"control character":                event1("ce_subject", "a\x07b"),
		"CR LF":                            event1("ce_subject", "a\r\nx: y"),
		"null header":                      {"x-trace", null},
		"attribute that is too long":       event1("ce_long", strings.Repeat("x", 200_000)),
		"many attributes":                  event1(slices.Repeat([]string{"x", strings.Repeat("y", 500)}, 600)...),
		"broken structured":                {"content-type", "application/cloudevents+json"},
		"content type that is not a type":  {"content-type", "\x01;;"},
		"header with a control character":  {"x\n", "a\x00b"},
		"headers that become the same one": {"a-b", "1", "ab", "2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, h.ServeHTTP)
			r.start(manifest("ordering: unordered", "ordering: ordered", "retry: 2", "retry: 0"), nil)
			m := &sarama.ProducerMessage{Topic: r.kafka.Prefix + "in", Key: sarama.StringEncoder("bad"), Value: sarama.StringEncoder(`{"a":1}`)}
			for _, h := range recordOf("", "", headers...).Headers {
				m.Headers = append(m.Headers, *h)
			}
			if err := r.producer.Send(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			r.send("good", "{}", "ce_specversion", "1.0", "ce_id", "1", "ce_type", "good", "ce_source", "/s")
			r.committed(2)
			letter := r.deadLetters(1)[0]
			if string(letter.Key) != "bad" || string(letter.Value) != `{"a":1}` || len(r.slept) > 0 {
				t.Errorf("%q, %s; waited %v; %v", letter.Key, letter.Value, r.slept, letter.Headers)
			}
			if e := ReadRecord(t.Context(), "src", letter); e.Validate() != nil {
				t.Errorf("%v", e)
			}
		})
	}
}
