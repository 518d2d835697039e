package gateway

import (
	"context"
	"log/slog"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc"

	"pgw/shared/event"
	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// watch returns clients that log an outage of a function once. Without it, each failed request
// would log a line.
func (to Clients) watch(now func() time.Time, log *slog.Logger) Clients {
	watched := func(name string, conn grpc.ClientConnInterface) grpc.ClientConnInterface {
		return rpc.Watched(conn, trace.NewOutage(log, now, "a function could not be asked", "asked", name))
	}
	to.FX, to.Wallet, to.Risk, to.DB = watched("fx", to.FX), watched("wallet", to.Wallet), watched("risk", to.Risk), watched("db", to.DB)
	return to
}

// watchedPublisher does the same for Kafka.
type watchedPublisher struct {
	event.Publisher
	outage *trace.Outage
}

func watchPublisher(p event.Publisher, now func() time.Time, log *slog.Logger) event.Publisher {
	return watchedPublisher{p, trace.NewOutage(log, now, "a payment request could not be published")}
}

// Publish implements event.Publisher.
func (p watchedPublisher) Publish(ctx context.Context, topic, key string, e cloudevents.Event) error {
	err := p.Publisher.Publish(ctx, topic, key, e)
	if err == nil || !left(ctx) {
		p.outage.Note(ctx, err)
	}
	return err
}
