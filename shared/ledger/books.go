package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// This file reads the books: balances at a time, statements, and the trial balance.

// MaxStatement is the most entries on one page of a statement.
const MaxStatement = 1000

// settleWithin is the longest time after which an entry that has its time can be read. It is longer
// than the time limit of the statement that books the entry.
const settleWithin = 10 * time.Second

// entriesSQL walks the primary key from a position. Only the payments on the page are looked up.
var entriesSQL = &form{
	one: `
SELECT e.booked_at, e.value_date, e.transaction_id, e.kind, e.amount, coalesce(r.client, '') FROM (` + entriesPageSQL + `
) e LEFT JOIN reservations r ON r.reservation_id = e.transaction_id
ORDER BY e.booked_at, e.transaction_id, e.kind`,
	rows: `
WITH page AS MATERIALIZED (` + entriesPageSQL + `
), clients AS MATERIALIZED (
	SELECT reservation_id, client FROM reservations WHERE reservation_id IN (SELECT transaction_id FROM page)
)
SELECT e.booked_at, e.value_date, e.transaction_id, e.kind, e.amount, coalesce(r.client, '')
FROM page e LEFT JOIN clients r ON r.reservation_id = e.transaction_id
ORDER BY e.booked_at, e.transaction_id, e.kind`,
}

const (
	entriesPageSQL = `
	SELECT booked_at, value_date, transaction_id, kind, amount FROM entries
	WHERE account_id = $1 AND currency = $2 AND (booked_at, transaction_id, kind) > ($3, $4, $5) AND booked_at < $6
	ORDER BY booked_at, transaction_id, kind LIMIT $7`

	// spansSQL reads an account's balances, each with the times of its first and its newest entry.
	spansSQL = `
SELECT b.currency, b.available + b.held,
	(SELECT e.booked_at FROM entries e WHERE e.account_id = b.account_id AND e.currency = b.currency ORDER BY e.booked_at LIMIT 1),
	(SELECT e.booked_at FROM entries e WHERE e.account_id = b.account_id AND e.currency = b.currency ORDER BY e.booked_at DESC LIMIT 1)
FROM balances b WHERE b.account_id = $1 ORDER BY b.currency`

	knownAccountSQL = `SELECT clock_timestamp(), EXISTS (SELECT FROM accounts WHERE account_id = $1)`

	// stepSQL finds where the next step of a sum of entries ends, and sumStepSQL adds the step up.
	stepSQL = `
SELECT booked_at FROM entries WHERE account_id = $1 AND currency = $2 AND booked_at >= $3 AND booked_at < $4
ORDER BY booked_at OFFSET $5 LIMIT 1`
	sumStepSQL = `
SELECT coalesce(sum(amount), 0)::bigint FROM entries WHERE account_id = $1 AND currency = $2 AND booked_at >= $3 AND booked_at < $4`

	// trialStepSQL finds the last account of the next step of the trial balance, and trialSQL adds the
	// step up.
	trialStepSQL = `
SELECT coalesce((SELECT account_id FROM balances WHERE account_id > $1 ORDER BY account_id OFFSET $2 LIMIT 1),
	(SELECT account_id FROM balances WHERE account_id > $1 ORDER BY account_id DESC LIMIT 1), '')`
	trialSQL = `
SELECT currency, count(*), sum(available)::bigint, sum(held)::bigint FROM balances
WHERE account_id > $1 AND account_id <= $2 GROUP BY currency`

	houseSQL = `
SELECT account_id, currency, available, held, position, position_limit
FROM balances WHERE account_id = ANY($1) ORDER BY account_id, currency`
)

// step is about the number of rows that one statement adds up. It takes a fraction of the time limit
// of a statement, so a sum of millions of rows can be read.
const step = 50_000

// readBooks runs a read of several statements, which all see the same snapshot of each server.
func (l *Ledger) readBooks(ctx context.Context, read func(context.Context, pgx.Tx) error) error {
	return l.readSnapshot(ctx, beginSnapshot, read)
}

// readSnapshot runs a read in the snapshot that begin makes.
func (l *Ledger) readSnapshot(
	ctx context.Context, begin func(context.Context, *pgx.Conn) (pgx.Tx, error), read func(context.Context, pgx.Tx) error,
) error {
	return l.reads.books.run(ctx, func(ctx context.Context) error {
		conn, err := l.reads.pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		tx, err := begin(ctx, conn.Conn())
		if err != nil {
			return err
		}
		defer tx.Rollback(context.WithoutCancel(ctx))
		if _, err := tx.Exec(ctx, walkSQL); err != nil {
			return err
		}
		return read(ctx, tx)
	})
}

// BalancesAt reads what an account had in each of its currencies at a time: the entries that were
// booked before it. What was held then is part of it, because a hold is not booked. Entries of the
// last seconds may still be missing. BalancesAt returns ErrNotFound if the account does not exist,
// an InvalidError if the time has not come yet, and ErrFull if too many reads wait.
func (l *Ledger) BalancesAt(ctx context.Context, account string, at time.Time) (balances []money.Amount, err error) {
	err = l.readBooks(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var now time.Time
		if err := tx.QueryRow(ctx, clockSQL).Scan(&now); err != nil {
			return err
		}
		if at.After(now) {
			return &InvalidError{&payment.FieldError{Field: "at", Problem: "is in the future"}}
		}
		spans, err := readSpans(ctx, tx, account)
		if err == nil && len(spans) == 0 {
			err = ErrNotFound
		}
		if err != nil {
			return err
		}
		balances = make([]money.Amount, len(spans))
		for i, s := range spans {
			balances[i].Currency = s.currency
			if balances[i].Minor, err = s.before(ctx, tx, at); err != nil {
				return err
			}
		}
		return nil
	})
	var invalid *InvalidError
	switch {
	case errors.As(err, &invalid):
		return nil, invalid
	case err != nil:
		return nil, fmt.Errorf("read balances: %w", err)
	}
	return balances, nil
}

// span is a balance with the time from its first to its newest entry.
type span struct {
	place
	balance       int64 // now, with what is held
	first, newest time.Time
}

// readSpans reads the balances of an account, by currency.
func readSpans(ctx context.Context, tx pgx.Tx, account string) ([]span, error) {
	rows, err := tx.Query(ctx, spansSQL, account)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s span, err error) {
		s.account = account
		return s, row.Scan(asText{&s.currency}, &s.balance, zeroTime{&s.first}, zeroTime{&s.newest})
	})
}

// before returns what the balance was before a time. It adds up the entries before the time, or takes
// those after it off the balance of now: whichever is the shorter part of the span. So a recent
// statement of an account with millions of entries costs as much as its period. The most expensive
// time is in the middle: it costs a walk of the index over half of the account's entries, one or two
// microseconds for each. Only a first page pays this: a cursor has the balance.
func (s span) before(ctx context.Context, tx pgx.Tx, at time.Time) (int64, error) {
	switch {
	case !at.After(s.first) || s.first.IsZero():
		return 0, nil
	case at.After(s.newest):
		return s.balance, nil
	case at.Sub(s.first) < s.newest.Sub(at):
		return sumEntries(ctx, tx, s.place, s.first, at, step)
	}
	since, err := sumEntries(ctx, tx, s.place, at, s.newest.Add(time.Microsecond), step)
	return s.balance - since, err
}

// sumEntries adds up the entries of a balance from a time until before another, in steps of about
// that many entries.
func sumEntries(ctx context.Context, tx pgx.Tx, of place, from, to time.Time, step int) (sum int64, err error) {
	currency := of.currency.String()
	for from.Before(to) {
		end := to
		err := tx.QueryRow(ctx, stepSQL, of.account, currency, from, to, step).Scan(&end)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return 0, err
		}
		if !end.After(from) {
			end = from.Add(time.Microsecond) // all entries of the step have the same time
		}
		var part int64
		if err := tx.QueryRow(ctx, sumStepSQL, of.account, currency, from, end).Scan(&part); err != nil {
			return 0, err
		}
		from, sum = end, sum+part
	}
	return sum, nil
}

// StatementOf selects a page of a statement. The oldest entries come first.
type StatementOf struct {
	Account  string
	Currency money.Currency
	From     time.Time // entries of this time belong to it; zero: from the first entry on
	To       time.Time // entries of this time do not belong to it; zero: to the newest entry
	After    *Cursor   // continues after this entry of an earlier page; nil: the first page
	Limit    int       // 1 to MaxStatement
}

// Cursor is the last entry of a page. Entries of a balance appear in the order of their times, so
// nothing can appear before a cursor later, and its balance stays right.
type Cursor struct {
	BookedAt    time.Time    `json:"booked_at"`
	Transaction uuid.UUID    `json:"transaction_id"`
	Kind        payment.Kind `json:"kind"`
	Balance     int64        `json:"balance"` // after the entry
}

// Statement is a page of a statement. The amounts are in minor units.
type Statement struct {
	From time.Time // as asked for; zero: from the first entry on
	// To is where the next statement may begin: no entry appears before it any more. It is earlier
	// than asked for if that time has not passed yet.
	To      time.Time
	Opening int64 // before the first entry of this page
	Closing int64 // after the last entry of this page
	Entries []Entry
	Next    *Cursor // the After of the next page; nil: this is the last page
}

// Entry is an amount that was booked.
type Entry struct {
	BookedAt    time.Time
	ValueDate   time.Time // the day for which it counts
	Transaction uuid.UUID // of a payment: its reservation's id
	Kind        payment.Kind
	Amount      int64  // negative: the account pays
	Balance     int64  // after this entry
	Client      string // of a payment on a statement: whose it is
}

func (s StatementOf) check() error {
	switch {
	case s.Limit < 1 || s.Limit > MaxStatement:
		return &payment.FieldError{Field: "limit", Problem: fmt.Sprintf("is %d; must be 1 to %d", s.Limit, MaxStatement)}
	case !s.To.IsZero() && !s.To.After(s.From):
		return &payment.FieldError{Field: "to", Problem: "must be after from"}
	case s.After != nil && (s.After.BookedAt.Before(s.From) || !s.To.IsZero() && !s.After.BookedAt.Before(s.To)):
		return &payment.FieldError{Field: "cursor", Problem: "belongs to another period"}
	}
	return nil
}

// Statement reads a page of a statement. It returns ErrNotFound if the account does not exist, an
// InvalidError that names an invalid field, and ErrFull if too many reads wait.
func (l *Ledger) Statement(ctx context.Context, of StatementOf) (page Statement, err error) {
	if err := of.check(); err != nil {
		return Statement{}, &InvalidError{err}
	}
	err = l.readBooks(ctx, func(ctx context.Context, tx pgx.Tx) error {
		page, err = readStatement(ctx, tx, of)
		return err
	})
	if err != nil {
		return Statement{}, fmt.Errorf("read statement: %w", err)
	}
	return page, nil
}

func readStatement(ctx context.Context, tx pgx.Tx, of StatementOf) (Statement, error) {
	page := Statement{From: of.From}
	var now time.Time
	var known bool
	if err := tx.QueryRow(ctx, knownAccountSQL, of.Account).Scan(&now, &known); err != nil {
		return page, err
	}
	if !known {
		return page, ErrNotFound
	}
	spans, err := readSpans(ctx, tx, of.Account)
	if err != nil {
		return page, err
	}
	var balance span // empty: the account has no balance in this currency
	if i := slices.IndexFunc(spans, func(s span) bool { return s.currency == of.Currency }); i >= 0 {
		balance = spans[i]
	}
	page.To = of.end(now, balance.newest)
	after := Cursor{BookedAt: of.From} // before all entries of this time
	if of.After != nil {
		after, page.Opening = *of.After, of.After.Balance
	} else if page.Opening, err = balance.before(ctx, tx, of.From); err != nil {
		return page, err
	}
	page.Closing = page.Opening
	// One entry more than the limit shows whether there is a next page.
	rows, err := entriesSQL.query(ctx, tx, of.Account, of.Currency.String(), after.BookedAt, after.Transaction, string(after.Kind), page.To, of.Limit+1)
	if err != nil {
		return page, err
	}
	if page.Entries, err = pgx.CollectRows(rows, scanEntry); err != nil {
		return page, err
	}
	more := len(page.Entries) > of.Limit
	page.Entries = page.Entries[:min(len(page.Entries), of.Limit)]
	for i := range page.Entries {
		e := &page.Entries[i]
		page.Closing += e.Amount
		e.Balance = page.Closing
	}
	if more {
		last := page.Entries[of.Limit-1]
		page.Next = &Cursor{last.BookedAt, last.Transaction, last.Kind, last.Balance}
	}
	return page, nil
}

// end returns the end of the statement. An entry gets its time while its balance is locked. So when
// the newest entry can be read, all entries before it can be read too. Entries after it may have
// their time already, but not for longer than settleWithin.
func (s StatementOf) end(now, newest time.Time) time.Time {
	end := now.Add(-settleWithin)
	if after := newest.Add(time.Microsecond); after.After(end) {
		end = after
	}
	if !s.To.IsZero() && s.To.Before(end) {
		end = s.To
	}
	if s.From.After(end) {
		end = s.From
	}
	return end.UTC()
}

func scanEntry(row pgx.CollectableRow) (e Entry, err error) {
	err = row.Scan(&e.BookedAt, &e.ValueDate, &e.Transaction, &e.Kind, &e.Amount, &e.Client)
	e.BookedAt = e.BookedAt.UTC()
	return e, err
}

// TrialBalance has the sum of all balances of each currency.
type TrialBalance struct {
	At         time.Time
	Currencies []CurrencyTrial
}

// CurrencyTrial is the trial balance of one currency. Amounts are in minor units.
type CurrencyTrial struct {
	Currency  money.Currency
	Sum       int64 // of all accounts with what is held, the house's too: 0 if the books are right
	Accounts  int64 // of clients that have a balance in this currency
	Available int64 // of the clients' accounts
	Held      int64 // of the clients' accounts
	House     []HouseBalance
}

// HouseBalance is a balance of one of the house's own accounts.
type HouseBalance struct {
	Account         string
	Available, Held int64
	Position        int64  // of LIQUIDITY: what exchanges brought, less what they took and hold
	PositionLimit   *int64 // how far the position may fall below 0; nil: there is no limit
}

// Err names the currencies whose balances do not sum to zero. It is nil if there are none.
func (t TrialBalance) Err() error {
	var errs []error
	for _, c := range t.Currencies {
		if c.Sum != 0 {
			errs = append(errs, fmt.Errorf("the balances in %s sum to %s, not to zero", c.Currency, money.Amount{Minor: c.Sum, Currency: c.Currency}))
		}
	}
	return errors.Join(errs...)
}

// TrialBalance reads the trial balance. It returns ErrFull if too many reads wait.
func (l *Ledger) TrialBalance(ctx context.Context) (t TrialBalance, err error) {
	err = l.readSnapshot(ctx, BeginSnapshot, func(ctx context.Context, tx pgx.Tx) error {
		t, err = ReadTrialBalance(ctx, tx)
		return err
	})
	return t, err
}

// ReadTrialBalance reads the trial balance in a snapshot: a transaction of BeginSnapshot. It reads
// every balance once.
func ReadTrialBalance(ctx context.Context, q postgres.Querier) (t TrialBalance, err error) {
	if t.Currencies, err = readTrials(ctx, q, step); err == nil {
		err = q.QueryRow(ctx, clockSQL).Scan(&t.At)
	}
	if err != nil {
		return TrialBalance{}, fmt.Errorf("read trial balance: %w", err)
	}
	t.At = t.At.UTC()
	return t, nil
}

// readTrials adds up all balances, in steps of about that many.
func readTrials(ctx context.Context, q postgres.Querier, step int) ([]CurrencyTrial, error) {
	trials := map[money.Currency]CurrencyTrial{}
	for last := ""; ; {
		var upTo string // empty: there are no more accounts
		if err := q.QueryRow(ctx, trialStepSQL, last, step).Scan(&upTo); err != nil {
			return nil, err
		}
		if upTo == "" {
			break
		}
		rows, err := q.Query(ctx, trialSQL, last, upTo)
		if err != nil {
			return nil, err
		}
		var of CurrencyTrial
		_, err = pgx.ForEachRow(rows, []any{asText{&of.Currency}, &of.Accounts, &of.Available, &of.Held}, func() error {
			t := trials[of.Currency]
			t.Accounts, t.Available, t.Held = t.Accounts+of.Accounts, t.Available+of.Available, t.Held+of.Held
			trials[of.Currency] = t
			return nil
		})
		if err != nil {
			return nil, err
		}
		last = upTo
	}
	house, err := readHouse(ctx, q)
	if err != nil {
		return nil, err
	}
	all := make([]CurrencyTrial, 0, len(trials))
	for currency, t := range trials {
		t.Currency, t.Sum, t.House = currency, t.Available+t.Held, house[currency]
		for _, h := range t.House {
			t.Accounts, t.Available, t.Held = t.Accounts-1, t.Available-h.Available, t.Held-h.Held
		}
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b CurrencyTrial) int { return cmp.Compare(a.Currency.String(), b.Currency.String()) })
	return all, nil
}

// readHouse reads the balances of the house's own accounts, by currency.
func readHouse(ctx context.Context, q postgres.Querier) (map[money.Currency][]HouseBalance, error) {
	rows, err := q.Query(ctx, houseSQL, payment.HouseAccounts)
	if err != nil {
		return nil, err
	}
	house := map[money.Currency][]HouseBalance{}
	var currency money.Currency
	var b HouseBalance
	_, err = pgx.ForEachRow(rows, []any{&b.Account, asText{&currency}, &b.Available, &b.Held, &b.Position, &b.PositionLimit}, func() error {
		house[currency] = append(house[currency], b)
		return nil
	})
	return house, err
}
