package kafka_test

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/kafka"
)

func TestStandingOfTopicsAndGroups(t *testing.T) {
	broker := embeddedtest.Kafka(t, kafka.Topic{Name: "in", Partitions: 2})
	topic := broker.Prefix + "in"
	fill(t, broker.Config, topic, 0, 5, 10)
	fill(t, broker.Config, topic, 1, 3, 10)
	some, none := kafka.Consumption{Topic: topic, Group: broker.Prefix + "some"}, kafka.Consumption{Topic: topic, Group: broker.Prefix + "none"}
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var offsets kadm.Offsets
	offsets.AddOffset(topic, 0, 4, -1)
	if err := kadm.NewClient(client).CommitAllOffsets(t.Context(), some.Group, offsets); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got, err := kafka.ReadStanding(ctx, broker.Config, "test", []string{topic, "missing"}, []kafka.Consumption{some, none})
	if err != nil {
		t.Fatal(err)
	}
	if p := got.Groups[some]; p.Lag() != 4 || p.Sum() != 4 {
		t.Errorf("a group: %+v", p)
	}
	if p := got.Groups[none]; p.Lag() != 8 || p.Sum() != 0 {
		t.Errorf("a group that has consumed nothing: %+v", p)
	}
	if got.Ends[topic][0] != 5 || got.Ends[topic][1] != 3 || got.Oldest[topic][0] != 0 || got.Ends["missing"] != nil {
		t.Errorf("%+v", got)
	}
}

// Nobody waits for a broker that refuses connections.
func TestStandingWithoutABroker(t *testing.T) {
	begun := time.Now()
	_, err := kafka.ReadStanding(t.Context(), kafka.Config{Brokers: []string{"127.0.0.1:1"}}, "test", []string{"in"}, nil)
	if err == nil || time.Since(begun) > 10*time.Second {
		t.Errorf("after %s: %v", time.Since(begun), err)
	}
}
