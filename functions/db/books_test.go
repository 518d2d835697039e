package db

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/ledger"
	"pgw/shared/rpc"
)

func TestAStatementIsPagedThroughByItsCursor(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B")
	for i := range 3 {
		held := w.mustReserve(pay(fmt.Sprint("k", i), "A", "B", 10))
		w.mustFinish(ledger.Finish{ReservationID: held.ReservationID})
	}
	in := &dbv1.StatementRequest{AccountId: "A", Currency: "IDR", Limit: 3}
	first, err := w.Statement(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	in.Cursor = first.NextCursor
	second, err := w.Statement(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	var got []int64
	for _, e := range append(first.Entries, second.Entries...) {
		got = append(got, e.AmountMinor, e.BalanceMinor)
	}
	if want := []int64{1000, 1000, -10, 990, -10, 980, -10, 970}; !slices.Equal(got, want) || first.OpeningMinor != 0 ||
		first.ClosingMinor != 980 || second.OpeningMinor != 980 || second.ClosingMinor != 970 || second.NextCursor != "" {
		t.Errorf("amounts and balances %v, want %v; %v; %v", got, want, first, second)
	}

	// A cursor has a balance, so it is refused for anything else, and when it was changed.
	for name, in := range map[string]*dbv1.StatementRequest{
		"of another account":  {AccountId: "B", Currency: "IDR", Cursor: first.NextCursor},
		"of another currency": {AccountId: "A", Currency: "USD", Cursor: first.NextCursor},
		"changed":             {AccountId: "A", Currency: "IDR", Cursor: "k1.e30." + strings.Split(first.NextCursor, ".")[2]},
		"no cursor at all":    {AccountId: "A", Currency: "IDR", Cursor: "1"},
		"of another period":   {AccountId: "A", Currency: "IDR", Cursor: first.NextCursor, From: rpc.Timestamp(time.Now())},
	} {
		if _, err := w.Statement(t.Context(), in); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "cursor:") {
			t.Errorf("a cursor %s: %v", name, err)
		}
	}
}

func TestReadsOfTheBooksThatAreRefused(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A")
	statement := func(in *dbv1.StatementRequest) error {
		_, err := w.Statement(t.Context(), in)
		return err
	}
	balances := func(in *dbv1.BalancesAtRequest) error {
		_, err := w.BalancesAt(t.Context(), in)
		return err
	}
	hourAgo := rpc.Timestamp(time.Now().Add(-time.Hour))
	for name, tc := range map[string]struct {
		err  error
		code codes.Code
		says string
	}{
		"a statement of nobody":        {statement(&dbv1.StatementRequest{AccountId: "NOBODY", Currency: "IDR"}), codes.NotFound, "NOBODY"},
		"a statement of no account":    {statement(&dbv1.StatementRequest{Currency: "IDR"}), codes.InvalidArgument, "account_id"},
		"a statement in no currency":   {statement(&dbv1.StatementRequest{AccountId: "A"}), codes.InvalidArgument, "currency"},
		"a page that is too long":      {statement(&dbv1.StatementRequest{AccountId: "A", Currency: "IDR", Limit: 1001}), codes.InvalidArgument, "limit: is 1001; must be 1 to 1000"},
		"the balances of nobody":       {balances(&dbv1.BalancesAtRequest{AccountId: "NOBODY", At: hourAgo}), codes.NotFound, "NOBODY"},
		"the balances at no time":      {balances(&dbv1.BalancesAtRequest{AccountId: "A"}), codes.InvalidArgument, "at:"},
		"the balances of a later time": {balances(&dbv1.BalancesAtRequest{AccountId: "A", At: rpc.Timestamp(time.Now().Add(time.Hour))}), codes.InvalidArgument, "at: is in the future"},
	} {
		if status.Code(tc.err) != tc.code || !strings.Contains(status.Convert(tc.err).Message(), tc.says) {
			t.Errorf("%s: %v; want %s, %q", name, tc.err, tc.code, tc.says)
		}
	}
}
