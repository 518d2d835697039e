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
	// maxFound is the most payments that are read by one batch.
	maxFound = 64
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
	finds                       *batch.Batcher[find, payment.Record]
	findWithin                  time.Duration // the time limit of one payment's read, including its wait
	rows, lists, books, reports *readers
}

func newReads(from *postgres.Readers, within time.Duration) *reads {
	r := &reads{
		pool: from.Primary(), from: from, findWithin: within,
		rows: newReaders(maxRows, maxWaitingRows, within), lists: newReaders(maxLists, maxWaitingLists, within),
		books: newReaders(maxBooks, maxWaitingBooks, booksTimes*within), reports: newReaders(maxReports, maxWaitingReports, within),
	}
	r.finds = batch.New(batch.Config{Max: maxFound, Lanes: maxFinds, Queue: maxWaitingFinds, Timeout: within, Kind: "find"}, r.findAll)
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

// findAll reads payments by one transaction. It tells none of them if the commit fails, because a
// standby may lack what was read then (postgres.ReplicatedSQL).
func (r *reads) findAll(ctx context.Context, finds []find) []batch.Result[payment.Record] {
	results, b := make([]batch.Result[payment.Record], len(finds)), &pgx.Batch{}
	for i, f := range finds {
		f.statement.queue(b, f.by...).Query(func(rows pgx.Rows) error {
			results[i].Value, results[i].Err = pgx.CollectExactlyOneRow(rows, scanRecord)
			return nil // a payment that is not there does not concern the others
		})
	}
	if err := r.pool.SendBatch(ctx, b).Close(); err != nil {
		for i := range results {
			results[i] = batch.Result[payment.Record]{Err: err}
		}
	}
	return results
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
