package deadletter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgw/shared/kafka"
)

// remembering returns a second box over the same topics, which has a memory.
func remembering(b *Box, most int) (with *Box, ahead *time.Duration) {
	ahead = new(time.Duration)
	begun := time.Now()
	return &Box{Kafka: b.Kafka, DB: b.DB, Keys: b.Keys, Memory: NewMemory(most, func() time.Time { return begun.Add(*ahead) })}, ahead
}

func count(t *testing.T, b *Box, taken map[int32]int64) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n, err := b.Count(ctx, taken)
	if err != nil {
		t.Fatal(err)
	}
	if (n.Waiting+n.Parked > 0) == n.Oldest.IsZero() {
		t.Errorf("%+v", n)
	}
	return fmt.Sprintf("%d waiting, %d parked", n.Waiting, n.Parked)
}

// Letters are counted, and not their records. A count agrees with the states of the letters.
func TestCountsAreOfLetters(t *testing.T) {
	plain, producer, l := box(t)
	b, ahead := remembering(plain, 100)
	handled := map[int32]int64{0: 1 << 40} // payments has handled all of the dead-letter topic
	expect := func(what, want string) {
		t.Helper()
		if got := count(t, b, handled); got != want {
			t.Errorf("%s: %s; want %s", what, got, want)
		}
		parked := 0
		for _, l := range all(t, b, Filter{}) {
			if l.State == Parked || l.State == Waiting {
				parked++
			}
		}
		if got := fmt.Sprintf("0 waiting, %d parked", parked); got != want {
			t.Errorf("%s: by their states %s; want %s", what, got, want)
		}
	}
	expect("nothing", "0 waiting, 0 parked")
	events := map[string]int{"a": 400, "b": 403, "c": 500}
	for key, code := range events {
		fail(t, b, producer, request(t, b, key), code, b.Kafka.DeadLetterTopic, b.Kafka.ParkedTopic)
	}
	if got := count(t, b, nil); got != "0 waiting, 3 parked" { // the newest record of each is the parked one
		t.Error(got)
	}
	named := func(key string) Letter { return all(t, b, Filter{Key: key})[0] }
	a := named("a")
	if a.Event.Data() != nil {
		t.Error("the memory has the event's data")
	}
	if err := b.Redrive(t.Context(), producer, a, Order{Operator: "ayu", Note: "again"}); err != nil {
		t.Fatal(err)
	}
	if e := sent(t, b, 0); len(e) != 1 || b.Keys.Verify(e[0]) != nil || string(e[0].Data()) != `{"k":"a"}` {
		t.Errorf("sent: %v", e)
	}
	expect("a is redriven", "0 waiting, 2 parked")
	fail(t, b, producer, sent(t, b, 0)[0], 400, b.Kafka.DeadLetterTopic, b.Kafka.ParkedTopic)
	expect("a has failed again", "0 waiting, 3 parked")
	if err := b.Discard(t.Context(), named("b"), Order{Operator: "ayu", Note: "forged"}); err != nil {
		t.Fatal(err)
	}
	expect("b is discarded", "0 waiting, 2 parked")

	// The ledger is asked about an undecided payment now and then, and not again about a decided one.
	l.mu.Lock()
	l.decided, l.finds = map[string]bool{"c": true}, 0
	l.mu.Unlock()
	*ahead += askAgain
	if got := count(t, b, handled); got != "0 waiting, 1 parked" {
		t.Errorf("c is decided: %s", got)
	}
	count(t, b, handled)
	if l.finds != 2 {
		t.Errorf("the ledger was asked %d times", l.finds)
	}
	if c := named("c"); c.State != ClosedOut || c.Outcome == "" {
		t.Errorf("%+v", c)
	}
}

func TestLettersThatPaymentsHasNotHandledWait(t *testing.T) {
	plain, producer, _ := box(t)
	b, _ := remembering(plain, 100)
	for _, key := range []string{"a", "b"} {
		fail(t, b, producer, request(t, b, key), 400, b.Kafka.DeadLetterTopic)
	}
	if got := count(t, b, map[int32]int64{0: 1}); got != "1 waiting, 1 parked" {
		t.Error(got)
	}
}

// A memory that is full forgets the oldest letters, and says so instead of a wrong count.
func TestAMemoryThatIsFull(t *testing.T) {
	plain, producer, _ := box(t)
	b, _ := remembering(plain, 3)
	for i := range 5 {
		park(t, b, producer, fmt.Sprint("key-", i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := b.Count(ctx, nil); !errors.Is(err, ErrForgotten) {
		t.Errorf("%v", err)
	}
	var keys []string
	for _, l := range all(t, b, Filter{}) {
		keys = append(keys, l.Key)
	}
	if !slices.Equal(keys, []string{"key-2", "key-3", "key-4"}) {
		t.Errorf("%v", keys)
	}
}

// A topic that is made again has other letters.
func TestAMemoryOfATopicThatIsMadeAgain(t *testing.T) {
	plain, producer, _ := box(t)
	b, _ := remembering(plain, 100)
	park(t, b, producer, "a")
	park(t, b, producer, "b")
	all(t, b, Filter{})
	b.Memory.topics[b.Kafka.ParkedTopic].next[0] = 7 // beyond the end
	if got := all(t, b, Filter{}); len(got) != 2 {
		t.Errorf("%d letters", len(got))
	}
}

// Pages of letters have each letter once.
func TestPages(t *testing.T) {
	b, producer, _ := box(t)
	for i := range 7 {
		park(t, b, producer, fmt.Sprint(i))
	}
	var keys []string
	for f := (Filter{Limit: 3}); ; {
		letters, more, err := b.Read(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range slices.Backward(letters) {
			keys = append(keys, l.Key)
		}
		if !more {
			break
		}
		if f.Before, err = ParsePosition(letters[0].Position().String()); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(keys); got != "[6 5 4 3 2 1 0]" {
		t.Error(got)
	}
	for _, text := range []string{"", "x", "1/payments.parked", "x/payments.parked/0/1", "1/payments.parked/0/x"} {
		if _, err := ParsePosition(text); err == nil {
			t.Errorf("%q is a position", text)
		}
	}
	if _, _, err := b.Read(t.Context(), Filter{Names: []string{"nobody"}}); !errors.Is(err, ErrNoLetter) {
		t.Error(err)
	}
}

// An event may be remembered without its data, and the reasons for which it can't be sent are known.
func TestARedriveReadsTheWholeEvent(t *testing.T) {
	plain, producer, _ := box(t)
	b, _ := remembering(plain, 100)
	e := request(t, b, "a")
	if err := e.SetData("application/json", []byte(`{"k":"forged"}`)); err != nil {
		t.Fatal(err)
	}
	fail(t, b, producer, e, 403, b.Kafka.ParkedTopic)
	l := all(t, b, Filter{})[0]
	if err := b.Redrive(t.Context(), producer, l, Order{Operator: "ayu"}); !errors.Is(err, ErrUnsigned) {
		t.Error(err)
	}
	if n := len(sent(t, b, 0)); n != 0 {
		t.Errorf("%d events were sent", n)
	}
	l.Copies[0].Place = kafka.Place{Topic: b.Kafka.ParkedTopic, Offset: 1}
	park(t, b, producer, "b") // at that place
	if err := b.Redrive(t.Context(), producer, l, Order{Operator: "ayu"}); !errors.Is(err, ErrNoLetter) {
		t.Error(err)
	}
}
