package flow

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
)

// statement is a page of a statement.
type statement struct {
	From, To time.Time
	Opening  string `json:"opening_balance"`
	Closing  string `json:"closing_balance"`
	Entries  []struct {
		BookedAt    time.Time `json:"booked_at"`
		Transaction string    `json:"transaction_id"`
		Kind        string
		Amount      string
		Balance     string
	}
	Next string `json:"next_cursor"`
}

func (s *system) statement(account string, query url.Values) (got statement) {
	s.t.Helper()
	if code := s.get("/api/accounts/"+account+"/statement?"+query.Encode(), &got); code != http.StatusOK {
		s.t.Fatalf("the statement of %s: %d", account, code)
	}
	return got
}

// A client follows its money: the balances now and at a time, the statement in pages and as a file.
// An operator sees that each currency sums to zero.
func TestTheBooksAreRead(t *testing.T) {
	s := start(t, options{})
	if _, err := dbv1.NewAdminClient(s.Conn("db")).SeedAccounts(t.Context(), &dbv1.SeedAccountsRequest{Accounts: []*dbv1.Account{{
		AccountId: "D", Owner: "D", Currency: "USD", Status: "ACTIVE", BalanceIdr: 100_000, Balances: []*commonv1.Amount{{Minor: 12_345, Currency: "USD"}},
	}}}); err != nil {
		t.Fatal(err)
	}
	refs := []string{""} // that of the funding is not a payment's
	for i := range 3 {
		refs = append(refs, s.expect(s.pay(fmt.Sprint("k", i), "D", "B", "IDR", 10_000+i), "200 SUCCESS committed").Ref)
	}

	type balance struct{ Currency, Available, Held, Balance string }
	var account struct{ Balances []balance }
	s.get("/api/accounts/D", &account)
	if want := []balance{{"IDR", "69997", "0", ""}, {"USD", "123.45", "0.00", ""}}; !slices.Equal(account.Balances, want) {
		t.Errorf("the balances are %v, want %v", account.Balances, want)
	}

	whole := s.statement("D", nil)
	var amounts []string
	for i, e := range whole.Entries {
		amounts = append(amounts, e.Kind+" "+e.Amount+" "+e.Balance)
		if i > 0 && e.Transaction != refs[i] {
			t.Errorf("entry %d is of %s, and the payment's ref is %s", i, e.Transaction, refs[i])
		}
	}
	want := []string{"funding 100000 100000", "payment -10000 90000", "payment -10001 79999", "payment -10002 69997"}
	if !slices.Equal(amounts, want) || whole.Opening != "0" || whole.Closing != "69997" {
		t.Fatalf("%+v", whole)
	}
	var paged statement
	for query := (url.Values{"limit": {"3"}}); ; {
		page := s.statement("D", query)
		paged.Entries, paged.Closing = append(paged.Entries, page.Entries...), page.Closing
		if page.Next == "" {
			break
		}
		query.Set("cursor", page.Next)
	}
	if !reflect.DeepEqual(paged.Entries, whole.Entries) || paged.Closing != whole.Closing {
		t.Errorf("in pages: %+v", paged)
	}
	cut := whole.Entries[2].BookedAt
	before, after := s.statement("D", url.Values{"to": {cut.Format(time.RFC3339Nano)}}), s.statement("D", url.Values{"from": {cut.Format(time.RFC3339Nano)}})
	if before.Closing != "90000" || after.Opening != "90000" || len(before.Entries) != 2 || len(after.Entries) != 2 || !before.To.Equal(cut) {
		t.Errorf("before %s: %+v; from then on: %+v", cut, before, after)
	}
	account.Balances = nil
	s.get("/api/accounts/D?at="+url.QueryEscape(cut.Format(time.RFC3339Nano)), &account)
	if want := []balance{{"IDR", "", "", "90000"}, {"USD", "", "", "123.45"}}; !slices.Equal(account.Balances, want) {
		t.Errorf("the balances at %s are %v, want %v", cut, account.Balances, want)
	}

	resp, text := client{s, ""}.do("GET", "/api/accounts/D/statement?currency=USD", "", "Accept", "text/csv")
	rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil || resp.StatusCode != http.StatusOK || len(rows) != 4 || rows[2][5] != "123.45" || rows[3][3] != "closing_balance" {
		t.Errorf("as CSV: %s %s, %v", resp.Status, text, err)
	}
	for path, code := range map[string]int{
		"/api/accounts/NOBODY/statement": 404, "/api/accounts/NOBODY?at=2026-01-31T09:30:00Z": 404,
		"/api/accounts/D/statement?limit=1001": 400, "/api/accounts/D/statement?cursor=mine": 400, "/api/accounts/D?at=2999-01-01T00:00:00Z": 400,
		"/api/accounts/D/statement?from=2026-01-31T00:00:00Z&to=2026-01-31T00:00:00Z": 400,
	} {
		resp, text := client{s, ""}.do("GET", path, "")
		problem(t, path, resp, text, code)
	}

	var trial struct {
		Currencies []struct {
			Currency, Sum string
			House         []struct {
				ID string `json:"account_id"`
			}
		}
	}
	s.get("/api/reports/trial-balance", &trial)
	if len(trial.Currencies) != 2 || trial.Currencies[0].Sum != "0" || trial.Currencies[1].Sum != "0.00" || trial.Currencies[1].House[0].ID != "OUTSIDE" {
		t.Errorf("the trial balance: %+v", trial)
	}
}
