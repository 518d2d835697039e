package db

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/payment"
)

const (
	sweepBatch = 200 // reservations in one transaction
	maxSwept   = 50_000
	// clockSkew is how far apart the clocks of db's replicas and of Postgres may be.
	clockSkew = time.Minute
)

// Sweep implements db.v1.Admin.
func (d *DB) Sweep(ctx context.Context, _ *dbv1.SweepRequest) (*dbv1.SweepResponse, error) {
	rolledBack, told, err := d.sweep(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	return &dbv1.SweepResponse{RolledBack: uint32(rolledBack), Told: uint32(told)}, nil
}

const (
	// The primary key is ordered by time, so this reads only what came after the mark of the last sweep:
	// an index on the status would cost every payment more than this costs each minute.
	unfinishedSQL = `
SELECT reservation_id, status = 'PENDING', status = 'PENDING' AND deadline < clock_timestamp(), created_at, amount_idr
FROM reservations
WHERE reservation_id >= $1 AND (status = 'PENDING' OR untold)
ORDER BY reservation_id LIMIT $2`

	untoldSQL = `
SELECT r.idempotency_key, r.reservation_id, r.fingerprint, r.attempt_id, r.status, p.reason
FROM reservations r JOIN payments p ON p.payment_id = r.reservation_id
WHERE r.reservation_id = ANY($1::uuid[]) AND r.untold`

	toldSQL = `UPDATE reservations r SET untold = false FROM unnest($1::uuid[]) AS c(id) WHERE r.reservation_id = c.id`

	markSQL = `UPDATE sweep_state SET swept_to = greatest(swept_to, $1)`
)

// unfinished is a reservation that holds money, or whose end is still to be told.
type unfinished struct {
	id      pgtype.UUID
	pending bool
	overdue bool
	created time.Time
	amount  int64
}

// sweep rolls back what is past its deadline, and publishes the outcomes. A crash in between leaves them
// marked untold, and the next sweep publishes them: at least once, with the same event id.
func (d *DB) sweep(ctx context.Context) (rolledBack, told int, err error) {
	defer func() {
		result := "ok"
		if err != nil {
			err = fmt.Errorf("sweep: %w", err)
			result = "error"
		}
		d.metrics.sweeps.WithLabelValues(result).Inc()
		d.metrics.swept.Add(float64(rolledBack))
		d.metrics.told.Add(float64(told))
		if rolledBack > 0 {
			d.log.WarnContext(ctx, "swept reservations past their deadline", "rolled_back", rolledBack, "told", told)
		}
	}()
	var mark time.Time
	if err := d.pool.QueryRow(ctx, `SELECT swept_to FROM sweep_state`).Scan(&mark); err != nil {
		return 0, 0, err
	}
	// No hold lives longer than DecideWithin, so nothing made before this can become PENDING any more.
	finished := d.now().Add(-payment.DecideWithin - clockSkew)
	open, err := d.unfinished(ctx, mark.Add(-clockSkew))
	if err != nil {
		return 0, 0, err
	}
	if len(open) == maxSwept {
		finished = minTime(finished, open[maxSwept-1].created) // the next sweep goes on from there
	}
	var overdue, untold []pgtype.UUID
	var oldest time.Time
	var pending, held int64
	for _, u := range open {
		switch {
		case u.overdue:
			overdue = append(overdue, u.id)
		case u.pending:
			pending++
			held += u.amount
			if oldest.IsZero() {
				oldest = u.created
			}
		default:
			untold = append(untold, u.id)
		}
	}
	for ids := range slices.Chunk(overdue, sweepBatch) {
		done, err := d.rollBackOverdue(ctx, ids)
		if err != nil {
			return rolledBack, told, err
		}
		rolledBack += len(done)
		untold = append(untold, done...)
	}
	// Whoever locks reservations does so in the order of their ids.
	slices.SortFunc(untold, func(a, b pgtype.UUID) int { return bytes.Compare(a.Bytes[:], b.Bytes[:]) })
	for ids := range slices.Chunk(untold, sweepBatch) {
		if err := d.tell(ctx, ids); err != nil {
			return rolledBack, told, err
		}
		told += len(ids)
	}
	d.metrics.pending.Set(float64(pending))
	d.metrics.pendingIDR.Set(float64(held))
	d.metrics.oldestPending.Set(0)
	if !oldest.IsZero() {
		d.metrics.oldestPending.Set(d.now().Sub(oldest).Seconds())
		finished = minTime(finished, oldest)
	}
	if _, err = d.pool.Exec(ctx, markSQL, finished); err == nil {
		d.metrics.lastSweep.Set(float64(d.now().Unix()))
	}
	return rolledBack, told, err
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (d *DB) unfinished(ctx context.Context, since time.Time) ([]unfinished, error) {
	rows, err := d.pool.Query(ctx, unfinishedSQL, pgtype.UUID{Bytes: firstID(since), Valid: true}, maxSwept)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (u unfinished, err error) {
		return u, row.Scan(&u.id, &u.pending, &u.overdue, &u.created, &u.amount)
	})
}

// rollBackOverdue uses the same compare-and-set as everyone else: what a commit took meanwhile stays
// committed, and is not among those returned.
func (d *DB) rollBackOverdue(ctx context.Context, ids []pgtype.UUID) ([]pgtype.UUID, error) {
	reasons := slices.Repeat([]string{string(payment.Expired)}, len(ids))
	return runTransaction(ctx, ids, func(ctx context.Context, ids []pgtype.UUID) ([]pgtype.UUID, error) {
		rows, err := d.pool.Query(ctx, rollBackSQL, ids, reasons, true)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[pgtype.UUID])
	})
}

func (d *DB) tell(ctx context.Context, ids []pgtype.UUID) error {
	rows, err := d.pool.Query(ctx, untoldSQL, ids)
	if err != nil {
		return err
	}
	claims := map[string]Claim{}
	for rows.Next() {
		var key string
		c, err := scanClaim(rows, &key)
		if err != nil {
			rows.Close()
			return err
		}
		claims[key] = c
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for key, c := range claims {
		e, err := event.Result("/pgw/db", event.PaymentResult{
			Key: key, Status: payment.Failed, Reason: c.Reason, AttemptID: c.AttemptID, SettledAt: d.now().UTC(),
		}, c.Fingerprint, d.now())
		if err == nil {
			err = d.cfg.Keys.Sign(&e)
		}
		if err == nil {
			err = d.publish.Publish(ctx, d.cfg.Kafka.ResultTopic, key, e)
		}
		if err != nil {
			return err
		}
	}
	_, err = d.pool.Exec(ctx, toldSQL, ids)
	return err
}

// firstID is the lowest UUIDv7 of a time.
func firstID(t time.Time) (id uuid.UUID) {
	var millis [8]byte
	binary.BigEndian.PutUint64(millis[:], uint64(max(0, t.UnixMilli())))
	copy(id[:6], millis[2:])
	return id
}
