package gateway

import (
	"context"
	"encoding/csv"
	"fmt"
	"mime"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/functions/gateway/access"
	dbv1 "pgw/proto/gen/db/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// This file serves accounts and the books: balances now and at a time, statements, and the trial
// balance.

// sees reports whether a client may see an account and its payments. A prefix of accounts never
// includes the house's own. client is nil if requests are not authenticated.
func sees(client *access.Principal, account string) bool {
	return isOperator(client) || client.Owns(account) && !payment.IsHouse(account)
}

// owns reports whether the client may see the account of the path. If not, it answers as if the
// account did not exist.
func (g *Gateway) owns(w http.ResponseWriter, r *http.Request) bool {
	id := r.PathValue("id")
	if sees(principal(r), id) {
		return true
	}
	g.writeRefusal(w, r, "wallet", status.Errorf(codes.NotFound, "there is no account %s", id))
	return false
}

// balanceJSON is what an account has in one currency, in major units.
type balanceJSON struct {
	Currency   string `json:"currency"`
	Available  string `json:"available"`   // can be spent now
	Held       string `json:"held"`        // for payments that are not decided
	DailyLimit string `json:"daily_limit"` // 0: there is no limit
	SpentToday string `json:"spent_today"`
}

func (g *Gateway) getAccount(w http.ResponseWriter, r *http.Request) {
	if !g.owns(w, r) {
		return
	}
	if q := queryOf(r); q.has("at") {
		g.getBalancesAt(w, r, q)
		return
	}
	got, err := g.wallet.GetAccount(r.Context(), &walletv1.GetAccountRequest{AccountId: r.PathValue("id"), Current: true})
	if err != nil {
		g.writeRefusal(w, r, "wallet", err)
		return
	}
	balances := make([]balanceJSON, len(got.Balances))
	for i, b := range got.Balances {
		major, err := majorUnits(b.Currency)
		if err != nil {
			g.writeRefusal(w, r, "wallet", err)
			return
		}
		balances[i] = balanceJSON{b.Currency, major(b.AvailableMinor), major(b.HeldMinor), major(b.DailyLimitMinor), major(b.SpentTodayMinor)}
	}
	writeJSON(w, http.StatusOK, struct {
		ID            string        `json:"account_id"`
		BalanceIDR    int64         `json:"balance_idr"` // the amount that can be spent now
		Currency      string        `json:"currency"`    // the owner's own currency, for display
		Status        string        `json:"status"`
		DailyLimitIDR int64         `json:"daily_limit_idr"` // 0: there is no limit
		SpentTodayIDR int64         `json:"spent_today_idr"`
		Balances      []balanceJSON `json:"balances"`
	}{got.AccountId, got.BalanceIdr, got.CurrencyCode, got.Status, got.DailyLimitIdr, got.SpentTodayIdr, balances})
}

// majorUnits returns how minor units of a currency are written. It returns an error for a currency
// that this gateway does not know, because db is newer.
func majorUnits(code string) (func(minor int64) string, error) {
	currency, err := money.ParseCurrency(code)
	return func(minor int64) string { return money.Amount{Minor: minor, Currency: currency}.String() }, err
}

type pastBalanceJSON struct {
	Currency string `json:"currency"`
	Balance  string `json:"balance"`
}

// getBalancesAt returns what was booked before a time. Holds are not known for the past.
func (g *Gateway) getBalancesAt(w http.ResponseWriter, r *http.Request, q *query) {
	at := q.time("at")
	if len(q.wrong) > 0 {
		writeWrong(w, q.wrong)
		return
	}
	got, err := g.db.BalancesAt(r.Context(), &dbv1.BalancesAtRequest{AccountId: r.PathValue("id"), At: rpc.Timestamp(at)})
	if err != nil {
		g.writeRefusal(w, r, "the ledger", err)
		return
	}
	balances := make([]pastBalanceJSON, len(got.Balances))
	for i, b := range got.Balances {
		major, err := majorUnits(b.Currency)
		if err != nil {
			g.writeRefusal(w, r, "the ledger", err)
			return
		}
		balances[i] = pastBalanceJSON{b.Currency, major(b.Minor)}
	}
	writeJSON(w, http.StatusOK, struct {
		ID       string            `json:"account_id"`
		At       time.Time         `json:"at"`
		Balances []pastBalanceJSON `json:"balances"`
	}{r.PathValue("id"), at.UTC(), balances})
}

type statementJSON struct {
	ID       string      `json:"account_id"`
	Currency string      `json:"currency"`
	From     *time.Time  `json:"from,omitempty"` // absent: the statement begins with the first entry
	To       time.Time   `json:"to"`
	Opening  string      `json:"opening_balance"` // before the first entry of this page
	Entries  []entryJSON `json:"entries"`
	Closing  string      `json:"closing_balance"`       // after the last entry of this page
	Next     string      `json:"next_cursor,omitempty"` // absent on the last page
}

type entryJSON struct {
	BookedAt    time.Time `json:"booked_at"`
	ValueDate   string    `json:"value_date"`
	Transaction string    `json:"transaction_id"`
	Kind        string    `json:"kind"`
	Amount      string    `json:"amount"`
	Balance     string    `json:"balance"`
	Client      string    `json:"client,omitempty"` // of a payment; only for operators
}

func (g *Gateway) getStatement(w http.ResponseWriter, r *http.Request) {
	if !g.owns(w, r) {
		return
	}
	in, asCSV, wrong := readStatementQuery(r)
	if len(wrong) > 0 {
		writeWrong(w, wrong)
		return
	}
	page, err := g.db.Statement(r.Context(), in)
	if err != nil {
		g.writeRefusal(w, r, "the ledger", err)
		return
	}
	major, err := majorUnits(in.Currency)
	if err != nil {
		g.writeRefusal(w, r, "the ledger", err)
		return
	}
	if asCSV {
		g.writeStatement(w, r, in, page, major)
		return
	}
	out := statementJSON{
		ID: in.AccountId, Currency: in.Currency, From: timeOf(page.From), To: rpc.Time(page.To),
		Opening: major(page.OpeningMinor), Closing: major(page.ClosingMinor), Next: page.NextCursor, Entries: make([]entryJSON, len(page.Entries)),
	}
	for i, e := range page.Entries {
		if !isOperator(principal(r)) {
			e.Client = ""
		}
		out.Entries[i] = entryJSON{rpc.Time(e.BookedAt), e.ValueDate, e.TransactionId, e.Kind, major(e.AmountMinor), major(e.BalanceMinor), e.Client}
	}
	writeJSON(w, http.StatusOK, out)
}

// readStatementQuery reads which statement is asked for, and whether as CSV.
func readStatementQuery(r *http.Request) (in *dbv1.StatementRequest, asCSV bool, wrong payment.Problems) {
	q := queryOf(r)
	in = &dbv1.StatementRequest{AccountId: r.PathValue("id"), Currency: money.IDR.String(), Cursor: q.text("cursor")}
	if q.has("currency") {
		in.Currency = q.currency("currency").String()
	}
	if from := q.time("from"); !from.IsZero() {
		in.From = rpc.Timestamp(from)
	}
	if to := q.time("to"); !to.IsZero() {
		in.To = rpc.Timestamp(to)
	}
	in.Limit = q.limit()
	switch format := q.text("format"); format {
	case "csv":
		asCSV = true
	case "":
		asCSV = strings.Contains(r.Header.Get("Accept"), "text/csv")
	case "json":
	default:
		q.note("format", &payment.FieldError{Field: "format", Problem: fmt.Sprintf("is %.20q; must be json or csv", format)})
	}
	if asCSV {
		for _, name := range []string{"limit", "cursor"} {
			if q.has(name) {
				q.note(name, &payment.FieldError{Field: name, Problem: "is for JSON: a CSV file has the whole period"})
			}
		}
		in.Limit = csvPage
	}
	return in, asCSV, q.wrong
}

const (
	// csvPage is the number of entries that are read at once for a CSV file. It is the most that db
	// allows.
	csvPage = 1000
	// csvPageWithin is the time limit of one page, from its first try until the client has read it.
	csvPageWithin = time.Minute
	// csvTries is how often a page is asked for while db is busy or away. The client has read a part
	// of the file already, so it can't be told to try again later.
	csvTries = 6
)

var (
	csvHeader = []string{"booked_at", "value_date", "transaction_id", "kind", "currency", "amount", "balance"}
	// unsafeInName are the characters that a file's name does not get.
	unsafeInName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)
)

// writeStatement writes the whole statement as CSV (RFC 4180), page by page: it never has more than
// one page in memory, and no snapshot stays open. The first row has the opening balance and the last
// row the closing balance, so a file that was cut off is recognized. No cell begins with a character
// that makes a formula of it in a spreadsheet, except the minus of a negative amount: pgw makes
// every cell itself.
func (g *Gateway) writeStatement(w http.ResponseWriter, r *http.Request, in *dbv1.StatementRequest, page *dbv1.StatementResponse,
	major func(minor int64) string,
) {
	name := "statement-" + unsafeInName.ReplaceAllString(in.AccountId, "_") + "-" + in.Currency + ".csv"
	w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodHead {
		return
	}
	in.To = page.To // entries that are booked from now on do not belong to the file
	at := func(t time.Time) string { return t.Format(time.RFC3339Nano) }
	out := csv.NewWriter(w)
	out.UseCRLF = true
	out.Write(csvHeader)
	begin := ""
	if page.From != nil {
		begin = at(rpc.Time(page.From))
	}
	out.Write([]string{begin, "", "", "opening_balance", in.Currency, "", major(page.OpeningMinor)})
	for {
		for _, e := range page.Entries {
			out.Write([]string{
				at(rpc.Time(e.BookedAt)), e.ValueDate, e.TransactionId, e.Kind, in.Currency, major(e.AmountMinor), major(e.BalanceMinor),
			})
		}
		if page.NextCursor == "" {
			break
		}
		if out.Flush(); out.Error() != nil {
			return // the client has left
		}
		var err error
		in.Cursor = page.NextCursor
		if page, err = g.nextPage(w, r, in); err != nil {
			g.log.WarnContext(r.Context(), "a statement could not be completed", "account", payment.Masked(in.AccountId), "error", err)
			// The client must see that the file is not complete.
			panic(http.ErrAbortHandler)
		}
	}
	out.Write([]string{at(rpc.Time(page.To)), "", "", "closing_balance", in.Currency, "", major(page.ClosingMinor)})
	out.Flush()
}

// nextPage reads a further page of a CSV file. It extends the connection's time limits, which are
// for answers of usual length.
func (g *Gateway) nextPage(w http.ResponseWriter, r *http.Request, in *dbv1.StatementRequest) (*dbv1.StatementResponse, error) {
	control, until := http.NewResponseController(w), time.Now().Add(csvPageWithin)
	// Not every ResponseWriter has time limits.
	_, _ = control.SetReadDeadline(until), control.SetWriteDeadline(until)
	ctx, cancel := context.WithDeadline(r.Context(), until)
	defer cancel()
	return backoff.Retry(ctx, func() (*dbv1.StatementResponse, error) {
		page, err := g.db.Statement(ctx, in)
		switch status.Code(err) {
		case codes.OK, codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
			return page, err
		}
		return nil, backoff.Permanent(err)
	}, backoff.WithMaxTries(csvTries))
}

type trialJSON struct {
	At         time.Time           `json:"at"`
	Currencies []currencyTrialJSON `json:"currencies"`
}

type currencyTrialJSON struct {
	Currency  string      `json:"currency"`
	Sum       string      `json:"sum"`       // of all accounts, the house's too: 0 if the books are right
	Accounts  int64       `json:"accounts"`  // of clients
	Available string      `json:"available"` // of clients
	Held      string      `json:"held"`      // of clients
	House     []houseJSON `json:"house"`
}

type houseJSON struct {
	ID            string `json:"account_id"`
	Available     string `json:"available"`
	Held          string `json:"held"`
	Position      string `json:"position"`
	PositionLimit string `json:"position_limit,omitempty"` // absent: there is no limit
}

func (g *Gateway) getTrialBalance(w http.ResponseWriter, r *http.Request) {
	if !isOperator(principal(r)) {
		writeProblem(w, http.StatusForbidden, "Not your accounts", "The trial balance is of all accounts. Only a client that may send from all accounts can read it.")
		return
	}
	got, err := g.db.TrialBalance(r.Context(), &dbv1.TrialBalanceRequest{})
	if err != nil {
		g.writeRefusal(w, r, "the ledger", err)
		return
	}
	out := trialJSON{At: rpc.Time(got.At), Currencies: make([]currencyTrialJSON, len(got.Currencies))}
	for i, c := range got.Currencies {
		major, err := majorUnits(c.Currency)
		if err != nil {
			g.writeRefusal(w, r, "the ledger", err)
			return
		}
		house := make([]houseJSON, len(c.House))
		for j, h := range c.House {
			house[j] = houseJSON{ID: h.AccountId, Available: major(h.AvailableMinor), Held: major(h.HeldMinor), Position: major(h.PositionMinor)}
			if h.PositionLimitMinor != nil {
				house[j].PositionLimit = major(*h.PositionLimitMinor)
			}
		}
		out.Currencies[i] = currencyTrialJSON{c.Currency, major(c.SumMinor), c.Accounts, major(c.AvailableMinor), major(c.HeldMinor), house}
	}
	writeJSON(w, http.StatusOK, out)
}
