package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/money"
)

// noLimit is the position limit that means none.
const noLimit = "none"

type liquidityCommand struct {
	operatorFlags
	changeFlags
	Currency      string `arg:"" help:"The currency: its ISO 4217 code."`
	Available     string `arg:"" help:"What the house can exchange afterwards, in major units. The difference is booked as a funding or a withdrawal."`
	PositionLimit string `required:"" help:"How much more exchanges may take than they bring, in major units, or none."`
}

func (c liquidityCommand) Run(ctx context.Context) error {
	set, err := c.request()
	if err != nil {
		return err
	}
	return c.call(ctx, "db", func(ctx context.Context, db grpc.ClientConnInterface) error {
		_, err := dbv1.NewAdminClient(db).SetLiquidity(ctx, set)
		if err == nil {
			_, err = fmt.Printf("the house can exchange %s %s, and its position limit is %s\n", set.Currency, c.Available, c.PositionLimit)
		}
		return err
	})
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
	if err := c.changeFlags.check(); err != nil {
		return nil, err
	}
	set := &dbv1.SetLiquidityRequest{Currency: currency.String(), AvailableMinor: available.Minor, By: c.who(), Note: c.Note}
	if c.PositionLimit != noLimit {
		limit, err := money.ParseAmount(c.PositionLimit, currency)
		if err != nil {
			return nil, fmt.Errorf("--position-limit: %w", err)
		}
		set.PositionLimitMinor = &limit.Minor
	}
	return set, nil
}
