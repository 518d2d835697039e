package gateway

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"pgw/functions/gateway/access"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// firmQuote is a firm quote as a client gets it. Amounts are in major units.
type firmQuote struct {
	ID             string    `json:"quote_id"`
	Sender         string    `json:"sender_id"`
	Receiver       string    `json:"receiver_id"`
	Currency       string    `json:"currency"` // of the fixed side
	Amount         string    `json:"amount"`
	DebitCurrency  string    `json:"debit_currency"`
	DebitAmount    string    `json:"debit_amount"`
	CreditCurrency string    `json:"credit_currency"`
	CreditAmount   string    `json:"credit_amount"`
	Rate           string    `json:"rate"`
	MidRate        string    `json:"mid_rate"`
	Spread         string    `json:"spread"` // in the credit currency
	AmountIDR      int64     `json:"amount_idr"`
	RateTime       time.Time `json:"rate_time,omitzero"`
	ExpiresAt      time.Time `json:"expires_at"`
}

// postQuote gives a firm quote. A repeated request gets another quote: nothing is paid by it.
func (g *Gateway) postQuote(w http.ResponseWriter, r *http.Request) {
	if !readable(w, r) {
		return
	}
	order, wrong, bad := readBody[payment.Order](w, r, fieldNames, quoteFields)
	if bad != nil {
		g.refuseQuote(r.Context(), w, *bad)
		return
	}
	p, err := order.Quote()
	if wrong = and(wrong, err); len(wrong) > 0 {
		g.refuseQuote(r.Context(), w, declineAll(wrong))
		return
	}
	if denied := g.access.MaySend(principal(r), p.Sender); denied != nil {
		g.deny(w, r, denied)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), g.cfg.AnswerIn)
	defer cancel()
	if missing, no := g.missing(ctx, p); no.reason != "" {
		g.refuseQuote(r.Context(), w, decline(no.reason, no.message))
		return
	} else if missing != "" {
		g.metrics.quotes.WithLabelValues("unknown_account").Inc()
		writeProblem(w, http.StatusNotFound, "Not found", missing+": there is no such account",
			problemOf(missing, "there is no such account"))
		return
	}
	p, no := g.priceNow(ctx, p)
	if no.reason != "" {
		g.refuseQuote(r.Context(), w, decline(no.reason, no.message))
		return
	}
	got, err := g.db.PutQuote(ctx, &dbv1.PutQuoteRequest{
		QuoteId: uuid.Must(uuid.NewV7()).String(), Client: clientOf(ctx), Payment: rpc.FromPayment(p),
		Lifetime: durationpb.New(g.cfg.QuoteTTL), MaxOpen: uint32(g.cfg.MaxQuotes),
	})
	switch {
	case err != nil:
		g.metrics.quotes.WithLabelValues("error").Inc()
		g.writeUnreachable(r.Context(), w, err, "The ledger can't be asked now", "Try again.")
	case got.Quote == nil:
		g.metrics.quotes.WithLabelValues("too_many").Inc()
		wait := max(1, int(math.Ceil(got.RetryAfter.AsDuration().Seconds())))
		w.Header().Set("Retry-After", strconv.Itoa(wait))
		writeProblem(w, http.StatusTooManyRequests, "Too many open quotes",
			fmt.Sprintf("This client has %d open quotes, as many as it may have. Use one, or wait until one expires.", g.cfg.MaxQuotes))
	default:
		g.metrics.quotes.WithLabelValues("given").Inc()
		writeJSON(w, http.StatusCreated, firmQuoteOf(p, got.Quote))
	}
}

// missing returns the name of the field whose account does not exist; empty if both exist.
func (g *Gateway) missing(ctx context.Context, p payment.Payment) (field string, _ verdict) {
	read := g.readAccounts(ctx, p.Sender, p.Receiver, false)
	for _, side := range []struct {
		field string
		err   error
	}{{"sender_id", read.senderErr}, {"receiver_id", read.receiverErr}} {
		switch {
		case status.Code(side.err) == codes.NotFound:
			return side.field, verdict{}
		case side.err != nil:
			return "", g.unreachable(ctx, g.metrics.wallet, payment.WalletUnavailable, side.err)
		}
	}
	return "", verdict{}
}

// refuseQuote answers with the problem for which there is no quote.
func (g *Gateway) refuseQuote(ctx context.Context, w http.ResponseWriter, no reply) {
	code := cmp.Or(no.code, httpStatus[no.Reason])
	title, result := "A function can't be asked now", "error"
	detail := "Try again."
	switch {
	case left(ctx):
		w.WriteHeader(clientLeft)
		return
	case no.Reason == payment.Overloaded:
		title = "Too many requests are waiting"
	case code < http.StatusInternalServerError:
		title, detail, result = "Bad request", no.message, "invalid"
	}
	if no.Reason == payment.UnsupportedCurrency {
		title, result = "Unsupported currency", "unsupported_currency"
	}
	if code >= http.StatusInternalServerError {
		tryAgain(w)
	}
	g.metrics.quotes.WithLabelValues(result).Inc()
	writeProblem(w, code, title, detail, no.wrong...)
}

func firmQuoteOf(p payment.Payment, q *dbv1.Quote) firmQuote {
	debit, credit := p.Debit(), p.Credit()
	out := firmQuote{
		ID: q.QuoteId, Sender: p.Sender, Receiver: p.Receiver, Currency: p.Currency.String(), Amount: p.Sent().String(),
		DebitCurrency: debit.Currency.String(), DebitAmount: debit.String(), CreditCurrency: credit.Currency.String(), CreditAmount: credit.String(),
		Rate: p.Rate.String(), MidRate: p.Rate.String(), Spread: spreadOf(p).String(),
		AmountIDR: p.AmountIDR, RateTime: p.RateTime, ExpiresAt: rpc.Time(q.ExpiresAt),
	}
	if p.Exchanges() {
		out.MidRate = p.Exchange.MidRate.String()
	}
	return out
}

// spreadOf returns what the house earns by the exchange, in the credit currency.
func spreadOf(p payment.Payment) money.Amount {
	credit := p.Credit()
	if !p.Exchanges() {
		return money.Amount{Currency: credit.Currency}
	}
	return money.Amount{Minor: p.Exchange.MidMinor - credit.Minor, Currency: credit.Currency}
}

// clientOf returns the client that makes the request of a context: the scope of its idempotency keys.
// It is empty if requests are not authenticated.
func clientOf(ctx context.Context) string {
	if p, _ := ctx.Value(principalKey{}).(*access.Principal); p != nil {
		return p.Client
	}
	return ""
}
