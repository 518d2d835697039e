package kafkasource

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/IBM/sarama"
	"github.com/prometheus/client_golang/prometheus"

	"pgw/knative"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/kafka"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

const patience = 20 * time.Second

// manifest returns the manifest of one source and its dead-letter topic. It replaces the first of
// each pair of arguments by the second.
func manifest(replace ...string) fstest.MapFS {
	text := `
apiVersion: v1
kind: ConfigMap
metadata: {name: other, anything: goes}
---
apiVersion: sources.knative.dev/v1
kind: KafkaSource
metadata:
  name: src
spec:
  bootstrapServers: [kafka:9092]
  topics: [in]
  consumerGroup: group
  consumers: 1
  initialOffset: earliest
  ordering: unordered
  sink:
    ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: fn}
    uri: /take
  delivery:
    retry: 2
    backoffPolicy: exponential
    backoffDelay: PT0.3S
    timeout: PT2S
    deadLetterSink:
      ref: {apiVersion: eventing.knative.dev/v1alpha1, kind: KafkaSink, name: dead}
---
apiVersion: eventing.knative.dev/v1alpha1
kind: KafkaSink
metadata: {name: dead}
spec:
  bootstrapServers: [kafka:9092]
  topic: dead
  contentMode: binary
`
	return fstest.MapFS{"m.yaml": {Data: []byte(strings.NewReplacer(replace...).Replace(text))}}
}

func TestTheProjectsManifestsAreValid(t *testing.T) {
	m, err := Load(knative.Base)
	if err != nil {
		t.Fatal(err)
	}
	want := "ledger.accounts payments.deadletter payments.parked payments.request payments.result"
	if got := strings.Join(m.Topics(), " "); got != want {
		t.Errorf("topics %s, want %s", got, want)
	}
}

func TestAManifestThatIsWrongIsRefused(t *testing.T) {
	if _, err := Load(manifest()); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ from, to, want string }{
		"misspelt field":        {"consumerGroup:", "consumerGruop:", "consumerGruop"},
		"field in another case": {"consumerGroup:", "consumergroup:", "consumergroup"},
		"misspelt delivery":     {"backoffDelay:", "backofDelay:", "backofDelay"},
		"wrong version":         {"sources.knative.dev/v1", "sources.knative.dev/v1beta1", "apiVersion"},
		"no group":              {"  consumerGroup: group\n", "", "consumerGroup"},
		"no initial offset":     {"  initialOffset: earliest\n", "", "initialOffset"},
		"wrong initial offset":  {"earliest", "oldest", "initialOffset"},
		"wrong ordering":        {"unordered", "any", "ordering"},
		"wrong policy":          {"exponential", "quadratic", "backoffPolicy"},
		"delay not ISO 8601":    {"PT0.3S", "300ms", "backoffDelay"},
		"zero timeout":          {"PT2S", "PT0S", "timeout"},
		"no retry":              {"    retry: 2\n", "", "retry"},
		"no dead-letter sink":   {"    deadLetterSink:\n      ref: {apiVersion: eventing.knative.dev/v1alpha1, kind: KafkaSink, name: dead}\n", "", "deadLetterSink"},
		"unknown dead-letter":   {"kind: KafkaSink, name: dead", "kind: KafkaSink, name: ded", "no KafkaSink ded"},
		"unknown kind of sink":  {"kind: Service", "kind: Deployment", "Deployment"},
		"too many consumers":    {"consumers: 1", "consumers: 1000", "consumers"},
		"no topic in KafkaSink": {"  topic: dead\n", "", "spec.topic"},
		"wrong content mode":    {"contentMode: binary", "contentMode: avro", "contentMode"},
		"no source at all":      {"kind: KafkaSource", "kind: Deployment", "no KafkaSource"},
		"delivery left out":     {"  delivery:", "  x-delivery:", "x-delivery"},
	} {
		_, err := Load(manifest(tc.from, tc.to))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ping := fstest.MapFS{"m.yaml": manifest()["m.yaml"], "p.yaml": {Data: []byte(`
apiVersion: sources.knative.dev/v1
kind: PingSource
metadata: {name: p}
spec:
  schedule: "61 * * * *"
  sink: {uri: http://localhost/}
`)}}
	if _, err := Load(ping); err == nil || !strings.Contains(err.Error(), "schedule") {
		t.Errorf("bad cron line: %v", err)
	}
}

func TestBackoffIsKnatives(t *testing.T) {
	p := policy{exponential: true, delay: 300 * time.Millisecond}
	for n, want := range map[int]time.Duration{1: 600 * time.Millisecond, 2: 1200 * time.Millisecond, 6: 19200 * time.Millisecond, 20: maxBackoff, 100: maxBackoff} {
		if got := p.wait(n); got != want {
			t.Errorf("exponential %d: %s, want %s", n, got, want)
		}
	}
	p.exponential = false
	if p.wait(1) != 300*time.Millisecond || p.wait(3) != 900*time.Millisecond {
		t.Errorf("linear: %s, %s", p.wait(1), p.wait(3))
	}
}

// rig runs sources on one topic with a sink of the test, and records the waits.
type rig struct {
	t        testing.TB
	kafka    embeddedtest.Broker
	producer *kafka.Producer
	sink     http.HandlerFunc
	server   *httptest.Server
	mu       sync.Mutex
	slept    []time.Duration
	made     func(*Sources) // called with the sources that start makes; may be nil
}

func newRig(t testing.TB, partitions int32, sink http.HandlerFunc) *rig {
	r := &rig{t: t, kafka: embeddedtest.Kafka(t, kafka.Topic{Name: "in", Partitions: partitions}, kafka.Topic{Name: "dead", Partitions: 1})}
	r.serve(sink)
	return r
}

// serve makes the sink, and a producer for the broker.
func (r *rig) serve(sink http.HandlerFunc) {
	var err error
	if r.producer, err = kafka.NewProducer(r.kafka.Config, "test"); err != nil {
		r.t.Fatal(err)
	}
	r.sink, r.server = sink, httptest.NewServer(sink)
	r.t.Cleanup(func() {
		r.server.Close()
		r.producer.Close(context.Background())
	})
}

// start runs sources until the returned function is called. That function waits for the drain.
func (r *rig) start(m fstest.MapFS, change func(*Options)) (stop func()) {
	r.t.Helper()
	text := strings.NewReplacer("topics: [in]", "topics: ["+r.kafka.Prefix+"in]", "topic: dead", "topic: "+r.kafka.Prefix+"dead").Replace(string(m["m.yaml"].Data))
	manifests, err := Load(fstest.MapFS{"m.yaml": {Data: []byte(text)}})
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := Options{
		Kafka: r.kafka.Config, GroupPrefix: r.kafka.Prefix, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		SinkURL: func(string) (string, error) { return r.server.URL, nil },
		Sleep: func(ctx context.Context, d time.Duration) error {
			r.mu.Lock()
			r.slept = append(r.slept, d)
			r.mu.Unlock()
			return sleep(ctx, min(d, 5*time.Millisecond))
		},
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(manifests, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.made != nil {
		r.made(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) send(key, value string, headers ...string) {
	r.t.Helper()
	m := &sarama.ProducerMessage{Topic: r.kafka.Prefix + "in", Value: sarama.StringEncoder(value)}
	if key != "" {
		m.Key = sarama.StringEncoder(key)
	}
	for i := 0; i < len(headers); i += 2 {
		m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(headers[i]), Value: []byte(headers[i+1])})
	}
	if err := r.producer.Send(context.Background(), m); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) sendEvent(key, value string) {
	r.send(key, value, "ce_specversion", "1.0", "ce_id", value, "ce_type", "t", "ce_source", "/s", "ce_partitionkey", key, "content-type", "text/plain")
}

// committed waits until the group has committed n records in all. It keeps waiting as long as the
// number grows.
func (r *rig) committed(n int64) {
	r.t.Helper()
	admin, err := sarama.NewClusterAdmin(r.kafka.Brokers, r.kafka.Client(r.t))
	if err != nil {
		r.t.Fatal(err)
	}
	defer admin.Close()
	var last int64
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		offsets, err := admin.ListConsumerGroupOffsets(r.kafka.Prefix+"group", nil)
		if err != nil {
			continue // the group does not exist yet
		}
		var now int64
		for _, block := range offsets.Blocks[r.kafka.Prefix+"in"] {
			now += max(0, block.Offset)
		}
		if now == n {
			return
		}
		if now != last {
			last, deadline = now, time.Now().Add(patience)
		}
	}
	r.t.Fatalf("%d records are committed, want %d", last, n)
}

func (r *rig) deadLetters(n int) []*sarama.ConsumerMessage {
	r.t.Helper()
	consumer, err := sarama.NewConsumer(r.kafka.Brokers, r.kafka.Client(r.t))
	if err != nil {
		r.t.Fatal(err)
	}
	defer consumer.Close()
	pc, err := consumer.ConsumePartition(r.kafka.Prefix+"dead", 0, sarama.OffsetOldest)
	if err != nil {
		r.t.Fatal(err)
	}
	defer pc.Close()
	var all []*sarama.ConsumerMessage
	for range n {
		select {
		case m := <-pc.Messages():
			all = append(all, m)
		case <-time.After(patience):
			r.t.Fatalf("%d dead letters, want %d", len(all), n)
		}
	}
	return all
}

func header(m *sarama.ConsumerMessage, name string) string {
	for _, h := range m.Headers {
		if string(h.Key) == name {
			return string(h.Value)
		}
	}
	return ""
}

type delivered struct {
	header http.Header
	path   string
	body   string
}

func recording(into chan<- delivered) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		into <- delivered{r.Header, r.URL.Path, string(body)}
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, "a reply that is discarded")
	}
}

func await[T any](t testing.TB, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("nothing within %s", patience)
		panic("unreachable")
	}
}

// The sink gets every record as an event in binary mode.
func TestBinaryModeForAll(t *testing.T) {
	got := make(chan delivered, 10)
	r := newRig(t, 1, recording(got))
	r.start(manifest("unordered", "ordered"), nil)

	r.send("k", `{"n":1}`, "ce_specversion", "1.0", "ce_id", "1", "ce_type", "t", "ce_source", "/s", "ce_partitionkey", "k", "content-type", "application/json")
	d := await(t, got)
	if d.path != "/take" || d.body != `{"n":1}` || d.header.Get("Ce-Id") != "1" || d.header.Get("Ce-Partitionkey") != "k" || d.header.Get("Content-Type") != "application/json" {
		t.Errorf("binary: %+v", d)
	}
	r.send("k", `{"specversion":"1.0","id":"2","type":"t","source":"/s","datacontenttype":"application/json","data":{"n":2},"ext":"x"}`, "content-type", "application/cloudevents+json; charset=utf-8")
	d = await(t, got)
	if d.body != `{"n":2}` || d.header.Get("Ce-Id") != "2" || d.header.Get("Ce-Ext") != "x" || d.header.Get("Content-Type") != "application/json" {
		t.Errorf("structured: %+v", d)
	}
	r.send("the key", `{"n":3}`)
	d = await(t, got)
	if d.body != `{"n":3}` || d.header.Get("Ce-Type") != "dev.knative.kafka.event" || d.header.Get("Ce-Id") != "partition:0/offset:2" ||
		d.header.Get("Ce-Source") != "/apis/v1/namespaces/default/kafkasources/src#"+r.kafka.Prefix+"in" || d.header.Get("Ce-Subject") != "partition:0#2" ||
		d.header.Get("Ce-Key") != "the key" || d.header.Get("Ce-Partitionkey") != "the key" || d.header["Content-Type"] != nil || d.header.Get("Ce-Time") == "" {
		t.Errorf("plain JSON: %+v", d)
	}
	r.send("", "\x00\x01")
	d = await(t, got)
	if d.body != "\x00\x01" || d.header["Content-Type"] != nil || d.header.Get("Ce-Key") != "" {
		t.Errorf("plain bytes: %+v", d)
	}
	r.send("k", `{"specversion":"1.0","broken`, "content-type", "application/cloudevents+json")
	if d = await(t, got); d.header.Get("Ce-Type") != "dev.knative.kafka.event" {
		t.Errorf("broken: %+v", d)
	}
	r.committed(5)
}

// The test checks which statuses are retried, how long the waits are, and what the dead letter
// contains.
func TestStatusesAndDeadLetters(t *testing.T) {
	for code, tries := range map[int]int32{200: 1, 202: 1, 204: 1, 300: 1, 302: 1, 400: 1, 401: 1, 403: 1, 404: 3, 408: 3, 409: 3, 410: 1, 413: 1, 422: 1, 429: 3, 500: 3, 502: 3, 503: 3} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			var n atomic.Int32
			r := newRig(t, 1, func(w http.ResponseWriter, _ *http.Request) {
				n.Add(1)
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(code)
				if code != 204 {
					io.WriteString(w, strings.Repeat("why ", 500))
				}
			})
			r.start(manifest(), nil)
			r.sendEvent("key", "value")
			r.committed(1)
			if n.Load() != tries {
				t.Errorf("tried %d times, want %d", n.Load(), tries)
			}
			if tries == 3 && (len(r.slept) < 2 || r.slept[0] != 600*time.Millisecond || r.slept[1] != 1200*time.Millisecond) {
				t.Errorf("waited %v", r.slept)
			}
			if code/100 == 2 {
				return
			}
			m := r.deadLetters(1)[0]
			data, err := base64.StdEncoding.DecodeString(header(m, "ce_knativeerrordata"))
			if err != nil || len(data) != 1024 || !strings.HasPrefix(string(data), "why why") {
				t.Errorf("error data of %d bytes, %v", len(data), err)
			}
			if header(m, "ce_knativeerrorcode") != fmt.Sprint(code) || header(m, "ce_knativeerrordest") != r.server.URL+"/take" ||
				header(m, "ce_id") != "value" || string(m.Key) != "key" || string(m.Value) != "value" {
				t.Errorf("dead letter %s: %v", m.Value, m.Headers)
			}
		})
	}
}

func TestASinkThatCantBeReached(t *testing.T) {
	r := newRig(t, 1, nil)
	r.server.Close()
	r.start(manifest(), nil)
	r.sendEvent("key", "value")
	if m := r.deadLetters(1)[0]; header(m, "ce_knativeerrorcode") != "" || header(m, "ce_knativeerrordest") == "" {
		t.Errorf("%v", m.Headers)
	}
	r.committed(1)
}

// In an unordered source events are delivered concurrently, even those with the same key, as in
// KafkaSource. In an ordered source an event under way blocks all events after it.
func TestOrdering(t *testing.T) {
	for _, ordering := range []string{"unordered", "ordered"} {
		t.Run(ordering, func(t *testing.T) {
			release := make(chan struct{})
			seen := make(chan string, 10)
			r := newRig(t, 1, func(_ http.ResponseWriter, req *http.Request) {
				seen <- req.Header.Get("Ce-Id")
				if req.Header.Get("Ce-Id") == "slow" {
					<-release
				}
			})
			done := sync.OnceFunc(func() { close(release) })
			t.Cleanup(done)
			r.start(manifest("ordering: unordered", "ordering: "+ordering), nil)
			r.sendEvent("a", "slow")
			if got := await(t, seen); got != "slow" {
				t.Fatalf("first %s", got)
			}
			r.sendEvent("a", "same key")
			r.sendEvent("b", "other key")
			behind := map[string]bool{}
			if ordering == "unordered" {
				behind[await(t, seen)], behind[await(t, seen)] = true, true
				r.committed(0) // the finished ones come after an unfinished one
			}
			select {
			case got := <-seen:
				t.Errorf("%s overtook", got)
			case <-time.After(100 * time.Millisecond):
			}
			done()
			if ordering == "ordered" {
				for _, want := range []string{"same key", "other key"} {
					if got := await(t, seen); got != want {
						t.Errorf("then %s, want %s", got, want)
					}
				}
			} else if !behind["same key"] || !behind["other key"] {
				t.Errorf("while the first is under way: %v", behind)
			}
			r.committed(3)
		})
	}
}

// If the dead-letter sink fails, the offset is held and the event is tried again. With parity it is
// dropped.
func TestADeadLetterSinkThatFails(t *testing.T) {
	toHTTP := []string{
		"ref: {apiVersion: eventing.knative.dev/v1alpha1, kind: KafkaSink, name: dead}\n---", "uri: URL\n---",
	}
	for _, parity := range []bool{false, true} {
		t.Run(fmt.Sprintf("parity %t", parity), func(t *testing.T) {
			var up atomic.Bool
			var taken atomic.Int32
			dead := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !up.Load() {
					w.WriteHeader(http.StatusBadRequest)
					return
				}
				if r.Header.Get("Ce-Knativeerrorcode") == "400" {
					taken.Add(1)
				}
			}))
			defer dead.Close()
			refused := make(chan struct{}, 10)
			r := newRig(t, 1, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusBadRequest)
				refused <- struct{}{}
			})
			r.start(manifest(toHTTP[0], strings.Replace(toHTTP[1], "URL", dead.URL, 1)), func(c *Options) { c.Parity = parity })
			r.sendEvent("key", "value")
			await(t, refused)
			if parity {
				r.committed(1)
				return
			}
			r.committed(0)
			up.Store(true)
			r.committed(1)
			if taken.Load() != 1 {
				t.Errorf("the dead-letter sink took %d", taken.Load())
			}
		})
	}
}

// A stop waits for the deliveries under way and commits them. The next run delivers the rest.
func TestDrainAndContinue(t *testing.T) {
	started, release := make(chan struct{}, 10), make(chan struct{})
	var n atomic.Int32
	r := newRig(t, 1, func(http.ResponseWriter, *http.Request) {
		n.Add(1)
		started <- struct{}{}
		<-release
	})
	done := sync.OnceFunc(func() { close(release) })
	t.Cleanup(done)
	stop := r.start(manifest("unordered", "ordered"), nil)
	r.sendEvent("a", "1")
	r.sendEvent("a", "2")
	await(t, started)
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	select {
	case <-stopped:
		t.Fatal("stopped while a delivery was under way")
	case <-time.After(100 * time.Millisecond):
	}
	done()
	await(t, stopped)
	r.committed(int64(n.Load()))
	r.start(manifest("unordered", "ordered"), nil)
	r.committed(2)
	if n.Load() != 2 {
		t.Errorf("%d deliveries of 2 events", n.Load())
	}
}

func TestPing(t *testing.T) {
	p := &ping{}
	spec := &p.manifest.Spec
	p.manifest.Metadata.Name = "sweep"
	spec.Data, spec.ContentType = `{"do":"sweep"}`, "application/json"
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m, err := p.message(t.Context(), at)
	if err != nil || m.header.Get("Ce-Type") != "dev.knative.sources.ping" || m.header.Get("Ce-Source") != "/apis/v1/namespaces/default/pingsources/sweep" ||
		string(m.body) != spec.Data || m.header.Get("Content-Type") != "application/json" || m.header.Get("Ce-Time") != "2026-03-01T12:00:00Z" {
		t.Errorf("%v %s", m.header, m.body)
	}
	spec.Data, spec.ContentType = "", ""
	if m, _ := p.message(t.Context(), at); len(m.body) != 0 || m.header.Get("Ce-Id") == "" {
		t.Errorf("without data: %v %s", m.header, m.body)
	}
}

// Members join and leave while 5 % of the deliveries fail, and no event is lost. In an ordered
// source, two events of a key also never overlap and never change their order. In an unordered
// source they may, as in KafkaSource.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("too long for make check")
	}
	t.Run("unordered", func(t *testing.T) { soak(t, 70_000, manifest("retry: 2", "retry: 10")) })
	t.Run("ordered", func(t *testing.T) { soak(t, 30_000, manifest("retry: 2", "retry: 10", "unordered", "ordered")) })
}

func soak(t *testing.T, events int, many fstest.MapFS) {
	const keys, partitions = 1000, 8
	ordered := strings.Contains(string(many["m.yaml"].Data), "ordering: ordered")
	var mu sync.Mutex
	busy, newest := map[string]bool{}, map[string]int{}
	seen := map[string]int{}
	rng := rand.New(rand.NewPCG(1, 1))
	r := newRig(t, partitions, func(w http.ResponseWriter, req *http.Request) {
		id := req.Header.Get("Ce-Id")
		key, number, _ := strings.Cut(id, "/")
		var n int
		fmt.Sscan(number, &n)
		mu.Lock()
		if ordered && busy[key] {
			t.Errorf("two events of %s at once", key)
		}
		busy[key] = true
		fail := rng.IntN(20) == 0
		// Around a rebalance an event may be delivered again, but never late.
		if ordered && seen[id] == 0 && n < newest[key] {
			t.Errorf("%s comes after %d", id, newest[key])
		}
		mu.Unlock()
		time.Sleep(time.Duration(n%3) * 100 * time.Microsecond)
		mu.Lock()
		busy[key] = false
		if !fail {
			seen[id]++
			newest[key] = max(newest[key], n)
		}
		mu.Unlock()
		if fail {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	r.start(many, nil)
	var sent sync.WaitGroup
	for worker := range 8 {
		sent.Go(func() {
			for i := worker; i < events; i += 8 {
				// One worker sends all events of a key, so they are sent in order.
				key := fmt.Sprint("key", i%keys)
				r.sendEvent(key, fmt.Sprintf("%s/%d", key, i/keys+1))
			}
		})
	}
	done := make(chan struct{})
	go func() { sent.Wait(); close(done) }()
	joined := 0
	for sending := true; sending; joined++ {
		stop := r.start(many, nil)
		select {
		case <-done:
			sending = false
		case <-time.After(2 * time.Second):
		}
		stop()
	}
	r.committed(int64(events))
	t.Logf("%d members came and went", joined)
	mu.Lock()
	defer mu.Unlock()
	lost := 0
	for i := range events {
		if seen[fmt.Sprintf("key%d/%d", i%keys, i/keys+1)] == 0 {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d events are lost", lost, events)
	}
}
