package event

import (
	"context"
	"fmt"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// The types of the events of operations. Their subject, and so their partition key, is the key of the
// payment: an operation is in the partition of its payment.
const (
	TypeRefundRequested  = "pgw.refund.requested.v1"
	TypeCaptureRequested = "pgw.capture.requested.v1"
	TypeVoidRequested    = "pgw.void.requested.v1"
	TypeCancelRequested  = "pgw.cancel.requested.v1"

	TypeRefundResult  = "pgw.refund.result.v1"
	TypeCaptureResult = "pgw.capture.result.v1"
	TypeVoidResult    = "pgw.void.result.v1"
	TypeCancelResult  = "pgw.cancel.result.v1"
)

// operationTypes are the types of request and result by the kind of the operation.
var operationTypes = map[payment.OperationKind]struct{ request, result string }{
	payment.Refund:  {TypeRefundRequested, TypeRefundResult},
	payment.Capture: {TypeCaptureRequested, TypeCaptureResult},
	payment.Void:    {TypeVoidRequested, TypeVoidResult},
	payment.Cancel:  {TypeCancelRequested, TypeCancelResult},
}

// IsOperationRequest reports whether an event requests an operation.
func IsOperationRequest(e cloudevents.Event) bool {
	for _, types := range operationTypes {
		if e.Type() == types.request {
			return true
		}
	}
	return false
}

// IsOperationResult reports whether an event is the result of an operation.
func IsOperationResult(e cloudevents.Event) bool {
	for _, types := range operationTypes {
		if e.Type() == types.result {
			return true
		}
	}
	return false
}

// OperationRequested is the data of the events that request an operation.
type OperationRequested struct {
	payment.Operation
	// ReplyTo is the URL of the gateway replica whose client waits. It may be empty.
	ReplyTo string `json:"reply_to,omitempty"`
}

// OperationResult is the data of the events with an operation's result.
type OperationResult struct {
	Kind    payment.OperationKind `json:"operation"`
	Key     string                `json:"idempotency_key"` // the operation's own
	Client  string                `json:"client,omitempty"`
	Payment string                `json:"payment_key"`
	// PaymentClient is the payment's client; nil: the operation's.
	PaymentClient *string `json:"payment_client,omitempty"`
	payment.Outcome
	// Fingerprint distinguishes the results of two different requests with the same key.
	Fingerprint payment.Fingerprint `json:"fingerprint"`
	AttemptID   string              `json:"attempt_id,omitempty"`
	ReplyTo     string              `json:"reply_to,omitempty"`

	// What a successful operation moved, in minor units: what the payment's sender got back or paid, and
	// what its receiver gave or got. Absent if nothing moved.
	SenderCurrency   money.Currency `json:"sender_currency,omitzero"`
	SenderMinor      int64          `json:"sender_minor,omitempty"`
	ReceiverCurrency money.Currency `json:"receiver_currency,omitzero"`
	ReceiverMinor    int64          `json:"receiver_minor,omitempty"`
	Entries          []Entry        `json:"entries,omitempty"`
	RefundKey        string         `json:"refund_key,omitempty"` // of a cancellation that refunded

	// The payment afterwards, in minor units of SenderCurrency.
	PaymentRef      string `json:"payment_ref,omitempty"`
	AmountMinor     int64  `json:"amount_minor,omitempty"` // what its sender has paid, or has on hold
	RefundedMinor   int64  `json:"refunded_minor,omitempty"`
	RefundingMinor  int64  `json:"refunding_minor,omitempty"`
	AuthorizedMinor int64  `json:"authorized_minor,omitempty"`

	ReceivedAt time.Time `json:"received_at,omitzero"`
	SettledAt  time.Time `json:"settled_at,omitzero"`
}

// Of returns the payment's key in its client's scope.
func (d OperationResult) Of() payment.ScopedKey {
	return payment.Operation{Client: d.Client, Payment: d.Payment, PaymentClient: d.PaymentClient}.Of()
}

// ResultOf returns the result of an operation: what it has moved, and how the payment is afterwards. refund
// is that of a refund, and of a cancellation that refunds; else it is zero.
func ResultOf(o payment.Operation, out payment.Outcome, of, refund payment.Record) OperationResult {
	d := OperationResult{
		Kind: o.Kind, Key: o.Key, Client: o.Client, Payment: o.Payment, PaymentClient: o.PaymentClient,
		Outcome: out.Answer(), Fingerprint: o.Fingerprint(), AttemptID: o.AttemptID,
	}
	if out.Reason == payment.IdempotencyMismatch {
		return d // the ledger has another request
	}
	paid := of.Debit()
	d.PaymentRef, d.SenderCurrency, d.AmountMinor = of.Ref, paid.Currency, paid.Minor
	d.RefundedMinor, d.RefundingMinor, d.AuthorizedMinor = of.RefundedMinor, of.RefundingMinor, of.AuthorizedMinor
	moved := payment.Record{}
	switch {
	case refund.IsRefund():
		if o.Kind == payment.Cancel {
			d.RefundKey = refund.Key
		}
		if moved = refund; out.Status != payment.Failed {
			d.SenderMinor, d.ReceiverCurrency, d.ReceiverMinor = refund.Credit().Minor, refund.Debit().Currency, refund.Debit().Minor
		}
	case o.Kind == payment.Capture && out.Status != payment.Failed:
		moved = of
		d.SenderMinor, d.ReceiverCurrency, d.ReceiverMinor = paid.Minor, of.Credit().Currency, of.Credit().Minor
	}
	if moved.State == payment.Committed {
		for _, l := range moved.Legs() {
			d.Entries = append(d.Entries, Entry{l.Account, l.Currency, l.Minor, l.Kind})
		}
	}
	return d
}

// OperationRequestedID and OperationResultID return the ids of an operation's events. They depend only
// on its content.
func OperationRequestedID(o payment.Operation) string {
	return operationID("operation request", o.Client, o.Key, o.Fingerprint())
}

// OperationResultID is the counterpart of OperationRequestedID.
func OperationResultID(d OperationResult) string {
	return operationID("operation result", d.Client, d.Key, d.Fingerprint)
}

// OperationIDs returns the ids of an operation's two events by the fingerprint of its request.
func OperationIDs(client, key string, fp payment.Fingerprint) (request, result string) {
	return operationID("operation request", client, key, fp), operationID("operation result", client, key, fp)
}

func operationID(kind, client, key string, fp payment.Fingerprint) string {
	return paymentID(fmt.Sprintf("%s of %d %s ", kind, len(client), client), key, fp)
}

// RequestedOperation makes the request event of an operation. replyTo may be empty.
func RequestedOperation(source string, op payment.Operation, replyTo string, now time.Time) (cloudevents.Event, error) {
	return New(operationTypes[op.Kind].request, OperationRequestedID(op), source, op.Payment, OperationRequested{op, replyTo}, now)
}

// RequestOperation publishes the request event of an operation. replyTo may be empty.
func (o Outbox) RequestOperation(ctx context.Context, topic string, op payment.Operation, replyTo string) error {
	e, err := RequestedOperation(o.Source, op, replyTo, o.Now())
	if err != nil {
		return err
	}
	return o.Send(ctx, topic, e)
}

// OperationResult publishes the result event of an operation.
func (o Outbox) OperationResult(ctx context.Context, topic string, d OperationResult) error {
	e, err := New(operationTypes[d.Kind].result, OperationResultID(d), o.Source, d.Payment, d, o.Now())
	if err != nil {
		return err
	}
	return o.Send(ctx, topic, e)
}

// ReadOperation checks an event that requests an operation, and returns its data. The signature must be
// valid. Errors wrap ErrSignature, ErrRefused or ErrMalformed.
func ReadOperation(e cloudevents.Event, keys *Keyring) (OperationRequested, error) {
	if !IsOperationRequest(e) {
		return OperationRequested{}, fmt.Errorf("%w: %s does not request an operation", ErrRefused, e.Type())
	}
	if err := keys.Verify(e); err != nil {
		return OperationRequested{}, err
	}
	data, err := Decode[OperationRequested](e)
	if err != nil {
		return OperationRequested{}, err
	}
	if err := data.Validate(); err != nil {
		return OperationRequested{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if want := operationTypes[data.Kind].request; e.Type() != want {
		return OperationRequested{}, fmt.Errorf("%w: %s has an operation of %s", ErrMalformed, e.Type(), want)
	}
	return data, nil
}

// ReadOperationResult checks an event with an operation's result, and returns its data. Its errors are
// those of ReadOperation.
func ReadOperationResult(e cloudevents.Event, keys *Keyring) (OperationResult, error) {
	if !IsOperationResult(e) {
		return OperationResult{}, fmt.Errorf("%w: %s is not an operation's result", ErrRefused, e.Type())
	}
	if err := keys.Verify(e); err != nil {
		return OperationResult{}, err
	}
	data, err := Decode[OperationResult](e)
	if err == nil && (data.Fingerprint == payment.Fingerprint{} || operationTypes[data.Kind].result != e.Type()) {
		err = fmt.Errorf("%w: the result has no fingerprint, or another operation than its type", ErrMalformed)
	}
	return data, err
}
