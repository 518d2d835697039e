package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// operatorSource is the source of the events by which operators open and fund accounts.
const operatorSource = "/pgw/operators"

// publishWithin is the time limit of publishing an event.
const publishWithin = 30 * time.Second

type accountCommand struct {
	Open openAccount `cmd:"" help:"Open an account, or replace its profile."`
	Fund fundAccount `cmd:"" help:"Add money that came in from outside to an account."`
}

// accountFlags are common to the commands that change one account.
type accountFlags struct {
	operatorFlags
	Account  string `arg:"" help:"The account's id."`
	Currency string `default:"IDR" help:"The currency: its ISO 4217 code."`
	ID       string `name:"id" help:"The event's id, new by default. An id counts once: repeat a command whose result is unknown with the id that it printed."`
}

// check returns the currency.
func (f accountFlags) check() (money.Currency, error) {
	if payment.IsHouse(f.Account) {
		return money.Currency{}, fmt.Errorf("%s is the house's own: pgw liquidity sets what the house has to exchange", f.Account)
	}
	if err := payment.CheckID("account", f.Account, payment.MaxAccountID); err != nil {
		return money.Currency{}, err
	}
	if f.ID != "" {
		if err := payment.CheckID("id", f.ID, payment.MaxKey); err != nil {
			return money.Currency{}, err
		}
	}
	return money.ParseCurrency(f.Currency)
}

// publish signs the event and publishes it to the topic of account events.
func (f accountFlags) publish(ctx context.Context, e cloudevents.Event) error {
	cfg, _, err := f.config()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, publishWithin)
	defer cancel()
	producer, err := kafka.NewProducer(cfg.Kafka, "account")
	if err != nil {
		return err
	}
	err = event.Outbox{Keys: &cfg.Keys, To: producer}.Send(ctx, cfg.Kafka.AccountsTopic, e)
	if err = errors.Join(err, producer.Close(ctx)); err != nil {
		return fmt.Errorf("event %s: %w", e.ID(), err)
	}
	fmt.Printf("%s %s is on its way through %s\n", e.Type(), e.ID(), cfg.Kafka.AccountsTopic)
	return nil
}

type openAccount struct {
	accountFlags
	Owner      string `required:"" help:"The owner's name."`
	DailyLimit int64  `name:"daily-limit-idr" help:"The most rupiah that the account may send in one UTC day; 0: no limit."`
	Blocked    bool   `help:"The account can neither send nor receive."`
}

func (c openAccount) Run(ctx context.Context) error {
	e, err := c.event(time.Now(), uuid.NewString())
	if err != nil {
		return err
	}
	return c.publish(ctx, e)
}

// event makes the event that opens the account. newID is its id if the operator gave none.
func (c openAccount) event(now time.Time, newID string) (cloudevents.Event, error) {
	currency, err := c.check()
	if err == nil {
		err = payment.CheckText("owner", c.Owner, payment.MaxOwner)
	}
	if err == nil && (c.DailyLimit < 0 || c.DailyLimit > money.MaxMinor) {
		err = fmt.Errorf("--daily-limit-idr must be between 0 and %d", int64(money.MaxMinor))
	}
	if err != nil {
		return cloudevents.Event{}, err
	}
	status := payment.Active
	if c.Blocked {
		status = payment.Blocked
	}
	return event.New(event.TypeAccountOpened, c.id(newID), operatorSource, c.Account, event.AccountOpened{
		AccountID: c.Account, Owner: c.Owner, Currency: currency.String(), DailyLimitIDR: c.DailyLimit, Status: status,
	}, now)
}

func (f accountFlags) id(newID string) string {
	if f.ID != "" {
		return f.ID
	}
	return newID
}

type fundAccount struct {
	accountFlags
	Amount string `arg:"" help:"The amount in major units, such as 1000.50."`
	Note   string `help:"Where the money comes from; is recorded."`
}

func (c fundAccount) Run(ctx context.Context) error {
	e, err := c.event(time.Now(), uuid.NewString())
	if err != nil {
		return err
	}
	return c.publish(ctx, e)
}

// event makes the event that funds the account: of v1 for rupiah, which earlier releases know, and of
// v2 otherwise. newID is its id if the operator gave none.
func (c fundAccount) event(now time.Time, newID string) (cloudevents.Event, error) {
	currency, err := c.check()
	if err == nil {
		err = payment.CheckText("note", c.Note, payment.MaxNote)
	}
	if err != nil {
		return cloudevents.Event{}, err
	}
	amount, err := money.ParseAmount(c.Amount, currency)
	if err != nil {
		return cloudevents.Event{}, err
	}
	if amount.Minor <= 0 {
		return cloudevents.Event{}, fmt.Errorf("the amount is %s; it must be more than zero", amount)
	}
	if currency == money.IDR {
		return event.New(event.TypeAccountFunded, c.id(newID), operatorSource, c.Account,
			event.AccountFunded{AccountID: c.Account, AmountIDR: amount.Minor, Note: c.Note}, now)
	}
	return event.New(event.TypeAccountFundedV2, c.id(newID), operatorSource, c.Account,
		event.AccountFundedV2{AccountID: c.Account, Currency: currency, Minor: amount.Minor, Note: c.Note}, now)
}

// noLimit is the position limit that means none.
const noLimit = "none"

type liquidityCommand struct {
	operatorFlags
	Currency      string `arg:"" help:"The currency: its ISO 4217 code."`
	Available     string `arg:"" help:"What the house can exchange afterwards, in major units. The difference is booked as a funding or a withdrawal."`
	PositionLimit string `required:"" help:"How much more exchanges may take than they bring, in major units, or none."`
}

func (c liquidityCommand) Run(ctx context.Context) error {
	set, err := c.request()
	if err != nil {
		return err
	}
	cfg, at, err := c.config()
	if err != nil {
		return err
	}
	callers, err := cfg.RPC.Open(slog.Default())
	if err != nil {
		return err
	}
	conns, err := dial(at, callers, "db")
	if err != nil {
		return err
	}
	defer conns["db"].Close()
	ctx, cancel := context.WithTimeout(ctx, publishWithin)
	defer cancel()
	_, err = dbv1.NewAdminClient(conns["db"]).SetLiquidity(ctx, set)
	return err
}

func (c liquidityCommand) request() (*dbv1.SetLiquidityRequest, error) {
	currency, err := money.ParseCurrency(c.Currency)
	if err != nil {
		return nil, err
	}
	available, err := money.ParseAmount(c.Available, currency)
	if err != nil {
		return nil, err
	}
	set := &dbv1.SetLiquidityRequest{Currency: currency.String(), AvailableMinor: available.Minor}
	if c.PositionLimit != noLimit {
		limit, err := money.ParseAmount(c.PositionLimit, currency)
		if err != nil {
			return nil, fmt.Errorf("--position-limit: %w", err)
		}
		set.PositionLimitMinor = &limit.Minor
	}
	return set, nil
}
