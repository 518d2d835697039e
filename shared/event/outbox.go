package event

import (
	"context"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/payment"
)

// Publisher publishes events to topics of Kafka.
type Publisher interface {
	Publish(ctx context.Context, topic, key string, e cloudevents.Event) error
}

// Outbox makes, signs and publishes the events of one function.
type Outbox struct {
	Source string // the source attribute of its events
	Keys   *Keyring
	To     Publisher
	Now    func() time.Time
}

// Request publishes the request event of a payment. replyTo may be empty.
func (o Outbox) Request(ctx context.Context, topic string, p payment.Payment, replyTo string) error {
	e, err := Requested(o.Source, p, replyTo, o.Now())
	if err != nil {
		return err
	}
	return o.Send(ctx, topic, e)
}

// Result publishes the result event of a payment.
func (o Outbox) Result(ctx context.Context, topic string, d PaymentResult) error {
	e, err := Result(o.Source, d, o.Now())
	if err != nil {
		return err
	}
	return o.Send(ctx, topic, e)
}

// Send signs an event and publishes it. The key of the record is the event's subject.
func (o Outbox) Send(ctx context.Context, topic string, e cloudevents.Event) error {
	if err := o.Keys.Sign(&e); err != nil {
		return err
	}
	return o.To.Publish(ctx, topic, e.Subject(), e)
}
