package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/payment"
)

// The limits of one report of activity.
const (
	// MaxActivity is the most payments that a report counts. Counting them takes about a second. A
	// busier system has Prometheus, which counts as it goes.
	MaxActivity = 200_000
	// MaxBuckets is the most buckets of a report.
	MaxBuckets = 2_000
)

// TooManyError means that a range has more payments than a report counts.
type TooManyError struct{ Limit int }

func (e *TooManyError) Error() string {
	return fmt.Sprintf("the range has more than %d payments, which is the most that the ledger counts at once: ask for a shorter range", e.Limit)
}

// Bucket counts the payments that were reserved in one step of a range.
type Bucket struct {
	At                       time.Time // the start of the step
	Success, Failed, Pending int64
	// P50 and P99 are the times from the acceptance of a payment until its decision. They are zero
	// if no payment was decided.
	P50, P99 time.Duration
}

// Activity is the counts of a range of time.
type Activity struct {
	Buckets []Bucket // one for each step, the oldest first
	Reasons map[payment.Reason]int64
}

// ActivityOf selects the payments of a report.
type ActivityOf struct {
	From, To time.Time // payments of To do not belong to it
	Step     time.Duration
}

func (of ActivityOf) check() error {
	bad := func(field, problem string) error {
		return &InvalidError{&payment.FieldError{Field: field, Problem: problem}}
	}
	switch {
	case of.From.IsZero() || of.From.Unix() < 0:
		return bad("from", "is missing or before 1970")
	case !of.To.After(of.From):
		return bad("to", "must be later than from")
	case of.Step < time.Second:
		return bad("step", "must be at least a second")
	case of.buckets() > MaxBuckets:
		return bad("step", fmt.Sprintf("makes %d steps of the range; at most %d", of.buckets(), MaxBuckets))
	}
	return nil
}

// buckets is the number of steps of the range. The last one may be shorter than the others.
func (of ActivityOf) buckets() int64 {
	return int64((of.To.Sub(of.From)-1)/of.Step) + 1
}

const (
	// The primary keys are ordered by time, so this reads only the range.
	activeSQL = `
SELECT count(*) FROM (
	SELECT 1 FROM reservations WHERE reservation_id >= $1 AND reservation_id < $2 ORDER BY reservation_id LIMIT $3
) active`

	// Both primary keys are walked side by side: a lookup for each payment would take longer.
	walkBothSQL = `SET LOCAL enable_mergejoin = on; SET LOCAL enable_nestloop = off; SET LOCAL enable_bitmapscan = off`

	// An authorized payment takes as long as its client lets it wait, so its time is not counted.
	// The first rows have the counts of the buckets, and no reason. The others have the counts of the
	// reasons. A refund is not counted as a payment.
	activitySQL = `
WITH active AS MATERIALIZED (
	SELECT floor((` + idTimeSQL + ` - $3::float8) / $4::float8)::int AS bucket, r.status, p.reason,
		CASE WHEN p.decided_at IS NOT NULL AND r.hold_seconds IS NULL THEN greatest(extract(epoch FROM p.decided_at - coalesce(r.accepted_at, r.created_at))::float8, 0) END AS took
	FROM reservations r
	LEFT JOIN payments p ON p.payment_id = r.reservation_id AND p.idempotency_key = r.idempotency_key AND p.payment_id >= $1 AND p.payment_id < $2
	WHERE r.reservation_id >= $1 AND r.reservation_id < $2 AND r.parent_id IS NULL
)
SELECT bucket, '', count(*) FILTER (WHERE status = 'COMMITTED'), count(*) FILTER (WHERE status = 'ROLLEDBACK'),
	count(*) FILTER (WHERE status = 'PENDING'), coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY took), 0),
	coalesce(percentile_cont(0.99) WITHIN GROUP (ORDER BY took), 0)
FROM active GROUP BY bucket
UNION ALL
SELECT 0, reason, 0, count(*), 0, 0, 0 FROM active WHERE status = 'ROLLEDBACK' AND reason IS NOT NULL GROUP BY reason`

	// idTimeSQL is the time of a reservation's id, in seconds.
	idTimeSQL = `(('x0000' || left(replace(r.reservation_id::text, '-', ''), 12))::bit(64)::bigint / 1000.0::float8)`
)

// Activity counts the payments of a range. It returns a TooManyError if there are more than
// MaxActivity, an InvalidError if the range can't be counted, and ErrFull if too many reports wait.
func (l *Ledger) Activity(ctx context.Context, of ActivityOf) (a Activity, err error) {
	return l.activity(ctx, of, MaxActivity)
}

func (l *Ledger) activity(ctx context.Context, of ActivityOf, most int) (a Activity, err error) {
	if err := of.check(); err != nil {
		return a, err
	}
	err = l.reads.reports.run(ctx, func(ctx context.Context) error {
		return l.reads.snapshot(ctx, func(ctx context.Context, tx pgx.Tx) error {
			a, err = readActivity(ctx, tx, of, most)
			return err
		})
	})
	if err != nil {
		return Activity{}, fmt.Errorf("count payments: %w", err)
	}
	return a, nil
}

func readActivity(ctx context.Context, tx pgx.Tx, of ActivityOf, most int) (a Activity, err error) {
	first, end := firstID(of.From), firstID(of.To)
	if of.To.After(of.To.Truncate(time.Millisecond)) {
		end = firstID(of.To.Add(time.Millisecond)) // ids have milliseconds
	}
	var found int
	if err := tx.QueryRow(ctx, activeSQL, first, end, most+1).Scan(&found); err != nil {
		return a, err
	}
	if found > most {
		return a, &TooManyError{most}
	}
	if _, err := tx.Exec(ctx, walkBothSQL); err != nil {
		return a, err
	}
	return countActivity(ctx, tx, of, first, end)
}

func countActivity(ctx context.Context, tx pgx.Tx, of ActivityOf, first, end uuid.UUID) (a Activity, err error) {
	a = Activity{Buckets: make([]Bucket, of.buckets()), Reasons: map[payment.Reason]int64{}}
	for i := range a.Buckets {
		a.Buckets[i].At = of.From.Add(time.Duration(i) * of.Step)
	}
	from := float64(of.From.UnixMilli()) / 1000
	rows, err := tx.Query(ctx, activitySQL, first, end, from, of.Step.Seconds())
	if err != nil {
		return a, err
	}
	var at int
	var reason payment.Reason
	var b Bucket
	var p50, p99 float64
	_, err = pgx.ForEachRow(rows, []any{&at, &reason, &b.Success, &b.Failed, &b.Pending, &p50, &p99}, func() error {
		if reason != "" {
			a.Reasons[reason] = b.Failed
			return nil
		}
		at = min(max(at, 0), len(a.Buckets)-1)
		b.At, b.P50, b.P99 = a.Buckets[at].At, seconds(p50), seconds(p99)
		a.Buckets[at] = b
		return nil
	})
	return a, err
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
