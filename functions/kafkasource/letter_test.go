package kafkasource

import (
	"bytes"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"pgw/shared/event"
)

// why returns the error text of a dead letter.
func why(m *sarama.ConsumerMessage) string {
	text, _ := base64.StdEncoding.DecodeString(header(m, "ce_knativeerrordata"))
	return string(text)
}

// Kafka may accept a record, but its dead letter may be too large for Kafka.
func TestADeadLetterIsCutToTheMaximumSize(t *testing.T) {
	for name, tc := range map[string]struct {
		size int
		with sarama.CompressionCodec
		mode string
	}{
		"as large as Kafka takes": {size: 1_048_400 - 200},
		"compressed, and larger":  {size: 4_000_000, with: sarama.CompressionGZIP},
		"structured":              {size: 1_048_000, mode: "structured"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			registry := prometheus.NewRegistry()
			r := newRig(t, 1, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusRequestEntityTooLarge) })
			mode := "binary"
			if tc.mode != "" {
				mode = tc.mode
			}
			r.start(manifest("contentMode: binary", "contentMode: "+mode), func(c *Options) { c.Registerer = registry })

			settings := r.kafka.Client(t)
			settings.Producer.Compression, settings.Producer.MaxMessageBytes, settings.Producer.Return.Successes = tc.with, 10<<20, true
			producer, err := sarama.NewSyncProducer(r.kafka.Brokers, settings)
			if err != nil {
				t.Fatal(err)
			}
			defer producer.Close()
			value := bytes.Repeat([]byte("x"), tc.size)
			m := &sarama.ProducerMessage{Topic: r.kafka.Prefix + "in", Key: sarama.StringEncoder("large"), Value: sarama.ByteEncoder(value)}
			for _, h := range recordOf("", "", event1()...).Headers {
				m.Headers = append(m.Headers, *h)
			}
			if _, _, err := producer.SendMessage(m); err != nil {
				t.Fatal(err)
			}
			r.committed(1)
			e := ReadRecord(t.Context(), "src", r.deadLetters(1)[0])
			from, _ := e.Extensions()[ExtCutFrom].(string)
			if e.Type() != event.TypeKafkaRecord || len(e.Data()) < maxLetter/2 || len(e.Data()) >= tc.size || !bytes.HasPrefix(value, e.Data()) {
				t.Errorf("%d bytes of a %s", len(e.Data()), e.Type())
			}
			if from != strconv.Itoa(tc.size) || e.Extensions()["knativeerrorcode"] != "413" || e.Extensions()["kafkaheaderceid"] != "1" {
				t.Errorf("%v", e.Extensions())
			}
			if got := testutil.ToFloat64(counter(t, registry, "pgw_source_cut_total")); got != 1 {
				t.Errorf("%v are counted", got)
			}
		})
	}
}

// counter returns one counter of a registry.
func counter(t *testing.T, registry *prometheus.Registry, name string) prometheus.Collector {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	c := prometheus.NewGauge(prometheus.GaugeOpts{Name: "sum"})
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				c.Add(m.GetCounter().GetValue() + m.GetGauge().GetValue())
			}
		}
	}
	return c
}

// If a sink accepts less than Kafka's default size, the letter is made smaller until the sink
// accepts it.
func TestADeadLetterSinkWithASmallerLimit(t *testing.T) {
	var taken atomic.Int64
	dead := deadLetter{}
	sink := roundTrip(func(req *http.Request) (*http.Response, error) {
		code := http.StatusAccepted
		if req.ContentLength > 30_000 {
			code = http.StatusRequestEntityTooLarge
		} else {
			taken.Store(req.ContentLength)
		}
		return &http.Response{StatusCode: code, Body: http.NoBody, Header: http.Header{}}, nil
	})
	p, err := newPoster("http://dead", sink, policy{timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	dead.http = &p
	m := readRecord(kafkaSource{}, recordOf("k", strings.Repeat("x", 500_000), event1()...))
	cut, err := dead.put(t.Context(), kafkaSource{}, m, "http://sink", errors.New("why"))
	if err != nil || !cut || taken.Load() < 4000 {
		t.Errorf("cut %t, %v; %d bytes", cut, err, taken.Load())
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A held partition is visible in the metrics and in the error of Ready.
func TestAHeldPartitionIsVisible(t *testing.T) {
	var up atomic.Bool
	var ahead atomic.Int64
	registry := prometheus.NewRegistry()
	r := newRig(t, 1, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) })
	transport := roundTrip(func(req *http.Request) (*http.Response, error) {
		if req.URL.Host == "dead" {
			code := http.StatusServiceUnavailable
			if up.Load() {
				code = http.StatusAccepted
			}
			return &http.Response{StatusCode: code, Body: http.NoBody, Header: http.Header{}}, nil
		}
		return http.DefaultTransport.RoundTrip(req)
	})
	var sources *Sources
	r.made = func(s *Sources) { sources = s }
	r.start(manifest("ref: {apiVersion: eventing.knative.dev/v1alpha1, kind: KafkaSink, name: dead}\n---", "uri: http://dead/\n---"), func(c *Options) {
		c.Registerer, c.Transport = registry, transport
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	r.sendEvent("key", "value")
	value := func(name string) float64 { return testutil.ToFloat64(counter(t, registry, name)) }
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within %s: %s", patience, what)
			}
		}
	}
	eventually("a partition is held", func() bool { return value("pgw_source_held_partitions") == 1 })
	if err := sources.Ready(); err != nil {
		t.Errorf("at once: %v", err)
	}
	ahead.Store(int64(10 * time.Minute))
	err := sources.Ready()
	if err == nil || !strings.Contains(err.Error(), "source src holds") || !strings.Contains(err.Error(), "offset 0") || !strings.Contains(err.Error(), "status 503") {
		t.Errorf("after ten minutes: %v", err)
	}
	if value("pgw_source_held_age_seconds") < 590 || value("pgw_source_trying_seconds") < 590 {
		t.Errorf("held for %v, tried for %v", value("pgw_source_held_age_seconds"), value("pgw_source_trying_seconds"))
	}
	up.Store(true)
	r.committed(1)
	eventually("nothing is held", func() bool {
		return value("pgw_source_held_partitions") == 0 && value("pgw_source_held_age_seconds") == 0
	})
	if err := sources.Ready(); err != nil {
		t.Error(err)
	}
}
