package gateway

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"

	"golang.org/x/text/language"
)

// policy is the Content-Security-Policy of the page. It allows only the gateway's own files and
// requests to the gateway, and no inline script or style. If GRAFANA_URL is set, its origin is the
// only one that may be framed.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

//go:embed page
var pageFiles embed.FS

// languages are the languages of the page. The first is the default. The words of each are in
// page/i18n.
var languages = []language.Tag{language.English, language.Indonesian}

// page is the web page. Its files do not change while the process runs.
type page struct {
	files   map[string]file // by path within page/
	indexes []file          // one for each language
	matcher language.Matcher
	policy  string
}

type file struct {
	kind string // Content-Type
	etag string
	body []byte
}

// kinds are the content types by file extension. The tables of the operating system differ from
// machine to machine, so they are not used.
var kinds = map[string]string{
	".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
	".json": "application/json", ".svg": "image/svg+xml",
}

func newFile(name string, body []byte) file {
	return file{kinds[path.Ext(name)], fmt.Sprintf(`"%x"`, sha256.Sum256(body)), body}
}

// newPage builds the page. All its parts are in the binary, so any test detects an error.
func newPage(grafana GrafanaURL, traceURL string) *page {
	p := &page{files: map[string]file{}, matcher: language.NewMatcher(languages), policy: policy}
	if grafana.origin != "" {
		p.policy += "; frame-src " + grafana.origin
	}
	must := func(err error) {
		if err != nil {
			panic(fmt.Sprintf("the page in this binary: %v", err))
		}
	}
	must(fs.WalkDir(pageFiles, "page", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		body, err := pageFiles.ReadFile(name)
		p.files[strings.TrimPrefix(name, "page/")] = newFile(name, body)
		return err
	}))
	for _, lang := range languages {
		var words map[string]string
		must(json.Unmarshal(p.files["i18n/"+lang.String()+".json"].body, &words))
		var out bytes.Buffer
		index := template.New("index").Funcs(template.FuncMap{"t": func(key string) (string, error) {
			word, ok := words[key]
			if !ok {
				return "", fmt.Errorf("%s has no words for %s", lang, key)
			}
			return word, nil
		}, "panel": grafana.panel})
		must(template.Must(index.Parse(string(p.files["index.html"].body))).Execute(&out, map[string]string{
			"Lang": lang.String(), "Grafana": grafana.link, "Trace": traceURL,
		}))
		p.indexes = append(p.indexes, newFile("index.html", out.Bytes()))
	}
	delete(p.files, "index.html")
	return p
}

// index serves the page.
func (p *page) index(w http.ResponseWriter, r *http.Request) {
	p.speaking(w, r).serve(w, r, p.policy)
}

// speaking returns the page in the language of ?lang=, or in the language that the browser prefers.
func (p *page) speaking(w http.ResponseWriter, r *http.Request) file {
	_, best := language.MatchStrings(p.matcher, r.URL.Query().Get("lang"), r.Header.Get("Accept-Language"))
	w.Header().Set("Vary", "Accept-Language")
	return p.indexes[best]
}

// views are the addresses of the page's views. All of them have the same index. The script shows the
// view of the address.
var views = []string{"/{$}", "/payments", "/payments/{key...}", "/accounts", "/accounts/{id}", "/webhooks", "/webhooks/{id}", "/operations"}

// lost serves the page at an address that no route serves. The script shows that the address is not
// known.
func (p *page) lost(w http.ResponseWriter, r *http.Request) {
	f := p.speaking(w, r)
	f.writeHeaders(w, p.policy)
	w.WriteHeader(http.StatusNotFound)
	if r.Method != http.MethodHead {
		w.Write(f.body)
	}
}

// wantsPage reports whether a person follows an address of the gateway in a browser. Programs get
// JSON.
func wantsPage(r *http.Request) bool {
	for _, part := range []string{"/api", "/page", "/docs"} {
		if r.URL.Path == part || strings.HasPrefix(r.URL.Path, part+"/") {
			return false
		}
	}
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && strings.Contains(r.Header.Get("Accept"), "text/html")
}

func (p *page) file(w http.ResponseWriter, r *http.Request) {
	f, ok := p.files[r.PathValue("file")]
	if !ok {
		writeProblem(w, http.StatusNotFound, "The page has no such file", fmt.Sprintf("%.200q is not a file of the page.", r.URL.Path))
		return
	}
	f.serve(w, r, p.policy)
}

// serve makes browsers ask each time whether their copy is current. It answers 304 if it is.
func (f file) serve(w http.ResponseWriter, r *http.Request, policy string) {
	f.writeHeaders(w, policy)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.body))
}

func (f file) writeHeaders(w http.ResponseWriter, policy string) {
	h := w.Header()
	h.Set("Content-Type", f.kind)
	h.Set("ETag", f.etag)
	h.Set("Cache-Control", "no-cache")
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
}
