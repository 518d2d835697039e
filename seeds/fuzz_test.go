package seeds

import (
	"bytes"
	"reflect"
	"testing"
)

// A file of accounts is refused, or it reads the same after it is written again.
func FuzzReadAccounts(f *testing.F) {
	f.Add([]byte("account_id,owner,currency,balance_idr,daily_limit_idr,status\nA,\"x, y\",IDR,5,0,ACTIVE\n"))
	f.Add([]byte("account_id,owner,currency,balance_idr,daily_limit_idr,status,balances\nA,x,IDR,5,0,ACTIVE,USD=1000.00 JPY=5\n"))
	f.Add([]byte("account_id,owner\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		accounts, err := ReadAccounts(bytes.NewReader(text))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := WriteAccounts(&out, accounts); err != nil {
			t.Fatal(err)
		}
		again, err := ReadAccounts(&out)
		if err != nil || len(again) != len(accounts) {
			t.Fatalf("%d accounts, then %d: %v", len(accounts), len(again), err)
		}
		for i := range accounts {
			if !reflect.DeepEqual(accounts[i], again[i]) {
				t.Fatalf("%+v, then %+v", accounts[i], again[i])
			}
		}
	})
}
