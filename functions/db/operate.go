package db

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/ledger"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

// newOperations makes the counter of operations with all its values.
func newOperations(auto promauto.Factory) *prometheus.CounterVec {
	c := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "pgw_db_operations_total", Help: "Captures, voids and cancellations, by outcome.",
	}, []string{"operation", "status"})
	for _, kind := range []payment.OperationKind{payment.Capture, payment.Void, payment.Cancel} {
		for _, s := range []payment.Status{payment.Success, payment.SuccessReplay, payment.Failed} {
			c.WithLabelValues(string(kind), string(s))
		}
	}
	return c
}

// Capture implements db.v1.Db.
func (d *DB) Capture(ctx context.Context, in *commonv1.Operation) (*dbv1.OperationResponse, error) {
	return d.operate(ctx, in, payment.Capture)
}

// Void implements db.v1.Db. A cancellation is a void of any payment that is not settled.
func (d *DB) Void(ctx context.Context, in *commonv1.Operation) (*dbv1.OperationResponse, error) {
	return d.operate(ctx, in, payment.Void, payment.Cancel)
}

// operate has the ledger carry out an operation of one of the allowed kinds, and counts the result.
func (d *DB) operate(ctx context.Context, in *commonv1.Operation, allowed ...payment.OperationKind) (*dbv1.OperationResponse, error) {
	op, err := rpc.ToOperation(in)
	if err == nil {
		err = op.Validate()
	}
	if err == nil && !slices.Contains(allowed, op.Kind) {
		err = &payment.FieldError{Field: "operation", Problem: fmt.Sprintf("is %s, which is another call", op.Kind)}
	}
	if err != nil {
		return nil, invalid(err)
	}
	got, err := d.ledger.Operate(ctx, op)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, status.Error(codes.NotFound, "the ledger has no payment of this key")
	}
	if err != nil {
		return nil, translated(err)
	}
	d.metrics.operations.WithLabelValues(string(op.Kind), string(got.Outcome.Status)).Inc()
	return &dbv1.OperationResponse{Outcome: rpc.FromOutcome(got.Outcome), Payment: rpc.FromRecord(got.Payment)}, nil
}
