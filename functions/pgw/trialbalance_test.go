package main

import (
	"bytes"
	"testing"
	"time"

	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
)

func TestTheTrialBalanceIsPrinted(t *testing.T) {
	usd, err := money.ParseCurrency("USD")
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(5000)
	trial := ledger.TrialBalance{At: time.Date(2026, 1, 31, 9, 30, 0, 0, time.UTC), Currencies: []ledger.CurrencyTrial{
		{Currency: usd, Sum: 1, Accounts: 12, Available: 10_025, Held: 50, House: []ledger.HouseBalance{
			{Account: payment.LiquidityAccount, Available: 900, Held: 25, Position: -75, PositionLimit: &limit},
			{Account: payment.OutsideAccount, Available: -10_999},
		}},
	}}
	var got bytes.Buffer
	if err := printTrial(&got, trial); err != nil {
		t.Fatal(err)
	}
	const want = `2026-01-31T09:30:00Z
  currency        account  available  held  position  limit
       USD  12 of clients     100.25  0.50                 
       USD      LIQUIDITY       9.00  0.25     -0.75  50.00
       USD        OUTSIDE    -109.99  0.00                 
       USD            sum       0.01                       
`
	if got.String() != want {
		t.Errorf("\n%s\nwant\n%s", &got, want)
	}
	if err := trial.Err(); err == nil || err.Error() != "the balances in USD sum to 0.01, not to zero" {
		t.Errorf("%v", err)
	}
}
