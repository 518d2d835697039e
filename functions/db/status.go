package db

import (
	"cmp"
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/ledger"
	"pgw/shared/postgres"
	"pgw/shared/rpc"
)

// standingTimeout is the time limit of the reads for Status. It is shorter than the caller's, so that
// the caller hears at least that Postgres does not answer.
const standingTimeout = 700 * time.Millisecond

// Status implements db.v1.Db.
func (d *DB) Status(ctx context.Context, _ *dbv1.StatusRequest) (*dbv1.StatusResponse, error) {
	reading, cancel := context.WithTimeout(ctx, standingTimeout)
	defer cancel()
	got, err := d.ledger.Standing(reading)
	state := d.ledger.Reachable()
	out := &dbv1.StatusResponse{At: timestamppb.New(d.now()), PostgresUp: state.Up, PostgresSince: rpc.Timestamp(state.Since)}
	out.PostgresProblem = postgres.Problem(cmp.Or(state.Err, err))
	if s := d.ledger.Standby(); s.There {
		out.Standby = &dbv1.Standby{Used: s.Used, Problem: postgres.StandbyProblem(s.Err)}
		if s.Stale >= 0 {
			stale := s.Stale.Milliseconds()
			out.Standby.StalenessMs = &stale
		}
	}
	if err != nil {
		return out, nil
	}
	schema := int32(got.Schema)
	out.Schema = &schema
	if s := got.LastSweep; !s.At.IsZero() {
		out.LastSweep = &dbv1.LastSweep{
			At: rpc.Timestamp(s.At), Pending: s.Pending, HeldIdr: s.HeldIDR, OldestPendingAt: rpc.Timestamp(s.Oldest),
		}
	}
	if v := got.Verdict; !v.At.IsZero() {
		out.Verdict = &dbv1.Verdict{At: rpc.Timestamp(v.At), Verdict: string(v.Finding), Breaches: v.Breaches, Text: v.Text, Since: rpc.Timestamp(v.Since)}
	}
	return out, nil
}

// RecordVerdict implements db.v1.Admin.
func (d *DB) RecordVerdict(ctx context.Context, in *dbv1.RecordVerdictRequest) (*dbv1.RecordVerdictResponse, error) {
	v := in.GetVerdict()
	err := d.ledger.RecordVerdict(ctx, ledger.Verdict{Finding: ledger.Finding(v.GetVerdict()), Breaches: v.GetBreaches(), Text: v.GetText(), Since: rpc.Time(v.GetSince())})
	if err != nil {
		return nil, translated(err)
	}
	return &dbv1.RecordVerdictResponse{}, nil
}

// ActedLetters implements db.v1.Db.
func (d *DB) ActedLetters(ctx context.Context, in *dbv1.ActedLettersRequest) (*dbv1.ActedLettersResponse, error) {
	acted, err := d.ledger.Acted(ctx, in.Topic, in.From)
	if err != nil {
		return nil, translated(err)
	}
	out := &dbv1.ActedLettersResponse{Acted: map[int32]*dbv1.Offsets{}}
	for partition, offsets := range acted {
		out.Acted[partition] = &dbv1.Offsets{Offsets: offsets}
	}
	return out, nil
}

// Activity implements db.v1.Db.
func (d *DB) Activity(ctx context.Context, in *dbv1.ActivityRequest) (*dbv1.ActivityResponse, error) {
	got, err := d.ledger.Activity(ctx, ledger.ActivityOf{From: rpc.Time(in.From), To: rpc.Time(in.To), Step: in.GetStep().AsDuration()})
	var many *ledger.TooManyError
	switch {
	case errors.As(err, &many):
		return nil, status.Error(codes.FailedPrecondition, many.Error())
	case err != nil:
		return nil, translated(err)
	}
	out := &dbv1.ActivityResponse{Buckets: make([]*dbv1.ActivityBucket, len(got.Buckets)), Reasons: map[string]int64{}}
	for i, b := range got.Buckets {
		bucket := &dbv1.ActivityBucket{At: rpc.Timestamp(b.At), Success: b.Success, Failed: b.Failed, Pending: b.Pending}
		if b.Success+b.Failed > 0 {
			p50, p99 := millis(b.P50), millis(b.P99)
			bucket.P50Ms, bucket.P99Ms = &p50, &p99
		}
		out.Buckets[i] = bucket
	}
	for reason, n := range got.Reasons {
		out.Reasons[string(reason)] = n
	}
	return out, nil
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
