package batch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
)

func double(_ context.Context, calls []int) []Result[int] {
	out := make([]Result[int], len(calls))
	for i, c := range calls {
		out[i].Value = 2 * c
	}
	return out
}

func TestEachCallGetsItsOwnResult(t *testing.T) {
	b := New(Config{Max: 8, Lanes: 2, Queue: 1000}, double)
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			if got, err := b.Do(t.Context(), i); err != nil || got != 2*i {
				t.Errorf("Do(%d) = %d, %v", i, got, err)
			}
		})
	}
	wg.Wait()
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Do(t.Context(), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// While one batch is served the next one forms, up to Max calls. Callers beyond Queue get ErrFull.
func TestBatchesFormWhileServing(t *testing.T) {
	started, release := make(chan int), make(chan struct{})
	b := New(Config{Max: 3, Lanes: 1, Queue: 4}, func(ctx context.Context, calls []int) []Result[int] {
		started <- len(calls)
		<-release
		return double(ctx, calls)
	})
	var wg sync.WaitGroup
	do := func(i int) {
		wg.Go(func() {
			if got, err := b.Do(t.Context(), i); err != nil || got != 2*i {
				t.Errorf("Do(%d) = %d, %v", i, got, err)
			}
		})
	}
	do(0)
	if n := <-started; n != 1 {
		t.Fatalf("a single call waited: the first batch has %d calls", n)
	}
	for i := range 4 {
		do(i + 1)
	}
	for len(b.queue) < 4 { // the goroutines above add to the queue, and no lane takes from it
		runtime.Gosched()
	}
	if _, err := b.Do(t.Context(), 9); !errors.Is(err, ErrFull) {
		t.Fatalf("beyond the queue: %v", err)
	}
	release <- struct{}{}
	if n := <-started; n != 3 {
		t.Errorf("the second batch has %d calls, want Max", n)
	}
	release <- struct{}{}
	if n := <-started; n != 1 {
		t.Errorf("the third batch has %d calls, want the rest", n)
	}
	release <- struct{}{}
	wg.Wait()
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Two calls made at the same time share a batch, also when no other batch is being served.
func TestCallsSideBySideShareABatch(t *testing.T) {
	// With one processor the order of the goroutines does not depend on the load of the machine.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const rounds = 100
	var batches int
	b := New(Config{Max: 8, Lanes: 1, Queue: 8}, func(ctx context.Context, calls []int) []Result[int] {
		batches++
		return double(ctx, calls)
	})
	for range rounds {
		var wg sync.WaitGroup
		wg.Go(func() { b.Do(t.Context(), 1) })
		b.Do(t.Context(), 2)
		wg.Wait()
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The scheduler may interrupt between any two calls, so allow a tenth more batches.
	if batches > rounds+rounds/10 {
		t.Errorf("%d batches for %d pairs of calls", batches, rounds)
	}
}

func TestCallerWhoLeftIsNotServed(t *testing.T) {
	started, release := make(chan []int, 2), make(chan struct{})
	b := New(Config{Max: 4, Lanes: 1, Queue: 4}, func(ctx context.Context, calls []int) []Result[int] {
		started <- append([]int(nil), calls...)
		<-release
		return double(ctx, calls)
	})
	var wg sync.WaitGroup
	wg.Go(func() { b.Do(t.Context(), 1) })
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { _, err := b.Do(ctx, 2); left <- err }()
	for len(b.queue) < 1 {
		runtime.Gosched()
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatalf("the caller that has gone: %v", err)
	}
	wg.Go(func() { b.Do(t.Context(), 3) })
	for len(b.queue) < 2 {
		runtime.Gosched()
	}
	close(release)
	if got := <-started; len(got) != 1 || got[0] != 3 {
		t.Errorf("served %v, want only 3", got)
	}
	wg.Wait()
	b.Close(t.Context())
}

func TestCloseCancelsWhatTakesTooLong(t *testing.T) {
	serving := make(chan struct{})
	b := New(Config{Max: 1, Lanes: 1, Queue: 1}, func(ctx context.Context, calls []int) []Result[int] {
		close(serving)
		<-ctx.Done()
		return []Result[int]{{Err: ctx.Err()}}
	})
	got := make(chan error)
	go func() { _, err := b.Do(context.Background(), 1); got <- err }()
	<-serving
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Close: %v", err)
	}
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("the call: %v", err)
	}
}

// A batch that panics fails all of its own calls and no others. The panic is logged once, and the
// lane continues.
func TestAPanicFailsItsBatchAlone(t *testing.T) {
	var said bytes.Buffer
	started, release := make(chan struct{}), make(chan struct{})
	b := New(Config{Max: 8, Lanes: 1, Queue: 8, Kind: "test", Log: slog.New(slog.NewTextHandler(&said, nil))}, func(ctx context.Context, calls []int) []Result[int] {
		if calls[0] == 0 {
			close(started)
			<-release
		}
		if slices.Contains(calls, 13) {
			panic("thirteen")
		}
		if slices.Contains(calls, 14) {
			return nil
		}
		return double(ctx, calls)
	})
	var wg sync.WaitGroup
	wg.Go(func() { b.Do(t.Context(), 0) })
	<-started
	failed := make(chan error, 3)
	for i := range 3 {
		wg.Go(func() { _, err := b.Do(t.Context(), 12+i%2); failed <- err })
	}
	for len(b.queue) < 3 {
		runtime.Gosched()
	}
	close(release)
	for range 3 {
		if err := <-failed; !errors.Is(err, ErrPanic) {
			t.Errorf("a call of the batch that panicked: %v", err)
		}
	}
	if got, err := b.Do(t.Context(), 5); err != nil || got != 10 {
		t.Errorf("a call after the panic: %d, %v", got, err)
	}
	wg.Wait()
	if n := strings.Count(said.String(), "thirteen"); n != 1 || !strings.Contains(said.String(), "batch_test.go") {
		t.Errorf("logged %d times, want once with its stack: %s", n, said.String())
	}
	if _, err := b.Do(t.Context(), 14); !errors.Is(err, ErrPanic) {
		t.Errorf("too few results: %v", err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A batch has its own time limit. The caller gets the error "outcome unknown", and not that its own
// deadline passed.
func TestABatchHasABound(t *testing.T) {
	first := true
	b := New(Config{Max: 1, Lanes: 1, Queue: 8, Timeout: time.Millisecond}, func(ctx context.Context, calls []int) []Result[int] {
		if first {
			first = false
			<-ctx.Done()
			return []Result[int]{{Err: fmt.Errorf("asked: %w", ctx.Err())}}
		}
		return double(ctx, calls)
	})
	if _, err := b.Do(t.Context(), 1); !errors.Is(err, ErrTimeout) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a batch that takes too long: %v", err)
	}
	if got, err := b.Do(t.Context(), 2); err != nil || got != 4 {
		t.Errorf("the next call: %d, %v", got, err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The metrics record the size, the longest wait and the duration of each batch, and the refused
// calls.
func TestBatchesAreMeasured(t *testing.T) {
	r := prometheus.NewRegistry()
	begun, release := make(chan struct{}, 1), make(chan struct{})
	b := New(Config{Max: 8, Lanes: 1, Queue: 3, Kind: "test", Registerer: r}, func(_ context.Context, calls []int) []Result[int] {
		begun <- struct{}{}
		<-release
		return make([]Result[int], len(calls))
	})
	var calls sync.WaitGroup
	call := func() { calls.Go(func() { b.Do(t.Context(), 1) }) }
	call()
	<-begun
	for range 3 {
		call()
	}
	for len(b.queue) < 3 {
		time.Sleep(time.Millisecond)
	}
	if _, err := b.Do(t.Context(), 1); !errors.Is(err, ErrFull) {
		t.Errorf("the fourth waiting call: %v", err)
	}
	want := `
# HELP pgw_batch_queue_length Calls that wait for a batch now.
# TYPE pgw_batch_queue_length gauge
pgw_batch_queue_length{kind="test"} 3
# HELP pgw_batch_queue_limit Calls that may wait for a batch; more are refused.
# TYPE pgw_batch_queue_limit gauge
pgw_batch_queue_limit{kind="test"} 3
# HELP pgw_batch_refused_total Calls refused because the queue was full.
# TYPE pgw_batch_refused_total counter
pgw_batch_refused_total{kind="test"} 1
`
	if err := testutil.GatherAndCompare(r, strings.NewReader(want), "pgw_batch_queue_length", "pgw_batch_queue_limit", "pgw_batch_refused_total"); err != nil {
		t.Error(err)
	}
	close(release)
	calls.Wait()
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := testutil.CollectAndFormat(b.metrics.size, expfmt.TypeTextPlain, "pgw_batch_size")
	if err != nil || !strings.Contains(string(text), `pgw_batch_size_sum{kind="test"} 4`) || !strings.Contains(string(text), `pgw_batch_size_count{kind="test"} 2`) {
		t.Errorf("%v: %s", err, text)
	}
	text, err = testutil.CollectAndFormat(b.metrics.wait, expfmt.TypeTextPlain, "pgw_batch_wait_seconds")
	if err != nil || !strings.Contains(string(text), `pgw_batch_wait_seconds_count{kind="test"} 2`) || strings.Contains(string(text), `_sum{kind="test"} 0`+"\n") {
		t.Errorf("%v: %s", err, text)
	}
}
