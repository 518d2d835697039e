package history

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"pgw/shared/money"
	"pgw/shared/postgres"
)

// ReadPayments reads the ledger's payments of all keys that begin with prefix.
func ReadPayments(ctx context.Context, q postgres.Querier, prefix string) (map[string]State, error) {
	rows, err := q.Query(ctx, `
SELECT r.idempotency_key, r.sender_id, r.receiver_id, r.currency_input, r.amount_minor, r.amount_idr, coalesce(r.rate::text, ''),
	r.reservation_id::text, r.status, coalesce(p.reason, ''), coalesce(r.debit_currency, 'IDR'), coalesce(r.credit_currency, 'IDR'),
	coalesce(r.debit_minor, 0), coalesce(r.credit_minor, 0)
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id AND p.idempotency_key = r.idempotency_key
WHERE starts_with(r.idempotency_key, $1)`, prefix)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	states, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s State, err error) {
		var currency, rate, debit, credit string
		var paid, got int64
		if err = row.Scan(&s.Key, &s.Terms.Sender, &s.Terms.Receiver, &currency, &s.Terms.Sent.Minor, &s.IDR, &rate, &s.Ref, &s.Status, &s.Reason,
			&debit, &credit, &paid, &got); err != nil {
			return s, err
		}
		if rupiah := money.IDR.String(); debit != rupiah || credit != rupiah {
			var debitErr, creditErr error
			s.Terms.Debit, debitErr = money.ParseCurrency(debit)
			s.Terms.Credit, creditErr = money.ParseCurrency(credit)
			if err := errors.Join(debitErr, creditErr); err != nil {
				return s, err
			}
			s.Moved = [2]money.Amount{{Minor: paid, Currency: s.Terms.Debit}, {Minor: got, Currency: s.Terms.Credit}}
		}
		if s.Terms.Sent.Currency, err = money.ParseCurrency(currency); err == nil && rate != "" {
			s.Rate, err = money.ParseRate(rate)
		}
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	kept := make(map[string]State, len(states))
	for _, s := range states {
		kept[s.Key] = s
	}
	return kept, nil
}
