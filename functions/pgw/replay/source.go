package replay

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/functions/kafkasource"
	"pgw/shared/event"
	"pgw/shared/kafka"
)

// MaxEvent is the maximum size of one event in a file, in bytes.
const MaxEvent = 1 << 20

const topicPrefix = "topic:"

func openSource(cfg Config) (source, error) {
	if topic, ok := strings.CutPrefix(cfg.From, topicPrefix); ok {
		cfg.Range.Topic = topic
		reader, err := kafka.OpenReader(cfg.Kafka, "replay", cfg.Range)
		if err != nil {
			return nil, err
		}
		return topicSource{reader}, nil
	}
	s := &fileSource{name: cfg.From, skip: cfg.Range.Resume[0], checkpoint: cfg.Checkpoint, in: cfg.Stdin}
	if cfg.From != "-" {
		f, err := os.Open(cfg.From)
		if err != nil {
			return nil, err
		}
		s.in, s.file = f, f
	}
	return s, nil
}

type topicSource struct{ reader *kafka.Reader }

func (s topicSource) each(ctx context.Context, take func(Event) error) error {
	return s.reader.Each(ctx, func(m *sarama.ConsumerMessage) error {
		e := kafkasource.ReadRecord(ctx, "replay", m)
		return take(Event{Event: e, Key: keyOf(e, string(m.Key)), Partition: m.Partition, Offset: m.Offset})
	})
}

func (s topicSource) total() int64 { return s.reader.Total() }
func (s topicSource) id() string   { return s.reader.TopicID() }
func (s topicSource) close() error { return s.reader.Close() }

func keyOf(e cloudevents.Event, recordKey string) string {
	if key, ok := e.Extensions()[event.ExtPartitionKey].(string); ok {
		return key
	}
	if recordKey != "" {
		return recordKey
	}
	return e.Subject()
}

// fileSource reads a file of events.
type fileSource struct {
	name string
	in   io.Reader
	file io.Closer
	skip int64 // the number of events that an earlier run has done

	checkpoint string // the checkpoint with that number
}

func (s *fileSource) each(ctx context.Context, take func(Event) error) error {
	n := int64(0)
	err := ReadEvents(s.in, func(e cloudevents.Event) error {
		defer func() { n++ }()
		if n < s.skip {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return take(Event{Event: e, Key: keyOf(e, ""), Offset: n})
	})
	if err == nil && n < s.skip {
		return fmt.Errorf("checkpoint %s: can't continue after event %d of %s, which has %d events: it is another file", s.checkpoint, s.skip, s.name, n)
	}
	return err
}

func (s *fileSource) total() int64 { return -1 }
func (s *fileSource) id() string   { return "" }

func (s *fileSource) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// ReadEvents reads events in the JSON format of CloudEvents, either one after the other or in an
// array. The input may be compressed by gzip. An error names the number of the wrong event; take
// was called for all events before it.
func ReadEvents(r io.Reader, take func(cloudevents.Event) error) error {
	in := bufio.NewReader(r)
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		unzipped, err := gzip.NewReader(in)
		if err != nil {
			return fmt.Errorf("gzip: %w", err)
		}
		defer unzipped.Close()
		in = bufio.NewReader(unzipped)
	}
	first, err := firstByte(in)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	bounded := &boundedReader{r: in, left: 2 * MaxEvent}
	decoder := json.NewDecoder(bounded)
	array := first == '['
	if array {
		if _, err := decoder.Token(); err != nil {
			return err
		}
	}
	for n := 1; !array || decoder.More(); n++ {
		// The decoder reads ahead by its buffer. A value within the limit never reaches this one.
		bounded.left = 2 * MaxEvent
		var text json.RawMessage
		err := decoder.Decode(&text)
		if !array && errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && len(text) > MaxEvent {
			err = errTooLarge
		}
		var e cloudevents.Event
		if err == nil {
			e, err = decode(text)
		}
		if err != nil {
			return fmt.Errorf("event %d: %w", n, err)
		}
		if err := take(e); err != nil {
			return err
		}
	}
	if _, err := decoder.Token(); err != nil { // the end of the array
		return fmt.Errorf("after the last event: %w", err)
	}
	return nil
}

// decode parses one event. A panic of the decoder becomes an error, because the file is foreign
// input.
func decode(text []byte) (e cloudevents.Event, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("can't be decoded: %v", p)
		}
	}()
	if err := e.UnmarshalJSON(text); err != nil {
		return e, err
	}
	return e, e.Validate()
}

func firstByte(in *bufio.Reader) (byte, error) {
	for {
		b, err := in.ReadByte()
		if err != nil {
			return 0, err
		}
		if b != ' ' && b != '\n' && b != '\r' && b != '\t' {
			return b, in.UnreadByte()
		}
	}
}

var errTooLarge = fmt.Errorf("is larger than %d bytes", MaxEvent)

// boundedReader prevents that one value fills the memory.
type boundedReader struct {
	r    io.Reader
	left int
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.r.Read(p)
	b.left -= n
	return n, err
}
