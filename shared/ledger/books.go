package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

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

// balanceBeforeSQL is what the balance b was before a time. It adds up the entries before the time,
// or takes those after it off the balance of now: whichever period is shorter. So a recent statement
// of an account with millions of entries costs as much as its period. The most expensive time is in
// the middle of an account's life: it costs a walk of the index over half of the account's entries,
// about a second for five million.
func balanceBeforeSQL(at string) string {
	of := `FROM entries e WHERE e.account_id = b.account_id AND e.currency = b.currency`
	return fmt.Sprintf(`coalesce(CASE WHEN %[1]s - (SELECT e.booked_at %[2]s ORDER BY e.booked_at LIMIT 1) < now() - %[1]s
	THEN (SELECT coalesce(sum(e.amount), 0)::bigint %[2]s AND e.booked_at < %[1]s)
	ELSE b.available + b.held - (SELECT coalesce(sum(e.amount), 0)::bigint %[2]s AND e.booked_at >= %[1]s) END, 0)`, at, of)
}

var (
	balancesAtSQL = `
SELECT b.currency, ` + balanceBeforeSQL("$2::timestamptz") + `
FROM balances b WHERE b.account_id = $1 ORDER BY b.currency`

	// The first column is the time of the snapshot, and the last one the time of the newest entry. The
	// balance before the statement is not needed if a cursor has it.
	openingSQL = `
SELECT clock_timestamp(), CASE WHEN $4 THEN 0 ELSE ` + balanceBeforeSQL("$3::timestamptz") + ` END,
	(SELECT e.booked_at FROM entries e WHERE e.account_id = $1 AND e.currency = $2 ORDER BY e.booked_at DESC LIMIT 1)
FROM accounts a LEFT JOIN balances b ON b.account_id = a.account_id AND b.currency = $2 WHERE a.account_id = $1`
)

const (
	// entriesSQL walks the primary key from a position.
	entriesSQL = `
SELECT booked_at, value_date, transaction_id, kind, amount FROM entries
WHERE account_id = $1 AND currency = $2 AND (booked_at, transaction_id, kind) > ($3, $4, $5) AND booked_at < $6
ORDER BY booked_at, transaction_id, kind LIMIT $7`

	// trialSQL reads every balance once: about a second for five million.
	trialSQL = `
SELECT currency, sum(available + held)::bigint, count(*) FILTER (WHERE account_id <> ALL($1)),
	coalesce(sum(available) FILTER (WHERE account_id <> ALL($1)), 0)::bigint,
	coalesce(sum(held) FILTER (WHERE account_id <> ALL($1)), 0)::bigint
FROM balances GROUP BY currency ORDER BY currency`

	houseSQL = `
SELECT account_id, currency, available, held, position, position_limit
FROM balances WHERE account_id = ANY($1) ORDER BY account_id, currency`

	// scanSQL lets a statement read a whole table, which the pool's other statements never should.
	scanSQL = `SET LOCAL enable_seqscan = on`
)

// readBooks runs a read of several statements, which all see the same snapshot.
func (l *Ledger) readBooks(ctx context.Context, read func(context.Context, pgx.Tx) error) error {
	return l.reads.lists.run(ctx, func(ctx context.Context) error {
		snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
		return pgx.BeginTxFunc(ctx, l.reads.pool, snapshot, func(tx pgx.Tx) error { return read(ctx, tx) })
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
		rows, err := tx.Query(ctx, balancesAtSQL, account, at)
		if err != nil {
			return err
		}
		balances, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (a money.Amount, err error) {
			return a, row.Scan(asText{&a.Currency}, &a.Minor)
		})
		if err == nil && len(balances) == 0 {
			err = ErrNotFound
		}
		return err
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
	Amount      int64 // negative: the account pays
	Balance     int64 // after this entry
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
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Statement{}, fmt.Errorf("read statement: %w", err)
	}
	return page, nil
}

func readStatement(ctx context.Context, tx pgx.Tx, of StatementOf) (Statement, error) {
	currency, page := of.Currency.String(), Statement{From: of.From}
	var now, newest time.Time
	err := tx.QueryRow(ctx, openingSQL, of.Account, currency, of.From, of.After != nil).Scan(&now, &page.Opening, zeroTime{&newest})
	if err != nil {
		return page, err
	}
	page.To = of.end(now, newest)
	after := Cursor{BookedAt: of.From} // before all entries of this time
	if of.After != nil {
		after, page.Opening = *of.After, of.After.Balance
	}
	page.Closing = page.Opening
	// One entry more than the limit shows whether there is a next page.
	rows, err := tx.Query(ctx, entriesSQL, of.Account, currency, after.BookedAt, after.Transaction, string(after.Kind), page.To, of.Limit+1)
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
	err = row.Scan(&e.BookedAt, &e.ValueDate, &e.Transaction, &e.Kind, &e.Amount)
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
	err = l.readBooks(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, scanSQL); err != nil {
			return err
		}
		t, err = ReadTrialBalance(ctx, tx)
		return err
	})
	return t, err
}

// ReadTrialBalance reads the trial balance in a snapshot: a transaction that is REPEATABLE READ.
func ReadTrialBalance(ctx context.Context, q postgres.Querier) (t TrialBalance, err error) {
	if t.Currencies, err = readTrials(ctx, q); err == nil {
		err = q.QueryRow(ctx, clockSQL).Scan(&t.At)
	}
	if err != nil {
		return TrialBalance{}, fmt.Errorf("read trial balance: %w", err)
	}
	t.At = t.At.UTC()
	return t, nil
}

func readTrials(ctx context.Context, q postgres.Querier) ([]CurrencyTrial, error) {
	rows, err := q.Query(ctx, trialSQL, payment.HouseAccounts)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c CurrencyTrial, err error) {
		return c, row.Scan(asText{&c.Currency}, &c.Sum, &c.Accounts, &c.Available, &c.Held)
	})
	if err != nil {
		return nil, err
	}
	if rows, err = q.Query(ctx, houseSQL, payment.HouseAccounts); err != nil {
		return nil, err
	}
	house := map[money.Currency][]HouseBalance{}
	var currency money.Currency
	var b HouseBalance
	var limit pgtype.Int8
	_, err = pgx.ForEachRow(rows, []any{&b.Account, asText{&currency}, &b.Available, &b.Held, &b.Position, &limit}, func() error {
		b := b
		if limit.Valid {
			b.PositionLimit = new(limit.Int64)
		}
		house[currency] = append(house[currency], b)
		return nil
	})
	for i := range all {
		all[i].House = house[all[i].Currency]
	}
	return all, err
}
