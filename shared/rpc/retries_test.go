package rpc_test

import (
	"context"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/rpc"
)

// Each RPC says whether it may be repeated. An RPC that sets or adds a value does not say so, and
// is sent once.
var notRepeatable = map[protoreflect.FullName]bool{
	"db.v1.Admin.SeedAccounts": true, "db.v1.Admin.PutRates": true, "db.v1.Admin.PutRules": true, "db.v1.Admin.SetLiquidity": true,
	"db.v1.Admin.RecordDeadLetterAction": true, "db.v1.Admin.RecordVerdict": true,
	"db.v1.Admin.OpenAccount": true, "db.v1.Admin.FundAccount": true, "db.v1.Admin.SetAccountStatus": true,
	"fx.v1.FxService.UpdateRates": true, "fx.v1.FxAdminService.RefreshRandomRates": true,
	"wallet.v1.Admin.SeedAccounts": true, "risk.v1.Admin.SeedRules": true,
}

func TestEveryRPCSaysWhetherItMayBeRepeated(t *testing.T) {
	unknown := descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
	seen := 0
	for _, file := range []protoreflect.FileDescriptor{
		commonv1.File_common_v1_common_proto, dbv1.File_db_v1_db_proto, fxv1.File_fx_v1_fx_proto,
		paymentsv1.File_payments_v1_payments_proto, riskv1.File_risk_v1_risk_proto, walletv1.File_wallet_v1_wallet_proto,
	} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for n := range methods.Len() {
				m := methods.Get(n)
				level := m.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel()
				if (level == unknown) != notRepeatable[m.FullName()] {
					t.Errorf("%s: idempotency_level is %s", m.FullName(), level)
				}
				seen++
			}
		}
	}
	if seen < 25 {
		t.Errorf("only %d RPCs were checked", seen)
	}
}

// forgetful serves each request, but the first answer of each kind is lost.
type forgetful struct {
	walletv1.UnimplementedWalletServiceServer
	walletv1.UnimplementedAdminServer
	seeds, reads, holds atomic.Int32
}

func (f *forgetful) SeedAccounts(context.Context, *walletv1.SeedAccountsRequest) (*walletv1.SeedAccountsResponse, error) {
	return nil, f.lose(&f.seeds)
}

func (f *forgetful) Reserve(context.Context, *walletv1.ReserveRequest) (*walletv1.ReserveResponse, error) {
	return nil, f.lose(&f.holds)
}

func (f *forgetful) GetAccount(context.Context, *walletv1.GetAccountRequest) (*walletv1.GetAccountResponse, error) {
	return &walletv1.GetAccountResponse{}, f.lose(&f.reads)
}

func (*forgetful) lose(calls *atomic.Int32) error {
	if calls.Add(1) == 1 {
		return status.Error(codes.Unavailable, "the answer is lost")
	}
	return nil
}

// Repeating SeedAccounts would undo a payment that was made in the meantime. An RPC that settles is
// repeated only where the payment started, so the repeats of several layers do not multiply. A read
// is repeated here.
func TestOnlyReadsAreRepeated(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forgetful{}
	server := grpc.NewServer()
	walletv1.RegisterWalletServiceServer(server, f)
	walletv1.RegisterAdminServer(server, f)
	go server.Serve(l)
	defer server.Stop()
	callers, err := rpc.Security{}.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := callers.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := walletv1.NewAdminClient(conn).SeedAccounts(t.Context(), &walletv1.SeedAccountsRequest{}); status.Code(err) != codes.Unavailable || f.seeds.Load() != 1 {
		t.Errorf("SeedAccounts: %v after %d calls", err, f.seeds.Load())
	}
	if _, err := walletv1.NewWalletServiceClient(conn).Reserve(t.Context(), &walletv1.ReserveRequest{}); status.Code(err) != codes.Unavailable || f.holds.Load() != 1 {
		t.Errorf("Reserve: %v after %d calls", err, f.holds.Load())
	}
	if _, err := walletv1.NewWalletServiceClient(conn).GetAccount(t.Context(), &walletv1.GetAccountRequest{}); err != nil || f.reads.Load() != 2 {
		t.Errorf("GetAccount: %v after %d calls", err, f.reads.Load())
	}
}
