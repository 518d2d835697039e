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

// Limits of reading dead letters. Dead letters are rare, and each needs one record.
const (
	readWithin = 5 * time.Second
	maxReads   = 8 // at the same time
)

// Letters reads the dead-letter topic.
type Letters interface {
	// Read returns the event at an offset, or false if there is none.
	Read(ctx context.Context, partition int32, offset int64) (cloudevents.Event, bool, error)
}

// topic implements Letters with Kafka.
type topic struct {
	cfg   kafka.Config
	reads *semaphore.Weighted
}

// NewLetters returns a reader of the dead-letter topic in Kafka.
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

// checkDeadLetter refuses an event that is not in the dead-letter topic. Anyone who has read an
// event can post it here with its valid signature, and the attributes that mark a dead letter are
// not signed. The proof is the record, because only delivery and operators can write to that topic.
// givenUp therefore reads the record at the partition and offset that the event names. The two must
// be the same.
func (p *Payments) checkDeadLetter(ctx context.Context, e cloudevents.Event) error {
	partition, err1 := extension(e, event.ExtKafkaPartition, 32)
	offset, err2 := extension(e, event.ExtKafkaOffset, 64)
	if err1 != nil || err2 != nil || partition < 0 || offset < 0 {
		return fmt.Errorf("%w: it does not name its partition and offset in the dead-letter topic: only dead letters are closed out", event.ErrRefused)
	}
	letter, found, err := p.dead.Read(ctx, int32(partition), offset)
	if err != nil {
		return err
	}
	if !found || !same(letter, e) {
		return fmt.Errorf("%w: it is not in the dead-letter topic at partition %d, offset %d: only dead letters are closed out",
			event.ErrRefused, partition, offset)
	}
	return nil
}

func extension(e cloudevents.Event, name string, bits int) (int64, error) {
	return strconv.ParseInt(fmt.Sprint(e.Extensions()[name]), 10, bits)
}

// same reports whether a and b are the same event. It ignores the attributes that delivery adds.
// The signature, if there is one, covers the other attributes.
func same(a, b cloudevents.Event) bool {
	signature := func(e cloudevents.Event) string { text, _ := e.Extensions()[event.ExtSignature].(string); return text }
	return a.Context != nil && a.Type() == b.Type() && a.ID() == b.ID() && a.Source() == b.Source() &&
		signature(a) == signature(b) && bytes.Equal(a.Data(), b.Data())
}
