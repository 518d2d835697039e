package main

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/seeds"
)

// running is a fake of a system's functions.
type running struct {
	grpc.ClientConnInterface
	priced     map[string]bool // currencies with a rate to rupiah
	ruleSet    string
	money      map[string]int64 // rupiah by account
	currencies []string         // of each account
}

func (r running) Invoke(_ context.Context, method string, in, out any, _ ...grpc.CallOption) error {
	switch out := out.(type) {
	case *fxv1.ListRatesResponse:
		for currency := range r.priced {
			out.Rates = append(out.Rates, &fxv1.RateInForce{BaseCurrency: currency})
		}
	case *riskv1.EvaluateResponse:
		out.RuleSet = r.ruleSet
	case *walletv1.GetAccountResponse:
		balance, there := r.money[in.(*walletv1.GetAccountRequest).AccountId]
		if !there {
			return status.Error(codes.NotFound, "no such account")
		}
		out.BalanceIdr = balance
		for _, code := range r.currencies {
			out.Balances = append(out.Balances, &commonv1.Balance{Currency: code})
		}
	default:
		return fmt.Errorf("%s was called", method)
	}
	return nil
}

// Seeds add what is missing. Operators' changes stay, unless reset is set.
func TestSeedsAddWhatIsMissing(t *testing.T) {
	allRates, err := seeds.Rates()
	if err != nil {
		t.Fatal(err)
	}
	allAccounts, err := seeds.Accounts()
	if err != nil {
		t.Fatal(err)
	}
	currencies, inRupiah := []string{"IDR"}, 0 // inRupiah: the accounts that have only rupiah
	for _, a := range allAccounts {
		for _, b := range a.Balances {
			currencies = append(currencies, b.Currency.String())
		}
		if len(a.Balances) == 0 {
			inRupiah++
		}
	}
	fresh := running{ruleSet: "default"}
	old := running{priced: map[string]bool{}, ruleSet: "0199-rules", money: map[string]int64{}, currencies: currencies}
	for _, r := range allRates {
		old.priced[r.Base] = true
	}
	for _, a := range allAccounts {
		old.money[a.ID] = 5
	}
	halfwayRates := 0 // the rates that are missing halfway
	for _, r := range allRates {
		if r.Base != allRates[0].Base {
			halfwayRates++
		}
	}
	halfway := running{priced: map[string]bool{allRates[0].Base: true}, ruleSet: "default", money: map[string]int64{"ACC001": 7, "ACC002": 0}, currencies: currencies}
	earlier := old
	earlier.currencies = []string{"IDR"}
	for name, tc := range map[string]struct {
		system          running
		reset           bool
		rates, accounts int
		rules           bool
	}{
		"a new one":  {fresh, false, len(allRates), len(allAccounts), true},
		"an old one": {old, false, 0, 0, false},
		"halfway":    {halfway, false, halfwayRates, len(allAccounts) - 1, true}, // ACC002 may lack its funds
		// The release before had only rupiah.
		"an earlier one": {earlier, false, 0, len(allAccounts) - inRupiah, false},
		"all of it put":  {old, true, len(allRates), len(allAccounts), true},
	} {
		rates, rules, accounts, err := newSystem{fx: tc.system, risk: tc.system, wallet: tc.system}.missing(t.Context(), tc.reset)
		if err != nil || len(rates) != tc.rates || rules != tc.rules || len(accounts) != tc.accounts {
			t.Errorf("%s: %d rates, rules %t, %d accounts, %v", name, len(rates), rules, len(accounts), err)
		}
	}
}

// house is a fake of db that has liquidity in some currencies.
type house struct {
	grpc.ClientConnInterface
	has map[string]bool
}

func (h house) Invoke(_ context.Context, method string, in, out any, _ ...grpc.CallOption) error {
	set, ok := in.(*dbv1.SetLiquidityRequest)
	if !ok || !set.OnlyMissing || set.AvailableMinor <= 0 || set.GetPositionLimitMinor() <= 0 {
		return fmt.Errorf("%s was called with %v", method, in)
	}
	out.(*dbv1.SetLiquidityResponse).Changed = !h.has[set.Currency]
	h.has[set.Currency] = true
	return nil
}

// The house gets liquidity in each currency once.
func TestSeedsGiveTheHouseLiquidityOnce(t *testing.T) {
	all, err := seeds.HouseLiquidity()
	if err != nil {
		t.Fatal(err)
	}
	s := newSystem{db: house{has: map[string]bool{"USD": true}}}
	for _, want := range []int{len(all) - 1, 0} {
		if given, err := s.seedLiquidity(t.Context()); err != nil || given != want {
			t.Errorf("%d currencies, want %d: %v", given, want, err)
		}
	}
}
