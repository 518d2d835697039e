package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"pgw/shared/batch"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

const (
	sweepBatch = 200       // reservations in one transaction
	sweepPage  = 20_000    // reservations that one statement reads, so that no statement takes long
	maxSwept   = 50_000    // a sweep stops its search after this many unfinished reservations
	maxLooked  = 2_000_000 // the most reservations that a sweep reads; the next sweep continues from there
	// clockStep is how far the database's clock may be set back, by a person or a failover, before
	// a sweep misses reservations. The ids of reservations and the mark depend on no other clock.
	clockStep = time.Minute
)

const (
	markedSQL = `SELECT swept_to, clock_timestamp() FROM sweep_state`

	// The primary key is ordered by time, so this reads only the reservations after the mark of the
	// last sweep. An index on the status would cost every payment more than this costs each minute.
	// The result also contains the last row of a full page, whatever its state. It passes over authorized
	// payments, so the mark does not wait for them: expiredSQL finds those. A wallet hold is short.
	unfinishedSQL = `
WITH page AS MATERIALIZED (
	SELECT reservation_id, status, untold, deadline, amount_idr,
		authorized_minor IS NOT NULL AND receiver_id <> '` + payment.SettlementAccount + `' AS authorized
	FROM reservations WHERE reservation_id > $1 ORDER BY reservation_id LIMIT $2
), last AS (
	SELECT reservation_id FROM page ORDER BY reservation_id OFFSET $2 - 1 LIMIT 1
)
SELECT reservation_id, status = 'PENDING' AND NOT authorized, status = 'PENDING' AND NOT authorized AND deadline < clock_timestamp(),
	untold AND NOT authorized, amount_idr,
	coalesce(reservation_id = (SELECT reservation_id FROM last), false)
FROM page
WHERE NOT authorized AND (status = 'PENDING' OR untold) OR reservation_id = (SELECT reservation_id FROM last)
ORDER BY reservation_id`

	// What is read is published.
	untoldSQL = `
SELECT ` + claimColumns + `, r.parent_id
FROM reservations r JOIN payments p ON p.payment_id = r.reservation_id AND p.idempotency_key = r.idempotency_key
WHERE r.reservation_id = ANY($1::uuid[]) AND r.untold AND ` + postgres.ReplicatedSQL

	expiredSQL = `
SELECT expires_at, reservation_id FROM authorizations
WHERE expires_at < $1 AND (expires_at, reservation_id) > ($2, $3)
ORDER BY expires_at, reservation_id LIMIT $4`

	forgetSQL = `DELETE FROM authorizations WHERE expires_at < $1 AND reservation_id = ANY($2::uuid[])`

	// It reads a narrow table of the payments that are on hold, and stops after $1 of them.
	authorizedSQL = `
SELECT count(*), coalesce(sum(amount_idr), 0)::bigint FROM (SELECT amount_idr FROM authorizations LIMIT $1) a`

	// The mark only rises. The exception is a mark in the future, which would hide holds for ever.
	markSQL = `UPDATE sweep_state SET swept_to = $1 WHERE swept_to < $1 OR swept_to > statement_timestamp()`

	sweptSQL = `UPDATE sweep_state SET swept_at = $1, pending = $2, held_idr = $3, oldest_pending_at = $4`
)

var toldSQL = &form{
	one: `
WITH held AS MATERIALIZED (
	SELECT reservation_id FROM reservations WHERE reservation_id = ANY($1::uuid[]) AND untold ORDER BY reservation_id FOR NO KEY UPDATE
)
UPDATE reservations r SET untold = false FROM held h WHERE r.reservation_id = h.reservation_id`,
	rows: `UPDATE reservations SET untold = false WHERE reservation_id = ANY($1::uuid[]) AND untold`,
}

// unfinished is a reservation that holds money, or whose result is not published yet.
type unfinished struct {
	id          pgtype.UUID
	pending     bool
	overdue     bool
	unpublished bool
	amount      int64
	last        bool // the last row of a full page
}

// authorization is a row of authorizations: a payment that is on hold until it is captured.
type authorization struct {
	ExpiresAt pgtype.Timestamptz
	ID        pgtype.UUID
}

// Swept is the result of a sweep.
type Swept struct {
	RolledBack int // reservations past their deadline
	Expired    int // authorized payments that nobody captured in time
	Published  int // results that were published, from this sweep and from earlier ones

	At      time.Time // when the sweep began; zero: the sweep did not complete, and the fields below are not set
	Pending int64     // reservations that hold money, authorized payments too
	HeldIDR int64     // what they hold
	Oldest  time.Time // when the oldest of them was made that is not authorized; zero when there is none
}

// Publish publishes the result of a reservation that a sweep has rolled back. at is when the sweep
// began.
type Publish func(ctx context.Context, c Claim, at time.Time) error

// Sweep rolls back the reservations that are past their deadline and the authorized payments that nobody
// captured in time, and publishes their results.
// After an error, swept has the part that was done. A reservation stays marked until its result is
// published. After a crash, the next sweep publishes the result, so each result is published at
// least once.
func (l *Ledger) Sweep(ctx context.Context, publish Publish) (swept Swept, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("sweep: %w", err)
		}
	}()
	var mark, now time.Time
	if err := l.pool.QueryRow(ctx, markedSQL).Scan(&mark, &now); err != nil {
		return swept, err
	}
	if mark.After(now) {
		l.log.WarnContext(ctx, "the mark of the last sweep lies in the future: the sweep reads all reservations again", "mark", mark, "now", now)
		mark = time.Unix(0, 0)
	}
	// No hold that is not an authorized payment's lives longer than DecideWithin, so no reservation made
	// before this time can still become PENDING.
	finished := now.Add(-payment.DecideWithin - clockStep)
	open, looked, err := l.unfinished(ctx, firstID(minTime(mark, finished).Add(-clockStep)))
	if err != nil {
		return swept, err
	}
	if looked != uuid.Nil {
		finished = minTime(finished, timeOf(looked)) // the next sweep continues from there
	}
	var overdue, unpublished []pgtype.UUID
	amounts := make(map[pgtype.UUID]int64, len(open))
	var oldest time.Time
	var pending, held int64
	holds := func(id pgtype.UUID) {
		pending++
		held += amounts[id]
		if at := timeOf(id.Bytes); oldest.IsZero() || at.Before(oldest) {
			oldest = at
		}
	}
	for _, u := range open {
		amounts[u.id] = u.amount
		switch {
		case u.overdue:
			overdue = append(overdue, u.id)
		case u.pending:
			holds(u.id)
		default:
			unpublished = append(unpublished, u.id)
		}
	}
	for ids := range slices.Chunk(overdue, sweepBatch) {
		done, left, err := l.rollBackOverdue(ctx, ids, payment.Expired)
		if err != nil {
			return swept, err
		}
		swept.RolledBack += len(done)
		unpublished = append(unpublished, done...)
		for _, id := range left {
			holds(id)
		}
	}
	// Reservations are always locked in the order of their ids.
	slices.SortFunc(unpublished, func(a, b pgtype.UUID) int { return bytes.Compare(a.Bytes[:], b.Bytes[:]) })
	for ids := range slices.Chunk(unpublished, sweepBatch) {
		published, err := l.publish(ctx, ids, now, publish)
		swept.Published += published
		if err != nil {
			return swept, err
		}
	}
	expired, published, err := l.endExpired(ctx, now, publish)
	swept.Expired, swept.Published = expired, swept.Published+published
	if err != nil {
		return swept, err
	}
	var authorized, authorizedIDR int64
	if err := l.pool.QueryRow(ctx, authorizedSQL, maxLooked).Scan(&authorized, &authorizedIDR); err != nil {
		return swept, err
	}
	swept.At, swept.Pending, swept.HeldIDR, swept.Oldest = now, pending+authorized, held+authorizedIDR, oldest
	if !oldest.IsZero() {
		finished = minTime(finished, oldest)
	}
	if _, err = l.pool.Exec(ctx, markSQL, finished); err == nil {
		l.noteSweep(ctx, swept)
	}
	return swept, err
}

// noteSweep keeps what a sweep found, for ReadStanding. A sweep is complete without it.
func (l *Ledger) noteSweep(ctx context.Context, swept Swept) {
	if _, err := l.pool.Exec(ctx, sweptSQL, swept.At, swept.Pending, swept.HeldIDR, timestamp(swept.Oldest)); err != nil {
		l.log.WarnContext(ctx, "operators can't see what the sweep found: run pgw migrate --roles", "error", err)
	}
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// unfinished finds unfinished reservations page by page, starting at an id. looked is the last
// reservation that it read, or uuid.Nil if there are no more.
func (l *Ledger) unfinished(ctx context.Context, from uuid.UUID) (found []unfinished, looked uuid.UUID, err error) {
	looked = from
	for range maxLooked / sweepPage {
		rows, err := l.pool.Query(ctx, unfinishedSQL, pgUUID(looked), sweepPage)
		if err != nil {
			return nil, uuid.Nil, err
		}
		looked = uuid.Nil
		var u unfinished
		_, err = pgx.ForEachRow(rows, []any{&u.id, &u.pending, &u.overdue, &u.unpublished, &u.amount, &u.last}, func() error {
			if u.last {
				looked = u.id.Bytes
			}
			if u.pending || u.unpublished {
				found = append(found, u)
			}
			return nil
		})
		if err != nil {
			return nil, uuid.Nil, err
		}
		if looked == uuid.Nil || len(found) >= maxSwept {
			break
		}
	}
	return found, looked, nil
}

// rollBackOverdue uses the same compare-and-set as every rollback. A reservation that was committed
// meanwhile stays committed, and is not returned. left are those that the next sweep has to try again:
// they are locked, or the database refuses what a rollback would write, because a balance is broken. A
// broken balance must not stop the sweep of all others.
func (l *Ledger) rollBackOverdue(ctx context.Context, ids []pgtype.UUID, reason payment.Reason) (done, left []pgtype.UUID, err error) {
	calls := make([]Finish, len(ids))
	for i, id := range ids {
		calls[i] = Finish{ReservationID: id.Bytes, RollBack: reason}
	}
	rollBack := servePatiently(l, serve(func(ctx context.Context, calls []Finish) ([]Finished, error) {
		return l.finish(ctx, calls, bySweep, false)
	}), func(ctx context.Context, calls []Finish) ([]batch.Result[Finished], error) {
		return l.finishAround(ctx, calls, bySweep)
	})
	for i, r := range rollBack(ctx, calls) {
		switch {
		case errors.Is(r.Err, ErrLocked):
			left = append(left, ids[i])
		case postgres.BadData(r.Err):
			left = append(left, ids[i])
			l.log.ErrorContext(ctx, "a hold past its deadline can't be rolled back: run pgw reconcile", "reservation", calls[i].ReservationID, "error", r.Err)
		case r.Err != nil:
			return nil, nil, r.Err
		case r.Value.Done:
			done = append(done, ids[i])
		}
	}
	return done, left, nil
}

// endExpired rolls back the authorized payments that nobody captured in time, and publishes their
// results. A payment keeps its row in authorizations until its result is published, because the sweep's
// mark has passed it long ago. So a row may be of a payment that has ended already.
func (l *Ledger) endExpired(ctx context.Context, now time.Time, publish Publish) (expired, published int, err error) {
	last := authorization{pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}, pgUUID(uuid.Nil)}
	for range maxSwept / sweepBatch {
		rows, err := l.pool.Query(ctx, expiredSQL, now, last.ExpiresAt, last.ID, sweepBatch)
		if err != nil {
			return expired, published, err
		}
		page, err := pgx.CollectRows(rows, pgx.RowToStructByPos[authorization])
		if err != nil || len(page) == 0 {
			return expired, published, err
		}
		last = page[len(page)-1]
		ids := make([]pgtype.UUID, len(page))
		for i, a := range page {
			ids[i] = a.ID
		}
		done, left, err := l.rollBackOverdue(ctx, ids, payment.AuthorizationExpired)
		expired += len(done)
		if err != nil {
			return expired, published, err
		}
		ids = slices.DeleteFunc(ids, func(id pgtype.UUID) bool { return slices.Contains(left, id) })
		n, err := l.publish(ctx, ids, now, publish)
		published += n
		if err == nil {
			_, err = l.pool.Exec(ctx, forgetSQL, now, ids)
		}
		if err != nil || len(page) < sweepBatch {
			return expired, published, err
		}
	}
	return expired, published, nil
}

// publish publishes the results of those of the reservations whose result is not published yet, and
// returns how many they are.
func (l *Ledger) publish(ctx context.Context, ids []pgtype.UUID, now time.Time, publish Publish) (published int, err error) {
	rows, err := l.pool.Query(ctx, untoldSQL, ids)
	if err != nil {
		return 0, err
	}
	claims, err := pgx.CollectRows(rows, func(pgx.CollectableRow) (Claim, error) {
		var parent uuid.UUID
		c, err := scanClaim(rows, zeroID{&parent})
		c.Parent = parent
		return c, err
	})
	if err != nil {
		return 0, err
	}
	for _, c := range claims {
		if err := publish(ctx, c, now); err != nil {
			return published, err
		}
		published++
	}
	_, err = toldSQL.exec(ctx, l.pool, ids)
	return published, err
}

// firstID returns the lowest UUIDv7 of a time.
func firstID(t time.Time) (id uuid.UUID) {
	var millis [8]byte
	binary.BigEndian.PutUint64(millis[:], uint64(max(0, t.UnixMilli())))
	copy(id[:6], millis[2:])
	return id
}
