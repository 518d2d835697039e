package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// The limits of one page of payments.
const (
	// MaxPage is the most payments on a page.
	MaxPage = 100
	// MaxSearched is the most payments that the search for one page looks at. Only the time and the ref
	// of a payment are found by an index, the primary key. Indexes on the accounts would make two
	// more writes for every payment. Without them, a search for an account that pays rarely finds few
	// payments per page. The caller continues with the page's next.
	MaxSearched = 2000
)

var (
	// A client's own payment comes first, and then the newest. The outcome that is read is told.
	paymentSQL = recordForm(`FROM reservations r `+outcomeHere+`
WHERE r.idempotency_key = $1 AND ($3 OR r.client IN ($2, '')) AND `+postgres.ReplicatedSQL, `
ORDER BY r.client = $2 DESC, r.reservation_id DESC LIMIT 1`)
	paymentByRefSQL = recordForm(`FROM reservations r `+outcomeHere+`
WHERE r.reservation_id = $1`, "")
	toldByRefSQL = recordForm(`FROM reservations r `+outcomeHere+`
WHERE r.reservation_id = $1 AND `+postgres.ReplicatedSQL, "")

	// The primary key is ordered by time. The search walks it from the end of the wanted time until it
	// has found enough.
	paymentsSQL = recordForm(`FROM (
	SELECT * FROM reservations WHERE reservation_id >= $1 AND reservation_id < $2 ORDER BY reservation_id DESC LIMIT $3
) r
`+outcomeHere+`
WHERE ($5 = '' OR $5 IN (r.sender_id, r.receiver_id)) AND ($6 = '' OR r.status = $6)
	AND ($7::text[] IS NULL OR r.sender_id LIKE ANY($7) OR r.receiver_id LIKE ANY($7) AND NOT r.receiver_id = ANY($8))
	AND ($9 = '' OR r.currency_input = $9)
	AND ($10::bigint = 0 OR `+sentSQL+` >= $10) AND ($11::bigint = 0 OR `+sentSQL+` <= $11)
	AND ($12::timestamptz IS NULL OR r.created_at >= $12) AND ($13::timestamptz IS NULL OR r.created_at < $13)
	AND ($14::jsonb IS NULL OR r.metadata @> $14) AND ($15::text[] IS NULL OR r.client = ANY($15))`, `
ORDER BY r.reservation_id DESC LIMIT $4`)
)

// sentSQL is the amount that the client sent, in minor units of its currency; null if it is unknown.
const sentSQL = `CASE WHEN r.amount_minor > 0 THEN r.amount_minor WHEN r.currency_input = 'IDR' THEN r.amount_idr END`

const (
	// A plan made while the table was small would read and sort the whole table. It would still be
	// used after the table has grown.
	walkSQL = `SET LOCAL enable_bitmapscan = off`

	// lastSearchedSQL finds the last payment that paymentsSQL looks at when it finds too few.
	lastSearchedSQL = `
SELECT reservation_id FROM reservations WHERE reservation_id >= $1 AND reservation_id < $2
ORDER BY reservation_id DESC OFFSET $3 LIMIT 1`
)

// Newest is greater than every reservation's id.
var Newest = uuid.Max

// Payment reads one payment by its key: the client's, or else the one without a client, which a
// release before clients may have taken from it. It returns ErrNotFound if the ledger has none, and
// ErrFull if too many reads wait.
func (l *Ledger) Payment(ctx context.Context, key payment.ScopedKey) (payment.Record, error) {
	return l.onePayment(ctx, paymentSQL, key.Key, key.Client, false)
}

// PaymentOfAny is like Payment for the payments of all clients. Of several, it reads the one of the
// client that is given, or else the newest.
func (l *Ledger) PaymentOfAny(ctx context.Context, key payment.ScopedKey) (payment.Record, error) {
	return l.onePayment(ctx, paymentSQL, key.Key, key.Client, true)
}

// PaymentByRef is like PaymentOfAny for a reservation's id.
func (l *Ledger) PaymentByRef(ctx context.Context, ref uuid.UUID) (payment.Record, error) {
	return l.onePayment(ctx, toldByRefSQL, ref)
}

func (l *Ledger) onePayment(ctx context.Context, statement *form, by ...any) (rec payment.Record, err error) {
	err = l.reads.finding.run(ctx, func(ctx context.Context) error {
		found, err := l.reads.finds.Do(ctx, find{statement, by})
		switch {
		case err != nil:
			return fmt.Errorf("read payment: %w", err)
		case found == nil:
			return ErrNotFound
		}
		rec = *found
		return nil
	})
	return rec, err
}

// Search selects payments. The newest come first. A zero field selects all, except Limit and Before.
type Search struct {
	Limit   int                       // 1 to MaxPage
	Before  uuid.UUID                 // a reservation's id: only older ones are returned; Newest for all
	Account string                    // the sender or the receiver
	Status  payment.ReservationStatus // of the reservation
	// Accounts are ids of senders and receivers, or prefixes of ids that end in *. They do not name
	// accounts of the house.
	Accounts []string
	Currency string // of the amount as it was sent
	// MinMinor and MaxMinor bound the amount as it was sent, in minor units of Currency.
	MinMinor, MaxMinor int64
	// From and To bound the time of the reservation; To is not part of it.
	From, To time.Time
	Ref      uuid.UUID         // the reservation's id
	Clients  []string          // whose payments; nil: of all clients. The empty name is that of payments without a client
	Metadata map[string]string // is part of the payment's
}

// idSlack is how much later than its reservation a reservation's id may be: the ids of one batch count
// on in parts of a millisecond.
const idSlack = time.Second

// ids returns the bounds of the ids that the search looks at; before is not part of them.
func (s Search) ids() (from, before uuid.UUID) {
	before = s.Before
	lower := func(id uuid.UUID) {
		if bytes.Compare(id[:], before[:]) < 0 {
			before = id
		}
	}
	if !s.From.IsZero() {
		from = firstID(s.From)
	}
	if !s.To.IsZero() {
		lower(firstID(s.To.Add(idSlack)))
	}
	if s.Ref != uuid.Nil {
		next := s.Ref
		for i := len(next) - 1; i >= 0; i-- {
			if next[i]++; next[i] != 0 {
				break
			}
		}
		if lower(next); bytes.Compare(from[:], s.Ref[:]) < 0 {
			from = s.Ref
		}
	}
	return from, before
}

// patterns returns Accounts as patterns of LIKE; nil if there are none.
func (s Search) patterns() (patterns []string) {
	escape := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)
	for _, account := range s.Accounts {
		start, cut := strings.CutSuffix(account, "*")
		if patterns = append(patterns, escape.Replace(start)); cut {
			patterns[len(patterns)-1] += "%"
		}
	}
	return patterns
}

// arguments are those of paymentsSQL. One payment more than the limit shows whether there is a next
// page.
func (s Search) arguments() []any {
	from, before := s.ids()
	var metadata any
	if len(s.Metadata) > 0 {
		metadata = s.Metadata
	}
	return []any{
		from, before, MaxSearched, s.Limit + 1, s.Account, string(s.Status), s.patterns(), payment.HouseAccounts, s.Currency,
		s.MinMinor, s.MaxMinor, timestamp(s.From), timestamp(s.To), metadata, s.Clients,
	}
}

// Payments reads a page. next is the Before of the next page, and is empty if there are no older
// payments. A page may have fewer payments than the limit, or none, and still have a next: see
// MaxSearched. Payments returns ErrFull if too many reads wait.
func (l *Ledger) Payments(ctx context.Context, s Search) (found []payment.Record, next string, err error) {
	err = l.reads.lists.run(ctx, func(ctx context.Context) error {
		return l.reads.snapshot(ctx, func(ctx context.Context, tx pgx.Tx) error {
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
	rows, err := paymentsSQL.query(ctx, tx, s.arguments()...)
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
	from, before := s.ids()
	err = tx.QueryRow(ctx, lastSearchedSQL, from, before, MaxSearched-1).Scan(&last)
	if errors.Is(err, pgx.ErrNoRows) {
		return found, "", nil
	}
	return found, last.String(), err
}
