package db

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
)

// SeedAccounts implements db.v1.Admin.
func (d *DB) SeedAccounts(ctx context.Context, in *dbv1.SeedAccountsRequest) (*dbv1.SeedAccountsResponse, error) {
	accounts := make([]ledger.Seed, len(in.Accounts))
	for i, a := range in.Accounts {
		accounts[i] = ledger.Seed{Profile: ledger.Profile{
			AccountID: a.AccountId, Owner: a.Owner, Currency: a.Currency, DailyLimitIDR: a.DailyLimitIdr,
			Status: payment.AccountStatus(a.Status),
		}, Balances: []money.Amount{{Minor: a.BalanceIdr, Currency: money.IDR}}}
		for _, b := range a.Balances {
			currency, err := money.ParseCurrency(b.Currency)
			if err != nil {
				return nil, invalid(fmt.Errorf("accounts[%d].balances: %w", i, err))
			}
			accounts[i].Balances = append(accounts[i].Balances, money.Amount{Minor: b.Minor, Currency: currency})
		}
	}
	if err := d.ledger.SeedAccounts(ctx, accounts); err != nil {
		return nil, translated(err)
	}
	return &dbv1.SeedAccountsResponse{Upserted: uint32(len(accounts))}, nil
}

// PutRates implements db.v1.Admin. Rates are only added; fx reads the newest rate of each pair.
func (d *DB) PutRates(ctx context.Context, in *dbv1.PutRatesRequest) (*dbv1.PutRatesResponse, error) {
	rates := make([]ledger.Rate, len(in.Rates))
	for i, r := range in.Rates {
		var baseErr, quoteErr, rateErr error
		rates[i].Base, baseErr = money.ParseCurrency(r.Base)
		rates[i].Quote, quoteErr = money.ParseCurrency(r.Quote)
		rates[i].Rate, rateErr = money.ParseRate(r.Rate)
		if err := errors.Join(baseErr, quoteErr, rateErr, readPrice("bid", r.Bid, &rates[i].Bid), readPrice("ask", r.Ask, &rates[i].Ask)); err != nil {
			return nil, invalid(fmt.Errorf("rates[%d]: %w", i, err))
		}
	}
	by := ledger.Order{By: in.By, Note: in.Note}
	ids, err := d.ledger.PutRates(ctx, rates, by)
	if err != nil {
		return nil, translated(err)
	}
	d.tell(ctx, by, "an operator has set rates", "rates", len(rates))
	return &dbv1.PutRatesResponse{RateIds: ids}, nil
}

// readPrice reads a bid or an ask. It stays zero if the text is empty.
func readPrice(field, text string, into *money.Rate) error {
	if err := into.UnmarshalText([]byte(text)); err != nil {
		return &payment.FieldError{Field: field, Problem: err.Error()}
	}
	return nil
}

// PutRules implements db.v1.Admin.
func (d *DB) PutRules(ctx context.Context, in *dbv1.PutRulesRequest) (*dbv1.PutRulesResponse, error) {
	by := ledger.Order{By: in.By, Note: in.Note}
	id, err := d.ledger.PutRules(ctx, in.Rules, in.ExpectedRuleSet, by)
	if errors.Is(err, ledger.ErrOtherRules) {
		return nil, status.Error(codes.Aborted, ledger.ErrOtherRules.Error())
	}
	if err != nil {
		return nil, translated(err)
	}
	d.tell(ctx, by, "an operator has set the rules", "rule_set", id)
	return &dbv1.PutRulesResponse{RuleSet: id}, nil
}

// SetLiquidity implements db.v1.Admin.
func (d *DB) SetLiquidity(ctx context.Context, in *dbv1.SetLiquidityRequest) (*dbv1.SetLiquidityResponse, error) {
	currency, err := money.ParseCurrency(in.Currency)
	if err != nil {
		return nil, invalid(err)
	}
	by := ledger.Order{By: in.By, Note: in.Note}
	changed, err := d.ledger.SetLiquidity(ctx, money.Amount{Minor: in.AvailableMinor, Currency: currency}, in.PositionLimitMinor, in.OnlyMissing, by)
	if err != nil {
		return nil, translated(err)
	}
	if changed {
		d.tell(ctx, by, "an operator has set the liquidity", "currency", currency.String())
	}
	return &dbv1.SetLiquidityResponse{Changed: changed}, nil
}

// Sweep implements db.v1.Admin.
func (d *DB) Sweep(ctx context.Context, _ *dbv1.SweepRequest) (*dbv1.SweepResponse, error) {
	swept, err := d.sweep(ctx)
	if err != nil {
		return nil, translated(err)
	}
	return &dbv1.SweepResponse{RolledBack: uint32(swept.RolledBack), Told: uint32(swept.Published)}, nil
}

// RecordDeadLetterAction implements db.v1.Admin.
func (d *DB) RecordDeadLetterAction(ctx context.Context, in *dbv1.RecordDeadLetterActionRequest) (*dbv1.RecordDeadLetterActionResponse, error) {
	a := in.GetAction()
	if a == nil {
		return nil, invalid(&payment.FieldError{Field: "action", Problem: "is missing"})
	}
	id := uuid.Nil
	if a.ActionId != "" {
		var err error
		if id, err = uuid.Parse(a.ActionId); err != nil {
			return nil, invalid(&payment.FieldError{Field: "action_id", Problem: "is not a UUID"})
		}
	}
	err := d.ledger.RecordAction(ctx, ledger.DeadLetterAction{
		ID: id, LetterID: a.LetterId, Ordinal: a.Ordinal, Topic: a.Topic, Partition: a.Partition, Offset: a.Offset, EventID: a.EventId, EventKey: a.EventKey,
		Action: ledger.Action(a.Action), Operator: a.Operator, Note: a.Note,
	})
	if errors.Is(err, ledger.ErrActed) {
		return nil, status.Error(codes.AlreadyExists, err.Error())
	}
	if err != nil {
		return nil, translated(err)
	}
	return &dbv1.RecordDeadLetterActionResponse{}, nil
}

// ListDeadLetterActions implements db.v1.Admin.
func (d *DB) ListDeadLetterActions(ctx context.Context, in *dbv1.ListDeadLetterActionsRequest) (*dbv1.ListDeadLetterActionsResponse, error) {
	after := uuid.Nil
	if in.PageToken != "" {
		var err error
		if after, err = uuid.Parse(in.PageToken); err != nil {
			return nil, invalid(&payment.FieldError{Field: "page_token", Problem: "is none of this ledger"})
		}
	}
	actions, next, err := d.ledger.Actions(ctx, in.Topic, after)
	if err != nil {
		return nil, translated(err)
	}
	out := &dbv1.ListDeadLetterActionsResponse{}
	for _, a := range actions {
		out.Actions = append(out.Actions, &dbv1.DeadLetterAction{
			Topic: a.Topic, Partition: a.Partition, Offset: a.Offset, EventId: a.EventID, EventKey: a.EventKey,
			Action: string(a.Action), Operator: a.Operator, Note: a.Note, ActedAt: timestamppb.New(a.ActedAt),
			LetterId: a.LetterID, Ordinal: a.Ordinal, ActionId: a.ID.String(),
		})
	}
	if next != uuid.Nil {
		out.NextPageToken = next.String()
	}
	return out, nil
}
