package flow

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"pgw/shared/payment"
)

// wire is a client that allocates next to nothing, so that what is counted is the system's.
type wire struct {
	host   string
	conn   net.Conn
	answer *bufio.Reader
	out    []byte
}

func (s *system) wire(t testing.TB) *wire {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr("gateway"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &wire{host: s.Addr("gateway"), conn: conn, answer: bufio.NewReader(conn)}
}

// pay makes a payment in dollars, and returns an error unless it succeeds.
func (w *wire) pay(key string) error {
	const order = `{"sender_id":"A","receiver_id":"B","currency":"USD","amount":1.25,"tx_date":"` + txDate + `","idempotency_key":"`
	w.out = fmt.Appendf(w.out[:0], "POST /api/payments HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s%s\"}",
		w.host, len(order)+len(key)+2, order, key)
	if _, err := w.conn.Write(w.out); err != nil {
		return err
	}
	length := 0
	for n := 0; ; n++ {
		line, err := w.answer.ReadSlice('\n')
		if err != nil {
			return err
		}
		if n == 0 && !strings.HasPrefix(string(line), "HTTP/1.1 200 ") {
			return fmt.Errorf("%s: %s", key, line)
		}
		if len(line) == 2 {
			break
		}
		if name, value, _ := strings.Cut(string(line), ": "); http.CanonicalHeaderKey(name) == "Content-Length" {
			if _, err := fmt.Sscan(value, &length); err != nil {
				return err
			}
		}
	}
	body, err := w.answer.Peek(length)
	if err == nil && !strings.HasPrefix(string(body), `{"status":"`+string(payment.Success)+`"`) {
		err = fmt.Errorf("%s: %s", key, body)
	}
	w.answer.Discard(length)
	return err
}

// spent is what a payment costs in the process.
type spent struct {
	bytes, objects, goroutines float64
	sleeps                     float64 // of threads, each of which a wake-up ends
}

// least returns the smaller of each.
func (s spent) least(o spent) spent {
	return spent{min(s.bytes, o.bytes), min(s.objects, o.objects), min(s.goroutines, o.goroutines), min(s.sleeps, o.sleeps)}
}

// goroutinesCreated is how many goroutines the process has started.
func goroutinesCreated() uint64 {
	sample := []metrics.Sample{{Name: "/sched/goroutines-created:goroutines"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// threadSleeps is how often a thread of the process has waited.
func threadSleeps(t testing.TB) int64 {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return used.Nvcsw
}

// spend makes n payments, a few at the same time, and returns what each of them cost.
func spend(t testing.TB, wires []*wire, prefix string, n int) spent {
	t.Helper()
	var before, after runtime.MemStats
	var next atomic.Int64
	var paying sync.WaitGroup
	failed := make([]error, len(wires))
	runtime.ReadMemStats(&before)
	started, slept := goroutinesCreated(), threadSleeps(t)
	for i, w := range wires {
		paying.Go(func() {
			for k := next.Add(1); k <= int64(n) && failed[i] == nil; k = next.Add(1) {
				failed[i] = w.pay(fmt.Sprint(prefix, k))
			}
		})
	}
	paying.Wait()
	started, slept = goroutinesCreated()-started-uint64(len(wires)), threadSleeps(t)-slept
	runtime.ReadMemStats(&after)
	for _, err := range failed {
		if err != nil {
			t.Fatal(err)
		}
	}
	return spent{
		bytes: float64(after.TotalAlloc-before.TotalAlloc) / float64(n), objects: float64(after.Mallocs-before.Mallocs) / float64(n),
		goroutines: float64(started) / float64(n), sleeps: float64(slept) / float64(n),
	}
}

// TestPaymentAllocates bounds what a payment allocates, and how many goroutines it starts, with all functions in
// one process. What a batch costs is divided among its payments, so a payment costs less under load.
func TestPaymentAllocates(t *testing.T) {
	const rounds, each = 3, 50
	most := spent{bytes: 160 << 10, objects: 2200, goroutines: 30}
	s := start(t, options{serial: true})
	var wires []*wire
	for range 8 {
		wires = append(wires, s.wire(t))
	}
	spend(t, wires, "warm-", each) // connections, plans and pools are made
	// Other work of the process comes and goes, so the round with the least counts.
	least := spend(t, wires, "0-", each)
	for round := 1; round < rounds; round++ {
		least = least.least(spend(t, wires, fmt.Sprint(round, "-"), each))
	}
	t.Logf("a payment allocates %.0f bytes in %.0f objects, starts %.1f goroutines, and lets threads sleep %.1f times",
		least.bytes, least.objects, least.goroutines, least.sleeps)
	if least.bytes > most.bytes || least.objects > most.objects || least.goroutines > most.goroutines {
		t.Errorf("a payment allocates %.0f bytes in %.0f objects, and starts %.1f goroutines; at most %.0f in %.0f, and %.0f, are expected",
			least.bytes, least.objects, least.goroutines, most.bytes, most.objects, most.goroutines)
	}
}
