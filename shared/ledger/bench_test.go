package ledger

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"pgw/shared/money"
	"pgw/shared/payment"
)

// One payment on a real Postgres, in batches of several sizes: in one transaction, and in two.
func BenchmarkReserveAndCommit(b *testing.B) {
	const accounts = 1000
	w := newWorld(b)
	ids := w.openRich(accounts)
	var n int
	calls := func(size int, commit bool) []reserve {
		calls := make([]reserve, size)
		for i := range calls {
			n++
			calls[i] = reserve{Payment: pay(uuid.NewString(), ids[n%accounts], ids[(n+1)%accounts], 1), commit: commit}
		}
		return calls
	}
	one := func(size int) {
		reserved, err := w.reserveAll(b.Context(), calls(size, true))
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range reserved {
			if !r.Paid {
				b.Fatalf("%+v", r)
			}
		}
	}
	two := func(size int) { w.settleInTwo(b, calls(size, false)) }
	for _, size := range []int{1, 16, 64, 256, 1024} {
		for transactions, settle := range []func(int){one, two} {
			b.Run(fmt.Sprintf("batch=%d/transactions=%d", size, transactions+1), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					settle(size)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/payment")
			})
		}
	}
}

// openRich opens accounts that have enough for any payment, and returns their ids.
func (w *world) openRich(accounts int) []string {
	ids := make([]string, accounts)
	for i := range ids {
		ids[i] = fmt.Sprintf("A%d", i)
	}
	w.open(1_000_000_000_000, ids...)
	return ids
}

// settleInTwo reserves a batch, and commits it in another transaction.
func (w *world) settleInTwo(b *testing.B, calls []reserve) {
	b.Helper()
	reserved, err := w.reserveAll(b.Context(), calls)
	if err != nil {
		b.Fatal(err)
	}
	finishes := make([]Finish, len(calls))
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

// What it costs to find authorized payments by their deadline (-benchtime 1x). BOOKS.md has the figures.
//
// A payment that is captured at once writes nothing for it. With an index on the deadlines of PENDING
// reservations, each payment would write into that index, and its update would not be heap-only.
func BenchmarkFindingHoldsByDeadline(b *testing.B) {
	const accounts, size, rounds = 1000, 64, 20
	w := newWorld(b)
	ids := w.openRich(accounts)
	var n int
	settle := func() {
		calls := make([]reserve, size)
		for i := range calls {
			n++
			calls[i].Payment = pay(uuid.NewString(), ids[n%accounts], ids[(n+1)%accounts], 1)
		}
		w.settleInTwo(b, calls)
	}
	// Bytes of WAL do not depend on how busy the machine is.
	written := func() (bytes float64, took time.Duration) {
		position := func() (bytes float64) {
			if err := w.pool.QueryRow(b.Context(), `SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8`).Scan(&bytes); err != nil {
				b.Fatal(err)
			}
			return bytes
		}
		w.exec(`CHECKPOINT`)
		for range 2 * accounts / size {
			settle() // pages are written in full once after a checkpoint
		}
		before, begun := position(), time.Now()
		for range rounds {
			settle()
		}
		return position() - before, time.Since(begun)
	}
	for _, holds := range []int{0, 1_000_000} {
		b.Run(fmt.Sprintf("sweep/holds=%d", holds), func(b *testing.B) {
			for from := 0; from < holds; from += step {
				w.exec(`INSERT INTO authorizations (expires_at, reservation_id, amount_idr)
					SELECT now() + interval '1 day' + n * interval '500 ms', gen_random_uuid(), 1000 FROM generate_series($1::int, $2::int) n`, from, from+step-1)
			}
			w.exec(`ANALYZE authorizations`)
			b.ResetTimer()
			for b.Loop() {
				swept, err := w.Sweep(b.Context(), func(context.Context, Claim, time.Time) error { return nil })
				if err != nil || swept.Pending != int64(holds) {
					b.Fatalf("%+v, %v", swept, err)
				}
			}
			var find, count float64
			for sql, into := range map[string]*float64{
				`SELECT expires_at, reservation_id FROM authorizations WHERE expires_at < now() ORDER BY expires_at, reservation_id LIMIT 200`: &find,
				`SELECT count(*), sum(amount_idr) FROM (SELECT amount_idr FROM authorizations LIMIT 2000000) a`:                                &count,
			} {
				*into = w.millisOf(b, sql)
			}
			b.ReportMetric(find, "ms/find")
			b.ReportMetric(count, "ms/count")
		})
	}
	w.exec(`TRUNCATE authorizations`)
	b.Run("payment", func(b *testing.B) {
		plain, indexed := 0.0, 0.0
		var plainTime, indexedTime time.Duration
		const times = 3
		for range times {
			bytes, took := written()
			plain, plainTime = plain+bytes, plainTime+took
			w.exec(`CREATE INDEX pending_by_deadline ON reservations (deadline) WHERE status = 'PENDING'`)
			bytes, took = written()
			indexed, indexedTime = indexed+bytes, indexedTime+took
			w.exec(`DROP INDEX pending_by_deadline`)
		}
		const payments = times * rounds * size
		b.ReportMetric(plain/payments, "WAL-bytes/payment")
		b.ReportMetric(indexed/payments, "WAL-bytes/payment-with-index")
		b.ReportMetric(indexed/plain, "WAL-ratio")
		b.ReportMetric(float64(indexedTime)/float64(plainTime), "time-ratio")
	})
}

// millisOf is the time that the database takes for a statement: the least of several.
func (w *world) millisOf(b *testing.B, sql string) float64 {
	least := 0.0
	for range 5 {
		var plan []struct {
			Time float64 `json:"Execution Time"`
		}
		if err := w.pool.QueryRow(b.Context(), "EXPLAIN (ANALYZE, FORMAT JSON) "+sql).Scan(&plan); err != nil {
			b.Fatal(err)
		}
		if least == 0 || plan[0].Time < least {
			least = plan[0].Time
		}
	}
	return least
}

// What clients and operators read of 20,000 payments, and a sweep that finds nothing to do. The sender of
// each payment is one of ten accounts, so a page of one account's payments is found at once.
func BenchmarkReads(b *testing.B) {
	const accounts, size, payments = 10, 256, 20_480
	w := newWorld(b)
	ids := w.openRich(accounts)
	var key string
	var ref uuid.UUID
	for n := 0; n < payments; n += size {
		calls := make([]reserve, size)
		for i := range calls {
			calls[i] = reserve{Payment: pay(uuid.NewString(), ids[i%accounts], ids[(i+1)%accounts], 1), commit: true}
		}
		reserved, err := w.reserveAll(b.Context(), calls)
		if err != nil {
			b.Fatal(err)
		}
		key, ref = calls[0].Key, reserved[0].ReservationID
	}
	w.exec(`ANALYZE`)
	for _, read := range []struct {
		name string
		once func(context.Context) error
	}{
		{"payment/by=key", func(ctx context.Context) error {
			_, err := w.Payment(ctx, payment.ScopedKey{Key: key})
			return err
		}},
		{"payment/by=ref", func(ctx context.Context) error {
			_, err := w.PaymentByRef(ctx, ref)
			return err
		}},
		{"payments/page=100", func(ctx context.Context) error {
			found, _, err := w.Payments(ctx, Search{Limit: 100, Before: Newest})
			return full(len(found), err)
		}},
		{"payments/page=100/of=account", func(ctx context.Context) error {
			found, _, err := w.Payments(ctx, Search{Limit: 100, Before: Newest, Account: ids[0]})
			return full(len(found), err)
		}},
		{"statement/page=100", func(ctx context.Context) error {
			page, err := w.Statement(ctx, StatementOf{Account: ids[0], Currency: money.IDR, Limit: 100})
			return full(len(page.Entries), err)
		}},
		{"sweep", func(ctx context.Context) error {
			_, err := w.Sweep(ctx, func(context.Context, Claim, time.Time) error { return nil })
			return err
		}},
	} {
		b.Run(read.name, func(b *testing.B) {
			for b.Loop() {
				if err := read.once(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// full returns an error unless a page has 100 lines.
func full(lines int, err error) error {
	if err == nil && lines != 100 {
		return fmt.Errorf("a page of %d", lines)
	}
	return err
}

// What a webhook costs on a real Postgres: to store it, and to record the attempt that delivers it. So many
// are told at the same time.
func BenchmarkWebhook(b *testing.B) {
	w, _ := openHooks(b)
	endpoint := addEndpoint(b, w, "shop")
	tell := func() error {
		e := hookEvent(uuid.NewString(), "shop", "payment.settled", uuid.NewString(), SequenceDecided)
		taken, err := w.AddEvent(b.Context(), e, []uuid.UUID{endpoint}, hookTerms)
		if err != nil || len(taken) != 1 {
			return fmt.Errorf("%v, %w", taken, err)
		}
		done := Attempt{Endpoint: endpoint, Event: e.ID, At: time.Now(), Code: 204, Result: "delivered", Delivered: true}
		_, err = w.Finish(b.Context(), done, time.Hour)
		return err
	}
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var told errgroup.Group
				for range callers {
					told.Go(tell)
				}
				if err := told.Wait(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*callers), "ns/webhook")
		})
	}
}
