package gateway

import (
	"fmt"
	"mime"
	"net/http"
	"strings"

	"pgw/shared/payment"
)

// problemType is the name of a kind of problems. docs/openapi.yaml explains each (ProblemType), and
// its page has an anchor for each.
type problemType string

const (
	badRequest          problemType = "bad-request"
	unsupportedCurrency problemType = "unsupported-currency"
	unauthenticated     problemType = "unauthenticated"
	notAllowed          problemType = "not-allowed"
	otherOrigin         problemType = "other-origin"
	notFound            problemType = "not-found"
	noPayment           problemType = "no-payment"
	methodNotAllowed    problemType = "method-not-allowed"
	conflict            problemType = "conflict"
	bodyTooLarge        problemType = "body-too-large"
	notJSON             problemType = "not-json"
	misdirected         problemType = "misdirected"
	tooManyRequests     problemType = "too-many-requests"
	tooManyQuotes       problemType = "too-many-quotes"
	unreachable         problemType = "unreachable"
	overloaded          problemType = "overloaded"
	notOffered          problemType = "not-offered"
	providerUnavailable problemType = "provider-unavailable"
)

// typesByTitle are the types of problems that need more than their status to say what to do.
var typesByTitle = map[string]problemType{
	"Unsupported currency":                  unsupportedCurrency,
	"Another origin's page":                 otherOrigin,
	"The ledger has no payment of this key": noPayment,
	"Too many open quotes":                  tooManyQuotes,
	"The token can't be verified now":       providerUnavailable,
}

var typesByCode = map[int]problemType{
	http.StatusBadRequest:            badRequest,
	http.StatusUnauthorized:          unauthenticated,
	http.StatusForbidden:             notAllowed,
	http.StatusNotFound:              notFound,
	http.StatusMethodNotAllowed:      methodNotAllowed,
	http.StatusConflict:              conflict,
	http.StatusRequestEntityTooLarge: bodyTooLarge,
	http.StatusUnsupportedMediaType:  notJSON,
	http.StatusMisdirectedRequest:    misdirected,
	http.StatusTooManyRequests:       tooManyRequests,
	http.StatusBadGateway:            unreachable,
	http.StatusServiceUnavailable:    overloaded,
	http.StatusNotImplemented:        notOffered,
}

// address returns the address of the explanation, relative to the gateway.
func (t problemType) address() string { return "/docs#problem-" + string(t) }

func typeOf(code int, title string) problemType {
	if t, ok := typesByTitle[title]; ok {
		return t
	}
	return typesByCode[code]
}

// writeProblem writes a problem document (RFC 9457), for responses without the contract's own body.
// wrong are the fields that it is about.
func writeProblem(w http.ResponseWriter, code int, title, detail string, wrong ...payment.Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	writeBody(w, code, struct {
		Type   string       `json:"type"`
		Title  string       `json:"title"`
		Status int          `json:"status"`
		Detail string       `json:"detail"`
		Errors []wrongField `json:"errors,omitempty"`
	}{typeOf(code, title).address(), title, code, detail, wrongFields(wrong)})
}

// tryAgain tells the client when to send the same request again.
func tryAgain(w http.ResponseWriter) { w.Header().Set("Retry-After", "1") }

// writeWrong answers 400 with all wrong fields of a request.
func writeWrong(w http.ResponseWriter, wrong payment.Problems) {
	title := "Bad request"
	if badOrder(wrong) == payment.UnsupportedCurrency {
		title = "Unsupported currency"
	}
	writeProblem(w, http.StatusBadRequest, title, wrong.Error(), wrong...)
}

// noRoute answers requests that no route serves. It answers 405 if the path has other methods, else
// 404.
func noRoute(w http.ResponseWriter, r *http.Request, methods []string) {
	if len(methods) == 0 {
		writeProblem(w, http.StatusNotFound, "There is nothing at this path", fmt.Sprintf("%.200q is not a path of pgw; /docs lists the paths.", r.URL.Path))
		return
	}
	allow := strings.Join(methods, ", ")
	w.Header().Set("Allow", allow)
	writeProblem(w, http.StatusMethodNotAllowed, "This path does not have this method",
		fmt.Sprintf("%.200q takes %s, not %.20q.", r.URL.Path, allow, r.Method))
}

// readable reports whether a request's body can be JSON. If not, it writes the response. It accepts
// the types that clients send by default, because callers rely on it: curl sends a form's type, and
// browsers send plain text.
func readable(w http.ResponseWriter, r *http.Request) bool {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		w.Header().Set("Accept-Encoding", "identity")
		writeProblem(w, http.StatusUnsupportedMediaType, "The body is compressed", fmt.Sprintf("Content-Encoding %.50q is not supported: send the JSON uncompressed.", coding))
		return false
	}
	given := r.Header.Get("Content-Type")
	switch given {
	case "", "application/json":
		return true
	}
	media, _, err := mime.ParseMediaType(given)
	switch {
	case err != nil:
	case media == "application/json", strings.HasSuffix(media, "+json"), media == "text/plain", media == "application/x-www-form-urlencoded":
		return true
	}
	w.Header().Set("Accept", "application/json")
	writeProblem(w, http.StatusUnsupportedMediaType, "The body is not JSON", fmt.Sprintf("Content-Type %.100q is not supported: send application/json.", given))
	return false
}
