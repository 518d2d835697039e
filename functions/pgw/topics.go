package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cenkalti/backoff/v5"

	"pgw/functions/kafkasource"
	"pgw/functions/pgw/allinone"
	"pgw/shared/kafka"
)

// partitions is the number of partitions of each topic of the flow. It is also the most consumers
// that a source can use.
const partitions = 8

// topicsCommand makes the flow's topics, or shows their state.
type topicsCommand struct {
	operatorFlags
	Partitions int32 `default:"${partitions}" help:"Partitions of a new topic; an existing topic is not changed."`
	// A record is acknowledged when all but one of the replicas have it, so that one broker may be away.
	Replication int16 `env:"KAFKA_REPLICATION" default:"3" help:"Replicas of a new topic, each on another broker. A record is acknowledged when all of them but one have it, at least one. 1 is for a single broker, whose loss loses payments."`
	Lag         bool  `help:"Only show how many records each topic has, and how many of them each consumer group has not consumed yet."`
	dataFlags
	Group string `name:"group-prefix" env:"KAFKA_GROUP_PREFIX" help:"The prefix of each consumer group's name, if several systems share a Kafka."`
}

func (c topicsCommand) Validate() error {
	if c.Partitions < 1 || c.Partitions > 1000 {
		return fmt.Errorf("--partitions must be between 1 and 1000")
	}
	if c.Replication < 1 || c.Replication > 10 {
		return fmt.Errorf("--replication must be between 1 and 10")
	}
	return nil
}

func (c topicsCommand) Run() error {
	manifests, err := allinone.Manifests()
	if err != nil {
		return err
	}
	var cfg kafka.Config
	at, err := c.find(nil)
	if err == nil {
		err = at.Read(&cfg)
	}
	if err != nil {
		return err
	}
	if c.Lag {
		waiting, err := c.readLag(cfg, manifests)
		if err != nil {
			return err
		}
		return c.print(waiting, func(to io.Writer) error { return printLag(to, waiting) })
	}
	topics := flowTopics(cfg, manifests, c.Partitions)
	var names []string
	for i := range topics {
		topics[i].Replication = c.Replication
		topics[i].Config[kafka.MinInSync] = strconv.Itoa(minInSync(c.Replication))
		names = append(names, topics[i].Name)
	}
	if err := kafka.EnsureTopics(cfg, topics); err != nil {
		return fmt.Errorf("%w; KAFKA_REPLICATION says how many brokers keep a record", err)
	}
	durable, err := readDurability(cfg, names)
	if err != nil {
		return err
	}
	there := []topicState{}
	for _, d := range durable {
		there = append(there, topicState{Topic: d.Topic, Replication: d.Replication, MinInSync: d.MinInSync})
	}
	if text := warning(durable); text != "" {
		fmt.Fprintln(os.Stderr, text)
	}
	return c.print(there, func(to io.Writer) error {
		w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "topic\treplicas\tacknowledged by")
		for _, t := range there {
			fmt.Fprintf(w, "%s\t%d\t%d\n", t.Topic, t.Replication, t.MinInSync)
		}
		return w.Flush()
	})
}

// topicsThereWithin is how long topics that were just made may take to get to every broker.
const topicsThereWithin = 20 * time.Second

// readDurability reads what topics survive, when all of them are there.
func readDurability(cfg kafka.Config, names []string) ([]kafka.Durability, error) {
	return backoff.Retry(context.Background(), func() ([]kafka.Durability, error) {
		durable, err := kafka.ReadDurability(cfg, names)
		if err != nil && !errors.Is(err, kafka.ErrNoTopic) {
			return nil, backoff.Permanent(err)
		}
		return durable, err
	}, backoff.WithMaxElapsedTime(topicsThereWithin))
}

// minInSync is how many replicas must have a record before it is acknowledged: all but one, so that one
// broker may be away.
func minInSync(replication int16) int { return max(1, int(replication)-1) }

// The replicas with which no single broker's loss loses a payment or stops payments.
const (
	safeReplication = 3
	safeInSync      = 2
)

// warning names the topics that a single broker's loss can harm. It is empty if there are none.
func warning(topics []kafka.Durability) string {
	var weak []string
	for _, d := range topics {
		if d.Replication < safeReplication || d.MinInSync < safeInSync {
			weak = append(weak, fmt.Sprintf("%s (%d, %d)", d.Topic, d.Replication, d.MinInSync))
		}
	}
	if len(weak) == 0 {
		return ""
	}
	return fmt.Sprintf("warning: the loss of one broker can lose payments or stop them: these topics have fewer than %d replicas, or acknowledge "+
		"a record before %d replicas have it (replicas, acknowledged by): %s", safeReplication, safeInSync, strings.Join(weak, ", "))
}

// topicState is a topic with its records and the groups that consume it.
type topicState struct {
	Topic       string     `json:"topic"`
	Replication int16      `json:"replicas,omitempty"`            // 0: not asked for
	MinInSync   int        `json:"min_insync_replicas,omitempty"` // 0: not asked for
	Records     *int64     `json:"records,omitempty"`             // nil: not asked for
	Groups      []groupLag `json:"groups,omitempty"`
}

// groupLag is how many records a group has not consumed yet.
type groupLag struct {
	Group string `json:"group"`
	Lag   int64  `json:"lag"`
}

func (c topicsCommand) readLag(cfg kafka.Config, manifests kafkasource.Manifests) (all []topicState, err error) {
	for _, name := range manifests.Topics() {
		topic := cfg.Renamed()[name]
		r, err := kafka.OpenReader(cfg, "topics", kafka.Range{Topic: topic})
		if err != nil {
			return nil, err
		}
		r.Close()
		records := r.Total()
		state := topicState{Topic: topic, Records: &records}
		for _, group := range manifests.Groups(name) {
			taken, err := kafka.Committed(cfg, c.Group+group, topic)
			if err != nil {
				return nil, err
			}
			var lag int64
			for _, s := range r.Spans() {
				lag += max(0, s.To-max(s.From, taken[s.Partition]))
			}
			state.Groups = append(state.Groups, groupLag{c.Group + group, lag})
		}
		all = append(all, state)
	}
	return all, nil
}

func printLag(to io.Writer, topics []topicState) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "topic\trecords\tgroup\tlag")
	for _, t := range topics {
		if len(t.Groups) == 0 {
			fmt.Fprintf(w, "%s\t%d\t\t\n", t.Topic, *t.Records)
		}
		for _, g := range t.Groups {
			fmt.Fprintf(w, "%s\t%d\t%s\t%d\n", t.Topic, *t.Records, g.Group, g.Lag)
		}
	}
	return w.Flush()
}

// flowTopics are the topics that the manifests read and write, with the names in cfg.
func flowTopics(cfg kafka.Config, manifests kafkasource.Manifests, partitions int32) []kafka.Topic {
	var topics []kafka.Topic
	for _, name := range manifests.Topics() {
		t := kafka.Topic{Name: cfg.Renamed()[name], Partitions: partitions, Config: map[string]string{"retention.ms": "604800000"}} // 7 days
		if t.Name == cfg.AccountsTopic {
			t.Config["retention.ms"] = "-1" // kept for ever: this topic records all funding
		}
		topics = append(topics, t)
	}
	return topics
}
