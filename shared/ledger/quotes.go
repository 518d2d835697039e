package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"pgw/shared/payment"
)

// Quote is a firm price: one payment of these parties and amounts may use it until it expires.
type Quote struct {
	ID      uuid.UUID
	Client  string          // who asked for it; empty if clients have no names
	Payment payment.Payment // the parties, what is moved, and its price
	Created time.Time
	Expires time.Time
	UsedBy  uuid.UUID // the reservation that used it; uuid.Nil: none
}

// quote is a Quote in a batch.
type quote struct {
	Quote
	usedBy uuid.UUID // the reservation of this batch that uses it
}

const (
	// lockClientSQL makes the count of a client's open quotes exact: it can't change until the
	// transaction ends. The first number keeps these locks apart from others.
	lockClientSQL = `SELECT pg_advisory_xact_lock(18, hashtext($1))`

	openQuotesSQL = `
SELECT count(*), min(expires_at), clock_timestamp() FROM quotes
WHERE client = $1 AND used_by IS NULL AND expires_at > clock_timestamp()`

	// Nothing deletes quotes, because db may delete nothing: the table grows by a row for each quote.
	insertQuoteSQL = `
INSERT INTO quotes (quote_id, client, sender_id, receiver_id, currency_input, amount_minor, debit_currency, debit_minor, credit_currency,
	credit_minor, amount_idr, exchange, rate, rate_id, rate_time, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, nullif($12, '')::jsonb, nullif($13, '')::numeric, $14, $15, $16, $17)`

	lockQuotesSQL = `SELECT FROM quotes WHERE quote_id = ANY($1::text[]::uuid[]) ORDER BY quote_id FOR NO KEY UPDATE`

	readQuotesSQL = `
SELECT quote_id, client, sender_id, receiver_id, currency_input, amount_minor, debit_currency, debit_minor, credit_currency, credit_minor,
	amount_idr, coalesce(exchange::text, ''), coalesce(rate::text, ''), rate_id, rate_time, created_at, expires_at, used_by
FROM quotes WHERE quote_id = ANY($1::text[]::uuid[])`

	// useQuotesSQL fails (division by zero) unless each quote can still be used.
	useQuotesSQL = `
WITH wanted AS (
	SELECT * FROM unnest($1::uuid[], $2::uuid[]) AS w(quote_id, used_by)
), locked AS MATERIALIZED (
	SELECT w.* FROM wanted w JOIN quotes q ON q.quote_id = w.quote_id
	WHERE q.used_by IS NULL AND q.expires_at >= clock_timestamp()
	ORDER BY q.quote_id FOR NO KEY UPDATE OF q
), used AS (
	UPDATE quotes q SET used_by = l.used_by FROM locked l WHERE q.quote_id = l.quote_id RETURNING 1
)
SELECT 1 / (count(*) = cardinality($1))::int FROM used`
)

const (
	// maxPuts is the most quotes that are put at once, so that quotes that wait for each other leave
	// connections to payments. maxWaitingPuts is the most that are put or wait.
	maxPuts, maxWaitingPuts = 2, 64
)

// NewQuote is a quote to put.
type NewQuote struct {
	ID       uuid.UUID
	Client   string          // who asks for it; empty if clients have no names
	Payment  payment.Payment // the parties, what is moved, and its price
	Lifetime time.Duration   // from now by the database's clock: payment.MinQuoteLifetime to MaxQuoteLifetime
	MaxOpen  int             // the most open quotes of the client, with this one
}

// ManyQuotesError means that a client has as many open quotes as it may have.
type ManyQuotesError struct{ RetryAfter time.Duration } // until the next of them expires

func (e *ManyQuotesError) Error() string { return "the client has too many open quotes" }

// PutQuote keeps a quote. If there is a quote with its id, PutQuote returns that one. It returns a ManyQuotesError if the client has MaxOpen open quotes, and
// ErrFull if too many quotes wait.
func (l *Ledger) PutQuote(ctx context.Context, n NewQuote) (q Quote, err error) {
	if n.Lifetime < payment.MinQuoteLifetime || n.Lifetime > payment.MaxQuoteLifetime {
		return q, &InvalidError{&payment.FieldError{
			Field: "lifetime", Problem: fmt.Sprintf("is %s; must be %s to %s", n.Lifetime, payment.MinQuoteLifetime, payment.MaxQuoteLifetime),
		}}
	}
	err = l.quotes.run(ctx, func(ctx context.Context) error {
		return l.begin(ctx, func(tx pgx.Tx) error {
			q, err = putQuote(ctx, tx, n)
			return err
		})
	})
	var many *ManyQuotesError
	if err != nil && !errors.As(err, &many) {
		err = fmt.Errorf("put a quote: %w", err)
	}
	return q, err
}

func putQuote(ctx context.Context, tx pgx.Tx, n NewQuote) (Quote, error) {
	var open int
	var first pgtype.Timestamptz
	var now time.Time
	var kept []Quote
	b := &pgx.Batch{}
	b.Queue(lockClientSQL, n.Client)
	b.Queue(readQuotesSQL, []string{n.ID.String()}).Query(func(rows pgx.Rows) (err error) {
		kept, err = collectQuotes(rows)
		return err
	})
	b.Queue(openQuotesSQL, n.Client).QueryRow(func(row pgx.Row) error { return row.Scan(&open, &first, &now) })
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return Quote{}, err
	}
	if len(kept) == 1 {
		return kept[0], nil // the answer to an earlier call was lost
	}
	if open >= n.MaxOpen {
		return Quote{}, &ManyQuotesError{max(first.Time.Sub(now), 0)}
	}
	q := Quote{ID: n.ID, Client: n.Client, Payment: n.Payment, Created: now, Expires: now.Add(n.Lifetime)}
	p, exchange := q.Payment, ""
	if !p.Exchange.IsZero() {
		text, err := json.Marshal(p.Exchange)
		if err != nil {
			return q, err
		}
		exchange = string(text)
	}
	_, err := tx.Exec(ctx, insertQuoteSQL, pgUUID(q.ID), q.Client, p.Sender, p.Receiver, p.Currency.String(), p.Minor,
		p.Debit().Currency.String(), p.Debit().Minor, p.Credit().Currency.String(), p.Credit().Minor, p.AmountIDR, exchange,
		p.Rate.String(), p.RateID, timestamp(p.RateTime), timestamp(q.Created), timestamp(q.Expires))
	return q, err
}

// Quote reads a quote. It returns ErrNotFound if there is none, and ErrFull if too many reads wait.
func (l *Ledger) Quote(ctx context.Context, id uuid.UUID) (q Quote, err error) {
	var found []Quote
	err = l.reads.rows.run(ctx, func(ctx context.Context) error {
		rows, err := l.reads.pool.Query(ctx, readQuotesSQL, []string{id.String()})
		if err != nil {
			return err
		}
		found, err = collectQuotes(rows)
		return err
	})
	switch {
	case err != nil:
		return q, fmt.Errorf("read a quote: %w", err)
	case len(found) == 0:
		return q, ErrNotFound
	}
	return found[0], nil
}

// judge returns the reason why a payment can't use the quote; "" if it can. A nil quote does not
// exist.
func (q *quote) judge(p payment.Payment, now time.Time) payment.Reason {
	switch {
	// A release before clients names none in a payment. Its gateway has checked whose quote it is.
	case q == nil, !q.fits(p), p.Client != "" && p.Client != q.Client:
		return payment.QuoteMismatch
	case q.UsedBy != uuid.Nil, q.usedBy != uuid.Nil:
		return payment.QuoteUsed
	case now.After(q.Expires):
		return payment.QuoteExpired
	}
	return ""
}

// fits reports whether the quote was given for the payment's parties, amounts and price.
func (q *quote) fits(p payment.Payment) bool {
	given := q.Payment
	return given.Sender == p.Sender && given.Receiver == p.Receiver && given.Sent() == p.Sent() &&
		given.Debit() == p.Debit() && given.Credit() == p.Credit() && given.AmountIDR == p.AmountIDR &&
		given.Exchange.MidMinor == p.Exchange.MidMinor
}

func (s state) takeQuotes(rows pgx.Rows) error {
	found, err := collectQuotes(rows)
	for _, q := range found {
		s.quotes[q.ID.String()] = &quote{Quote: q}
	}
	return err
}

func collectQuotes(rows pgx.Rows) ([]Quote, error) {
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (q Quote, err error) {
		p := &q.Payment
		var exchange string
		var usedBy pgtype.UUID
		err = row.Scan(&q.ID, &q.Client, &p.Sender, &p.Receiver, asText{&p.Currency}, &p.Minor, asText{&p.DebitCurrency}, &p.DebitMinor,
			asText{&p.CreditCurrency}, &p.CreditMinor, &p.AmountIDR, &exchange, asText{&p.Rate}, &p.RateID, zeroTime{&p.RateTime}, &q.Created, &q.Expires, &usedBy)
		if err != nil {
			return q, err
		}
		q.UsedBy, p.QuoteID = usedBy.Bytes, q.ID.String()
		*p = unnamedRupiah(*p)
		if exchange != "" {
			err = json.Unmarshal([]byte(exchange), &p.Exchange)
		}
		return q, err
	})
}

// queueQuotes marks the quotes that the batch uses.
func (s state) queueQuotes(b *pgx.Batch) {
	var used []*quote
	for _, q := range s.quotes {
		if q.usedBy != uuid.Nil {
			used = append(used, q)
		}
	}
	if len(used) == 0 {
		return
	}
	slices.SortFunc(used, func(a, b *quote) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	ids, by := make([]pgtype.UUID, len(used)), make([]pgtype.UUID, len(used))
	for i, q := range used {
		ids[i], by[i] = pgUUID(q.ID), pgUUID(q.usedBy)
	}
	b.Queue(useQuotesSQL, ids, by)
}
