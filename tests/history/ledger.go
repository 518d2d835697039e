package history

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"pgw/shared/money"
	"pgw/shared/postgres"
)

// ReadPayments reads the ledger's payments of all keys that begin with prefix.
func ReadPayments(ctx context.Context, q postgres.Querier, prefix string) (map[string]State, error) {
	rows, err := q.Query(ctx, `
SELECT r.idempotency_key, r.sender_id, r.receiver_id, r.currency_input, r.amount_minor, r.amount_idr, coalesce(r.rate::text, ''),
	r.reservation_id::text, r.status, coalesce(p.reason, '')
FROM reservations r LEFT JOIN payments p ON p.payment_id = r.reservation_id WHERE starts_with(r.idempotency_key, $1)`, prefix)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	states, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s State, err error) {
		var currency, rate string
		if err = row.Scan(&s.Key, &s.Terms.Sender, &s.Terms.Receiver, &currency, &s.Terms.Sent.Minor, &s.IDR, &rate, &s.Ref, &s.Status, &s.Reason); err != nil {
			return s, err
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
