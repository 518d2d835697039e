package db

import (
	"math"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
)

// Operators set liquidity, and the metrics show it in major units.
func TestLiquidityIsSetAndShown(t *testing.T) {
	w := newWorld(t)
	limit := int64(250_000)
	for _, in := range []*dbv1.SetLiquidityRequest{
		{Currency: "USD", AvailableMinor: 500_050, PositionLimitMinor: &limit, OnlyMissing: true},
		{Currency: "JPY", AvailableMinor: 70},
	} {
		if got, err := w.SetLiquidity(t.Context(), in); err != nil || !got.Changed {
			t.Fatalf("%v: %v, %v", in, got, err)
		}
	}
	if got, err := w.SetLiquidity(t.Context(), &dbv1.SetLiquidityRequest{Currency: "USD", AvailableMinor: 1, OnlyMissing: true}); err != nil || got.Changed {
		t.Errorf("what is there was set again: %v, %v", got, err)
	}
	if err := w.measureLiquidity(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := w.metrics.liquidity
	for code, want := range map[string][2]float64{"USD": {5000.5, 2500}, "JPY": {70, math.Inf(1)}, "IDR": {0, math.Inf(1)}} {
		available, limit := testutil.ToFloat64(m.available.WithLabelValues(code)), testutil.ToFloat64(m.limit.WithLabelValues(code))
		if available != want[0] || limit != want[1] {
			t.Errorf("%s: %g available, limit %g", code, available, limit)
		}
	}
	// They are there from the start, and under these names.
	if n := testutil.CollectAndCount(m.position, "pgw_db_liquidity_position_major"); n != 3 {
		t.Errorf("%d positions", n)
	}
	for _, bad := range []*dbv1.SetLiquidityRequest{{Currency: "XYZ"}, {Currency: "USD", AvailableMinor: -1}} {
		if _, err := w.SetLiquidity(t.Context(), bad); status.Code(err) != codes.InvalidArgument || strings.Contains(err.Error(), "SQL") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
