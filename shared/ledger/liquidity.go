package ledger

import (
	"cmp"
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// Liquidity is what the house has to exchange in one currency. Amounts are in minor units.
type Liquidity struct {
	Currency  money.Currency
	Available int64 // can be exchanged now
	Held      int64 // for payments that are not decided
	// Position is what exchanges have brought, less what they took and hold. It must not fall below
	// -Limit.
	Position int64
	Limit    *int64 // nil: no limit
}

const (
	limitPositionSQL = `
UPDATE balances SET position_limit = $2::bigint, updated_at = now()
WHERE account_id = '` + payment.LiquidityAccount + `' AND currency = $1 AND ($2::bigint IS NULL OR position >= -$2::bigint)`

	// lockHouseSQL makes two calls for what is missing follow each other.
	lockHouseSQL = `SELECT FROM accounts WHERE account_id = '` + payment.LiquidityAccount + `' FOR NO KEY UPDATE`

	hasLiquiditySQL = `
SELECT EXISTS (SELECT FROM entries WHERE account_id = '` + payment.LiquidityAccount + `' AND currency = $1)
	OR EXISTS (SELECT FROM balances WHERE account_id = '` + payment.LiquidityAccount + `' AND currency = $1 AND position_limit IS NOT NULL)`

	liquiditySQL = `
SELECT currency, available, held, position, position_limit FROM balances
WHERE account_id = '` + payment.LiquidityAccount + `' ORDER BY currency`
)

// SetLiquidity sets what the house can exchange in one currency, and how far its position may fall
// below 0. A nil limit means no limit. The difference to what the house has is booked as a funding or a
// withdrawal. If onlyMissing is set and the house has ever had money or a limit in this currency,
// nothing changes, and changed is false. An InvalidError names the invalid field.
func (l *Ledger) SetLiquidity(ctx context.Context, balance money.Amount, limit *int64, onlyMissing bool, by Order) (changed bool, err error) {
	if err := cmp.Or(checkLiquidity(balance, limit), by.Validate()); err != nil {
		return false, &InvalidError{err}
	}
	err = l.begin(ctx, func(tx pgx.Tx) error {
		currency := balance.Currency.String()
		if onlyMissing {
			there, err := hasLiquidity(ctx, tx, currency)
			if err != nil || there {
				return err
			}
		}
		changed = true
		b := &pgx.Batch{}
		queueSpreadLocks(b, tx.Conn(), payment.LiquidityAccount, payment.OutsideAccount)
		addForTransferSQL.queue(b, payment.LiquidityAccount, currency)
		seedSQL.queue(b, payment.LiquidityAccount, currency, seedID(SeedPrefix+newID().String(), balance.Currency), balance.Minor)
		b.Queue(limitPositionSQL, currency, limit).Exec(func(tag pgconn.CommandTag) error {
			if tag.RowsAffected() == 0 {
				return &InvalidError{&payment.FieldError{Field: "position_limit", Problem: "is less than exchanges have taken already"}}
			}
			return nil
		})
		detail := map[string]any{"available": balance.String()}
		if limit != nil {
			detail["position_limit"] = money.Amount{Minor: *limit, Currency: balance.Currency}.String()
		}
		if err := by.record(b, newID(), LiquidityChange, currency, detail); err != nil {
			return err
		}
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return false, fmt.Errorf("set the liquidity in %s: %w", balance.Currency, err)
	}
	return changed, nil
}

// hasLiquidity reports whether the house has ever had money or a limit in a currency. Other calls wait
// until the transaction ends.
func hasLiquidity(ctx context.Context, tx pgx.Tx, currency string) (there bool, err error) {
	if _, err := tx.Exec(ctx, lockHouseSQL); err != nil {
		return false, err
	}
	err = tx.QueryRow(ctx, hasLiquiditySQL, currency).Scan(&there)
	return there, err
}

func checkLiquidity(balance money.Amount, limit *int64) error {
	if balance.Currency == (money.Currency{}) {
		return &payment.FieldError{Field: "currency", Problem: "is missing"}
	}
	if balance.Minor < 0 || balance.Minor > money.MaxMinor {
		return &payment.FieldError{Field: "available", Problem: fmt.Sprintf("must be between 0 and %d", int64(money.MaxMinor))}
	}
	if limit != nil && (*limit < 0 || *limit > money.MaxMinor) {
		return &payment.FieldError{Field: "position_limit", Problem: fmt.Sprintf("must be between 0 and %d", int64(money.MaxMinor))}
	}
	return nil
}

// Liquidity reads what the house has to exchange, by currency. It returns ErrFull if too many reads
// wait.
func (l *Ledger) Liquidity(ctx context.Context) (all []Liquidity, err error) {
	err = l.reads.rows.run(ctx, func(ctx context.Context) error {
		rows, err := l.reads.pool.Query(ctx, liquiditySQL)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (one Liquidity, err error) {
			err = row.Scan(asText{&one.Currency}, &one.Available, &one.Held, &one.Position, &one.Limit)
			return one, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read liquidity: %w", err)
	}
	return all, nil
}
