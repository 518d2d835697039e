package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// wantsStream tells that the client would rather hear of each stage as it ends.
func wantsStream(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/event-stream")
}

// eventStream answers a payment as server-sent events, on the connection of its request: "stage" for each stage
// as it ends, and "answer" at the end. Its status is 200 before anything is known, so the answer has its own.
type eventStream struct {
	w    http.ResponseWriter
	ctrl *http.ResponseController
}

func newEventStream(w http.ResponseWriter) *eventStream {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	// Proxies would otherwise keep the events until they have a bufferful.
	w.Header().Set("X-Accel-Buffering", "no")
	return &eventStream{w, http.NewResponseController(w)}
}

func (s *eventStream) stage(t stageTime) {
	s.send("stage", struct {
		Stage string  `json:"stage"`
		MS    float64 `json:"ms"`
	}{t.name, t.millis()})
}

func (s *eventStream) answer(code int, body answer) {
	s.send("answer", struct {
		Code int `json:"http_status"`
		answer
	}{code, body})
}

// send writes one event. A client that went away is not told anything any more: its payment goes on.
func (s *eventStream) send(name string, data any) {
	text, err := json.Marshal(data)
	if err != nil {
		return
	}
	fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", name, text)
	s.ctrl.Flush()
}
