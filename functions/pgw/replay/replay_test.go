package replay

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/kafka"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

func made(t testing.TB, id, key string) cloudevents.Event {
	t.Helper()
	e, err := event.New(event.TypeAccountFunded, id, "/s", key, event.AccountFunded{AccountID: key, AmountIDR: 5}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// lines returns n events with the ids e0, e1, …, and three keys.
func lines(t testing.TB, n int) []string {
	t.Helper()
	all := make([]string, n)
	for i := range all {
		text, err := made(t, fmt.Sprint("e", i), fmt.Sprint("k", i%3)).MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		all[i] = string(text)
	}
	return all
}

func write(t testing.TB, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "events")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// sink answers events by their id and records them.
type sink struct {
	*httptest.Server
	mu     sync.Mutex
	ids    []string
	answer func(id string, try int) int
	tries  map[string]int
}

func newSink(t testing.TB, answer func(id string, try int) int) *sink {
	s := &sink{answer: answer, tries: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("Ce-Id")
		s.mu.Lock()
		s.ids = append(s.ids, id)
		s.tries[id]++
		try := s.tries[id]
		s.mu.Unlock()
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(s.answer(id, try))
	}))
	t.Cleanup(s.Close)
	return s
}

func taken(string, int) int { return http.StatusAccepted }

// Events as lines, as an array and compressed by gzip give the same events in the same order.
func TestFilesOfEveryForm(t *testing.T) {
	all := lines(t, 7)
	zip := func(text string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		io.WriteString(z, text)
		z.Close()
		return b.Bytes()
	}
	plain := strings.Join(all, "\n") + "\n"
	array := " [" + strings.Join(all, ",\n") + "]\n"
	for name, text := range map[string][]byte{"lines": []byte(plain), "array": []byte(array), "zipped lines": zip(plain), "zipped array": zip(array)} {
		s := newSink(t, taken)
		got, err := Run(t.Context(), Config{From: write(t, text), To: s.URL, InFlight: 1})
		if err != nil || got.Read != 7 || got.Outcomes["202"] != 7 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if want := "[e0 e1 e2 e3 e4 e5 e6]"; fmt.Sprint(s.ids) != want {
			t.Errorf("%s: %v, want %s", name, s.ids, want)
		}
	}
}

// The error for an invalid event has its position, and the events before it were sent.
func TestABrokenFileSaysWhere(t *testing.T) {
	all := lines(t, 2)
	for name, tc := range map[string]struct{ text, want string }{
		"no JSON":      {all[0] + "\n" + all[1] + "\nnonsense", "event 3"},
		"no event":     {all[0] + "\n" + `{"id":"x"}`, "event 2"},
		"cut short":    {all[0] + "\n" + all[1][:40], "event 2"},
		"array's end":  {"[" + all[0] + "," + all[1], "after the last event"},
		"a number":     {"[" + all[0] + ",3]", "event 2"},
		"much too big": {all[0] + "\n{\"id\":\"" + strings.Repeat("x", 3*MaxEvent) + "\"}", "larger than"},
		"too big":      {all[0] + "\n{\"id\":\"" + strings.Repeat("x", MaxEvent) + "\"}", "larger than"},
	} {
		s := newSink(t, taken)
		_, err := Run(t.Context(), Config{From: write(t, []byte(tc.text)), To: s.URL, InFlight: 4})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if len(s.ids) == 0 {
			t.Errorf("%s: nothing has gone", name)
		}
	}
	if got, err := Run(t.Context(), Config{From: write(t, nil), To: newSink(t, taken).URL}); err != nil || got.Read != 0 {
		t.Errorf("an empty file: %+v, %v", got, err)
	}
}

// A replay that was interrupted continues where it stopped. No event is left out, and no event that
// was done is sent again.
func TestAReplayContinuesFromItsCheckpoint(t *testing.T) {
	path := write(t, []byte(strings.Join(lines(t, 50), "\n")))
	broken := true
	s := newSink(t, func(id string, _ int) int {
		if broken && id == "e20" {
			return http.StatusServiceUnavailable
		}
		return http.StatusAccepted
	})
	cfg := Config{From: path, To: s.URL, InFlight: 1, Checkpoint: filepath.Join(t.TempDir(), "checkpoint")}
	got, err := Run(t.Context(), cfg)
	if err == nil || got.Outcomes["202"] != 20 || got.Failed != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	broken = false
	if got, err = Run(t.Context(), cfg); err != nil || got.Outcomes["202"] != 30 {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range 50 {
		want := 1
		if i == 20 {
			want = 2
		}
		if id := fmt.Sprint("e", i); s.tries[id] != want {
			t.Errorf("%s was sent %d times, want %d", id, s.tries[id], want)
		}
	}
	if got, err = Run(t.Context(), cfg); err != nil || got.Read != 0 {
		t.Errorf("once more: %+v, %v", got, err)
	}
	cfg.To = "topic:other"
	if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "belongs to a replay") {
		t.Errorf("another replay's checkpoint: %v", err)
	}
}

// With KeepGoing the remaining events are sent, and the checkpoint stays before the undelivered
// event.
func TestKeepGoingLosesNothing(t *testing.T) {
	path := write(t, []byte(strings.Join(lines(t, 30), "\n")))
	s := newSink(t, func(id string, try int) int {
		switch {
		case id == "e10" && try == 1:
			return http.StatusServiceUnavailable
		case id == "e15":
			return http.StatusForbidden
		}
		return http.StatusAccepted
	})
	cfg := Config{From: path, To: s.URL, InFlight: 8, KeepGoing: true, Checkpoint: filepath.Join(t.TempDir(), "checkpoint")}
	got, err := Run(t.Context(), cfg)
	if err != nil || got.Outcomes["202"] != 28 || got.Refused != 1 || got.Failed != 1 || !strings.Contains(got.First, "e1") {
		t.Fatalf("%+v, %v", got, err)
	}
	if got, err = Run(t.Context(), cfg); err != nil || got.Read != 20 || s.tries["e10"] != 2 {
		t.Errorf("again: %+v, %v", got, err)
	}
}

// An event that may be accepted later is tried again. An event that can never be accepted is not.
func TestRetries(t *testing.T) {
	path := write(t, []byte(strings.Join(lines(t, 3), "\n")))
	s := newSink(t, func(id string, try int) int {
		switch {
		case id == "e0" && try == 1:
			return http.StatusTooManyRequests
		case id == "e1":
			return http.StatusBadRequest
		}
		return http.StatusAccepted
	})
	got, err := Run(t.Context(), Config{From: path, To: s.URL, InFlight: 2, Retries: 2})
	if err != nil || s.tries["e0"] != 2 || s.tries["e1"] != 1 || got.Refused != 1 || got.Outcomes["400"] != 1 || got.Outcomes["202"] != 2 {
		t.Errorf("%+v, %v, %v", got, err, s.tries)
	}
}

// Replays go from topic to file, file to topic and topic to URL, selected by partition, offset,
// time and key.
func TestTopics(t *testing.T) {
	broker := embeddedtest.Kafka(t, kafka.Topic{Name: "in", Partitions: 4}, kafka.Topic{Name: "out", Partitions: 2})
	in, out := "topic:"+broker.Prefix+"in", "topic:"+broker.Prefix+"out"
	text := []byte(strings.Join(lines(t, 60), "\n"))
	got, err := Run(t.Context(), Config{From: "-", Stdin: bytes.NewReader(text), To: in, InFlight: 8, Kafka: broker.Config})
	if err != nil || got.Outcomes["delivered"] != 60 {
		t.Fatalf("%+v, %v", got, err)
	}
	file := filepath.Join(t.TempDir(), "recorded.jsonl.gz")
	if got, err = Run(t.Context(), Config{From: in, To: file, Kafka: broker.Config}); err != nil || got.Outcomes["written"] != 60 {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err = Run(t.Context(), Config{From: in, To: file, Kafka: broker.Config}); err == nil {
		t.Error("an existing file is overwritten")
	}
	s := newSink(t, taken)
	if got, err = Run(t.Context(), Config{From: file, To: s.URL, InFlight: 4, Match: Match{Key: "k1"}}); err != nil || got.Matched != 20 {
		t.Errorf("%+v, %v", got, err)
	}
	for i, id := range s.ids { // they have one key, so they are in order
		if want := fmt.Sprint("e", 3*i+1); id != want {
			t.Errorf("event %d is %s, want %s", i, id, want)
		}
	}
	if got, err = Run(t.Context(), Config{From: in, To: out, InFlight: 4, Kafka: broker.Config, Limit: 5}); err != nil || got.Outcomes["delivered"] != 5 {
		t.Errorf("limit: %+v, %v", got, err)
	}
	for name, tc := range map[string]struct {
		r    kafka.Range
		want int64
	}{
		"all":              {kafka.Range{}, 60},
		"before it began":  {kafka.Range{Until: time.Now().Add(-time.Hour)}, 0},
		"since an hour":    {kafka.Range{Since: time.Now().Add(-time.Hour)}, 60},
		"from the future":  {kafka.Range{Since: time.Now().Add(time.Hour)}, 0},
		"offsets":          {kafka.Range{FromOffset: 2, ToOffset: 5}, 0},
		"no such part":     {kafka.Range{Partitions: []int32{9}}, -1},
		"a resumed offset": {kafka.Range{Resume: map[int32]int64{}}, 60},
	} {
		n := int64(0)
		got, err := Run(t.Context(), Config{From: in, Range: tc.r, Kafka: broker.Config, Tell: func(Event) { n++ }})
		if name == "offsets" { // three of each partition with at least five records
			reader, err := kafka.OpenReader(broker.Config, "test", kafka.Range{Topic: strings.TrimPrefix(in, "topic:"), FromOffset: 2, ToOffset: 5})
			if err != nil {
				t.Fatal(err)
			}
			if tc.want = reader.Total(); tc.want == 0 || tc.want > 12 {
				t.Errorf("offsets 2 to 5 of 4 partitions: %d", tc.want)
			}
			reader.Close()
		}
		if tc.want < 0 {
			if err == nil {
				t.Errorf("%s: accepted", name)
			}
			continue
		}
		if err != nil || got.Read != tc.want || n != tc.want {
			t.Errorf("%s: %+v, %v, want %d", name, got, err, tc.want)
		}
	}
}

// A record that is not an event is replayed as the event that a source would make of it.
func TestPlainRecordsAreWrapped(t *testing.T) {
	broker := embeddedtest.Kafka(t, kafka.Topic{Name: "in", Partitions: 1})
	producer, err := kafka.NewProducer(broker.Config, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close(context.Background())
	if err := producer.Send(t.Context(), &sarama.ProducerMessage{
		Topic: broker.Prefix + "in", Key: sarama.StringEncoder("k"), Value: sarama.StringEncoder(`{"n":1}`),
	}); err != nil {
		t.Fatal(err)
	}
	var got []Event
	if _, err := Run(t.Context(), Config{From: "topic:" + broker.Prefix + "in", Kafka: broker.Config, Tell: func(e Event) { got = append(got, e) }}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Type() != event.TypeKafkaRecord || got[0].ID() != "partition:0/offset:0" || got[0].Key != "k" || string(got[0].Data()) != `{"n":1}` {
		t.Errorf("%+v", got)
	}
}

// The replay respects its rate. A replay that is stopped ends, and its checkpoint is correct.
func TestRateAndStop(t *testing.T) {
	path := write(t, []byte(strings.Join(lines(t, 1000), "\n")))
	s := newSink(t, taken)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	cfg := Config{From: path, To: s.URL, InFlight: 4, Rate: 100, Checkpoint: filepath.Join(t.TempDir(), "c")}
	got, err := Run(ctx, cfg)
	if err == nil || got.Outcomes["202"] > 55 || got.Outcomes["202"] == 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	cfg.Rate = 0
	rest, err := Run(t.Context(), cfg)
	if err != nil || got.Outcomes["202"]+rest.Outcomes["202"] < 1000 {
		t.Errorf("%+v and then %+v, %v", got, rest, err)
	}
	for i := range 1000 {
		if s.tries[fmt.Sprint("e", i)] == 0 {
			t.Errorf("e%d was left out", i)
		}
	}
}

func FuzzReadEvents(f *testing.F) {
	for _, line := range lines(f, 2) {
		f.Add([]byte(line))
	}
	f.Add([]byte("[" + strings.Join(lines(f, 2), ",") + "]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ReadEvents(bytes.NewReader(text), func(e cloudevents.Event) error {
			// An accepted event is valid, and can be written and read again.
			again, err := e.MarshalJSON()
			if err != nil {
				t.Fatalf("%v: %q", err, text)
			}
			var back cloudevents.Event
			if err := back.UnmarshalJSON(again); err != nil || back.ID() != e.ID() || back.Type() != e.Type() {
				t.Fatalf("%v: %s", err, again)
			}
			return nil
		})
	})
}

func FuzzCheckpoint(f *testing.F) {
	f.Add([]byte(`{"from":"topic:a","to":"b","next":{"0":5}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseCheckpoint(text)
		if err != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "c")
		if c.To == "" {
			c.To = "x"
		}
		if err := c.write(path); err != nil {
			t.Fatal(err)
		}
		back, err := loadCheckpoint(Config{From: c.From, To: c.To, Checkpoint: path})
		if err != nil || fmt.Sprint(back.Next) != fmt.Sprint(c.Next) {
			t.Fatalf("%v, %v: %v", back.Next, c.Next, err)
		}
	})
}

// A topic that was created again differs from a topic without new events: the checkpoint of the old
// topic is refused with a reason.
func TestACheckpointOfATopicCreatedAgain(t *testing.T) {
	broker := embeddedtest.Kafka(t, kafka.Topic{Name: "in", Partitions: 1})
	in := broker.Prefix + "in"
	send := func(n int) {
		t.Helper()
		text := strings.Join(lines(t, n), "\n")
		if got, err := Run(t.Context(), Config{From: "-", Stdin: strings.NewReader(text), To: "topic:" + in, InFlight: 1, Kafka: broker.Config}); err != nil {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	admin, err := sarama.NewClusterAdmin(broker.Brokers, broker.Client(t))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	send(5)
	s := newSink(t, taken)
	path := filepath.Join(t.TempDir(), "checkpoint")
	cfg := Config{From: "topic:" + in, To: s.URL, InFlight: 1, Checkpoint: path, Kafka: broker.Config}
	if got, err := Run(t.Context(), cfg); err != nil || got.Read != 5 {
		t.Fatalf("%+v, %v", got, err)
	}
	if got, err := Run(t.Context(), cfg); err != nil || got.Read != 0 {
		t.Errorf("nothing new: %+v, %v", got, err)
	}
	named, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	unnamed := fmt.Sprintf(`{"from":"topic:%s","to":%q,"next":{"0":5}}`, in, s.URL) // the format of earlier versions
	for name, tc := range map[string]struct {
		checkpoint string
		events     int
		want       []string
	}{
		"shorter, and named": {string(named), 3, []string{path, in, "created again"}},
		"longer, and named":  {string(named), 9, []string{path, in, "created again"}},
		"shorter":            {unnamed, 3, []string{path, in, "partition 0", "offset 5", "the end, 3", "created again"}},
	} {
		if err := admin.DeleteTopic(in); err != nil {
			t.Fatal(err)
		}
		if err := kafka.EnsureTopics(broker.Config, []kafka.Topic{{Name: in, Partitions: 1}}); err != nil {
			t.Fatal(err)
		}
		send(tc.events)
		if err := os.WriteFile(path, []byte(tc.checkpoint), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Run(t.Context(), cfg)
		if err == nil || got.Read > 0 {
			t.Errorf("%s: %+v, %v", name, got, err)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
	}
	// A checkpoint of an earlier version is accepted, and then gets the topic's id.
	if err := os.WriteFile(path, []byte(strings.Replace(unnamed, `{"0":5}`, `{"0":1}`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Run(t.Context(), cfg); err != nil || got.Read == 0 {
		t.Errorf("an earlier version's checkpoint: %+v, %v", got, err)
	}
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "topic_id") {
		t.Errorf("%s, %v", text, err)
	}
}

// A file that ends before its checkpoint is another file.
func TestACheckpointOfAnotherFile(t *testing.T) {
	path := write(t, []byte(strings.Join(lines(t, 5), "\n")))
	s := newSink(t, taken)
	cfg := Config{From: path, To: s.URL, InFlight: 1, Checkpoint: filepath.Join(t.TempDir(), "checkpoint")}
	if got, err := Run(t.Context(), cfg); err != nil || got.Read != 5 {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines(t, 3), "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Run(t.Context(), cfg)
	if err == nil || got.Read > 0 || !strings.Contains(err.Error(), cfg.Checkpoint) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "has 3 events") {
		t.Errorf("%+v, %v", got, err)
	}
}

// A replay ends after the marker at the end of a transaction. Records that were deleted in the
// meantime are reported.
func TestATopicThatEndsInAMarker(t *testing.T) {
	broker := embeddedtest.Kafka(t, kafka.Topic{Name: "in", Partitions: 1})
	settings := broker.Client(t)
	settings.Producer.Transaction.ID = broker.Prefix + "test"
	p, err := sarama.NewSyncProducer(broker.Brokers, settings)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.BeginTxn(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: broker.Prefix + "in", Value: sarama.ByteEncoder(make([]byte, 1<<18))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.CommitTxn(); err != nil {
		t.Fatal(err)
	}
	cfg := Config{From: "topic:" + broker.Prefix + "in", Kafka: broker.Config}
	if got, err := Run(t.Context(), cfg); err != nil || got.Read != 20 {
		t.Errorf("%+v, %v", got, err)
	}
	admin, err := sarama.NewClusterAdmin(broker.Brokers, broker.Client(t))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	cfg.Tell = func(e Event) {
		if e.Offset == 0 {
			if err := admin.DeleteRecords(broker.Prefix+"in", map[int32]int64{0: 19}); err != nil {
				t.Error(err)
			}
		}
	}
	if got, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "retention") || got.Read == 20 {
		t.Errorf("%+v, %v", got, err)
	}
}

// A panic of the decoder on a foreign file becomes an error with the event's number.
func TestAFileThatIsNoFriend(t *testing.T) {
	first := lines(t, 1)[0]
	for _, text := range []string{
		`{"specversion":"1.0","id":"1","type":"t","source":"/s","":"x"}`, `{"specversion":"1.0","id":"1","type":"t","source":"/s","Ä":{}}`,
		`{"specversion":"1.0","id":"1","type":"t","source":"://"}`, `{"specversion":1}`, `{"specversion":"1.0","time":"yesterday"}`, `null`,
	} {
		n := 0
		err := ReadEvents(strings.NewReader(first+"\n"+text), func(cloudevents.Event) error { n++; return nil })
		if n == 0 || (err != nil && !strings.Contains(err.Error(), "event 2")) {
			t.Errorf("%s: %d events, %v", text, n, err)
		}
	}
}
