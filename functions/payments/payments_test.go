package payments

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	paymentsv1 "pgw/proto/gen/payments/v1"
	"pgw/shared/function"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// refusing is a ledger that holds the funds and refuses every commit.
type refusing struct {
	dbv1.UnimplementedDbServer
	reason payment.Reason // the reason of the refused commit
}

func (refusing) Reserve(context.Context, *commonv1.Payment) (*commonv1.Outcome, error) {
	return rpc.FromOutcome(payment.Standing(payment.Pending, "", "r", false)), nil
}

func (l refusing) CommitReservation(context.Context, *dbv1.CommitReservationRequest) (*dbv1.CommitReservationResponse, error) {
	return &dbv1.CommitReservationResponse{Status: dbv1.TxStatus_BAD_STATUS, Reason: string(l.reason)}, nil
}

func (refusing) RollbackReservation(_ context.Context, in *dbv1.RollbackReservationRequest) (*dbv1.RollbackReservationResponse, error) {
	return &dbv1.RollbackReservationResponse{Status: dbv1.TxStatus_OK, Message: in.Reason}, nil
}

// The ledger decides whether a payment was too late, whatever the clock of this function says.
func TestTheLedgerDecidesWhatIsLate(t *testing.T) {
	for _, reason := range []payment.Reason{payment.Expired, payment.CommitFailed} {
		for name, skew := range map[string]time.Duration{"behind": -90 * time.Second, "ahead": 90 * time.Second} {
			now := time.Now()
			db := rpc.InProcess(func(r grpc.ServiceRegistrar) { dbv1.RegisterDbServer(r, refusing{reason: reason}) }, nil)
			f, err := Function.Make(Config{}, function.Dependencies{
				Conns: map[string]grpc.ClientConnInterface{"db": db}, Now: func() time.Time { return now.Add(skew) },
			})
			if err != nil {
				t.Fatal(err)
			}
			got, err := paymentsv1.NewPaymentsServiceClient(f.InProcess()).LogAndSettle(t.Context(), &paymentsv1.LogAndSettleRequest{
				IdempotencyKey: "k", Deadline: timestamppb.New(now),
			})
			if err != nil || got.Message != string(reason) {
				t.Errorf("%s, with a clock that is %s: %v, %v", reason, name, got, err)
			}
		}
	}
}
