package seeds

import (
	"bytes"
	"errors"
	"fmt"
	"os"
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
		if x[i].Sent() == y[i].Sent() && x[i].Sender == y[i].Sender && a[i] == b[i] {
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
