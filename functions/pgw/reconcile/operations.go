package reconcile

import (
	"context"
	"fmt"
	"strings"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"

	"pgw/shared/event"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// A refund is a reservation of the ledger, and is compared with its events as a payment is. The refund of
// a cancellation has a key that is made of the payment's id and the cancellation. The cancellation's event
// does not know that id, so both are compared by a key with the payment's key in its place.
//
// Captures, voids and cancellations end a payment, and have rows of their own. Those are compared with their
// events in the same way. Their keys may be those of payments, so they are marked.

// operationMark is at the beginning of the key of a capture, a void or a cancellation. No key that a client can
// send has it.
const operationMark = "\x00"

func operationKey(o payment.Operation) payment.ScopedKey {
	return payment.ScopedKey{Client: o.Client, Key: operationMark + o.Key}
}

// ends reports whether an operation ends the payment itself. A refund does not.
func ends(k payment.OperationKind) bool { return k != payment.Refund }

// readOperations reads the captures, voids and cancellations that are compared with events.
func (r *reconciliation) readOperations(ctx context.Context) error {
	return ledger.EachOperation(ctx, r.tx, r.comparedSince(), func(o ledger.KeptOperation) error {
		r.examined[ClaimTrue]++
		if problem := untrue(o); problem != "" {
			r.breach(breachOf(ClaimTrue, operationKey(o.Operation), problem))
		}
		return r.addClaim(entryOfOperation(o))
	})
}

// untrue says in what the row of an operation contradicts itself or its payment; "" if it does not.
func untrue(o ledger.KeptOperation) string {
	done := o.Reason == payment.ReasonCommitted
	whole := o.Operation // as a client sends it that names no amount
	whole.Minor, whole.Currency = 0, money.Currency{}
	// What the client of a refused capture asked for is not kept.
	known := done || o.Kind != payment.Capture
	if known && o.Claimed != whole.Fingerprint() && (o.Kind != payment.Capture || o.Claimed != o.Operation.Fingerprint()) {
		return "has a kind, a payment, an amount or a note that its fingerprint does not stand for"
	}
	want, why := payment.RolledBack, map[payment.OperationKind]payment.Reason{payment.Void: payment.Voided, payment.Cancel: payment.Canceled}[o.Kind]
	if o.Kind == payment.Capture {
		want, why = payment.Committed, payment.ReasonCommitted
	}
	switch {
	case !done && o.Minor != 0:
		return fmt.Sprintf("was refused (%s), but has moved %d", o.Reason, o.Minor)
	case done && (o.State != want || o.Ended != why || o.Debits != o.Minor):
		return fmt.Sprintf("has moved %d, but its payment says %s %s %d", o.Minor, o.State, o.Ended, o.Debits)
	}
	return ""
}

func entryOfOperation(o ledger.KeptOperation) (*entry, error) {
	id, err := uuid.Parse(o.Ref)
	e := &entry{
		claim: claim{
			ID: id, Fingerprint: o.Claimed, Content: contentOfOperation(o.Operation),
			Accepted: micros(o.AcceptedAt), Reserved: micros(o.DecidedAt), Decided: micros(o.DecidedAt),
		},
		ScopedKey: operationKey(o.Operation), attempt: o.AttemptID, reason: o.Reason, state: payment.Committed, nearest: undefined,
	}
	if o.Reason.Status() == payment.Failed {
		e.state = payment.RolledBack
	}
	return e, err
}

// contentOfOperation is what the row of a capture, a void or a cancellation and its request have in common,
// apart from what the fingerprint covers.
func contentOfOperation(o payment.Operation) content {
	return contentOf(payment.Payment{AttemptID: o.AttemptID, AcceptedAt: o.AcceptedAt})
}

// comparedBy returns the key by which a record is compared with its events.
func comparedBy(rec payment.Record) payment.ScopedKey {
	if rec.IsRefund() && rec.Refund().ForCancel() {
		return payment.ScopedKey{Client: rec.Client, Key: ofPayment(rec.Key, rec.PaymentKey)}
	}
	return rec.Scoped()
}

// ofPayment returns the key of a cancellation's refund with the payment's key in the place of its id.
func ofPayment(refund, key string) string {
	_, cancellation := payment.CancelKeyParts(refund)
	return payment.CancelPrefix + key + ":" + cancellation
}

func forCancel(key string) bool { return strings.HasPrefix(key, payment.CancelPrefix) }

func contentOfRecord(rec payment.Record) content {
	if rec.IsRefund() {
		return contentOfRefund(rec.Refund())
	}
	asked, _ := askedFor(rec)
	return contentOf(asked)
}

// contentOfRefund is what a refund and its request have in common. The rest is what the ledger decides, and
// what the fingerprint covers.
func contentOfRefund(o payment.Operation) content {
	price := o.Exchange
	price.MidMinor = 0
	return contentOf(payment.Payment{
		Currency: o.Currency, Minor: o.Minor, Exchange: price, AttemptID: o.AttemptID, AcceptedAt: o.AcceptedAt,
	})
}

// refundBy returns the refund that an operation may make; false if it makes none.
func refundBy(o payment.Operation) (payment.Operation, bool) {
	switch o.Kind {
	case payment.Refund:
		return o, true
	case payment.Cancel:
		o.Kind, o.Key = payment.Refund, o.CancelKey(o.Payment)
		return o, true
	}
	return o, false
}

func (r *reconciliation) readOperation(e cloudevents.Event, m *sarama.ConsumerMessage) error {
	got, err := event.ReadOperation(e, r.cfg.Keys)
	if err != nil {
		r.report.Foreign++ // worker refused it for the same reason
		return nil
	}
	young := m.Timestamp.After(r.judged) || got.Deadline.After(r.judged)
	if young {
		r.report.TooYoung++
	} else {
		r.examined[RequestDecided]++
	}
	add := func(key payment.ScopedKey, fingerprint payment.Fingerprint, content content) error {
		record, err := pack(request{fingerprint, content, placeOf(m), young}, key.Key, key.Client, string(m.Key), e.ID())
		if err != nil {
			return err
		}
		return r.requests.add(key.Key, record)
	}
	if o := got.Operation; ends(o.Kind) {
		if err := add(operationKey(o), o.Fingerprint(), contentOfOperation(o)); err != nil {
			return err
		}
	}
	o, refunds := refundBy(got.Operation)
	if !refunds {
		return nil
	}
	return add(payment.ScopedKey{Client: o.Client, Key: o.Key}, o.Fingerprint(), contentOfRefund(o))
}

func (r *reconciliation) readOperationResult(e cloudevents.Event, m *sarama.ConsumerMessage) error {
	got, err := event.ReadOperationResult(e, r.cfg.Keys)
	if err != nil {
		r.report.Foreign++
		return nil
	}
	add := func(key payment.ScopedKey, fingerprint payment.Fingerprint, cancels bool) error {
		record, err := pack(result{fingerprint, placeOf(m), m.Timestamp.After(r.judged), cancels},
			key.Key, key.Client, string(got.Status), string(got.Reason), got.Ref, got.AttemptID)
		if err != nil {
			return err
		}
		return r.results.add(key.Key, record)
	}
	o := payment.Operation{Kind: got.Kind, Key: got.Key, Client: got.Client, Payment: got.Payment, PaymentClient: got.PaymentClient}
	if ends(got.Kind) {
		if err := add(operationKey(o), got.Fingerprint, got.Kind == payment.Cancel); err != nil {
			return err
		}
	}
	switch {
	case got.Kind == payment.Refund:
		return add(payment.ScopedKey{Client: got.Client, Key: got.Key}, got.Fingerprint, false)
	case got.Kind == payment.Cancel && got.RefundKey != "":
		o.Kind, o.Key = payment.Refund, got.RefundKey
		return add(payment.ScopedKey{Client: got.Client, Key: ofPayment(o.Key, o.Payment)}, o.Fingerprint(), false)
	}
	return nil
}
