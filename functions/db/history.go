package db

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

const (
	defaultPage = 20
	maxPage     = 100
	// maxSearched bounds how many payments one call of List looks at. An index on the accounts
	// would be two more for every payment to write, and make the one update of a reservation's life
	// a slow one. Without it, an account that seldom pays has the same few found among many:
	// whoever wants them goes on from next_before, and each call is counted by itself.
	maxSearched = 500
)

var (
	paymentSQL = recordSQL + `FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id
WHERE r.idempotency_key = $1`

	// The primary key is ordered by time. It is walked from its end, until enough are found.
	paymentsSQL = recordSQL + `FROM (
	SELECT * FROM reservations WHERE reservation_id < $1 ORDER BY reservation_id DESC LIMIT $5
) r
LEFT JOIN payments p ON p.payment_id = r.reservation_id
WHERE ($2 = '' OR $2 IN (r.sender_id, r.receiver_id)) AND ($3 = '' OR r.status = $3)
ORDER BY r.reservation_id DESC LIMIT $4`
)

const (
	// A plan made while the table was small would gather all of it and sort, and be kept as the
	// table grows.
	walkSQL = `SET LOCAL enable_bitmapscan = off`

	// The last one that paymentsSQL looks at when it finds too few, if there are so many.
	lastSearchedSQL = `
SELECT reservation_id FROM reservations WHERE reservation_id < $1 ORDER BY reservation_id DESC OFFSET $2 LIMIT 1`
)

// newest is a reservation id that none is above.
var newest = uuid.Max

// payment reads one payment by its key; pgx.ErrNoRows when the ledger has none.
func (r *reads) payment(ctx context.Context, key string) (rec payment.Record, err error) {
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

// payments reads a page. next is where to go on; empty when there are no older ones.
func (r *reads) payments(ctx context.Context, s search) (found []payment.Record, next string, err error) {
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
				next = found[s.limit-1].Ref
				return nil
			}
			var last uuid.UUID
			err = tx.QueryRow(ctx, lastSearchedSQL, s.before, maxSearched-1).Scan(&last)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			next = last.String()
			return err
		})
	})
	if err != nil {
		return nil, "", fmt.Errorf("read payments: %w", err)
	}
	return found, next, nil
}

// Find implements db.v1.Db.
func (d *DB) Find(ctx context.Context, in *dbv1.FindRequest) (*commonv1.Record, error) {
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
	return rpc.FromRecord(rec), nil
}

// List implements db.v1.Db.
func (d *DB) List(ctx context.Context, in *dbv1.ListRequest) (*dbv1.ListResponse, error) {
	s, err := searchOf(in)
	if err != nil {
		return nil, invalid(err)
	}
	found, next, err := d.reads.payments(ctx, s)
	if err != nil {
		return nil, unavailable(err)
	}
	out := &dbv1.ListResponse{SearchLimit: maxSearched, NextBefore: next, Payments: make([]*commonv1.Record, len(found))}
	for i, rec := range found {
		out.Payments[i] = rpc.FromRecord(rec)
	}
	return out, nil
}

func searchOf(in *dbv1.ListRequest) (s search, err error) {
	s = search{limit: int(in.Limit), before: newest, account: in.AccountId}
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
	if s.status, err = rpc.ToState(in.State); err != nil {
		return s, &payment.FieldError{Field: "state", Problem: err.Error()}
	}
	return s, nil
}
