package trace

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// An outage of thousands of requests is logged at once, then once a minute, and once when it is
// over.
func TestAnOutageIsToldOnceAndCounted(t *testing.T) {
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "since" {
			return slog.Attr{}
		}
		return a
	}}))
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	o := NewOutage(log, func() time.Time { return at }, "a function could not be asked", "function", "fx")
	gone := errors.New("gone")
	lines := func(what, want string) {
		t.Helper()
		if got := strings.TrimSpace(text.String()); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", what, got, want)
		}
		text.Reset()
	}
	ctx := context.Background()

	o.Note(ctx, nil)
	lines("it works", "")
	o.Note(ctx, gone, "event", "e1")
	lines("the first", `level=WARN msg="a function could not be asked" function=fx event=e1 error=gone`)
	for range 1000 {
		at = at.Add(59 * time.Millisecond)
		o.Note(ctx, gone)
		o.Note(ctx, nil) // some succeed: it is the same outage
	}
	lines("a thousand within a minute", "")
	at = at.Add(time.Second)
	o.Note(ctx, gone)
	lines("a minute later", `level=WARN msg="still: a function could not be asked" function=fx error=gone failures=1001`)
	o.Note(ctx, gone)
	at = at.Add(calmAfter)
	o.Note(ctx, nil)
	lines("it is over", `level=INFO msg="over: a function could not be asked" function=fx failures=1003 lasted=1m0s`)
	o.Note(ctx, nil)
	lines("it works again", "")
	o.Note(ctx, gone)
	lines("the next outage", `level=WARN msg="a function could not be asked" function=fx error=gone`)
}

// At level debug every failure is logged.
func TestEachFailureIsALineForWhoDebugs(t *testing.T) {
	var text bytes.Buffer
	o := NewOutage(slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug})), time.Now, "event put off")
	for range 5 {
		o.Note(context.Background(), errors.New("gone"))
	}
	if got := strings.Count(text.String(), "event put off"); got != 5 {
		t.Errorf("%d lines:\n%s", got, &text)
	}
}

func TestASuccessAllocatesNothing(t *testing.T) {
	o := NewOutage(slog.New(slog.DiscardHandler), time.Now, "event put off")
	if n := testing.AllocsPerRun(100, func() { o.Note(context.Background(), nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAnOutageHasAState(t *testing.T) {
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	o := NewOutage(slog.New(slog.DiscardHandler), func() time.Time { return at }, "fx could not be asked")
	is := func(what string, want State) {
		t.Helper()
		if got := o.State(); got != want {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	ctx, gone := context.Background(), errors.New("gone")
	is("before the first attempt", State{})
	begun := at
	o.Note(ctx, nil)
	at = at.Add(time.Hour)
	o.Note(ctx, nil)
	is("it works", State{Up: true, Since: begun})
	failed := at
	o.Note(ctx, errors.New("other"))
	at = at.Add(time.Second)
	o.Note(ctx, gone)
	o.Note(ctx, nil)
	is("some attempts fail", State{Since: failed, Err: gone})
	at = at.Add(calmAfter)
	o.Note(ctx, nil)
	is("it works again", State{Up: true, Since: at})

	o = NewOutage(slog.New(slog.DiscardHandler), func() time.Time { return at }, "fx could not be asked")
	o.Note(ctx, gone)
	is("it has never worked", State{Since: at, Err: gone})
}
