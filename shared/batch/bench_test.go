package batch

import (
	"context"
	"testing"
)

// The time that a batcher adds to a call, with as many callers as there are processors and with
// many more.
func BenchmarkDo(b *testing.B) {
	for name, parallelism := range map[string]int{"callers=1x": 1, "callers=64x": 64} {
		b.Run(name, func(b *testing.B) {
			batcher := New(Config{Max: 64, Lanes: 1, Queue: 4096}, func(_ context.Context, calls []int) []Result[int] {
				results := make([]Result[int], len(calls))
				for i, n := range calls {
					results[i].Value = n
				}
				return results
			})
			defer batcher.Close(context.Background())
			b.SetParallelism(parallelism)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if n, err := batcher.Do(b.Context(), 7); n != 7 || err != nil {
						b.Error(n, err)
						return
					}
				}
			})
		})
	}
}
