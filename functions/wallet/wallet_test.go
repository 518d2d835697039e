package wallet

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/function"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

var errDown = status.Error(codes.Unavailable, "down")

// fakeLedger is a fake of db. It answers as it is told, and notes what it is asked.
type fakeLedger struct {
	dbv1.UnimplementedDbServer
	dbv1.UnimplementedAdminServer

	outcome   *commonv1.Outcome
	committed *dbv1.CommitReservationResponse
	err       error
	holds     []*commonv1.Payment
	accounts  []*dbv1.Account
}

func (l *fakeLedger) Hold(_ context.Context, in *commonv1.Payment) (*commonv1.Outcome, error) {
	l.holds = append(l.holds, in)
	return l.outcome, l.err
}

func (l *fakeLedger) CommitReservation(context.Context, *dbv1.CommitReservationRequest) (*dbv1.CommitReservationResponse, error) {
	return l.committed, l.err
}

func (l *fakeLedger) SeedAccounts(_ context.Context, in *dbv1.SeedAccountsRequest) (*dbv1.SeedAccountsResponse, error) {
	l.accounts = in.Accounts
	return &dbv1.SeedAccountsResponse{Upserted: uint32(len(in.Accounts))}, l.err
}

// rates is a fake of fx.
type rates struct {
	fxv1.UnimplementedFxServiceServer
	err error
}

func (r rates) Convert(_ context.Context, in *fxv1.ConvertRequest) (*fxv1.ConvertResponse, error) {
	return &fxv1.ConvertResponse{AmountMinor: *in.AmountMinor * 155, Rate: "15500", RateId: "rate"}, r.err
}

// newWallet makes the function. Nothing here reads the database.
func newWallet(t *testing.T, l *fakeLedger, fx rates) grpc.ClientConnInterface {
	t.Helper()
	f, err := Function.Make(Config{DatabaseURL: "postgres://nowhere.invalid/", QueueMax: 1}, function.Dependencies{
		Conns: map[string]grpc.ClientConnInterface{
			"db": rpc.InProcess(func(r grpc.ServiceRegistrar) {
				dbv1.RegisterDbServer(r, l)
				dbv1.RegisterAdminServer(r, l)
			}, nil),
			"fx": rpc.InProcess(func(r grpc.ServiceRegistrar) { fxv1.RegisterFxServiceServer(r, fx) }, nil),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return f.InProcess()
}

// A hold's amount is converted, and the ledger stores the hold under a key that no payment can
// have. A refusal is an answer; a call without an answer is an error.
func TestReserve(t *testing.T) {
	held := rpc.FromOutcome(payment.Standing(payment.Pending, payment.Authorized, "r", false))
	for name, tc := range map[string]struct {
		in     *walletv1.ReserveRequest
		ledger fakeLedger
		fx     rates
		want   string
		asked  bool
	}{
		"held by an earlier release": {
			reserve("p", "A", 1000, commonv1.Currency_USD), fakeLedger{outcome: rpc.FromOutcome(payment.Standing(payment.Pending, "", "r", false))},
			rates{}, "held r", true,
		},
		"held before": {
			reserve("p", "A", 1000, commonv1.Currency_USD), fakeLedger{outcome: rpc.FromOutcome(payment.Standing(payment.Pending, payment.Authorized, "r", true))},
			rates{}, "held r", true,
		},
		"held":          {reserve("p", "A", 1000, commonv1.Currency_USD), fakeLedger{outcome: held}, rates{}, "held r", true},
		"captured once": {reserve("p", "A", 1000, commonv1.Currency_USD), fakeLedger{outcome: rpc.FromOutcome(payment.Standing(payment.Committed, payment.ReasonCommitted, "r", true))}, rates{}, "held r", true},
		"refused": {
			reserve("p", "A", 1000, commonv1.Currency_USD), fakeLedger{outcome: rpc.FromOutcome(payment.Decline(payment.InsufficientFunds))}, rates{},
			"insufficient_funds", true,
		},
		"no currency":        {reserve("p", "A", 1000, 0), fakeLedger{}, rates{}, "unsupported_currency", false},
		"no rate":            {reserve("p", "A", 1000, commonv1.Currency_USD), fakeLedger{}, rates{err: status.Error(codes.NotFound, "none")}, "unsupported_currency", false},
		"no amount":          {reserve("p", "A", 0, commonv1.Currency_USD), fakeLedger{}, rates{}, "invalid_input", false},
		"no payment":         {reserve("", "A", 1000, commonv1.Currency_USD), fakeLedger{}, rates{}, "invalid_input", false},
		"the house's":        {reserve("p", payment.SettlementAccount, 1000, commonv1.Currency_USD), fakeLedger{}, rates{}, "invalid_input", false},
		"fx is away":         {reserve("p", "A", 1000, commonv1.Currency_USD), fakeLedger{}, rates{err: errDown}, "Unavailable", false},
		"the ledger is away": {reserve("p", "A", 1000, commonv1.Currency_USD), fakeLedger{err: errDown}, rates{}, "Unavailable", true},
		"no outcome":         {reserve("p", "A", 1000, commonv1.Currency_USD), fakeLedger{outcome: &commonv1.Outcome{}}, rates{}, "Internal", true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := walletv1.NewWalletServiceClient(newWallet(t, &tc.ledger, tc.fx)).Reserve(t.Context(), tc.in)
			heard := status.Code(err).String()
			if err == nil {
				if heard = got.Reason; got.Ok {
					heard = "held " + got.ReservationId
				}
			}
			if heard != tc.want || (len(tc.ledger.holds) > 0) != tc.asked {
				t.Fatalf("%q after %d holds; want %q", heard, len(tc.ledger.holds), tc.want)
			}
			for _, hold := range tc.ledger.holds {
				if hold.IdempotencyKey != "wallet:p" || hold.SenderId != "A" || hold.ReceiverId != payment.SettlementAccount ||
					hold.AmountIdr != 155_000 || hold.AmountMinor != 1000 || hold.CurrencyInput != "USD" || hold.Rate != "15500" {
					t.Errorf("held %v", hold)
				}
			}
		})
	}
}

func reserve(id, account string, amount int64, currency commonv1.Currency) *walletv1.ReserveRequest {
	return &walletv1.ReserveRequest{PaymentId: id, AccountId: account, AmountMinor: amount, Currency: currency}
}

func TestCapture(t *testing.T) {
	for name, tc := range map[string]struct {
		ledger fakeLedger
		want   string
	}{
		"captured":           {fakeLedger{committed: &dbv1.CommitReservationResponse{Status: dbv1.TxStatus_OK}}, "true "},
		"captured before":    {fakeLedger{committed: &dbv1.CommitReservationResponse{Status: dbv1.TxStatus_DUPLICATE}}, "true "},
		"rolled back":        {fakeLedger{committed: &dbv1.CommitReservationResponse{Status: dbv1.TxStatus_BAD_STATUS, Reason: "expired"}}, "false expired"},
		"unknown":            {fakeLedger{committed: &dbv1.CommitReservationResponse{Status: dbv1.TxStatus_NOT_FOUND, Message: "no such"}}, "false no such"},
		"the ledger is away": {fakeLedger{err: errDown}, "Unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := walletv1.NewWalletServiceClient(newWallet(t, &tc.ledger, rates{})).Capture(t.Context(), &walletv1.CaptureRequest{ReservationId: "r"})
			heard := status.Code(err).String()
			if err == nil {
				heard = fmt.Sprintf("%t %s", got.Ok, got.Reason)
			}
			if heard != tc.want {
				t.Errorf("%q; want %q", heard, tc.want)
			}
		})
	}
}

// Accounts of earlier callers come with doubles, and with what is left out.
func TestSeedAccounts(t *testing.T) {
	l := &fakeLedger{}
	admin := walletv1.NewAdminClient(newWallet(t, l, rates{}))
	if _, err := admin.SeedAccounts(t.Context(), &walletv1.SeedAccountsRequest{Accounts: []*walletv1.AccountSeed{
		{AccountId: "A", Owner: "Ayu", Balance: 1500, DailyLimit: 50},
		{AccountId: "B", Owner: "Bima", Currency: "SGD", Status: "BLOCKED"},
	}}); err != nil {
		t.Fatal(err)
	}
	a, b := l.accounts[0], l.accounts[1]
	if a.BalanceIdr != 1500 || a.DailyLimitIdr != 50 || a.Currency != money.IDR.String() || a.Status != "ACTIVE" {
		t.Errorf("A: %v", a)
	}
	if b.Currency != "SGD" || b.Status != "BLOCKED" {
		t.Errorf("B: %v", b)
	}
	for name, bad := range map[string]*walletv1.AccountSeed{
		"half a rupiah": {AccountId: "C", Balance: 0.5}, "a limit of half a rupiah": {AccountId: "C", DailyLimit: 0.5},
	} {
		_, err := admin.SeedAccounts(t.Context(), &walletv1.SeedAccountsRequest{Accounts: []*walletv1.AccountSeed{bad}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}
