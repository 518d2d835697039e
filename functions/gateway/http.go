package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pgw/functions/gateway/access"
	"pgw/functions/gateway/docs"
	dbv1 "pgw/proto/gen/db/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/event"
	"pgw/shared/function"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// maxBody is the largest size of a payment's JSON, in bytes.
const maxBody = 16 << 10

// replayedHeader says that an answer is the outcome of an earlier request with the key.
const replayedHeader = "Idempotent-Replayed"

// clientLeft is the status of a response to a client that has disconnected. Proxies log the same
// status.
const clientLeft = 499

func (g *Gateway) routes(all *function.Mux) {
	mux := apiRoutes{all}
	mux.None(func(w http.ResponseWriter, r *http.Request, methods []string) {
		if len(methods) == 0 && wantsPage(r) {
			g.page().lost(w, r)
			return
		}
		noRoute(w, r, methods)
	})
	all.HandleFunc("POST /api/payments", g.postPayment) // checks its query: its errors have a body of their own
	mux.HandleFunc("GET /api/payments", g.listPayments, "limit", "before", "account", "status", "currency", "from", "to",
		"min_amount", "max_amount", "ref", inMetadata)
	mux.HandleFunc("GET /api/payments/{key...}", g.getPayment)
	mux.HandleFunc("GET /api/accounts/{id}", g.getAccount, "at")
	mux.HandleFunc("GET /api/accounts/{id}/statement", g.getStatement, "currency", "from", "to", "limit", "cursor", "format")
	mux.HandleFunc("GET /api/reports/trial-balance", g.getTrialBalance)
	mux.HandleFunc("GET /api/reports/activity", g.getActivity, "from", "to", "step")
	mux.HandleFunc("GET /api/random-accounts", g.getRandomAccounts)
	mux.HandleFunc("GET /api/quotes", g.getQuote, "currency", "amount")
	mux.HandleFunc("POST /api/quotes", g.postQuote)
	mux.HandleFunc("GET /api/currencies", g.getCurrencies)
	mux.HandleFunc("GET /status", g.getStatus)
	for _, view := range views {
		mux.HandleFunc("GET "+view, func(w http.ResponseWriter, r *http.Request) { g.page().index(w, r) })
	}
	mux.HandleFunc("GET /page/{file...}", func(w http.ResponseWriter, r *http.Request) { g.page().file(w, r) })
	docs.Routes(all)
}

// httpStatus maps reasons to statuses other than 200. These reasons are not an outcome of the
// payment.
var httpStatus = map[payment.Reason]int{
	payment.BadJSON:             http.StatusBadRequest,
	payment.InvalidInput:        http.StatusBadRequest,
	payment.UnsupportedCurrency: http.StatusBadRequest,
	payment.IdempotencyMismatch: http.StatusUnprocessableEntity,
	payment.FXUnavailable:       http.StatusBadGateway,
	payment.WalletUnavailable:   http.StatusBadGateway,
	payment.RiskUnavailable:     http.StatusBadGateway,
	payment.LedgerUnavailable:   http.StatusBadGateway,
	payment.QueuePublishError:   http.StatusBadGateway,
	payment.QueueTimeout:        http.StatusGatewayTimeout,
	payment.Overloaded:          http.StatusServiceUnavailable,
}

// answer is the response body of the contract. The other fields are absent if they are empty.
type answer struct {
	payment.Outcome
	Message  string       `json:"message,omitempty"`
	Deadline time.Time    `json:"deadline,omitzero"`
	Errors   []wrongField `json:"errors,omitempty"`
}

// wrongField is an element of errors, as in RFC 9457.
type wrongField struct {
	Field  string `json:"field"`
	Detail string `json:"detail"`
}

func wrongFields(wrong payment.Problems) []wrongField {
	fields := make([]wrongField, len(wrong))
	for i, p := range wrong {
		fields[i] = wrongField{p.Field, p.Detail()}
	}
	return fields
}

func (g *Gateway) postPayment(w http.ResponseWriter, r *http.Request) {
	if !readable(w, r) {
		return
	}
	begun := time.Now()
	request, refusal := readPayment(w, r)
	if refusal == nil {
		if denied := g.access.MaySend(principal(r), request.Sender); denied != nil {
			g.deny(w, r, denied)
			return
		}
	}
	var onStage func(stageTime)
	var stream *eventStream
	if wantsStream(r) {
		stream = newEventStream(w)
		defer stream.end()
		onStage = stream.stage
	}
	var out reply
	if refusal != nil {
		out = *refusal
	} else {
		out = g.pay(r.Context(), request, onStage)
	}
	if left(r.Context()) && !out.answered {
		g.metrics.left.Inc()
		if stream == nil {
			w.WriteHeader(clientLeft)
		}
		return
	}
	g.metrics.payments.WithLabelValues(string(out.Status), string(out.Reason)).Inc()
	out.stages.onStage = onStage
	g.stageOf(r.Context(), &out.stages, "total", time.Since(begun))
	g.logAnswer(r.Context(), request, out, begun)

	body := answer{out.Outcome, out.message, out.deadline, wrongFields(out.wrong)}
	code := out.code
	if code == 0 {
		code = httpStatus[out.Reason]
	}
	if code == 0 {
		code = http.StatusOK
	}
	if stream != nil {
		stream.answer(code, body)
		return
	}
	if code >= http.StatusInternalServerError {
		tryAgain(w)
	}
	if out.replayed && out.Reason != payment.IdempotencyMismatch {
		w.Header().Set(replayedHeader, "true")
	}
	w.Header().Set("Server-Timing", out.stages.header())
	writeJSON(w, code, body)
}

// header formats the stages for Server-Timing, in milliseconds.
func (s stages) header() string {
	var b strings.Builder
	for i, stage := range s.times {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s;dur=%.3f", stage.name, stage.millis())
	}
	return b.String()
}

// readPayment reads the payment of a request. The reply has all that is wrong with the request.
func readPayment(w http.ResponseWriter, r *http.Request) (payment.Payment, *reply) {
	inQuery := checkQuery(r.URL.RawQuery, nil)
	order, wrong, refusal := readOrder(w, r, fieldNames)
	if refusal != nil {
		refusal.wrong = append(refusal.wrong, inQuery...)
		return payment.Payment{}, refusal
	}
	key, err := idempotencyKey(order.Key, r.Header.Values("Idempotency-Key"))
	order.Key = key
	wrong = and(wrong, err)
	p, err := order.Payment()
	if wrong = append(and(wrong, err), inQuery...); len(wrong) > 0 {
		out := declineAll(wrong)
		return payment.Payment{}, &out
	}
	return p, nil
}

// and returns problems and those of err whose fields have none yet. err is nil, a FieldError or a
// Problems.
func and(wrong payment.Problems, err error) payment.Problems {
	var one *payment.FieldError
	var more payment.Problems
	if !errors.As(err, &more) && errors.As(err, &one) {
		more = payment.Problems{{Field: one.Field, Err: one}}
	}
	for _, p := range more {
		if !slices.ContainsFunc(wrong, func(other payment.Problem) bool { return other.Field == p.Field }) {
			wrong = append(wrong, p)
		}
	}
	return wrong
}

// declineAll is the reply to a request with wrong fields. Its reason and message are those of the
// first.
func declineAll(wrong payment.Problems) reply {
	out := decline(badOrder(wrong), wrong.Error())
	out.wrong = wrong
	return out
}

// badOrder returns the reason for which an order is not a payment.
func badOrder(err error) payment.Reason {
	if errors.Is(err, money.ErrCurrency) {
		return payment.UnsupportedCurrency
	}
	return payment.InvalidInput
}

// readOrder reads the JSON of a payment, or of a firm quote, which has some of the same fields. It
// returns the fields with a wrong type, and the unknown ones if the client wants strict handling.
// Otherwise a header of the response names the unknown ones.
func readOrder(w http.ResponseWriter, r *http.Request, known []string) (order payment.Order, wrong payment.Problems, _ *reply) {
	refuse := func(reason payment.Reason, message string) (payment.Order, payment.Problems, *reply) {
		out := decline(reason, message)
		return order, nil, &out
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			out := decline(payment.InvalidInput, fmt.Sprintf("the body is larger than %d bytes", maxBody))
			out.code = http.StatusRequestEntityTooLarge
			return order, nil, &out
		}
		return refuse(payment.BadJSON, "the body could not be read")
	}
	if err := json.Unmarshal(raw, &order); err != nil {
		var wrongType *json.UnmarshalTypeError
		if !errors.As(err, &wrongType) || wrongType.Field == "" {
			return refuse(payment.BadJSON, "the body is not a JSON object: "+err.Error())
		}
		wrong = wrongTypes(raw)
	}
	unknown, err := checkShape(raw, known)
	if err != nil {
		out := decline(payment.BadJSON, err.Error())
		out.wrong = and(nil, err)
		return order, nil, &out
	}
	// Unknown fields are accepted unless the client wants otherwise: existing clients may send them.
	preference := handling(r.Header)
	if preference != "" {
		w.Header().Set("Preference-Applied", preference)
	}
	if preference == strict {
		for _, name := range unknown {
			wrong = append(wrong, problemOf(fmt.Sprintf("%.100s", name), "is not a field of this request"))
		}
	} else if len(unknown) > 0 {
		w.Header().Set(unknownFieldsHeader, unknownFields(unknown))
	}
	return order, wrong, nil
}

// idempotencyKey returns the key from the field or from the header. If both are present they must
// be equal. The header may be a quoted string, as its specification says, or unquoted, as most
// clients write it.
func idempotencyKey(field string, headers []string) (string, error) {
	if len(headers) == 0 {
		return field, nil
	}
	if len(headers) > 1 {
		return headers[0], &payment.FieldError{Field: "Idempotency-Key", Problem: "is given more than once"}
	}
	header := headers[0]
	if len(header) >= 2 && header[0] == '"' && header[len(header)-1] == '"' {
		header = header[1 : len(header)-1]
	}
	if field != "" && field != header {
		return field, &payment.FieldError{Field: "idempotency_key", Problem: "differs from the header Idempotency-Key"}
	}
	return header, nil
}

// record is a payment as GET returns it: all that the ledger keeps of it, without the ledger's
// internal fields.
type record struct {
	Key    string                    `json:"idempotency_key"`
	State  payment.ReservationStatus `json:"state"`
	Status payment.Status            `json:"status,omitempty"` // absent while PENDING
	Reason payment.Reason            `json:"reason,omitempty"`
	// Amount is in major units, as clients send it. It is absent if only rupiah were sent.
	Currency   money.Currency `json:"currency"`
	Amount     string         `json:"amount,omitempty"`
	TxDate     string         `json:"tx_date,omitempty"`
	ReservedAt time.Time      `json:"reserved_at,omitzero"`
	DecidedAt  time.Time      `json:"decided_at,omitzero"`
	// What the sender pays and the receiver gets, in major units, and the price if the two currencies
	// differ.
	DebitCurrency  money.Currency `json:"debit_currency"`
	DebitAmount    string         `json:"debit_amount"`
	CreditCurrency money.Currency `json:"credit_currency"`
	CreditAmount   string         `json:"credit_amount"`
	Exchange       *exchange      `json:"exchange,omitempty"`
	// Entries are those of the client's own accounts. An operator gets all of them. They are absent in
	// a list, and if the payment is not settled.
	Entries []entry `json:"entries,omitempty"`
	// Events are the events of this payment. They are absent in a list.
	Events []eventID `json:"events,omitempty"`

	// The other fields are those of the payment. A field of record hides the field with the same
	// JSON name of an embedded struct.
	payment.Payment
	payment.Outcome
	CurrencyInput hidden `json:"currency_input,omitzero"`
	AmountMinor   hidden `json:"amount_minor,omitzero"`
	Attempt       hidden `json:"attempt_id,omitzero"`
	DebitMinor    hidden `json:"debit_minor,omitzero"`
	CreditMinor   hidden `json:"credit_minor,omitzero"`
}

// exchange is the price of a payment between balances of two currencies.
type exchange struct {
	Rate      money.Rate     `json:"rate"`
	MidRate   money.Rate     `json:"mid_rate"`
	Spread    string         `json:"spread"` // major units of the credit currency
	Remainder string         `json:"remainder"`
	Steps     []payment.Step `json:"steps"`
}

// entry is one entry of a settled payment. Its amount is in major units, and negative if the account
// has paid it.
type entry struct {
	Account  string         `json:"account_id"`
	Currency money.Currency `json:"currency"`
	Amount   string         `json:"amount"`
	Kind     payment.Kind   `json:"kind"`
	BookedAt time.Time      `json:"booked_at"`
}

// hidden is the type of a field that is never written.
type hidden struct{}

// eventID identifies an event in Kafka, if the payment came through Kafka.
type eventID struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

// getPayment returns the payment of a key, or of the ref that clients got with the answer. If a key is
// spelled like another payment's ref, the payment of the key is returned.
func (g *Gateway) getPayment(w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	key := r.PathValue("key")
	rec, err := g.find(r.Context(), &dbv1.FindRequest{IdempotencyKey: key, OrRef: true})
	w.Header().Set("Server-Timing", fmt.Sprintf("ledger;dur=%.3f", float64(time.Since(begun).Microseconds())/1000))
	// The response does not show whether another client's payment exists.
	if p := principal(r); err == nil && !sees(p, rec.Sender) && !sees(p, rec.Receiver) {
		err = status.Error(codes.NotFound, "belongs to another client")
	}
	switch status.Code(err) {
	case codes.OK:
	case codes.NotFound:
		writeProblem(w, http.StatusNotFound, "The ledger has no payment of this key",
			"It was refused before it reached the ledger, or it has not reached the ledger yet. Ask again after its deadline.")
		return
	case codes.InvalidArgument:
		writeProblem(w, http.StatusBadRequest, "Bad key", status.Convert(err).Message())
		return
	default:
		g.writeUnreachable(trace.WithKey(r.Context(), key), w, err, "The ledger can't be asked now", "Try again.")
		return
	}
	out := recordOf(rec)
	out.Entries = entriesOf(rec, principal(r))
	out.Events = []eventID{{event.RequestedType(rec.Payment), event.RequestedID(rec.Key, rec.Claimed)}}
	if out.Status != "" {
		out.Events = append(out.Events, eventID{event.TypePaymentResult, event.ResultID(rec.Key, rec.Claimed)})
	}
	writeJSON(w, http.StatusOK, out)
}

// find reads a payment from the ledger.
func (g *Gateway) find(ctx context.Context, in *dbv1.FindRequest) (payment.Record, error) {
	got, err := g.db.Find(ctx, in)
	if err != nil {
		return payment.Record{}, err
	}
	return rpc.ToRecord(got)
}

func recordOf(rec payment.Record) record {
	debit, credit := rec.Debit(), rec.Credit()
	out := record{
		Payment: rec.Payment, Outcome: rec.Outcome, Key: rec.Key, State: rec.State, Status: rec.Status, Reason: rec.Reason,
		Currency: rec.Currency, TxDate: rec.TxDate, ReservedAt: rec.ReservedAt, DecidedAt: rec.DecidedAt,
		DebitCurrency: debit.Currency, DebitAmount: debit.String(), CreditCurrency: credit.Currency, CreditAmount: credit.String(),
	}
	if rec.Minor > 0 {
		out.Amount = rec.Sent().String()
	}
	if e := rec.Exchange; rec.Exchanges() {
		out.Exchange = &exchange{e.Rate, e.MidRate, spreadOf(rec.Payment).String(), e.Remainder, e.Steps}
	}
	return out
}

// entriesOf returns the entries that a client may see: those of its own accounts. A client that owns
// all accounts is an operator, and sees the house's too. client is nil if requests are not
// authenticated.
func entriesOf(rec payment.Record, client *access.Principal) (entries []entry) {
	if rec.State != payment.Committed {
		return nil
	}
	for _, l := range rec.Legs() {
		if sees(client, l.Account) {
			entries = append(entries, entry{l.Account, l.Currency, l.String(), l.Kind, rec.DecidedAt})
		}
	}
	return entries
}

func timeOf(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	at := rpc.Time(t)
	return &at
}

func (g *Gateway) getRandomAccounts(w http.ResponseWriter, r *http.Request) {
	if p := principal(r); p != nil && !p.OwnsAll() {
		writeProblem(w, http.StatusForbidden, "Not your accounts", "The accounts are picked from all accounts. Only a client that may send from all accounts can ask for them.")
		return
	}
	begun := time.Now()
	got, err := g.wallet.GetRandomAccounts(r.Context(), &walletv1.GetRandomAccountsRequest{Count: 2})
	w.Header().Set("Server-Timing", fmt.Sprintf("wallet;dur=%.3f", float64(time.Since(begun).Microseconds())/1000))
	if err != nil {
		g.writeUnreachable(r.Context(), w, err, "Wallet can't be asked now", "Try again.")
		return
	}
	if len(got.AccountIds) < 2 {
		writeProblem(w, http.StatusNotFound, "There are fewer than two active accounts", "Seed some.")
		return
	}
	writeJSON(w, http.StatusOK, struct {
		Sender   string `json:"sender_id"`
		Receiver string `json:"receiver_id"`
	}{got.AccountIds[0], got.AccountIds[1]})
}

func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	writeBody(w, code, body)
}

func writeBody(w http.ResponseWriter, code int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	w.Write(append(text, '\n'))
}
