package ledger

import (
	"bytes"
	"encoding/json"
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
	lockQuotesSQL = `SELECT FROM quotes WHERE quote_id = ANY($1::text[]::uuid[]) ORDER BY quote_id FOR NO KEY UPDATE`

	readQuotesSQL = `
SELECT quote_id, client, sender_id, receiver_id, currency_input, amount_minor, debit_currency, debit_minor, credit_currency, credit_minor,
	amount_idr, coalesce(exchange::text, ''), rate_time, created_at, expires_at, used_by
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

// judge returns the reason why a payment can't use the quote; "" if it can. A nil quote does not
// exist.
func (q *quote) judge(p payment.Payment, now time.Time) payment.Reason {
	switch {
	case q == nil, !q.fits(p):
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
			asText{&p.CreditCurrency}, &p.CreditMinor, &p.AmountIDR, &exchange, zeroTime{&p.RateTime}, &q.Created, &q.Expires, &usedBy)
		if err != nil {
			return q, err
		}
		q.UsedBy, p.QuoteID = usedBy.Bytes, q.ID.String()
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
		ids[i], by[i] = pgtype.UUID{Bytes: q.ID, Valid: true}, pgtype.UUID{Bytes: q.usedBy, Valid: true}
	}
	b.Queue(useQuotesSQL, ids, by)
}
