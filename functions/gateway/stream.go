package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// wantsStream tells that the client would rather hear of each stage as it ends.
func wantsStream(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/event-stream")
}

// holdBack is how long the first events wait for each other. Go's reverse proxies, queue-proxy among them, break a
// connection whose answer begins before they have seen the end of the request, and the first stage takes microseconds.
const holdBack = 5 * time.Millisecond

// eventStream answers a payment as server-sent events, on the connection of its request: "stage" for each stage
// as it ends, and "answer" at the end. Its status is 200 before anything is known, so the answer has its own.
type eventStream struct {
	mu   sync.Mutex
	w    http.ResponseWriter
	ctrl *http.ResponseController
	open bool // events go out as they come
	over bool
}

// newEventStream begins the answer: the request has been read.
func newEventStream(w http.ResponseWriter) *eventStream {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	// Proxies would otherwise keep the events until they have a bufferful.
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

// end comes before the handler returns: nothing may be flushed after that.
func (s *eventStream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

// send writes one event. A client that went away is not told anything any more: its payment goes on.
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
