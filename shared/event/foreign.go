package event

import (
	"fmt"
	"net/http"
	"strings"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
)

// Foreign runs a decoder that is not ours on input that is not ours either. A panic of the decoder means that the
// event is malformed, and ends nothing but this call.
func Foreign[T any](decode func() (T, error)) (decoded T, err error) {
	defer func() {
		if p := recover(); p != nil {
			var none T
			decoded, err = none, fmt.Errorf("%w: its decoder panicked: %v", ErrMalformed, p)
		}
	}()
	return decode()
}

// AttributeName tells whether CloudEvents allows this name for an attribute: lower-case letters and digits, at least one.
func AttributeName(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// checkHeader looks at the names of an event's attributes before the SDK does: it panics at a header "ce-". HTTP's
// header names have no case.
func checkHeader(h http.Header) error {
	for name := range h {
		attribute, ok := strings.CutPrefix(strings.ToLower(name), "ce-")
		if ok && !AttributeName(attribute) {
			return fmt.Errorf("%w: %q is no name of an attribute", ErrMalformed, attribute)
		}
	}
	return nil
}

// checkMode refuses a signed event in structured mode. Whoever passes such an event on may write its data anew (KafkaSource
// does), and a signature is over the data's bytes.
func checkMode(e *cloudevents.Event, h http.Header) error {
	signature := e.Extensions()[ExtSignature]
	if signature == nil || !strings.HasPrefix(strings.ToLower(h.Get("Content-Type")), "application/cloudevents") {
		return nil
	}
	return SignedStructured(e.Type(), e.ID())
}

// SignedStructured is why a signed event in structured mode is refused.
func SignedStructured(eventType, id string) error {
	return fmt.Errorf("%w: %s %s is in structured mode, whose data is written anew on its way: a signed event is sent in binary mode",
		ErrSignature, eventType, id)
}
