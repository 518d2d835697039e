package gateway

import (
	"context"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// This file serves what a person wants to see before and after a payment: prices and recent
// payments.

// quoteJSON is the price of an amount now. It does not fix the price of a later payment.
type quoteJSON struct {
	Currency  string     `json:"currency"`
	Amount    string     `json:"amount"`
	AmountIDR int64      `json:"amount_idr"`
	Rate      string     `json:"rate"`
	RateID    string     `json:"rate_id"`
	RateTime  *time.Time `json:"rate_time,omitempty"`
}

func (g *Gateway) getQuote(w http.ResponseWriter, r *http.Request) {
	q := queryOf(r)
	currency := q.currency("currency")
	amount := q.amount("amount", currency)
	if len(q.wrong) > 0 {
		writeWrong(w, q.wrong)
		return
	}
	got, err := g.fx.Convert(r.Context(), rpc.InRupiah(amount))
	if err != nil {
		g.writeRefusal(w, r, "fx", err)
		return
	}
	writeJSON(w, http.StatusOK, quoteJSON{currency.String(), amount.String(), got.AmountMinor, got.Rate, got.RateId, timeOf(got.RateTime)})
}

type currencyJSON struct {
	Currency string     `json:"currency"`
	Digits   int32      `json:"digits"` // the decimal places of an amount
	Rate     string     `json:"rate"`   // rupiah for one unit of the currency
	Bid      string     `json:"bid,omitempty"`
	Ask      string     `json:"ask,omitempty"`
	RateID   string     `json:"rate_id"`
	RateTime *time.Time `json:"rate_time,omitempty"`
}

func (g *Gateway) getCurrencies(w http.ResponseWriter, r *http.Request) {
	got, err := g.fx.ListRates(r.Context(), &fxv1.ListRatesRequest{QuoteCurrency: money.IDR.String()})
	if err != nil {
		g.writeRefusal(w, r, "fx", err)
		return
	}
	all := make([]currencyJSON, 0, len(got.Rates))
	for _, rate := range got.Rates {
		// Leave out a currency that this gateway does not know: it cannot take payments in it.
		if currency, err := money.ParseCurrency(rate.BaseCurrency); err == nil {
			all = append(all, currencyJSON{
				Currency: currency.String(), Digits: currency.Digits(), Rate: rate.Rate, Bid: rate.Bid, Ask: rate.Ask,
				RateID: rate.RateId, RateTime: timeOf(rate.RateTime),
			})
		}
	}
	writeJSON(w, http.StatusOK, struct {
		Currencies []currencyJSON `json:"currencies"`
	}{all})
}

// reservationStatus maps the status that a client asks for to the status of the reservation.
var reservationStatus = map[string]payment.ReservationStatus{
	"":                      "",
	string(payment.Pending): payment.Pending,
	string(payment.Success): payment.Committed,
	string(payment.Failed):  payment.RolledBack,
}

// inMetadata is the prefix of the parameters that select payments by their metadata.
const inMetadata = "metadata."

// listPayments returns the payments that the ledger has recorded, the newest first. A payment that
// was refused before it reached the ledger is not in the list.
func (g *Gateway) listPayments(w http.ResponseWriter, r *http.Request) {
	client := principal(r)
	in, wrong := readListQuery(r)
	switch {
	case in.AccountId != "" && !sees(client, in.AccountId):
		writeProblem(w, http.StatusForbidden, "Not your payments", "account: must name one of your accounts.")
		return
	case len(wrong) > 0:
		writeWrong(w, wrong)
		return
	case !isOperator(client) && in.AccountId == "":
		in.Accounts = client.Accounts()
	}
	in.Client, in.AnyClient = clientOf(r.Context()), isOperator(client)
	got, err := g.db.List(r.Context(), in)
	if err != nil {
		g.writeRefusal(w, r, "the ledger", err)
		return
	}
	found := make([]record, 0, len(got.Payments))
	for _, p := range got.Payments {
		rec, err := rpc.ToRecord(p)
		if err != nil {
			g.writeRefusal(w, r, "the ledger", err)
			return
		}
		// A db of an earlier release does not know clients, and returns others' payments too.
		if seesPayment(client, rec) {
			found = append(found, recordOf(rec, client))
		}
	}
	writeJSON(w, http.StatusOK, struct {
		Payments []record `json:"payments"`
		// NextBefore is the cursor of the next page. It is absent when there are no older payments.
		// A page may have fewer payments than were asked for, or none, although older ones match:
		// one request examines at most SearchLimit payments.
		NextBefore  string `json:"next_before,omitempty"`
		SearchLimit uint32 `json:"search_limit"`
	}{found, got.NextBefore, got.SearchLimit})
}

// readListQuery reads which payments are asked for.
func readListQuery(r *http.Request) (*dbv1.ListRequest, payment.Problems) {
	q := queryOf(r)
	in := &dbv1.ListRequest{
		Limit: q.limit(), Before: q.uuid("before"), AccountId: q.text("account"), Ref: q.uuid("ref"), Metadata: map[string]string{},
	}
	if in.AccountId != "" {
		q.note("account", payment.CheckID("account", in.AccountId, payment.MaxAccountID))
	}
	wanted, ok := reservationStatus[q.text("status")]
	if !ok {
		q.note("status", &payment.FieldError{Field: "status", Problem: "must be PENDING, SUCCESS or FAILED"})
	}
	in.State = rpc.FromState(wanted)
	from, to := q.time("from"), q.time("to")
	if !from.IsZero() {
		in.From = rpc.Timestamp(from)
	}
	if !to.IsZero() {
		in.To = rpc.Timestamp(to)
	}
	if !from.IsZero() && !to.IsZero() && !from.Before(to) {
		q.note("to", &payment.FieldError{Field: "to", Problem: "must be after from"})
	}
	q.readAmounts(in)
	for name := range q.values {
		if entry, ok := strings.CutPrefix(name, inMetadata); ok {
			in.Metadata[entry] = q.text(name)
		}
	}
	q.note("metadata", payment.CheckMetadata(in.Metadata))
	return in, q.wrong
}

// readAmounts reads the currency and the bounds of the amounts, which are in its major units.
func (q *query) readAmounts(in *dbv1.ListRequest) {
	bounds := q.has("min_amount") || q.has("max_amount")
	if !q.has("currency") && !bounds {
		return
	}
	currency := q.currency("currency") // an amount needs it
	in.Currency = currency.String()
	if q.has("min_amount") {
		in.MinMinor = q.amount("min_amount", currency).Minor
	}
	if q.has("max_amount") {
		in.MaxMinor = q.amount("max_amount", currency).Minor
	}
	if in.MaxMinor > 0 && in.MinMinor > in.MaxMinor {
		q.note("max_amount", &payment.FieldError{Field: "max_amount", Problem: "must not be below min_amount"})
	}
}

// writeRefusal answers with a function's refusal, or says that the function could not be asked. who
// is the name of the function.
func (g *Gateway) writeRefusal(w http.ResponseWriter, r *http.Request, who string, err error) {
	switch status.Code(err) {
	case codes.InvalidArgument:
		writeProblem(w, http.StatusBadRequest, "Bad request", status.Convert(err).Message(), refusedParameter(r, err)...)
	case codes.NotFound:
		writeProblem(w, http.StatusNotFound, "Not found", status.Convert(err).Message())
	default:
		g.writeUnreachable(r.Context(), w, err, "A function can't be asked now", "It is "+who+". Try again.")
	}
}

// refusedParameter returns the parameter of the query that a function's error names, if it names one.
func refusedParameter(r *http.Request, err error) payment.Problems {
	name, problem, _ := strings.Cut(status.Convert(err).Message(), ": ")
	if problem == "" || !r.URL.Query().Has(name) {
		return nil
	}
	return payment.Problems{problemOf(name, problem)}
}

// writeUnreachable answers that a function could not be asked or is overloaded. If the client has
// left, it writes only a status. The watched connection logs the outage.
func (g *Gateway) writeUnreachable(ctx context.Context, w http.ResponseWriter, err error, title, detail string) {
	switch {
	case left(ctx):
		w.WriteHeader(clientLeft)
	case status.Code(err) == codes.ResourceExhausted:
		tryAgain(w)
		writeProblem(w, http.StatusServiceUnavailable, "Too many requests are waiting", "Try again.")
	default:
		tryAgain(w)
		writeProblem(w, http.StatusBadGateway, title, detail)
	}
}
