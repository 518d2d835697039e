package webhooks

import (
	"net/http"
	"strconv"
	"time"
)

// schedule has the times between a failed attempt and the next one: ten attempts in three days.
var schedule = []time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

const (
	// failingTooLong is how long all attempts at an endpoint may fail before it is disabled.
	failingTooLong = 120 * time.Hour
	// jitter is the largest part of a delay that is added to it at random, so that events that failed
	// together do not come back together.
	jitter = 0.2
	// maxRetryAfter is the longest wait that an endpoint may ask for.
	maxRetryAfter = 24 * time.Hour
)

// nextDelay returns the time until the next attempt, after tries failed ones; 0: there is none.
// random is in [0, 1). asked is what the endpoint's Retry-After asks for; a shorter wait than the
// schedule's is not honoured.
func nextDelay(schedule []time.Duration, tries int, random float64, asked time.Duration) time.Duration {
	if tries < 1 || tries > len(schedule) {
		return 0
	}
	delay := schedule[tries-1]
	return max(delay+time.Duration(float64(delay)*jitter*random), min(asked, maxRetryAfter))
}

// retryAfter reads the header Retry-After: seconds or a date; 0 if there is none.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
