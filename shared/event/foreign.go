package event

import (
	"fmt"
	"net/http"
	"strings"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
)

// Foreign runs a decoder of another library on input from outside. A panic of the decoder becomes
// an error that wraps ErrMalformed, and only this call fails.
func Foreign[T any](decode func() (T, error)) (decoded T, err error) {
	defer func() {
		if p := recover(); p != nil {
			var none T
			decoded, err = none, fmt.Errorf("%w: the decoder panicked: %v", ErrMalformed, p)
		}
	}()
	return decode()
}

// AttributeName reports whether CloudEvents allows name as the name of an attribute: one or more
// lower-case letters and digits.
func AttributeName(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// checkHeader checks the names of an event's attributes before the SDK does, because the SDK panics
// at the header "ce-". HTTP header names ignore case.
func checkHeader(h http.Header) error {
	for name := range h {
		attribute, ok := strings.CutPrefix(strings.ToLower(name), "ce-")
		if ok && !AttributeName(attribute) {
			return fmt.Errorf("%w: %q is not a name of an attribute", ErrMalformed, attribute)
		}
	}
	return nil
}

// checkMode refuses a signed event in structured mode. A forwarder of such an event, for example
// KafkaSource, may encode its data again, and the signature covers the bytes of the data.
func checkMode(e *cloudevents.Event, h http.Header) error {
	if !strings.HasPrefix(strings.ToLower(h.Get("Content-Type")), "application/cloudevents") || e.Extensions()[ExtSignature] == nil {
		return nil
	}
	return SignedStructured(e.Type(), e.ID())
}

// SignedStructured returns the error for a signed event in structured mode.
func SignedStructured(eventType, id string) error {
	return fmt.Errorf("%w: %s %s is in structured mode, and forwarders encode its data again: send a signed event in binary mode",
		ErrSignature, eventType, id)
}
