package kafka

import "time"

// SetSilence sets a shorter wait for a test.
func (r *Reader) SetSilence(d time.Duration) { r.silence = d }
