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

// MaxBytes bounds an event's HTTP body.
const MaxBytes = 256 << 10

// handleTimeout bounds the handling of one event, where the sender sets no shorter bound by hanging up.
const handleTimeout = 30 * time.Second

// Handler takes one event. nil acknowledges it. An error that wraps ErrMalformed, ErrSignature or
// ErrRefused says that the event can never work, and sends it to the dead letters; any other error says
// that it may work later.
type Handler func(ctx context.Context, e cloudevents.Event) error

// ErrRefused means an event that is well-formed and yet not for this function, or past help.
var ErrRefused = errors.New("event refused")

// Refused tells that a handler's error says: never.
func Refused(err error) bool {
	return errors.Is(err, ErrMalformed) || errors.Is(err, ErrSignature) || errors.Is(err, ErrRefused)
}

// HTTP receives events in binary mode, and unsigned ones in structured mode too. The status is the acknowledgement that KafkaSource
// goes by: 202; 400, 403 and 413, which it never retries; 503, which it does.
func HTTP(h Handler, log *slog.Logger) http.Handler {
	// Where everything fails, or somebody sends what is refused, a line for each event would bury the rest of the log.
	told := outages{trace.NewOutage(log, time.Now, "event put off"), trace.NewOutage(log, time.Now, "event refused")}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serve(h, told, w, r) })
}

type outages struct{ putOff, refused *trace.Outage }

func serve(h Handler, told outages, w http.ResponseWriter, r *http.Request) {
	arrived := &arriving{ReadCloser: r.Body}
	r.Body = http.MaxBytesReader(w, arrived, MaxBytes)
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
		if arrived.err != nil {
			// That says nothing of the event, which may be sent again.
			http.Error(w, "the event did not arrive: "+arrived.err.Error(), http.StatusRequestTimeout)
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
		told.refused.Note(r.Context(), err, "type", e.Type(), "id", e.ID())
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
		told.putOff.Note(ctx, nil)
		told.refused.Note(ctx, nil)
		w.WriteHeader(http.StatusAccepted)
	case errors.Is(err, ErrSignature):
		told.refused.Note(ctx, err, "type", e.Type(), "id", e.ID())
		text := err.Error()
		if e.Extensions()[ExtSignature] != nil {
			// KafkaSource delivers in binary mode what came in structured mode: what was sent can't be seen here.
			text += "; if it was sent in structured mode, send it in binary mode: structured data is written anew on its way"
		}
		http.Error(w, text, http.StatusForbidden)
	case Refused(err):
		told.refused.Note(ctx, err, "type", e.Type(), "id", e.ID())
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		told.putOff.Note(ctx, err, "type", e.Type(), "id", e.ID())
		w.Header().Set("Retry-After", "1")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// arriving remembers why a body could not be read.
type arriving struct {
	io.ReadCloser
	err error
}

func (a *arriving) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		a.err = err
	}
	return n, err
}

type headerKey struct{}

// Header gives the HTTP headers that the event came with.
func Header(ctx context.Context) http.Header {
	h, _ := ctx.Value(headerKey{}).(http.Header)
	return h
}
