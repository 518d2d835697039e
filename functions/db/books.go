package db

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// BalancesAt implements db.v1.Db.
func (d *DB) BalancesAt(ctx context.Context, in *dbv1.BalancesAtRequest) (*dbv1.BalancesAtResponse, error) {
	if err := payment.CheckID("account_id", in.AccountId, payment.MaxAccountID); err != nil {
		return nil, invalid(err)
	}
	if in.At == nil {
		return nil, invalid(&payment.FieldError{Field: "at", Problem: "is missing"})
	}
	balances, err := d.ledger.BalancesAt(ctx, in.AccountId, rpc.Time(in.At))
	if err != nil {
		return nil, ofAccount(in.AccountId, err)
	}
	out := &dbv1.BalancesAtResponse{}
	for _, b := range balances {
		out.Balances = append(out.Balances, &commonv1.Amount{Minor: b.Minor, Currency: b.Currency.String()})
	}
	return out, nil
}

// ofAccount translates the error of a read of one account.
func ofAccount(id string, err error) error {
	if errors.Is(err, ledger.ErrNotFound) {
		return status.Errorf(codes.NotFound, "there is no account %s", id)
	}
	return translated(err)
}

// defaultStatement is the number of entries on a page of a statement if the caller sets none.
const defaultStatement = 100

// Statement implements db.v1.Db.
func (d *DB) Statement(ctx context.Context, in *dbv1.StatementRequest) (*dbv1.StatementResponse, error) {
	of, err := d.statementOf(in)
	if err != nil {
		return nil, invalid(err)
	}
	page, err := d.ledger.Statement(ctx, of)
	if err != nil {
		return nil, ofAccount(in.AccountId, err)
	}
	out := &dbv1.StatementResponse{
		From: rpc.Timestamp(page.From), To: rpc.Timestamp(page.To), OpeningMinor: page.Opening, ClosingMinor: page.Closing,
		Entries: make([]*dbv1.Entry, len(page.Entries)),
	}
	for i, e := range page.Entries {
		out.Entries[i] = fromEntry(e)
	}
	if page.Next != nil {
		if out.NextCursor, err = d.cursorText(*page.Next, of); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	return out, nil
}

func fromEntry(e ledger.Entry) *dbv1.Entry {
	return &dbv1.Entry{
		BookedAt: rpc.Timestamp(e.BookedAt), ValueDate: e.ValueDate.Format(time.DateOnly), TransactionId: e.Transaction.String(),
		Kind: string(e.Kind), AmountMinor: e.Amount, BalanceMinor: e.Balance, Client: e.Client,
	}
}

func (d *DB) statementOf(in *dbv1.StatementRequest) (of ledger.StatementOf, err error) {
	of = ledger.StatementOf{Account: in.AccountId, From: rpc.Time(in.From), To: rpc.Time(in.To), Limit: int(in.Limit)}
	if err := payment.CheckID("account_id", in.AccountId, payment.MaxAccountID); err != nil {
		return of, err
	}
	if of.Currency, err = money.ParseCurrency(in.Currency); err != nil {
		return of, err
	}
	if of.Limit == 0 {
		of.Limit = defaultStatement
	}
	if in.Cursor != "" {
		of.After, err = d.cursorOf(in.Cursor, of)
	}
	return of, err
}

// cursorPurpose distinguishes the tokens of cursors.
const cursorPurpose = "statement"

// cursorText returns a cursor as a token, because the next page begins with the balance that the
// cursor has. Without a signature, a client could have the bank confirm any balance.
func (d *DB) cursorText(c ledger.Cursor, of ledger.StatementOf) (string, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	return d.cfg.Keys.Token(text, cursorPurpose, of.Account, of.Currency.String())
}

func (d *DB) cursorOf(token string, of ledger.StatementOf) (*ledger.Cursor, error) {
	var c ledger.Cursor
	text, err := d.cfg.Keys.OpenToken(token, cursorPurpose, of.Account, of.Currency.String())
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		return nil, &payment.FieldError{Field: "cursor", Problem: fmt.Sprintf("is not of a statement of %s in %s", of.Account, of.Currency)}
	}
	return &c, nil
}

// TrialBalance implements db.v1.Db.
func (d *DB) TrialBalance(ctx context.Context, _ *dbv1.TrialBalanceRequest) (*dbv1.TrialBalanceResponse, error) {
	trial, err := d.ledger.TrialBalance(ctx)
	if err != nil {
		return nil, translated(err)
	}
	out := &dbv1.TrialBalanceResponse{At: rpc.Timestamp(trial.At)}
	for _, c := range trial.Currencies {
		of := &dbv1.CurrencyTrial{
			Currency: c.Currency.String(), SumMinor: c.Sum, Accounts: c.Accounts, AvailableMinor: c.Available, HeldMinor: c.Held,
		}
		for _, h := range c.House {
			of.House = append(of.House, &dbv1.HouseBalance{
				AccountId: h.Account, AvailableMinor: h.Available, HeldMinor: h.Held, PositionMinor: h.Position, PositionLimitMinor: h.PositionLimit,
			})
		}
		out.Currencies = append(out.Currencies, of)
	}
	return out, nil
}
