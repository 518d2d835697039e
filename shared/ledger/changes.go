package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// Order is who ordered a change, and why. The zero value means that it is not known. Such a change is
// not recorded.
type Order struct{ By, Note string }

// MaxOperator is the maximum length of Order.By, in bytes.
const MaxOperator = 200

// Validate returns a FieldError for the first wrong field.
func (o Order) Validate() error {
	if err := payment.CheckText("by", o.By, MaxOperator); err != nil {
		return err
	}
	return payment.CheckText("note", o.Note, payment.MaxNote)
}

// ChangeKind is the kind of thing that an operator has changed.
type ChangeKind string

// The kinds of changes.
const (
	AccountChange   ChangeKind = "account"
	FundingChange   ChangeKind = "funding"
	RateChange      ChangeKind = "rate"
	RulesChange     ChangeKind = "rules"
	LiquidityChange ChangeKind = "liquidity"
)

// Change is what an operator has changed.
type Change struct {
	ID      uuid.UUID
	Kind    ChangeKind
	Subject string // the account, the pair, the rule set or the currency
	Detail  string // what it was changed to: a JSON object
	Order   Order
	At      time.Time // set by the ledger
}

// recordChangeSQL keeps a change once: an event that is applied again has the same change id.
const recordChangeSQL = `
INSERT INTO operator_changes (change_id, kind, subject, detail, operator, note) VALUES ($1, $2, $3, $4::text::jsonb, $5, $6)
ON CONFLICT (change_id) DO NOTHING`

// record queues the record of a change, if it is known who ordered it.
func (o Order) record(b *pgx.Batch, id uuid.UUID, kind ChangeKind, subject string, detail map[string]any) error {
	if o.By == "" {
		return nil
	}
	text, err := json.Marshal(detail)
	if err != nil {
		return err
	}
	b.Queue(recordChangeSQL, id, kind, subject, string(text), o.By, o.Note)
	return nil
}

// recordOn records the change that an event has made, in the event's transaction.
func recordOn(ctx context.Context, tx pgx.Tx, by Origin, kind ChangeKind, subject string, detail map[string]any) error {
	b := &pgx.Batch{}
	if err := by.Order.record(b, by.changeID(kind, subject), kind, subject, detail); err != nil || b.Len() == 0 {
		return err
	}
	return tx.SendBatch(ctx, b).Close()
}

// changeID is the id of the change that an event makes. An event's id that is used for another change has
// another one.
func (o Origin) changeID(kind ChangeKind, subject string) uuid.UUID {
	return uuid.NewMD5(uuid.NameSpaceURL, []byte(string(kind)+"\x00"+subject+"\x00"+o.key()))
}

// KnownChange reports whether an operator's event has changed something already.
func (l *Ledger) KnownChange(ctx context.Context, by Origin, kind ChangeKind, subject string) (known bool, err error) {
	err = l.reads.rows.run(ctx, func(ctx context.Context) error {
		return l.reads.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM operator_changes WHERE change_id = $1)`, by.changeID(kind, subject)).Scan(&known)
	})
	if err != nil {
		return false, fmt.Errorf("read a change: %w", err)
	}
	return known, nil
}

// MaxChanges is the most changes on a page.
const MaxChanges = 100

// ChangesOf selects changes. The newest come first.
type ChangesOf struct {
	Kind    ChangeKind // empty: any
	Subject string     // empty: any
	Limit   int        // 1 to MaxChanges
	Before  uuid.UUID  // only older ones than this change; uuid.Nil: all
}

const (
	changeColumns = `SELECT change_id, kind, subject, detail::text, operator, note, changed_at FROM operator_changes `

	changesSQL = changeColumns + `
WHERE ($1 = '' OR kind = $1) AND ($2 = '' OR subject = $2)
	AND ($3 = '00000000-0000-0000-0000-000000000000'::uuid
		OR (changed_at, change_id) < (SELECT changed_at, change_id FROM operator_changes WHERE change_id = $3))
ORDER BY changed_at DESC, change_id DESC LIMIT $4`

	// changesOfAccountSQL also reads the last change of the account itself, although there may be many
	// fundings after it: it says who has blocked the account, and why.
	changesOfAccountSQL = `
(` + changeColumns + `WHERE subject = $1 AND kind IN ('account', 'funding') ORDER BY changed_at DESC, change_id DESC LIMIT $2)
UNION
(` + changeColumns + `WHERE subject = $1 AND kind = 'account' ORDER BY changed_at DESC, change_id DESC LIMIT 1)
ORDER BY changed_at DESC, change_id DESC`
)

// Changes reads a page of changes. next is the Before of the next page; uuid.Nil: there is none. Changes
// returns an InvalidError that names an invalid field, and ErrFull if too many reads wait.
func (l *Ledger) Changes(ctx context.Context, of ChangesOf) (found []Change, next uuid.UUID, err error) {
	if of.Limit < 1 || of.Limit > MaxChanges {
		return nil, uuid.Nil, &InvalidError{&payment.FieldError{Field: "limit", Problem: fmt.Sprintf("is %d; must be 1 to %d", of.Limit, MaxChanges)}}
	}
	err = l.reads.lists.run(ctx, func(ctx context.Context) error {
		rows, err := l.reads.pool.Query(ctx, changesSQL, string(of.Kind), of.Subject, of.Before, of.Limit+1)
		if err == nil {
			found, err = pgx.CollectRows(rows, scanChange)
		}
		return err
	})
	if err != nil {
		return nil, uuid.Nil, fmt.Errorf("read changes: %w", err)
	}
	if len(found) > of.Limit {
		found = found[:of.Limit]
		next = found[of.Limit-1].ID
	}
	return found, next, nil
}

func scanChange(row pgx.CollectableRow) (c Change, err error) {
	err = row.Scan(&c.ID, &c.Kind, &c.Subject, &c.Detail, &c.Order.By, &c.Order.Note, &c.At)
	c.At = c.At.UTC()
	return c, err
}

// AccountDetails are what an operator sees of an account.
type AccountDetails struct {
	Profile
	ProfileAt time.Time // of the event that has set the profile; zero: it is not known
	Balances  []AccountBalance
	Entries   []CurrencyEntry // the last ones, the newest first
	Changes   []Change        // the last ones, the newest first, and the last one of the account itself
}

// CurrencyEntry is an entry with its currency.
type CurrencyEntry struct {
	Currency string
	Entry
}

const (
	detailsSQL = `SELECT owner, home_currency, status, nullif(profile_at, '-infinity') FROM accounts WHERE account_id = $1`

	// lastEntriesSQL walks the primary key of each balance from its end.
	lastEntriesSQL = `
SELECT e.booked_at, e.value_date, e.transaction_id, e.kind, e.amount, b.currency, b.available + b.held
FROM balances b, LATERAL (
	SELECT * FROM entries WHERE account_id = b.account_id AND currency = b.currency
	ORDER BY booked_at DESC, transaction_id DESC, kind DESC LIMIT $2) e
WHERE b.account_id = $1 ORDER BY e.booked_at DESC, e.transaction_id DESC, e.kind DESC, b.currency LIMIT $2`
)

// DescribeAccount reads an account with its last entries and changes, limit of each at most, and the
// last change of the account itself, in one snapshot. It returns ErrNotFound if the account does not
// exist, and ErrFull if too many reads wait.
func (l *Ledger) DescribeAccount(ctx context.Context, id string, limit int) (a AccountDetails, err error) {
	if limit < 1 || limit > MaxChanges {
		return a, &InvalidError{&payment.FieldError{Field: "limit", Problem: fmt.Sprintf("is %d; must be 1 to %d", limit, MaxChanges)}}
	}
	err = l.readBooks(ctx, func(ctx context.Context, tx pgx.Tx) error {
		a, err = describeAccount(ctx, tx, id, limit)
		return err
	})
	if err != nil {
		return AccountDetails{}, fmt.Errorf("read account: %w", err)
	}
	return a, nil
}

// Profile reads an account's profile, and the time of the event that has set it; zero: it is not known.
// It returns ErrNotFound if the account does not exist.
func (l *Ledger) Profile(ctx context.Context, id string) (Profile, time.Time, error) {
	a, err := readProfile(ctx, l.pool, id)
	if err != nil {
		return Profile{}, time.Time{}, fmt.Errorf("read account: %w", err)
	}
	return a.Profile, a.ProfileAt, nil
}

// readProfile reads an account with its balances, and without entries and changes.
func readProfile(ctx context.Context, q postgres.Querier, id string) (a AccountDetails, err error) {
	a.AccountID = id
	var profileAt *time.Time
	err = q.QueryRow(ctx, detailsSQL, id).Scan(&a.Owner, &a.Currency, &a.Status, &profileAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return a, ErrNotFound
	}
	if err != nil {
		return a, err
	}
	if profileAt != nil {
		a.ProfileAt = profileAt.UTC()
	}
	accounts, err := readAccounts(ctx, q, []string{id})
	if err != nil {
		return a, err
	}
	a.Balances = accounts[id].Balances
	for _, b := range a.Balances {
		if b.Currency == money.IDR {
			a.DailyLimitIDR = b.DailyLimit
		}
	}
	return a, nil
}

func describeAccount(ctx context.Context, tx pgx.Tx, id string, limit int) (AccountDetails, error) {
	a, err := readProfile(ctx, tx, id)
	if err != nil {
		return a, err
	}
	rows, err := tx.Query(ctx, lastEntriesSQL, id, limit)
	if err != nil {
		return a, err
	}
	after := map[string]int64{} // each currency's balance after the next entry
	var e CurrencyEntry
	var balance int64
	_, err = pgx.ForEachRow(rows, []any{&e.BookedAt, &e.ValueDate, &e.Transaction, &e.Kind, &e.Amount, &e.Currency, &balance}, func() error {
		if _, seen := after[e.Currency]; !seen {
			after[e.Currency] = balance
		}
		e.Balance, e.BookedAt = after[e.Currency], e.BookedAt.UTC()
		after[e.Currency] -= e.Amount
		a.Entries = append(a.Entries, e)
		return nil
	})
	if err != nil {
		return a, err
	}
	if rows, err = tx.Query(ctx, changesOfAccountSQL, id, limit); err != nil {
		return a, err
	}
	a.Changes, err = pgx.CollectRows(rows, scanChange)
	return a, err
}
