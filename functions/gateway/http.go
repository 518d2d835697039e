package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
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
	mux.HandleFunc("GET /api/payments/{key}/refunds", g.getRefunds)
	mux.HandleFunc("POST /api/payments/{key}/refunds", g.postOperation(payment.Refund))
	mux.HandleFunc("POST /api/payments/{key}/capture", g.postOperation(payment.Capture))
	mux.HandleFunc("POST /api/payments/{key}/void", g.postOperation(payment.Void))
	mux.HandleFunc("POST /api/payments/{key}/cancel", g.postOperation(payment.Cancel))
	mux.HandleFunc("GET /api/accounts/{id}", g.getAccount, "at")
	mux.HandleFunc("GET /api/accounts/{id}/statement", g.getStatement, "currency", "from", "to", "limit", "cursor", "format")
	mux.HandleFunc("GET /api/reports/trial-balance", g.getTrialBalance)
	mux.HandleFunc("GET /api/reports/activity", g.getActivity, "from", "to", "step")
	mux.HandleFunc("GET /api/dead-letters", g.listLetters, "state", "limit", "before")
	mux.HandleFunc("POST /api/dead-letters/{id}/redrive", g.redriveLetter)
	mux.HandleFunc("POST /api/dead-letters/{id}/discard", g.discardLetter)
	mux.HandleFunc("GET /api/random-accounts", g.getRandomAccounts)
	mux.HandleFunc("GET /api/quotes", g.getQuote, "currency", "amount")
	mux.HandleFunc("POST /api/quotes", g.postQuote)
	mux.HandleFunc("GET /api/currencies", g.getCurrencies)
	g.webhookRoutes(mux)
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
	request.Client = clientOf(r.Context())
	if refusal == nil {
		if request.Manual() {
			request.HoldSeconds = int64(g.cfg.HoldFor / time.Second)
		}
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
	writeReply(w, code, out, body)
}

// writeReply writes the body of a reply with the headers that belong to it.
func writeReply(w http.ResponseWriter, code int, out reply, body any) {
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
	const usual = 24 // bytes of a stage
	text := make([]byte, 0, usual*len(s.times))
	for i, stage := range s.times {
		if i > 0 {
			text = append(text, ", "...)
		}
		text = append(append(text, stage.name...), ";dur="...)
		text = strconv.AppendFloat(text, stage.millis(), 'f', 3, 64)
	}
	return string(text)
}

// readPayment reads the payment of a request. The reply has all that is wrong with the request.
func readPayment(w http.ResponseWriter, r *http.Request) (payment.Payment, *reply) {
	inQuery := checkQuery(r.URL.RawQuery, nil)
	order, wrong, refusal := readBody[payment.Order](w, r, fieldNames, fieldNames)
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

// readBody reads the JSON of a request into a struct whose fields have the names all. known are those
// that the request may have. It returns the fields with a wrong type, and the unknown ones if the client
// wants strict handling. Otherwise a header of the response names the unknown ones.
func readBody[T any](w http.ResponseWriter, r *http.Request, all, known []string) (body T, wrong payment.Problems, _ *reply) {
	refuse := func(reason payment.Reason, message string) (T, payment.Problems, *reply) {
		out := decline(reason, message)
		return body, nil, &out
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			out := decline(payment.InvalidInput, fmt.Sprintf("the body is larger than %d bytes", maxBody))
			out.code = http.StatusRequestEntityTooLarge
			return body, nil, &out
		}
		return refuse(payment.BadJSON, "the body could not be read")
	}
	if err := json.Unmarshal(raw, &body); err != nil {
		var wrongType *json.UnmarshalTypeError
		if !errors.As(err, &wrongType) || wrongType.Field == "" {
			return refuse(payment.BadJSON, "the body is not a JSON object: "+err.Error())
		}
		wrong = wrongTypes[T](raw)
	}
	unknown, err := checkShape(raw, all, known)
	if err != nil {
		out := decline(payment.BadJSON, err.Error())
		out.wrong = and(nil, err)
		return body, nil, &out
	}
	return body, append(wrong, refuseUnknown(w, r, unknown)...), nil
}

// refuseUnknown returns a problem for each unknown field of a body, if the client wants that. Without
// that wish they are accepted, because existing clients may send them, and a header of the response
// names them.
func refuseUnknown(w http.ResponseWriter, r *http.Request, unknown []string) (wrong payment.Problems) {
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
	return wrong
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

	given
	ExpiresAt time.Time `json:"expires_at,omitzero"` // of an authorized payment that is not captured yet
	// Refunds are the refunds that gave something back or may do so, the oldest first. They are absent in
	// a list.
	Refunds []refund `json:"refunds,omitempty"`
	// Of a refund: the key of its payment, and why it was asked for.
	PaymentKey string `json:"payment_key,omitempty"`
	Note       string `json:"note,omitempty"`
	// TraceID is the trace of the attempt that claimed the key. It is absent if that was not traced.
	TraceID string `json:"trace_id,omitempty"`

	// The other fields are those of the payment. A field of record hides the field with the same
	// JSON name of an embedded struct.
	payment.Payment
	payment.Outcome
	CurrencyInput hidden `json:"currency_input,omitzero"`
	AmountMinor   hidden `json:"amount_minor,omitzero"`
	Attempt       hidden `json:"attempt_id,omitzero"`
	DebitMinor    hidden `json:"debit_minor,omitzero"`
	CreditMinor   hidden `json:"credit_minor,omitzero"`
	HoldSeconds   hidden `json:"hold_seconds,omitzero"`
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

// getPayment returns the payment of a client's key, or of the ref that clients got with the answer. If a
// key is spelled like another payment's ref, the payment of the key is returned. An operator gets the
// payment of any client: of several with the key its own, or else the newest. The others have their
// refs.
func (g *Gateway) getPayment(w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	key, client := r.PathValue("key"), principal(r)
	rec, err := g.find(r.Context(), &dbv1.FindRequest{
		IdempotencyKey: key, OrRef: true, Client: clientOf(r.Context()), AnyClient: isOperator(client),
	})
	var asked stages
	asked.add("ledger", time.Since(begun))
	// The response does not show whether another client's payment exists.
	if err == nil && !seesPayment(client, rec) {
		err = status.Error(codes.NotFound, "belongs to another client")
	}
	var refunds []refund
	if err == nil && rec.RefundedMinor+rec.RefundingMinor > 0 {
		refunds, err = g.refundsOf(r.Context(), rec)
	}
	if err != nil {
		g.writeNoPayment(w, r, key, err, "It was refused before it reached the ledger, or it has not reached the ledger yet. Ask again after its deadline.")
		return
	}
	out := recordOf(rec, client)
	out.Refunds = refunds
	out.Entries = entriesOf(rec, client)
	out.Events = eventsOf(rec)
	w.Header().Set("Server-Timing", asked.header())
	writeJSON(w, http.StatusOK, out)
}

// writeNoPayment answers that a payment could not be read. err is the ledger's error, and unknown what
// to do if there is no such payment.
func (g *Gateway) writeNoPayment(w http.ResponseWriter, r *http.Request, key string, err error, unknown string) {
	switch status.Code(err) {
	case codes.NotFound:
		writeProblem(w, http.StatusNotFound, "The ledger has no payment of this key", unknown)
	case codes.InvalidArgument:
		writeProblem(w, http.StatusBadRequest, "Bad key", status.Convert(err).Message())
	default:
		g.writeUnreachable(trace.WithKey(r.Context(), key), w, err, "The ledger can't be asked now", "Try again.")
	}
}

// eventsOf returns the events of a payment or a refund. The refund of a cancellation has none of its own.
func eventsOf(rec payment.Record) (events []eventID) {
	requested := eventID{event.RequestedType(rec.Payment), event.RequestedID(rec.Scoped(), rec.Claimed)}
	result := eventID{event.TypePaymentResult, event.ResultID(rec.Scoped(), rec.Claimed)}
	switch {
	case strings.HasPrefix(rec.Key, payment.CancelPrefix):
		return nil
	case rec.PaymentKey != "":
		requested.Type, result.Type = event.TypeRefundRequested, event.TypeRefundResult
		requested.ID, result.ID = event.OperationIDs(rec.Client, rec.Key, rec.Claimed)
	}
	events = []eventID{requested}
	if rec.AuthorizedMinor > 0 {
		events = append(events, eventID{event.TypePaymentResult, event.AuthorizedID(rec.Scoped(), rec.Claimed)})
	}
	if rec.Status != "" && rec.Reason != payment.Authorized {
		events = append(events, result)
	}
	return events
}

// find reads a payment from the ledger.
func (g *Gateway) find(ctx context.Context, in *dbv1.FindRequest) (payment.Record, error) {
	got, err := g.db.Find(ctx, in)
	if err != nil {
		return payment.Record{}, err
	}
	return rpc.ToRecord(got)
}

// recordOf returns a payment as a client gets it. Only an operator is told whose payment it is.
func recordOf(rec payment.Record, client *access.Principal) record {
	debit, credit := rec.Debit(), rec.Credit()
	out := record{
		Payment: rec.Payment, Outcome: rec.Outcome, Key: rec.Key, State: rec.State, Status: rec.Status, Reason: rec.Reason,
		Currency: rec.Currency, TxDate: rec.TxDate, ReservedAt: rec.ReservedAt, DecidedAt: rec.DecidedAt,
		DebitCurrency: debit.Currency, DebitAmount: debit.String(), CreditCurrency: credit.Currency, CreditAmount: credit.String(),
		given: givenOf(rec), PaymentKey: rec.PaymentKey, Note: rec.Note, TraceID: rec.TraceID,
	}
	if rec.AuthorizedMinor > 0 && rec.State == payment.Pending {
		out.ExpiresAt = rec.Deadline
	}
	if !isOperator(client) {
		out.Payment.Client = ""
	}
	if rec.Minor > 0 {
		out.Amount = rec.Sent().String()
	}
	// A refund at the price of its payment has no steps of its own.
	if e := rec.Exchange; rec.Exchanges() && len(e.Steps) > 0 {
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
	if !isOperator(principal(r)) {
		writeProblem(w, http.StatusForbidden, "Not your accounts", "The accounts are picked from all accounts. Only a client that may send from all accounts can ask for them.")
		return
	}
	begun := time.Now()
	got, err := g.wallet.GetRandomAccounts(r.Context(), &walletv1.GetRandomAccountsRequest{Count: 2})
	var asked stages
	asked.add("wallet", time.Since(begun))
	if err != nil {
		g.writeUnreachable(r.Context(), w, err, "Wallet can't be asked now", "Try again.")
		return
	}
	if len(got.AccountIds) < 2 {
		writeProblem(w, http.StatusNotFound, "There are fewer than two active accounts", "Seed some.")
		return
	}
	w.Header().Set("Server-Timing", asked.header())
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
