package deadletter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/kafka"
)

// The limits of a Memory.
const (
	// maxRemembered is the most bytes of the letters' texts.
	maxRemembered = 32 << 20
	maxMessage    = 1000 // bytes of a message that is remembered
	// askAgain is how long Count believes that a payment is not decided.
	askAgain = 30 * time.Second
	// mostActed is the most letters that db lists in one answer of ActedLetters.
	mostActed = 10_000
)

// Memory has the letters that a Box has read, so that a reading costs only the records that are new.
// It keeps no event's data. If there are too many letters, it forgets the oldest. Several calls may
// use it at the same time.
type Memory struct {
	most int
	now  func() time.Time
	turn chan struct{} // has an element while a reading is under way

	// These are of the reading that is under way.
	topics  map[string]*progress
	letters map[string]Letter
	size    int
	forgot  bool

	mu       sync.Mutex
	outcomes map[string]string    // of the letters whose payment is decided
	asked    map[string]time.Time // when the ledger said that a letter's payment is not decided
}

// progress is how far a topic is read.
type progress struct {
	id   string // the topic's
	next map[int32]int64
}

// NewMemory makes a memory of at most so many letters.
func NewMemory(most int, now func() time.Time) *Memory {
	m := &Memory{most: most, now: now, turn: make(chan struct{}, 1)}
	m.forget()
	return m
}

func (m *Memory) forget() {
	m.topics, m.letters, m.size, m.forgot = map[string]*progress{}, map[string]Letter{}, 0, false
	m.mu.Lock()
	defer m.mu.Unlock()
	m.outcomes, m.asked = map[string]string{}, map[string]time.Time{}
}

// refresh reads the new records, and returns all letters, the oldest first. What it has read stays
// when ctx ends, so that a later call continues there.
func (m *Memory) refresh(ctx context.Context, b *Box) ([]Letter, error) {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	err := m.readAll(ctx, b)
	if errors.Is(err, kafka.ErrCannotResume) { // a topic was made again, or has lost records that were not read
		m.forget()
		err = m.readAll(ctx, b)
	}
	if err != nil {
		return nil, err
	}
	return sorted(m.letters), nil
}

func (m *Memory) readAll(ctx context.Context, b *Box) error {
	for _, topic := range b.topics() {
		if err := m.read(ctx, b, topic); err != nil {
			return err
		}
	}
	return nil
}

func (m *Memory) read(ctx context.Context, b *Box, topic string) error {
	at := m.topics[topic]
	if at == nil {
		at = &progress{next: map[int32]int64{}}
		m.topics[topic] = at
	}
	reader, err := kafka.OpenReaderContext(ctx, b.Kafka, "deadletter", kafka.Range{Topic: topic, Resume: at.next, ResumeID: at.id})
	if err != nil {
		return err
	}
	defer reader.Close()
	at.id = reader.TopicID()
	err = reader.Each(ctx, func(r *sarama.ConsumerMessage) error {
		m.add(b.letter(ctx, r).withoutData())
		at.next[r.Partition] = r.Offset + 1
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range reader.Spans() {
		at.next[s.Partition] = s.To
	}
	m.trim(topic, reader.Oldest())
	return nil
}

func (m *Memory) add(l Letter) {
	known, ok := m.letters[l.ID]
	if ok {
		m.size -= known.size()
		l = known.with(l)
	}
	m.letters[l.ID] = l
	m.size += l.size()
	if len(m.letters) <= m.most && m.size <= maxRemembered {
		return
	}
	// A part of them at once, because sorting them for each new one would take long.
	m.forgot = true
	all := sorted(m.letters)
	for _, old := range all[:len(all)/10+1] {
		m.remove(old)
	}
}

// trim removes the records that the topic does not have any more.
func (m *Memory) trim(topic string, oldest map[int32]int64) {
	gone := func(c Copy) bool { return c.Topic == topic && c.Offset < oldest[c.Partition] }
	for _, l := range m.letters {
		if !slices.ContainsFunc(l.Copies, gone) {
			continue
		}
		left := slices.DeleteFunc(slices.Clone(l.Copies), gone)
		m.remove(l)
		if len(left) > 0 && left[len(left)-1] == l.newest() {
			l.Copies = left
			m.letters[l.ID] = l
			m.size += l.size()
		}
	}
}

func (m *Memory) remove(l Letter) {
	delete(m.letters, l.ID)
	m.size -= l.size()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.outcomes, l.ID)
	delete(m.asked, l.ID)
}

// outcome returns the outcome of a letter's payment if it is known and can't change. m may be nil.
func (m *Memory) outcome(id string) (outcome string, decided bool) {
	if m == nil {
		return "", false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	outcome, decided = m.outcomes[id]
	return outcome, decided
}

// keep remembers what the ledger has answered. m may be nil.
func (m *Memory) keep(id, outcome string, decided bool) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if decided {
		m.outcomes[id] = outcome
		delete(m.asked, id)
	} else {
		m.asked[id] = m.now()
	}
}

// mayBeDecided reports whether the ledger must be asked about a letter's payment.
func (m *Memory) mayBeDecided(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, decided := m.outcomes[id]
	at, asked := m.asked[id]
	return !decided && (!asked || m.now().Sub(at) >= askAgain)
}

// withoutData returns the letter with only what identifies its event.
func (l Letter) withoutData() Letter {
	e := cloudevents.New()
	e.SetID(strings.Clone(l.Event.ID()))
	e.SetSource(strings.Clone(l.Event.Source()))
	e.SetType(strings.Clone(l.Event.Type()))
	e.SetSubject(strings.Clone(l.Event.Subject()))
	if at := l.Event.Time(); !at.IsZero() {
		e.SetTime(at)
	}
	if len(l.Message) > maxMessage {
		l.Message = strings.ToValidUTF8(strings.Clone(l.Message[:maxMessage]), "") + " …"
	}
	l.Event, l.bare = e, true
	return l
}

// size is about the memory of a letter without data.
func (l Letter) size() int {
	e := l.Event
	return 600 + len(l.Key) + len(l.Message) + len(e.ID()) + len(e.Source()) + len(e.Type()) + len(e.Subject()) + 80*len(l.Copies)
}

// whole returns a letter with its event's data, which it reads from the letter's newest record.
func (b *Box) whole(ctx context.Context, l Letter) (Letter, error) {
	if !l.bare {
		return l, nil
	}
	at, found := l.newest(), Letter{}
	one := kafka.Range{Topic: at.Topic, Partitions: []int32{at.Partition}, FromOffset: at.Offset, ToOffset: at.Offset + 1}
	err := kafka.Read(ctx, b.Kafka, "deadletter", one, func(m *sarama.ConsumerMessage) error {
		found = b.letter(ctx, m)
		return nil
	})
	switch {
	case err != nil:
		return l, fmt.Errorf("letter %s: %w", l.ID, err)
	case found.ID != l.ID:
		return l, fmt.Errorf("%w %s any more: its record %s is gone", ErrNoLetter, l.ID, at.Place)
	}
	l.Event, l.bare = found.Event, false
	return l, nil
}

// Counts are how many letters wait.
type Counts struct {
	Waiting, Parked int64
	Oldest          time.Time // when the oldest of them failed last; zero: none waits
}

// ErrForgotten means that there are more letters than are remembered.
var ErrForgotten = errors.New("there are more letters than are remembered")

// Count counts the letters that wait, by what the Memory has. Unlike Read, it needs no operator's
// token. taken has the offsets up to which payments has handled the dead-letter topic.
func (b *Box) Count(ctx context.Context, taken map[int32]int64) (n Counts, err error) {
	letters, err := b.records(ctx, time.Time{})
	if err != nil {
		return n, err
	}
	acted, err := b.acted(ctx, letters)
	if err != nil {
		return n, err
	}
	letters = slices.DeleteFunc(letters, func(l Letter) bool { return l.settledBy(acted) })
	ask := slices.DeleteFunc(slices.Clone(letters), func(l Letter) bool { return !b.Memory.mayBeDecided(l.ID) })
	if _, err := b.judgeAll(ctx, ask, taken); err != nil {
		return n, err
	}
	for _, l := range letters {
		if _, decided := b.Memory.outcome(l.ID); decided {
			continue
		}
		if n.Oldest.IsZero() {
			n.Oldest = l.At
		}
		if stateOf(l, false, b.Kafka.DeadLetterTopic, taken) == Waiting {
			n.Waiting++
		} else {
			n.Parked++
		}
	}
	if b.Memory.forgetful(ctx) {
		return n, ErrForgotten
	}
	return n, nil
}

func (m *Memory) forgetful(ctx context.Context) bool {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
		return m.forgot
	case <-ctx.Done():
		return true
	}
}

// acted returns the places of letters' records that an operator has acted on.
func (b *Box) acted(ctx context.Context, letters []Letter) (map[kafka.Place]bool, error) {
	first := map[string]map[int32]int64{}
	for _, l := range letters {
		for _, c := range l.Copies {
			of := first[c.Topic]
			if of == nil {
				of = map[int32]int64{}
				first[c.Topic] = of
			}
			if from, ok := of[c.Partition]; !ok || c.Offset < from {
				of[c.Partition] = c.Offset
			}
		}
	}
	acted := map[kafka.Place]bool{}
	for topic, from := range first {
		before := len(acted)
		got, err := dbv1.NewDbClient(b.DB).ActedLetters(ctx, &dbv1.ActedLettersRequest{Topic: topic, From: from})
		if err != nil {
			return nil, fmt.Errorf("ask db which dead letters have an action: %w", err)
		}
		for partition, of := range got.Acted {
			for _, offset := range of.GetOffsets() {
				acted[kafka.Place{Topic: topic, Partition: partition, Offset: offset}] = true
			}
		}
		if len(acted)-before >= mostActed {
			return nil, ErrForgotten
		}
	}
	return acted, nil
}

// settledBy reports whether an operator has acted on the letter since it failed last. The action is on
// the record that was the newest then: the one in payments.deadletter, or its copy in payments.parked.
// The redrive that sent the event tells to which failure a record belongs.
func (l Letter) settledBy(acted map[kafka.Place]bool) bool {
	last := map[string]Copy{} // of the last failure, by topic
	for _, c := range l.Copies {
		if c.Redrive == l.newest().Redrive {
			last[c.Topic] = c
		}
	}
	for _, c := range last {
		if acted[c.Place] {
			return true
		}
	}
	return false
}
