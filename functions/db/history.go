package db

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

const (
	defaultPage = 20
	maxPage     = 100
	// maxSearched bounds how many payments one call of ListPayments looks at. An index on the accounts would
	// be two more for every payment to write, and make the one update of a reservation's life a slow one. Without it,
	// an account that seldom pays has the same few found among many: whoever wants them goes on from next_before, and
	// each call is counted by itself.
	maxSearched = 500
)

// record is one payment as the ledger keeps it.
type record struct {
	payment.Payment
	Claim
	ReservedAt time.Time
	DecidedAt  time.Time // zero while PENDING
}

const (
	recordColumns = `r.idempotency_key, r.sender_id, r.receiver_id, r.currency_input, r.amount_minor, r.amount_idr,
	coalesce(r.rate::text, ''), r.rate_id, r.rate_time, r.rule_set, r.tx_date, r.attempt_id, r.accepted_at, r.deadline,
	r.reservation_id, r.fingerprint, r.status, coalesce(p.reason, ''), r.created_at, p.decided_at`

	paymentSQL = `SELECT ` + recordColumns + `
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id
WHERE r.idempotency_key = $1`

	// A plan made while the table was small would gather all of it and sort, and be kept as the table grows.
	walkSQL = `SET LOCAL enable_bitmapscan = off`

	// The primary key is ordered by time. It is walked from its end, until enough are found.
	paymentsSQL = `SELECT ` + recordColumns + `
FROM (SELECT * FROM reservations WHERE reservation_id < $1 ORDER BY reservation_id DESC LIMIT $5) r
LEFT JOIN payments p ON p.payment_id = r.reservation_id
WHERE ($2 = '' OR $2 IN (r.sender_id, r.receiver_id)) AND ($3 = '' OR r.status = $3)
ORDER BY r.reservation_id DESC LIMIT $4`

	// The last one that paymentsSQL looks at when it finds too few, if there are so many.
	lastSearchedSQL = `
SELECT reservation_id FROM reservations WHERE reservation_id < $1 ORDER BY reservation_id DESC OFFSET $2 LIMIT 1`
)

// newest is a reservation id that none is above.
var newest = uuid.Max

func scanRecord(row pgx.CollectableRow) (record, error) {
	var rec record
	var currency, rate string
	var fingerprint []byte
	var rateTime, accepted, decided pgtype.Timestamptz
	err := row.Scan(&rec.Key, &rec.Sender, &rec.Receiver, &currency, &rec.Minor,
		&rec.AmountIDR, &rate, &rec.RateID, &rateTime, &rec.RuleSet, &rec.TxDate, &rec.Payment.AttemptID, &accepted,
		&rec.Deadline, &rec.ReservationID, &fingerprint, &rec.Status, &rec.Reason, &rec.ReservedAt, &decided)
	if err != nil {
		return rec, err
	}
	if rec.Currency, err = money.ParseCurrency(currency); err != nil {
		return rec, err
	}
	if rate != "" {
		if rec.Rate, err = money.ParseRate(rate); err != nil {
			return rec, err
		}
	}
	copy(rec.Claim.Fingerprint[:], fingerprint)
	rec.RateTime, rec.AcceptedAt, rec.DecidedAt = rateTime.Time, accepted.Time, decided.Time
	return rec, nil
}

// payment reads one payment by its key; pgx.ErrNoRows when the ledger has none.
func (r *reads) payment(ctx context.Context, key string) (rec record, err error) {
	err = r.rows.run(ctx, func(ctx context.Context) error {
		rows, err := r.pool.Query(ctx, paymentSQL, key)
		if err != nil {
			return err
		}
		rec, err = pgx.CollectExactlyOneRow(rows, scanRecord)
		return err
	})
	if err != nil {
		return rec, fmt.Errorf("read payment: %w", err)
	}
	return rec, nil
}

// search says which payments are wanted, the newest first.
type search struct {
	limit   int
	before  uuid.UUID
	account string                    // empty: of all
	status  payment.ReservationStatus // empty: any
}

// payments reads a page. next is where to go on; uuid.Nil when there are no older ones.
func (r *reads) payments(ctx context.Context, s search) (found []record, next uuid.UUID, err error) {
	err = r.lists.run(ctx, func(ctx context.Context) error {
		return pgx.BeginTxFunc(ctx, r.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, walkSQL); err != nil {
				return err
			}
			// One more than asked for tells whether there is a next page.
			rows, err := tx.Query(ctx, paymentsSQL, s.before, s.account, string(s.status), s.limit+1, maxSearched)
			if err != nil {
				return err
			}
			if found, err = pgx.CollectRows(rows, scanRecord); err != nil {
				return err
			}
			if len(found) > s.limit {
				found = found[:s.limit]
				next = found[s.limit-1].ReservationID
				return nil
			}
			err = tx.QueryRow(ctx, lastSearchedSQL, s.before, maxSearched-1).Scan(&next)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			return err
		})
	})
	if err != nil {
		return nil, uuid.Nil, fmt.Errorf("read payments: %w", err)
	}
	return found, next, nil
}

// GetPayment implements db.v1.Db.
func (d *DB) GetPayment(ctx context.Context, in *dbv1.GetPaymentRequest) (*dbv1.GetPaymentResponse, error) {
	if err := payment.CheckID("idempotency_key", in.IdempotencyKey, payment.MaxKey); err != nil {
		return nil, invalid(err)
	}
	rec, err := d.reads.payment(ctx, in.IdempotencyKey)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, status.Error(codes.NotFound, "the ledger has no payment of this key")
	}
	if err != nil {
		return nil, unavailable(err)
	}
	return rec.response(), nil
}

func (rec record) response() *dbv1.GetPaymentResponse {
	return &dbv1.GetPaymentResponse{
		IdempotencyKey: rec.Key, SenderId: rec.Sender, ReceiverId: rec.Receiver,
		CurrencyInput: rec.Currency.String(), AmountMinor: rec.Minor, AmountIdr: rec.AmountIDR,
		Rate: rec.Rate.String(), RateId: rec.RateID, RateTime: rpc.Timestamp(rec.RateTime),
		RuleSet: rec.RuleSet, TxDate: rec.TxDate,
		ReservationId: rec.ReservationID.String(), ReservationStatus: string(rec.Status), Reason: string(rec.Reason),
		AcceptedAt: rpc.Timestamp(rec.AcceptedAt), ReservedAt: rpc.Timestamp(rec.ReservedAt),
		Deadline: rpc.Timestamp(rec.Deadline), DecidedAt: rpc.Timestamp(rec.DecidedAt),
		Fingerprint: rec.Claim.Fingerprint[:], AttemptId: rec.Payment.AttemptID,
	}
}

// ListPayments implements db.v1.Db.
func (d *DB) ListPayments(ctx context.Context, in *dbv1.ListPaymentsRequest) (*dbv1.ListPaymentsResponse, error) {
	s, err := searchOf(in)
	if err != nil {
		return nil, invalid(err)
	}
	found, next, err := d.reads.payments(ctx, s)
	if err != nil {
		return nil, unavailable(err)
	}
	out := &dbv1.ListPaymentsResponse{SearchLimit: maxSearched, Payments: make([]*dbv1.GetPaymentResponse, len(found))}
	for i, rec := range found {
		out.Payments[i] = rec.response()
	}
	if next != uuid.Nil {
		out.NextBefore = next.String()
	}
	return out, nil
}

func searchOf(in *dbv1.ListPaymentsRequest) (s search, err error) {
	s = search{limit: int(in.Limit), before: newest, account: in.AccountId, status: payment.ReservationStatus(in.ReservationStatus)}
	if s.limit == 0 {
		s.limit = defaultPage
	}
	if s.limit > maxPage {
		return s, &payment.FieldError{Field: "limit", Problem: fmt.Sprintf("is %d; at most %d", in.Limit, maxPage)}
	}
	if in.Before != "" {
		if s.before, err = uuid.Parse(in.Before); err != nil {
			return s, &payment.FieldError{Field: "before", Problem: "is not the id of a reservation"}
		}
	}
	if s.account != "" {
		if err := payment.CheckID("account_id", s.account, payment.MaxAccountID); err != nil {
			return s, err
		}
	}
	if s.status != "" && !slices.Contains([]payment.ReservationStatus{payment.Pending, payment.Committed, payment.RolledBack}, s.status) {
		return s, &payment.FieldError{Field: "reservation_status", Problem: "must be PENDING, COMMITTED or ROLLEDBACK"}
	}
	return s, nil
}
