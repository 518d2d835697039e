package db

import (
	"context"
	"errors"
	"fmt"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"

	"pgw/shared/event"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// The outcomes of an account event, used as a metric's label. An event is ignored if it has been
// applied before, or if it is older than the profile.
const (
	applied = "applied"
	ignored = "ignored"
	refusal = "refused"
	putOff  = "put_off"
)

// handle takes account events and the sweep's ping.
func (d *DB) handle(ctx context.Context, e cloudevents.Event) error {
	switch e.Type() {
	case event.TypePing:
		// A ping is not signed. It carries no data, and a sweep does no harm however often it runs.
		_, err := d.sweep(ctx)
		return err
	case event.TypeAccountOpened, event.TypeAccountFunded, event.TypeAccountFundedV2:
		outcome, err := d.applyAccountEvent(ctx, e)
		d.metrics.accountEvents.WithLabelValues(outcome).Inc()
		return err
	default:
		return refused("%s is not for db", e.Type())
	}
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", event.ErrRefused, fmt.Errorf(format, args...))
}

// applyAccountEvent opens or funds an account. outcome is the event's label in the metric.
func (d *DB) applyAccountEvent(ctx context.Context, e cloudevents.Event) (outcome string, err error) {
	changed, err := d.changeAccount(ctx, e)
	// A value that the database has refused once will always be refused.
	if postgres.BadData(err) && !postgres.Transient(err) {
		err = fmt.Errorf("%w: %w", event.ErrRefused, err)
	}
	switch {
	case event.Refused(err):
		return refusal, err
	case err != nil:
		return putOff, err
	case changed:
		return applied, nil
	}
	return ignored, nil
}

func (d *DB) changeAccount(ctx context.Context, e cloudevents.Event) (changed bool, err error) {
	version, err := d.cfg.Keys.Verified(e)
	if err != nil {
		return false, err
	}
	// A time that the signature does not cover is ignored.
	dated := version >= event.V2
	if dated {
		if err := d.checkTime(ctx, e); err != nil {
			return false, err
		}
	}
	if e.Type() == event.TypeAccountOpened {
		return d.openAccount(ctx, e, dated)
	}
	return d.fundAccount(ctx, e)
}

// checkTime refuses an event with a time in the future. A profile with such a time would win
// against all later events.
func (d *DB) checkTime(ctx context.Context, e cloudevents.Event) error {
	if e.Time().IsZero() {
		return fmt.Errorf("%w: the event has no time", event.ErrMalformed)
	}
	ahead, err := d.ledger.Ahead(ctx, e.Time())
	if err == nil && ahead > ledger.MaxAhead {
		err = refused("the event's time, %s, lies in the future: %s ahead of the ledger's clock; at most %s",
			e.Time().UTC().Format(time.RFC3339), ahead.Round(time.Second), ledger.MaxAhead)
	}
	return err
}

func (d *DB) openAccount(ctx context.Context, e cloudevents.Event, dated bool) (changed bool, err error) {
	in, err := event.Decode[event.AccountOpened](e)
	if err != nil {
		return false, err
	}
	profile := ledger.Profile{
		AccountID: in.AccountID, Owner: in.Owner, Currency: in.Currency, DailyLimitIDR: in.DailyLimitIDR, Status: in.Status,
	}
	if dated {
		changed, err = d.ledger.OpenAccount(ctx, profile, e.Time(), origin(e, ledger.Order{By: in.By, Note: in.Note}))
	} else {
		changed, err = d.ledger.OpenUndated(ctx, profile)
	}
	switch {
	case err != nil:
		return false, eventError(err, "open", in.AccountID)
	case changed:
	case dated:
		d.log.WarnContext(ctx, "ignored an account event: a newer event has set the profile",
			"account", payment.Masked(in.AccountID), "time", e.Time().UTC(), "status", string(in.Status))
	default:
		d.log.InfoContext(ctx, "ignored an account event: the account has this profile already", "account", payment.Masked(in.AccountID))
	}
	return changed, nil
}

func (d *DB) fundAccount(ctx context.Context, e cloudevents.Event) (changed bool, err error) {
	in, err := event.ReadFunding(e)
	if err != nil {
		return false, err
	}
	funding := ledger.Funding{AccountID: in.AccountID, Amount: money.Amount{Minor: in.Minor, Currency: in.Currency}, Note: in.Note}
	changed, err = d.ledger.FundAccount(ctx, funding, origin(e, ledger.Order{By: in.By, Note: in.Note}))
	if err != nil {
		return false, eventError(err, "fund", in.AccountID)
	}
	if !changed {
		d.log.InfoContext(ctx, "ignored an account event: this funding has been counted", "account", payment.Masked(in.AccountID))
	}
	return changed, nil
}

func origin(e cloudevents.Event, by ledger.Order) ledger.Origin {
	return ledger.Origin{Source: e.Source(), ID: e.ID(), Order: by}
}

// tell logs what an operator has changed. Changes that nobody ordered are not logged.
func (d *DB) tell(ctx context.Context, by ledger.Order, what string, args ...any) {
	if by.By != "" {
		d.log.InfoContext(ctx, what, append(args, "by", by.By, "note", by.Note)...)
	}
}

// eventError converts the ledger's error into the result of the event that changes an account.
func eventError(err error, change, account string) error {
	var bad *ledger.InvalidError
	switch {
	case errors.As(err, &bad):
		return fmt.Errorf("%w: %w", event.ErrMalformed, err)
	case errors.Is(err, ledger.ErrOtherProfile):
		err = refused("%w, and a signature of v1 does not cover the time that would tell which is newer: sign the event anew, as pgw replay --sign does", err)
	case errors.Is(err, ledger.ErrOtherFunding):
		err = refused("%w", err)
	case errors.Is(err, ledger.ErrNoAccount):
		// The topic's key is the account, so the event that opens the account comes before those
		// that fund it. It has been applied or refused already. Waiting would not open the account,
		// and would delay the events after this one.
		err = refused("%w: open it, and have this event sent again (pgw deadletter redrive)", err)
	}
	return fmt.Errorf("%s account %s: %w", change, payment.Masked(account), err)
}

// sweep runs the ledger's sweep, publishes the results, and sets the metrics. A result that is
// published again has the same event id.
func (d *DB) sweep(ctx context.Context) (ledger.Swept, error) {
	swept, err := d.ledger.Sweep(ctx, d.publishSwept)
	if !swept.At.IsZero() {
		d.metrics.pending.Set(float64(swept.Pending))
		d.metrics.pendingIDR.Set(float64(swept.HeldIDR))
		d.metrics.oldestPending.Set(0)
		if !swept.Oldest.IsZero() {
			d.metrics.oldestPending.Set(swept.At.Sub(swept.Oldest).Seconds())
		}
	}
	result := "ok"
	if err != nil {
		result = "error"
	} else {
		d.metrics.lastSweep.Set(float64(swept.At.Unix()))
	}
	d.metrics.sweeps.WithLabelValues(result).Inc()
	d.metrics.swept.Add(float64(swept.RolledBack))
	d.metrics.expired.Add(float64(swept.Expired))
	d.metrics.published.Add(float64(swept.Published))
	if swept.RolledBack > 0 {
		d.log.WarnContext(ctx, "swept reservations past their deadline", "rolled_back", swept.RolledBack, "published", swept.Published)
	}
	return swept, err
}

// publishSwept publishes the result of a payment or refund that a sweep has rolled back. The expiry of
// an authorized payment is told the same way.
func (d *DB) publishSwept(ctx context.Context, c ledger.Claim, at time.Time) error {
	outbox := event.Outbox{Source: "/pgw/db", Keys: &d.cfg.Keys, To: d.publish, Now: func() time.Time { return at }}
	if c.Parent != uuid.Nil {
		return d.publishSweptRefund(ctx, outbox, c, at)
	}
	return outbox.Result(ctx, d.cfg.Kafka.ResultTopic, event.PaymentResult{
		Key: c.Key, Client: c.Client, Outcome: payment.Decline(c.Reason), Fingerprint: c.Fingerprint,
		AttemptID: c.AttemptID, SettledAt: at.UTC(),
	})
}

// publishSweptRefund publishes the result of a refund. The refund of a cancellation has none: what was
// asked for is the cancellation, and its event is delivered until its own result is published.
func (d *DB) publishSweptRefund(ctx context.Context, outbox event.Outbox, c ledger.Claim, at time.Time) error {
	refund, err := d.ledger.PaymentByRef(ctx, c.ReservationID)
	if err != nil {
		return err
	}
	o := refund.Refund()
	if o.ForCancel() {
		return nil
	}
	of, err := d.ledger.PaymentByRef(ctx, c.Parent)
	if err != nil {
		return err
	}
	data := event.ResultOf(o, payment.Decline(c.Reason), of, refund)
	data.SettledAt = at.UTC()
	return outbox.OperationResult(ctx, d.cfg.Kafka.ResultTopic, data)
}
