package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// Sum shows whether the ledger adds up. The amounts are of the balances in rupiah.
type Sum struct {
	Balances int64 // of all accounts, except the world outside
	Holds    int64 // of PENDING reservations
	Funded   int64 // money that came in, minus money that went out

	Pending       int64 // reservations that hold money
	AccountsOff   int64 // balances that differ from their entries, or whose holds differ from the reservations
	CurrenciesOff int64 // currencies whose balances and holds, with the world outside, do not sum to zero
	BookedOff     int64 // payments and transfers whose entries differ from them
	OutcomesOff   int64 // reservations whose payment row contradicts them, is missing, or came too early
	KeysUnclaimed int64 // payments without a reservation
	RefundsOff    int64 // payments that have not counted their refunds, or whose refunds do not fit them
}

// Err describes the difference. It is nil if everything adds up.
func (s Sum) Err() error {
	if s.Balances+s.Holds == s.Funded && s.AccountsOff+s.CurrenciesOff+s.BookedOff+s.OutcomesOff+s.KeysUnclaimed+s.RefundsOff == 0 {
		return nil
	}
	return fmt.Errorf("the ledger does not add up: balances %d + holds %d, funded %d; %d balances, %d currencies, %d bookings, %d outcomes, %d payments and %d refunded payments are off",
		s.Balances, s.Holds, s.Funded, s.AccountsOff, s.CurrenciesOff, s.BookedOff, s.OutcomesOff, s.KeysUnclaimed, s.RefundsOff)
}

const (
	// shouldSQL calculates each balance from its entries, and its holds from the reservations.
	shouldSQL = `
should AS (
	SELECT account_id, currency, sum(amount)::bigint AS amount, sum(held)::bigint AS held FROM (
		SELECT account_id, currency, amount, 0 AS held FROM entries
		UNION ALL
		SELECT leg.account_id, leg.currency, 0, leg.held
		FROM (SELECT ` + movedSQL + ` FROM reservations r WHERE r.status = 'PENDING') p, ` + legsSQL + ` WHERE leg.held > 0) m
	GROUP BY account_id, currency
)`
	accountOffSQL = `
coalesce(b.available + b.held, 0) <> coalesce(s.amount, 0) OR coalesce(b.held, 0) <> coalesce(s.held, 0)`

	// bookedOffSQL lists the transactions whose entries are not those of their payment or transfer.
	bookedOffSQL = `
booked_off AS (
	SELECT transaction_id FROM (
		SELECT p.reservation_id AS transaction_id, leg.account_id, leg.currency, leg.kind, leg.amount, p.decided_at AS booked_at
		FROM (SELECT ` + movedSQL + `, o.decided_at FROM reservations r LEFT JOIN payments o ON o.payment_id = r.reservation_id AND o.idempotency_key = r.idempotency_key
			WHERE r.status = 'COMMITTED') p, ` + legsSQL + `
		UNION ALL
		SELECT md5(t.transfer_id)::uuid, leg.account_id, t.currency, CASE WHEN t.amount > 0 THEN 'funding' ELSE 'withdrawal' END, leg.amount, t.booked_at
		FROM transfers t, LATERAL (SELECT t.account_id, t.amount UNION ALL SELECT '` + payment.OutsideAccount + `', -t.amount) leg
	) w FULL JOIN entries e USING (transaction_id, account_id, currency, kind, amount, booked_at)
	WHERE w.transaction_id IS NULL OR e.transaction_id IS NULL
	GROUP BY transaction_id
)`
	outcomeOffSQL = `
p.status IS DISTINCT FROM CASE r.status WHEN 'COMMITTED' THEN 'SUCCESS' WHEN 'ROLLEDBACK' THEN 'FAILED' END
OR (p.payment_id IS NOT NULL AND (p.sender_id, p.receiver_id, p.amount_idr, p.currency_input)
	IS DISTINCT FROM (r.sender_id, r.receiver_id, r.amount_idr, r.currency_input))`

	// refundsOffSQL lists the payments whose counters are not the sums of their refunds, or that have a
	// refund between other parties or in other currencies.
	refundsOffSQL = `
refunds AS (
	SELECT reservation_id, parent_id, status, sender_id, receiver_id, debit_currency, credit_currency, debit_minor, credit_minor
	FROM reservations WHERE parent_id IS NOT NULL
), refunds_off AS (
	SELECT coalesce(m.reservation_id, s.parent_id) AS reservation_id, m.idempotency_key, m.refunded, m.refunding, m.returned,
		s.refunded AS should_refunded, s.refunding AS should_refunding, s.returned AS should_returned, coalesce(s.fits, true) AS fits
	FROM (
		SELECT r.parent_id, coalesce(sum(r.credit_minor) FILTER (WHERE r.status = 'COMMITTED'), 0)::bigint AS refunded,
			coalesce(sum(r.credit_minor) FILTER (WHERE r.status = 'PENDING'), 0)::bigint AS refunding,
			coalesce(sum(r.debit_minor) FILTER (WHERE r.status <> 'ROLLEDBACK'), 0)::bigint AS returned,
			bool_and((r.sender_id, r.receiver_id, r.debit_currency, r.credit_currency) =
				(p.receiver_id, p.sender_id, coalesce(p.credit_currency, 'IDR'), coalesce(p.debit_currency, 'IDR'))) AS fits
		FROM refunds r LEFT JOIN reservations p ON p.reservation_id = r.parent_id GROUP BY r.parent_id
	) s FULL JOIN (
		SELECT reservation_id, idempotency_key, coalesce(refunded_minor, 0) AS refunded, coalesce(refunding_minor, 0) AS refunding,
			coalesce(returned_minor, 0) AS returned
		FROM reservations WHERE parent_id IS NULL AND (refunded_minor IS NOT NULL OR refunding_minor IS NOT NULL OR returned_minor IS NOT NULL)
	) m ON m.reservation_id = s.parent_id
	WHERE (coalesce(m.refunded, 0), coalesce(m.refunding, 0), coalesce(m.returned, 0)) <>
		(coalesce(s.refunded, 0), coalesce(s.refunding, 0), coalesce(s.returned, 0)) OR s.fits IS FALSE
)`

	// One statement uses one snapshot, so it can run while payments are made.
	sumSQL = `WITH ` + shouldSQL + `, ` + bookedOffSQL + `, ` + refundsOffSQL + `
SELECT (SELECT coalesce(sum(available), 0)::bigint FROM balances WHERE currency = 'IDR' AND account_id <> '` + payment.OutsideAccount + `'),
	(SELECT coalesce(sum(held), 0)::bigint FROM balances WHERE currency = 'IDR'),
	(SELECT coalesce(sum(amount), 0)::bigint FROM transfers WHERE currency = 'IDR'),
	(SELECT count(*) FROM reservations WHERE status = 'PENDING'),
	(SELECT count(*) FROM balances b FULL JOIN should s USING (account_id, currency) WHERE ` + accountOffSQL + `),
	(SELECT count(*) FROM (SELECT FROM balances GROUP BY currency HAVING sum(available + held) <> 0) c),
	(SELECT count(*) FROM booked_off),
	(SELECT count(*) FROM reservations r ` + outcomeOf + ` WHERE ` + outcomeOffSQL + `),
	(SELECT count(*) FROM payments p LEFT JOIN reservations r ON r.reservation_id = p.payment_id AND r.idempotency_key = p.idempotency_key
	 WHERE r.idempotency_key IS NULL),
	(SELECT count(*) FROM refunds_off)`

	// It also lists payments of exactly the missing or surplus amount, because an operator checks
	// these first.
	accountsOffSQL = `WITH ` + shouldSQL + `, off AS (
	SELECT account_id, currency, coalesce(b.available + b.held, 0) AS balance, coalesce(s.amount, 0) AS should,
		coalesce(b.held, 0) AS held, coalesce(s.held, 0) AS should_hold
	FROM balances b FULL JOIN should s USING (account_id, currency)
	WHERE ` + accountOffSQL + ` ORDER BY account_id, currency LIMIT $1
)
SELECT account_id, currency, balance, should, held, should_hold, ARRAY(
	SELECT r.idempotency_key FROM reservations r
	WHERE abs(off.balance - off.should) IN (coalesce(r.debit_minor, r.amount_idr), coalesce(r.credit_minor, r.amount_idr))
		AND off.account_id IN (r.sender_id, r.receiver_id)
	ORDER BY r.reservation_id DESC LIMIT 3)
FROM off`

	bookingsOffSQL = `WITH ` + bookedOffSQL + `
SELECT coalesce(r.idempotency_key, ''), coalesce(t.transfer_id, ''), coalesce(t.account_id, ''), o.transaction_id
FROM booked_off o LEFT JOIN reservations r ON r.reservation_id = o.transaction_id
LEFT JOIN transfers t ON md5(t.transfer_id)::uuid = o.transaction_id LIMIT $1`

	refundedOffSQL = `WITH ` + refundsOffSQL + `
SELECT coalesce(o.idempotency_key, r.idempotency_key, o.reservation_id::text), o.fits, coalesce(o.refunded, 0), coalesce(o.refunding, 0),
	coalesce(o.returned, 0), coalesce(o.should_refunded, 0), coalesce(o.should_refunding, 0), coalesce(o.should_returned, 0)
FROM refunds_off o LEFT JOIN reservations r USING (reservation_id) LIMIT $1`

	currenciesOffSQL = `
SELECT currency, sum(available + held)::bigint FROM balances GROUP BY currency HAVING sum(available + held) <> 0 ORDER BY currency LIMIT $1`

	// claimsOffSQL lists the reservations whose columns contradict each other. The fingerprint is checked
	// elsewhere. A deadline may be at most $2 after the reservation, and $3 after that of an authorized payment.
	claimsOffSQL = `
SELECT idempotency_key, status = 'PENDING', ` + lateSQL + `, deadline, created_at, count(*) OVER () FROM reservations
WHERE ` + lateSQL + `
	OR (debit_currency = 'IDR' AND credit_currency = 'IDR' AND (debit_minor <> amount_idr OR credit_minor <> amount_idr))
	OR mid_minor IS DISTINCT FROM (exchange->>'mid_minor')::bigint
LIMIT $1`

	lateSQL = `deadline > created_at + CASE WHEN hold_seconds IS NULL THEN $2::interval ELSE $3::interval END`

	// A balance has spent what its payments of the day debited: those that hold, those that were
	// committed, and those that were rolled back on a later day. A payment that was refused ended when it
	// was made. A refund is not counted. The day is the latest one with payments, because the day may change while this runs.
	spentOffSQL = `
WITH today AS (
	SELECT floor(extract(epoch FROM now()) / 86400)::int AS day
), spent AS (
	SELECT DISTINCT ON (account_id, currency) account_id, currency, day, amount FROM (
		SELECT r.sender_id AS account_id, coalesce(r.debit_currency, 'IDR') AS currency, floor(extract(epoch FROM r.created_at) / 86400)::int AS day,
			sum(coalesce(r.debit_minor, r.amount_idr)) FILTER (WHERE r.status <> 'ROLLEDBACK'
				OR floor(extract(epoch FROM coalesce(r.ended_at, p.decided_at)) / 86400) > floor(extract(epoch FROM r.created_at) / 86400)) AS amount
		FROM reservations r ` + outcomeOf + `
		WHERE r.reservation_id >= $2 AND r.created_at >= date_trunc('day', now(), 'UTC') AND r.parent_id IS NULL
		GROUP BY 1, 2, 3
	) days ORDER BY account_id, currency, day DESC
), off AS (
	SELECT b.account_id, b.currency, coalesce(s.amount, 0)::bigint AS should,
		CASE WHEN b.spent_day = coalesce(s.day, greatest(b.spent_day, today.day)) THEN b.spent_today ELSE 0 END AS spent
	FROM balances b CROSS JOIN today LEFT JOIN spent s ON s.account_id = b.account_id AND s.currency = b.currency
)
SELECT account_id, currency, spent, should, count(*) OVER () FROM off WHERE spent <> should ORDER BY account_id, currency LIMIT $1`

	// A position has what exchanges brought, less what they took and hold. It is the house's.
	positionsOffSQL = `
WITH booked AS (
	SELECT currency, sum(amount) AS amount FROM entries WHERE account_id = '` + payment.LiquidityAccount + `' AND kind = 'exchange' GROUP BY currency
), held AS (
	SELECT credit_currency AS currency, sum(mid_minor) AS amount FROM reservations WHERE status = 'PENDING' AND mid_minor IS NOT NULL GROUP BY 1
), off AS (
	SELECT b.account_id, b.currency, b.position,
		CASE b.account_id WHEN '` + payment.LiquidityAccount + `' THEN coalesce(e.amount, 0) - coalesce(h.amount, 0) ELSE 0 END::bigint AS should
	FROM balances b LEFT JOIN booked e ON e.currency = b.currency LEFT JOIN held h ON h.currency = b.currency
)
SELECT account_id, currency, position, should, count(*) OVER () FROM off WHERE position <> should ORDER BY account_id, currency LIMIT $1`

	outcomesOffSQL = `
SELECT r.idempotency_key, r.reservation_id, CASE
	WHEN p.payment_id IS NULL THEN 'is ' || r.status || ' and has no outcome row'
	WHEN r.status = 'PENDING' THEN 'is PENDING and has an outcome row: ' || p.status
	WHEN p.status IS DISTINCT FROM CASE r.status WHEN 'COMMITTED' THEN 'SUCCESS' ELSE 'FAILED' END
		THEN 'is ' || r.status || ' and its outcome row says ' || p.status
	ELSE 'its outcome row has other parties, another amount or another currency' END
FROM reservations r ` + outcomeOf + ` WHERE ` + outcomeOffSQL + `
UNION ALL
SELECT p.idempotency_key, p.payment_id, 'has an outcome row, ' || p.status || ', and no claim of this key'
FROM payments p LEFT JOIN reservations r ON r.reservation_id = p.payment_id AND r.idempotency_key = p.idempotency_key
WHERE r.idempotency_key IS NULL
LIMIT $1`
)

var (
	summed       = gathered(sumSQL, "balances", "entries", "reservations", "payments", "transfers")
	accountsOff  = gathered(accountsOffSQL, "balances", "entries", "reservations")
	bookingsOff  = gathered(bookingsOffSQL, "entries", "reservations", "payments", "transfers")
	refundedOff  = gathered(refundedOffSQL, "reservations")
	spentOff     = gathered(spentOffSQL, "balances", "reservations", "payments")
	positionsOff = gathered(positionsOffSQL, "balances", "entries", "reservations")
	outcomesOff  = gathered(outcomesOffSQL, "reservations", "payments")
)

// ReadSum adds up the ledger. While payments are made on distributed rows, q must be a transaction
// of BeginSnapshot.
func ReadSum(ctx context.Context, q postgres.Querier) (Sum, error) {
	var s Sum
	err := summed.row(ctx, q).Scan(&s.Balances, &s.Holds, &s.Funded, &s.Pending, &s.AccountsOff, &s.CurrenciesOff, &s.BookedOff,
		&s.OutcomesOff, &s.KeysUnclaimed, &s.RefundsOff)
	if err != nil {
		return s, fmt.Errorf("add the ledger up: %w", err)
	}
	return s, nil
}

// AccountOff is a balance that differs from its entries, or whose holds differ from the reservations.
// Amounts are in minor units.
type AccountOff struct {
	ID               string
	Currency         string
	Balance, Should  int64    // with what is held
	Held, ShouldHold int64    // for payments that are not decided
	Payments         []string // up to three keys of payments with the amount of the difference
}

// BookingOff is a payment or a transfer whose entries differ from it. If entries belong to neither,
// only the transaction's id is set.
type BookingOff struct {
	Key         string // of the payment
	Transfer    string // the transfer's id
	Account     string // of the transfer
	Transaction uuid.UUID
}

// ReadBookingsOff lists up to limit of these.
func ReadBookingsOff(ctx context.Context, q postgres.Querier, limit int) ([]BookingOff, error) {
	rows, err := bookingsOff.query(ctx, q, limit)
	if err != nil {
		return nil, fmt.Errorf("list bookings that are off: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[BookingOff])
}

// ReadAccountsOff lists up to limit of these accounts.
func ReadAccountsOff(ctx context.Context, q postgres.Querier, limit int) ([]AccountOff, error) {
	rows, err := accountsOff.query(ctx, q, limit)
	if err != nil {
		return nil, fmt.Errorf("list accounts that are off: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[AccountOff])
}

// Refunds are what refunds of a payment have moved: for the payment's sender, of committed refunds and of
// those on their way, and from its receiver for both.
type Refunds struct{ Refunded, Refunding, Returned int64 }

// RefundOff is a payment that has not counted its refunds, or that has a refund which does not fit it.
// Amounts are in minor units.
type RefundOff struct {
	Key        string // of the payment
	Fits       bool   // all refunds have the payment's parties and currencies
	Is, Should Refunds
}

// ReadRefundsOff lists up to limit of these.
func ReadRefundsOff(ctx context.Context, q postgres.Querier, limit int) (off []RefundOff, err error) {
	rows, err := refundedOff.query(ctx, q, limit)
	if err != nil {
		return nil, fmt.Errorf("list refunded payments that are off: %w", err)
	}
	var o RefundOff
	_, err = pgx.ForEachRow(rows, []any{
		&o.Key, &o.Fits, &o.Is.Refunded, &o.Is.Refunding, &o.Is.Returned, &o.Should.Refunded, &o.Should.Refunding, &o.Should.Returned,
	}, func() error {
		off = append(off, o)
		return nil
	})
	return off, err
}

// CurrencyOff is a currency whose balances and holds do not sum to zero.
type CurrencyOff struct {
	Currency string
	Sum      int64
}

// ReadCurrenciesOff lists up to limit of these.
func ReadCurrenciesOff(ctx context.Context, q postgres.Querier, limit int) ([]CurrencyOff, error) {
	rows, err := q.Query(ctx, currenciesOffSQL, limit)
	if err != nil {
		return nil, fmt.Errorf("list currencies that are off: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[CurrencyOff])
}

// ClaimOff is a reservation whose columns contradict each other.
type ClaimOff struct {
	Key               string
	Pending           bool
	Late              bool // the deadline is later than the rules allow; otherwise its amounts differ
	Deadline, Created time.Time
}

// ReadClaimsOff lists up to limit of these, and counts all of them.
func ReadClaimsOff(ctx context.Context, q postgres.Querier, limit int) (off []ClaimOff, all int64, err error) {
	rows, err := q.Query(ctx, claimsOffSQL, limit, payment.DecideWithin, payment.MaxAuthorize)
	if err != nil {
		return nil, 0, fmt.Errorf("list claims that are off: %w", err)
	}
	var c ClaimOff
	_, err = pgx.ForEachRow(rows, []any{&c.Key, &c.Pending, &c.Late, &c.Deadline, &c.Created, &all}, func() error {
		off = append(off, c)
		return nil
	})
	return off, all, err
}

// CounterOff is a counter of a balance that differs from what was counted. Amounts are in minor units.
type CounterOff struct {
	Account    string
	Currency   string
	Is, Should int64
}

// ReadSpentOff lists up to limit balances that have not counted what was spent on the day of now, the
// time of the snapshot. It counts all of them.
func ReadSpentOff(ctx context.Context, q postgres.Querier, now time.Time, limit int) ([]CounterOff, int64, error) {
	return readCountersOff(ctx, q, spentOff, limit, firstID(now.UTC().Truncate(24*time.Hour).Add(-time.Second)))
}

// ReadPositionsOff lists up to limit balances whose position differs from what was exchanged, and
// counts all of them.
func ReadPositionsOff(ctx context.Context, q postgres.Querier, limit int) ([]CounterOff, int64, error) {
	return readCountersOff(ctx, q, positionsOff, limit)
}

func readCountersOff(ctx context.Context, q postgres.Querier, statement *form, args ...any) (off []CounterOff, all int64, err error) {
	rows, err := statement.query(ctx, q, args...)
	if err != nil {
		return nil, 0, fmt.Errorf("list counters that are off: %w", err)
	}
	var c CounterOff
	_, err = pgx.ForEachRow(rows, []any{&c.Account, &c.Currency, &c.Is, &c.Should, &all}, func() error {
		off = append(off, c)
		return nil
	})
	return off, all, err
}

// OutcomeOff is a payment whose two rows contradict each other.
type OutcomeOff struct {
	Key     string
	ID      uuid.UUID
	Problem string
}

// ReadOutcomesOff lists up to limit of these payments.
func ReadOutcomesOff(ctx context.Context, q postgres.Querier, limit int) ([]OutcomeOff, error) {
	rows, err := outcomesOff.query(ctx, q, limit)
	if err != nil {
		return nil, fmt.Errorf("list outcomes that are off: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[OutcomeOff])
}
