package flow

import (
	"testing"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
)

// An operator's changes through the functions' RPCs are in force for the next payment. Their events come
// back from Kafka and change nothing more, and the books agree with them. Who ordered them can be read.
func TestOperatorsChangesAreInForceAndRecorded(t *testing.T) {
	s := start(t, options{})
	db, risk, fx := dbv1.NewAdminClient(s.Conn("db")), riskv1.NewAdminClient(s.Conn("risk")), fxv1.NewFxServiceClient(s.Conn("fx"))
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(db.OpenAccount(t.Context(), &dbv1.OpenAccountRequest{AccountId: "new", Owner: "Ayu", By: "ayu", Note: "new client"}))
	must(db.FundAccount(t.Context(), &dbv1.FundAccountRequest{AccountId: "new", Amount: &commonv1.Amount{Minor: 500_000, Currency: "IDR"}, By: "ayu", Note: "cash"}))
	s.expect(s.pay("c-1", "new", "B", "IDR", 20_000), "200 SUCCESS committed")

	rate := &fxv1.Rate{BaseCurrency: "USD", QuoteCurrency: "IDR", RateDecimal: "20000"}
	must(fx.UpdateRates(t.Context(), &fxv1.UpdateRatesRequest{Rates: []*fxv1.Rate{rate}, By: "budi", Note: "fixing"}))
	s.expect(s.pay("c-2", "new", "B", "USD", 1), "200 SUCCESS committed")

	rules, err := risk.GetRules(t.Context(), &riskv1.GetRulesRequest{})
	must(rules, err)
	most := int64(30_000)
	must(risk.SeedRules(t.Context(), &riskv1.SeedRulesRequest{
		MaxAmountIdr: &most, VelocityPerMin: rules.VelocityPerMin, BlockedAccounts: rules.BlockedAccounts, BlockedCountries: rules.BlockedCountries,
		By: "citra", Note: "limits", ExpectedRuleSet: rules.RuleSet,
	}))
	s.expect(s.pay("c-3", "new", "B", "IDR", 30_001), "200 FAILED risk_above_max")

	must(db.SetAccountStatus(t.Context(), &dbv1.SetAccountStatusRequest{AccountId: "new", Status: "BLOCKED", By: "dewi", Note: "fraud"}))
	s.drain()
	a, err := db.DescribeAccount(t.Context(), &dbv1.DescribeAccountRequest{AccountId: "new"})
	must(a, err)
	if a.Status != "BLOCKED" || len(a.Balances) != 1 || a.Balances[0].AvailableMinor != 460_000 || len(a.Entries) != 3 || a.Entries[0].Entry.BalanceMinor != 460_000 {
		t.Errorf("%v", a)
	}
	changes, err := db.ListChanges(t.Context(), &dbv1.ListChangesRequest{})
	must(changes, err)
	var who []string
	for _, c := range changes.Changes {
		who = append(who, c.Kind+" "+c.By)
	}
	if want := []string{"account dewi", "rules citra", "rate budi", "funding ayu", "account ayu"}; len(who) != len(want) || who[0] != want[0] || who[4] != want[4] {
		t.Errorf("%q, want %q", who, want)
	}
	s.expectClean()
}
