package db

import (
	"context"
	"errors"
	"fmt"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// maxSeeds bounds one call of SeedAccounts.
const maxSeeds = 10_000

// ErrNoAccount means funds for an account that is not open yet. Its opening may still be on the way.
var ErrNoAccount = errors.New("the account is not open")

func checkProfile(id, currency, status string, limit int64) error {
	if err := payment.CheckID("account_id", id, payment.MaxAccountID); err != nil {
		return err
	}
	if id == payment.SettlementAccount {
		return &payment.FieldError{Field: "account_id", Problem: id + " is the house's own"}
	}
	if _, err := money.ParseCurrency(currency); err != nil {
		return &payment.FieldError{Field: "currency", Problem: err.Error()}
	}
	if status != "ACTIVE" && status != "BLOCKED" {
		return &payment.FieldError{Field: "status", Problem: "must be ACTIVE or BLOCKED"}
	}
	if limit < 0 || limit > money.MaxMinor {
		return &payment.FieldError{Field: "daily_limit", Problem: fmt.Sprintf("must be between 0 and %d", int64(money.MaxMinor))}
	}
	return nil
}

// openSQL creates the account, or sets its profile unless a newer event has done so: events may come again,
// and in another order.
const openSQL = `
INSERT INTO wallet_accounts (account_id, owner, currency, daily_limit_idr, status, profile_at)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (account_id) DO UPDATE
SET owner = excluded.owner, currency = excluded.currency, daily_limit_idr = excluded.daily_limit_idr,
	status = excluded.status, profile_at = excluded.profile_at, updated_at = now()
WHERE wallet_accounts.profile_at <= excluded.profile_at`

// fundSQL counts a funding once, by its id. It changes no row when the id is known or the account is not.
// The balance must stay within what a payment can carry.
const fundSQL = `
WITH funded AS (
	INSERT INTO fundings (funding_id, account_id, amount_idr, note)
	SELECT $1, account_id, $3, $4 FROM wallet_accounts WHERE account_id = $2
	ON CONFLICT (funding_id) DO NOTHING
	RETURNING account_id, amount_idr
)
UPDATE wallet_accounts a SET balance_idr = a.balance_idr + f.amount_idr, updated_at = now()
FROM funded f WHERE a.account_id = f.account_id`

// applyAccountEvent opens or funds an account.
func (d *DB) applyAccountEvent(ctx context.Context, e cloudevents.Event) error {
	if err := d.cfg.Keys.Verify(e); err != nil {
		return err
	}
	if e.Type() == event.TypeAccountOpened {
		return d.openAccount(ctx, e)
	}
	return d.fundAccount(ctx, e)
}

func (d *DB) openAccount(ctx context.Context, e cloudevents.Event) error {
	in, err := event.Decode[event.AccountOpened](e)
	if err != nil {
		return err
	}
	if err := checkProfile(in.AccountID, in.Currency, in.Status, in.DailyLimitIDR); err != nil {
		return fmt.Errorf("%w: %w", event.ErrMalformed, err)
	}
	_, err = d.pool.Exec(ctx, openSQL, in.AccountID, in.Owner, in.Currency, in.DailyLimitIDR, in.Status, e.Time())
	if err != nil {
		return fmt.Errorf("open account %s: %w", payment.Masked(in.AccountID), err)
	}
	return nil
}

func (d *DB) fundAccount(ctx context.Context, e cloudevents.Event) error {
	in, err := event.Decode[event.AccountFunded](e)
	if err != nil {
		return err
	}
	if in.AmountIDR <= 0 || in.AmountIDR > money.MaxMinor {
		return fmt.Errorf("%w: amount_idr must be positive and at most %d", event.ErrMalformed, int64(money.MaxMinor))
	}
	// An event's id is unique within its source only.
	id := e.Source() + "#" + e.ID()
	tag, err := d.pool.Exec(ctx, fundSQL, id, in.AccountID, in.AmountIDR, in.Note)
	if err != nil {
		return fmt.Errorf("fund account %s: %w", payment.Masked(in.AccountID), err)
	}
	if tag.RowsAffected() == 1 {
		return nil
	}
	var known bool
	if err := d.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM fundings WHERE funding_id = $1)`, id).Scan(&known); err != nil {
		return fmt.Errorf("fund account %s: %w", payment.Masked(in.AccountID), err)
	}
	if !known {
		return fmt.Errorf("fund account %s: %w", payment.Masked(in.AccountID), ErrNoAccount)
	}
	return nil
}

// SeedAccounts implements db.v1.Admin. It sets balances, as the contract has it; what that adds or takes is
// recorded as funding, so that the ledger adds up. All of a call's accounts are set, or none.
func (d *DB) SeedAccounts(ctx context.Context, in *dbv1.SeedAccountsRequest) (*dbv1.SeedAccountsResponse, error) {
	if len(in.Accounts) > maxSeeds {
		return nil, invalid(&payment.FieldError{Field: "accounts", Problem: fmt.Sprintf("%d in one call; at most %d", len(in.Accounts), maxSeeds)})
	}
	for i, a := range in.Accounts {
		if err := checkProfile(a.AccountId, a.Currency, a.Status, a.DailyLimitIdr); err != nil {
			return nil, invalid(fmt.Errorf("accounts[%d]: %w", i, err))
		}
		if a.BalanceIdr < 0 || a.BalanceIdr > money.MaxMinor {
			return nil, invalid(fmt.Errorf("accounts[%d]: balance must be between 0 and %d", i, int64(money.MaxMinor)))
		}
	}
	if err := pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error { return seed(ctx, tx, in.Accounts, d.now()) }); err != nil {
		return nil, unavailable(fmt.Errorf("seed accounts: %w", err))
	}
	return &dbv1.SeedAccountsResponse{Upserted: uint32(len(in.Accounts))}, nil
}

// seedSQL locks the account and records the difference between the balance wanted and the balance there is.
const seedSQL = `
WITH before AS (
	SELECT account_id, balance_idr FROM wallet_accounts WHERE account_id = $1 FOR UPDATE
), funded AS (
	INSERT INTO fundings (funding_id, account_id, amount_idr, note)
	SELECT $3, account_id, $2 - balance_idr, 'seeded' FROM before WHERE $2 <> balance_idr
)
UPDATE wallet_accounts a SET balance_idr = $2, updated_at = now() FROM before b WHERE a.account_id = b.account_id`

func seed(ctx context.Context, tx pgx.Tx, accounts []*dbv1.Account, now time.Time) error {
	// In the order of their ids, as everyone locks accounts.
	b := &pgx.Batch{}
	for _, a := range sortedByID(accounts) {
		b.Queue(openSQL, a.AccountId, a.Owner, a.Currency, a.DailyLimitIdr, a.Status, now)
		b.Queue(seedSQL, a.AccountId, a.BalanceIdr, "seed#"+newID().String())
	}
	return tx.SendBatch(ctx, b).Close()
}
