package ledger

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
)

// One payment's reserve and commit on a real Postgres, in batches of several sizes.
func BenchmarkReserveAndCommit(b *testing.B) {
	const accounts = 1000
	w := newWorld(b)
	ids := make([]string, accounts)
	for i := range ids {
		ids[i] = fmt.Sprintf("A%d", i)
	}
	w.open(1_000_000_000_000, ids...)
	for _, size := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			var n int
			b.ReportAllocs()
			for b.Loop() {
				calls := make([]reserve, size)
				for i := range calls {
					n++
					calls[i].Payment = pay(uuid.NewString(), ids[n%accounts], ids[(n+1)%accounts], 1)
				}
				reserved, err := w.reserveAll(b.Context(), calls)
				if err != nil {
					b.Fatal(err)
				}
				finishes := make([]Finish, size)
				for i, r := range reserved {
					finishes[i] = Finish{ReservationID: r.ReservationID, Key: calls[i].Key}
				}
				finished, err := w.finishAll(b.Context(), finishes)
				if err != nil {
					b.Fatal(err)
				}
				for _, f := range finished {
					if !f.Done {
						b.Fatalf("%+v", f)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/payment")
		})
	}
}
