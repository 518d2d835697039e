package db

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
)

// An operator opens, funds, blocks and unblocks an account. Each change is a signed event that is applied
// at once, and changes nothing when Kafka delivers it. Who ordered it and why is logged, and can be read
// again.
func TestOperatorsChangeAccounts(t *testing.T) {
	w := newWorldWith(t, func(cfg *Config) { cfg.Kafka.AccountsTopic = "ledger.accounts" })
	var log bytes.Buffer
	w.log = slog.New(slog.NewTextHandler(&log, nil))
	opened, err := w.OpenAccount(t.Context(), &dbv1.OpenAccountRequest{AccountId: "A", Owner: "Ayu", Currency: "USD", DailyLimitIdr: 500, By: "ayu", Note: "new client"})
	if err != nil || !opened.Applied || opened.EventId == "" {
		t.Fatalf("%v, %v", opened, err)
	}
	for currency, minor := range map[string]int64{"IDR": 7000, "USD": 1050} {
		in := &dbv1.FundAccountRequest{AccountId: "A", Amount: &commonv1.Amount{Minor: minor, Currency: currency}, EventId: "bank-" + currency, By: "budi", Note: "cash"}
		if got, err := w.FundAccount(t.Context(), in); err != nil || !got.Applied || got.EventId != "bank-"+currency {
			t.Errorf("%v, %v", got, err)
		}
		if got, err := w.FundAccount(t.Context(), in); err != nil || got.Applied {
			t.Errorf("again: %v, %v", got, err)
		}
	}
	if got, err := w.SetAccountStatus(t.Context(), &dbv1.SetAccountStatusRequest{AccountId: "A", Status: "BLOCKED", By: "citra", Note: "fraud"}); err != nil || !got.Applied {
		t.Errorf("%v, %v", got, err)
	}
	for _, e := range w.published.events {
		if err := w.handle(t.Context(), e); err != nil {
			t.Error(err)
		}
	}
	a, err := w.DescribeAccount(t.Context(), &dbv1.DescribeAccountRequest{AccountId: "A"})
	if err != nil {
		t.Fatal(err)
	}
	if a.Owner != "Ayu" || a.Currency != "USD" || a.Status != "BLOCKED" || a.ProfileAt == nil || len(a.Balances) != 2 || a.Balances[0].DailyLimitMinor != 500 || len(a.Entries) != 2 {
		t.Errorf("%v", a)
	}
	for _, e := range a.Entries {
		if e.Entry.BalanceMinor != e.Entry.AmountMinor || e.Entry.Kind != "funding" {
			t.Errorf("%v", e)
		}
	}
	var told []string
	for _, c := range a.Changes {
		told = append(told, c.Kind+" "+c.By+" "+c.Note)
	}
	if got := strings.Join(told, ", "); got != "account citra fraud, funding budi cash, funding budi cash, account ayu new client" {
		t.Errorf("changes: %s", got)
	}
	if !strings.Contains(a.Changes[0].Detail, "BLOCKED") || !strings.Contains(log.String(), "by=citra note=fraud") {
		t.Errorf("detail %s, logged %s", a.Changes[0].Detail, &log)
	}
	// The rest of the profile stays.
	if _, err := w.SetAccountStatus(t.Context(), &dbv1.SetAccountStatusRequest{AccountId: "A", Status: "ACTIVE", By: "citra"}); err != nil || w.status("A") != "ACTIVE" {
		t.Errorf("%s, %v", w.status("A"), err)
	}
	if a, err := w.DescribeAccount(t.Context(), &dbv1.DescribeAccountRequest{AccountId: "A", Limit: 1}); err != nil || a.Balances[0].DailyLimitMinor != 500 || len(a.Entries) != 1 || len(a.Changes) != 1 {
		t.Errorf("%v, %v", a, err)
	}
	// Fundings don't hide who has set the account's status.
	if _, err := w.FundAccount(t.Context(), &dbv1.FundAccountRequest{AccountId: "A", Amount: &commonv1.Amount{Minor: 1, Currency: "IDR"}, By: "budi"}); err != nil {
		t.Fatal(err)
	}
	if a, err := w.DescribeAccount(t.Context(), &dbv1.DescribeAccountRequest{AccountId: "A", Limit: 1}); err != nil || len(a.Changes) != 2 ||
		a.Changes[0].Kind != "funding" || a.Changes[1].Kind != "account" || a.Changes[1].By != "citra" {
		t.Errorf("%v, %v", a, err)
	}
}

// An order that is repeated under its id does not undo what was ordered since. The same id for another
// account is another change, and is recorded too.
func TestARepeatedOrderUndoesNothing(t *testing.T) {
	w := newWorldWith(t, func(cfg *Config) { cfg.Kafka.AccountsTopic = "ledger.accounts" })
	open := func(account string) *dbv1.OpenAccountResponse {
		t.Helper()
		got, err := w.OpenAccount(t.Context(), &dbv1.OpenAccountRequest{AccountId: account, Owner: "Ayu", EventId: "order-1", By: "ayu", Note: "new"})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if !open("A").Applied {
		t.Error("the order was not applied")
	}
	if _, err := w.SetAccountStatus(t.Context(), &dbv1.SetAccountStatusRequest{AccountId: "A", Status: "BLOCKED", By: "budi"}); err != nil {
		t.Fatal(err)
	}
	if open("A").Applied || w.status("A") != "BLOCKED" {
		t.Errorf("the repeated order made the account %s", w.status("A"))
	}
	if !open("B").Applied {
		t.Error("the order for another account was not applied")
	}
	got, err := w.ListChanges(t.Context(), &dbv1.ListChangesRequest{})
	if err != nil || len(got.Changes) != 3 {
		t.Errorf("%v, %v", got, err)
	}
}

// A block takes effect although the profile that is there has a time that is ahead of db's clock.
func TestABlockFollowsAProfileFromAClockAhead(t *testing.T) {
	w := newWorldWith(t, func(cfg *Config) { cfg.Kafka.AccountsTopic = "ledger.accounts" })
	w.takes(w.accountEvent("/bank", "o1", active("A"), time.Now().Add(20*time.Second)), "applied")
	got, err := w.SetAccountStatus(t.Context(), &dbv1.SetAccountStatusRequest{AccountId: "A", Status: "BLOCKED", By: "budi"})
	if err != nil || !got.Applied || w.status("A") != "BLOCKED" {
		t.Errorf("%v, %v: the account is %s", got, err, w.status("A"))
	}
}

// What is wrong is named, with its limit, and no event is published.
func TestOperatorsErrorsNameTheField(t *testing.T) {
	w := newWorld(t)
	w.open(100, "A")
	long := strings.Repeat("x", 501)
	idr := func(minor int64) *commonv1.Amount { return &commonv1.Amount{Minor: minor, Currency: "IDR"} }
	open := func(in *dbv1.OpenAccountRequest) error { _, err := w.OpenAccount(t.Context(), in); return err }
	fund := func(in *dbv1.FundAccountRequest) error { _, err := w.FundAccount(t.Context(), in); return err }
	set := func(in *dbv1.SetAccountStatusRequest) error {
		_, err := w.SetAccountStatus(t.Context(), in)
		return err
	}
	for i, tc := range []struct {
		err   error
		code  codes.Code
		words string
	}{
		{open(&dbv1.OpenAccountRequest{Owner: "x"}), codes.InvalidArgument, "account_id: is missing"},
		{open(&dbv1.OpenAccountRequest{AccountId: "LIQUIDITY", Owner: "x"}), codes.InvalidArgument, "is the house's own"},
		{open(&dbv1.OpenAccountRequest{AccountId: "B", Owner: strings.Repeat("x", 201)}), codes.InvalidArgument, "owner: is 201 bytes long; at most 200"},
		{open(&dbv1.OpenAccountRequest{AccountId: "B", Owner: "x", DailyLimitIdr: -1}), codes.InvalidArgument, "daily_limit: must be between 0 and"},
		{open(&dbv1.OpenAccountRequest{AccountId: "B", Owner: "x", Status: "CLOSED"}), codes.InvalidArgument, "status: must be ACTIVE or BLOCKED"},
		{open(&dbv1.OpenAccountRequest{AccountId: "B", Owner: "x", By: "y", Note: long}), codes.InvalidArgument, "note: is 501 bytes long; at most 500"},
		{open(&dbv1.OpenAccountRequest{AccountId: "B", Owner: "x", By: long}), codes.InvalidArgument, "by: is 501 bytes long; at most 200"},
		{open(&dbv1.OpenAccountRequest{AccountId: "B", Owner: "x", EventId: long}), codes.InvalidArgument, "event_id: is 501 bytes long"},
		{fund(&dbv1.FundAccountRequest{AccountId: "A"}), codes.InvalidArgument, "currency: "},
		{fund(&dbv1.FundAccountRequest{AccountId: "A", Amount: idr(0)}), codes.InvalidArgument, "amount_idr: must be positive and at most"},
		{fund(&dbv1.FundAccountRequest{AccountId: "B", Amount: idr(5)}), codes.NotFound, "there is no account B"},
		{set(&dbv1.SetAccountStatusRequest{AccountId: "B", Status: "BLOCKED"}), codes.NotFound, "there is no account B"},
		{set(&dbv1.SetAccountStatusRequest{AccountId: "A", Status: "shut"}), codes.InvalidArgument, "status: must be"},
	} {
		if status.Code(tc.err) != tc.code || !strings.Contains(tc.err.Error(), tc.words) {
			t.Errorf("%d: %v, want %s", i, tc.err, tc.words)
		}
	}
	if len(w.published.events) != 0 {
		t.Errorf("%d events", len(w.published.events))
	}
	// An event that may not be in Kafka is not applied, and the operator is told its id.
	w.published.fail = errors.New("no broker")
	err := fund(&dbv1.FundAccountRequest{AccountId: "A", Amount: idr(5), EventId: "bank-1"})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "bank-1") || w.balance("A") != 100 {
		t.Errorf("%v; the balance is %d", err, w.balance("A"))
	}
	// A funding of the same id with other content is refused.
	w.published.fail = nil
	if err := fund(&dbv1.FundAccountRequest{AccountId: "A", Amount: idr(5), EventId: "bank-1"}); err != nil {
		t.Error(err)
	}
	if err := fund(&dbv1.FundAccountRequest{AccountId: "A", Amount: idr(6), EventId: "bank-1"}); status.Code(err) != codes.FailedPrecondition || w.balance("A") != 105 || len(w.published.events) != 1 {
		t.Errorf("%v; the balance is %d, and there are %d events", err, w.balance("A"), len(w.published.events))
	}
}

// Who set rates, rules and liquidity is kept, the newest first, page by page. A change that nobody
// ordered is not.
func TestChangesAreRead(t *testing.T) {
	w := newWorld(t)
	rates := []*dbv1.Rate{{Base: "USD", Quote: "IDR", Rate: "16000", Bid: "15900", Ask: "16100"}, {Base: "SGD", Quote: "IDR", Rate: "12000"}}
	if _, err := w.PutRates(t.Context(), &dbv1.PutRatesRequest{Rates: rates, By: "ayu", Note: "fixing"}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutRates(t.Context(), &dbv1.PutRatesRequest{Rates: rates}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.SetLiquidity(t.Context(), &dbv1.SetLiquidityRequest{Currency: "USD", AvailableMinor: 100, By: "budi"}); err != nil {
		t.Fatal(err)
	}
	put := func(expected string) (string, error) {
		got, err := w.PutRules(t.Context(), &dbv1.PutRulesRequest{Rules: []byte(`{"min_amount_idr": 5}`), By: "citra", Note: "limits", ExpectedRuleSet: expected})
		return got.GetRuleSet(), err
	}
	first, err := put("default")
	if err != nil {
		t.Fatal(err)
	}
	// Somebody else has set rules meanwhile.
	for _, other := range []string{"default", "00000000-0000-0000-0000-000000000001"} {
		if _, err := put(other); status.Code(err) != codes.Aborted {
			t.Errorf("%s: %v", other, err)
		}
	}
	second, err := put(first)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for token := ""; ; {
		page, err := w.ListChanges(t.Context(), &dbv1.ListChangesRequest{Limit: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range page.Changes {
			told = append(told, fmt.Sprint(c.Kind, " ", c.Subject, " ", c.By))
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	want := []string{"rules " + second + " citra", "rules " + first + " citra", "liquidity USD budi"}
	if len(told) != 5 || strings.Join(told[:3], ", ") != strings.Join(want, ", ") {
		t.Errorf("%q, want %q and two rates", told, want)
	}
	page, err := w.ListChanges(t.Context(), &dbv1.ListChangesRequest{Subject: second})
	if err != nil || len(page.Changes) != 1 || !strings.Contains(page.Changes[0].Detail, `"min_amount_idr": 5`) {
		t.Errorf("%v, %v", page, err)
	}
	page, err = w.ListChanges(t.Context(), &dbv1.ListChangesRequest{Kind: "rate", Subject: "USD/IDR"})
	if err != nil || len(page.Changes) != 1 || !strings.Contains(page.Changes[0].Detail, `"bid": "15900"`) || page.Changes[0].Note != "fixing" {
		t.Errorf("%v, %v", page, err)
	}
	for _, bad := range []*dbv1.ListChangesRequest{{Limit: 101}, {PageToken: "x"}} {
		if _, err := w.ListChanges(t.Context(), bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if _, err := w.PutRates(t.Context(), &dbv1.PutRatesRequest{Rates: rates, By: strings.Repeat("x", 201)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v", err)
	}
}

// A bank's event may say who ordered it, too.
func TestABanksEventSaysWhoOrderedIt(t *testing.T) {
	w := newWorld(t)
	in := active("A")
	in.By, in.Note = "teller 7", "branch"
	e := w.accountEvent("/bank", "o1", in, w.now())
	w.takes(e, applied)
	w.takes(e, applied) // delivered twice
	w.takes(w.accountEvent("/bank", "f1", event.AccountFunded{AccountID: "A", AmountIDR: 5}, w.now()), applied)
	a, err := w.DescribeAccount(t.Context(), &dbv1.DescribeAccountRequest{AccountId: "A"})
	if err != nil || len(a.Changes) != 1 || a.Changes[0].By != "teller 7" {
		t.Errorf("%v, %v", a, err)
	}
}
