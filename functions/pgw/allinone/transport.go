package allinone

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
)

// transport calls the functions of this process directly. It delivers events when all functions are
// in one process. The hosts of its URLs are the functions' names.
type transport map[string]http.Handler

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	handler, ok := t[r.URL.Host]
	if !ok {
		return nil, fmt.Errorf("there is no function %s in this process", r.URL.Host)
	}
	// The handler gets a copy of the request, as from a server, because a handler may change it and
	// a transport must not.
	in := r.Clone(r.Context())
	in.Host, in.RequestURI = r.URL.Host, r.URL.RequestURI()
	if in.Body == nil {
		in.Body = http.NoBody
	}
	defer in.Body.Close()
	w := &response{header: http.Header{}, code: http.StatusOK}
	if err := serve(handler, w, in); err != nil {
		return nil, err
	}
	return &http.Response{
		Status: http.StatusText(w.code), StatusCode: w.code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.header, Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: r,
	}, nil
}

// serve turns a panic into an error, as an HTTP server does, so that no event ends the process.
func serve(handler http.Handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the function %s panicked: %v", r.Host, p)
		}
	}()
	handler.ServeHTTP(w, r)
	return nil
}

type response struct {
	header http.Header
	code   int
	wrote  bool
	body   bytes.Buffer
}

func (w *response) Header() http.Header { return w.header }

func (w *response) WriteHeader(code int) {
	if !w.wrote {
		w.code, w.wrote = code, true
	}
}

func (w *response) Write(p []byte) (int, error) {
	w.wrote = true
	return w.body.Write(p)
}
