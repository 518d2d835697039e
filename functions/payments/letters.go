package payments

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"golang.org/x/sync/semaphore"

	"pgw/shared/event"
	"pgw/shared/kafka"
)

// Bounds of looking up a letter. Letters are rare, and one record is read for each.
const (
	readWithin = 5 * time.Second
	maxReads   = 8 // at once
)

// Letters reads the topic of dead letters.
type Letters interface {
	// Read gives the event that stands at a place; false when none does.
	Read(ctx context.Context, partition int32, offset int64) (cloudevents.Event, bool, error)
}

// topic is Letters by Kafka.
type topic struct {
	cfg   kafka.Config
	reads *semaphore.Weighted
}

// NewLetters reads the dead-letter topic of a Kafka.
func NewLetters(cfg kafka.Config) Letters { return topic{cfg, semaphore.NewWeighted(maxReads)} }

// Read implements Letters.
func (t topic) Read(ctx context.Context, partition int32, offset int64) (e cloudevents.Event, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	if err := t.reads.Acquire(ctx, 1); err != nil {
		return e, false, fmt.Errorf("read a dead letter: too many at once: %w", err)
	}
	defer t.reads.Release(1)
	place := kafka.Range{Topic: t.cfg.DeadLetterTopic, Partitions: []int32{partition}, FromOffset: offset, ToOffset: offset + 1}
	noEvent := func(*sarama.ConsumerMessage) cloudevents.Event { return cloudevents.Event{} }
	err = kafka.Read(ctx, t.cfg, "payments", place, func(m *sarama.ConsumerMessage) (err error) {
		if m.Offset == offset {
			found = true
			e, err = kafka.ReadRecord(ctx, m, noEvent)
		}
		return err
	})
	if err != nil {
		return e, false, fmt.Errorf("read a dead letter: %w", err)
	}
	return e, found, nil
}

// givenUp refuses an event that does not stand in the topic of dead letters. Whoever has read an event can post it here, and
// its signature is good; that delivery gave up on it is said by attributes that nobody signs. What proves it is the
// record: only delivery and operators write to that topic. So the record is read again where the event says that it
// stands, and must be the same.
func (p *Payments) givenUp(ctx context.Context, e cloudevents.Event) error {
	partition, err1 := extension(e, event.ExtKafkaPartition, 32)
	offset, err2 := extension(e, event.ExtKafkaOffset, 64)
	if err1 != nil || err2 != nil || partition < 0 || offset < 0 {
		return fmt.Errorf("%w: it does not say where it stands among the dead letters: only what delivery gave up on is closed out", event.ErrRefused)
	}
	letter, found, err := p.dead.Read(ctx, int32(partition), offset)
	if err != nil {
		return err
	}
	if !found || !same(letter, e) {
		return fmt.Errorf("%w: it does not stand among the dead letters, at %d/%d: only what delivery gave up on is closed out",
			event.ErrRefused, partition, offset)
	}
	return nil
}

func extension(e cloudevents.Event, name string, bits int) (int64, error) {
	return strconv.ParseInt(fmt.Sprint(e.Extensions()[name]), 10, bits)
}

// same tells that it is the same event, whatever delivery has added. Where there is a signature it covers the rest.
func same(a, b cloudevents.Event) bool {
	signature := func(e cloudevents.Event) string { text, _ := e.Extensions()[event.ExtSignature].(string); return text }
	return a.Context != nil && a.Type() == b.Type() && a.ID() == b.ID() && a.Source() == b.Source() &&
		signature(a) == signature(b) && bytes.Equal(a.Data(), b.Data())
}
