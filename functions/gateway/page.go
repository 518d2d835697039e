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

// policy lets the page load what it is made of from here, talk to here, and nothing else. No script or style
// stands within it. Where there is a Grafana, its origin alone may be framed.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

//go:embed page
var pageFiles embed.FS

// languages of the page; the first is for whoever wants none of them. Each has its words in page/i18n.
var languages = []language.Tag{language.English, language.Indonesian}

// page is the web page: files that don't change while the process lives.
type page struct {
	files   map[string]file // by path within page/
	indexes []file          // one for each of the languages
	matcher language.Matcher
	policy  string
}

type file struct {
	kind string // Content-Type
	etag string
	body []byte
}

// kinds are told by us: what a system's tables say of an ending differs from machine to machine.
var kinds = map[string]string{
	".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
	".json": "application/json", ".svg": "image/svg+xml",
}

func newFile(name string, body []byte) file {
	return file{kinds[path.Ext(name)], fmt.Sprintf(`"%x"`, sha256.Sum256(body)), body}
}

// newPage makes the page ready. What it is made of is in the binary, so what can go wrong is seen by any test.
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

// index is in the language that is asked for by ?lang=, or that the browser prefers.
func (p *page) index(w http.ResponseWriter, r *http.Request) {
	_, best := language.MatchStrings(p.matcher, r.URL.Query().Get("lang"), r.Header.Get("Accept-Language"))
	w.Header().Set("Vary", "Accept-Language")
	p.indexes[best].serve(w, r, p.policy)
}

func (p *page) file(w http.ResponseWriter, r *http.Request) {
	f, ok := p.files[r.PathValue("file")]
	if !ok {
		writeProblem(w, http.StatusNotFound, "The page has no such file", fmt.Sprintf("%.200q is not a part of it.", r.URL.Path))
		return
	}
	f.serve(w, r, p.policy)
}

// serve has browsers ask each time whether they have the newest, and answers 304 when so.
func (f file) serve(w http.ResponseWriter, r *http.Request, policy string) {
	h := w.Header()
	h.Set("Content-Type", f.kind)
	h.Set("ETag", f.etag)
	h.Set("Cache-Control", "no-cache")
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.body))
}
