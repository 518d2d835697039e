package kafkasource

import (
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// A member of a group is replaced while events come: another one starts, and then it stops. No event waits for
// long, although each change takes all partitions away for a moment.
func TestAReplacedMember(t *testing.T) {
	t.Parallel()
	var longest, deliveries atomic.Int64
	r := newRig(t, 8, func(_ http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		sent, err := strconv.ParseInt(string(body), 10, 64)
		if err != nil {
			t.Errorf("%q: %v", body, err)
		}
		deliveries.Add(1)
		for took := time.Now().UnixNano() - sent; ; {
			if most := longest.Load(); took <= most || longest.CompareAndSwap(most, took) {
				return
			}
		}
	})
	stop := r.start(manifest(), nil)
	other := r.start(manifest(), nil)
	defer other()
	ended, done := make(chan struct{}), make(chan struct{})
	var sent atomic.Int64
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-ended:
				return
			case <-time.After(5 * time.Millisecond):
				r.sendEvent(strconv.Itoa(n), strconv.FormatInt(time.Now().UnixNano(), 10))
				sent.Add(1)
			}
		}
	}()
	steady := func() {
		t.Helper()
		for before, until := deliveries.Load(), time.Now().Add(patience); deliveries.Load() < before+200; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatal("events are not delivered any more")
			}
		}
	}
	steady()
	atRest := longest.Swap(0)
	for range 2 {
		next := r.start(manifest(), nil)
		steady()
		stop()
		steady()
		stop = next
	}
	during := longest.Load()
	close(ended)
	<-done
	stop()
	t.Logf("%d events; the longest wait was %s at rest, and %s while two members were replaced", sent.Load(),
		time.Duration(atRest).Round(time.Millisecond), time.Duration(during).Round(time.Millisecond))
	// How long an event waits at rest shows how busy the machine is.
	if time.Duration(during) > 5*time.Second+20*time.Duration(atRest) {
		t.Errorf("an event waited for %s", time.Duration(during))
	}
}
