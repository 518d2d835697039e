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
	"github.com/jackc/pgx/v5/pgconn"

	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// maxSeeds is the most accounts that one call of SeedAccounts sets. Its statements are sent in
// parts of seedStatements: the server answers a part when all of it is done, and must not seem
// silent meanwhile.
const (
	maxSeeds       = 10_000
	seedStatements = 100
)

// MaxAhead is how far the time of a profile may lie ahead of the database's clock. It allows for
// the usual differences between clocks.
const MaxAhead = time.Minute

// Profile describes an account, without its money.
type Profile struct {
	AccountID     string
	Owner         string
	Currency      string // the owner's own currency
	DailyLimitIDR int64  // of the balance in rupiah, for one UTC day; 0: no limit
	Status        payment.AccountStatus
}

// Validate returns a FieldError for the first wrong field.
func (p Profile) Validate() error {
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
	Amount    money.Amount
	Note      string
}

// Validate returns a FieldError for the first wrong field.
func (f Funding) Validate() error {
	if err := checkAccountID(f.AccountID); err != nil {
		return err
	}
	if f.Amount.Currency == (money.Currency{}) {
		return &payment.FieldError{Field: "currency", Problem: "is missing"}
	}
	if f.Amount.Minor <= 0 || f.Amount.Minor > money.MaxMinor {
		field := "amount_minor"
		if f.Amount.Currency == money.IDR {
			field = "amount_idr"
		}
		return &payment.FieldError{Field: field, Problem: fmt.Sprintf("must be positive and at most %d", int64(money.MaxMinor))}
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
// source. Order is who ordered the change, if that is known; it does not tell origins apart.
type Origin struct {
	Source, ID string
	Order      Order
}

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

// TransferIDs returns the ids that a funding of this origin may have: the present one first, and the one
// of earlier releases if it differs.
func (o Origin) TransferIDs() []string {
	if ids := []string{o.key(), o.ambiguous()}; ids[0] != ids[1] {
		return ids
	}
	return []string{o.key()}
}

// SeedPrefix begins the ids of transfers that set a balance. No URI begins with a colon, so no event
// has such an id.
const SeedPrefix = ":seed:"

// openSQL creates the account with its balance in rupiah, or sets its profile unless a newer event has
// set it. Events may come again and in another order. Of two events with the same time, the one with
// the greater key is newer. Every balance has a copy of the status, because the statements that move
// money check it there.
var openSQL = balanceOfProfile(`
WITH opened AS (
	INSERT INTO accounts AS a (account_id, owner, home_currency, status, profile_at, profile_event)
	VALUES ($1, $2, $3, $5, $6, $7)
	ON CONFLICT (account_id) DO UPDATE
	SET owner = excluded.owner, home_currency = excluded.home_currency, status = excluded.status,
		profile_at = excluded.profile_at, profile_event = excluded.profile_event, updated_at = excluded.updated_at
	WHERE (a.profile_at, a.profile_event) <= (excluded.profile_at, excluded.profile_event)
	RETURNING account_id
)`)

// balanceOfProfile adds what sets the account's balances as its profile says, to a CTE named
// opened. It locks all of them in the usual order before it changes one.
func balanceOfProfile(opened string) *form {
	return &form{
		one: opened + `, others AS MATERIALIZED (
	SELECT b.account_id, b.currency FROM opened o CROSS JOIN LATERAL (
		SELECT account_id, currency FROM balances WHERE account_id = o.account_id ORDER BY currency FOR NO KEY UPDATE) b
), blocked AS (
	UPDATE balances b SET status = $5, updated_at = now() FROM others o
	WHERE b.account_id = o.account_id AND b.currency = o.currency AND b.currency <> 'IDR' AND b.status <> $5
)
INSERT INTO balances (account_id, currency, status, daily_limit) SELECT account_id, 'IDR', $5, $4 FROM opened, (SELECT count(*) FROM others) locked
` + setProfileSQL,
		rows: opened + `, blocked AS (
	UPDATE balances b SET status = $5, updated_at = now() FROM opened o
	WHERE b.account_id = $1 AND b.account_id = o.account_id AND b.currency <> 'IDR' AND b.status <> $5
)
INSERT INTO balances (account_id, currency, status, daily_limit) SELECT account_id, 'IDR', $5, $4 FROM opened
` + setProfileSQL,
	}
}

const setProfileSQL = `ON CONFLICT (account_id, currency)
DO UPDATE SET status = excluded.status, daily_limit = excluded.daily_limit, updated_at = excluded.updated_at`

var (
	// openUndatedSQL creates the account from an event whose time is not known. Any event with a
	// time is newer.
	openUndatedSQL = balanceOfProfile(`
WITH opened AS (
	INSERT INTO accounts (account_id, owner, home_currency, status)
	VALUES ($1, $2, $3, $5) ON CONFLICT (account_id) DO NOTHING RETURNING account_id
)`)

	sameProfileSQL = `
SELECT a.owner = $2 AND a.home_currency = $3 AND b.daily_limit = $4 AND a.status = $5
FROM accounts a JOIN balances b ON b.account_id = a.account_id WHERE a.account_id = $1 AND b.currency = 'IDR'`
)

// addForTransferSQL makes the balances that a transfer changes.
var addForTransferSQL = &form{
	one: `
WITH owners AS MATERIALIZED (
	SELECT account_id, status FROM accounts
	WHERE account_id IN ($1, '` + payment.OutsideAccount + `') AND EXISTS (SELECT FROM accounts WHERE account_id = $1)
	ORDER BY account_id FOR SHARE
)` + insertForTransferSQL,
	rows: `
WITH known AS MATERIALIZED (
	SELECT account_id FROM accounts WHERE account_id = $1
), owners AS (
	UPDATE accounts SET updated_at = updated_at
	WHERE account_id IN ($1, '` + payment.OutsideAccount + `') AND EXISTS (SELECT FROM known) RETURNING account_id, status
)` + insertForTransferSQL,
}

const insertForTransferSQL = `
INSERT INTO balances (account_id, currency, status) SELECT account_id, $2, status FROM owners
ON CONFLICT (account_id, currency) DO NOTHING`

// transferOf makes the statement of a transfer: it locks the two balances, the house's last, and
// takes the time then. A CTE named added makes the transfer, which is booked last.
func transferOf(added string) *form {
	return &form{
		one: lockForTransferSQL + added + legsOfTransferSQL + `
), entered AS (` + enterTransferSQL + `
)` + moveTransferSQL,
		rows: touchForTransferSQL + added + legsOfTransferSQL + `
), entered AS (` + enterTransferSQL + `
	RETURNING 1
)` + moveTransferSQL,
	}
}

const (
	lockForTransferSQL = `
WITH locked AS MATERIALIZED (
	SELECT l.*, clock_timestamp() AS at FROM (
		SELECT account_id, currency, available FROM balances WHERE account_id IN ($1, '` + payment.OutsideAccount + `') AND currency = $2
		ORDER BY ` + house + `, account_id FOR NO KEY UPDATE) l
), booked AS MATERIALIZED (
	SELECT max(at) AS at FROM locked
)`
	touchForTransferSQL = `
WITH locked AS (
	UPDATE balances SET updated_at = updated_at WHERE account_id IN ($1, '` + payment.OutsideAccount + `') AND currency = $2
	RETURNING account_id, currency, available
), booked AS MATERIALIZED (
	SELECT clock_timestamp() AS at FROM (SELECT count(*) FROM locked) l, ` + hereSQL + `
)`

	legsOfTransferSQL = `, legs AS MATERIALIZED (
	SELECT account_id, currency, amount, transfer_id, booked_at FROM added
	UNION ALL SELECT '` + payment.OutsideAccount + `', currency, -amount, transfer_id, booked_at FROM added`

	enterTransferSQL = `
	INSERT INTO entries (account_id, currency, booked_at, transaction_id, kind, amount, value_date)
	SELECT account_id, currency, booked_at, md5(transfer_id)::uuid, CASE WHEN (SELECT amount FROM added) > 0 THEN 'funding' ELSE 'withdrawal' END,
		amount, (booked_at AT TIME ZONE 'UTC')::date FROM legs, ` + hereSQL

	moveTransferSQL = `
UPDATE balances b SET available = b.available + l.amount, updated_at = now()
FROM legs l WHERE b.account_id = l.account_id AND b.currency = l.currency`
)

var (
	// fundSQL counts a funding once, by its id. It changes no row if the id has been counted or the
	// account does not exist. The balance must not exceed what a payment can carry.
	fundSQL = transferOf(`, added AS (
	INSERT INTO transfers (transfer_id, account_id, currency, amount, note, source, booked_at, created_at)
	SELECT $3, l.account_id, l.currency, $4, $5, $6, booked.at, booked.at FROM locked l, booked, ` + hereSQL + ` WHERE l.account_id = $1
	ON CONFLICT (transfer_id) DO NOTHING
	RETURNING transfer_id, account_id, currency, amount, booked_at
)`)
)

const (
	// knownSQL reports whether a funding with this id has the same content. If $6 is true, it looks
	// only at fundings whose source was not kept.
	knownSQL = `
SELECT account_id = $2 AND currency = $3 AND amount = $4 AND note = $5 FROM transfers WHERE transfer_id = $1 AND (source = '' OR NOT $6)`
)

// lockAccountRowSQL runs before a profile is set. A transaction that adds a balance holds the account's
// row until it ends. So the statement after this one sees every balance that has copied the status.
const lockAccountRowSQL = `SELECT FROM accounts WHERE account_id = $1 FOR NO KEY UPDATE`

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
	if err := cmp.Or(p.Validate(), by.Order.Validate()); err != nil {
		return false, &InvalidError{err}
	}
	err = l.begin(ctx, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		queueSpreadLocks(b, tx.Conn(), p.AccountID)
		b.Queue(lockAccountRowSQL, p.AccountID)
		openSQL.queue(b, p.AccountID, p.Owner, p.Currency, p.DailyLimitIDR, p.Status, at, by.key()).Exec(func(tag pgconn.CommandTag) error {
			applied = tag.RowsAffected() == 1
			return nil
		})
		if err := tx.SendBatch(ctx, b).Close(); err != nil || !applied {
			return err
		}
		return recordOn(ctx, tx, by, AccountChange, p.AccountID, map[string]any{
			"currency": p.Currency, "daily_limit_idr": p.DailyLimitIDR, "status": p.Status,
		})
	})
	return applied, err
}

// OpenUndated opens an account with a profile whose time is not known. Any other profile counts as
// newer. applied is false if the account has this profile already. OpenUndated returns
// ErrOtherProfile if the account has another profile, and an InvalidError that names an invalid
// field.
func (l *Ledger) OpenUndated(ctx context.Context, p Profile) (applied bool, err error) {
	if err := p.Validate(); err != nil {
		return false, &InvalidError{err}
	}
	profile := []any{p.AccountID, p.Owner, p.Currency, p.DailyLimitIDR, p.Status}
	tag, err := openUndatedSQL.exec(ctx, l.pool, profile...)
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
	if err := cmp.Or(f.Validate(), by.Order.Validate()); err != nil {
		return false, &InvalidError{err}
	}
	id := by.key()
	if was := by.ambiguous(); was != id {
		if known, err := l.knownFunding(ctx, was, f, true); known || err != nil {
			return false, err
		}
	}
	var booked bool
	err = l.begin(ctx, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		currency := f.Amount.Currency.String()
		queueSpreadLocks(b, tx.Conn(), f.AccountID, payment.OutsideAccount)
		addForTransferSQL.queue(b, f.AccountID, currency)
		fundSQL.queue(b, f.AccountID, currency, id, f.Amount.Minor, f.Note, by.Source).Exec(func(tag pgconn.CommandTag) error {
			booked = tag.RowsAffected() > 0
			return nil
		})
		if err := tx.SendBatch(ctx, b).Close(); err != nil || !booked {
			return err
		}
		return recordOn(ctx, tx, by, FundingChange, f.AccountID, map[string]any{
			"amount": f.Amount.String(), "currency": currency, "event_id": by.ID,
		})
	})
	if err != nil || booked {
		return err == nil, err
	}
	if known, err := l.knownFunding(ctx, id, f, false); known || err != nil {
		return false, err
	}
	return false, ErrNoAccount
}

// KnownFunding reports whether a funding of this origin has been counted. It returns ErrOtherFunding if
// that funding had other content.
func (l *Ledger) KnownFunding(ctx context.Context, f Funding, by Origin) (bool, error) {
	return l.knownFunding(ctx, by.key(), f, false)
}

// knownFunding reports whether the funding has been counted. It returns ErrOtherFunding if a
// funding with this id has other content. sourceless limits the search to fundings whose source was
// not kept.
func (l *Ledger) knownFunding(ctx context.Context, id string, f Funding, sourceless bool) (bool, error) {
	var same bool
	err := l.pool.QueryRow(ctx, knownSQL, id, f.AccountID, f.Amount.Currency.String(), f.Amount.Minor, f.Note, sourceless).Scan(&same)
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

// Seed is an account with the balances to set.
type Seed struct {
	Profile
	Balances []money.Amount // what the account can spend afterwards; other balances stay as they are
}

func (s Seed) checkBalances() error {
	seen := map[money.Currency]bool{}
	for _, b := range s.Balances {
		if b.Minor < 0 || b.Minor > money.MaxMinor {
			return fmt.Errorf("balance must be between 0 and %d", int64(money.MaxMinor))
		}
		if seen[b.Currency] || b.Currency == (money.Currency{}) {
			return &payment.FieldError{Field: "balances", Problem: fmt.Sprintf("must name each currency once: %q", b.Currency)}
		}
		seen[b.Currency] = true
	}
	return nil
}

// SeedAccounts sets the profiles and balances of up to 10,000 accounts. It sets all of them or
// none. The change of each balance is booked as a funding or a withdrawal, so the ledger still adds up.
// An InvalidError names the account and its invalid field.
func (l *Ledger) SeedAccounts(ctx context.Context, accounts []Seed) error {
	if len(accounts) > maxSeeds {
		return &InvalidError{&payment.FieldError{Field: "accounts", Problem: fmt.Sprintf("%d in one call; at most %d", len(accounts), maxSeeds)}}
	}
	for i, a := range accounts {
		if err := cmp.Or(a.Validate(), a.checkBalances()); err != nil {
			return &InvalidError{fmt.Errorf("accounts[%d]: %w", i, err)}
		}
	}
	if err := l.begin(ctx, func(tx pgx.Tx) error { return seed(ctx, tx, accounts) }); err != nil {
		return fmt.Errorf("seed accounts: %w", err)
	}
	return nil
}

// profileSQL creates the account or sets its profile, whatever earlier events have set. The profile
// becomes the newest: its time is the database's time, and is after the last event's time, which
// may lie a little ahead. Citus allows only immutable functions in DO UPDATE SET, and so sums of
// times without a time zone.
var profileSQL = balanceOfProfile(`
WITH opened AS (
	INSERT INTO accounts AS a (account_id, owner, home_currency, status, profile_at, profile_event)
	VALUES ($1, $2, $3, $5, clock_timestamp(), $6)
	ON CONFLICT (account_id) DO UPDATE
	SET owner = excluded.owner, home_currency = excluded.home_currency, status = excluded.status,
		profile_at = CASE WHEN a.profile_at BETWEEN excluded.profile_at AND (excluded.profile_at AT TIME ZONE 'UTC' + $7) AT TIME ZONE 'UTC'
			THEN (a.profile_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC' ELSE excluded.profile_at END,
		profile_event = excluded.profile_event, updated_at = excluded.updated_at
	RETURNING account_id
)`)

// seedSQL books the difference between the wanted and the current balance.
var seedSQL = transferOf(`, added AS (
	INSERT INTO transfers (transfer_id, account_id, currency, amount, note, booked_at, created_at)
	SELECT $3, account_id, currency, $4 - available, 'seeded', booked.at, booked.at FROM locked, booked, ` + hereSQL + ` WHERE account_id = $1 AND available <> $4
	RETURNING transfer_id, account_id, currency, amount, booked_at
)`)

func seed(ctx context.Context, tx pgx.Tx, accounts []Seed) error {
	// Accounts are always locked in the order of their ids.
	inOrder := slices.SortedFunc(slices.Values(accounts), func(a, b Seed) int {
		return cmp.Compare(a.AccountID, b.AccountID)
	})
	b, ids := &pgx.Batch{}, make([]string, len(inOrder))
	all := []string{payment.OutsideAccount}
	for _, a := range inOrder {
		all = append(all, a.AccountID)
	}
	queueSpreadLocks(b, tx.Conn(), all...)
	for i, a := range inOrder {
		ids[i] = SeedPrefix + newID().String()
		b.Queue(lockAccountRowSQL, a.AccountID)
		profileSQL.queue(b, a.AccountID, a.Owner, a.Currency, a.DailyLimitIDR, a.Status, ids[i], MaxAhead)
	}
	// All balances are locked before the first is set, the house's last.
	var owners, currencies []string
	for _, a := range inOrder {
		for _, wanted := range a.Balances {
			currency := wanted.Currency.String()
			addForTransferSQL.queue(b, a.AccountID, currency)
			owners, currencies = append(owners, a.AccountID, payment.OutsideAccount), append(currencies, currency, currency)
		}
	}
	lockPlacesSQL.queue(b, owners, currencies)
	for i, a := range inOrder {
		for _, wanted := range a.Balances {
			seedSQL.queue(b, a.AccountID, wanted.Currency.String(), seedID(ids[i], wanted.Currency), wanted.Minor)
		}
	}
	for part := range slices.Chunk(b.QueuedQueries, seedStatements) {
		if err := tx.SendBatch(ctx, &pgx.Batch{QueuedQueries: part}).Close(); err != nil {
			return err
		}
	}
	return nil
}

// seedID returns the id of the transfer that sets a balance. One call sets several.
func seedID(id string, c money.Currency) string {
	if c == money.IDR {
		return id
	}
	return id + ":" + c.String()
}

// Account is an account as readers see it.
type Account struct {
	ID       string
	Currency string // the owner's own
	Status   payment.AccountStatus
	Balances []AccountBalance // by currency; an account has at least the one in rupiah
}

// AccountBalance is what an account has in one currency. Amounts are in minor units.
type AccountBalance struct {
	Currency   money.Currency
	Available  int64 // can be spent
	Held       int64 // for payments that are not decided
	DailyLimit int64 // 0: no limit
	SpentDay   int32 // the UTC day of Spent, numbered as payment.Day does
	Spent      int64 // held or paid on SpentDay
}

// In returns the balance in a currency; an empty one if the account has none.
func (a Account) In(c money.Currency) AccountBalance {
	for _, b := range a.Balances {
		if b.Currency == c {
			return b
		}
	}
	return AccountBalance{Currency: c}
}

// SpentOn returns the amount held or paid on a UTC day.
func (b AccountBalance) SpentOn(day int32) int64 {
	if b.SpentDay == day {
		return b.Spent
	}
	return 0
}

const accountsSQL = `
SELECT b.account_id, a.home_currency, b.status, b.currency, b.available, b.held, b.daily_limit, b.spent_day, b.spent_today
FROM balances b JOIN accounts a ON a.account_id = b.account_id WHERE b.account_id = ANY($1) ORDER BY b.account_id, b.currency`

func readAccounts(ctx context.Context, q postgres.Querier, ids []string) (map[string]Account, error) {
	rows, err := q.Query(ctx, accountsSQL, ids)
	if err != nil {
		return nil, fmt.Errorf("read accounts: %w", err)
	}
	found := make(map[string]Account, len(ids))
	var a Account
	var b AccountBalance
	_, err = pgx.ForEachRow(rows, []any{
		&a.ID, &a.Currency, &a.Status, asText{&b.Currency}, &b.Available, &b.Held, &b.DailyLimit, &b.SpentDay, &b.Spent,
	}, func() error {
		known := found[a.ID]
		if known.ID == "" || a.Status == payment.Blocked {
			known.ID, known.Currency, known.Status = a.ID, a.Currency, a.Status
		}
		known.Balances = append(known.Balances, b)
		found[a.ID] = known
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read accounts: %w", err)
	}
	return found, nil
}

// Balance reads the rupiah that an account can spend. It returns ErrNotFound if the account does
// not exist, and ErrFull if too many reads wait.
func (l *Ledger) Balance(ctx context.Context, account string) (idr int64, err error) {
	err = l.reads.rows.run(ctx, func(ctx context.Context) error {
		return l.reads.pool.QueryRow(ctx, `SELECT available FROM balances WHERE account_id = $1 AND currency = 'IDR'`, account).Scan(&idr)
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
// ten million accounts would take seconds. Citus can't plan a subquery in place of the size. It tells the
// size of its own empty table, and the sample is all accounts there.
const randomAccountsSQL = `
SELECT account_id
FROM accounts TABLESAMPLE SYSTEM (LEAST(100, 5000.0 * 8192 / GREATEST(1, pg_relation_size('accounts'))))
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
	rows, err := q.Query(ctx, `SELECT account_id, started_count FROM balances WHERE account_id = ANY($1) AND currency = 'IDR' AND started_minute = $2`,
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
