// Package docs holds the documents of pgw's interfaces, HTTP and events, and makes a page of them.
package docs

import (
	_ "embed"
	"net/http"
	"sync"

	"pgw/shared/function"
)

// The documents, as they are served.
var (
	//go:embed openapi.yaml
	OpenAPI []byte
	//go:embed asyncapi.yaml
	AsyncAPI []byte
	//go:embed examples.md
	Examples []byte
)

// render makes the page once, when it is first asked for: a start should not wait for it.
var render = sync.OnceValues(newPage)

// Routes adds the documents and their page.
func Routes(mux *function.Mux) {
	mux.HandleFunc("GET /openapi.yaml", func(w http.ResponseWriter, _ *http.Request) { serve(w, "application/yaml", OpenAPI) })
	mux.HandleFunc("GET /asyncapi.yaml", func(w http.ResponseWriter, _ *http.Request) { serve(w, "application/yaml", AsyncAPI) })
	mux.HandleFunc("GET /docs", func(w http.ResponseWriter, _ *http.Request) {
		p, err := render()
		if err != nil {
			panic(err) // a test renders the same documents
		}
		w.Header().Set("Content-Security-Policy", p.policy)
		serve(w, "text/html; charset=utf-8", p.html)
	})
}

func serve(w http.ResponseWriter, contentType string, text []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Write(text)
}
