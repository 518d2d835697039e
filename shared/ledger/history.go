package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/payment"
)

// The limits of one page of payments.
const (
	// MaxPage is the most payments on a page.
	MaxPage = 100
	// MaxSearched is the most payments that the search for one page looks at. Indexes on the
	// accounts would make two more writes for every payment, and would slow down the one update of
	// a reservation. Without them, a search for an account that pays rarely finds few payments per
	// page. The caller continues with the page's next.
	MaxSearched = 500
)

var (
	paymentSQL = recordSQL + `FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id
WHERE r.idempotency_key = $1`

	// The primary key is ordered by time. The search walks it from its end until it has found
	// enough.
	paymentsSQL = recordSQL + `FROM (
	SELECT * FROM reservations WHERE reservation_id < $1 ORDER BY reservation_id DESC LIMIT $5
) r
LEFT JOIN payments p ON p.payment_id = r.reservation_id
WHERE ($2 = '' OR $2 IN (r.sender_id, r.receiver_id)) AND ($3 = '' OR r.status = $3)
ORDER BY r.reservation_id DESC LIMIT $4`
)

const (
	// A plan made while the table was small would read and sort the whole table. It would still be
	// used after the table has grown.
	walkSQL = `SET LOCAL enable_bitmapscan = off`

	// lastSearchedSQL finds the last payment that paymentsSQL looks at when it finds too few.
	lastSearchedSQL = `
SELECT reservation_id FROM reservations WHERE reservation_id < $1 ORDER BY reservation_id DESC OFFSET $2 LIMIT 1`
)

// Newest is greater than every reservation's id.
var Newest = uuid.Max

// Payment reads one payment by its key. It returns ErrNotFound if the ledger has none, and ErrFull
// if too many reads wait.
func (l *Ledger) Payment(ctx context.Context, key string) (rec payment.Record, err error) {
	err = l.reads.rows.run(ctx, func(ctx context.Context) error {
		rows, err := l.reads.pool.Query(ctx, paymentSQL, key)
		if err != nil {
			return err
		}
		rec, err = pgx.CollectExactlyOneRow(rows, scanRecord)
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return rec, ErrNotFound
	}
	if err != nil {
		return rec, fmt.Errorf("read payment: %w", err)
	}
	return rec, nil
}

// Search selects payments. The newest come first.
type Search struct {
	Limit   int                       // 1 to MaxPage
	Before  uuid.UUID                 // a reservation's id: only older ones are returned; Newest for all
	Account string                    // the sender or the receiver; empty: any
	Status  payment.ReservationStatus // empty: any
}

// Payments reads a page. next is the Before of the next page, and is empty if there are no older
// payments. A page may have fewer payments than the limit, or none, and still have a next: see
// MaxSearched. Payments returns ErrFull if too many reads wait.
func (l *Ledger) Payments(ctx context.Context, s Search) (found []payment.Record, next string, err error) {
	err = l.reads.lists.run(ctx, func(ctx context.Context) error {
		return pgx.BeginTxFunc(ctx, l.reads.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			found, next, err = readPage(ctx, tx, s)
			return err
		})
	})
	if err != nil {
		return nil, "", fmt.Errorf("read payments: %w", err)
	}
	return found, next, nil
}

func readPage(ctx context.Context, tx pgx.Tx, s Search) (found []payment.Record, next string, err error) {
	if _, err := tx.Exec(ctx, walkSQL); err != nil {
		return nil, "", err
	}
	// One payment more than the limit shows whether there is a next page.
	rows, err := tx.Query(ctx, paymentsSQL, s.Before, s.Account, string(s.Status), s.Limit+1, MaxSearched)
	if err != nil {
		return nil, "", err
	}
	if found, err = pgx.CollectRows(rows, scanRecord); err != nil {
		return nil, "", err
	}
	if len(found) > s.Limit {
		found = found[:s.Limit]
		return found, found[s.Limit-1].Ref, nil
	}
	var last uuid.UUID
	err = tx.QueryRow(ctx, lastSearchedSQL, s.Before, MaxSearched-1).Scan(&last)
	if errors.Is(err, pgx.ErrNoRows) {
		return found, "", nil
	}
	return found, last.String(), err
}
