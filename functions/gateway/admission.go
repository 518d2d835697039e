package gateway

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// window is over how long answers are counted; the busiest of the last few says what the flow can do, so
	// that one pause does not shut the door.
	window  = 500 * time.Millisecond
	windows = 6
)

// admission bounds the payments under way by what the flow gets done: by Little's law, whoever is let in
// while rate x wait are under way is answered within that wait. What is more than that would only make
// everybody too late, and is refused at once.
type admission struct {
	least, most int64         // bounds of the bound
	wait        time.Duration // that a payment which is let in may meet
	now         func() time.Time

	mu       sync.Mutex
	underWay int64
	bound    int64
	begun    time.Time // of the window now
	answered int64     // in it
	past     [windows]int64
	at       int // of past: the next to be overwritten
	closing  bool
	idle     chan struct{} // closed when closing and nothing is under way any more
}

func newAdmission(least, most int64, wait time.Duration, now func() time.Time) *admission {
	least = min(least, most)
	return &admission{least: least, most: most, wait: wait, now: now, bound: least, begun: now(), idle: make(chan struct{})}
}

// enter lets a payment in, or tells how many are under way that keep it out.
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

// leave ends a payment that was let in. answered tells that the whole flow has answered it.
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

// close lets nobody in any more, and waits until those who are in have left, or ctx ends.
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

// closed tells whether nobody is let in any more.
func (a *admission) closed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closing
}

// roll begins the windows that are due.
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
