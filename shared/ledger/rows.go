package ledger

import (
	"encoding"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// row is a payment as stored in reservations.
type row struct {
	payment.Record
	id       uuid.UUID
	endedAt  time.Time // zero while PENDING
	parent   uuid.UUID // of a refund: its payment
	returned int64     // what the receiver has given back in refunds, with those on their way; in the credit currency
}

// column is one column of reservations, with how it is written and read.
type column struct {
	name   string
	kind   string               // of the array that holds its values for writing
	write  string               // the SQL expression that is written
	read   string               // the SQL expression that is read
	values func(rows []row) any // all values of a batch, as that array
	into   func(r *row) any     // the place to read a value into
}

// columns are all parts of a payment that are stored when its key is claimed.
var columns = []column{
	columnOf("reservation_id", "uuid",
		func(r *row) pgtype.UUID { return pgUUID(r.id) },
		func(r *row) any { return &r.id }),
	plainColumn("idempotency_key", "text", func(r *row) *string { return &r.Key }),
	plainColumn("client", "text", func(r *row) *string { return &r.Client }),
	columnOf("fingerprint", "bytea",
		func(r *row) []byte { return r.Claimed[:] },
		func(r *row) any { return fingerprint{&r.Claimed} }),
	plainColumn("attempt_id", "text", func(r *row) *string { return &r.AttemptID }),
	plainColumn("sender_id", "text", func(r *row) *string { return &r.Sender }),
	plainColumn("receiver_id", "text", func(r *row) *string { return &r.Receiver }),
	plainColumn("amount_idr", "bigint", func(r *row) *int64 { return &r.AmountIDR }),
	columnOf("currency_input", "text",
		func(r *row) string { return r.Currency.String() },
		func(r *row) any { return asText{&r.Currency} }),
	plainColumn("amount_minor", "bigint", func(r *row) *int64 { return &r.Minor }),
	columnOf("rate", "text",
		func(r *row) string { return r.Rate.String() },
		func(r *row) any { return asText{&r.Rate} }).as("numeric"),
	plainColumn("rate_id", "text", func(r *row) *string { return &r.RateID }),
	timeColumn("rate_time", func(r *row) *time.Time { return &r.RateTime }),
	plainColumn("rule_set", "text", func(r *row) *string { return &r.RuleSet }),
	plainColumn("tx_date", "text", func(r *row) *string { return &r.TxDate }),
	columnOf("status", "text",
		func(r *row) string { return string(r.State) },
		func(r *row) any { return &r.State }),
	timeColumn("accepted_at", func(r *row) *time.Time { return &r.AcceptedAt }),
	timeColumn("deadline", func(r *row) *time.Time { return &r.Deadline }),
	timeColumn("created_at", func(r *row) *time.Time { return &r.ReservedAt }),
	zeroColumn("hold_seconds", func(r *row) *int64 { return &r.HoldSeconds }),
	zeroColumn("authorized_minor", func(r *row) *int64 { return &r.AuthorizedMinor }),
	jsonColumn("metadata", func(r *row) *map[string]string { return &r.Metadata }, func(m map[string]string) bool { return len(m) == 0 }),
	columnOf("debit_currency", "text",
		func(r *row) string { return r.Debit().Currency.String() },
		func(r *row) any { return asText{&r.DebitCurrency} }),
	columnOf("debit_minor", "bigint",
		func(r *row) int64 { return r.Debit().Minor },
		func(r *row) any { return zeroInt{&r.DebitMinor} }),
	columnOf("credit_currency", "text",
		func(r *row) string { return r.Credit().Currency.String() },
		func(r *row) any { return asText{&r.CreditCurrency} }),
	columnOf("credit_minor", "bigint",
		func(r *row) int64 { return r.Credit().Minor },
		func(r *row) any { return zeroInt{&r.CreditMinor} }),
	columnOf("mid_minor", "bigint",
		func(r *row) pgtype.Int8 { return pgtype.Int8{Int64: r.Exchange.MidMinor, Valid: r.Exchanges()} },
		func(r *row) any { return zeroInt{&r.Exchange.MidMinor} }),
	jsonColumn("exchange", func(r *row) *payment.Exchange { return &r.Exchange }, payment.Exchange.IsZero),
	columnOf("quote_id", "text",
		func(r *row) string { return r.QuoteID },
		func(r *row) any { return &r.QuoteID }).as("uuid"),
	timeColumn("ended_at", func(r *row) *time.Time { return &r.endedAt }),
	columnOf("parent_id", "uuid",
		func(r *row) pgtype.UUID { return pgtype.UUID{Bytes: r.parent, Valid: r.parent != uuid.Nil} },
		func(r *row) any { return zeroID{&r.parent} }),
	columnOf("note", "text",
		func(r *row) string { return r.Note },
		func(r *row) any { return &r.Note }).as("text"),
	traceColumn("trace_id", func(r *row) *string { return &r.TraceID }),
}

var (
	// insertReservationsSQL takes an array of values for each column.
	insertReservationsSQL = &form{insertRowsSQL, insertRowsSQL + ` RETURNING 1`}

	insertRowsSQL = fmt.Sprintf("INSERT INTO reservations (%s)\nSELECT %s\nFROM unnest(%s) AS c(%[1]s), "+hereSQL,
		each(func(_ int, c column) string { return c.name }), each(func(_ int, c column) string { return c.write }),
		each(func(i int, c column) string { return fmt.Sprintf("$%d::%s[]", i+1, c.kind) }))

	// recordColumns are what scanRecord reads of a reservation r and its outcome p, apart from
	// whose refund it is.
	recordColumns = each(func(_ int, c column) string { return c.read }) + ", " + reasonSQL + `, p.decided_at,
	r.refunded_minor, r.refunding_minor, r.returned_minor`
)

// recordForm makes the statement that reads the records of the reservations r of a FROM clause,
// which may have conditions. rest is what follows: an order, and a limit.
func recordForm(from, rest string) *form {
	order, _, _ := strings.Cut(rest, " LIMIT ")
	return &form{
		one: "SELECT " + recordColumns + `,
	CASE WHEN r.parent_id IS NULL THEN '' ELSE coalesce((SELECT m.idempotency_key FROM reservations m WHERE m.reservation_id = r.parent_id), '') END,
	CASE WHEN r.parent_id IS NULL THEN r.client ELSE coalesce((SELECT m.client FROM reservations m WHERE m.reservation_id = r.parent_id), r.client) END
` + strings.Replace(from, outcomeHere, outcomeOf, 1) + rest,

		// A refund's payment may be on another node than the refund.
		rows: `
WITH found AS MATERIALIZED (
	SELECT r.* ` + strings.Replace(from, outcomeHere, "", 1) + rest + `
)` + outcomesOfFoundSQL + `, parents AS MATERIALIZED (
	SELECT DISTINCT m.reservation_id, m.idempotency_key, m.client FROM found r JOIN reservations m ON m.reservation_id = r.parent_id
)
SELECT ` + recordColumns + `, coalesce(m.idempotency_key, ''), coalesce(m.client, r.client)
FROM found r LEFT JOIN outcomes p ON p.payment_id = r.reservation_id LEFT JOIN parents m ON m.reservation_id = r.parent_id` + order,
	}
}

// outcomesOfFoundSQL reads the outcomes of a CTE named found, which is at the coordinator.
const outcomesOfFoundSQL = `, outcomes AS MATERIALIZED (
	SELECT p.payment_id, p.reason, p.decided_at FROM found r JOIN payments p
		ON p.payment_id = r.reservation_id AND p.idempotency_key = r.idempotency_key
)`

// outcomeHere is the place in the FROM clause of recordForm where the outcome is joined on one
// server.
const outcomeHere = "/* outcome */"

// reasonSQL is the reason of a reservation r with its outcome p. An authorized payment has one while it
// waits for its capture.
const reasonSQL = `coalesce(p.reason, CASE WHEN r.authorized_minor IS NOT NULL THEN '` + string(payment.Authorized) + `' ELSE '' END)`

func each(part func(i int, c column) string) string {
	parts := make([]string, len(columns))
	for i, c := range columns {
		parts[i] = part(i, c)
	}
	return strings.Join(parts, ", ")
}

// plainColumn is a column whose values are written and read as they are.
func plainColumn[T any](name, kind string, at func(*row) *T) column {
	return columnOf(name, kind, func(r *row) T { return *at(r) }, func(r *row) any { return at(r) })
}

// zeroColumn is a column of numbers that is null for 0.
func zeroColumn(name string, at func(*row) *int64) column {
	return columnOf(name, "bigint",
		func(r *row) pgtype.Int8 { return pgtype.Int8{Int64: *at(r), Valid: *at(r) != 0} },
		func(r *row) any { return zeroInt{at(r)} })
}

// timeColumn is a column that is null for the zero time.
func timeColumn(name string, at func(*row) *time.Time) column {
	return columnOf(name, "timestamptz",
		func(r *row) pgtype.Timestamptz { return timestamp(*at(r)) },
		func(r *row) any { return zeroTime{at(r)} })
}

// jsonColumn is a column of JSON that is null for an empty value.
func jsonColumn[T any](name string, at func(*row) *T, empty func(T) bool) column {
	write := func(r *row) string {
		if empty(*at(r)) {
			return ""
		}
		text, _ := json.Marshal(*at(r)) // maps of texts and prices can always be encoded
		return string(text)
	}
	return columnOf(name, "text", write, func(r *row) any { return asJSON{at(r)} }).as("jsonb")
}

// traceColumn is a column of traces' ids. They have as many bits as a uuid, and are written without
// hyphens.
func traceColumn(name string, at func(*row) *string) column {
	c := columnOf(name, "text", func(r *row) string { return *at(r) }, func(r *row) any { return at(r) }).as("uuid")
	c.read = fmt.Sprintf("coalesce(replace(r.%s::text, '-', ''), '')", name)
	return c
}

func columnOf[T any](name, kind string, value func(*row) T, into func(*row) any) column {
	return column{name: name, kind: kind, write: name, read: "r." + name, into: into, values: func(rows []row) any {
		values := make([]T, len(rows))
		for i := range rows {
			values[i] = value(&rows[i])
		}
		return values
	}}
}

// as gives the column another type than the texts that are its values. An empty text is null.
func (c column) as(kind string) column {
	c.write = fmt.Sprintf("nullif(%s, '')::%s", c.name, kind)
	c.read = fmt.Sprintf("coalesce(r.%s::text, '')", c.name)
	return c
}

// queueReservations queues the statement that writes the rows of new claims.
func queueReservations(b *pgx.Batch, rows []row) {
	values := make([]any, len(columns))
	for i, c := range columns {
		values[i] = c.values(rows)
	}
	insertReservationsSQL.queue(b, values...)
}

func scanRecord(from pgx.CollectableRow) (payment.Record, error) {
	r, err := scanRow(from)
	return r.Record, err
}

func scanRow(from pgx.CollectableRow) (row, error) {
	var r row
	var ofClient string // whose payment it is, or whose the refund's payment is
	into := make([]any, 0, len(columns)+7)
	for _, c := range columns {
		into = append(into, c.into(&r))
	}
	var reason payment.Reason
	err := from.Scan(append(into, &reason, zeroTime{&r.DecidedAt},
		zeroInt{&r.RefundedMinor}, zeroInt{&r.RefundingMinor}, zeroInt{&r.returned}, &r.PaymentKey, &ofClient)...)
	r.PaymentClient = payment.OtherClient(r.Client, ofClient)
	r.Outcome = payment.Standing(r.State, reason, r.id.String(), false)
	r.Payment = unnamedRupiah(r.Payment)
	return r, err
}

// unnamedRupiah returns a payment as it was before it was stored. The tables name the two balances of
// every payment; a payment between rupiah balances does not.
func unnamedRupiah(p payment.Payment) payment.Payment {
	if p.DebitCurrency == money.IDR && p.CreditCurrency == money.IDR {
		p.DebitCurrency, p.CreditCurrency = money.Currency{}, money.Currency{}
		p.DebitMinor, p.CreditMinor = 0, 0
	}
	return p
}

// asText reads a value that is stored as text.
type asText struct{ into encoding.TextUnmarshaler }

// ScanText implements pgtype.TextScanner.
func (t asText) ScanText(v pgtype.Text) error { return t.into.UnmarshalText([]byte(v.String)) }

// asJSON reads a value that is stored as JSON. Null changes nothing.
type asJSON struct{ into any }

// ScanText implements pgtype.TextScanner.
func (j asJSON) ScanText(v pgtype.Text) error {
	if v.String == "" {
		return nil
	}
	return json.Unmarshal([]byte(v.String), j.into)
}

// zeroInt reads null as 0.
type zeroInt struct{ into *int64 }

// ScanInt64 implements pgtype.Int64Scanner.
func (z zeroInt) ScanInt64(v pgtype.Int8) error {
	*z.into = v.Int64
	return nil
}

// zeroID reads null as the zero id.
type zeroID struct{ into *uuid.UUID }

// ScanUUID implements pgtype.UUIDScanner.
func (z zeroID) ScanUUID(v pgtype.UUID) error {
	*z.into = v.Bytes
	return nil
}

// zeroTime reads null as the zero time.
type zeroTime struct{ into *time.Time }

// ScanTimestamptz implements pgtype.TimestamptzScanner.
func (z zeroTime) ScanTimestamptz(v pgtype.Timestamptz) error {
	*z.into = v.Time
	return nil
}

type fingerprint struct{ into *payment.Fingerprint }

// ScanBytes implements pgtype.BytesScanner.
func (f fingerprint) ScanBytes(v []byte) error {
	if copy(f.into[:], v) != len(f.into) {
		return fmt.Errorf("a fingerprint of %d bytes", len(v))
	}
	return nil
}
