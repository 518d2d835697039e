package db

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/payment"
)

const (
	sweepBatch = 200
	// maxSweepBatches bounds one sweep; the next goes on.
	maxSweepBatches = 500
	// clockSkew is how far apart the clocks of db's replicas and of Postgres may be.
	clockSkew = 5 * time.Minute
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
	// The primary key is ordered by time, so this reads only what came after the last sweep.
	overdueSQL = `
SELECT reservation_id FROM reservations
WHERE reservation_id >= $1 AND status = 'PENDING' AND deadline < clock_timestamp()
ORDER BY reservation_id LIMIT $2`

	untoldSQL = `
SELECT r.idempotency_key, r.reservation_id, r.fingerprint, r.attempt_id, p.reason
FROM reservations r JOIN payments p ON p.payment_id = r.reservation_id
WHERE r.reservation_id >= $1 AND r.untold ORDER BY r.reservation_id LIMIT $2`

	toldSQL = `UPDATE reservations SET untold = false WHERE reservation_id = ANY($1::uuid[])`

	// What is PENDING or untold stays in front of the mark, however old it is.
	markSweptSQL = `
UPDATE sweep_state SET swept_to = greatest(swept_to, $1)
WHERE NOT EXISTS (
	SELECT FROM reservations
	WHERE reservation_id >= $2 AND created_at < $1 AND (status = 'PENDING' OR untold))`

	oldestPendingSQL = `
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
FROM reservations WHERE reservation_id >= $1 AND status = 'PENDING'`
)

// sweep rolls back what is past its deadline, and publishes the outcomes. A crash in between leaves them
// marked untold, and the next sweep publishes them: at least once, with the same event id.
func (d *DB) sweep(ctx context.Context) (rolledBack, told int, err error) {
	var mark time.Time
	if err := d.pool.QueryRow(ctx, `SELECT swept_to FROM sweep_state`).Scan(&mark); err != nil {
		return 0, 0, fmt.Errorf("sweep: %w", err)
	}
	from := pgtype.UUID{Bytes: firstID(mark.Add(-clockSkew)), Valid: true}
	for range maxSweepBatches {
		n, err := d.rollBackOverdue(ctx, from)
		if err != nil {
			return rolledBack, told, fmt.Errorf("sweep: %w", err)
		}
		rolledBack += n
		d.metrics.swept.Add(float64(n))
		m, err := d.tellSwept(ctx, from)
		if err != nil {
			return rolledBack, told, fmt.Errorf("sweep: %w", err)
		}
		told += m
		if n < sweepBatch && m < sweepBatch {
			break
		}
	}
	var oldest float64
	if err := d.pool.QueryRow(ctx, oldestPendingSQL, from).Scan(&oldest); err != nil {
		return rolledBack, told, fmt.Errorf("sweep: %w", err)
	}
	d.metrics.oldestPending.Set(oldest)
	// No hold lives longer than DecideWithin, so nothing older can become PENDING any more.
	done := d.now().Add(-payment.DecideWithin - clockSkew)
	if _, err := d.pool.Exec(ctx, markSweptSQL, done, from); err != nil {
		return rolledBack, told, fmt.Errorf("sweep: %w", err)
	}
	if rolledBack > 0 {
		d.log.WarnContext(ctx, "swept reservations past their deadline", "rolled_back", rolledBack, "told", told)
	}
	return rolledBack, told, nil
}

func (d *DB) rollBackOverdue(ctx context.Context, from pgtype.UUID) (int, error) {
	rows, err := d.pool.Query(ctx, overdueSQL, from, sweepBatch)
	if err != nil {
		return 0, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[pgtype.UUID])
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	reasons := make([]string, len(ids))
	for i := range reasons {
		reasons[i] = string(payment.Expired)
	}
	// The same compare-and-set as everyone else's: what a commit took meanwhile stays committed.
	done, err := runTransaction(ctx, ids, func(ctx context.Context, ids []pgtype.UUID) ([]uuid.UUID, error) {
		var done []uuid.UUID
		b := &pgx.Batch{}
		b.Queue(lockFinishingSQL, []pgtype.UUID{}, ids)
		b.Queue(rollBackSQL, ids, reasons, true).Query(func(rows pgx.Rows) (err error) {
			done, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
			return err
		})
		return done, d.pool.SendBatch(ctx, b).Close()
	})
	return len(done), err
}

func (d *DB) tellSwept(ctx context.Context, from pgtype.UUID) (int, error) {
	rows, err := d.pool.Query(ctx, untoldSQL, from, sweepBatch)
	if err != nil {
		return 0, err
	}
	type untold struct {
		key   string
		claim Claim
	}
	waiting, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (u untold, err error) {
		var fingerprint []byte
		err = row.Scan(&u.key, &u.claim.ReservationID, &fingerprint, &u.claim.AttemptID, &u.claim.Reason)
		copy(u.claim.Fingerprint[:], fingerprint)
		return u, err
	})
	if err != nil {
		return 0, err
	}
	var told []pgtype.UUID
	for _, u := range waiting {
		e, err := event.Result("/pgw/db", event.PaymentResult{
			Key: u.key, Status: payment.Failed, Reason: u.claim.Reason,
			AttemptID: u.claim.AttemptID, SettledAt: d.now().UTC(),
		}, u.claim.Fingerprint, d.now())
		if err != nil {
			return 0, err
		}
		if err := d.cfg.Keys.Sign(&e); err != nil {
			return 0, err
		}
		if err := d.publish.Publish(ctx, d.cfg.Kafka.ResultTopic, u.key, e); err != nil {
			return 0, err
		}
		told = append(told, pgtype.UUID{Bytes: u.claim.ReservationID, Valid: true})
	}
	if len(told) == 0 {
		return 0, nil
	}
	_, err = d.pool.Exec(ctx, toldSQL, told)
	return len(told), err
}

// firstID is the lowest UUIDv7 of a time.
func firstID(t time.Time) (id [16]byte) {
	var millis [8]byte
	binary.BigEndian.PutUint64(millis[:], uint64(max(0, t.UnixMilli())))
	copy(id[:6], millis[2:])
	return id
}
