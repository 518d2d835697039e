package kafkasource

import (
	"bytes"
	"log/slog"
	"net/http"
	"strings"
	"testing"
)

// A sink that refuses everything is one line in the log, and not one for each event.
func TestManyDeadLettersAreOneLine(t *testing.T) {
	var text bytes.Buffer // is read after the sources have ended
	r := newRig(t, 1, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) })
	stop := r.start(manifest(), func(c *Options) { c.Log = slog.New(slog.NewTextHandler(&text, nil)) })
	const events = 30
	for range events {
		r.sendEvent("key", "value")
	}
	r.committed(events)
	stop()
	if n := strings.Count(text.String(), "an event goes to the dead letters"); n != 1 {
		t.Errorf("%d lines:\n%s", n, &text)
	}
}
