package gateway

import (
	"encoding/csv"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"pgw/functions/gateway/access"
	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/function"
	"pgw/shared/rpc"
)

// statements answer a db that has a statement of some pages, each with one entry.
type statements struct {
	pages int
	fail  func(page int) error // nil: never

	asked []*dbv1.StatementRequest
}

func (s *statements) answer(in, out proto.Message) error {
	asked, ok := in.(*dbv1.StatementRequest)
	if !ok {
		return nil
	}
	page := 0
	fmt.Sscan(asked.Cursor, &page)
	if s.fail != nil {
		if err := s.fail(page); err != nil {
			return err
		}
	}
	s.asked = append(s.asked, proto.CloneOf(asked))
	at := time.Date(2026, 1, 31, 9, 30, page, 0, time.UTC)
	got := &dbv1.StatementResponse{
		From: asked.From, To: rpc.Timestamp(at.Add(time.Hour)), OpeningMinor: int64(-100 * page), ClosingMinor: int64(-100 * (page + 1)),
		Entries: []*dbv1.Entry{{
			BookedAt: rpc.Timestamp(at), ValueDate: "2026-01-31", TransactionId: "0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10",
			Kind: "payment", AmountMinor: -100, BalanceMinor: int64(-100 * (page + 1)),
		}},
	}
	if page+1 < s.pages {
		got.NextCursor = fmt.Sprint(page + 1)
	}
	proto.Merge(out, got)
	return nil
}

func TestAStatementIsJSON(t *testing.T) {
	s := &statements{pages: 2}
	f := gatewayBeside(t, &neighbours{answer: s.answer}, nil)
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet,
		"http://localhost/api/accounts/A%2FB/statement?currency=USD&from=2026-01-31T16:30:00%2B07:00&limit=7&cursor=1", nil))
	if in := s.asked[0]; w.Code != http.StatusOK || in.AccountId != "A/B" || in.Currency != "USD" || in.Limit != 7 || in.Cursor != "1" ||
		!rpc.Time(in.From).Equal(time.Date(2026, 1, 31, 9, 30, 0, 0, time.UTC)) || in.To != nil {
		t.Errorf("%d, db was asked %v", w.Code, in)
	}
	const want = `{"account_id":"A/B","currency":"USD","from":"2026-01-31T09:30:00Z","to":"2026-01-31T10:30:01Z","opening_balance":"-1.00",` +
		`"entries":[{"booked_at":"2026-01-31T09:30:01Z","value_date":"2026-01-31","transaction_id":"0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10",` +
		`"kind":"payment","amount":"-1.00","balance":"-2.00"}],"closing_balance":"-2.00"}`
	if got := strings.TrimSpace(w.Body.String()); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// A CSV file has all pages. Its name and cells are safe, whatever the account is called.
func TestAStatementIsCSV(t *testing.T) {
	busy := 2
	s := &statements{pages: 3, fail: func(page int) error {
		if page == 1 && busy > 0 {
			busy--
			return status.Error(codes.ResourceExhausted, "busy")
		}
		return nil
	}}
	f := gatewayBeside(t, &neighbours{answer: s.answer}, nil)
	for name, change := range map[string]func(*http.Request){
		"by the query":  func(r *http.Request) { r.URL.RawQuery += "&format=csv" },
		"by the header": func(r *http.Request) { r.Header.Set("Accept", "text/csv") },
	} {
		s.asked = nil
		r := httptest.NewRequest(http.MethodGet, "http://localhost/api/accounts/=A+1%22/statement?currency=USD", nil)
		change(r)
		w := httptest.NewRecorder()
		f.Handler().ServeHTTP(w, r)
		const row = "payment,USD,-1.00,"
		want := []string{
			"booked_at,value_date,transaction_id,kind,currency,amount,balance", ",,,opening_balance,USD,,0.00",
			"2026-01-31T09:30:00Z,2026-01-31,0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10," + row + "-1.00",
			"2026-01-31T09:30:01Z,2026-01-31,0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10," + row + "-2.00",
			"2026-01-31T09:30:02Z,2026-01-31,0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10," + row + "-3.00",
			"2026-01-31T10:30:02Z,,,closing_balance,USD,,-3.00", "",
		}
		if got := w.Body.String(); w.Code != http.StatusOK || got != strings.Join(want, "\r\n") {
			t.Errorf("%s: %d %q", name, w.Code, got)
		}
		if got := w.Header().Get("Content-Disposition"); got != "attachment; filename=statement-_A_1_-USD.csv" {
			t.Errorf("%s: %s", name, got)
		}
		rows, err := csv.NewReader(w.Body).ReadAll()
		if err != nil {
			t.Error(err)
		}
		for _, cells := range rows {
			for _, cell := range cells {
				if cell != "" && strings.ContainsAny(cell[:1], "=+@\t\r") {
					t.Errorf("%s: a formula: %q", name, cell)
				}
			}
		}
		// The end does not move while the file is written.
		for _, in := range s.asked[1:] {
			if in.Limit != csvPage || !rpc.Time(in.To).Equal(time.Date(2026, 1, 31, 10, 30, 0, 0, time.UTC)) {
				t.Errorf("%s: db was asked %v", name, in)
			}
		}
	}
}

// The client of a file that could not be completed notices it.
func TestACSVFileThatIsCutOff(t *testing.T) {
	s := &statements{pages: 3, fail: func(page int) error {
		if page == 2 {
			return status.Error(codes.FailedPrecondition, "broken")
		}
		return nil
	}}
	server := httptest.NewServer(gatewayBeside(t, &neighbours{answer: s.answer}, nil).Handler())
	defer server.Close()
	var text []byte
	resp, err := http.Get(server.URL + "/api/accounts/A/statement?format=csv")
	if err == nil { // the header was sent before
		text, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil || strings.Contains(string(text), "closing_balance") {
		t.Errorf("%v: %s", err, text)
	}
}

func TestQueriesOfTheBooksNameWhatIsWrong(t *testing.T) {
	f := gatewayBeside(t, &neighbours{}, nil)
	for query, field := range map[string]string{
		"/statement?currency=XXQ":                       "currency",
		"/statement?from=yesterday":                     "from: ",
		"/statement?from=2026-01-31T09:30:00+07:00":     "%2B",
		"/statement?to=2026-01-31":                      "to: ",
		"/statement?limit=0":                            "limit: ",
		"/statement?limit=many":                         "limit: ",
		"/statement?format=pdf":                         "format: ",
		"/statement?format=csv&limit=5":                 "limit: ",
		"/statement?format=csv&cursor=5":                "cursor",
		"?at=now":                                       "at: ",
		"?at=" + strings.Repeat("9", 2000):              "at: ",
		"?at=2026-02-30T00:00:00Z":                      "at: ",
		"/statement?from=0000-01-01T00:00:00Z":          "from: ",
		"/statement?currency=" + strings.Repeat("A", 9): "currency",
	} {
		w := httptest.NewRecorder()
		f.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/api/accounts/A"+query, nil))
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), field) || w.Body.Len() > 500 {
			t.Errorf("%.60s: %d %s", query, w.Code, w.Body)
		}
	}
}

// A client sees the books of its own accounts. The house's are for operators.
func TestTheBooksAreForTheirOwners(t *testing.T) {
	keys := map[string]string{}
	var lines []string
	for id, senders := range map[string]string{"a": "senders=A,S*", "operator": "senders=*"} {
		key, line, err := access.NewKey(id, senders)
		if err != nil {
			t.Fatal(err)
		}
		keys[id], lines = key, append(lines, line)
	}
	n := &neighbours{answer: func(_, out proto.Message) error {
		switch out := out.(type) {
		case *walletv1.GetAccountResponse:
			out.Balances = []*commonv1.Balance{{Currency: "JPY", AvailableMinor: 5, HeldMinor: 1, DailyLimitMinor: 7, SpentTodayMinor: 2}}
		case *dbv1.BalancesAtResponse:
			out.Balances = []*commonv1.Amount{{Currency: "KWD", Minor: 1234}}
		case *dbv1.TrialBalanceResponse:
			limit := int64(50_000)
			out.Currencies = []*dbv1.CurrencyTrial{{Currency: "USD", SumMinor: 1, Accounts: 2, House: []*dbv1.HouseBalance{
				{AccountId: "LIQUIDITY", AvailableMinor: 300, HeldMinor: 100, PositionMinor: -25, PositionLimitMinor: &limit},
			}}}
		}
		return nil
	}}
	cfg := Config{AnswerIn: time.Second, MinWaiting: 1, MaxWaiting: 1, Access: access.Config{Mode: access.Required, Keys: strings.Join(lines, ";")}}
	f, err := Function.Make(cfg, function.Dependencies{Conns: map[string]grpc.ClientConnInterface{"fx": n, "wallet": n, "risk": n, "db": n}})
	if err != nil {
		t.Fatal(err)
	}
	const at, statement = "?at=2026-01-31T09:30:00Z", "/statement"
	for path, want := range map[string]struct{ a, operator int }{
		"/api/accounts/A": {200, 200}, "/api/accounts/A" + at: {200, 200}, "/api/accounts/A" + statement: {200, 200},
		"/api/accounts/B": {404, 200}, "/api/accounts/B" + at: {404, 200}, "/api/accounts/B" + statement: {404, 200},
		"/api/accounts/SPREAD": {404, 200}, "/api/accounts/SPREAD" + at: {404, 200}, "/api/accounts/SPREAD" + statement: {404, 200},
		"/api/accounts/S1": {200, 200}, "/api/reports/trial-balance": {403, 200},
	} {
		for id, code := range map[string]int{"a": want.a, "operator": want.operator} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.Header.Set(access.KeyHeader, keys[id])
			w := httptest.NewRecorder()
			f.Handler().ServeHTTP(w, r)
			if w.Code != code {
				t.Errorf("%s for %s: %d %s; want %d", path, id, w.Code, w.Body, code)
			}
			part := map[string]string{
				"/api/accounts/A":            `"balances":[{"currency":"JPY","available":"5","held":"1","daily_limit":"7","spent_today":"2"}]`,
				"/api/accounts/A" + at:       `{"account_id":"A","at":"2026-01-31T09:30:00Z","balances":[{"currency":"KWD","balance":"1.234"}]}`,
				"/api/reports/trial-balance": `{"currency":"USD","sum":"0.01","accounts":2,"available":"0.00","held":"0.00","house":[{"account_id":"LIQUIDITY","available":"3.00","held":"1.00","position":"-0.25","position_limit":"500.00"}]}`,
			}[path]
			if code == http.StatusOK && !strings.Contains(w.Body.String(), part) {
				t.Errorf("%s for %s: %s; want %s", path, id, w.Body, part)
			}
		}
	}
}

func TestReadsOfTheBooksCostAsMuchAsLists(t *testing.T) {
	for path, want := range map[string]int{
		"/api/accounts/A": usualCost, "/api/accounts/A?at=2026-01-31T09:30:00Z": listCost, "/api/accounts/A/statement?format=csv": listCost,
		"/api/reports/trial-balance": listCost, "/api/payments": listCost, "/api/payments/k": usualCost,
	} {
		if got := cost(httptest.NewRequest(http.MethodGet, path, nil)); got != want {
			t.Errorf("%s costs %d, want %d", path, got, want)
		}
	}
}
