package gateway

import (
	"fmt"
	"mime"
	"net/http"
	"strings"

	"pgw/shared/payment"
)

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
	}{"about:blank", title, code, detail, wrongFields(wrong)})
}

// tryAgain tells the client when to send the same request again.
func tryAgain(w http.ResponseWriter) { w.Header().Set("Retry-After", "1") }

// writeWrong answers 400 with all wrong fields of a request.
func writeWrong(w http.ResponseWriter, wrong payment.Problems) {
	writeProblem(w, http.StatusBadRequest, "Bad request", wrong.Error(), wrong...)
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
