package payments

import (
	"context"
	"fmt"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/shared/event"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// Operate implements payments.v1.PaymentsService.
func (p *Payments) Operate(ctx context.Context, in *commonv1.Operation) (*paymentsv1.OperateResponse, error) {
	o, err := rpc.ToOperation(in)
	if err == nil {
		err = o.Validate()
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	got, err := p.operate(ctx, o)
	if err != nil {
		return nil, err
	}
	out := &paymentsv1.OperateResponse{Outcome: rpc.FromOutcome(got.outcome.Answer()), Payment: rpc.FromRecord(got.payment)}
	if got.refund.IsRefund() {
		out.Refund = rpc.FromRecord(got.refund)
	}
	return out, nil
}

// operate carries out an operation and counts its outcome. An error means that the outcome is unknown, or
// NOT_FOUND. The same call may then be made again, and continues where this one stopped.
func (p *Payments) operate(ctx context.Context, o payment.Operation) (got operated, err error) {
	switch o.Kind {
	case payment.Refund:
		got, err = p.refund(ctx, o)
	case payment.Capture:
		got, err = p.capture(ctx, o)
	case payment.Void:
		got, err = p.void(ctx, o)
	case payment.Cancel:
		got, err = p.cancel(ctx, o)
	}
	if err == nil {
		p.operated.WithLabelValues(string(o.Kind), string(got.outcome.Status), string(got.outcome.Reason)).Inc()
	}
	return got, err
}

// refund reserves a refund and commits it.
func (p *Payments) refund(ctx context.Context, o payment.Operation) (operated, error) {
	got, err := p.reserveRefund(ctx, o)
	if err != nil || got.outcome.State != payment.Pending {
		return got, err
	}
	if got.outcome, err = p.end(ctx, got.outcome, o.Key); err != nil {
		return got, err
	}
	return p.afterwards(ctx, got)
}

// afterwards reads the payment and the refund again, after the refund has ended.
func (p *Payments) afterwards(ctx context.Context, got operated) (_ operated, err error) {
	if got.payment, err = p.find(ctx, got.payment.Scoped()); err == nil {
		got.refund, err = p.find(ctx, got.refund.Scoped())
	}
	return got, err
}

// cancel rolls a payment back that is not settled, and refunds what is left of a settled one. The ledger
// decides which: if the commit was first, it answers that the payment is settled. A refund takes only what
// is left, so two cancellations give the money back once.
func (p *Payments) cancel(ctx context.Context, o payment.Operation) (operated, error) {
	got, err := p.void(ctx, o)
	if err != nil || got.outcome.Reason != payment.PaymentSettled {
		return got, err
	}
	return p.refund(ctx, refundFor(o, got.payment))
}

// refundFor returns the refund that a cancellation makes of a settled payment.
func refundFor(o payment.Operation, of payment.Record) payment.Operation {
	o.Kind, o.Key = payment.Refund, o.CancelKey(of.Ref)
	return o
}

// closeOutOperation ends an operation whose request could not be delivered, and publishes its result. The
// refund of a dead letter is FAILED undeliverable, unless it was settled in the meantime. A capture, a
// void or a cancellation is one transaction, so nothing of it is left to take back: it is carried out if
// there is still time, and refused by the ledger as expired if there is not.
func (p *Payments) closeOutOperation(ctx context.Context, e cloudevents.Event) error {
	r, err := event.ReadOperation(e, &p.cfg.Keys)
	if err != nil {
		return err
	}
	if err := p.checkDeadLetter(ctx, e); err != nil {
		return err
	}
	end := p.operate
	if r.Kind == payment.Refund {
		end = p.failRefund
	}
	got, err := end(ctx, r.Operation)
	switch status.Code(err) {
	case codes.OK:
	case codes.InvalidArgument, codes.FailedPrecondition, codes.NotFound:
		return fmt.Errorf("%w: close out the %s %s of %s: %w", event.ErrRefused, r.Kind, r.Key, r.Operation.Payment, err)
	default:
		return fmt.Errorf("close out the %s %s of %s: %w", r.Kind, r.Key, r.Operation.Payment, err)
	}
	data := event.ResultOf(r.Operation, got.outcome, got.payment, got.refund)
	data.ReplyTo, data.SettledAt = r.ReplyTo, p.now().UTC()
	outbox := event.Outbox{Source: "/pgw/payments", Keys: &p.cfg.Keys, To: p.publish, Now: p.now}
	if err := outbox.OperationResult(ctx, p.cfg.Kafka.ResultTopic, data); err != nil {
		return err
	}
	p.closed.WithLabelValues(string(got.outcome.Status), string(got.outcome.Reason)).Inc()
	return nil
}

// failRefund claims the refund's key and gives back what that holds. So a request that comes later hears
// the same outcome.
func (p *Payments) failRefund(ctx context.Context, o payment.Operation) (operated, error) {
	got, err := p.reserveRefund(ctx, o)
	if err != nil || got.outcome.State != payment.Pending {
		return got, err
	}
	if got.outcome, err = p.giveUp(ctx, got.outcome, payment.Undeliverable); err != nil {
		return got, err
	}
	return p.afterwards(ctx, got)
}
