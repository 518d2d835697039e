package event

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"

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

// Answer says what became of an event. Its code is the acknowledgement for KafkaSource: 202 means
// handled. KafkaSource never retries 400, 403 and 413, and retries 408 and 503.
type Answer struct {
	Code int    // an HTTP status
	Text string // why the event was not handled; empty if it was
}

// write writes the answer as an HTTP response.
func (a Answer) write(w http.ResponseWriter) {
	if a.Code == http.StatusAccepted {
		w.WriteHeader(a.Code)
		return
	}
	if a.Code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	http.Error(w, a.Text, a.Code)
}

// Receive takes an event from a sender in the same process: the headers and the body that the event has in
// HTTP. It changes neither.
type Receive func(ctx context.Context, header http.Header, body []byte) Answer

// Receiver receives events for a handler: in binary mode, and unsigned events also in structured mode.
// It has two ways in, HTTP and Receive. They differ only in how the body arrives.
type Receiver struct {
	handle Handler
	// If many events fail or are refused, a log line for each would hide the rest of the log.
	putOff, refused *trace.Outage
}

// NewReceiver makes a receiver.
func NewReceiver(h Handler, log *slog.Logger) *Receiver {
	return &Receiver{h, trace.NewOutage(log, time.Now, "event put off"), trace.NewOutage(log, time.Now, "event refused")}
}

// ServeHTTP implements http.Handler.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.receive(req.Context(), req.Header, func() ([]byte, error) { return readBody(w, req) }).write(w)
}

// Receive is a Receive.
func (r *Receiver) Receive(ctx context.Context, header http.Header, body []byte) Answer {
	return r.receive(ctx, header, func() ([]byte, error) {
		if len(body) > MaxBytes {
			return nil, errTooLarge
		}
		return body, nil
	})
}

var (
	errTooLarge = errors.New("the event is larger than 256 KiB")
	// errNotArrived says nothing about the event, so the sender may send it again.
	errNotArrived = errors.New("the event did not arrive")
)

// usualBytes is more than most bodies have. A sender that announces more must send it first.
const usualBytes = 4 << 10

func readBody(w http.ResponseWriter, req *http.Request) ([]byte, error) {
	var body bytes.Buffer
	body.Grow(int(min(max(req.ContentLength, 0), usualBytes)) + bytes.MinRead)
	_, err := body.ReadFrom(http.MaxBytesReader(w, req.Body, MaxBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, errTooLarge
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNotArrived, err)
	}
	return body.Bytes(), nil
}

// receive handles an event. It reads the body when the header is that of an event.
func (r *Receiver) receive(ctx context.Context, header http.Header, body func() ([]byte, error)) Answer {
	e, err := decode(header, body)
	switch {
	case errors.Is(err, errTooLarge):
		return Answer{http.StatusRequestEntityTooLarge, err.Error()}
	case errors.Is(err, errNotArrived):
		return Answer{http.StatusRequestTimeout, err.Error()}
	case err != nil:
		return Answer{http.StatusBadRequest, "not a CloudEvent: " + err.Error()}
	}
	if err := e.Validate(); err != nil {
		return Answer{http.StatusBadRequest, "not a valid CloudEvent: " + err.Error()}
	}
	if err := checkMode(e, header); err != nil {
		r.refused.Note(ctx, err, "type", e.Type(), "id", e.ID())
		return Answer{http.StatusForbidden, err.Error()}
	}
	ctx = context.WithValue(ctx, headerKey{}, header)
	ctx, cancel := context.WithTimeout(ctx, handleTimeout)
	defer cancel()
	ctx = WithKey(ctx, e.Type(), e.Subject())
	ctx, span := startTrace(ctx, header, e)
	err = r.handle(ctx, *e)
	trace.End(span, err)
	switch {
	case err == nil:
		r.putOff.Note(ctx, nil)
		r.refused.Note(ctx, nil)
		return Answer{Code: http.StatusAccepted}
	case errors.Is(err, ErrSignature):
		r.refused.Note(ctx, err, "type", e.Type(), "id", e.ID())
		text := err.Error()
		if e.Extensions()[ExtSignature] != nil {
			// KafkaSource delivers structured events in binary mode, so this code cannot see how
			// the event was sent.
			text += "; if it was sent in structured mode, send it in binary mode, because forwarders encode structured data again"
		}
		return Answer{http.StatusForbidden, text}
	case Refused(err):
		r.refused.Note(ctx, err, "type", e.Type(), "id", e.ID())
		return Answer{http.StatusBadRequest, err.Error()}
	default:
		r.putOff.Note(ctx, err, "type", e.Type(), "id", e.ID())
		return Answer{http.StatusServiceUnavailable, err.Error()}
	}
}

// decode parses an event. In binary mode its data is the body itself: the library would copy it.
func decode(header http.Header, body func() ([]byte, error)) (*cloudevents.Event, error) {
	if err := checkHeader(header); err != nil {
		return nil, err
	}
	message := cehttp.NewMessage(header, nil)
	if encoding := message.ReadEncoding(); encoding == binding.EncodingStructured || encoding == binding.EncodingBatch {
		text, err := body()
		if err != nil {
			return nil, err
		}
		message.BodyReader = io.NopCloser(bytes.NewReader(text))
	}
	e, err := Foreign(func() (*cloudevents.Event, error) { return binding.ToEvent(context.Background(), message) })
	if err != nil || message.BodyReader != nil {
		return e, err
	}
	data, err := body()
	if err == nil && len(data) > 0 {
		e.DataEncoded = data
	}
	return e, err
}

type headerKey struct{}

// Header returns the HTTP headers of the request that delivered the event.
func Header(ctx context.Context) http.Header {
	h, _ := ctx.Value(headerKey{}).(http.Header)
	return h
}
