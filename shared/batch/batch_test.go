package batch

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
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

// While one batch is served the next one forms, up to Max; beyond Queue callers hear ErrFull.
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
		t.Fatalf("a lone call waited: first batch of %d", n)
	}
	for i := range 4 {
		do(i + 1)
	}
	for len(b.queue) < 4 { // the goroutines above enqueue; nothing takes
		runtime.Gosched()
	}
	if _, err := b.Do(t.Context(), 9); !errors.Is(err, ErrFull) {
		t.Fatalf("beyond the queue: %v", err)
	}
	release <- struct{}{}
	if n := <-started; n != 3 {
		t.Errorf("second batch of %d, want Max", n)
	}
	release <- struct{}{}
	if n := <-started; n != 1 {
		t.Errorf("third batch of %d, want the rest", n)
	}
	release <- struct{}{}
	wg.Wait()
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
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
		t.Fatalf("left: %v", err)
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
