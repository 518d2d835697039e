package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"pgw/shared/event"
)

// The limits of reading.
const (
	openWithin = 30 * time.Second // to find the offsets of a range
	silence    = 30 * time.Second // the longest time without progress in a partition
	fetchBytes = 1 << 20          // of a partition at once; a larger batch arrives whole
	fetchWait  = 250 * time.Millisecond
	fetchDelay = 200 * time.Millisecond // before a fetch is repeated
	fetchers   = 2                      // partitions whose records are in memory at the same time; a compressed batch may be large
)

// everything is the isolation level: records that are not committed and aborted records are read
// too. KafkaSource reads at this level (isolation.level=read_uncommitted in
// config-kafka-source-data-plane), so the functions have received such records too. A topic's end
// is then its high-water mark, and never waits for a transaction.
var everything = kgo.ReadUncommitted()

// Place is the position of a record.
type Place struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// PlaceOf returns a record's position.
func PlaceOf(m *sarama.ConsumerMessage) Place { return Place{m.Topic, m.Partition, m.Offset} }

// String is TOPIC/PARTITION/OFFSET.
func (p Place) String() string { return fmt.Sprintf("%s/%d/%d", p.Topic, p.Partition, p.Offset) }

// ParsePlace reads what String writes.
func ParsePlace(text string) (Place, error) {
	parts := strings.Split(text, "/")
	if len(parts) == 3 {
		partition, err1 := strconv.ParseInt(parts[1], 10, 32)
		offset, err2 := strconv.ParseInt(parts[2], 10, 64)
		if err1 == nil && err2 == nil && partition >= 0 && offset >= 0 && parts[0] != "" {
			return Place{parts[0], int32(partition), offset}, nil
		}
	}
	return Place{}, fmt.Errorf("%q is not a letter: a letter is TOPIC/PARTITION/OFFSET, such as payments.parked/0/12", text)
}

// Range selects the records of a topic that are read. The zero value of a field sets no limit.
type Range struct {
	Topic      string
	Partitions []int32
	FromOffset int64           // in each partition
	ToOffset   int64           // exclusive; 0: to the end
	Since      time.Time       // by the records' own timestamps
	Until      time.Time       // exclusive
	Resume     map[int32]int64 // starts at this offset of a partition, whatever the other fields say
	ResumeID   string          // the topic's id when Resume was stored; empty: unknown
}

// Span is a Range's offsets in one partition.
type Span struct {
	Partition int32
	From, To  int64 // To is exclusive
	Trimmed   bool  // the topic no longer has the records before From
}

// Reader reads a part of a topic once, independently of all consumer groups. It fetches each batch
// itself. A consumer that only returns records does not report offsets without a record, such as a
// transaction's marker or the gaps after compaction. So it can't report that the end is reached.
type Reader struct {
	topic   string
	id      [16]byte // zero: the broker reports none
	leading map[int32]int32
	oldest  map[int32]int64
	spans   []Span
	client  *kgo.Client
	decoder kgo.Decompressor
	silence time.Duration
	fetches chan struct{} // has an element for each fetch whose records are in memory
}

// Read passes the records of a range to take, as a Reader does.
func Read(ctx context.Context, cfg Config, clientID string, r Range, take func(*sarama.ConsumerMessage) error) error {
	reader, err := OpenReaderContext(ctx, cfg, clientID, r)
	if err != nil {
		return err
	}
	defer reader.Close()
	return reader.Each(ctx, take)
}

// OpenReader finds the offsets of the range. It does not read records that are written later. An
// error names a partition that does not exist. It also names an offset to resume at that the topic
// does not have any more, or does not have yet.
func OpenReader(cfg Config, clientID string, r Range) (*Reader, error) {
	return OpenReaderContext(context.Background(), cfg, clientID, r)
}

// OpenReaderContext is OpenReader, and ends with ctx. The reader does not end with it.
func OpenReaderContext(ctx context.Context, cfg Config, clientID string, r Range) (*Reader, error) {
	options, err := cfg.readerOptions(clientID)
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka at %v: %w", cfg.Brokers, err)
	}
	reader := &Reader{topic: r.Topic, client: client, decoder: kgo.DefaultDecompressor(), silence: silence,
		fetches: make(chan struct{}, fetchers)}
	ctx, cancel := context.WithTimeoutCause(ctx, openWithin, fmt.Errorf("no answer from Kafka at %v within %s", cfg.Brokers, openWithin))
	defer cancel()
	if err := reader.open(ctx, r); err != nil {
		client.Close()
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		return nil, fmt.Errorf("topic %s: %w", r.Topic, err)
	}
	return reader, nil
}

// readerOptions returns Settings as options of the reader's client.
func (c Config) readerOptions(clientID string) ([]kgo.Opt, error) {
	settings, err := c.Settings(clientID)
	if err != nil {
		return nil, err
	}
	options := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...), kgo.ClientID(settings.ClientID), kgo.MaxVersions(kversion.V3_6_0()), kgo.DisableClientMetrics(),
		kgo.RequestTimeoutOverhead(settings.Net.ReadTimeout), kgo.RetryTimeout(openWithin / 3), kgo.RequestRetries(metadataRetries),
		kgo.RetryBackoffFn(func(tries int) time.Duration { return delay(tries, metadataDelay, metadataDelayMax) }),
	}
	switch {
	case c.Dial != nil:
		options = append(options, kgo.Dialer(func(context.Context, string, string) (net.Conn, error) { return c.Dial() }))
	case settings.Net.TLS.Enable:
		options = append(options, kgo.DialTLSConfig(settings.Net.TLS.Config), kgo.DialTimeout(settings.Net.DialTimeout))
	default:
		options = append(options, kgo.DialTimeout(settings.Net.DialTimeout))
	}
	switch settings.Net.SASL.Mechanism {
	case sarama.SASLTypePlaintext:
		options = append(options, kgo.SASL(plain.Auth{User: c.SASLUser, Pass: c.SASLPassword}.AsMechanism()))
	case sarama.SASLTypeSCRAMSHA256:
		options = append(options, kgo.SASL(scram.Auth{User: c.SASLUser, Pass: c.SASLPassword}.AsSha256Mechanism()))
	case sarama.SASLTypeSCRAMSHA512:
		options = append(options, kgo.SASL(scram.Auth{User: c.SASLUser, Pass: c.SASLPassword}.AsSha512Mechanism()))
	}
	return options, nil
}

func (r *Reader) open(ctx context.Context, want Range) error {
	leaders, id, err := r.leaders(ctx)
	// While a leader is elected, the broker reports nothing about the topic.
	for n := 1; errors.Is(err, kerr.LeaderNotAvailable) && ctx.Err() == nil; n++ {
		select {
		case <-time.After(delay(n, metadataDelay, metadataDelayMax)):
			leaders, id, err = r.leaders(ctx)
		case <-ctx.Done():
		}
	}
	if err != nil {
		return err
	}
	r.leading, r.id = leaders, id
	if id := r.TopicID(); want.ResumeID != "" && id != "" && id != want.ResumeID {
		return fmt.Errorf("%w: it was created again: its id is %s and was %s", ErrCannotResume, id, want.ResumeID)
	}
	partitions := want.Partitions
	if len(partitions) == 0 {
		partitions = slices.Sorted(maps.Keys(leaders))
	}
	for _, p := range partitions {
		if _, there := leaders[p]; !there {
			return fmt.Errorf("it has no partition %d", p)
		}
	}
	for p := range want.Resume {
		if _, there := leaders[p]; !there {
			return fmt.Errorf("partition %d: %w at offset %d: there is no such partition", p, ErrCannotResume, want.Resume[p])
		}
	}
	var limits limits
	for _, ask := range []struct {
		at   int64
		into *map[int32]int64
		skip bool
	}{
		{atOldest, &limits.oldest, false}, {atNewest, &limits.newest, false},
		{want.Since.UnixMilli(), &limits.since, want.Since.IsZero()}, {want.Until.UnixMilli(), &limits.until, want.Until.IsZero()},
	} {
		if ask.skip {
			continue
		}
		if *ask.into, err = r.offsets(ctx, partitions, ask.at); err != nil {
			return err
		}
	}
	r.oldest = limits.oldest
	r.spans, err = want.spans(partitions, limits)
	return err
}

// limits are offsets in each partition. since and until have the offset of the first record that is
// not older than a time, or -1 if there is none.
type limits struct{ oldest, newest, since, until map[int32]int64 }

// spans returns the range's offsets in each partition.
func (r Range) spans(partitions []int32, at limits) ([]Span, error) {
	var spans []Span
	end := int64(0) // of the longest partition
	for _, p := range partitions {
		s, err := r.span(p, at)
		if err != nil {
			return nil, fmt.Errorf("partition %d: %w", p, err)
		}
		end = max(end, at.newest[p])
		if s.From < s.To {
			spans = append(spans, s)
		}
	}
	if r.FromOffset > end && len(r.Resume) == 0 {
		return nil, fmt.Errorf("no partition reaches offset %d: the longest one ends at %d", r.FromOffset, end)
	}
	return spans, nil
}

func (r Range) span(p int32, at limits) (Span, error) {
	oldest, newest := at.oldest[p], at.newest[p]
	s := Span{Partition: p, From: max(oldest, r.FromOffset), To: newest}
	if r.ToOffset > 0 {
		s.To = min(s.To, r.ToOffset)
	}
	if since, asked := at.since[p]; asked {
		if since < 0 {
			since = newest
		}
		s.From = max(s.From, since)
	}
	if until, asked := at.until[p]; asked && until >= 0 {
		s.To = min(s.To, until)
	}
	if next, ok := r.Resume[p]; ok {
		if next < oldest {
			return s, fmt.Errorf("%w at offset %d, which was deleted: the oldest offset is %d", ErrCannotResume, next, oldest)
		}
		if next > newest {
			return s, fmt.Errorf("%w at offset %d, which is beyond the end, %d: the topic was created again", ErrCannotResume, next, newest)
		}
		s.From = next
	}
	s.Trimmed = oldest > 0 && s.From == oldest
	return s, nil
}

// leaders returns the leader of each partition, or -1 if it has none now, and the topic's id.
func (r *Reader) leaders(ctx context.Context) (leaders map[int32]int32, id [16]byte, err error) {
	request := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = kmsg.StringPtr(r.topic)
	request.Topics = append(request.Topics, topic)
	response, err := request.RequestWith(ctx, r.client)
	if err != nil {
		return nil, id, fmt.Errorf("read the partitions: %w", err)
	}
	if len(response.Topics) != 1 {
		return nil, id, fmt.Errorf("read the partitions: the broker answers for %d topics", len(response.Topics))
	}
	got := response.Topics[0]
	if err := kerr.ErrorForCode(got.ErrorCode); err != nil {
		return nil, id, fmt.Errorf("read the partitions: %w", err)
	}
	leaders = make(map[int32]int32, len(got.Partitions))
	for _, p := range got.Partitions {
		leaders[p.Partition] = p.Leader
	}
	return leaders, got.TopicID, nil
}

// Kafka's values for the ends of a partition, used instead of a time.
const (
	atOldest int64 = -2
	atNewest int64 = -1
)

// offsets returns an offset of each partition by time.
func (r *Reader) offsets(ctx context.Context, partitions []int32, at int64) (map[int32]int64, error) {
	for {
		got, err := r.offsetsOnce(ctx, partitions, at)
		if err == nil || !kerr.IsRetriable(err) || !pause(ctx, fetchDelay) {
			return got, err
		}
	}
}

func (r *Reader) offsetsOnce(ctx context.Context, partitions []int32, at int64) (map[int32]int64, error) {
	request := kmsg.NewPtrListOffsetsRequest()
	topic := kmsg.NewListOffsetsRequestTopic()
	topic.Topic = r.topic
	for _, p := range partitions {
		asked := kmsg.NewListOffsetsRequestTopicPartition()
		asked.Partition, asked.Timestamp = p, at
		topic.Partitions = append(topic.Partitions, asked)
	}
	request.Topics = append(request.Topics, topic)
	response, err := request.RequestWith(ctx, r.client)
	if err != nil {
		return nil, fmt.Errorf("read offsets: %w", err)
	}
	offsets := make(map[int32]int64, len(partitions))
	for _, t := range response.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, fmt.Errorf("read the offset of partition %d: %w", p.Partition, err)
			}
			offsets[p.Partition] = p.Offset
		}
	}
	for _, p := range partitions {
		if _, ok := offsets[p]; !ok {
			return nil, fmt.Errorf("read offsets: the broker does not answer for partition %d", p)
		}
	}
	return offsets, nil
}

// pause waits. It returns false if ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Spans returns the offsets that will be read, without empty partitions.
func (r *Reader) Spans() []Span { return r.spans }

// Oldest returns the oldest offset that each partition had when the reader was opened.
func (r *Reader) Oldest() map[int32]int64 { return r.oldest }

// TopicID identifies the topic. A topic that was deleted and created again under the same name has
// another id. It is empty if the broker does not report it.
func (r *Reader) TopicID() string {
	if r.id == [16]byte{} {
		return ""
	}
	return uuid.UUID(r.id).String()
}

// Total returns the number of offsets in the spans.
func (r *Reader) Total() (n int64) {
	for _, s := range r.spans {
		n += s.To - s.From
	}
	return n
}

// Each passes the records to take, one at a time, until take returns an error. The records of a
// partition are in order. Each also returns an error if records are deleted before they are read,
// and if no records arrive for some time.
func (r *Reader) Each(ctx context.Context, take func(*sarama.ConsumerMessage) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	records := make(chan *sarama.ConsumerMessage)
	var reading sync.WaitGroup
	for _, s := range r.spans {
		reading.Go(func() {
			if err := r.readSpan(ctx, s, records); err != nil {
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
			continue // the other partitions stop too
		}
		if err := take(m); err != nil {
			cancel(err)
		}
	}
	return context.Cause(ctx)
}

func (r *Reader) readSpan(ctx context.Context, s Span, into chan<- *sarama.ConsumerMessage) error {
	next, leader := s.From, r.leading[s.Partition]
	var problem error // of the last attempt
	for came := time.Now(); next < s.To; {
		if problem != nil {
			if time.Since(came) > r.silence {
				return fmt.Errorf("no record arrived for %s at offset %d, before %d: %w", r.silence, next, s.To, problem)
			}
			if !pause(ctx, fetchDelay) {
				return nil
			}
			// The partition may have another leader now.
			leaders, _, err := r.leaders(ctx)
			if err != nil {
				problem = err
				continue
			}
			leader = leaders[s.Partition]
		}
		// Only a few partitions fetch and pass on records at a time, so that memory does not grow with
		// their number. This wait is not the broker's silence.
		queued := time.Now()
		select {
		case r.fetches <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		came = came.Add(time.Since(queued))
		after, fetched, err := r.pass(ctx, s, leader, next, into)
		<-r.fetches
		if ctx.Err() != nil {
			return nil
		}
		if err == nil && after == next && !fetched {
			err = errors.New("the broker returned no records")
		}
		if problem = err; err != nil {
			if err := r.lost(ctx, s, next, err); err != nil {
				return err
			}
			continue
		}
		next, came = after, time.Now()
	}
	return nil
}

// pass fetches records and passes on those before the span's end. after is the offset of the next fetch.
func (r *Reader) pass(ctx context.Context, s Span, leader int32, next int64, into chan<- *sarama.ConsumerMessage) (after int64, fetched bool, err error) {
	got, after, err := r.fetch(ctx, leader, s.Partition, next)
	if err != nil {
		return next, false, err
	}
	for _, m := range got {
		if m.Offset >= s.To {
			return s.To, true, nil
		}
		select {
		case into <- consumed(m):
		case <-ctx.Done():
			return next, true, ctx.Err()
		}
	}
	return after, len(got) > 0, nil
}

// lost returns an error if another attempt would be useless.
func (r *Reader) lost(ctx context.Context, s Span, next int64, err error) error {
	var known *kerr.Error
	switch {
	case errors.Is(err, kerr.OffsetOutOfRange):
		oldest, err1 := r.offsets(ctx, []int32{s.Partition}, atOldest)
		newest, err2 := r.offsets(ctx, []int32{s.Partition}, atNewest)
		switch oldest, newest := oldest[s.Partition], newest[s.Partition]; {
		case err1 != nil || err2 != nil:
			return errors.Join(fmt.Errorf("offset %d: %w", next, err), err1, err2)
		case next < oldest:
			return fmt.Errorf("offsets %d to %d were deleted, by the topic's retention or by a person, before they were read", next, oldest-1)
		default:
			return fmt.Errorf("offset %d is beyond the end, which is %d now: the topic was created again while it was read", next, newest)
		}
	case errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.InconsistentTopicID):
		return fmt.Errorf("the topic was deleted or created again while it was read: %w", err)
	case errors.As(err, &known) && !known.Retriable, errors.Is(err, errUndecodable):
		return fmt.Errorf("offset %d: %w", next, err)
	}
	return nil
}

// errUndecodable means that a broker's response is not a batch of records.
var errUndecodable = errors.New("can't be decoded")

// fetch fetches records, starting at an offset. It returns the offset of the next fetch, which also
// rises when the batches have no records.
func (r *Reader) fetch(ctx context.Context, leader, partition int32, from int64) ([]*kgo.Record, int64, error) {
	if leader < 0 {
		return nil, from, kerr.LeaderNotAvailable
	}
	request := kmsg.NewPtrFetchRequest()
	request.MaxWaitMillis, request.MinBytes, request.MaxBytes = int32(fetchWait/time.Millisecond), 1, fetchBytes
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = r.topic, r.id
	asked := kmsg.NewFetchRequestTopicPartition()
	asked.Partition, asked.FetchOffset, asked.PartitionMaxBytes = partition, from, fetchBytes
	topic.Partitions = append(topic.Partitions, asked)
	request.Topics = append(request.Topics, topic)
	answer, err := r.client.Broker(int(leader)).Request(ctx, request)
	if err != nil {
		return nil, from, err
	}
	response := answer.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(response.ErrorCode); err != nil {
		return nil, from, err
	}
	if len(response.Topics) != 1 || len(response.Topics[0].Partitions) != 1 || response.Topics[0].Partitions[0].Partition != partition {
		return nil, from, errors.New("the broker does not answer for the partition")
	}
	got := &response.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(got.ErrorCode); err != nil {
		return nil, from, err
	}
	fetched, after := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		Offset: from, IsolationLevel: everything, Topic: r.topic, Partition: partition,
	}, got, r.decoder, nil)
	if fetched.Err != nil && after == from && len(fetched.Records) == 0 {
		return nil, from, fmt.Errorf("%w: %w", errUndecodable, fetched.Err)
	}
	return fetched.Records, after, nil
}

// consumed returns a record in the form that consumers return.
func consumed(r *kgo.Record) *sarama.ConsumerMessage {
	m := &sarama.ConsumerMessage{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		m.Headers = append(m.Headers, &sarama.RecordHeader{Key: []byte(h.Key), Value: h.Value})
	}
	return m
}

// Close ends the reader's connections.
func (r *Reader) Close() error {
	r.client.Close()
	return nil
}

// ReadRecord returns the event in a consumed record, in binary or structured mode. For a record
// that is not a CloudEvent, it returns the event that wrap makes of it. Its errors are
// event.ErrMalformed.
func ReadRecord(ctx context.Context, m *sarama.ConsumerMessage, wrap func(*sarama.ConsumerMessage) cloudevents.Event) (cloudevents.Event, error) {
	e, err := event.Foreign(func() (*cloudevents.Event, error) {
		message := kafka_sarama.NewMessageFromConsumerMessage(m)
		if message.ReadEncoding() == binding.EncodingUnknown {
			e := wrap(m)
			return &e, nil
		}
		for name := range message.Headers {
			if attribute, ok := strings.CutPrefix(name, "ce_"); ok && !event.AttributeName(attribute) {
				return nil, fmt.Errorf("%q is not the name of an attribute", attribute)
			}
		}
		return binding.ToEvent(ctx, message)
	})
	if err != nil {
		return cloudevents.Event{}, fmt.Errorf("%w: record %s: %w", event.ErrMalformed, PlaceOf(m), err)
	}
	return *e, nil
}

// Committed returns the offset up to which a consumer group has consumed each partition of a topic.
// Partitions without a committed offset are missing from the map.
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
	if errors.Is(err, sarama.ErrGroupIDNotFound) || err == nil && errors.Is(got.Err, sarama.ErrGroupIDNotFound) {
		return nil, nil // it has never consumed anything
	}
	if err != nil {
		return nil, fmt.Errorf("offsets of group %s: %w", group, err)
	}
	if !errors.Is(got.Err, sarama.ErrNoError) {
		return nil, fmt.Errorf("offsets of group %s: %w", group, got.Err)
	}
	offsets := map[int32]int64{}
	for partition, block := range got.Blocks[topic] {
		if !errors.Is(block.Err, sarama.ErrNoError) {
			return nil, fmt.Errorf("offset of group %s in partition %d of %s: %w", group, partition, topic, block.Err)
		}
		if block.Offset >= 0 {
			offsets[partition] = block.Offset
		}
	}
	return offsets, nil
}
