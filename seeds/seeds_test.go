package seeds

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgw/shared/event"
	"pgw/shared/money"
)

// The number of accounts in accounts.csv and of events in payments.jsonl, and the seed that made
// them.
const (
	seedAccounts = 1004
	seedPayments = 20
	seedNumber   = 1
)

func TestAccountsFileIsWhatTheGeneratorMakes(t *testing.T) {
	var want bytes.Buffer
	if err := WriteAccounts(&want, MakeAccounts(seedNumber, seedAccounts)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want.Bytes(), accountsCSV) {
		t.Fatal("accounts.csv is not current: pgw seed accounts --count 1004 --seed 1 > seeds/accounts.csv")
	}
	accounts, err := Accounts()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, a := range accounts {
		if seen[a.ID] {
			t.Errorf("%s is listed twice", a.ID)
		}
		seen[a.ID] = true
		if _, err := money.ParseCurrency(a.Currency); err != nil {
			t.Errorf("%s: %v", a.ID, err)
		}
		if a.BalanceIDR < 0 || a.BalanceIDR > money.MaxMinor || a.DailyLimitIDR < 0 {
			t.Errorf("%s: balance %d, limit %d", a.ID, a.BalanceIDR, a.DailyLimitIDR)
		}
	}
}

// Accounts have money in several currencies. A file of an earlier release has no such column. It reads
// as it did.
func TestBalancesInOtherCurrencies(t *testing.T) {
	accounts, err := Accounts()
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]int{}
	for _, a := range accounts {
		for _, b := range a.Balances {
			by[b.Currency.String()]++
		}
	}
	for _, code := range []string{"USD", "SGD", "EUR", "JPY", "KWD"} {
		if by[code] < 20 {
			t.Errorf("%d accounts have %s", by[code], code)
		}
	}
	if got := formatBalances(accounts[0].Balances); got != "USD=100000.00 SGD=25000.00 JPY=2000000" {
		t.Errorf("ACC001 has %s", got)
	}

	earlier := "account_id,owner,currency,balance_idr,daily_limit_idr,status\nA,Ayu,USD,5,7,ACTIVE\n"
	got, err := ReadAccounts(strings.NewReader(earlier))
	if want := (Account{ID: "A", Owner: "Ayu", Currency: "USD", BalanceIDR: 5, DailyLimitIDR: 7, Status: "ACTIVE"}); err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("an earlier file: %+v, %v", got, err)
	}
	for _, bad := range []string{"USD", "USD=", "USD=1.005", "USD=-1", "USD=0", "XYZ=1", "IDR=5", "USD=1 USD=2", "USD=1,SGD=2"} {
		file := "account_id,owner,currency,balance_idr,daily_limit_idr,status,balances\nA,Ayu,USD,5,7,ACTIVE,\"" + bad + "\"\n"
		if got, err := ReadAccounts(strings.NewReader(file)); err == nil || !strings.Contains(err.Error(), "row 2: balances") {
			t.Errorf("%s: %+v, %v", bad, got, err)
		}
	}
}

// The event of each balance has an id of its own, whatever accounts are called.
func TestFundingsHaveTheirOwnIDs(t *testing.T) {
	seen := map[string]bool{}
	for _, id := range []string{"A", "A-USD", "USD:A", ":USD:A"} {
		a := Account{ID: id, Owner: "Ayu", Currency: "USD", BalanceIDR: 5, Status: "ACTIVE", Balances: []money.Amount{major(5, "USD"), major(7, "SGD")}}
		events, err := AccountEvents(a, Oldest)
		if err != nil || len(events) != 4 {
			t.Fatalf("%d events, %v", len(events), err)
		}
		for _, e := range events {
			if seen[e.ID()] {
				t.Errorf("%s comes twice", e.ID())
			}
			seen[e.ID()] = true
		}
		funded, err := event.Decode[event.AccountFundedV2](events[3])
		if err != nil || events[3].Type() != event.TypeAccountFundedV2 || funded.Minor != 700 || funded.Currency.String() != "SGD" {
			t.Errorf("%s: %+v, %v", events[3].Type(), funded, err)
		}
	}
}

// The house can exchange every currency that has a rate.
func TestLiquidityOfEveryCurrency(t *testing.T) {
	all, err := HouseLiquidity()
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, l := range all {
		codes = append(codes, l.Balance.Currency.String())
		if l.PositionLimit == nil || *l.PositionLimit <= 0 || *l.PositionLimit > l.Balance.Minor || l.Balance.Minor > money.MaxMinor {
			t.Errorf("%+v", l)
		}
	}
	rates, err := rupiahRates()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rates {
		if !slices.Contains(codes, r.currency.String()) {
			t.Errorf("%s has a rate and no liquidity", r.currency)
		}
	}
	if slices.Sort(codes); len(slices.Compact(codes)) != len(all) {
		t.Error("a currency is listed twice")
	}
}

func TestPaymentsFileIsWhatTheGeneratorMakes(t *testing.T) {
	txs, err := MakeTransactions(seedNumber, seedPayments, MakeAccounts(seedNumber, seedAccounts))
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	for _, tx := range txs {
		e, err := tx.Event()
		if err != nil {
			t.Fatal(err)
		}
		data, err := event.Decode[event.PaymentRequested](e)
		if err != nil {
			t.Fatal(err)
		}
		if err := data.Validate(); err != nil {
			t.Errorf("%s: %v", tx.Key, err)
		}
		line, err := e.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		want.Write(append(line, '\n'))
	}
	got, err := os.ReadFile("payments.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Fatal("payments.jsonl is not current: pgw seed transactions --count 20 --seed 1 --format cloudevents > seeds/payments.jsonl")
	}
}

func TestRatesAndRules(t *testing.T) {
	rates, err := rupiahRates()
	if err != nil {
		t.Fatal(err)
	}
	digits := map[int32]int{}
	by := map[string]string{}
	for _, r := range rates {
		digits[r.currency.Digits()]++
		by[r.currency.String()] = r.rate.String()
	}
	if by["USD"] != "15500" || by["SGD"] != "11600" || len(rates) < 14 || digits[0] < 2 || digits[3] < 1 {
		t.Errorf("rates: %v, by digits %v", by, digits)
	}
	// The limits that the contract names.
	if r, err := RiskRules(); err != nil || r.MinAmountIDR != 1_000 || r.MaxAmountIDR != 10_000_000 || r.RandomRejectPPM != 20_000 {
		t.Errorf("rules: %+v, %v", r, err)
	}
}

// Every rate has a spread that the ledger takes, and the earlier file of three columns is still read.
func TestRatesHaveASpread(t *testing.T) {
	rates, err := Rates()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rates {
		bid, bidErr := money.ParseRate(r.Bid)
		mid, midErr := money.ParseRate(r.Rate)
		ask, askErr := money.ParseRate(r.Ask)
		if err := errors.Join(bidErr, midErr, askErr); err != nil {
			t.Errorf("%+v: %v", r, err)
		} else if bid.Cmp(mid) >= 0 || mid.Cmp(ask) >= 0 {
			t.Errorf("%+v", r)
		}
	}
	for text, want := range map[string]string{
		"base,quote,rate\nUSD,IDR,15500\n":                            "[{USD IDR 15500  }]",
		"base,quote,rate,bid,ask\nUSD,IDR,15500,15490,15510\n":        "[{USD IDR 15500 15490 15510}]",
		"base,quote,rate,bid,ask\nUSD,IDR,15500,,\n":                  "[{USD IDR 15500  }]",
		"base,quote,rate,bid\nUSD,IDR,15500,15490\n":                  "",
		"base,quote,rate,bid,ask\nUSD,IDR,15500\n":                    "",
		"base,quote,bid,ask,rate\nUSD,IDR,15490,15510,15500\n":        "",
		"base,quote,rate\nUSD,IDR,15500\nSGD,IDR,11600,11590,11610\n": "",
	} {
		got, err := ReadRates([]byte(text))
		if (err != nil) != (want == "") || err == nil && fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
}

// Sample payments must be settled, so the rules must accept every amount.
func TestSamplesAreWithinTheRules(t *testing.T) {
	rules, err := RiskRules()
	if err != nil {
		t.Fatal(err)
	}
	payments, err := MakeTransactions(1, 20_000, MakeAccounts(1, 1004))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range payments {
		if p.AmountIDR < rules.MinAmountIDR || p.AmountIDR > rules.MaxAmountIDR {
			t.Errorf("%s is worth IDR %d; the rules accept %d to %d", p.Key, p.AmountIDR, rules.MinAmountIDR, rules.MaxAmountIDR)
		}
	}
}

func TestSameSeedSameData(t *testing.T) {
	a, b := MakeAccounts(7, 500), MakeAccounts(7, 500)
	x, _ := MakeTransactions(7, 500, a)
	y, _ := MakeTransactions(7, 500, b)
	other, _ := MakeTransactions(8, 500, a)
	same, differ := 0, 0
	for i := range x {
		if x[i].Sender == x[i].Receiver {
			t.Errorf("%s pays itself", x[i].Key)
		}
		if x[i].Sent() == y[i].Sent() && x[i].Sender == y[i].Sender && reflect.DeepEqual(a[i], b[i]) {
			same++
		}
		if x[i].Sender != other[i].Sender {
			differ++
		}
	}
	if same != 500 || differ < 400 {
		t.Errorf("same %d of 500; another seed differs in %d", same, differ)
	}
}
