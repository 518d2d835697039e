package gateway

import (
	"net/http"
	"strings"

	"github.com/google/uuid"

	"pgw/shared/trace"
)

// requestIDHeader has the id of a request, by which a client and an operator find the same request in
// their logs.
const requestIDHeader = "X-Request-Id"

// maxRequestID is the longest id that is taken from a client, in bytes.
const maxRequestID = 128

// withRequestID gives the request an id: the client's, or a new one if it has none that can be used.
// The response and the request's log lines and spans have the id.
func withRequestID(w http.ResponseWriter, r *http.Request) *http.Request {
	var id string
	if given := r.Header.Values(requestIDHeader); len(given) == 1 && usableID(given[0]) {
		id = given[0]
	} else {
		id = uuid.Must(uuid.NewV7()).String()
	}
	w.Header()[requestIDHeader] = []string{id}
	return r.WithContext(trace.WithRequest(r.Context(), id))
}

// usableID reports whether a client's id can be written into any log as it is.
func usableID(id string) bool {
	return id != "" && len(id) <= maxRequestID && !strings.ContainsFunc(id, func(c rune) bool {
		return (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("-_.:+/=@", c)
	})
}
