package gateway

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// window is the time over which answers are counted. The busiest of the last few windows gives
	// the rate of the flow. One pause therefore does not make the gateway refuse payments.
	window  = 500 * time.Millisecond
	windows = 6
)

// admission limits the payments under way by the rate at which the flow answers them. By Little's
// law, a payment is answered within the time wait when at most rate x wait payments are under way.
// More payments would make all of them late, so they are refused at once.
type admission struct {
	least, most int64         // the smallest and the largest limit
	wait        time.Duration // the longest wait of an admitted payment
	now         func() time.Time

	mu       sync.Mutex
	underWay int64
	bound    int64     // the limit now
	begun    time.Time // the start of the current window
	answered int64     // the payments answered in the current window
	past     [windows]int64
	at       int // the index of past that is overwritten next
	closing  bool
	idle     chan struct{} // closed when closing is set and no payment is under way
}

func newAdmission(least, most int64, wait time.Duration, now func() time.Time) *admission {
	least = min(least, most)
	return &admission{least: least, most: most, wait: wait, now: now, bound: least, begun: now(), idle: make(chan struct{})}
}

// enter admits a payment. It returns the number of payments under way, and whether it admitted this
// one.
func (a *admission) enter() (underWay int64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roll()
	if a.closing || a.underWay >= a.bound {
		return a.underWay, false
	}
	a.underWay++
	return a.underWay, true
}

// leave ends an admitted payment. answered means that the whole flow has answered it.
func (a *admission) leave(answered bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roll()
	a.underWay--
	if answered {
		a.answered++
	}
	if a.closing && a.underWay == 0 {
		close(a.idle)
	}
}

// close admits no more payments and waits until none is under way. If ctx ends first, close returns
// an error.
func (a *admission) close(ctx context.Context) error {
	a.mu.Lock()
	if !a.closing {
		a.closing = true
		if a.underWay == 0 {
			close(a.idle)
		}
	}
	a.mu.Unlock()
	select {
	case <-a.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d payments are still under way: %w", int64(a.waiting()), ctx.Err())
	}
}

// closed reports whether close was called.
func (a *admission) closed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closing
}

// roll starts the windows that are due and computes the limit again.
func (a *admission) roll() {
	passed := int(a.now().Sub(a.begun) / window)
	if passed <= 0 {
		return
	}
	for range min(passed, windows) {
		a.past[a.at] = a.answered
		a.at = (a.at + 1) % windows
		a.answered = 0
	}
	a.begun = a.begun.Add(time.Duration(passed) * window)
	busiest := slices.Max(a.past[:])
	a.bound = min(max(a.least, busiest*int64(a.wait)/int64(window)), a.most)
}

func (a *admission) waiting() float64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return float64(a.underWay)
}

func (a *admission) limit() float64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roll()
	return float64(a.bound)
}
