package main

import (
	"fmt"
	"os"
	"text/tabwriter"

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
	Partitions int32  `default:"${partitions}" help:"Partitions of a new topic; an existing topic is not changed."`
	Lag        bool   `help:"Only show how many records each topic has, and how many of them each consumer group has not consumed yet."`
	Group      string `name:"group-prefix" env:"KAFKA_GROUP_PREFIX" help:"The prefix of each consumer group's name, if several systems share a Kafka."`
}

func (c topicsCommand) Validate() error {
	if c.Partitions < 1 || c.Partitions > 1000 {
		return fmt.Errorf("--partitions must be between 1 and 1000")
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
		return c.showLag(cfg, manifests)
	}
	topics := flowTopics(cfg, manifests, c.Partitions)
	if err := kafka.EnsureTopics(cfg, topics); err != nil {
		return err
	}
	for _, t := range topics {
		fmt.Println(t.Name)
	}
	return nil
}

func (c topicsCommand) showLag(cfg kafka.Config, manifests kafkasource.Manifests) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "topic\trecords\tgroup\tlag")
	for _, name := range manifests.Topics() {
		topic := cfg.Renamed()[name]
		r, err := kafka.OpenReader(cfg, "topics", kafka.Range{Topic: topic})
		if err != nil {
			return err
		}
		r.Close()
		groups := manifests.Groups(name)
		if len(groups) == 0 {
			fmt.Fprintf(w, "%s\t%d\t\t\n", topic, r.Total())
		}
		for _, group := range groups {
			taken, err := kafka.Committed(cfg, c.Group+group, topic)
			if err != nil {
				return err
			}
			var lag int64
			for _, s := range r.Spans() {
				lag += max(0, s.To-max(s.From, taken[s.Partition]))
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%d\n", topic, r.Total(), c.Group+group, lag)
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
