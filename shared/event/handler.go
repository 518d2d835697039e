package event

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/trace"
)

// MaxBytes is the maximum size of an event's HTTP body, in bytes.
const MaxBytes = 256 << 10

// handleTimeout is the time limit for handling one event. The sender can end it earlier by closing
// the connection.
const handleTimeout = 30 * time.Second

// Handler handles one event. nil acknowledges it. An error that wraps ErrMalformed, ErrSignature or
// ErrRefused means that the event can never succeed, and it becomes a dead letter. Any other error
// means that it may succeed later.
type Handler func(ctx context.Context, e cloudevents.Event) error

// ErrRefused means that an event is well-formed, but this function does not accept it or it can no
// longer succeed.
var ErrRefused = errors.New("event refused")

// Refused reports whether a handler's error means that the event can never succeed.
func Refused(err error) bool {
	return errors.Is(err, ErrMalformed) || errors.Is(err, ErrSignature) || errors.Is(err, ErrRefused)
}

// HTTP returns an HTTP handler that receives events in binary mode, and unsigned events also in
// structured mode. The status is the acknowledgement for KafkaSource: 202 means handled.
// KafkaSource never retries 400, 403 and 413, and retries 503.
func HTTP(h Handler, log *slog.Logger) http.Handler {
	// If many events fail or are refused, a log line for each would hide the rest of the log.
	noted := outages{trace.NewOutage(log, time.Now, "event put off"), trace.NewOutage(log, time.Now, "event refused")}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serve(h, noted, w, r) })
}

type outages struct{ putOff, refused *trace.Outage }

func serve(h Handler, noted outages, w http.ResponseWriter, r *http.Request) {
	body := &bodyReader{ReadCloser: r.Body}
	r.Body = http.MaxBytesReader(w, body, MaxBytes)
	if err := checkHeader(r.Header); err != nil {
		http.Error(w, "not a CloudEvent: "+err.Error(), http.StatusBadRequest)
		return
	}
	e, err := Foreign(func() (*cloudevents.Event, error) { return cehttp.NewEventFromHTTPRequest(r) })
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			http.Error(w, "the event is larger than 256 KiB", http.StatusRequestEntityTooLarge)
			return
		}
		if body.err != nil {
			// A read error says nothing about the event, so the sender may send it again.
			http.Error(w, "the event did not arrive: "+body.err.Error(), http.StatusRequestTimeout)
			return
		}
		http.Error(w, "not a CloudEvent: "+err.Error(), http.StatusBadRequest)
		return
	}
	if err := e.Validate(); err != nil {
		http.Error(w, "not a valid CloudEvent: "+err.Error(), http.StatusBadRequest)
		return
	}
	if err := checkMode(e, r.Header); err != nil {
		noted.refused.Note(r.Context(), err, "type", e.Type(), "id", e.ID())
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	ctx := context.WithValue(r.Context(), headerKey{}, r.Header)
	ctx, cancel := context.WithTimeout(ctx, handleTimeout)
	defer cancel()
	ctx = WithKey(ctx, e.Type(), e.Subject())
	ctx, span := startTrace(ctx, r.Header, e)
	err = h(ctx, *e)
	trace.End(span, err)
	switch {
	case err == nil:
		noted.putOff.Note(ctx, nil)
		noted.refused.Note(ctx, nil)
		w.WriteHeader(http.StatusAccepted)
	case errors.Is(err, ErrSignature):
		noted.refused.Note(ctx, err, "type", e.Type(), "id", e.ID())
		text := err.Error()
		if e.Extensions()[ExtSignature] != nil {
			// KafkaSource delivers structured events in binary mode, so this code cannot see how
			// the event was sent.
			text += "; if it was sent in structured mode, send it in binary mode, because forwarders encode structured data again"
		}
		http.Error(w, text, http.StatusForbidden)
	case Refused(err):
		noted.refused.Note(ctx, err, "type", e.Type(), "id", e.ID())
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		noted.putOff.Note(ctx, err, "type", e.Type(), "id", e.ID())
		w.Header().Set("Retry-After", "1")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// bodyReader remembers why a body could not be read.
type bodyReader struct {
	io.ReadCloser
	err error
}

func (a *bodyReader) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		a.err = err
	}
	return n, err
}

type headerKey struct{}

// Header returns the HTTP headers of the request that delivered the event.
func Header(ctx context.Context) http.Header {
	h, _ := ctx.Value(headerKey{}).(http.Header)
	return h
}
