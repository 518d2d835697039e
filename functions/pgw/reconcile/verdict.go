package reconcile

import (
	"fmt"
	"strings"
	"time"
)

// Verdict is the answer to whether the books agree.
type Verdict string

// The verdicts.
const (
	Agrees  Verdict = "agrees"
	Differs Verdict = "differs"
	Unknown Verdict = "unknown" // it could not be checked
)

// Conclusion is the verdict of one reconciliation in words.
type Conclusion struct {
	At       time.Time `json:"at"`
	Verdict  Verdict   `json:"verdict"`
	Breaches int64     `json:"breaches"`
	Text     string    `json:"text"`
	// Asked is from when on payments were to be compared with their events; zero: as far back as the topics
	// go.
	Asked time.Time `json:"-"`
}

// Conclude returns the verdict of a report, or of the error that kept a reconciliation from its end. now
// is its time in that case.
func Conclude(r Report, err error, now time.Time) Conclusion {
	if err != nil {
		return Conclusion{At: now.UTC(), Verdict: Unknown, Text: "It could not be checked whether the books agree: " + err.Error()}
	}
	c := Conclusion{At: r.At, Verdict: Agrees, Asked: r.Asked}
	var found []string
	examined := map[Check]int64{}
	for _, check := range r.Checks {
		examined[check.Check] = check.Examined
		if check.Breaches > 0 {
			c.Breaches += check.Breaches
			found = append(found, fmt.Sprintf("%s %d", check.Check, check.Breaches))
		}
	}
	since := "as far back as the topics go"
	if !r.Since.IsZero() {
		since = "since " + r.Since.UTC().Format(time.RFC3339)
	}
	compared := fmt.Sprintf("The whole ledger was added up (%d accounts), and %d requested payments and %d fundings were compared with their events, %s.",
		r.Accounts, examined[RequestDecided], examined[Funded], since)
	c.Text = "The books agree. " + compared
	if c.Breaches > 0 {
		c.Verdict = Differs
		c.Text = fmt.Sprintf("The books do not agree: %d breaches (%s). %s", c.Breaches, strings.Join(found, ", "), compared)
	}
	return c
}

// InterruptedError says what a reconciliation was doing when its context ended.
type InterruptedError struct {
	While string
	err   error
}

func (e *InterruptedError) Error() string { return "interrupted while " + e.While }
func (e *InterruptedError) Unwrap() error { return e.err }
