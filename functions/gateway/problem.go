package gateway

import (
	"fmt"
	"mime"
	"net/http"
	"strings"
)

// noRoute answers what no route takes: 405 where the path is taken by other methods, else 404.
func noRoute(w http.ResponseWriter, r *http.Request, methods []string) {
	if len(methods) == 0 {
		writeProblem(w, http.StatusNotFound, "There is nothing at this path", fmt.Sprintf("%.200q is no path of pgw; /docs lists them.", r.URL.Path))
		return
	}
	allow := strings.Join(methods, ", ")
	w.Header().Set("Allow", allow)
	writeProblem(w, http.StatusMethodNotAllowed, "This path is not for this method",
		fmt.Sprintf("%.200q takes %s, not %.20q.", r.URL.Path, allow, r.Method))
}

// readable tells whether a request's body can be JSON, or answers why it is not read. Types that clients write when
// they are not told one (curl a form's, browsers plain text) are let through: callers rely on it.
func readable(w http.ResponseWriter, r *http.Request) bool {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		w.Header().Set("Accept-Encoding", "identity")
		writeProblem(w, http.StatusUnsupportedMediaType, "The body is compressed", fmt.Sprintf("Content-Encoding %.50q is not read: send the JSON as it is.", coding))
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
	writeProblem(w, http.StatusUnsupportedMediaType, "The body is not JSON", fmt.Sprintf("Content-Type %.100q is not read: send application/json.", given))
	return false
}
