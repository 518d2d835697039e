package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// After the database was restored to a point in time, it has forgotten what was decided later. The clients
// have heard of it. So a Restorer records again what was told, from the signed events: as it was decided
// then, whatever rules, limits and deadlines say now. It only refuses what contradicts the ledger, or what
// the balances do not have.

// Told is the outcome of a payment or of an operation, as its events tell it.
type Told struct {
	// Payment is the payment as it was requested, with the amounts that were told. Of an operation it is
	// its payment, if the request of that is known.
	Payment   payment.Payment
	Operation *ToldOperation // nil: the outcome is the payment's
	Outcome   payment.Outcome
	At        time.Time // when it was decided
}

// ToldOperation is an operation with what it has moved.
type ToldOperation struct {
	payment.Operation
	SenderMinor, ReceiverMinor int64  // what the payment's sender got back or paid, and its receiver gave or got
	MidMinor                   int64  // of a refund between two currencies: what LIQUIDITY paid
	RefundKey                  string // of a cancellation that refunded
}

// RestoreResult says what became of one Told.
type RestoreResult string

// What becomes of what was told.
const (
	Restored     RestoreResult = "restored"    // the ledger had forgotten it
	Remembered   RestoreResult = "remembered"  // the ledger says the same
	Contradicted RestoreResult = "contradicts" // the ledger says otherwise
	Unfit        RestoreResult = "unfit"       // something is missing: money, an account, or the payment of an operation
)

// Restoration is the result of one Told.
type Restoration struct {
	Result  RestoreResult
	Problem string // why it is not restored
}

// restoreBatch is the most payments of one transaction.
const restoreBatch = 256

const (
	// restoreSQL commits reservations as they were told. A reservation that has held no money ($3 is false)
	// takes it now. All balances change at once, so only what a batch leaves matters.
	restoreSQL = `
WITH done AS (
	UPDATE reservations r SET status = 'COMMITTED', ended_at = c.at, ` + endedSQL + `
	FROM unnest($1::uuid[], $2::timestamptz[], $3::bool[]) AS c(id, at, held) WHERE r.reservation_id = c.id AND r.status = 'PENDING'
	RETURNING ` + movedSQL + `, r.idempotency_key, r.currency_input, r.amount_idr, r.created_at, c.at, c.held AS was_held
), counted AS (
	UPDATE reservations m SET refunded_minor = coalesce(m.refunded_minor, 0) + f.back, refunding_minor = coalesce(m.refunding_minor, 0) - f.was,
		returned_minor = coalesce(m.returned_minor, 0) + f.given
	FROM (SELECT parent_id, sum(credit_minor)::bigint AS back, coalesce(sum(credit_minor) FILTER (WHERE was_held), 0)::bigint AS was,
			coalesce(sum(debit_minor) FILTER (WHERE NOT was_held), 0)::bigint AS given
		FROM done WHERE parent_id IS NOT NULL GROUP BY parent_id) f
	WHERE m.reservation_id = f.parent_id
), legs AS MATERIALIZED (
	SELECT d.reservation_id, d.at, d.was_held, d.created_at, leg.* FROM done d, ` + legsSQL + `
), changes AS (` + restoredSQL + `
), moved AS (` + restoreMoveSQL + `
), entered AS (
	INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date)
	SELECT account_id, currency, at, reservation_id, kind, amount, (at AT TIME ZONE 'UTC')::date FROM legs
	RETURNING 1
), outcome AS (
	INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason, decided_at)
	SELECT reservation_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr,
		CASE WHEN (SELECT count(*) FROM moved) = (SELECT count(*) FROM changes) THEN 'SUCCESS' END, 'committed', at
	FROM done
	RETURNING 1
)
SELECT 1 / (count(*) = cardinality($1))::int FROM done`

	// restoredSQL sums up what restored legs change.
	restoredSQL = `
	SELECT account_id, currency, sum(amount + CASE WHEN was_held THEN held ELSE 0 END)::bigint AS available,
		-sum(CASE WHEN was_held THEN held ELSE 0 END)::bigint AS held,
		coalesce(sum(amount) FILTER (WHERE kind = 'exchange' AND NOT (was_held AND held > 0)), 0)::bigint AS position,
		coalesce(sum(held) FILTER (WHERE kind = 'payment' AND NOT was_held AND floor(extract(epoch FROM created_at) / 86400) = today.day), 0)::bigint AS spent,
		today.day
	FROM legs, (SELECT floor(extract(epoch FROM now()) / 86400)::int AS day) today GROUP BY account_id, currency, today.day`

	restoreMoveSQL = `
	UPDATE balances b SET available = b.available + c.available, held = b.held + c.held, position = b.position + c.position, updated_at = now(),
		spent_day = CASE WHEN c.spent > 0 THEN c.day ELSE b.spent_day END,
		spent_today = CASE WHEN c.spent = 0 THEN b.spent_today WHEN b.spent_day = c.day THEN b.spent_today + c.spent ELSE c.spent END
	FROM changes c WHERE b.account_id = c.account_id AND b.currency = c.currency
	RETURNING 1`

	// restoreHoldSQL takes the money of authorized payments.
	restoreHoldSQL = `
WITH legs AS MATERIALIZED (
	SELECT leg.account_id, leg.currency, leg.kind, -leg.held AS amount, leg.held, false AS was_held, r.created_at
	FROM (SELECT ` + movedSQL + `, r.created_at FROM reservations r WHERE r.reservation_id = ANY($1::uuid[])) r, ` + legsSQL + ` WHERE leg.held > 0
), changes AS (
	SELECT account_id, currency, available, -available AS held, position, spent, day FROM (` + restoredSQL + `) c
), moved AS (` + restoreMoveSQL + `
)
SELECT 1 / ((SELECT count(*) FROM moved) = (SELECT count(*) FROM changes))::int`

	restoreFailedSQL = `
INSERT INTO payments (payment_id, idempotency_key, sender_id, receiver_id, currency_input, amount_idr, status, reason, decided_at)
SELECT id, key, sender, receiver, currency, amount, 'FAILED', reason, at
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::timestamptz[])
	AS c(id, key, sender, receiver, currency, amount, reason, at)
RETURNING 1`

	restoreOperationSQL = `
INSERT INTO operations (client, idempotency_key, kind, fingerprint, attempt_id, reservation_id, amount_minor, status, reason, note,
	accepted_at, decided_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`
)

// Restorer records what was told. Make it with OpenRestorer; end it with Close.
type Restorer struct{ pool *pgxpool.Pool }

// OpenRestorer opens a pool for db's login. An error names DATABASE_URL.
func OpenRestorer(url string) (*Restorer, error) {
	pool, err := postgres.Open(postgres.Config{URL: url, Name: "restore", MaxConns: 1})
	if err != nil {
		return nil, err
	}
	return &Restorer{pool}, nil
}

// Close closes the connections.
func (r *Restorer) Close() { r.pool.Close() }

// Newest returns the time of the newest claim of a payment; zero if there is none. What was decided much
// earlier is in the ledger.
func (r *Restorer) Newest(ctx context.Context) (time.Time, error) {
	return patiently(ctx, func() (at time.Time, err error) {
		if err := CheckSchema(ctx, r.pool, KnownSchema()); err != nil {
			return at, err
		}
		err = r.pool.QueryRow(ctx, `SELECT created_at FROM reservations ORDER BY reservation_id DESC LIMIT 1`).Scan(&at)
		if errors.Is(err, pgx.ErrNoRows) {
			return at, nil
		}
		return at, err
	})
}

// Restore records what was told, in the order that it is given in. What does not fit at first is tried again
// after everything else, also all of it at once: the clocks of the functions that told it may differ. An
// error means that the rest is not known; Restore may be called again with the same.
func (r *Restorer) Restore(ctx context.Context, told []Told) ([]Restoration, error) {
	results := make([]Restoration, len(told))
	var waiting []int
	for at := 0; at < len(told); {
		batch := payments(told, at)
		unfit, err := r.some(ctx, told, batch, results)
		if err != nil {
			return results, err
		}
		waiting, at = append(waiting, unfit...), at+len(batch)
	}
	for len(waiting) > 0 {
		before := len(waiting)
		var together, left []int
		for _, i := range waiting {
			if told[i].Operation == nil {
				together = append(together, i)
			} else {
				left = append(left, i)
			}
		}
		if len(together) > 0 {
			unfit, err := r.some(ctx, told, together, results)
			if err != nil {
				return results, err
			}
			left = append(unfit, left...)
		}
		waiting = waiting[:0]
		for _, i := range left {
			unfit, err := r.some(ctx, told, []int{i}, results)
			if err != nil {
				return results, err
			}
			waiting = append(waiting, unfit...)
		}
		if len(waiting) == before {
			break
		}
	}
	return results, nil
}

// payments returns the payments that follow each other from a place, or the one operation that is there.
func payments(told []Told, from int) []int {
	batch := []int{from}
	for i := from + 1; told[from].Operation == nil && i < len(told) && told[i].Operation == nil && len(batch) < restoreBatch; i++ {
		batch = append(batch, i)
	}
	return batch
}

// some restores several payments in one transaction, or one operation. If they do not fit together, it
// restores each by itself. It returns those that do not fit.
func (r *Restorer) some(ctx context.Context, told []Told, which []int, results []Restoration) (unfit []int, err error) {
	got, err := patiently(ctx, func() ([]Restoration, error) { return r.transaction(ctx, told, which) })
	switch {
	case err == nil:
		for at, i := range which {
			if results[i] = got[at]; got[at].Result == Unfit {
				unfit = append(unfit, i)
			}
		}
		return unfit, nil
	case !postgres.BadData(err) && !postgres.Outdated(err):
		return nil, err
	case len(which) == 1:
		results[which[0]] = Restoration{Unfit, "the balances do not have the money, or an account is missing: " + err.Error()}
		return which, nil
	}
	for _, i := range which {
		single, err := r.some(ctx, told, []int{i}, results)
		if err != nil {
			return nil, err
		}
		unfit = append(unfit, single...)
	}
	return unfit, nil
}

// patiently runs a transaction. If the server is away, it tries again for some seconds: what was written by an
// attempt whose answer was lost is remembered by the next one.
func patiently[T any](ctx context.Context, run func() (T, error)) (T, error) {
	return backoff.Retry(ctx, func() (T, error) {
		got, err := run()
		if postgres.BadData(err) || postgres.Outdated(err) || errors.Is(err, ErrSchema) {
			err = backoff.Permanent(err)
		}
		return got, err
	}, backoff.WithBackOff(backoff.NewExponentialBackOff()), backoff.WithMaxTries(maxTries))
}

func (r *Restorer) transaction(ctx context.Context, told []Told, which []int) (got []Restoration, err error) {
	some := make([]Told, len(which))
	for at, i := range which {
		some[at] = told[i]
	}
	conn, err := r.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	defer func() {
		if err != nil {
			postgres.RollBack(ctx, conn)
		}
	}()
	if _, err := conn.Exec(ctx, "BEGIN"); err != nil {
		return nil, err
	}
	if op := some[0].Operation; op != nil {
		one, opErr := restoreOperation(ctx, conn, some[0], *op)
		got, err = []Restoration{one}, opErr
	} else {
		got, err = restorePayments(ctx, conn, some)
	}
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, "COMMIT")
	return got, err
}

// restoring is what a transaction writes.
type restoring struct {
	rows   []row
	failed []row // of rows: those that are rolled back
	holds  []pgtype.UUID
	ended  struct {
		ids  []pgtype.UUID
		at   []time.Time
		held []bool
	}
	rollBacks []Finish
	forget    []row // authorized payments whose hold ends
}

// add adds a row that the ledger has forgotten.
func (w *restoring) add(r row, reason payment.Reason, at time.Time) {
	r.Reason = reason
	switch {
	case r.State == payment.RolledBack:
		r.endedAt = at
		w.failed = append(w.failed, r)
	case reason == payment.Authorized:
		w.holds = append(w.holds, pgUUID(r.id))
	default:
		r.State = payment.Pending // restoreSQL commits it
		w.end(r.id, at, false)
	}
	w.rows = append(w.rows, r)
}

func (w *restoring) end(id uuid.UUID, at time.Time, held bool) {
	w.ended.ids, w.ended.at, w.ended.held = append(w.ended.ids, pgUUID(id)), append(w.ended.at, at), append(w.ended.held, held)
}

func (w *restoring) run(ctx context.Context, conn *pgxpool.Conn) error {
	b := &pgx.Batch{}
	if len(w.rows) > 0 {
		w.queueRows(b)
	}
	if len(w.holds) > 0 {
		b.Queue(restoreHoldSQL, w.holds)
	}
	if len(w.ended.ids) > 0 {
		b.Queue(restoreSQL, w.ended.ids, w.ended.at, w.ended.held)
	}
	for _, a := range w.forget {
		b.Queue(endAuthorizationSQL, a.Deadline, pgUUID(a.id))
	}
	if b.Len() > 0 {
		if err := conn.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
	}
	if len(w.rollBacks) > 0 {
		_, err := finishOn(ctx, conn, w.rollBacks, byOperation, asItIs)
		return err
	}
	return nil
}

func (w *restoring) queueRows(b *pgx.Batch) {
	queueReservations(b, w.rows)
	var accounts, currencies []string
	var expire []pgtype.Timestamptz
	var authorized []pgtype.UUID
	var held []int64
	added := map[place]bool{}
	for _, r := range w.rows {
		if r.State == payment.RolledBack {
			continue
		}
		for _, leg := range r.Legs() {
			if at := (place{leg.Account, leg.Currency}); !added[at] {
				added[at] = true
				accounts, currencies = append(accounts, leg.Account), append(currencies, leg.Currency.String())
			}
		}
		if r.Reason == payment.Authorized {
			expire, authorized, held = append(expire, timestamp(r.Deadline)), append(authorized, pgUUID(r.id)), append(held, r.AmountIDR)
		}
	}
	if len(accounts) > 0 {
		addBalancesSQL.queue(b, accounts, currencies)
	}
	if len(authorized) > 0 {
		b.Queue(authorizeSQL, expire, authorized, held)
	}
	var ids []pgtype.UUID
	var keys, from, to, codes, reasons []string
	var amounts []int64
	var at []time.Time
	for _, r := range w.failed {
		ids, keys, from, to = append(ids, pgUUID(r.id)), append(keys, r.Key), append(from, r.Sender), append(to, r.Receiver)
		codes, amounts, reasons, at = append(codes, r.Currency.String()), append(amounts, r.AmountIDR), append(reasons, string(r.Reason)), append(at, r.endedAt)
	}
	if len(ids) > 0 {
		b.Queue(restoreFailedSQL, ids, keys, from, to, codes, amounts, reasons, at)
	}
}

// stateTold returns the state of the reservation that was told.
func stateTold(o payment.Outcome) (payment.ReservationStatus, payment.Reason) {
	switch {
	case o.Status == payment.Failed:
		return payment.RolledBack, o.Reason
	case o.Reason == payment.Authorized:
		return payment.Pending, payment.Authorized
	}
	return payment.Committed, payment.ReasonCommitted
}

// compare returns what is still to do with a record of the ledger; a Restoration without a result means
// that it is PENDING and has to end as it was told.
func compare(has payment.Record, asked payment.Fingerprint, told payment.Outcome) Restoration {
	state, reason := stateTold(told)
	says := fmt.Sprintf("the ledger says %s %s %s", has.State, has.Reason, has.Ref)
	switch {
	case has.Claimed != asked:
		return Restoration{Contradicted, "the ledger has its key for another request"}
	case told.Status != payment.Failed && told.Ref != has.Ref:
		return Restoration{Contradicted, says}
	case reason == payment.Authorized && has.AuthorizedMinor > 0: // however the hold ended later
		return Restoration{Result: Remembered}
	case has.State == state && (state == payment.Committed || has.Reason == reason):
		return Restoration{Result: Remembered}
	case has.State == payment.Pending && state != payment.Pending:
		return Restoration{}
	}
	return Restoration{Contradicted, says}
}

func restorePayments(ctx context.Context, conn *pgxpool.Conn, told []Told) ([]Restoration, error) {
	keys := make([]string, len(told))
	for i, t := range told {
		keys[i] = t.Payment.Key
	}
	known, err := recordsOf(ctx, conn, keys)
	if err != nil {
		return nil, err
	}
	results := make([]Restoration, len(told))
	var w restoring
	for i, t := range told {
		if has, ok := payment.Deciding(known[t.Payment.Key], payment.Record.Identity, t.Payment.Identity()); ok {
			if results[i] = compare(has, t.Payment.Fingerprint(), t.Outcome); results[i].Result == "" {
				results[i].Result = Restored
				w.endKnown(has, t)
			}
			continue
		}
		r, err := rowOf(t, i)
		if err != nil {
			results[i] = Restoration{Unfit, err.Error()}
			continue
		}
		_, reason := stateTold(t.Outcome)
		w.add(r, reason, t.At)
		r.Outcome = payment.Standing(r.State, reason, r.id.String(), false)
		known[r.Key] = append(known[r.Key], r.Record)
		results[i].Result = Restored
	}
	return results, w.run(ctx, conn)
}

func recordsOf(ctx context.Context, conn *pgxpool.Conn, keys []string) (map[string][]payment.Record, error) {
	records, err := ReadRecords(ctx, conn, keys)
	known := map[string][]payment.Record{}
	for _, rec := range records {
		known[rec.Key] = append(known[rec.Key], rec)
	}
	return known, err
}

// endKnown ends a reservation that is PENDING.
func (w *restoring) endKnown(has payment.Record, t Told) {
	id := uuid.MustParse(has.Ref) // the ledger has made it
	if has.AuthorizedMinor > 0 {
		w.forget = append(w.forget, row{Record: has, id: id})
	}
	if state, reason := stateTold(t.Outcome); state == payment.RolledBack {
		w.rollBacks = append(w.rollBacks, Finish{ReservationID: id, RollBack: reason})
	} else {
		w.end(id, t.At, true)
	}
}

// rowOf returns the row of a payment that the ledger has forgotten. Its id has the time at which it was
// reserved. Of a refusal, neither was told.
func rowOf(t Told, n int) (row, error) {
	p := t.Payment
	state, reason := stateTold(t.Outcome)
	r := row{id: idAt(t.At, n)}
	r.ReservedAt = cmp.Or(p.AcceptedAt, t.At)
	if t.Outcome.Ref != "" {
		id, err := uuid.Parse(t.Outcome.Ref)
		if err != nil {
			return r, errors.New("it was told with a reference that is no id of a reservation")
		}
		r.id, r.ReservedAt = id, timeOf(id)
	}
	if r.ReservedAt.After(t.At) {
		r.ReservedAt = t.At
	}
	p.Deadline = p.HeldUntil(r.ReservedAt)
	r.Payment, r.State, r.Claimed = p, state, t.Payment.Fingerprint()
	if reason == payment.Authorized {
		r.AuthorizedMinor = p.Debit().Minor
	}
	return r, nil
}

// restoreOperation records one operation. Its payment is in the ledger, or comes later.
func restoreOperation(ctx context.Context, conn *pgxpool.Conn, t Told, op ToldOperation) (Restoration, error) {
	of, found, err := paymentOf(ctx, conn, op.Of())
	if err != nil {
		return Restoration{}, err
	}
	if !found && op.Kind == payment.Cancel && t.Payment.Key != "" && t.Outcome.Status != payment.Failed && op.RefundKey == "" {
		// The cancellation came before the payment was reserved, or its own outcome was not told.
		was := Told{Payment: t.Payment, Outcome: payment.Decline(payment.Canceled), At: t.At}
		if _, err := restorePayments(ctx, conn, []Told{was}); err != nil {
			return Restoration{}, err
		}
		of, found, err = paymentOf(ctx, conn, op.Of())
	}
	if err != nil {
		return Restoration{}, err
	}
	if !found {
		return Restoration{Unfit, "its payment is not in the ledger"}, nil
	}
	refunds := op.Kind == payment.Refund || op.RefundKey != ""
	got := Restoration{Result: Remembered}
	if op.Kind != payment.Refund {
		if got, err = restoreEnd(ctx, conn, t, op, of, refunds); err != nil || got.Result != Restored && got.Result != Remembered {
			return got, err
		}
	}
	if !refunds {
		return got, nil
	}
	refund, err := restoreRefund(ctx, conn, t, op, of)
	if err == nil && refund.Result == Remembered && got.Result == Restored {
		refund = got
	}
	return refund, err
}

func paymentOf(ctx context.Context, conn *pgxpool.Conn, of payment.ScopedKey) (payment.Record, bool, error) {
	known, err := recordsOf(ctx, conn, []string{of.Key})
	for _, rec := range known[of.Key] {
		if rec.Client == of.Client {
			return rec, true, err
		}
	}
	return payment.Record{}, false, err
}

// restoreEnd records a capture, a void or a cancellation, and ends its payment as it did.
func restoreEnd(ctx context.Context, conn *pgxpool.Conn, t Told, op ToldOperation, of payment.Record, refunds bool) (Restoration, error) {
	s := operating{ref: uuid.MustParse(of.Ref), payment: of, now: t.At}
	reason := t.Outcome.Reason
	if refunds || op.Kind == payment.Cancel && of.State == payment.Committed {
		reason = payment.PaymentSettled // of the cancellation itself: what follows is a refund
	}
	var kept operation
	err := conn.QueryRow(ctx, operationSQL, op.Client, op.Key).Scan(fingerprint{&kept.fingerprint}, &kept.attempt, &kept.ref, &kept.reason)
	switch {
	case err == nil && (kept.fingerprint != op.Fingerprint() || kept.reason.Status() == payment.Failed != (reason.Status() == payment.Failed)):
		return Restoration{Contradicted, fmt.Sprintf("the ledger says of this %s: %s", op.Kind, kept.reason)}, nil
	case err == nil:
		return Restoration{Result: Remembered}, nil
	case !errors.Is(err, pgx.ErrNoRows):
		return Restoration{}, err
	}
	moved := int64(0)
	if reason == payment.ReasonCommitted {
		if of.State != payment.Pending && (op.Kind == payment.Capture || of.State != payment.RolledBack) {
			return Restoration{Contradicted, fmt.Sprintf("the ledger says of its payment: %s %s", of.State, of.Reason)}, nil
		}
		if moved, err = endBy(ctx, conn, t, op, s); err != nil {
			return Restoration{}, err
		}
	}
	status := payment.Success
	if reason.Status() == payment.Failed {
		status = payment.Failed
	}
	asked := op.Fingerprint()
	_, err = conn.Exec(ctx, restoreOperationSQL, op.Client, op.Key, op.Kind, asked[:], op.AttemptID, pgUUID(s.ref), moved, status, reason, op.Note,
		timestamp(op.AcceptedAt), t.At)
	return Restoration{Result: Restored}, err
}

// endBy ends the payment of an operation. It returns what was captured or given back.
func endBy(ctx context.Context, conn *pgxpool.Conn, t Told, op ToldOperation, s operating) (int64, error) {
	var w restoring
	if s.payment.AuthorizedMinor > 0 {
		w.forget = append(w.forget, row{Record: s.payment, id: s.ref})
	}
	whole := s.payment.Debit().Minor
	switch {
	case op.Kind == payment.Capture:
		captured := cmp.Or(op.SenderMinor, whole)
		if rest := whole - captured; rest > 0 {
			v := verdict{debit: captured, captured: s.payment.Captured(captured)}
			if err := v.giveBack(ctx, conn, s, rest); err != nil {
				return 0, err
			}
		}
		w.end(s.ref, t.At, true)
		return captured, w.run(ctx, conn)
	case s.payment.State == payment.Pending:
		why := payment.Voided
		if op.Kind == payment.Cancel {
			why = payment.Canceled
		}
		w.rollBacks = append(w.rollBacks, Finish{ReservationID: s.ref, RollBack: why})
	}
	return whole, w.run(ctx, conn)
}

// restoreRefund records a refund.
func restoreRefund(ctx context.Context, conn *pgxpool.Conn, t Told, op ToldOperation, of payment.Record) (Restoration, error) {
	refund := op.Operation
	if op.Kind == payment.Cancel {
		refund.Kind, refund.Key = payment.Refund, op.CancelKey(of.Ref)
	}
	has, found, err := paymentOf(ctx, conn, payment.ScopedKey{Client: refund.Client, Key: refund.Key})
	if err != nil {
		return Restoration{}, err
	}
	var w restoring
	if found {
		got := compare(has, refund.Fingerprint(), t.Outcome)
		if got.Result == "" {
			got.Result = Restored
			w.endKnown(has, t)
		}
		return got, w.run(ctx, conn)
	}
	if of.State != payment.Committed && t.Outcome.Status != payment.Failed {
		return Restoration{Unfit, "its payment is not settled in the ledger"}, nil
	}
	p, err := refundTold(of, refund, op, t.Outcome.Reason)
	if err != nil {
		return Restoration{Unfit, err.Error()}, nil
	}
	r, err := rowOf(Told{Payment: p, Outcome: t.Outcome, At: t.At}, 0)
	if err != nil {
		return Restoration{Unfit, err.Error()}, nil
	}
	r.Claimed, r.Note, r.parent = refund.Fingerprint(), refund.Note, uuid.MustParse(of.Ref)
	r.PaymentKey = of.Key // so that its entries are those of a refund
	_, reason := stateTold(t.Outcome)
	w.add(r, reason, t.At)
	return Restoration{Result: Restored}, w.run(ctx, conn)
}

// refundTold returns what a refund has moved. One that does not fit its payment names the amounts of the whole
// payment, as payment.RefundOf does.
func refundTold(of payment.Record, refund payment.Operation, told ToldOperation, reason payment.Reason) (payment.Payment, error) {
	part := refund
	switch {
	case told.SenderMinor > 0:
		part.Minor, part.Currency = told.SenderMinor, of.Debit().Currency
	case reason == payment.RefundExceedsPayment, reason == payment.RefundTooSmall, reason == payment.PaymentNotSettled:
		part.Minor, part.Currency = of.Debit().Minor, of.Debit().Currency
	}
	p, _, err := payment.RefundOf(of, payment.Share{}, part)
	if err != nil {
		return p, err
	}
	p.Minor = refund.Minor
	if told.SenderMinor == 0 {
		return p, nil
	}
	if of.InRupiah() {
		p.AmountIDR = told.SenderMinor
		return p, nil
	}
	p.CreditMinor, p.DebitMinor = told.SenderMinor, told.ReceiverMinor
	if p.Exchanges() {
		p.Exchange.MidMinor = told.MidMinor
	}
	return p, nil
}
