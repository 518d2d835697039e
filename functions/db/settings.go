package db

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// The limits of one call.
const (
	maxRates      = 500
	maxRulesBytes = 1 << 20
)

// The database's clock decides which row is the newest. A row in the future must not stay the
// newest, because a clock may have been set back. So a new row gets a time after every existing
// row.
const (
	putRateSQL = `
INSERT INTO fx_rates (rate_id, base, quote, rate, effective_at)
SELECT $1, $2, $3, $4::text::numeric, greatest(clock_timestamp(), max(effective_at) + interval '1 microsecond')
FROM fx_rates WHERE base = $2 AND quote = $3`

	putRulesSQL = `
INSERT INTO risk_rules (rule_set, rules, created_at)
SELECT $1, $2::text::jsonb, greatest(clock_timestamp(), max(created_at) + interval '1 microsecond') FROM risk_rules`
)

// PutRates implements db.v1.Admin. Rates are only added; fx reads the newest rate of each pair.
func (d *DB) PutRates(ctx context.Context, in *dbv1.PutRatesRequest) (*dbv1.PutRatesResponse, error) {
	if len(in.Rates) == 0 || len(in.Rates) > maxRates {
		return nil, invalid(&payment.FieldError{Field: "rates", Problem: fmt.Sprintf("%d in one call; between 1 and %d", len(in.Rates), maxRates)})
	}
	out := &dbv1.PutRatesResponse{}
	b := &pgx.Batch{}
	for i, r := range in.Rates {
		if err := checkRate(r); err != nil {
			return nil, invalid(fmt.Errorf("rates[%d]: %w", i, err))
		}
		id := newID()
		out.RateIds = append(out.RateIds, id.String())
		b.Queue(putRateSQL, id, r.Base, r.Quote, r.Rate)
	}
	if err := d.pool.SendBatch(ctx, b).Close(); err != nil {
		return nil, unavailable(fmt.Errorf("put rates: %w", err))
	}
	return out, nil
}

var one, _ = money.ParseRate("1")

func checkRate(r *dbv1.Rate) error {
	_, baseErr := money.ParseCurrency(r.Base)
	_, quoteErr := money.ParseCurrency(r.Quote)
	rate, rateErr := money.ParseRate(r.Rate)
	if err := errors.Join(baseErr, quoteErr, rateErr); err != nil {
		return err
	}
	// A rate is used in both directions.
	if _, err := money.Cross(one, rate); err != nil {
		return &payment.FieldError{Field: "rate", Problem: fmt.Sprintf("%s of %s to %s has no inverse that can be used", r.Rate, r.Base, r.Quote)}
	}
	if r.Base == r.Quote {
		return &payment.FieldError{Field: "quote_currency", Problem: "is the base currency"}
	}
	return nil
}

// PutRules implements db.v1.Admin. It refuses rules that risk could not use, because they would
// stop every payment.
func (d *DB) PutRules(ctx context.Context, in *dbv1.PutRulesRequest) (*dbv1.PutRulesResponse, error) {
	if len(in.Rules) > maxRulesBytes {
		return nil, invalid(&payment.FieldError{Field: "rules", Problem: fmt.Sprintf("%d bytes; at most %d", len(in.Rules), maxRulesBytes)})
	}
	rules, err := payment.ParseRules(in.Rules)
	if err == nil {
		err = rules.Validate()
	}
	if err != nil {
		return nil, invalid(err)
	}
	id := newID()
	if _, err := d.pool.Exec(ctx, putRulesSQL, id, string(in.Rules)); err != nil {
		return nil, unavailable(fmt.Errorf("put rules: %w", err))
	}
	if d.rules != nil {
		// This replica uses the rules at once. If that fails, the next refresh follows within a
		// second.
		_ = d.rules.Refresh(ctx)
	}
	return &dbv1.PutRulesResponse{RuleSet: id.String()}, nil
}

// enforceRules makes the ledger enforce the limit that it counts itself: the payments that a sender
// starts in a minute. Like risk, it uses rules that are at most two seconds old.
func (d *DB) enforceRules() {
	d.rules = postgres.NewCached(func(ctx context.Context) (payment.Rules, error) {
		id, text, err := postgres.NewestRules(ctx, d.pool)
		if err != nil || text == nil {
			return payment.Rules{}, err // there are no rules yet: risk's defaults limit no counts
		}
		r, err := payment.ParseRules(text)
		if err != nil {
			err = fmt.Errorf("rule set %s: %w", id, err)
		}
		return r, err
	}, d.log)
	d.ledger.velocity = func(ctx context.Context) (uint32, error) {
		r, err := d.rules.Get(ctx)
		return r.VelocityPerMin, err
	}
}
