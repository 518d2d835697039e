// Package wallet reads accounts. It cannot write to the database; it sends holds and captures to
// the ledger.
package wallet

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/batch"
	"pgw/shared/function"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
	"pgw/shared/rpc"
)

// Config of the function.
type Config struct {
	DatabaseURL string `envconfig:"DATABASE_URL" required:"true" desc:"URL of the ledger's Postgres; wallet only reads"`
	QueueMax    int    `envconfig:"QUEUE_MAX" default:"4096" desc:"the most reads that wait for a batch; further reads are refused"`
}

const (
	// maxRandom is the most accounts of one GetRandomAccounts.
	maxRandom = 100
	// pickWithin is the time limit of GetRandomAccounts, including its wait for a connection.
	pickWithin = 5 * time.Second
)

// Wallet is the function.
type Wallet struct {
	walletv1.UnimplementedWalletServiceServer
	walletv1.UnimplementedAdminServer

	picks *ledger.Reader // for random accounts, which therefore never delay the reads of payments
	reads *batch.Batcher[string, *ledger.Account]
	db    dbv1.DbClient
	admin dbv1.AdminClient
	fx    fxv1.FxServiceClient
	now   func() time.Time
}

// Function describes wallet.
var Function = function.Describe(function.Function{
	Name: "wallet", About: "looks up accounts and holds funds",
	Port: "19093", Calls: map[string]string{"db": "changes accounts", "fx": "prices holds"},
}, build)

func build(cfg Config, on function.Dependencies) (*function.Service, error) {
	outage := postgres.NewOutage(on.Log, on.Now)
	reader, err := ledger.OpenReader(postgres.Config{
		URL: cfg.DatabaseURL, Name: "wallet", Lookups: true, MaxConns: 4, Registerer: on.Registry, Outage: outage,
	})
	if err != nil {
		return nil, err
	}
	picks, err := ledger.OpenReader(postgres.Config{
		URL: cfg.DatabaseURL, Name: "wallet", Pool: "picks", Lookups: true, MaxConns: 2, Registerer: on.Registry, Outage: outage,
	})
	if err != nil {
		reader.Close()
		return nil, err
	}
	db := on.Conns["db"]
	w := &Wallet{
		picks: picks, db: dbv1.NewDbClient(db), admin: dbv1.NewAdminClient(db),
		fx: fxv1.NewFxServiceClient(on.Conns["fx"]), now: on.Now,
	}
	// One lane is enough: reads are short, and a query for many accounts costs little more than a
	// query for one.
	w.reads = batch.New(batch.Config{Max: 256, Lanes: 1, Queue: cfg.QueueMax, Kind: "account", Registerer: on.Registry},
		func(ctx context.Context, ids []string) []batch.Result[*ledger.Account] {
			return readAll(ctx, reader, ids)
		})
	return &function.Service{
		GRPC: func(r grpc.ServiceRegistrar) {
			walletv1.RegisterWalletServiceServer(r, w)
			walletv1.RegisterAdminServer(r, w)
		},
		Ready: reader.Ready,
		Close: func(ctx context.Context) error {
			err := w.reads.Close(ctx)
			reader.Close()
			picks.Close()
			return err
		},
	}, nil
}

// readAll reads the accounts of all calls of a batch in one query. A call for an unknown account
// gets nil.
func readAll(ctx context.Context, from *ledger.Reader, ids []string) []batch.Result[*ledger.Account] {
	results := make([]batch.Result[*ledger.Account], len(ids))
	found, err := from.Accounts(ctx, ids)
	for i, id := range ids {
		if results[i].Err = err; err == nil {
			if a, exists := found[id]; exists {
				results[i].Value = &a
			}
		}
	}
	return results
}

func (w *Wallet) account(ctx context.Context, id string) (*ledger.Account, error) {
	if err := payment.CheckID("account_id", id, payment.MaxAccountID); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	a, err := w.reads.Do(ctx, id)
	switch {
	case errors.Is(err, batch.ErrFull):
		return nil, status.Error(codes.ResourceExhausted, "too many reads are waiting: try again later")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil, status.FromContextError(err).Err()
	case err != nil:
		return nil, status.Error(codes.Unavailable, err.Error())
	case a == nil:
		return nil, status.Errorf(codes.NotFound, "there is no account %s", id)
	}
	return a, nil
}

// GetAccount implements wallet.v1.WalletService.
func (w *Wallet) GetAccount(ctx context.Context, in *walletv1.GetAccountRequest) (*walletv1.GetAccountResponse, error) {
	a, err := w.account(ctx, in.AccountId)
	if err != nil {
		return nil, err
	}
	rupiah, today := a.In(money.IDR), payment.Day(w.now())
	out := &walletv1.GetAccountResponse{
		AccountId: a.ID, BalanceIdr: rupiah.Available, Currency: commonv1.Currency(commonv1.Currency_value[a.Currency]),
		CurrencyCode: a.Currency, Status: string(a.Status), DailyLimitIdr: rupiah.DailyLimit, SpentTodayIdr: rupiah.SpentOn(today),
	}
	for _, b := range a.Balances {
		out.Balances = append(out.Balances, &commonv1.Balance{
			Currency: b.Currency.String(), AvailableMinor: b.Available, HeldMinor: b.Held,
			DailyLimitMinor: b.DailyLimit, SpentTodayMinor: b.SpentOn(today),
		})
	}
	return out, nil
}

// GetBalance implements wallet.v1.WalletService.
func (w *Wallet) GetBalance(ctx context.Context, in *walletv1.GetBalanceRequest) (*walletv1.GetBalanceResponse, error) {
	a, err := w.account(ctx, in.AccountId)
	if err != nil {
		return nil, err
	}
	return &walletv1.GetBalanceResponse{BalanceMinor: a.In(money.IDR).Available, Currency: commonv1.Currency_IDR}, nil
}

// GetRandomAccounts implements wallet.v1.WalletService.
func (w *Wallet) GetRandomAccounts(ctx context.Context, in *walletv1.GetRandomAccountsRequest) (*walletv1.GetRandomAccountsResponse, error) {
	n := in.Count
	if n == 0 {
		n = 2
	}
	if n > maxRandom {
		return nil, status.Errorf(codes.InvalidArgument, "count: is %d; at most %d", n, maxRandom)
	}
	ctx, cancel := context.WithTimeout(ctx, pickWithin)
	defer cancel()
	ids, err := w.picks.RandomAccounts(ctx, int(n))
	if ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &walletv1.GetRandomAccountsResponse{AccountIds: ids}, nil
}

// holdKey returns the key of a wallet hold. The prefix keeps it different from the keys of
// payments.
func holdKey(paymentID string) string { return payment.HoldPrefix + paymentID }

// Reserve implements wallet.v1.WalletService.
func (w *Wallet) Reserve(ctx context.Context, in *walletv1.ReserveRequest) (*walletv1.ReserveResponse, error) {
	currency, err := money.ParseCurrency(in.Currency.String())
	if err != nil {
		return &walletv1.ReserveResponse{Reason: string(payment.UnsupportedCurrency)}, nil
	}
	if in.AmountMinor <= 0 || in.AmountMinor > money.MaxMinor || payment.IsHouse(in.AccountId) ||
		payment.CheckID("payment_id", in.PaymentId, payment.MaxKey-len(holdKey(""))) != nil {
		return &walletv1.ReserveResponse{Reason: string(payment.InvalidInput)}, nil
	}
	price, err := w.fx.Convert(ctx, rpc.InRupiah(money.Amount{Minor: in.AmountMinor, Currency: currency}))
	if status.Code(err) == codes.NotFound {
		return &walletv1.ReserveResponse{Reason: string(payment.UnsupportedCurrency)}, nil
	}
	if err != nil {
		return nil, err
	}
	hold, err := rpc.Priced(payment.Payment{
		Key: holdKey(in.PaymentId), Sender: in.AccountId, Receiver: payment.SettlementAccount,
		Currency: currency, Minor: in.AmountMinor,
	}, price)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	got, err := w.db.Hold(ctx, rpc.FromPayment(hold))
	if err != nil {
		return nil, err
	}
	outcome, err := rpc.ToOutcome(got)
	switch {
	case err != nil:
		return nil, status.Errorf(codes.Internal, "the ledger's answer cannot be used: %v", err)
	case outcome.Status == payment.Failed:
		return &walletv1.ReserveResponse{Reason: string(outcome.Reason)}, nil
	}
	return &walletv1.ReserveResponse{Ok: true, ReservationId: outcome.Ref}, nil
}

// Capture implements wallet.v1.WalletService.
func (w *Wallet) Capture(ctx context.Context, in *walletv1.CaptureRequest) (*walletv1.CaptureResponse, error) {
	got, err := w.db.CommitReservation(ctx, &dbv1.CommitReservationRequest{ReservationId: in.ReservationId})
	if err != nil {
		return nil, err
	}
	if got.Status == dbv1.TxStatus_OK || got.Status == dbv1.TxStatus_DUPLICATE {
		return &walletv1.CaptureResponse{Ok: true}, nil
	}
	reason := got.Reason
	if reason == "" {
		reason = got.Message
	}
	return &walletv1.CaptureResponse{Reason: reason}, nil
}

// SeedAccounts implements wallet.v1.Admin.
func (w *Wallet) SeedAccounts(ctx context.Context, in *walletv1.SeedAccountsRequest) (*walletv1.SeedAccountsResponse, error) {
	put := &dbv1.SeedAccountsRequest{Accounts: make([]*dbv1.Account, len(in.Accounts))}
	for i, a := range in.Accounts {
		balance, err := money.FromFloat(a.Balance, money.IDR)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "accounts[%d].balance: %v", i, err)
		}
		limit, err := money.FromFloat(a.DailyLimit, money.IDR)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "accounts[%d].daily_limit: %v", i, err)
		}
		put.Accounts[i] = &dbv1.Account{
			AccountId: a.AccountId, Owner: a.Owner, Currency: a.Currency, Status: a.Status,
			BalanceIdr: balance.Minor, DailyLimitIdr: limit.Minor,
		}
		if a.Currency == "" {
			put.Accounts[i].Currency = money.IDR.String()
		}
		if a.Status == "" {
			put.Accounts[i].Status = string(payment.Active)
		}
	}
	got, err := w.admin.SeedAccounts(ctx, put)
	if err != nil {
		return nil, err
	}
	return &walletv1.SeedAccountsResponse{Upserted: got.Upserted}, nil
}
