package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// maxSeeds is the most accounts that one call of SeedAccounts sets.
const maxSeeds = 10_000

// MaxAhead is how far the time of a profile may lie ahead of the database's clock. It allows for
// the usual differences between clocks.
const MaxAhead = time.Minute

// Profile describes an account, without its money.
type Profile struct {
	AccountID     string
	Owner         string
	Currency      string // the owner's currency; balances are in rupiah
	DailyLimitIDR int64  // for one UTC day; 0: no limit
	Status        payment.AccountStatus
}

func (p Profile) check() error {
	if err := checkAccountID(p.AccountID); err != nil {
		return err
	}
	if err := payment.CheckText("owner", p.Owner, payment.MaxOwner); err != nil {
		return err
	}
	if _, err := money.ParseCurrency(p.Currency); err != nil {
		return &payment.FieldError{Field: "currency", Problem: err.Error()}
	}
	if !p.Status.Valid() {
		return &payment.FieldError{Field: "status", Problem: fmt.Sprintf("must be %s or %s", payment.Active, payment.Blocked)}
	}
	if limit := p.DailyLimitIDR; limit < 0 || limit > money.MaxMinor {
		return &payment.FieldError{Field: "daily_limit", Problem: fmt.Sprintf("must be between 0 and %d", int64(money.MaxMinor))}
	}
	return nil
}

// Funding is money that comes in from outside.
type Funding struct {
	AccountID string
	AmountIDR int64
	Note      string
}

func (f Funding) check() error {
	if err := checkAccountID(f.AccountID); err != nil {
		return err
	}
	if f.AmountIDR <= 0 || f.AmountIDR > money.MaxMinor {
		return &payment.FieldError{Field: "amount_idr", Problem: fmt.Sprintf("must be positive and at most %d", int64(money.MaxMinor))}
	}
	return payment.CheckText("note", f.Note, payment.MaxNote)
}

// checkAccountID checks an account id that comes from outside.
func checkAccountID(id string) error {
	if payment.IsHouse(id) {
		return &payment.FieldError{Field: "account_id", Problem: id + " is the house's own"}
	}
	return payment.CheckID("account_id", id, payment.MaxAccountID)
}

// Origin identifies the event or command that changes an account: an id that is unique within its
// source.
type Origin struct{ Source, ID string }

// key returns the origin as one text. Two origins never have the same key. The first # ends the
// source. If the source itself contains a #, its length is put in front; no URI begins with a
// number. Earlier releases wrote all keys in the first form.
func (o Origin) key() string {
	if strings.Contains(o.Source, "#") {
		return fmt.Sprintf("%d:%s", len(o.Source), o.ambiguous())
	}
	return o.ambiguous()
}

// ambiguous returns the key as earlier releases wrote it.
func (o Origin) ambiguous() string { return o.Source + "#" + o.ID }

// openSQL creates the account, or sets its profile unless a newer event has set it. Events may come
// again and in another order. Of two events with the same time, the one with the greater key is
// newer.
const openSQL = `
INSERT INTO wallet_accounts (account_id, owner, currency, daily_limit_idr, status, profile_at, profile_event)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (account_id) DO UPDATE
SET owner = excluded.owner, currency = excluded.currency, daily_limit_idr = excluded.daily_limit_idr,
	status = excluded.status, profile_at = excluded.profile_at, profile_event = excluded.profile_event, updated_at = now()
WHERE (wallet_accounts.profile_at, wallet_accounts.profile_event) <= (excluded.profile_at, excluded.profile_event)`

const (
	// openUndatedSQL creates the account from an event whose time is not known. Any event with a
	// time is newer.
	openUndatedSQL = `
INSERT INTO wallet_accounts (account_id, owner, currency, daily_limit_idr, status)
VALUES ($1, $2, $3, $4, $5) ON CONFLICT (account_id) DO NOTHING`

	sameProfileSQL = `
SELECT owner = $2 AND currency = $3 AND daily_limit_idr = $4 AND status = $5 FROM wallet_accounts WHERE account_id = $1`
)

const (
	// fundSQL counts a funding once, by its id. It changes no row if the id has been counted or the
	// account does not exist. The balance must not exceed what a payment can carry.
	fundSQL = `
WITH funded AS (
	INSERT INTO fundings (funding_id, account_id, amount_idr, note, source)
	SELECT $1, account_id, $3, $4, $5 FROM wallet_accounts WHERE account_id = $2
	ON CONFLICT (funding_id) DO NOTHING
	RETURNING account_id, amount_idr
)
UPDATE wallet_accounts a SET balance_idr = a.balance_idr + f.amount_idr, updated_at = now()
FROM funded f WHERE a.account_id = f.account_id`

	// knownSQL reports whether a funding with this id has the same content. If $5 is true, it looks
	// only at fundings whose source was not kept.
	knownSQL = `
SELECT account_id = $2 AND amount_idr = $3 AND note = $4 FROM fundings WHERE funding_id = $1 AND (source = '' OR NOT $5)`
)

// Ahead returns how far a time lies ahead of the database's clock. The result is negative if the
// time lies behind it.
func (l *Ledger) Ahead(ctx context.Context, t time.Time) (time.Duration, error) {
	var now time.Time
	if err := l.pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return 0, fmt.Errorf("read the database's clock: %w", err)
	}
	return t.Sub(now), nil
}

// OpenAccount opens an account, or replaces its profile with one that is valid from a time. applied
// is false if the account has a newer profile. An InvalidError names the invalid field.
func (l *Ledger) OpenAccount(ctx context.Context, p Profile, at time.Time, by Origin) (applied bool, err error) {
	if err := p.check(); err != nil {
		return false, &InvalidError{err}
	}
	tag, err := l.pool.Exec(ctx, openSQL, p.AccountID, p.Owner, p.Currency, p.DailyLimitIDR, p.Status, at, by.key())
	return tag.RowsAffected() == 1, err
}

// OpenUndated opens an account with a profile whose time is not known. Any other profile counts as
// newer. applied is false if the account has this profile already. OpenUndated returns
// ErrOtherProfile if the account has another profile, and an InvalidError that names an invalid
// field.
func (l *Ledger) OpenUndated(ctx context.Context, p Profile) (applied bool, err error) {
	if err := p.check(); err != nil {
		return false, &InvalidError{err}
	}
	profile := []any{p.AccountID, p.Owner, p.Currency, p.DailyLimitIDR, p.Status}
	tag, err := l.pool.Exec(ctx, openUndatedSQL, profile...)
	if err != nil || tag.RowsAffected() == 1 {
		return err == nil, err
	}
	var same bool
	err = l.pool.QueryRow(ctx, sameProfileSQL, profile...).Scan(&same)
	if err == nil && !same {
		err = ErrOtherProfile
	}
	return false, err
}

// FundAccount adds money to an account, once for each origin. applied is false if this funding has
// been counted before. FundAccount returns ErrOtherFunding if the origin's funding had other
// content, ErrNoAccount if the account is not open, and an InvalidError that names an invalid
// field.
func (l *Ledger) FundAccount(ctx context.Context, f Funding, by Origin) (applied bool, err error) {
	if err := f.check(); err != nil {
		return false, &InvalidError{err}
	}
	id := by.key()
	if was := by.ambiguous(); was != id {
		if known, err := l.knownFunding(ctx, was, f, true); known || err != nil {
			return false, err
		}
	}
	tag, err := l.pool.Exec(ctx, fundSQL, id, f.AccountID, f.AmountIDR, f.Note, by.Source)
	if err != nil || tag.RowsAffected() == 1 {
		return err == nil, err
	}
	if known, err := l.knownFunding(ctx, id, f, false); known || err != nil {
		return false, err
	}
	return false, ErrNoAccount
}

// knownFunding reports whether the funding has been counted. It returns ErrOtherFunding if a
// funding with this id has other content. sourceless limits the search to fundings whose source was
// not kept.
func (l *Ledger) knownFunding(ctx context.Context, id string, f Funding, sourceless bool) (bool, error) {
	var same bool
	err := l.pool.QueryRow(ctx, knownSQL, id, f.AccountID, f.AmountIDR, f.Note, sourceless).Scan(&same)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, err
	case !same:
		return false, ErrOtherFunding
	}
	return true, nil
}

// Seed is an account with the balance to set.
type Seed struct {
	Profile
	BalanceIDR int64
}

// SeedAccounts sets the profiles and balances of up to 10,000 accounts. It sets all of them or
// none. The change of each balance is recorded as a funding, so the ledger still adds up. An
// InvalidError names the account and its invalid field.
func (l *Ledger) SeedAccounts(ctx context.Context, accounts []Seed) error {
	if len(accounts) > maxSeeds {
		return &InvalidError{&payment.FieldError{Field: "accounts", Problem: fmt.Sprintf("%d in one call; at most %d", len(accounts), maxSeeds)}}
	}
	for i, a := range accounts {
		if err := a.check(); err != nil {
			return &InvalidError{fmt.Errorf("accounts[%d]: %w", i, err)}
		}
		if a.BalanceIDR < 0 || a.BalanceIDR > money.MaxMinor {
			return &InvalidError{fmt.Errorf("accounts[%d]: balance must be between 0 and %d", i, int64(money.MaxMinor))}
		}
	}
	if err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error { return seed(ctx, tx, accounts) }); err != nil {
		return fmt.Errorf("seed accounts: %w", err)
	}
	return nil
}

// profileSQL creates the account or sets its profile, whatever earlier events have set. The profile
// becomes the newest: its time is the database's time, and is after the last event's time, which
// may lie a little ahead.
const profileSQL = `
INSERT INTO wallet_accounts AS a (account_id, owner, currency, daily_limit_idr, status, profile_at, profile_event)
VALUES ($1, $2, $3, $4, $5, clock_timestamp(), $6)
ON CONFLICT (account_id) DO UPDATE
SET owner = excluded.owner, currency = excluded.currency, daily_limit_idr = excluded.daily_limit_idr, status = excluded.status,
	profile_at = CASE WHEN a.profile_at BETWEEN excluded.profile_at AND excluded.profile_at + $7
		THEN a.profile_at + interval '1 microsecond' ELSE excluded.profile_at END,
	profile_event = excluded.profile_event, updated_at = now()`

// seedSQL locks the account and records the difference between the wanted and the current balance.
const seedSQL = `
WITH before AS (
	SELECT account_id, balance_idr FROM wallet_accounts WHERE account_id = $1 FOR UPDATE
), funded AS (
	INSERT INTO fundings (funding_id, account_id, amount_idr, note)
	SELECT $3, account_id, $2 - balance_idr, 'seeded' FROM before WHERE $2 <> balance_idr
)
UPDATE wallet_accounts a SET balance_idr = $2, updated_at = now() FROM before b WHERE a.account_id = b.account_id`

func seed(ctx context.Context, tx pgx.Tx, accounts []Seed) error {
	// Accounts are always locked in the order of their ids.
	inOrder := slices.SortedFunc(slices.Values(accounts), func(a, b Seed) int {
		return cmp.Compare(a.AccountID, b.AccountID)
	})
	b := &pgx.Batch{}
	for _, a := range inOrder {
		// No URI begins with a colon, so no event can have this id.
		id := ":seed:" + newID().String()
		b.Queue(profileSQL, a.AccountID, a.Owner, a.Currency, a.DailyLimitIDR, a.Status, id, MaxAhead)
		b.Queue(seedSQL, a.AccountID, a.BalanceIDR, id)
	}
	return tx.SendBatch(ctx, b).Close()
}

// Account is an account as readers see it.
type Account struct {
	ID            string
	BalanceIDR    int64 // the balance that can be spent
	Currency      string
	Status        payment.AccountStatus
	DailyLimitIDR int64 // 0: no limit
	SpentDay      int32 // the UTC day of SpentIDR, numbered as payment.Day does
	SpentIDR      int64 // held or paid on SpentDay
}

// SpentOn returns the amount held or paid on a UTC day.
func (a Account) SpentOn(day int32) int64 {
	if a.SpentDay == day {
		return a.SpentIDR
	}
	return 0
}

const accountsSQL = `
SELECT account_id, balance_idr, currency, status, daily_limit_idr, spent_day, spent_today_idr
FROM wallet_accounts WHERE account_id = ANY($1)`

func readAccounts(ctx context.Context, q postgres.Querier, ids []string) (map[string]Account, error) {
	rows, err := q.Query(ctx, accountsSQL, ids)
	if err != nil {
		return nil, fmt.Errorf("read accounts: %w", err)
	}
	accounts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Account])
	if err != nil {
		return nil, fmt.Errorf("read accounts: %w", err)
	}
	found := make(map[string]Account, len(accounts))
	for _, a := range accounts {
		found[a.ID] = a
	}
	return found, nil
}

// Balance reads the balance that an account can spend. It returns ErrNotFound if the account does
// not exist, and ErrFull if too many reads wait.
func (l *Ledger) Balance(ctx context.Context, account string) (idr int64, err error) {
	err = l.reads.rows.run(ctx, func(ctx context.Context) error {
		return l.reads.pool.QueryRow(ctx, `SELECT balance_idr FROM wallet_accounts WHERE account_id = $1`, account).Scan(&idr)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("read balance: %w", err)
	}
	return idr, nil
}

// RandomAccounts picks up to n different active accounts at random. It returns ErrFull if too many
// reads wait.
func (l *Ledger) RandomAccounts(ctx context.Context, n int) (ids []string, err error) {
	err = l.reads.lists.run(ctx, func(ctx context.Context) error {
		ids, err = readRandomAccounts(ctx, l.reads.pool, n)
		return err
	})
	return ids, err
}

// The sample reads about 50 pages of a large table, and all of a small one. ORDER BY random() over
// ten million accounts would take seconds.
const randomAccountsSQL = `
SELECT account_id
FROM wallet_accounts TABLESAMPLE SYSTEM (
	LEAST(100, 5000.0 / GREATEST(1, (SELECT relpages FROM pg_class WHERE oid = 'wallet_accounts'::regclass))))
WHERE status = 'ACTIVE' AND NOT internal
ORDER BY random()
LIMIT $1`

func readRandomAccounts(ctx context.Context, q postgres.Querier, n int) ([]string, error) {
	rows, err := q.Query(ctx, randomAccountsSQL, n)
	if err != nil {
		return nil, fmt.Errorf("pick random accounts: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("pick random accounts: %w", err)
	}
	return ids, nil
}

// readStarted reads the counts of started payments that the ledger uses when it holds funds.
func readStarted(ctx context.Context, q postgres.Querier, senders []string, at time.Time) (map[string]uint32, error) {
	rows, err := q.Query(ctx, `SELECT account_id, started_count FROM wallet_accounts WHERE account_id = ANY($1) AND started_minute = $2`,
		senders, int32(at.Unix()/60))
	if err != nil {
		return nil, fmt.Errorf("read started payments: %w", err)
	}
	started := map[string]uint32{}
	var id string
	var n uint32
	if _, err = pgx.ForEachRow(rows, []any{&id, &n}, func() error { started[id] = n; return nil }); err != nil {
		return nil, fmt.Errorf("read started payments: %w", err)
	}
	return started, nil
}
