package kafka_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"pgw/shared/kafka"
)

// fill writes n records to a partition of the broker's topic, each in a batch of its own.
func fill(t testing.TB, cfg kafka.Config, topic string, partition int32, n, size int) {
	t.Helper()
	settings, err := cfg.Settings("test")
	if err != nil {
		t.Fatal(err)
	}
	settings.Producer.Partitioner = sarama.NewManualPartitioner
	p, err := sarama.NewSyncProducer(cfg.Brokers, settings)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range n {
		_, _, err := p.SendMessage(&sarama.ProducerMessage{
			Topic: topic, Partition: partition, Key: sarama.StringEncoder(fmt.Sprint("k", i)), Value: sarama.ByteEncoder(make([]byte, size)),
			Headers: []sarama.RecordHeader{{Key: []byte("n"), Value: []byte(fmt.Sprint(i))}, {Key: []byte("null")}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// read returns the keys of the records that a reader reads.
func read(t testing.TB, cfg kafka.Config, r kafka.Range) (keys []string, err error) {
	t.Helper()
	reader, err := kafka.OpenReader(cfg, "test", r)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	reader.SetSilence(10 * time.Second)
	err = reader.Each(t.Context(), func(m *sarama.ConsumerMessage) error {
		keys = append(keys, string(m.Key))
		return nil
	})
	return keys, err
}

// A transaction ends with a marker, which is not a record. The reader ends after it. Aborted
// records are read too, as KafkaSource reads them.
func TestATransactionMarkerAtTheEnd(t *testing.T) {
	_, _, cfg := broker(t)
	settings, err := cfg.Settings("test")
	if err != nil {
		t.Fatal(err)
	}
	settings.Producer.Transaction.ID = "tx"
	settings.Producer.Partitioner = sarama.NewManualPartitioner
	p, err := sarama.NewSyncProducer(cfg.Brokers, settings)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	want := map[int32]string{0: "[committed]", 1: "[aborted]", 2: "[open]"}
	for partition, finish := range map[int32]func() error{0: p.CommitTxn, 1: p.AbortTxn, 2: nil} {
		if finish == nil {
			continue
		}
		if err := p.BeginTxn(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: "t", Partition: partition, Key: sarama.StringEncoder(strings.Trim(want[partition], "[]"))}); err != nil {
			t.Fatal(err)
		}
		if err := finish(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.BeginTxn(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: "t", Partition: 2, Key: sarama.StringEncoder("open")}); err != nil {
		t.Fatal(err)
	}
	for partition, want := range want {
		if keys, err := read(t, cfg, kafka.Range{Topic: "t", Partitions: []int32{partition}}); err != nil || fmt.Sprint(keys) != want {
			t.Errorf("partition %d: %v, %v, want %s", partition, keys, err, want)
		}
	}
	// Only markers are left to read.
	if keys, err := read(t, cfg, kafka.Range{Topic: "t", Resume: map[int32]int64{0: 1, 1: 1, 2: 1}}); err != nil || len(keys) > 0 {
		t.Errorf("after the records: %v, %v", keys, err)
	}
}

// Compaction leaves batches without records, also at the end.
func TestAHoleAtTheEnd(t *testing.T) {
	cluster, _, cfg := broker(t)
	fill(t, cfg, "t", 0, 5, 1)
	empty := kmsg.RecordBatch{FirstOffset: 2, PartitionLeaderEpoch: -1, Magic: 2, LastOffsetDelta: 2, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1}
	text := empty.AppendTo(nil)
	empty.Length = int32(len(text) - 12)
	text = empty.AppendTo(nil)
	empty.CRC = int32(crc32.Checksum(text[21:], crc32.MakeTable(crc32.Castagnoli)))
	text = empty.AppendTo(nil)
	cluster.ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		asked := request.(*kmsg.FetchRequest)
		from := asked.Topics[0].Partitions[0].FetchOffset
		if from < 2 {
			return nil, nil, false
		}
		response := asked.ResponseKind().(*kmsg.FetchResponse)
		partition := kmsg.NewFetchResponseTopicPartition()
		partition.HighWatermark, partition.LastStableOffset = 5, 5
		if from < 5 {
			partition.RecordBatches = text
		}
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic, topic.TopicID = asked.Topics[0].Topic, asked.Topics[0].TopicID
		topic.Partitions = append(topic.Partitions, partition)
		response.Topics = append(response.Topics, topic)
		return response, nil, true
	})
	if keys, err := read(t, cfg, kafka.Range{Topic: "t", ToOffset: 2}); err != nil || fmt.Sprint(keys) != "[k0 k1]" {
		t.Errorf("before the hole: %v, %v", keys, err)
	}
	if keys, err := read(t, cfg, kafka.Range{Topic: "t", FromOffset: 2}); err != nil || len(keys) > 0 {
		t.Errorf("in the hole: %v, %v", keys, err)
	}
}

// A reader does not mistake a topic that was created again under the same name for one without new
// records.
func TestATopicMadeAnew(t *testing.T) {
	cluster, _, cfg := broker(t)
	fill(t, cfg, "t", 1, 5, 1)
	reader, err := kafka.OpenReader(cfg, "test", kafka.Range{Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	id := reader.TopicID()
	reader.Close()
	if id == "" {
		t.Fatal("the broker reports no id")
	}
	again := kafka.Range{Topic: "t", Resume: map[int32]int64{1: 5}, ResumeID: id}
	if keys, err := read(t, cfg, again); err != nil || len(keys) > 0 {
		t.Errorf("nothing new: %v, %v", keys, err)
	}
	anew(t, cluster, "t", 4)
	fill(t, cfg, "t", 1, 3, 1)
	unnamed := kafka.Range{Topic: "t", Resume: map[int32]int64{1: 5}}
	if _, err := read(t, cfg, unnamed); err == nil || !contains(err, "topic t", "partition 1", "offset 5", "the end, 3", "created again") || !errors.Is(err, kafka.ErrCannotResume) {
		t.Errorf("shorter than before: %v", err)
	}
	fill(t, cfg, "t", 1, 9, 1)
	if _, err := read(t, cfg, again); err == nil || !contains(err, "topic t", id, "created again") {
		t.Errorf("longer than before: %v", err)
	}
	if _, err := read(t, cfg, kafka.Range{Topic: "t", FromOffset: 13}); err == nil || !contains(err, "topic t", "offset 13", "ends at 12") {
		t.Errorf("from an offset beyond the end: %v", err)
	}
	if keys, err := read(t, cfg, kafka.Range{Topic: "t", FromOffset: 12}); err != nil || len(keys) > 0 {
		t.Errorf("from the end: %v, %v", keys, err)
	}
	if _, err := read(t, cfg, kafka.Range{Topic: "t", Resume: map[int32]int64{7: 5}}); err == nil || !contains(err, "topic t", "partition 7", "offset 5") {
		t.Errorf("a partition that does not exist: %v", err)
	}
	for _, r := range []kafka.Range{{Topic: "none"}, {Topic: "t", Partitions: []int32{7}}} {
		if _, err := read(t, cfg, r); err == nil {
			t.Errorf("%+v: accepted", r)
		}
	}
}

func contains(err error, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(err.Error(), part) })
}

func anew(t testing.TB, cluster *kfake.Cluster, topic string, partitions int32) {
	t.Helper()
	admin, err := sarama.NewClusterAdmin(cluster.ListenAddrs(), sarama.NewConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if err := admin.DeleteTopic(topic); err != nil {
		t.Fatal(err)
	}
	if err := cluster.CreateTopic(topic, partitions, nil); err != nil {
		t.Fatal(err)
	}
}

// Records are deleted, by retention or by a person, while they are read.
func TestRetentionOvertakesTheReader(t *testing.T) {
	cluster, _, cfg := broker(t)
	for name, tc := range map[string]struct {
		overtake func(topic string)
		want     []string
	}{
		"deleted": {func(topic string) {
			admin, err := sarama.NewClusterAdmin(cfg.Brokers, sarama.NewConfig())
			if err != nil {
				t.Fatal(err)
			}
			defer admin.Close()
			if err := admin.DeleteRecords(topic, map[int32]int64{0: 9}); err != nil {
				t.Fatal(err)
			}
		}, []string{"partition 0", "to 8 were deleted", "retention"}},
		"created again": {func(topic string) { anew(t, cluster, topic, 1) }, []string{"partition 0", "created again"}},
	} {
		if err := cluster.CreateTopic(name, 1, nil); err != nil {
			t.Fatal(err)
		}
		fill(t, cfg, name, 0, 10, 1<<19) // a few fetches
		reader, err := kafka.OpenReader(cfg, "test", kafka.Range{Topic: name})
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		n := 0
		err = reader.Each(t.Context(), func(*sarama.ConsumerMessage) error {
			if n++; n == 1 {
				tc.overtake(name)
			}
			return nil
		})
		if err == nil || !contains(err, tc.want...) || n >= 9 {
			t.Errorf("%s: %d records, %v, want %q", name, n, err, tc.want)
		}
	}
}

// The reader waits for a broker that never returns the records it announced, but not for ever. It
// also asks a new leader.
func TestReadingIsBounded(t *testing.T) {
	cluster, w, cfg := broker(t)
	fill(t, cfg, "t", 0, 3, 1)
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.NotLeaderForPartition, Count: 3})
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Err: kerr.NotLeaderForPartition, Count: 3})
	if keys, err := read(t, cfg, kafka.Range{Topic: "t"}); err != nil || len(keys) != 3 {
		t.Errorf("a leader election: %v, %v", keys, err)
	}
	for name, fault := range map[string]kfake.Fault{
		"nobody leads":    {Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.NotLeaderForPartition, Count: -1},
		"not allowed":     {Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.TopicAuthorizationFailed, Count: -1},
		"broken on disk":  {Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.KafkaStorageError, Count: -1},
		"nobody can tell": {Keys: []kmsg.Key{kmsg.Fetch, kmsg.Metadata}, Topic: "t", Err: kerr.LeaderNotAvailable, Count: -1},
	} {
		reader, err := kafka.OpenReader(cfg, "test", kafka.Range{Topic: "t"})
		if err != nil {
			t.Fatal(err)
		}
		reader.SetSilence(time.Second)
		handle := cluster.Fault(fault)
		if err := reader.Each(t.Context(), func(*sarama.ConsumerMessage) error { return nil }); err == nil {
			t.Errorf("%s: read", name)
		}
		handle.Remove()
		reader.Close()
	}
	errEnough := errors.New("enough")
	reader, err := kafka.OpenReader(cfg, "test", kafka.Range{Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := reader.Each(t.Context(), func(*sarama.ConsumerMessage) error { return errEnough }); !errors.Is(err, errEnough) {
		t.Errorf("taking ends: %v", err)
	}
	w.away()
	if _, err := kafka.OpenReader(cfg, "test", kafka.Range{Topic: "t"}); err == nil {
		t.Error("opened at a broker that is away")
	}
}

// Records have all that a consumer returns: headers, times, offsets.
func TestRecordsAreWhole(t *testing.T) {
	_, _, cfg := broker(t)
	begun := time.Now().Add(-time.Second)
	fill(t, cfg, "t", 3, 4, 7)
	reader, err := kafka.OpenReader(cfg, "test", kafka.Range{Topic: "t", Since: begun, Until: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if got := reader.Spans(); len(got) != 1 || got[0] != (kafka.Span{Partition: 3, From: 0, To: 4}) || reader.Total() != 4 {
		t.Errorf("spans %+v", got)
	}
	n := int64(0)
	err = reader.Each(t.Context(), func(m *sarama.ConsumerMessage) error {
		if m.Topic != "t" || m.Partition != 3 || m.Offset != n || string(m.Key) != fmt.Sprint("k", n) || len(m.Value) != 7 || len(m.Headers) != 2 ||
			string(m.Headers[0].Key) != "n" || string(m.Headers[0].Value) != fmt.Sprint(n) || m.Headers[1].Value != nil ||
			m.Timestamp.Before(begun.Add(-time.Minute)) || m.Timestamp.After(time.Now().Add(time.Minute)) {
			t.Errorf("record %d: %+v", n, m)
		}
		n++
		return nil
	})
	if err != nil || n != 4 {
		t.Errorf("%d records, %v", n, err)
	}
	if _, err := kafka.OpenReader(cfg, "test", kafka.Range{Topic: "t", Since: time.Now().Add(time.Hour)}); err != nil {
		t.Error(err)
	}
}

// The reader connects to a Kafka that requires TLS and SASL, as the producer does.
func TestReadingByTLSAndSASL(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	_, _, cfg := broker(t, kfake.TLS(&tls.Config{Certificates: server.TLS.Certificates}), kfake.EnableSASL(),
		kfake.Superuser("PLAIN", "pgw", "secret"), kfake.Superuser("SCRAM-SHA-256", "pgw", "secret"), kfake.Superuser("SCRAM-SHA-512", "pgw", "secret"))
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		cfg.Security = kafka.Security{TLS: true, CAFile: ca, SASLMechanism: mechanism, SASLUser: "pgw", SASLPassword: "secret"}
		p := producer(t, cfg)
		if err := within(t, patience, p, mechanism); err != nil {
			t.Errorf("%s: publish: %v", mechanism, err)
		}
		ended(t, p)
		if keys, err := read(t, cfg, kafka.Range{Topic: "t"}); err != nil || !slices.Contains(keys, mechanism) {
			t.Errorf("%s: read %v, %v", mechanism, keys, err)
		}
	}
	cfg.SASLPassword = "another"
	if _, err := read(t, cfg, kafka.Range{Topic: "t"}); err == nil {
		t.Error("a wrong password is accepted")
	}
}

// A topic whose leader is being elected is read after the election.
func TestAReaderOutlastsAnElection(t *testing.T) {
	cluster, _, cfg := broker(t)
	p := producer(t, cfg)
	if err := within(t, patience, p, "k"); err != nil {
		t.Fatal(err)
	}
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "t", Err: kerr.LeaderNotAvailable, Count: 5})
	if got := stored(t, cfg); got["k"] != 1 {
		t.Errorf("read: %v", got)
	}
}
