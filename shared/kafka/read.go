package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

// silence bounds the wait for a record that the broker says is there.
const silence = 30 * time.Second

// Range says which of a topic's records are read. The zero value of each field means: all of them.
type Range struct {
	Topic      string
	Partitions []int32
	FromOffset int64           // in each partition
	ToOffset   int64           // exclusive; 0: to the end
	Since      time.Time       // by the records' own timestamps
	Until      time.Time       // exclusive
	Resume     map[int32]int64 // goes on at this offset of a partition, whatever the rest says
}

// Span is what a Range comes to in one partition.
type Span struct {
	Partition int32
	From, To  int64 // To is exclusive
	Trimmed   bool  // the topic has forgotten what stood before From
}

// Reader reads a part of a topic once, beside all consumer groups.
type Reader struct {
	topic  string
	spans  []Span
	client sarama.Client
}

// OpenReader finds out what the range comes to. What is written to the topic later is not read. An error
// names a partition that there is not, and a record to go on from that the topic no longer has.
func OpenReader(cfg Config, clientID string, r Range) (*Reader, error) {
	settings, err := cfg.Settings(clientID)
	if err != nil {
		return nil, err
	}
	settings.Consumer.Return.Errors = true
	client, err := sarama.NewClient(cfg.Brokers, settings)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka at %v: %w", cfg.Brokers, err)
	}
	reader := &Reader{topic: r.Topic, client: client}
	if reader.spans, err = r.spans(client); err != nil {
		client.Close()
		return nil, err
	}
	return reader, nil
}

func (r Range) spans(client sarama.Client) ([]Span, error) {
	there, err := client.Partitions(r.Topic)
	if err != nil {
		return nil, fmt.Errorf("topic %s: %w", r.Topic, err)
	}
	partitions := r.Partitions
	if len(partitions) == 0 {
		partitions = there
	}
	var spans []Span
	for _, p := range partitions {
		if !slices.Contains(there, p) {
			return nil, fmt.Errorf("topic %s has no partition %d", r.Topic, p)
		}
		s, err := r.span(client, p)
		if err != nil {
			return nil, fmt.Errorf("topic %s, partition %d: %w", r.Topic, p, err)
		}
		if s.From < s.To {
			spans = append(spans, s)
		}
	}
	return spans, nil
}

func (r Range) span(client sarama.Client, p int32) (Span, error) {
	oldest, err := client.GetOffset(r.Topic, p, sarama.OffsetOldest)
	if err != nil {
		return Span{}, err
	}
	newest, err := client.GetOffset(r.Topic, p, sarama.OffsetNewest)
	if err != nil {
		return Span{}, err
	}
	s := Span{Partition: p, From: max(oldest, r.FromOffset), To: newest}
	if r.ToOffset > 0 {
		s.To = min(s.To, r.ToOffset)
	}
	at := func(t time.Time) (int64, error) {
		offset, err := client.GetOffset(r.Topic, p, t.UnixMilli())
		if err == nil && offset < 0 { // no record is as young
			offset = newest
		}
		return offset, err
	}
	if !r.Since.IsZero() {
		offset, err := at(r.Since)
		if err != nil {
			return s, err
		}
		s.From = max(s.From, offset)
	}
	if !r.Until.IsZero() {
		offset, err := at(r.Until)
		if err != nil {
			return s, err
		}
		s.To = min(s.To, offset)
	}
	if next, ok := r.Resume[p]; ok {
		if next < oldest {
			return s, fmt.Errorf("offset %d, to go on from, is gone: the oldest there is is %d", next, oldest)
		}
		s.From = next
	}
	s.Trimmed = oldest > 0 && s.From == oldest
	return s, nil
}

// Spans are what will be read, without the partitions that hold nothing.
func (r *Reader) Spans() []Span { return r.spans }

// Total is how many offsets the spans cover.
func (r *Reader) Total() (n int64) {
	for _, s := range r.spans {
		n += s.To - s.From
	}
	return n
}

// Each gives the records, those of one partition in their order, one at a time, until take returns an error.
func (r *Reader) Each(ctx context.Context, take func(*sarama.ConsumerMessage) error) error {
	consumer, err := sarama.NewConsumerFromClient(r.client)
	if err != nil {
		return fmt.Errorf("read %s: %w", r.topic, err)
	}
	defer consumer.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	records := make(chan *sarama.ConsumerMessage)
	var reading sync.WaitGroup
	for _, s := range r.spans {
		reading.Go(func() {
			if err := r.readSpan(ctx, consumer, s, records); err != nil {
				cancel(fmt.Errorf("read %s, partition %d: %w", r.topic, s.Partition, err))
			}
		})
	}
	go func() {
		reading.Wait()
		close(records)
	}()
	for m := range records {
		if context.Cause(ctx) != nil {
			continue // let the others see it too
		}
		if err := take(m); err != nil {
			cancel(err)
		}
	}
	return context.Cause(ctx)
}

func (r *Reader) readSpan(ctx context.Context, consumer sarama.Consumer, s Span, into chan<- *sarama.ConsumerMessage) error {
	pc, err := consumer.ConsumePartition(r.topic, s.Partition, s.From)
	if err != nil {
		return err
	}
	defer pc.Close()
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	for {
		select {
		case m := <-pc.Messages():
			if m.Offset >= s.To {
				return nil
			}
			select {
			case into <- m:
			case <-ctx.Done():
				return nil
			}
			if m.Offset == s.To-1 {
				return nil
			}
			quiet.Reset(silence)
		case failed := <-pc.Errors():
			if errors.Is(failed.Err, sarama.ErrOffsetOutOfRange) {
				return failed.Err // the rest is tried again by the consumer
			}
		case <-quiet.C:
			return fmt.Errorf("nothing came for %s before offset %d", silence, s.To)
		case <-ctx.Done():
			return nil
		}
	}
}

// Close ends the reader's connections.
func (r *Reader) Close() error { return r.client.Close() }

// Committed is up to which offset a consumer group has taken each partition of a topic; partitions that it
// has taken nothing of are left out.
func Committed(cfg Config, group, topic string) (map[int32]int64, error) {
	settings, err := cfg.Settings("admin")
	if err != nil {
		return nil, err
	}
	admin, err := sarama.NewClusterAdmin(cfg.Brokers, settings)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka at %v: %w", cfg.Brokers, err)
	}
	defer admin.Close()
	got, err := admin.ListConsumerGroupOffsets(group, nil)
	if err != nil {
		return nil, fmt.Errorf("offsets of group %s: %w", group, err)
	}
	offsets := map[int32]int64{}
	for partition, block := range got.Blocks[topic] {
		if block.Offset >= 0 {
			offsets[partition] = block.Offset
		}
	}
	return offsets, nil
}
