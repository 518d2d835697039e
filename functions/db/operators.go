package db

import (
	"cmp"
	"context"
	"errors"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// operatorSource is the source of the events by which operators change accounts.
const operatorSource = "/pgw/operators"

// OpenAccount implements db.v1.Admin.
func (d *DB) OpenAccount(ctx context.Context, in *dbv1.OpenAccountRequest) (*dbv1.OpenAccountResponse, error) {
	if in.EventId != "" {
		// The same event again would set the profile once more, over what was changed since.
		known, err := d.ledger.KnownChange(ctx, ledger.Origin{Source: operatorSource, ID: in.EventId}, ledger.AccountChange, in.AccountId)
		if err != nil {
			return nil, translated(err)
		}
		if known {
			return &dbv1.OpenAccountResponse{EventId: in.EventId}, nil
		}
	}
	id, applied, err := d.setProfile(ctx, in.EventId, d.now(), event.AccountOpened{
		AccountID: in.AccountId, Owner: in.Owner, Currency: cmp.Or(in.Currency, money.IDR.String()), DailyLimitIDR: in.DailyLimitIdr,
		Status: payment.AccountStatus(cmp.Or(in.Status, string(payment.Active))), By: in.By, Note: in.Note,
	})
	return &dbv1.OpenAccountResponse{EventId: id, Applied: applied}, err
}

// SetAccountStatus implements db.v1.Admin.
func (d *DB) SetAccountStatus(ctx context.Context, in *dbv1.SetAccountStatusRequest) (*dbv1.SetAccountStatusResponse, error) {
	if err := payment.CheckID("account_id", in.AccountId, payment.MaxAccountID); err != nil {
		return nil, invalid(err)
	}
	a, setAt, err := d.ledger.Profile(ctx, in.AccountId)
	if err != nil {
		return nil, ofAccount(in.AccountId, err)
	}
	// The latest profile counts. The one that is there may be from a clock that is ahead of this one.
	at := d.now()
	if next := setAt.Add(time.Microsecond); next.After(at) {
		at = next
	}
	id, applied, err := d.setProfile(ctx, "", at, event.AccountOpened{
		AccountID: a.AccountID, Owner: a.Owner, Currency: a.Currency, DailyLimitIDR: a.DailyLimitIDR,
		Status: payment.AccountStatus(in.Status), By: in.By, Note: in.Note,
	})
	return &dbv1.SetAccountStatusResponse{EventId: id, Applied: applied}, err
}

func (d *DB) setProfile(ctx context.Context, id string, at time.Time, opened event.AccountOpened) (eventID string, applied bool, err error) {
	profile := ledger.Profile{
		AccountID: opened.AccountID, Owner: opened.Owner, Currency: opened.Currency, DailyLimitIDR: opened.DailyLimitIDR, Status: opened.Status,
	}
	if err := cmp.Or(profile.Validate(), ledger.Order{By: opened.By, Note: opened.Note}.Validate()); err != nil {
		return "", false, invalid(err)
	}
	return d.order(ctx, order{event.TypeAccountOpened, id, opened.AccountID, at, opened, ledger.Order{By: opened.By, Note: opened.Note}})
}

// FundAccount implements db.v1.Admin.
func (d *DB) FundAccount(ctx context.Context, in *dbv1.FundAccountRequest) (*dbv1.FundAccountResponse, error) {
	currency, err := money.ParseCurrency(in.GetAmount().GetCurrency())
	if err != nil {
		return nil, invalid(&payment.FieldError{Field: "currency", Problem: err.Error()})
	}
	funding := ledger.Funding{AccountID: in.AccountId, Amount: money.Amount{Minor: in.Amount.Minor, Currency: currency}, Note: in.Note}
	if err := cmp.Or(funding.Validate(), ledger.Order{By: in.By, Note: in.Note}.Validate()); err != nil {
		return nil, invalid(err)
	}
	// The event of a known funding with other content would be a dead letter, and so would that of an
	// account that is not open.
	if in.EventId != "" {
		known, err := d.ledger.KnownFunding(ctx, funding, ledger.Origin{Source: operatorSource, ID: in.EventId})
		if errors.Is(err, ledger.ErrOtherFunding) {
			return nil, status.Error(codes.FailedPrecondition, err.Error())
		}
		if err != nil {
			return nil, translated(err)
		}
		if known {
			return &dbv1.FundAccountResponse{EventId: in.EventId}, nil
		}
	}
	if _, err := d.ledger.Balance(ctx, in.AccountId); err != nil {
		return nil, ofAccount(in.AccountId, err)
	}
	// Earlier releases know only fundings in rupiah.
	eventType, data := event.TypeAccountFundedV2, any(event.AccountFundedV2{
		AccountID: in.AccountId, Currency: currency, Minor: in.Amount.Minor, Note: in.Note, By: in.By,
	})
	if currency == money.IDR {
		eventType, data = event.TypeAccountFunded, event.AccountFunded{AccountID: in.AccountId, AmountIDR: in.Amount.Minor, Note: in.Note, By: in.By}
	}
	id, applied, err := d.order(ctx, order{eventType, in.EventId, in.AccountId, d.now(), data, ledger.Order{By: in.By, Note: in.Note}})
	return &dbv1.FundAccountResponse{EventId: id, Applied: applied}, err
}

// order is an operator's change of an account.
type order struct {
	eventType, id, account string    // id: of the event; empty: a new one
	at                     time.Time // of the event
	data                   any
	by                     ledger.Order
}

// order publishes an operator's event and applies it at once. The event in Kafka is what the books are
// compared with. If it can't be applied now, it is applied when it comes back from there.
func (d *DB) order(ctx context.Context, o order) (eventID string, applied bool, err error) {
	id := cmp.Or(o.id, uuid.NewString())
	if err := payment.CheckID("event_id", id, payment.MaxKey); err != nil {
		return "", false, invalid(err)
	}
	e, err := event.New(o.eventType, id, operatorSource, o.account, o.data, o.at)
	if err == nil {
		err = d.cfg.Keys.Sign(&e)
	}
	if err != nil {
		return "", false, status.Error(codes.Internal, err.Error())
	}
	if err := d.publish.Publish(ctx, d.cfg.Kafka.AccountsTopic, o.account, e); err != nil {
		return "", false, status.Errorf(codes.Unavailable, "it is not known whether event %s was published: repeat the call with this event id: %v", id, err)
	}
	d.tell(ctx, o.by, "an operator has changed an account", "account", payment.Masked(o.account), "type", o.eventType, "event_id", id)
	return d.applyOrder(ctx, e)
}

func (d *DB) applyOrder(ctx context.Context, e cloudevents.Event) (eventID string, done bool, err error) {
	outcome, err := d.applyAccountEvent(ctx, e)
	d.metrics.accountEvents.WithLabelValues(outcome).Inc()
	switch {
	case event.Refused(err):
		return e.ID(), false, status.Error(codes.FailedPrecondition, err.Error())
	case err != nil:
		d.log.WarnContext(ctx, "an operator's event is applied when Kafka delivers it", "event_id", e.ID(), "error", err)
		return e.ID(), false, nil
	}
	return e.ID(), outcome == applied, nil
}

// The number of entries and changes of DescribeAccount, and of changes of ListChanges, if the caller sets
// none.
const (
	defaultDetails = 10
	defaultChanges = 20
)

// DescribeAccount implements db.v1.Admin.
func (d *DB) DescribeAccount(ctx context.Context, in *dbv1.DescribeAccountRequest) (*dbv1.DescribeAccountResponse, error) {
	if err := payment.CheckID("account_id", in.AccountId, payment.MaxAccountID); err != nil {
		return nil, invalid(err)
	}
	a, err := d.ledger.DescribeAccount(ctx, in.AccountId, cmp.Or(int(in.Limit), defaultDetails))
	if err != nil {
		return nil, ofAccount(in.AccountId, err)
	}
	out := &dbv1.DescribeAccountResponse{
		AccountId: a.AccountID, Owner: a.Owner, Currency: a.Currency, Status: string(a.Status), ProfileAt: rpc.Timestamp(a.ProfileAt),
	}
	today := payment.Day(d.now())
	for _, b := range a.Balances {
		out.Balances = append(out.Balances, &commonv1.Balance{
			Currency: b.Currency.String(), AvailableMinor: b.Available, HeldMinor: b.Held, DailyLimitMinor: b.DailyLimit, SpentTodayMinor: b.SpentOn(today),
		})
	}
	for _, e := range a.Entries {
		out.Entries = append(out.Entries, &dbv1.AccountEntry{Currency: e.Currency, Entry: fromEntry(e.Entry)})
	}
	out.Changes = fromChanges(a.Changes)
	return out, nil
}

func fromChanges(changes []ledger.Change) (all []*dbv1.Change) {
	for _, c := range changes {
		all = append(all, &dbv1.Change{
			ChangeId: c.ID.String(), At: rpc.Timestamp(c.At), Kind: string(c.Kind), Subject: c.Subject, Detail: c.Detail, By: c.Order.By, Note: c.Order.Note,
		})
	}
	return all
}

// ListChanges implements db.v1.Admin.
func (d *DB) ListChanges(ctx context.Context, in *dbv1.ListChangesRequest) (*dbv1.ListChangesResponse, error) {
	of := ledger.ChangesOf{Kind: ledger.ChangeKind(in.Kind), Subject: in.Subject, Limit: cmp.Or(int(in.Limit), defaultChanges)}
	if in.PageToken != "" {
		var err error
		if of.Before, err = uuid.Parse(in.PageToken); err != nil {
			return nil, invalid(&payment.FieldError{Field: "page_token", Problem: "is none of this ledger"})
		}
	}
	changes, next, err := d.ledger.Changes(ctx, of)
	if err != nil {
		return nil, translated(err)
	}
	out := &dbv1.ListChangesResponse{Changes: fromChanges(changes)}
	if next != uuid.Nil {
		out.NextPageToken = next.String()
	}
	return out, nil
}
