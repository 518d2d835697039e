package gateway

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pgw/functions/gateway/access"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// This file serves what a client asks for after its payment: refunds, captures, voids and
// cancellations. All of them take the same way as a payment: an event, and a wait for its result.

// maxRefunds is the most refunds in one answer.
const maxRefunds = 100

// notYetThere is what to do about a payment that the ledger does not know.
const notYetThere = "It was refused before it reached the ledger, or its request may still be on its way: try again until its deadline."

// orderFields are the JSON names of the fields of payment.OperationOrder.
var orderFields = namesOf[payment.OperationOrder]()

// operationReply is the reply to an operation.
type operationReply struct {
	reply
	op     payment.Operation
	of     payment.Record        // the payment before the operation; zero if it was not looked up
	result event.OperationResult // zero if no result arrived
}

// operationResult says how an operation was answered, for the metrics.
type operationResult string

const (
	operationDone     operationResult = "done"
	operationReplayed operationResult = "replayed"
	operationRefused  operationResult = "refused"
	operationInvalid  operationResult = "invalid"
	operationNotSent  operationResult = "not_sent"
	operationUnknown  operationResult = "unknown"
)

func (out operationReply) counted() operationResult {
	switch code := out.status(); {
	case out.Status == payment.Success:
		return operationDone
	case out.Status == payment.SuccessReplay:
		return operationReplayed
	case out.Reason == payment.QueueTimeout:
		return operationUnknown
	case code >= http.StatusInternalServerError:
		return operationNotSent
	case code >= http.StatusBadRequest:
		return operationInvalid
	}
	return operationRefused
}

// status returns the HTTP status of the reply.
func (out operationReply) status() int {
	return cmp.Or(out.code, httpStatus[out.Reason], http.StatusOK)
}

// operationAnswer is the body of the answer to an operation.
type operationAnswer struct {
	answer
	Key     string        `json:"idempotency_key,omitempty"` // the operation's own
	Refund  *refund       `json:"refund,omitempty"`
	Payment *paymentAfter `json:"payment,omitempty"`
}

// refund is a refund as a client gets it. Amounts are in major units.
type refund struct {
	Key        string                    `json:"idempotency_key"`
	PaymentKey string                    `json:"payment_key"`
	Ref        string                    `json:"ref,omitempty"`
	State      payment.ReservationStatus `json:"state"`
	Status     payment.Status            `json:"status,omitempty"` // absent while PENDING
	Reason     payment.Reason            `json:"reason,omitempty"`
	// What the payment's sender gets back, in the currency in which it has paid.
	Currency money.Currency `json:"currency"`
	Amount   string         `json:"amount"`
	// What the payment's receiver gives.
	DebitCurrency money.Currency `json:"debit_currency"`
	DebitAmount   string         `json:"debit_amount"`
	Note          string         `json:"note,omitempty"`
	ReservedAt    time.Time      `json:"reserved_at,omitzero"`
	DecidedAt     time.Time      `json:"decided_at,omitzero"`
}

// paymentAfter is a payment as it is after an operation. Amounts are in major units of Currency, in which
// the sender has paid. They are absent if they are nothing.
type paymentAfter struct {
	Key      string         `json:"idempotency_key"`
	Ref      string         `json:"ref"`
	Currency money.Currency `json:"currency"`
	Amount   string         `json:"amount,omitempty"`
	given
}

// given tells what was given back of a payment, and what an authorized payment holds.
type given struct {
	Refunded   string `json:"refunded,omitempty"`
	Refunding  string `json:"refunding,omitempty"`
	Authorized string `json:"authorized,omitempty"`
	Captured   string `json:"captured,omitempty"`
}

// newGiven returns the amounts as texts, without those that are nothing.
func newGiven(c money.Currency, refunded, refunding, authorized, captured int64) given {
	text := func(minor int64) string {
		if minor == 0 {
			return ""
		}
		return money.Amount{Minor: minor, Currency: c}.String()
	}
	return given{text(refunded), text(refunding), text(authorized), text(captured)}
}

// givenOf returns those of a payment in the ledger.
func givenOf(rec payment.Record) given {
	debit, captured := rec.Debit(), int64(0)
	if rec.AuthorizedMinor > 0 && rec.State == payment.Committed {
		captured = debit.Minor
	}
	return newGiven(debit.Currency, rec.RefundedMinor, rec.RefundingMinor, rec.AuthorizedMinor, captured)
}

// postOperation returns the handler of one kind of operation.
func (g *Gateway) postOperation(kind payment.OperationKind) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !readable(w, r) {
			return
		}
		begun := time.Now()
		key := r.PathValue("key")
		r = r.WithContext(trace.WithKey(r.Context(), key))
		order, refusal := readOperation(w, r, kind)
		var out operationReply
		out.op.Kind, out.op.Payment, out.op.Key = kind, key, order.Key
		if refusal == nil {
			var err error
			out.of, err = g.findTheirs(r.Context(), key)
			switch status.Code(err) {
			case codes.OK:
				if denied := g.access.MayOperate(principal(r), out.of.Receiver); denied != nil {
					g.deny(w, r, denied)
					return
				}
				out.op, err = operationOf(kind, order, clientOf(r.Context()), out.of)
				if wrong := and(nil, err); len(wrong) > 0 {
					no := declineAll(wrong)
					refusal = &no
				}
			case codes.NotFound, codes.InvalidArgument:
				g.writeNoPayment(w, r, key, err, whyNone(err))
				return
			default:
				no := g.unasked(r.Context(), err, payment.LedgerUnavailable)
				refusal = &no
			}
		}
		var stream *eventStream
		var onStage func(stageTime)
		if wantsStream(r) {
			stream = newEventStream(w)
			defer stream.end()
			onStage = stream.stage
		}
		if refusal != nil {
			out.reply = *refusal
		} else {
			out = g.operate(r.Context(), out, order.FX == payment.FXCurrent, onStage)
		}
		if left(r.Context()) && !out.answered {
			if stream == nil {
				w.WriteHeader(clientLeft)
			}
			return
		}
		g.metrics.operations.WithLabelValues(string(kind), string(out.counted())).Inc()
		trace.Observe(r.Context(), g.metrics.operationSeconds.WithLabelValues(string(kind)), time.Since(begun).Seconds())
		out.stages.add("total", time.Since(begun))
		g.logOperation(r.Context(), out, begun)
		writeOperation(w, stream, out)
	}
}

// writeOperation answers an operation. stream is nil if the client does not want one.
func writeOperation(w http.ResponseWriter, stream *eventStream, out operationReply) {
	code, body := out.status(), out.answer()
	if stream != nil {
		stream.send("answer", struct {
			Code int `json:"http_status"`
			operationAnswer
		}{code, body})
		return
	}
	writeReply(w, code, out.reply, body)
}

// readOperation reads the order of a request. The reply has all that is wrong with it as far as it can
// be checked without the payment. A refund needs a key. The others get a new one if they have none.
func readOperation(w http.ResponseWriter, r *http.Request, kind payment.OperationKind) (payment.OperationOrder, *reply) {
	if r.ContentLength == 0 {
		r.Body = io.NopCloser(strings.NewReader("{}")) // none of the fields is needed
	}
	order, wrong, refusal := readBody[payment.OperationOrder](w, r, orderFields, orderFields)
	if refusal != nil {
		return order, refusal
	}
	key, err := idempotencyKey(order.Key, r.Header.Values("Idempotency-Key"))
	wrong = and(wrong, err)
	if key == "" && kind != payment.Refund {
		key = uuid.Must(uuid.NewV7()).String()
	}
	order.Key = key
	if _, err := order.Operation(kind, money.Currency{}); err != nil {
		wrong = and(wrong, err)
	}
	if len(wrong) > 0 {
		out := declineAll(wrong)
		return order, &out
	}
	return order, nil
}

// operationOf returns a client's operation on a payment. The key is the client's own, also if another client
// has made the payment. The error is a FieldError or a Problems.
func operationOf(kind payment.OperationKind, order payment.OperationOrder, client string, of payment.Record) (payment.Operation, error) {
	op, err := order.Operation(kind, of.Debit().Currency)
	if err != nil {
		return op, err
	}
	op.Client = client
	op = op.On(of.Scoped())
	return op, op.Validate()
}

// findTheirs reads a payment that the caller may see: one that its client has made, or one to an account
// that the caller may send from. The receiver names a client's payment by its ref, because two
// clients may have the same key. The error tells only operators whether somebody else has such a payment.
func (g *Gateway) findTheirs(ctx context.Context, key string) (payment.Record, error) {
	caller, _ := ctx.Value(principalKey{}).(*access.Principal)
	rec, err := g.find(ctx, &dbv1.FindRequest{IdempotencyKey: key, OrRef: true, Client: clientOf(ctx)})
	for _, anyone := range []*dbv1.FindRequest{{IdempotencyKey: key, ByRef: true, AnyClient: true}, {IdempotencyKey: key, AnyClient: true}} {
		if status.Code(err) == codes.NotFound {
			rec, err = g.find(ctx, anyone)
		}
	}
	if err != nil {
		return rec, err
	}
	own := rec.Client == clientOf(ctx) && (sees(caller, rec.Sender) || sees(caller, rec.Receiver))
	named := rec.Ref == key || rec.Client == ""
	switch receives := sees(caller, rec.Receiver); {
	case own, receives && named:
		return rec, nil
	case caller == nil || caller.OwnsAll():
		return rec, status.Error(codes.NotFound, byItsRef+rec.Ref)
	}
	return rec, status.Error(codes.NotFound, "belongs to another client")
}

// byItsRef tells an operator, who may see all payments, how to name one of a client.
const byItsRef = "It is a client's payment, and several clients may have a payment of this key. Name it by its ref: "

// whyNone returns what to do about a payment that findTheirs did not find.
func whyNone(err error) string {
	if text := status.Convert(err).Message(); strings.HasPrefix(text, byItsRef) {
		return text
	}
	return notYetThere
}

// operate carries out an operation, and returns its reply. current means that its price is that of now.
// It calls onStage, if not nil, at the end of each stage.
func (g *Gateway) operate(ctx context.Context, out operationReply, current bool, onStage func(stageTime)) operationReply {
	out.stages.onStage = onStage
	if full := g.enter(); full != "" {
		out.reply = decline(payment.Overloaded, full)
		return out
	}
	answered := false
	defer func() { g.admitted.leave(answered) }()
	g.waker.wake()

	out.op.AcceptedAt = g.now().UTC()
	out.op.Deadline = out.op.AcceptedAt.Add(payment.DecideWithin)
	out.op.AttemptID = uuid.Must(uuid.NewV7()).String()
	ctx, cancel := context.WithTimeout(ctx, g.cfg.AnswerIn)
	defer cancel()
	if current && out.of.Exchanges() {
		begun := time.Now()
		price, no := g.priceOfNow(ctx, out.of)
		out.stages.add("fx", time.Since(begun))
		if no != nil {
			no.stages = out.stages
			out.reply = *no
			return out
		}
		out.op.Exchange = price
	}
	id := operationFlight(event.OperationResult{Client: out.op.Client, Key: out.op.Key, Fingerprint: out.op.Fingerprint()})
	f, leads := g.asked.start(id, out.op.AttemptID)
	defer g.asked.leave(id, f)
	if leads {
		begun := time.Now()
		err := g.outbox().RequestOperation(ctx, g.cfg.Kafka.RequestTopic, out.op, g.cfg.ReplicaURL)
		out.stages.add("publish", time.Since(begun))
		if !g.perhapsSent(ctx, err) {
			g.asked.finish(id, event.OperationResult{Outcome: payment.Decline(payment.QueuePublishError)})
		}
	}
	out = g.awaitOperation(ctx, f, out, !leads)
	answered = out.answered
	return out
}

// priceOfNow returns the price at which a payment's amount is exchanged back now. A refund of a part has
// the same rates. If there is no price now, an earlier request with the key may still be carried out, so
// that is not told as a refusal.
func (g *Gateway) priceOfNow(ctx context.Context, of payment.Record) (payment.Exchange, *reply) {
	debit, credit := of.Debit(), of.Credit()
	back, no := g.priceNow(ctx, payment.Payment{
		Sender: of.Receiver, Receiver: of.Sender, Minor: debit.Minor, Currency: debit.Currency,
		DebitCurrency: credit.Currency, CreditCurrency: debit.Currency,
	})
	if no.reason != "" {
		out := decline(payment.FXUnavailable, notSentOn)
		if no.reason == payment.Overloaded {
			out = decline(no.reason, no.message)
		}
		return payment.Exchange{}, &out
	}
	return back.Exchange, nil
}

// unasked is the reply to an operation for which a function could not be asked.
func (g *Gateway) unasked(ctx context.Context, err error, reason payment.Reason) reply {
	if status.Code(err) == codes.ResourceExhausted {
		return decline(payment.Overloaded, "too many requests are under way")
	}
	if !left(ctx) {
		g.noteSenseless(ctx, err, reason)
	}
	return decline(reason, notSentOn)
}

// operationFlight returns the flight that waits for a result.
func operationFlight(d event.OperationResult) flightID {
	return flightID{key: payment.ScopedKey{Client: d.Client, Key: d.Key}, fingerprint: d.Fingerprint}
}

// awaitOperation waits for a flight's result. follows means that another request of the same operation
// leads the flight.
func (g *Gateway) awaitOperation(ctx context.Context, f *flight[event.OperationResult], out operationReply, follows bool) operationReply {
	begun := time.Now()
	arrived := g.awaits(ctx, f.done)
	out.stages.add("wait", time.Since(begun))
	if !arrived {
		out.Outcome, out.deadline = payment.Decline(payment.QueueTimeout), out.op.Deadline
		out.message = "not decided yet; send the same request again with the same key, or read the payment: " +
			"the outcome is final at the latest one minute after the deadline"
		return out
	}
	result := f.result
	out.Outcome = result.Outcome
	// A leader that could not publish also ends the flight.
	if result.Reason == payment.QueuePublishError {
		out.message = notSentOn
		return out
	}
	out.result, out.answered = result, true
	out.Outcome, out.replayed = toldTo(out.Outcome, follows || result.AttemptID != f.attempt)
	if out.Reason == payment.RefundExceedsPayment {
		c := out.of.Debit().Currency
		text := func(minor int64) string { return money.Amount{Minor: minor, Currency: c}.String() }
		out.message = fmt.Sprintf("the payment is %s %s; %s was refunded, and %s is being refunded",
			c, text(result.AmountMinor), text(result.RefundedMinor), text(result.RefundingMinor))
	}
	return out
}

// answer returns the body for the client.
func (out operationReply) answer() operationAnswer {
	body := operationAnswer{answer: answer{out.Outcome, out.message, out.deadline, wrongFields(out.wrong)}, Key: out.op.Key}
	d := out.result
	if !out.answered || out.Reason == payment.IdempotencyMismatch {
		return body
	}
	paidIn := out.of.Debit().Currency
	captured := int64(0)
	if out.op.Kind == payment.Capture && out.Status != payment.Failed {
		captured = d.AmountMinor
	}
	after := paymentAfter{
		Key: out.of.Key, Ref: cmp.Or(d.PaymentRef, out.of.Ref), Currency: paidIn,
		given: newGiven(paidIn, d.RefundedMinor, d.RefundingMinor, d.AuthorizedMinor, captured),
	}
	if d.AmountMinor > 0 {
		after.Amount = money.Amount{Minor: d.AmountMinor, Currency: paidIn}.String()
	}
	body.Payment = &after
	refunded := out.op.Kind == payment.Refund || d.RefundKey != ""
	if refunded && out.Status != payment.Failed && d.SenderMinor > 0 {
		back, gives := money.Amount{Minor: d.SenderMinor, Currency: d.SenderCurrency}, money.Amount{Minor: d.ReceiverMinor, Currency: d.ReceiverCurrency}
		body.Refund = &refund{
			Key: cmp.Or(d.RefundKey, d.Key), PaymentKey: d.Payment, Ref: out.Ref,
			State: payment.Committed, Status: payment.Success, Reason: payment.ReasonCommitted,
			Currency: back.Currency, Amount: back.String(), DebitCurrency: gives.Currency, DebitAmount: gives.String(),
			Note: out.op.Note, DecidedAt: d.SettledAt,
		}
	}
	return body
}

// getRefunds returns the refunds of a payment, the oldest first. A payment's key may itself end in
// "/refunds", so without such a payment the path names that one.
func (g *Gateway) getRefunds(w http.ResponseWriter, r *http.Request) {
	key := r.PathValue("key")
	rec, err := g.findTheirs(r.Context(), key)
	if status.Code(err) == codes.NotFound && whyNone(err) == notYetThere {
		r.SetPathValue("key", key+"/refunds")
		g.getPayment(w, r)
		return
	}
	var refunds []refund
	if err == nil {
		refunds, err = g.refundsOf(r.Context(), rec)
	}
	if err != nil {
		g.writeNoPayment(w, r, key, err, whyNone(err))
		return
	}
	writeJSON(w, http.StatusOK, struct {
		Refunds []refund `json:"refunds"`
	}{refunds})
}

// refundsOf reads the refunds of a payment, the oldest first.
func (g *Gateway) refundsOf(ctx context.Context, of payment.Record) ([]refund, error) {
	got, err := g.db.ListRefunds(ctx, &dbv1.ListRefundsRequest{PaymentKey: of.Key, Client: of.Client, Limit: maxRefunds})
	if err != nil {
		return nil, err
	}
	refunds := make([]refund, 0, len(got.Refunds))
	for _, one := range got.Refunds {
		rec, err := rpc.ToRecord(one)
		if err != nil {
			return nil, err
		}
		refunds = append(refunds, refundOf(rec))
	}
	return refunds, nil
}

// refundOf returns a refund as a client gets it. In the ledger its sender is the receiver of its
// payment.
func refundOf(rec payment.Record) refund {
	back, gives := rec.Credit(), rec.Debit()
	return refund{
		Key: rec.Key, PaymentKey: rec.PaymentKey, Ref: rec.Ref, State: rec.State, Status: rec.Status, Reason: rec.Reason,
		Currency: back.Currency, Amount: back.String(), DebitCurrency: gives.Currency, DebitAmount: gives.String(),
		Note: rec.Note, ReservedAt: rec.ReservedAt, DecidedAt: rec.DecidedAt,
	}
}

// logOperation logs the answer to an operation, as logAnswer does for a payment.
func (g *Gateway) logOperation(ctx context.Context, out operationReply, begun time.Time) {
	level := slog.LevelDebug
	if g.cfg.LogPayments {
		level = slog.LevelInfo
	}
	if !g.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("operation", string(out.op.Kind)), slog.String("operation_key", out.op.Key),
		slog.String("status", string(out.Status)), slog.String("reason", string(out.Reason)), slog.String("ref", out.Ref),
		slog.Float64("took_ms", float64(time.Since(begun).Microseconds())/1000),
	}
	if out.op.Minor > 0 {
		attrs = append(attrs, slog.String("amount", out.op.Amount().String()), slog.String("currency", out.op.Currency.String()))
	}
	g.log.LogAttrs(trace.WithKey(ctx, out.op.Payment), level, "answered", attrs...)
}
