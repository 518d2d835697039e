package postgres_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"pgw/shared/postgres"
)

// While the database is away, callers do not wait for each other's loads one after the other.
func TestWhoWaitsForALoadSharesItsError(t *testing.T) {
	const callers = 50
	broken := errors.New("away")
	var loads atomic.Int32
	begun, release := make(chan struct{}, callers), make(chan struct{})
	c := postgres.NewCached(func(context.Context) (int, error) {
		loads.Add(1)
		begun <- struct{}{}
		<-release
		return 0, broken
	}, slog.New(slog.DiscardHandler))
	var all sync.WaitGroup
	asked := make(chan struct{}, callers)
	ask := func() {
		asked <- struct{}{}
		if _, err := c.Get(context.Background()); !errors.Is(err, broken) {
			t.Errorf("Get: %v", err)
		}
	}
	all.Go(ask)
	<-begun
	for range callers - 1 {
		all.Go(ask)
	}
	for range callers {
		<-asked
	}
	// Who gives up does not wait for the others' load.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Get(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up: %v", err)
	}
	close(release)
	all.Wait()
	// A caller may be descheduled between saying that it asks and asking; a few may need a load more.
	if n := loads.Load(); n > callers/2 {
		t.Errorf("%d loads for %d callers", n, callers)
	}
}
