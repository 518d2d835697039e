package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// An authorized payment is a reservation that stays PENDING until somebody captures it. Its deadline is
// then the end of the hold, and a row of authorizations lets the sweep find it by that time.
//
// Captures, voids and cancellations are rare next to payments. So each one is a transaction of its own:
// it locks the reservation, then the balances in the usual order, decides, moves the money by the
// statements of commit and rollback, and records its outcome under its own key. The lock of the
// reservation makes them one after the other, and the compare-and-set of commit and rollback gives
// each payment one end, whoever else ends it at the same time.

const (
	// maxOperations is the most operations that run at once, so that they leave connections to payments.
	// maxWaitingOperations is the most that run or wait.
	maxOperations, maxWaitingOperations = 2, 256
)

const (
	// refOfKeySQL is the only statement that looks for the payment by its key. A key's reservation never
	// changes.
	refOfKeySQL = `SELECT reservation_id FROM reservations WHERE idempotency_key = $1 AND client = $2`

	operationSQL = `
SELECT fingerprint, attempt_id, reservation_id, reason FROM operations WHERE client = $1 AND idempotency_key = $2`

	insertOperationSQL = `
INSERT INTO operations (client, idempotency_key, kind, fingerprint, attempt_id, reservation_id, amount_minor, status, reason, note,
	accepted_at, decided_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, clock_timestamp())`

	authorizeSQL = `
INSERT INTO authorizations (expires_at, reservation_id, amount_idr) SELECT a.*
FROM unnest($1::timestamptz[], $2::uuid[], $3::bigint[]) a, ` + hereSQL

	endAuthorizationSQL = `DELETE FROM authorizations WHERE expires_at = $1 AND reservation_id = $2`

	// captureLessSQL makes the amounts of a payment those of the part that is captured.
	captureLessSQL = `
UPDATE reservations SET amount_idr = $2, debit_minor = $3, credit_minor = $4, mid_minor = $5,
	exchange = exchange || jsonb_build_object('mid_minor', $5::bigint, 'remainder', $6::text)
WHERE reservation_id = $1`

	// giveBackSQL gives the rest of a hold back. The balances are locked already. What was held today ($6)
	// does not count against today's limit any more.
	giveBackSQL = `
UPDATE balances b SET available = b.available + w.amount, held = b.held - w.amount, position = b.position + w.position, updated_at = now(),
	spent_today = CASE WHEN b.spent_day = $6 THEN greatest(0, b.spent_today - w.spent) ELSE b.spent_today END
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[]) AS w(account_id, currency, amount, position, spent)
WHERE b.account_id = w.account_id AND b.currency = w.currency`
)

// lockPaymentSQL locks the payment. What is read next is as it is after the wait for this lock.
var lockPaymentSQL = &form{
	one:  `SELECT FROM reservations WHERE reservation_id = $1 FOR NO KEY UPDATE`,
	rows: `UPDATE reservations SET untold = untold WHERE reservation_id = $1`,
}

// lockLegsSQL locks the balances that the end of a payment changes: those that hold its money, and
// for a capture ($2) also those that get it.
var lockLegsSQL = &form{
	one: placesSQL + `
SELECT b.account_id, b.currency, b.status FROM places p JOIN balances b ON b.account_id = p.account_id AND b.currency = p.currency
ORDER BY b.` + house + `, b.account_id, b.currency FOR NO KEY UPDATE OF b`,
	rows: placesSQL + `
UPDATE balances b SET updated_at = b.updated_at FROM places p WHERE b.account_id = p.account_id AND b.currency = p.currency
RETURNING b.account_id, b.currency, b.status`,
}

const placesSQL = `
WITH held AS MATERIALIZED (
	SELECT ` + movedSQL + ` FROM reservations r WHERE r.reservation_id = $1 AND r.status = 'PENDING'
), places AS MATERIALIZED (
	SELECT DISTINCT leg.account_id, leg.currency FROM held, ` + legsSQL + ` WHERE leg.held > 0 OR $2
)`

// errOutdated means that the time of a hold ended between the decision about a capture and its statement.
var errOutdated = errors.New("the hold's time ended during the capture")

// Operated is the result of an operation.
type Operated struct {
	Outcome payment.Outcome // of the operation
	Payment payment.Record  // as it is after the operation
}

// Operate captures, voids or cancels a payment, or records why not. If the operation's key has an outcome
// already, Operate returns that one. It returns ErrNotFound if there is no such payment, ErrFull and
// ErrLocked if the operation has had no effect and should be tried again, and an InvalidError for
// another kind of operation. After any other error, it is unknown whether the operation took effect. The
// caller may repeat the call, and then gets the outcome.
func (l *Ledger) Operate(ctx context.Context, op payment.Operation) (done Operated, err error) {
	switch op.Kind {
	case payment.Capture, payment.Void, payment.Cancel:
	default:
		return done, &InvalidError{&payment.FieldError{Field: "operation", Problem: fmt.Sprintf("is %.20q; want capture, void or cancel", op.Kind)}}
	}
	err = l.operates.run(ctx, func(ctx context.Context) error {
		tried, err := runTransaction(ctx, []payment.Operation{op}, l.operateAll)
		if errors.Is(err, errOutdated) {
			tried, err = runTransaction(ctx, []payment.Operation{op}, l.operateAll) // and records that it is too late
		}
		if err == nil {
			done = tried[0]
		}
		return err
	})
	if postgres.LockTimeout(err) {
		err = ErrLocked
	}
	if err != nil {
		return Operated{}, fmt.Errorf("%s %s: %w", op.Kind, op.Payment, err)
	}
	return done, nil
}

// operateAll carries out operations one after the other, each in a transaction of its own.
func (l *Ledger) operateAll(ctx context.Context, ops []payment.Operation) ([]Operated, error) {
	done := make([]Operated, len(ops))
	for i, op := range ops {
		conn, err := l.pool.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		if done[i], err = l.operateOn(ctx, conn, op); err != nil {
			postgres.RollBack(ctx, conn)
		}
		conn.Release()
		if err != nil {
			return nil, err
		}
	}
	return done, nil
}

// operating is what the decision about an operation needs.
type operating struct {
	ref      uuid.UUID // of the payment
	payment  payment.Record
	kept     *operation            // nil: the operation's key is new
	receiver payment.AccountStatus // of the balance that a capture pays into
	now      time.Time             // the database's, after all locks
}

// operation is an operation as it is kept.
type operation struct {
	fingerprint payment.Fingerprint
	attempt     string
	ref         uuid.UUID // of the payment
	reason      payment.Reason
}

// outcome returns the outcome. replay means that an earlier attempt had it.
func (o operation) outcome(replay bool) payment.Outcome {
	state := payment.Committed
	if o.reason.Status() == payment.Failed {
		state = payment.RolledBack
	}
	return payment.Standing(state, o.reason, o.ref.String(), replay || o.reason == payment.DuplicateIdempo)
}

// again returns the outcome for an operation whose key is kept.
func (o operation) again(op payment.Operation) payment.Outcome {
	if o.fingerprint != op.Fingerprint() {
		out := payment.Decline(payment.IdempotencyMismatch)
		out.Replay = true
		return out
	}
	// Without an attempt's id, a redelivery can't be distinguished from a second attempt.
	return o.outcome(op.AttemptID == "" || op.AttemptID != o.attempt)
}

func (l *Ledger) operateOn(ctx context.Context, conn *pgxpool.Conn, op payment.Operation) (done Operated, err error) {
	s, err := l.readOperating(ctx, conn, op)
	if err != nil {
		return done, err
	}
	if s.kept != nil {
		_, err = conn.Exec(ctx, "COMMIT")
		return Operated{s.kept.again(op), s.payment}, err
	}
	v := judge(op, s)
	o := operation{op.Fingerprint(), op.AttemptID, s.ref, v.reason}
	if err := v.end(ctx, conn, s); err != nil {
		return done, err
	}
	b := &pgx.Batch{}
	b.Queue(insertOperationSQL, op.Client, op.Key, op.Kind, o.fingerprint[:], o.attempt, pgUUID(o.ref), v.debit, o.tableStatus(), o.reason,
		op.Note, timestamp(op.AcceptedAt))
	done.Outcome = o.outcome(false)
	paymentByRefSQL.queue(b, o.ref).Query(func(rows pgx.Rows) error {
		var err error
		done.Payment, err = pgx.CollectExactlyOneRow(rows, scanRecord)
		return err
	})
	b.Queue("COMMIT")
	err = conn.SendBatch(ctx, b).Close()
	return done, err
}

// tableStatus is the status as the table has it: it knows no replays.
func (o operation) tableStatus() payment.Status {
	if o.reason.Status() == payment.Failed {
		return payment.Failed
	}
	return payment.Success
}

// readOperating begins the transaction, and locks and reads what the decision needs.
func (l *Ledger) readOperating(ctx context.Context, conn *pgxpool.Conn, op payment.Operation) (s operating, err error) {
	of := op.Of()
	err = conn.QueryRow(ctx, refOfKeySQL, of.Key, of.Client).Scan(&s.ref)
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return s, err
	}
	b := &pgx.Batch{}
	l.queueBegin(b, conn, false)
	lockPaymentSQL.queue(b, s.ref)
	paymentByRefSQL.queue(b, s.ref).Query(func(rows pgx.Rows) error {
		var err error
		s.payment, err = pgx.CollectExactlyOneRow(rows, scanRecord)
		return err
	})
	b.Queue(operationSQL, op.Client, op.Key).Query(func(rows pgx.Rows) error {
		kept, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (o operation, err error) {
			err = row.Scan(fingerprint{&o.fingerprint}, &o.attempt, &o.ref, &o.reason)
			return o, err
		})
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		s.kept = &kept
		return err
	})
	lockLegsSQL.queue(b, s.ref, op.Kind == payment.Capture).Query(func(rows pgx.Rows) error {
		var account, currency string
		var status payment.AccountStatus
		_, err := pgx.ForEachRow(rows, []any{&account, &currency, &status}, func() error {
			if account == s.payment.Receiver && currency == s.payment.Credit().Currency.String() {
				s.receiver = status
			}
			return nil
		})
		return err
	})
	b.Queue(clockSQL).QueryRow(func(row pgx.Row) error { return row.Scan(&s.now) })
	err = conn.SendBatch(ctx, b).Close()
	return s, err
}

// verdict is the decision about an operation.
type verdict struct {
	reason   payment.Reason  // of the operation's outcome: committed, duplicate_idempo or a refusal
	debit    int64           // what is captured or given back, in the debit currency; 0: nothing is moved
	captured payment.Payment // of a capture: the payment of this debit
	rollBack payment.Reason  // why everything is given back; empty: it is not
}

func judge(op payment.Operation, s operating) verdict {
	switch {
	case !op.Deadline.IsZero() && s.now.After(op.Deadline):
		return verdict{reason: payment.Expired}
	case op.Kind == payment.Capture:
		return judgeCapture(op, s)
	}
	return judgeEnd(op, s)
}

func judgeCapture(op payment.Operation, s operating) verdict {
	p := s.payment
	debit := p.Debit()
	if op.Minor != 0 {
		debit = op.Amount()
	}
	captured := p.State == payment.Committed && p.AuthorizedMinor > 0
	whole := op.Minor == 0 && p.Debit().Minor == p.AuthorizedMinor
	switch {
	case captured && (whole || op.Amount() == p.Debit()):
		return verdict{reason: payment.DuplicateIdempo} // captured before, by another operation
	case p.Reason != payment.Authorized || p.IsHold() || s.now.After(p.Deadline):
		return verdict{reason: payment.PaymentNotAuthorized}
	case debit.Currency != p.Debit().Currency || debit.Minor > p.Debit().Minor:
		return verdict{reason: payment.CaptureExceedsHold}
	}
	part := p.Captured(debit.Minor)
	switch {
	case part.Credit().Minor == 0:
		return verdict{reason: payment.CaptureTooSmall}
	case s.receiver != payment.Active:
		return verdict{reason: payment.ReceiverBlocked}
	}
	return verdict{reason: payment.ReasonCommitted, debit: debit.Minor, captured: part}
}

// judgeEnd decides about a void or a cancellation. Only an authorized payment can be voided. Every
// payment that is PENDING can be canceled.
func judgeEnd(op payment.Operation, s operating) verdict {
	p := s.payment
	ends, none := payment.Voided, payment.PaymentNotAuthorized
	if op.Kind == payment.Cancel {
		ends, none = payment.Canceled, payment.PaymentNotSettled
	}
	switch {
	case p.PaymentKey != "" || p.IsHold(): // a refund, or the house's own hold
		return verdict{reason: none}
	case p.State == payment.Committed:
		return verdict{reason: payment.PaymentSettled}
	case p.State == payment.RolledBack && p.Reason == ends:
		return verdict{reason: payment.DuplicateIdempo} // by another operation
	case p.State == payment.RolledBack || op.Kind == payment.Void && p.Reason != payment.Authorized:
		return verdict{reason: none}
	}
	return verdict{reason: payment.ReasonCommitted, debit: p.Debit().Minor, rollBack: ends}
}

// end moves the money as decided. All rows are locked, so a statement can only find the payment PENDING,
// unless a capture's time is over meanwhile.
func (v verdict) end(ctx context.Context, conn *pgxpool.Conn, s operating) error {
	switch {
	case v.debit == 0:
		return nil
	case v.rollBack != "":
		if _, err := finishOn(ctx, conn, []Finish{{ReservationID: s.ref, RollBack: v.rollBack}}, byOperation, asItIs); err != nil {
			return err
		}
	default:
		if err := v.capture(ctx, conn, s); err != nil {
			return err
		}
	}
	_, err := conn.Exec(ctx, endAuthorizationSQL, s.payment.Deadline, pgUUID(s.ref))
	return err
}

// capture gives the rest of the hold back and commits the payment of the part that is captured.
func (v verdict) capture(ctx context.Context, conn *pgxpool.Conn, s operating) error {
	if rest := s.payment.Debit().Minor - v.debit; rest > 0 {
		if err := v.giveBack(ctx, conn, s, rest); err != nil {
			return err
		}
	}
	tag, err := commitSQL.exec(ctx, conn, []pgtype.UUID{pgUUID(s.ref)}, []string{""}, true)
	if err == nil && tag.RowsAffected() != 1 {
		err = errOutdated
	}
	return err
}

func (v verdict) giveBack(ctx context.Context, conn *pgxpool.Conn, s operating, rest int64) error {
	debit, credit, was := v.captured.Debit(), v.captured.Credit(), s.payment.Payment
	mid := pgtype.Int8{Int64: v.captured.Exchange.MidMinor, Valid: was.Exchanges()}
	spent, today := int64(0), payment.Day(s.now)
	if payment.Day(s.payment.ReservedAt) == today {
		spent = rest
	}
	accounts, currencies := []string{was.Sender}, []string{debit.Currency.String()}
	amounts, positions, counted := []int64{rest}, []int64{0}, []int64{spent}
	if was.Exchanges() {
		ofHouse := was.Exchange.MidMinor - mid.Int64
		accounts, currencies = append(accounts, payment.LiquidityAccount), append(currencies, credit.Currency.String())
		amounts, positions, counted = append(amounts, ofHouse), append(positions, ofHouse), append(counted, 0)
	}
	b := &pgx.Batch{}
	b.Queue(captureLessSQL, pgUUID(s.ref), v.captured.AmountIDR, debit.Minor, credit.Minor, mid, v.captured.Exchange.Remainder)
	b.Queue(giveBackSQL, accounts, currencies, amounts, positions, counted, today)
	return conn.SendBatch(ctx, b).Close()
}

// queueAuthorizations notes the new authorized payments for the sweep. Wallet holds are so short that
// the sweep finds them without.
func queueAuthorizations(b *pgx.Batch, calls []reserve, decided []Reserved, fresh []int, now time.Time) {
	var expire []pgtype.Timestamptz
	var ids []pgtype.UUID
	var amounts []int64
	for _, i := range fresh {
		if p := calls[i].Payment; p.Manual() && decided[i].Status == payment.Pending {
			expire, ids = append(expire, timestamp(p.HeldUntil(now))), append(ids, pgUUID(decided[i].ReservationID))
			amounts = append(amounts, p.AmountIDR)
		}
	}
	if len(ids) > 0 {
		b.Queue(authorizeSQL, expire, ids, amounts)
	}
}
