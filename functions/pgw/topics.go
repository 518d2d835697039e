package main

import (
	"fmt"
	"io"
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
	Partitions int32 `default:"${partitions}" help:"Partitions of a new topic; an existing topic is not changed."`
	Lag        bool  `help:"Only show how many records each topic has, and how many of them each consumer group has not consumed yet."`
	dataFlags
	Group string `name:"group-prefix" env:"KAFKA_GROUP_PREFIX" help:"The prefix of each consumer group's name, if several systems share a Kafka."`
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
		waiting, err := c.readLag(cfg, manifests)
		if err != nil {
			return err
		}
		return c.print(waiting, func(to io.Writer) error { return printLag(to, waiting) })
	}
	topics := flowTopics(cfg, manifests, c.Partitions)
	if err := kafka.EnsureTopics(cfg, topics); err != nil {
		return err
	}
	there := []topicState{}
	for _, t := range topics {
		there = append(there, topicState{Topic: t.Name})
	}
	return c.print(there, func(to io.Writer) error {
		for _, t := range there {
			fmt.Fprintln(to, t.Topic)
		}
		return nil
	})
}

// topicState is a topic with its records and the groups that consume it.
type topicState struct {
	Topic   string     `json:"topic"`
	Records *int64     `json:"records,omitempty"` // nil: not asked for
	Groups  []groupLag `json:"groups,omitempty"`
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
