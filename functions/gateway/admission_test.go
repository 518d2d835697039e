package gateway

import (
	"testing"
	"time"
)

// The flow has a capacity of 400 payments per second, and the load varies. Every admitted payment
// is answered within the wait. The limit falls again when the flow slows, and stays between least
// and most.
func TestAdmissionFollowsTheFlow(t *testing.T) {
	now := time.Unix(0, 0)
	a := newAdmission(64, 4096, 2500*time.Millisecond, func() time.Time { return now })
	var queue []time.Time // the arrival times of the payments under way, answered in order
	// run offers and answers so many payments per second. It returns the longest wait and the
	// number of refused payments.
	run := func(seconds, offered, capacity int) (longest time.Duration, refused int) {
		const step = 5 * time.Millisecond
		var in, out float64
		for range seconds * int(time.Second/step) {
			now = now.Add(step)
			for in += float64(offered) * step.Seconds(); in >= 1; in-- {
				if _, ok := a.enter(); ok {
					queue = append(queue, now)
				} else {
					refused++
				}
			}
			for out = min(out+float64(capacity)*step.Seconds(), float64(capacity)); out >= 1 && len(queue) > 0; out-- {
				longest = max(longest, now.Sub(queue[0]))
				queue = queue[1:]
				a.leave(true)
			}
		}
		return longest, refused
	}
	if longest, refused := run(10, 300, 400); refused > 0 || longest > 100*time.Millisecond {
		t.Errorf("below capacity: %d refused, waits of up to %s", refused, longest)
	}
	longest, refused := run(60, 1200, 400)
	if longest > 3*time.Second || refused < 40_000 {
		t.Errorf("at three times capacity: %d refused, waits of up to %s", refused, longest)
	}
	if n := a.limit(); n < 900 || n > 1100 {
		t.Errorf("the limit is %.0f, want 400/s x 2.5 s", n)
	}
	run(5, 0, 400) // the queue empties
	if longest, refused := run(10, 300, 400); refused > 0 || longest > 100*time.Millisecond {
		t.Errorf("when the load has dropped: %d refused, waits of up to %s", refused, longest)
	}
	run(10, 400, 0) // no payment is answered
	if n := a.limit(); n != 64 {
		t.Errorf("with nothing answered the limit is %.0f, want the least", n)
	}
	if n := a.waiting(); n < 64 || n > 4096 {
		t.Errorf("%.0f are under way", n)
	}
	run(30, 20_000, 20_000)
	if n := a.limit(); n != 4096 {
		t.Errorf("with a fast flow the limit is %.0f, want the most", n)
	}
}
