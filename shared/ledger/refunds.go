package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgw/shared/payment"
	"pgw/shared/postgres"
	"pgw/shared/trace"
)

// A refund is a reservation of its own: it holds the money of the payment's receiver, and is committed
// or rolled back as a payment is. What keeps refunds within their payment stands in the payment's row.
// refunded_minor and refunding_minor count what its sender has got back and what is on its way, and a
// CHECK bounds their sum by what the sender has paid. returned_minor counts the other side in the same
// way. A refund changes them in the transaction that reserves it, and in the one that ends it.

// MaxRefunds is the most refunds of a payment that Refunds returns.
const MaxRefunds = 1000

var (
	// readParentsSQL reads the payments of refunds by their keys.
	readParentsSQL = recordForm(`FROM reservations r `+outcomeHere+`
JOIN unnest($1::text[], $2::text[]) AS asked(client, key) ON r.idempotency_key = asked.key AND r.client = asked.client`, "")

	// lockParentsSQL locks them. What it returns is not needed: they are read again.
	lockParentsSQL = &form{
		one: `
SELECT FROM reservations r JOIN unnest($1::text[], $2::text[]) AS asked(client, key) ON r.idempotency_key = asked.key AND r.client = asked.client
ORDER BY r.reservation_id FOR NO KEY UPDATE OF r`,
		rows: `
UPDATE reservations r SET untold = r.untold FROM unnest($1::text[], $2::text[]) AS asked(client, key)
WHERE r.idempotency_key = asked.key AND r.client = asked.client`,
	}

	refundSQL = recordForm(`FROM reservations r `+outcomeHere+`
WHERE r.reservation_id = $1 OR r.reservation_id = (SELECT parent_id FROM reservations WHERE reservation_id = $1)`, "")

	refundsOfSQL = recordForm(`FROM reservations r `+outcomeHere+`
WHERE r.parent_id = $1 AND `+postgres.ReplicatedSQL, ` ORDER BY r.reservation_id LIMIT $2`)
)

// countSQL counts refunds in the rows of their payments. It fails (division by zero) unless every
// payment is still as the decisions need it.
var countSQL = &form{
	one: `
WITH wanted AS (` + wantedCountsSQL + `), locked AS MATERIALIZED (
	SELECT w.* FROM wanted w JOIN reservations r ON r.reservation_id = w.id WHERE ` + countableSQL + `
	ORDER BY r.reservation_id FOR NO KEY UPDATE OF r
), counted AS (
	UPDATE reservations r SET refunding_minor = w.refunding, returned_minor = w.returned
	FROM locked w WHERE r.reservation_id = w.id
	RETURNING 1
)
SELECT 1 / (count(*) = cardinality($1))::int FROM counted`,
	rows: `
WITH wanted AS MATERIALIZED (` + wantedCountsSQL + `), counted AS (
	UPDATE reservations r SET refunding_minor = w.refunding, returned_minor = w.returned
	FROM wanted w WHERE r.reservation_id = w.id AND ` + countableSQL + `
	RETURNING 1
)
SELECT 1 / (count(*) = cardinality($1))::int FROM counted`,
}

const (
	wantedCountsSQL = `
	SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
	AS w(id, refunding, returned, was_refunded, was_refunding, was_returned)
`
	countableSQL = `r.status = 'COMMITTED' AND coalesce(r.refunded_minor, 0) = w.was_refunded
		AND coalesce(r.refunding_minor, 0) = w.was_refunding AND coalesce(r.returned_minor, 0) = w.was_returned`
)

// parent is the payment of a refund, with the changes that the batch decides.
type parent struct {
	payment.Record
	id           uuid.UUID
	was          payment.Share // what refunds took, with those on their way, as it was read
	given        payment.Share // the same, with those of the batch
	wasRefunding int64
}

// parents are the payments of a batch's refunds, by their keys.
type parents map[payment.ScopedKey]*parent

// columns returns the clients and the keys, for a statement.
func (ps parents) columns() (clients, keys []string) {
	for k := range ps {
		clients, keys = append(clients, k.Client), append(keys, k.Key)
	}
	return clients, keys
}

func (ps parents) take(rows pgx.Rows) error {
	found, err := pgx.CollectRows(rows, scanRow)
	for _, r := range found {
		given := payment.Share{Debit: r.RefundedMinor + r.RefundingMinor, Credit: r.returned}
		ps[r.Scoped()] = &parent{Record: r.Record, id: r.id, was: given, given: given, wasRefunding: r.RefundingMinor}
	}
	return err
}

// readParents reads the payments of the refunds without locks. A batch without refunds reads nothing.
func readParents(ctx context.Context, conn *pgxpool.Conn, calls []reserve) (parents, error) {
	asked, found := parents{}, parents{}
	for _, c := range calls {
		if c.refund != nil {
			asked[c.refund.Of()] = nil
		}
	}
	if len(asked) == 0 {
		return nil, nil
	}
	clients, keys := asked.columns()
	rows, err := readParentsSQL.query(ctx, conn, clients, keys)
	if err == nil {
		err = found.take(rows)
	}
	return found, err
}

// queueLock locks the payments, and reads them as they are after the wait.
func (ps parents) queueLock(b *pgx.Batch) {
	if len(ps) == 0 {
		return
	}
	clients, keys := ps.columns()
	lockParentsSQL.queue(b, clients, keys)
	readParentsSQL.queue(b, clients, keys).Query(ps.take)
}

// resolved returns the calls with the parties and currencies of the refunds.
func (ps parents) resolved(calls []reserve) []reserve {
	if len(ps) == 0 {
		return calls
	}
	calls = slices.Clone(calls)
	for i, c := range calls {
		if c.refund == nil {
			continue
		}
		if of := ps[c.refund.Of()]; of != nil {
			c.Sender, c.Receiver = of.Receiver, of.Sender
			c.DebitCurrency, c.CreditCurrency = of.CreditCurrency, of.DebitCurrency
			calls[i] = c
		}
	}
	return calls
}

// refund returns what a refund moves, and the reason for which it is refused before the balances are
// looked at.
func (s state) refund(c reserve) (payment.Payment, payment.Reason, error) {
	of := s.parents[c.refund.Of()]
	if of == nil {
		return c.Payment, "", ErrNotFound
	}
	if c.refund.ForCancel() {
		if ref, _ := payment.CancelKeyParts(c.Key); ref != of.Ref {
			return c.Payment, "", &InvalidError{&payment.FieldError{Field: "idempotency_key", Problem: "is not that of the payment's cancellation"}}
		}
		if of.State == payment.Committed && of.given.Debit == of.Debit().Minor {
			if err := s.nothingLeft(of, c); err != nil {
				return c.Payment, "", err
			}
		}
	}
	p, reason, err := payment.RefundOf(of.Record, of.given, *c.refund)
	if err != nil {
		return c.Payment, "", &InvalidError{err}
	}
	if s.now.After(payment.ClampDeadline(p.Deadline, s.now)) {
		reason = payment.Expired
	}
	s.refunds[c.Scoped()] = p
	return p, reason, nil
}

// errGivenBack means that a cancellation finds everything given back. That stays so.
var errGivenBack = errors.New("everything was given back before")

// nothingLeft returns why a cancellation of a payment with nothing left is not recorded as a refund.
// Everything was given back, or refunds on their way hold the rest. Nobody knows how those end, so the
// cancellation is tried again. It returns nil past the cancellation's deadline.
func (s state) nothingLeft(of *parent, c reserve) error {
	switch {
	case of.given.Debit == of.RefundedMinor:
		return errGivenBack
	case s.now.After(payment.ClampDeadline(c.Deadline, s.now)):
		return nil
	}
	return ErrLocked
}

// giveBack holds the funds of a refund and counts it, or returns the reason for a refusal. A refund
// counts neither against the daily limit of the account that gives it, nor as a payment that it starts.
func (s state) giveBack(c reserve) payment.Reason {
	p := c.Payment
	p.Deadline = payment.ClampDeadline(p.Deadline, s.now)
	parties := payment.Parties{Sender: s.accounts[p.Sender], Receiver: s.accounts[p.Receiver]}
	if reason := payment.Judge(p, parties, s.now); reason != "" {
		return reason
	}
	debit, credit := p.Debit(), p.Credit()
	from := s.balance(place{p.Sender, debit.Currency})
	if from.Available < debit.Minor {
		return payment.InsufficientFunds
	}
	if p.Exchanges() {
		liquidity, spread := s.balance(place{payment.LiquidityAccount, credit.Currency}), s.balance(place{payment.SpreadAccount, credit.Currency})
		left, reason := payment.HoldLiquidity(liquidity.Balance, p.Exchange.MidMinor)
		loss := max(0, credit.Minor-p.Exchange.MidMinor)
		if reason != "" || spread.Available < loss {
			return payment.FXLiquidityExhausted
		}
		liquidity.Balance, liquidity.changed = left, true
		liquidity.taken += p.Exchange.MidMinor
		if loss > 0 {
			spread.Available, spread.taken, spread.changed = spread.Available-loss, spread.taken+loss, true
		}
	}
	from.Available, from.taken, from.changed = from.Available-debit.Minor, from.taken+debit.Minor, true
	of := s.parents[c.refund.Of()]
	of.given = payment.Share{Debit: of.given.Debit + credit.Minor, Credit: of.given.Credit + debit.Minor}
	return ""
}

// withRefunds returns the calls with what the decided refunds move.
func (s state) withRefunds(calls []reserve) []reserve {
	if len(s.refunds) == 0 {
		return calls
	}
	calls = slices.Clone(calls)
	for i, c := range calls {
		if p, ok := s.refunds[c.Scoped()]; ok && c.refund != nil {
			calls[i].Payment = p
		}
	}
	return calls
}

// queueCounts counts the batch's refunds in the rows of their payments.
func (ps parents) queueCounts(b *pgx.Batch) {
	var changed []*parent
	for _, p := range ps {
		if p.given != p.was {
			changed = append(changed, p)
		}
	}
	if len(changed) == 0 {
		return
	}
	slices.SortFunc(changed, func(p, q *parent) int { return bytes.Compare(p.id[:], q.id[:]) })
	var ids []pgtype.UUID
	var refunding, returned, wasRefunded, wasRefunding, wasReturned []int64
	for _, p := range changed {
		ids = append(ids, pgUUID(p.id))
		refunding, returned = append(refunding, p.wasRefunding+p.given.Debit-p.was.Debit), append(returned, p.given.Credit)
		wasRefunded, wasRefunding = append(wasRefunded, p.was.Debit-p.wasRefunding), append(wasRefunding, p.wasRefunding)
		wasReturned = append(wasReturned, p.was.Credit)
	}
	countSQL.queue(b, ids, refunding, returned, wasRefunded, wasRefunding, wasReturned)
}

// Refunded is the result of a refund's reserve.
type Refunded struct {
	Outcome payment.Outcome // of the refund; its state is PENDING if the money is held
	Refund  payment.Record  // zero if the key belongs to another request
	Payment payment.Record  // as it is afterwards
}

// Refund claims the refund's key, counts it in its payment's row and holds the funds, or records why
// not. It returns ErrNotFound, and records nothing, if there is no such payment. Its other errors are
// those of Reserve, and an InvalidError for a refund that does not fit the payment. The refund of a
// cancellation that finds everything given back is a success of before, and records nothing.
func (l *Ledger) Refund(ctx context.Context, o payment.Operation) (Refunded, error) {
	got, err := l.reserves.Do(ctx, reserve{
		Payment: payment.Payment{Key: o.Key, Client: o.Client, AttemptID: o.AttemptID, AcceptedAt: o.AcceptedAt, Deadline: o.Deadline},
		refund:  &o,
		trace:   trace.ID(ctx),
	})
	if err == nil {
		err = got.failed
	}
	if errors.Is(err, errGivenBack) {
		return l.givenBack(ctx, o)
	}
	if err != nil {
		return Refunded{}, err
	}
	return l.refunded(ctx, o, got)
}

func (l *Ledger) givenBack(ctx context.Context, o payment.Operation) (out Refunded, err error) {
	if out.Payment, err = l.Payment(ctx, o.Of()); err == nil {
		out.Outcome = payment.Standing(payment.Committed, payment.DuplicateIdempo, out.Payment.Ref, true)
	}
	return out, err
}

func (l *Ledger) refunded(ctx context.Context, o payment.Operation, got Reserved) (out Refunded, err error) {
	out.Outcome = got.outcome(o.Fingerprint())
	if out.Outcome.Reason == payment.IdempotencyMismatch {
		out.Payment, err = l.Payment(ctx, o.Of())
		return out, err
	}
	records, err := l.records(ctx, refundSQL, got.ReservationID)
	for _, rec := range records {
		if rec.Ref == got.ReservationID.String() {
			out.Refund = rec
		} else {
			out.Payment = rec
		}
	}
	return out, err
}

// Refunds reads the refunds of a payment, the oldest first. It returns ErrNotFound if the ledger has no
// such payment.
func (l *Ledger) Refunds(ctx context.Context, key payment.ScopedKey, limit int) ([]payment.Record, error) {
	of, err := l.Payment(ctx, key)
	if err != nil {
		return nil, err
	}
	return l.records(ctx, refundsOfSQL, of.Ref, limit)
}

func (l *Ledger) records(ctx context.Context, statement *form, args ...any) (records []payment.Record, err error) {
	err = l.reads.rows.run(ctx, func(ctx context.Context) error {
		rows, err := statement.query(ctx, l.reads.pool, args...)
		if err == nil {
			records, err = pgx.CollectRows(rows, scanRecord)
		}
		return err
	})
	if err != nil && !errors.Is(err, ErrFull) {
		err = fmt.Errorf("read refunds: %w", err)
	}
	return records, err
}
