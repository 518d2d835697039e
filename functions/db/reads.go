package db

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/batch"
)

const (
	// maxRows and maxLists are how many reads run at once: of one row, and those that look through many.
	maxRows, maxLists = 3, 3
	// maxWaitingRows and maxWaitingLists are how many there may be, those that run included.
	maxWaitingRows, maxWaitingLists = 256, 64
	// readWithin bounds one of them, its wait included.
	readWithin = 5 * time.Second
)

// reads are what clients look at. They have connections of their own, so that however many there are, no payment waits for
// one of them; and neither kind waits for the other.
type reads struct {
	pool        *pgxpool.Pool // of maxRows + maxLists
	rows, lists *readers
}

func newReads(pool *pgxpool.Pool, within time.Duration) *reads {
	return &reads{pool, newReaders(maxRows, maxWaitingRows, within), newReaders(maxLists, maxWaitingLists, within)}
}

// readers are reads of one kind.
type readers struct {
	running chan struct{} // holds as many as run
	most    int64
	there   atomic.Int64 // those that run, and those that wait for it
	within  time.Duration
}

func newReaders(running int, most int64, within time.Duration) *readers {
	return &readers{running: make(chan struct{}, running), most: most, within: within}
}

// run does one read. It ends with ctx, which is how a client that hangs up has its query cancelled.
func (r *readers) run(ctx context.Context, read func(context.Context) error) error {
	defer r.there.Add(-1)
	if r.there.Add(1) > r.most {
		return fmt.Errorf("reads: %w", batch.ErrFull)
	}
	ctx, cancel := context.WithTimeout(ctx, r.within)
	defer cancel()
	select {
	case r.running <- struct{}{}:
		defer func() { <-r.running }()
	case <-ctx.Done():
		return ctx.Err()
	}
	err := read(ctx)
	if err != nil && ctx.Err() != nil {
		return ctx.Err() // rather than the server's word for a statement that was cancelled
	}
	return err
}
