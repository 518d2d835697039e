// Package docs serves the documents of pgw's HTTP interface and of its events, and their page.
// The page is made by `make generate` (render/): the gateway only sends it.
package docs

import (
	_ "embed"
	"fmt"
	"net/http"
	"sync"

	"sigs.k8s.io/yaml"

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

// openAPIJSON is OpenAPI as JSON. It is made at the first request.
var openAPIJSON = sync.OnceValue(func() []byte {
	text, err := yaml.YAMLToJSON(OpenAPI)
	if err != nil {
		panic(fmt.Sprintf("the API document in this binary: %v", err)) // not possible: tests read it
	}
	return append(text, '\n')
})

// The page that is made of the documents, and its Content-Security-Policy.
var (
	//go:embed page.html
	page []byte
	//go:embed page.csp
	policy string
)

// Routes adds the documents and their page.
func Routes(mux *function.Mux) {
	mux.HandleFunc("GET /openapi.yaml", func(w http.ResponseWriter, _ *http.Request) { serve(w, "application/yaml", OpenAPI) })
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) { serve(w, "application/json", openAPIJSON()) })
	mux.HandleFunc("GET /asyncapi.yaml", func(w http.ResponseWriter, _ *http.Request) { serve(w, "application/yaml", AsyncAPI) })
	mux.HandleFunc("GET /docs", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		serve(w, "text/html; charset=utf-8", page)
	})
}

func serve(w http.ResponseWriter, contentType string, text []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Write(text)
}
