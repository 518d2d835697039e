package kafka

import "time"

// SetSilence has a test wait less long than an operator.
func (r *Reader) SetSilence(d time.Duration) { r.silence = d }
