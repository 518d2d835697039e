package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// wantsStream reports whether the client asks for an event at the end of each stage.
func wantsStream(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/event-stream")
}

// holdBack is how long the first events are held back. Go's reverse proxies, such as queue-proxy,
// break a connection whose response starts before they have seen the end of the request. The first
// stage takes only microseconds.
const holdBack = 5 * time.Millisecond

// eventStream answers a payment with server-sent events on the connection of its request: "stage"
// at the end of each stage, and "answer" at the end. The HTTP status is 200 before the outcome is
// known, so the answer event has its own status.
type eventStream struct {
	mu   sync.Mutex
	w    http.ResponseWriter
	ctrl *http.ResponseController
	open bool // events are flushed as they are written
	over bool // the handler has returned or is about to
}

// newEventStream starts the response. The request's body must have been read.
func newEventStream(w http.ResponseWriter) *eventStream {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	// Otherwise proxies would hold the events until their buffer is full.
	w.Header().Set("X-Accel-Buffering", "no")
	s := &eventStream{w: w, ctrl: http.NewResponseController(w)}
	time.AfterFunc(holdBack, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.open = true; !s.over {
			s.ctrl.Flush()
		}
	})
	return s
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

// end must be called before the handler returns: no flush is allowed after that.
func (s *eventStream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

// send writes one event. Errors are ignored, because the payment continues if the client has left.
func (s *eventStream) send(name string, data any) {
	text, err := json.Marshal(data)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", name, text)
	if s.open {
		s.ctrl.Flush()
	}
}
