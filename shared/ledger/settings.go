package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// The limits of one call.
const (
	maxRates      = 500
	maxRulesBytes = 1 << 20
)

// The database's clock decides which row is the newest. A clock may have been set back, and a row
// in the future must not stay the newest. So a new row gets a time after every existing row.
const (
	putRateSQL = `
WITH next AS MATERIALIZED (
	SELECT greatest(clock_timestamp(), max(effective_at) + interval '1 microsecond') AS at FROM fx_rates WHERE base = $2 AND quote = $3
)
INSERT INTO fx_rates (rate_id, base, quote, rate, bid, ask, effective_at)
SELECT $1, $2, $3, $4::text::numeric, nullif($5::text, '')::numeric, nullif($6::text, '')::numeric, at FROM next
RETURNING 1`

	putRulesSQL = `
WITH next AS MATERIALIZED (
	SELECT greatest(clock_timestamp(), max(created_at) + interval '1 microsecond') AS at FROM risk_rules
	HAVING $3 = '' OR $3 = coalesce((SELECT rule_set::text FROM risk_rules ORDER BY created_at DESC, rule_set DESC LIMIT 1), 'default')
)
INSERT INTO risk_rules (rule_set, rules, created_at) SELECT $1, $2::text::jsonb, at FROM next
RETURNING 1`

	// lockRulesSQL makes calls that put rules follow each other, until the transaction ends.
	lockRulesSQL = `SELECT pg_advisory_xact_lock(hashtext('risk_rules'))`
)

// Rate is the price of one unit of a currency in another.
type Rate struct {
	Base, Quote money.Currency
	Rate        money.Rate // in the middle between bid and ask
	// Bid is what the house pays for one unit of Base, and Ask is what it takes for one. Both are zero
	// if there is no spread: they are Rate then.
	Bid, Ask money.Rate
	ID       string    // set by the ledger
	At       time.Time // in force since; set by the ledger
}

// PutRates adds 1 to 500 rates, and returns their ids in the same order. Each is in force at once.
// PutRates ignores the ID and At of rates. An InvalidError names the invalid rate or field.
func (l *Ledger) PutRates(ctx context.Context, rates []Rate, by Order) (ids []string, err error) {
	if err := by.Validate(); err != nil {
		return nil, &InvalidError{err}
	}
	if len(rates) == 0 || len(rates) > maxRates {
		return nil, &InvalidError{&payment.FieldError{Field: "rates", Problem: fmt.Sprintf("%d in one call; between 1 and %d", len(rates), maxRates)}}
	}
	b := &pgx.Batch{}
	for i, r := range rates {
		if err := r.check(); err != nil {
			return nil, &InvalidError{fmt.Errorf("rates[%d]: %w", i, err)}
		}
		id := newID()
		ids = append(ids, id.String())
		b.Queue(putRateSQL, id, r.Base.String(), r.Quote.String(), r.Rate.String(), r.Bid.String(), r.Ask.String())
		detail := map[string]any{"rate": r.Rate.String(), "rate_id": id}
		if !r.Bid.IsZero() {
			detail["bid"], detail["ask"] = r.Bid.String(), r.Ask.String()
		}
		if err := by.record(b, newID(), RateChange, r.Base.String()+"/"+r.Quote.String(), detail); err != nil {
			return nil, err
		}
	}
	if err := l.pool.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("put rates: %w", err)
	}
	return ids, nil
}

var one, _ = money.ParseRate("1")

func (r Rate) check() error {
	for _, price := range []struct {
		field string
		money.Rate
		given bool
	}{{"rate", r.Rate, true}, {"bid", r.Bid, !r.Bid.IsZero()}, {"ask", r.Ask, !r.Ask.IsZero()}} {
		// A rate is used in both directions.
		if _, err := money.Cross(one, price.Rate); err != nil && price.given {
			return &payment.FieldError{Field: price.field, Problem: fmt.Sprintf("%s of %s to %s has no inverse that can be used", price.Rate, r.Base, r.Quote)}
		}
	}
	switch {
	case r.Base == r.Quote:
		return &payment.FieldError{Field: "quote_currency", Problem: "is the base currency"}
	case r.Bid.IsZero() && r.Ask.IsZero():
		return nil
	case r.Bid.IsZero():
		return &payment.FieldError{Field: "bid", Problem: "is missing, and ask is given"}
	case r.Ask.IsZero():
		return &payment.FieldError{Field: "ask", Problem: "is missing, and bid is given"}
	case r.Bid.Cmp(r.Rate) > 0:
		return &payment.FieldError{Field: "bid", Problem: fmt.Sprintf("%s is above the rate, %s", r.Bid, r.Rate)}
	case r.Ask.Cmp(r.Rate) < 0:
		return &payment.FieldError{Field: "ask", Problem: fmt.Sprintf("%s is below the rate, %s", r.Ask, r.Rate)}
	}
	return nil
}

// newestRatesSQL goes from pair to pair in the index, so its cost does not depend on the length of
// a pair's history.
const newestRatesSQL = `
WITH RECURSIVE pairs AS (
	(SELECT base, quote FROM fx_rates ORDER BY base, quote LIMIT 1)
	UNION ALL
	SELECT n.base, n.quote FROM pairs p, LATERAL (
		SELECT r.base, r.quote FROM fx_rates r WHERE (r.base, r.quote) > (p.base, p.quote) ORDER BY r.base, r.quote LIMIT 1) n
)
SELECT p.base, p.quote, n.rate::text, coalesce(n.bid::text, ''), coalesce(n.ask::text, ''), n.rate_id::text, n.effective_at
FROM pairs p, LATERAL (
	SELECT rate, bid, ask, rate_id, effective_at FROM fx_rates r WHERE r.base = p.base AND r.quote = p.quote
	ORDER BY effective_at DESC, rate_id DESC LIMIT 1) n`

func readRates(ctx context.Context, q postgres.Querier) ([]Rate, error) {
	rows, err := q.Query(ctx, newestRatesSQL)
	if err != nil {
		return nil, fmt.Errorf("read rates: %w", err)
	}
	rates, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Rate, err error) {
		var base, quote, rate, bid, ask string
		if err := row.Scan(&base, &quote, &rate, &bid, &ask, &r.ID, &r.At); err != nil {
			return r, err
		}
		var baseErr, quoteErr, rateErr error
		r.Base, baseErr = money.ParseCurrency(base)
		r.Quote, quoteErr = money.ParseCurrency(quote)
		r.Rate, rateErr = money.ParseRate(rate)
		bidErr, askErr := r.Bid.UnmarshalText([]byte(bid)), r.Ask.UnmarshalText([]byte(ask))
		if err := errors.Join(baseErr, quoteErr, rateErr, bidErr, askErr); err != nil {
			return r, fmt.Errorf("rate %s: %w", r.ID, err)
		}
		return r, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read rates: %w", err)
	}
	return rates, nil
}

// NoRules is the expected rule set of PutRules if no rules were ever put.
const NoRules = "default"

// PutRules puts a rule set in force: the JSON of a payment.Rules, at most 1 MiB. It returns the
// set's id. An InvalidError refuses rules that risk could not use, because they would stop every
// payment. PutRules returns ErrOtherRules if expected is set, and another rule set is in force.
func (l *Ledger) PutRules(ctx context.Context, text []byte, expected string, by Order) (id string, err error) {
	if len(text) > maxRulesBytes {
		return "", &InvalidError{&payment.FieldError{Field: "rules", Problem: fmt.Sprintf("%d bytes; at most %d", len(text), maxRulesBytes)}}
	}
	rules, err := payment.ParseRules(text)
	if err == nil {
		err = cmp.Or(rules.Validate(), by.Validate())
	}
	if err != nil {
		return "", &InvalidError{err}
	}
	set := newID()
	err = l.begin(ctx, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		b.Queue(lockRulesSQL)
		b.Queue(putRulesSQL, set, string(text), expected).Exec(func(tag pgconn.CommandTag) error {
			if tag.RowsAffected() == 0 {
				return ErrOtherRules
			}
			return nil
		})
		// The lists may be long. They are kept under the rule set's id.
		if err := by.record(b, set, RulesChange, set.String(), map[string]any{
			"min_amount_idr": rules.MinAmountIDR, "max_amount_idr": rules.MaxAmountIDR, "velocity_per_min": rules.VelocityPerMin,
			"random_reject_ppm": rules.RandomRejectPPM, "blocked_accounts": len(rules.BlockedAccounts),
		}); err != nil {
			return err
		}
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return "", fmt.Errorf("put rules: %w", err)
	}
	// This replica uses the rules at once. If that fails, the next refresh follows within a second.
	_ = l.rules.Refresh(ctx)
	return set.String(), nil
}

// readRules reads the rules. The ledger itself enforces one limit, the number of payments that a
// sender starts in a minute, because it counts them. Like risk, it uses rules that are at most two
// seconds old.
func (l *Ledger) readRules(ctx context.Context) (payment.Rules, error) {
	id, text, err := readRules(ctx, l.pool)
	if err != nil || text == nil {
		return payment.Rules{}, err // there are no rules yet: risk's defaults do not limit counts
	}
	r, err := payment.ParseRules(text)
	if err != nil {
		err = fmt.Errorf("rule set %s: %w", id, err)
	}
	return r, err
}

func readRules(ctx context.Context, q postgres.Querier) (id string, text []byte, err error) {
	err = q.QueryRow(ctx, `SELECT rule_set::text, rules FROM risk_rules ORDER BY created_at DESC, rule_set DESC LIMIT 1`).Scan(&id, &text)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("read rules: %w", err)
	}
	return id, text, nil
}
