package postgres_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgw/shared/postgres"
)

// While the database is away, callers do not wait for each other's loads one after the other.
func TestWhoWaitsForALoadSharesItsError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const callers = 50
		broken := errors.New("away")
		var loads atomic.Int32
		release := make(chan struct{})
		c := postgres.NewCached(func(context.Context) (int, error) {
			loads.Add(1)
			<-release
			return 0, broken
		}, slog.New(slog.DiscardHandler))
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				if _, err := c.Get(context.Background()); !errors.Is(err, broken) {
					t.Errorf("Get: %v", err)
				}
			})
		}
		synctest.Wait() // all of them wait for the load
		// Who gives up does not wait for the others' load.
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Get(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up: %v", err)
		}
		close(release)
		all.Wait()
		if n := loads.Load(); n != 1 {
			t.Errorf("%d loads for %d callers", n, callers)
		}
	})
}

// After Refresh the value is one that was read after the call. Those who call while a load is under way
// share the next one.
func TestRefreshReadsAfterTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const callers = 50
		var loads, written atomic.Int32
		release := make(chan struct{})
		c := postgres.NewCached(func(context.Context) (int32, error) {
			value := written.Load()
			loads.Add(1)
			<-release
			return value, nil
		}, slog.New(slog.DiscardHandler))
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := c.Get(context.Background()); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait() // this load has read 0
		written.Store(1)
		time.Sleep(time.Millisecond) // of the test's clock: the callers ask later than the load began
		for range callers {
			all.Go(func() {
				if err := c.Refresh(context.Background()); err != nil {
					t.Error(err)
				}
				if got, err := c.Get(context.Background()); got != 1 || err != nil {
					t.Errorf("after Refresh: %d, %v", got, err)
				}
			})
		}
		synctest.Wait() // all of them wait for the load under way
		close(release)
		all.Wait()
		if n := loads.Load(); n != 2 {
			t.Errorf("%d loads for %d callers", n, callers)
		}
	})
}
