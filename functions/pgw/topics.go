package main

import (
	"context"
	"fmt"

	"github.com/kelseyhightower/envconfig"

	"pgw/compose/kafkasource"
	"pgw/functions/pgw/allinone"
	"pgw/shared/kafka"
)

// partitions of each topic of the flow, which is also the most consumers that a source can use.
const partitions = 8

// topicsCommand makes the flow's topics, configured by its environment like a function.
type topicsCommand struct {
	Partitions int32 `default:"${partitions}" help:"Partitions of a topic that is made; one that exists is left as it is."`
}

func (c topicsCommand) Validate() error {
	if c.Partitions < 1 || c.Partitions > 1000 {
		return fmt.Errorf("--partitions must be between 1 and 1000")
	}
	return nil
}

func (c topicsCommand) Run(ctx context.Context) error {
	var cfg kafka.Config
	if err := envconfig.Process("", &cfg); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	manifests, err := allinone.Manifests()
	if err != nil {
		return err
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

// flowTopics are the topics that the manifests read and write, under the names that cfg gives them.
func flowTopics(cfg kafka.Config, manifests kafkasource.Manifests, partitions int32) []kafka.Topic {
	var topics []kafka.Topic
	for _, name := range manifests.Topics() {
		t := kafka.Topic{Name: cfg.Renamed()[name], Partitions: partitions, Config: map[string]string{"retention.ms": "604800000"}} // 7 days
		if t.Name == cfg.AccountsTopic {
			t.Config["retention.ms"] = "-1" // where the money came from
		}
		topics = append(topics, t)
	}
	return topics
}
