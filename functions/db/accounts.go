package db

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// maxSeeds bounds one call of SeedAccounts.
const maxSeeds = 10_000

// maxAhead is how far the time of an account's event may lie ahead of the database's clock: as far as clocks of others
// may be off.
const maxAhead = time.Minute

// What became of an account's event: the values of a metric's label. An event that changes nothing is ignored: it
// comes again, or it is older than what has been applied.
const (
	applied = "applied"
	ignored = "ignored"
	refusal = "refused"
	putOff  = "put_off"
)

func checkProfile(in event.AccountOpened) error {
	if err := checkAccountID(in.AccountID); err != nil {
		return err
	}
	if err := payment.CheckText("owner", in.Owner, payment.MaxOwner); err != nil {
		return err
	}
	if _, err := money.ParseCurrency(in.Currency); err != nil {
		return &payment.FieldError{Field: "currency", Problem: err.Error()}
	}
	if !in.Status.Valid() {
		return &payment.FieldError{Field: "status", Problem: fmt.Sprintf("must be %s or %s", payment.Active, payment.Blocked)}
	}
	if limit := in.DailyLimitIDR; limit < 0 || limit > money.MaxMinor {
		return &payment.FieldError{Field: "daily_limit", Problem: fmt.Sprintf("must be between 0 and %d", int64(money.MaxMinor))}
	}
	return nil
}

// checkAccountID checks the id of an account that somebody outside names.
func checkAccountID(id string) error {
	if id == payment.SettlementAccount {
		return &payment.FieldError{Field: "account_id", Problem: id + " is the house's own"}
	}
	return payment.CheckID("account_id", id, payment.MaxAccountID)
}

// openSQL creates the account, or sets its profile unless a newer event has done so: events may come again,
// and in another order. Of two events of the same instant the one with the greater id is the newer.
const openSQL = `
INSERT INTO wallet_accounts (account_id, owner, currency, daily_limit_idr, status, profile_at, profile_event)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (account_id) DO UPDATE
SET owner = excluded.owner, currency = excluded.currency, daily_limit_idr = excluded.daily_limit_idr,
	status = excluded.status, profile_at = excluded.profile_at, profile_event = excluded.profile_event, updated_at = now()
WHERE (wallet_accounts.profile_at, wallet_accounts.profile_event) <= (excluded.profile_at, excluded.profile_event)`

const (
	// openUndatedSQL creates the account by an event whose time nobody vouches for: any other event is newer.
	openUndatedSQL = `
INSERT INTO wallet_accounts (account_id, owner, currency, daily_limit_idr, status)
VALUES ($1, $2, $3, $4, $5) ON CONFLICT (account_id) DO NOTHING`

	sameProfileSQL = `
SELECT owner = $2 AND currency = $3 AND daily_limit_idr = $4 AND status = $5 FROM wallet_accounts WHERE account_id = $1`
)

const (
	// fundSQL counts a funding once, by its id. It changes no row when the id is known or the account is not.
	// The balance must stay within what a payment can carry.
	fundSQL = `
WITH funded AS (
	INSERT INTO fundings (funding_id, account_id, amount_idr, note, source)
	SELECT $1, account_id, $3, $4, $5 FROM wallet_accounts WHERE account_id = $2
	ON CONFLICT (funding_id) DO NOTHING
	RETURNING account_id, amount_idr
)
UPDATE wallet_accounts a SET balance_idr = a.balance_idr + f.amount_idr, updated_at = now()
FROM funded f WHERE a.account_id = f.account_id`

	// knownSQL tells whether a funding of this id has the same content. $5: only one of which no source was kept.
	knownSQL = `
SELECT account_id = $2 AND amount_idr = $3 AND note = $4 FROM fundings WHERE funding_id = $1 AND (source = '' OR NOT $5)`
)

// fundingID names a funding by its event. An event's id is unique within its source only, so both are in it, and so
// that no two events write the same text: the first # ends the source. A source that has a # itself is told by its
// length in front, which no URI begins with. (Ids of before were all of the first form.)
func fundingID(source, id string) string {
	if strings.Contains(source, "#") {
		return fmt.Sprintf("%d:%s", len(source), ambiguousID(source, id))
	}
	return ambiguousID(source, id)
}

func ambiguousID(source, id string) string { return source + "#" + id }

// applyAccountEvent opens or funds an account. outcome is the label of what became of the event.
func (d *DB) applyAccountEvent(ctx context.Context, e cloudevents.Event) (outcome string, err error) {
	defer func() {
		// What the database refuses in an event, it will refuse for ever.
		if postgres.BadData(err) && !postgres.Transient(err) {
			err = fmt.Errorf("%w: %w", event.ErrRefused, err)
		}
		switch {
		case event.Refused(err):
			outcome = refusal
		case err != nil:
			outcome = putOff
		}
	}()
	version, err := d.cfg.Keys.Verified(e)
	if err != nil {
		return "", err
	}
	// A time that the signature does not cover is not looked at.
	dated := version >= event.V2
	if dated {
		if err := d.checkTime(ctx, e); err != nil {
			return "", err
		}
	}
	if e.Type() == event.TypeAccountOpened {
		return d.openAccount(ctx, e, dated)
	}
	return d.fundAccount(ctx, e)
}

// checkTime refuses what claims to be of the future: a profile from there would hold against all that come after it.
func (d *DB) checkTime(ctx context.Context, e cloudevents.Event) error {
	if e.Time().IsZero() {
		return fmt.Errorf("%w: the event has no time", event.ErrMalformed)
	}
	var now time.Time
	if err := d.pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return fmt.Errorf("ask for the time: %w", err)
	}
	if ahead := e.Time().Sub(now); ahead > maxAhead {
		return refused("the event's time, %s, lies in the future: %s ahead of the ledger's clock; at most %s",
			e.Time().UTC().Format(time.RFC3339), ahead.Round(time.Second), maxAhead)
	}
	return nil
}

func (d *DB) openAccount(ctx context.Context, e cloudevents.Event, dated bool) (outcome string, err error) {
	in, err := event.Decode[event.AccountOpened](e)
	if err != nil {
		return "", err
	}
	if err := checkProfile(in); err != nil {
		return "", fmt.Errorf("%w: %w", event.ErrMalformed, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open account %s: %w", payment.Masked(in.AccountID), err)
		}
	}()
	if !dated {
		return d.openUndated(ctx, in)
	}
	tag, err := d.pool.Exec(ctx, openSQL, in.AccountID, in.Owner, in.Currency, in.DailyLimitIDR, in.Status, e.Time(), fundingID(e.Source(), e.ID()))
	if err != nil {
		return "", err
	}
	if tag.RowsAffected() == 0 {
		d.log.WarnContext(ctx, "an account's event is ignored: a newer event has set the profile",
			"account", payment.Masked(in.AccountID), "time", e.Time().UTC(), "status", string(in.Status))
		return ignored, nil
	}
	return applied, nil
}

func (d *DB) openUndated(ctx context.Context, in event.AccountOpened) (outcome string, err error) {
	profile := []any{in.AccountID, in.Owner, in.Currency, in.DailyLimitIDR, in.Status}
	tag, err := d.pool.Exec(ctx, openUndatedSQL, profile...)
	if err != nil {
		return "", err
	}
	if tag.RowsAffected() == 1 {
		return applied, nil
	}
	var same bool
	if err := d.pool.QueryRow(ctx, sameProfileSQL, profile...).Scan(&same); err != nil {
		return "", err
	}
	if !same {
		return "", refused("the account has another profile, and a signature of v1 does not cover the time that would tell which is newer: " +
			"sign the event anew, as pgw replay --sign does")
	}
	d.log.InfoContext(ctx, "an account's event is ignored: the account has this profile", "account", payment.Masked(in.AccountID))
	return ignored, nil
}

func (d *DB) fundAccount(ctx context.Context, e cloudevents.Event) (outcome string, err error) {
	in, err := event.Decode[event.AccountFunded](e)
	if err != nil {
		return "", err
	}
	if err := checkFunding(in); err != nil {
		return "", fmt.Errorf("%w: %w", event.ErrMalformed, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("fund account %s: %w", payment.Masked(in.AccountID), err)
		}
	}()
	id := fundingID(e.Source(), e.ID())
	if was := ambiguousID(e.Source(), e.ID()); was != id {
		if known, err := d.knownFunding(ctx, was, in, true); known || err != nil {
			return ignored, err
		}
	}
	tag, err := d.pool.Exec(ctx, fundSQL, id, in.AccountID, in.AmountIDR, in.Note, e.Source())
	if err != nil {
		return "", err
	}
	if tag.RowsAffected() == 1 {
		return applied, nil
	}
	if known, err := d.knownFunding(ctx, id, in, false); known || err != nil {
		return ignored, err
	}
	// The topic is ordered, and its key is the account: the event that opens an account stands before those that fund it,
	// and has been taken or given up. So waiting would open nothing, and hold up all that stands behind.
	return "", refused("the account is not open: open it, and have this event sent again (pgw deadletter redrive)")
}

func checkFunding(in event.AccountFunded) error {
	if err := checkAccountID(in.AccountID); err != nil {
		return err
	}
	if in.AmountIDR <= 0 || in.AmountIDR > money.MaxMinor {
		return &payment.FieldError{Field: "amount_idr", Problem: fmt.Sprintf("must be positive and at most %d", int64(money.MaxMinor))}
	}
	return payment.CheckText("note", in.Note, payment.MaxNote)
}

// knownFunding tells that the funding has counted. One of the same id with other content is refused.
func (d *DB) knownFunding(ctx context.Context, id string, in event.AccountFunded, ofBefore bool) (bool, error) {
	var same bool
	err := d.pool.QueryRow(ctx, knownSQL, id, in.AccountID, in.AmountIDR, in.Note, ofBefore).Scan(&same)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, err
	case !same:
		return false, refused("a funding of this id has counted, with other content: another account, amount or note")
	}
	d.log.InfoContext(ctx, "an account's event is ignored: this funding has counted", "account", payment.Masked(in.AccountID))
	return true, nil
}

// SeedAccounts implements db.v1.Admin. It sets balances, as the contract has it; what that adds or takes is
// recorded as funding, so that the ledger adds up. All of a call's accounts are set, or none.
func (d *DB) SeedAccounts(ctx context.Context, in *dbv1.SeedAccountsRequest) (*dbv1.SeedAccountsResponse, error) {
	if len(in.Accounts) > maxSeeds {
		return nil, invalid(&payment.FieldError{Field: "accounts", Problem: fmt.Sprintf("%d in one call; at most %d", len(in.Accounts), maxSeeds)})
	}
	accounts := make([]seeded, len(in.Accounts))
	for i, a := range in.Accounts {
		accounts[i] = seeded{event.AccountOpened{
			AccountID: a.AccountId, Owner: a.Owner, Currency: a.Currency, DailyLimitIDR: a.DailyLimitIdr,
			Status: payment.AccountStatus(a.Status),
		}, a.BalanceIdr}
		if err := checkProfile(accounts[i].AccountOpened); err != nil {
			return nil, invalid(fmt.Errorf("accounts[%d]: %w", i, err))
		}
		if a.BalanceIdr < 0 || a.BalanceIdr > money.MaxMinor {
			return nil, invalid(fmt.Errorf("accounts[%d]: balance must be between 0 and %d", i, int64(money.MaxMinor)))
		}
	}
	if err := pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error { return seed(ctx, tx, accounts) }); err != nil {
		return nil, unavailable(fmt.Errorf("seed accounts: %w", err))
	}
	return &dbv1.SeedAccountsResponse{Upserted: uint32(len(accounts))}, nil
}

// seeded is an account with the balance that it shall have.
type seeded struct {
	event.AccountOpened
	balanceIDR int64
}

// profileSQL creates the account or sets its profile, whatever events have said. It is the newest profile then: newer
// than the last event's, whose time may lie a little ahead, and by the database's clock.
const profileSQL = `
INSERT INTO wallet_accounts AS a (account_id, owner, currency, daily_limit_idr, status, profile_at, profile_event)
VALUES ($1, $2, $3, $4, $5, clock_timestamp(), $6)
ON CONFLICT (account_id) DO UPDATE
SET owner = excluded.owner, currency = excluded.currency, daily_limit_idr = excluded.daily_limit_idr, status = excluded.status,
	profile_at = CASE WHEN a.profile_at BETWEEN excluded.profile_at AND excluded.profile_at + $7
		THEN a.profile_at + interval '1 microsecond' ELSE excluded.profile_at END,
	profile_event = excluded.profile_event, updated_at = now()`

// seedSQL locks the account and records the difference between the balance wanted and the balance there is.
const seedSQL = `
WITH before AS (
	SELECT account_id, balance_idr FROM wallet_accounts WHERE account_id = $1 FOR UPDATE
), funded AS (
	INSERT INTO fundings (funding_id, account_id, amount_idr, note)
	SELECT $3, account_id, $2 - balance_idr, 'seeded' FROM before WHERE $2 <> balance_idr
)
UPDATE wallet_accounts a SET balance_idr = $2, updated_at = now() FROM before b WHERE a.account_id = b.account_id`

func seed(ctx context.Context, tx pgx.Tx, accounts []seeded) error {
	// In the order of their ids, as everyone locks accounts.
	inOrder := slices.SortedFunc(slices.Values(accounts), func(a, b seeded) int {
		return cmp.Compare(a.AccountID, b.AccountID)
	})
	b := &pgx.Batch{}
	for _, a := range inOrder {
		// No URI begins with a colon, so no event can have this id.
		id := ":seed:" + newID().String()
		b.Queue(profileSQL, a.AccountID, a.Owner, a.Currency, a.DailyLimitIDR, a.Status, id, maxAhead)
		b.Queue(seedSQL, a.AccountID, a.balanceIDR, id)
	}
	return tx.SendBatch(ctx, b).Close()
}
