// Package wallet reads accounts. It cannot write to the database; it sends holds and captures to
// the ledger.
package wallet

import (
	"cmp"
	"context"
	"errors"
	"slices"
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
	DatabaseURL string          `envconfig:"DATABASE_URL" required:"true" desc:"URL of the ledger's Postgres; wallet only reads"`
	Schema      postgres.Schema `envconfig:"LEDGER_SCHEMA" desc:"the ledger's schema, if several ledgers share the database; empty: the usual one"`
	Standby     postgres.Standby
	QueueMax    int `envconfig:"QUEUE_MAX" default:"4096" desc:"the most reads that wait for a batch; further reads are refused"`
}

const (
	// maxRandom is the most accounts of one GetRandomAccounts, and maxAccounts of one GetAccounts.
	maxRandom, maxAccounts = 100, 100
	// pickWithin is the time limit of GetRandomAccounts, including its wait for a connection.
	pickWithin = 5 * time.Second
)

// Wallet is the function.
type Wallet struct {
	walletv1.UnimplementedWalletServiceServer
	walletv1.UnimplementedAdminServer

	picks *ledger.Reader // for random accounts, which therefore never delay the reads of payments
	reads *batch.Batcher[[]lookup, []found]
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
	outage, url := postgres.NewOutage(on.Log, on.Now), cfg.Schema.In(cfg.DatabaseURL)
	reader, err := ledger.OpenReader(postgres.Config{
		URL: url, Name: "wallet", Lookups: true, MaxConns: 4, Registerer: on.Registry, Outage: outage,
	}, cfg.Standby, on.Log)
	if err != nil {
		return nil, err
	}
	picks, err := ledger.OpenReader(postgres.Config{
		URL: url, Name: "wallet", Pool: "picks", Lookups: true, MaxConns: 2, Registerer: on.Registry, Outage: outage,
	}, cfg.Standby, on.Log)
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
		func(ctx context.Context, calls [][]lookup) []batch.Result[[]found] {
			return readCalls(ctx, reader, calls)
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

// lookup asks for one account.
type lookup struct {
	id      string
	current bool // not from a standby
}

// found is an account; nil: there is none.
type found struct {
	account *ledger.Account
	behind  bool // a standby has answered
}

// accounts reads accounts for a batch.
type accounts interface {
	Accounts(ctx context.Context, ids []string) (accounts map[string]ledger.Account, behind bool, err error)
	CurrentAccounts(ctx context.Context, ids []string) (map[string]ledger.Account, error)
}

// readCalls reads the accounts of all calls of a batch together. A call gets all of its accounts or an error.
func readCalls(ctx context.Context, from accounts, calls [][]lookup) []batch.Result[[]found] {
	read := readAll(ctx, from, slices.Concat(calls...))
	results := make([]batch.Result[[]found], len(calls))
	for i, call := range calls {
		for _, r := range read[:len(call)] {
			results[i].Value = append(results[i].Value, r.Value)
			results[i].Err = cmp.Or(results[i].Err, r.Err)
		}
		read = read[len(call):]
	}
	return results
}

// readAll reads accounts in one query. What a standby does not have is looked for at the primary, and so is
// what has to be current.
func readAll(ctx context.Context, from accounts, asked []lookup) []batch.Result[found] {
	var ids, again []string
	for _, a := range asked {
		if a.current {
			again = append(again, a.id)
		} else {
			ids = append(ids, a.id)
		}
	}
	var first, current map[string]ledger.Account
	var behind bool
	var firstErr, err error
	if len(ids) > 0 {
		first, behind, firstErr = from.Accounts(ctx, ids)
	}
	if behind && firstErr == nil {
		for _, id := range ids {
			if _, exists := first[id]; !exists {
				again = append(again, id)
			}
		}
	}
	if len(again) > 0 {
		current, err = from.CurrentAccounts(ctx, again)
	}
	results := make([]batch.Result[found], len(asked))
	for i, a := range asked {
		r := &results[i]
		got, exists := first[a.id]
		switch {
		case a.current, behind && !exists:
			got, exists = current[a.id]
			r.Err = err
		default:
			r.Err, r.Value.behind = firstErr, behind
		}
		if exists && r.Err == nil {
			r.Value.account = &got
		}
	}
	return results
}

// read reads accounts in the order in which they are asked for.
func (w *Wallet) read(ctx context.Context, asked ...lookup) ([]found, error) {
	for _, a := range asked {
		if err := payment.CheckID("account_id", a.id, payment.MaxAccountID); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	read, err := w.reads.Do(ctx, asked)
	switch {
	case errors.Is(err, batch.ErrFull):
		return nil, status.Error(codes.ResourceExhausted, "too many reads are waiting: try again later")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil, status.FromContextError(err).Err()
	case err != nil:
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return read, nil
}

func (w *Wallet) account(ctx context.Context, asked lookup) (found, error) {
	read, err := w.read(ctx, asked)
	switch {
	case err != nil:
		return found{}, err
	case read[0].account == nil:
		return found{}, status.Errorf(codes.NotFound, "there is no account %s", asked.id)
	}
	return read[0], nil
}

// GetAccount implements wallet.v1.WalletService.
func (w *Wallet) GetAccount(ctx context.Context, in *walletv1.GetAccountRequest) (*walletv1.GetAccountResponse, error) {
	a, err := w.account(ctx, lookup{in.AccountId, in.Current})
	if err != nil {
		return nil, err
	}
	return w.described(a), nil
}

// GetAccounts implements wallet.v1.WalletService.
func (w *Wallet) GetAccounts(ctx context.Context, in *walletv1.GetAccountsRequest) (*walletv1.GetAccountsResponse, error) {
	if len(in.AccountIds) > maxAccounts {
		return nil, status.Errorf(codes.InvalidArgument, "account_ids: are %d; at most %d", len(in.AccountIds), maxAccounts)
	}
	asked := make([]lookup, len(in.AccountIds))
	for i, id := range in.AccountIds {
		asked[i] = lookup{id, in.Current}
	}
	read, err := w.read(ctx, asked...)
	if err != nil {
		return nil, err
	}
	out := &walletv1.GetAccountsResponse{Accounts: make([]*walletv1.GetAccountResponse, len(read))}
	for i, a := range read {
		out.Accounts[i] = w.described(a)
	}
	return out, nil
}

// described returns what is known of an account. The answer for one that does not exist is empty.
func (w *Wallet) described(f found) *walletv1.GetAccountResponse {
	a := f.account
	if a == nil {
		return &walletv1.GetAccountResponse{}
	}
	rupiah, today := a.In(money.IDR), payment.Day(w.now())
	out := &walletv1.GetAccountResponse{
		AccountId: a.ID, BalanceIdr: rupiah.Available, Currency: commonv1.Currency(commonv1.Currency_value[a.Currency]),
		CurrencyCode: a.Currency, Status: string(a.Status), DailyLimitIdr: rupiah.DailyLimit, SpentTodayIdr: rupiah.SpentOn(today),
		Behind: f.behind,
	}
	for _, b := range a.Balances {
		out.Balances = append(out.Balances, &commonv1.Balance{
			Currency: b.Currency.String(), AvailableMinor: b.Available, HeldMinor: b.Held,
			DailyLimitMinor: b.DailyLimit, SpentTodayMinor: b.SpentOn(today),
		})
	}
	return out
}

// GetBalance implements wallet.v1.WalletService.
func (w *Wallet) GetBalance(ctx context.Context, in *walletv1.GetBalanceRequest) (*walletv1.GetBalanceResponse, error) {
	a, err := w.account(ctx, lookup{id: in.AccountId, current: true})
	if err != nil {
		return nil, err
	}
	return &walletv1.GetBalanceResponse{BalanceMinor: a.account.In(money.IDR).Available, Currency: commonv1.Currency_IDR}, nil
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

// Reserve implements wallet.v1.WalletService. A hold is an authorized payment to the house that lasts as
// long as a payment may be on its way.
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

// Capture implements wallet.v1.WalletService. It captures a hold as a whole. The ledger refuses a client's
// authorized payment: only the client's own capture pays from that.
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
