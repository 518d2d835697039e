package ledger

import (
	"errors"
	"sync"
	"testing"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// of returns what the house has in one currency.
func of(all []Liquidity, code string) Liquidity {
	for _, one := range all {
		if one.Currency.String() == code {
			return one
		}
	}
	return Liquidity{}
}

func (w *world) houseHas(code string) Liquidity {
	w.t.Helper()
	all, err := w.Liquidity(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return of(all, code)
}

// The house gets or gives back the difference, and it is booked. What is held for payments under way
// stays held, and the position is that of the exchanges alone.
func TestLiquidityIsSet(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(0, "IDR"), in(5000, "USD"))
	w.fund("B", in(0, "IDR"))
	limit := int64(2000)
	set := func(available int64, limit *int64, onlyMissing, changed bool) {
		t.Helper()
		got, err := w.SetLiquidity(t.Context(), in(available, "SGD"), limit, onlyMissing, Order{})
		if err != nil || got != changed {
			t.Fatalf("changed %t, %v", got, err)
		}
		w.checkSum()
	}
	set(10_000, &limit, true, true)
	if got := w.houseHas("SGD"); got.Available != 10_000 || got.Held != 0 || got.Position != 0 || got.Limit == nil || *got.Limit != 2000 {
		t.Errorf("at first: %+v", got)
	}
	held := w.mustReserve(exchange("k", "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340))
	for range 2 {
		set(500, &limit, false, true)
		if got := w.houseHas("SGD"); got.Available != 500 || got.Held != 1340 || got.Position != -1340 {
			t.Errorf("with a payment under way: %+v", got)
		}
	}
	w.mustFinish(Finish{ReservationID: held.ReservationID})
	set(70_000, nil, true, false) // the house has had money in this currency
	if got := w.houseHas("SGD"); got.Available != 500 || got.Held != 0 || got.Position != -1340 || got.Limit == nil {
		t.Errorf("after the payment: %+v", got)
	}
	if got := w.houseHas("USD"); got.Available != 1000 || got.Position != 1000 {
		t.Errorf("what the payment brought: %+v", got)
	}
	set(0, nil, false, true)
	if got := w.houseHas("SGD"); got.Available != 0 || got.Limit != nil {
		t.Errorf("at last: %+v", got)
	}
	var booked int
	if err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM transfers WHERE account_id = 'LIQUIDITY' AND currency = 'SGD'`).Scan(&booked); err != nil || booked != 3 {
		t.Errorf("%d transfers, %v", booked, err)
	}
}

func TestLiquidityThatCanNotBeSet(t *testing.T) {
	w := newWorld(t)
	w.fund("A", in(0, "IDR"), in(5000, "USD"))
	w.fund("B", in(0, "IDR"))
	w.liquidity(in(10_000, "SGD"), -1)
	w.mustReserve(exchange("k", "A", "B", in(1000, "USD"), in(1339, "SGD"), 1340))
	limit := func(n int64) *int64 { return &n }
	for name, tc := range map[string]struct {
		balance money.Amount
		limit   *int64
		field   string
	}{
		"no currency":                 {money.Amount{Minor: 1}, nil, "currency"},
		"less than nothing":           {in(-1, "SGD"), nil, "available"},
		"too much":                    {in(money.MaxMinor+1, "SGD"), nil, "available"},
		"a negative limit":            {in(1, "SGD"), limit(-1), "position_limit"},
		"a limit that is too high":    {in(1, "SGD"), limit(money.MaxMinor + 1), "position_limit"},
		"a limit below what is taken": {in(1, "SGD"), limit(1339), "position_limit"},
	} {
		_, err := w.SetLiquidity(t.Context(), tc.balance, tc.limit, false, Order{})
		var invalid *InvalidError
		var field *payment.FieldError
		if !errors.As(err, &invalid) || !errors.As(err, &field) || field.Field != tc.field {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := w.houseHas("SGD"); got.Available != 8660 || got.Limit != nil {
		t.Errorf("the house has %+v", got)
	}
	w.checkSum()
}

// Two systems' seeds at the same time give the house its first money once.
func TestMissingLiquidityIsSetOnce(t *testing.T) {
	w := newWorld(t)
	results := make(chan bool, 8)
	var all sync.WaitGroup
	for range cap(results) {
		all.Go(func() {
			changed, err := w.SetLiquidity(t.Context(), in(100, "IDR"), nil, true, Order{})
			if err != nil {
				t.Error(err)
			}
			results <- changed
		})
	}
	all.Wait()
	close(results)
	changes := 0
	for changed := range results {
		if changed {
			changes++
		}
	}
	there, err := ReadSeeded(t.Context(), w.pool)
	if err != nil || there.Liquidity != 1 || there.Fundings {
		t.Errorf("the ledger says %+v, %v", there, err)
	}
	if got := w.houseHas("IDR"); changes != 1 || got.Available != 100 {
		t.Errorf("%d changes; the house has %+v", changes, got)
	}
}
