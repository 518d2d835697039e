package ledger

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/batch"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

const (
	// maxFinds, maxRows, maxLists, maxBooks and maxReports are the most reads that run at once: batches of
	// reads of one payment, reads of another row, reads that search many rows, reads of the books, which
	// may add up millions of rows, and reports of activity, which count up to MaxActivity payments.
	maxFinds, maxRows, maxLists, maxBooks, maxReports = 2, 2, 3, 2, 1
	// maxFound is the most payments that are read by one batch. Its reads follow each other.
	maxFound = 16
	// These are the most reads of each kind that run or wait.
	maxWaitingFinds, maxWaitingRows, maxWaitingLists, maxWaitingBooks, maxWaitingReports = 256, 256, 64, 64, 16
	// readTimeout is the time limit of a read, including its wait. A read of the books may take
	// booksTimes as long.
	readTimeout = 5 * time.Second
	booksTimes  = 6

	// maxReads is the most reads of all kinds that run at once.
	maxReads = maxFinds + maxRows + maxLists + maxBooks + maxReports
)

// reads are the clients' reads. They have their own connections, so that no payment waits for them.
// The kinds do not wait for each other either.
type reads struct {
	pool                        *pgxpool.Pool     // of the primary, with maxReads connections
	from                        *postgres.Readers // for lists and reports, which may be a little behind
	rows, lists, books, reports *readers
	// finds reads payments. finding are its callers, who leave it when they hang up.
	finds   *batch.Batcher[find, *payment.Record]
	finding *readers
}

func newReads(from *postgres.Readers, within time.Duration) *reads {
	r := &reads{
		pool: from.Primary(), from: from, finding: newReaders(maxWaitingFinds, maxWaitingFinds, within),
		rows: newReaders(maxRows, maxWaitingRows, within), lists: newReaders(maxLists, maxWaitingLists, within),
		books: newReaders(maxBooks, maxWaitingBooks, booksTimes*within), reports: newReaders(maxReports, maxWaitingReports, within),
	}
	// The queue also has the finds whose callers have left, until a lane skips them.
	bounds := batch.Config{Max: maxFound, Lanes: maxFinds, Queue: 8 * maxWaitingFinds, Timeout: within, Kind: "find"}
	r.finds = batch.New(bounds, together(r.pool, nil, find.queue))
	return r
}

// close ends the reads of payments, at the latest when ctx ends, and closes the connections.
func (r *reads) close(ctx context.Context) error {
	defer r.from.Close()
	return r.finds.Close(ctx)
}

// find is the read of one payment: a recordForm, and its arguments.
type find struct {
	statement *form
	by        []any
}

// queue reads the payment. found stays nil if there is none.
func (f find) queue(b *pgx.Batch, found **payment.Record) {
	f.statement.queue(b, f.by...).Query(func(rows pgx.Rows) error {
		*found = nil
		all, err := pgx.CollectRows(rows, scanRecord)
		if err == nil && len(all) > 0 {
			*found = &all[0]
		}
		return err
	})
}

// behindWithin is the time limit of a list or a report at a standby. After it, the primary makes it.
const behindWithin = 2 * time.Second

// snapshot runs a list or a report in a transaction at the standby, if there is one, or at the primary.
func (r *reads) snapshot(ctx context.Context, read func(context.Context, pgx.Tx) error) error {
	_, err := r.from.Read(ctx, behindWithin, func(ctx context.Context, q postgres.Queries) error {
		return pgx.BeginTxFunc(ctx, q, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error { return read(ctx, tx) })
	})
	return err
}

// readers are the reads of one kind, or the writes of a kind that must leave connections to others.
type readers struct {
	running chan struct{} // has one element for each read that runs
	most    int64
	there   atomic.Int64 // the reads that run or wait
	within  time.Duration
}

func newReaders(running int, most int64, within time.Duration) *readers {
	return &readers{running: make(chan struct{}, running), most: most, within: within}
}

// run does one read. The read ends with ctx, so a client that hangs up cancels its query.
func (r *readers) run(ctx context.Context, read func(context.Context) error) error {
	defer r.there.Add(-1)
	if r.there.Add(1) > r.most {
		return fmt.Errorf("reads: %w", ErrFull)
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
		return ctx.Err() // instead of the server's error for a cancelled statement
	}
	return err
}
