package db

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// Bounds of one call.
const (
	maxRates      = 500
	maxRulesBytes = 1 << 20
)

// The database's clock says which is the newest, and steps over one that is in its future: a clock may have been set
// back, and what is put last holds.
const (
	putRateSQL = `
INSERT INTO fx_rates (rate_id, base, quote, rate, effective_at)
SELECT $1, $2, $3, $4::text::numeric, greatest(clock_timestamp(), max(effective_at) + interval '1 microsecond')
FROM fx_rates WHERE base = $2 AND quote = $3`

	putRulesSQL = `
INSERT INTO risk_rules (rule_set, rules, created_at)
SELECT $1, $2::text::jsonb, greatest(clock_timestamp(), max(created_at) + interval '1 microsecond') FROM risk_rules`
)

// PutRates implements db.v1.Admin. Rates are only ever added; fx reads the newest of each pair.
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
	// It prices in both directions.
	if _, err := money.Cross(one, rate); err != nil {
		return &payment.FieldError{Field: "rate", Problem: fmt.Sprintf("%s of %s to %s has no inverse that can be used", r.Rate, r.Base, r.Quote)}
	}
	if r.Base == r.Quote {
		return &payment.FieldError{Field: "quote_currency", Problem: "is the base currency"}
	}
	return nil
}

// PutRules implements db.v1.Admin. Rules that risk could not use would stop every payment, so none are kept.
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
		// This replica knows at once; should that fail, the next refresh is a second away.
		_ = d.rules.Refresh(ctx)
	}
	return &dbv1.PutRulesResponse{RuleSet: id.String()}, nil
}

// enforceRules has the ledger enforce what it counts itself: how many payments a sender starts in a minute. It goes by
// the rules in force, at most two seconds old, as risk does.
func (d *DB) enforceRules() {
	d.rules = postgres.NewCached(func(ctx context.Context) (payment.Rules, error) {
		id, text, err := postgres.NewestRules(ctx, d.pool)
		if err != nil || text == nil {
			return payment.Rules{}, err // none were put: risk's defaults count nothing
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

func sortedByID(accounts []*dbv1.Account) []*dbv1.Account {
	return slices.SortedFunc(slices.Values(accounts), func(a, b *dbv1.Account) int { return cmp.Compare(a.AccountId, b.AccountId) })
}
