package kafkasource

import (
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Partitions are added to a topic that is consumed. The new ones are read within seconds.
func TestNewPartitionsAreRead(t *testing.T) {
	t.Parallel()
	into := make(chan delivered, 10)
	r := newRig(t, 1, recording(into))
	r.start(manifest(), nil)
	r.sendEvent("a", "1")
	await(t, into)

	client, err := kgo.NewClient(kgo.SeedBrokers(r.kafka.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	topic := r.kafka.Prefix + "in"
	added, err := kadm.NewClient(client).UpdatePartitions(t.Context(), 3, topic)
	if err == nil {
		err = added.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	settings := r.kafka.Client(t)
	settings.Producer.Partitioner = sarama.NewManualPartitioner
	settings.Producer.Return.Successes = true
	known, err := sarama.NewClient(r.kafka.Brokers, settings)
	if err != nil {
		t.Fatal(err)
	}
	defer known.Close()
	// A broker may tell of a new partition a moment after the one that made it.
	for partitions := []int32(nil); len(partitions) < 3; {
		if err := known.RefreshMetadata(topic); err != nil {
			t.Fatal(err)
		}
		if partitions, err = known.Partitions(topic); err != nil {
			t.Fatal(err)
		}
	}
	producer, err := sarama.NewSyncProducerFromClient(known)
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	for partition := int32(1); partition <= 2; partition++ {
		_, _, err := producer.SendMessage(&sarama.ProducerMessage{
			Topic: topic, Partition: partition, Key: sarama.StringEncoder("new"), Value: sarama.StringEncoder("{}"),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// On an idle machine it takes two looks and a rebalance: less than 15 s.
	for range 2 {
		select {
		case <-into:
		case <-time.After(30 * time.Second):
			t.Fatal("a new partition is not read within 30 s")
		}
	}
	t.Logf("read %s after the partitions were added", time.Since(begun).Round(100*time.Millisecond))
}
