package main

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"time"

	"pgw/compose/kafkasource"
	"pgw/knative"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/rpc"
)

// sourcesCommand is the stand-in for KafkaSource as a process of its own. What runs it reads from its
// environment, like a function: PORT, DRAIN_TIMEOUT, LOG_LEVEL, KAFKA_BROKERS and the topics' names.
type sourcesCommand struct {
	Manifests string            `type:"existingdir" help:"Folder of manifests; those of knative/base when not given."`
	Sinks     map[string]string `env:"SINKS" mapsep:"," help:"SERVICE=URL for each Knative Service named as a sink."`
	Group     string            `name:"group-prefix" env:"KAFKA_GROUP_PREFIX" help:"Put before each consumer group's name, where several systems share a Kafka."`
	Parity    bool              `help:"When a dead-letter sink fails, drop the event as KafkaSource does, instead of trying again."`
}

// Connections to a sink stay open between bursts of deliveries, but not for as long as a function keeps idle ones.
const (
	idleConns   = 1024
	idleTimeout = 90 * time.Second
)

type sourcesConfig struct {
	RPC   rpc.Security
	Kafka kafka.Config
}

func (c sourcesCommand) Run(ctx context.Context) error {
	return function.Main(ctx, "kafkasource", func(cfg sourcesConfig, log *slog.Logger) (*function.Function, error) {
		var files fs.FS = knative.Base
		if c.Manifests != "" {
			files = os.DirFS(c.Manifests)
		}
		manifests, err := kafkasource.Load(files)
		if err != nil {
			return nil, err
		}
		callers, err := cfg.RPC.Open(log)
		if err != nil {
			return nil, err
		}
		registry := function.NewRegistry()
		sources, err := kafkasource.New(manifests, kafkasource.Config{
			Kafka: cfg.Kafka, GroupPrefix: c.Group, Parity: c.Parity, Log: log, Registerer: registry,
			Transport: callers.Transport(&http.Transport{MaxIdleConnsPerHost: idleConns, IdleConnTimeout: idleTimeout}),
			SinkURL: func(service string) (string, error) {
				url, ok := c.Sinks[service]
				if !ok {
					return "", fmt.Errorf("SINKS has no URL for the service %s", service)
				}
				return url, nil
			},
		})
		if err != nil {
			return nil, err
		}
		return &function.Function{
			Name: "kafkasource", Log: log, Registry: registry,
			Ready:      func(context.Context) error { return sources.Ready() },
			Background: sources.Run,
		}, nil
	})
}
