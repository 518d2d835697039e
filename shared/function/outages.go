package function

import (
	"context"
	"errors"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"

	"pgw/shared/event"
	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// Kafka is the name of Kafka in Dependencies.Outages.
const Kafka = "kafka"

// watched returns the dependencies with connections and a publisher that note outages. So an outage
// is a few lines in the log, and not a line for each failed call.
func (on Dependencies) watched() Dependencies {
	conns := make(map[string]grpc.ClientConnInterface, len(on.Conns))
	on.Outages = map[string]*trace.Outage{Kafka: trace.NewOutage(on.Log, on.Now, "Kafka could not be used")}
	for name, conn := range on.Conns {
		if conn == nil {
			continue
		}
		on.Outages[name] = trace.NewOutage(on.Log, on.Now, "a function could not be asked", "asked", name)
		conns[name] = rpc.Watched(conn, on.Outages[name])
	}
	on.Conns = conns
	if on.Publisher != nil {
		on.Publisher = watchedPublisher{on.Publisher, on.Outages[Kafka]}
	}
	return on
}

type watchedPublisher struct {
	event.Publisher
	outage *trace.Outage
}

// Publish implements event.Publisher.
func (p watchedPublisher) Publish(ctx context.Context, topic, key string, e cloudevents.Event) error {
	err := p.Publisher.Publish(ctx, topic, key, e)
	// If the caller has left, the error says nothing about Kafka.
	if err == nil || !errors.Is(ctx.Err(), context.Canceled) {
		p.outage.Note(ctx, err)
	}
	return err
}
