package main

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"pgw/shared/event"
	"pgw/shared/money"
)

// Rupiah are funded by an event that earlier releases know, other currencies by one that they refuse.
func TestAccountsAreFunded(t *testing.T) {
	usd, _ := money.ParseCurrency("USD")
	now := time.Date(2026, 1, 31, 9, 30, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		c         fundAccount
		eventType string
		data      any
		id        string
	}{
		"rupiah": {fundAccount{accountFlags{Account: "A", Currency: "IDR"}, "5000", "cash"}, event.TypeAccountFunded,
			event.AccountFunded{AccountID: "A", AmountIDR: 5000, Note: "cash"}, "new"},
		"dollars": {fundAccount{accountFlags{Account: "A", Currency: "USD", ID: "bank-7"}, "10.5", ""}, event.TypeAccountFundedV2,
			event.AccountFundedV2{AccountID: "A", Currency: usd, Minor: 1050}, "bank-7"},
	} {
		e, err := tc.c.event(now, "new")
		if err != nil || e.Type() != tc.eventType || e.ID() != tc.id || e.Source() != operatorSource || e.Subject() != "A" || !e.Time().Equal(now) {
			t.Errorf("%s: %s, %v", name, e, err)
			continue
		}
		var got any
		if e.Type() == event.TypeAccountFunded {
			got, err = event.Decode[event.AccountFunded](e)
		} else {
			got, err = event.Decode[event.AccountFundedV2](e)
		}
		if err != nil || !reflect.DeepEqual(got, tc.data) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for words, bad := range map[string]fundAccount{
		"house":               {accountFlags{Account: "LIQUIDITY", Currency: "USD"}, "5", ""},
		"account":             {accountFlags{Currency: "USD"}, "5", ""},
		"ISO 4217":            {accountFlags{Account: "A", Currency: "XYZ"}, "5", ""},
		"decimal places":      {accountFlags{Account: "A", Currency: "USD"}, "5.001", ""},
		"more than zero":      {accountFlags{Account: "A", Currency: "USD"}, "0", ""},
		"note":                {accountFlags{Account: "A", Currency: "USD"}, "5", strings.Repeat("x", 501)},
		"not a decimal":       {accountFlags{Account: "A", Currency: "USD"}, "five", ""},
		"must be more than z": {accountFlags{Account: "A", Currency: "IDR"}, "-5", ""},
	} {
		if _, err := bad.event(now, "new"); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
}

func TestAccountsAreOpened(t *testing.T) {
	e, err := openAccount{accountFlags{Account: "A", Currency: "SGD"}, "Ayu", 500, true}.event(time.Now(), "new")
	if err != nil {
		t.Fatal(err)
	}
	got, err := event.Decode[event.AccountOpened](e)
	if want := (event.AccountOpened{AccountID: "A", Owner: "Ayu", Currency: "SGD", DailyLimitIDR: 500, Status: "BLOCKED"}); err != nil || got != want || e.ID() != "new" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []openAccount{{accountFlags{Account: "SPREAD", Currency: "IDR"}, "x", 0, false}, {accountFlags{Account: "A", Currency: "IDR"}, "x", -1, false}} {
		if _, err := bad.event(time.Now(), "new"); err == nil {
			t.Errorf("%+v makes an event", bad)
		}
	}
}

// A position limit is always given, so that setting a balance does not take the limit away.
func TestLiquidityOfOperators(t *testing.T) {
	got, err := liquidityCommand{Currency: "KWD", Available: "1.5", PositionLimit: "1"}.request()
	if err != nil || got.AvailableMinor != 1500 || got.GetPositionLimitMinor() != 1000 || got.OnlyMissing {
		t.Errorf("%v, %v", got, err)
	}
	got, err = liquidityCommand{Currency: "JPY", Available: "0", PositionLimit: noLimit}.request()
	if err != nil || got.PositionLimitMinor != nil {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []liquidityCommand{{Currency: "XYZ", Available: "1", PositionLimit: noLimit}, {Currency: "JPY", Available: "1.5", PositionLimit: noLimit}, {Currency: "JPY", Available: "1", PositionLimit: "x"}} {
		if got, err := bad.request(); err == nil {
			t.Errorf("%+v: %v", bad, got)
		}
	}
}
