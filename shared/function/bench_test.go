package function

import (
	"log/slog"
	"testing"

	"google.golang.org/grpc"

	riskv1 "pgw/proto/gen/risk/v1"
)

// A call within the process, as a function serves it: with metrics and without traces.
func BenchmarkInProcess(b *testing.B) {
	f := &Port{Log: slog.New(slog.DiscardHandler), Registry: NewRegistry(), Service: Service{GRPC: func(r grpc.ServiceRegistrar) {
		riskv1.RegisterRiskServiceServer(r, service{evaluate: allow})
	}}}
	client := riskv1.NewRiskServiceClient(f.InProcess())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Evaluate(b.Context(), &riskv1.ScoreRequest{SenderId: "A", IdempotencyKey: "key"}); err != nil {
			b.Fatal(err)
		}
	}
}
