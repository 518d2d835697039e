package gateway

import (
	"encoding/json"
	"fmt"
	"html"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgw/shared/function"
	"pgw/shared/payment"
)

func grafanaAt(t *testing.T, address string) (g GrafanaURL) {
	t.Helper()
	if err := g.UnmarshalText([]byte(address)); err != nil {
		t.Fatalf("%q: %v", address, err)
	}
	return g
}

func servePage(t *testing.T, method, url string, headers ...string) *http.Response {
	t.Helper()
	mux := http.NewServeMux()
	p := newPage(grafanaAt(t, "https://grafana.example/d/pgw"), "https://traces.example/{trace}")
	mux.HandleFunc("GET /{$}", p.index)
	mux.HandleFunc("GET /page/{file...}", p.file)
	r := httptest.NewRequest(method, url, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	return w.Result()
}

func TestPageSpeaksTheLanguageOfTheBrowser(t *testing.T) {
	for accept, want := range map[string]string{
		"": "en", "en-GB,en;q=0.9": "en", "id": "id", "id-ID,id;q=0.9,en;q=0.8": "id", "fr,id;q=0.5": "id", "fr": "en", "en, id;q=0.1": "en", "\x00": "en",
	} {
		if got := servePage(t, http.MethodGet, "/", "Accept-Language", accept); bodyOf(t, got, `<html lang="`+want+`"`) == "" {
			t.Errorf("%q is not answered in %s", accept, want)
		}
	}
	if got := servePage(t, http.MethodGet, "/?lang=id", "Accept-Language", "en"); bodyOf(t, got, `<html lang="id"`) == "" {
		t.Error("the language that was chosen is not the page's")
	}
	if got := servePage(t, http.MethodGet, "/", "Accept-Language", "en"); got.Header.Get("Vary") != "Accept-Language" {
		t.Errorf("Vary: %q", got.Header.Get("Vary"))
	}
}

// bodyOf returns the body, or "" if it lacks one of the parts.
func bodyOf(t *testing.T, resp *http.Response, part string) string {
	t.Helper()
	var b strings.Builder
	if err := resp.Write(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), part) {
		return ""
	}
	return b.String()
}

func TestPageIsServedStrictly(t *testing.T) {
	p := newPage(GrafanaURL{}, "")
	urls := []string{"/"}
	for name := range p.files {
		urls = append(urls, "/page/"+name)
	}
	for _, url := range urls {
		got := servePage(t, http.MethodGet, url)
		kind := kinds[path.Ext(url)]
		if url == "/" {
			kind = "text/html; charset=utf-8"
		}
		h := got.Header
		if got.StatusCode != http.StatusOK || h.Get("Content-Type") != kind || kind == "" || h.Get("Cache-Control") != "no-cache" ||
			h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Content-Security-Policy") != policy+"; frame-src https://grafana.example" {
			t.Errorf("%s: %s %v", url, got.Status, h)
		}
		if again := servePage(t, http.MethodGet, url, "If-None-Match", h.Get("ETag")); again.StatusCode != http.StatusNotModified {
			t.Errorf("%s again: %s", url, again.Status)
		}
	}
	for _, url := range []string{"/page/", "/page/index.html", "/page/../page.go", "/page/i18n", "/page/nothing.js"} {
		if got := servePage(t, http.MethodGet, url); got.StatusCode == http.StatusOK {
			t.Errorf("%s: %s", url, got.Status)
		}
	}
}

// The page may frame only the origin of GRAFANA_URL, and no origin if GRAFANA_URL is empty.
func TestPageFramesOnlyGrafana(t *testing.T) {
	for address, want := range map[string]struct{ frames, base, link string }{
		"":                                     {},
		"http://127.0.0.1:3000":                {"http://127.0.0.1:3000", "http://127.0.0.1:3000", "http://127.0.0.1:3000"},
		"http://127.0.0.1:3000/":               {"http://127.0.0.1:3000", "http://127.0.0.1:3000", "http://127.0.0.1:3000/"},
		"https://Grafana.example":              {"https://grafana.example", "https://grafana.example", "https://Grafana.example"},
		"https://ops.example/grafana/":         {"https://ops.example", "https://ops.example/grafana", "https://ops.example/grafana/"},
		"https://ops.example/grafana/d/pgw/x":  {"https://ops.example", "https://ops.example/grafana", "https://ops.example/grafana/d/pgw/x"},
		"https://grafana.example/d/pgw?kiosk":  {"https://grafana.example", "https://grafana.example", "https://grafana.example/d/pgw?kiosk"},
		"http://localhost:3000/dashboards#all": {"http://localhost:3000", "http://localhost:3000", "http://localhost:3000/dashboards#all"},
	} {
		p := newPage(grafanaAt(t, address), "")
		wanted := policy
		if want.frames != "" {
			wanted += "; frame-src " + want.frames
		}
		if p.policy != wanted {
			t.Errorf("%q: the policy is %s, want %s", address, p.policy, wanted)
		}
		for i, index := range p.indexes {
			text := html.UnescapeString(string(index.body))
			panels := regexp.MustCompile(`<iframe data-src="([^"]*)" title="([^"]+)"`).FindAllStringSubmatch(text, -1)
			if want.frames == "" {
				if strings.Contains(text, "<iframe") || strings.Contains(text, "Grafana") {
					t.Errorf("in %s the page mentions Grafana, but there is none", languages[i])
				}
				continue
			}
			if len(panels) != strings.Count(text, "<iframe") || len(panels) < 3 || !strings.Contains(text, `<a href="`+want.link+`"`) {
				t.Errorf("%q in %s: %d panels, or the link is not there", address, languages[i], len(panels))
			}
			titles := map[string]bool{}
			for _, panel := range panels {
				if !strings.HasPrefix(panel[1], want.base+"/d-solo/pgw-") || !strings.HasSuffix(panel[1], "&from=now-15m&to=now&refresh=5s") {
					t.Errorf("%q: a panel of %s", address, panel[1])
				}
				titles[panel[2]] = true
			}
			if len(titles) != len(panels) {
				t.Errorf("in %s two panels have one title: %v", languages[i], titles)
			}
		}
	}
}

// An address that cannot be framed, or that would change the policy, is a configuration error with
// a reason.
func TestGrafanaURLIsChecked(t *testing.T) {
	for address, want := range map[string]string{
		"grafana:3000":                         "must begin with http:// or https://",
		"/grafana":                             "must begin with http:// or https://",
		"javascript:alert(1)":                  "must begin with http:// or https://",
		"data:text/html,hello":                 "must begin with http:// or https://",
		"http://":                              "must have a host",
		"http://:3000":                         "must have a host",
		"http://*.example":                     "must have a host",
		"http://*":                             "must have a host",
		"http://[::1]:3000":                    "must have a host",
		"http://a;script-src":                  "must have a host",
		"http://a,b.example":                   "must have a host",
		"http://a' 'unsafe-inline":             "is not a URL",
		"http://a b":                           "is not a URL",
		"http://a\r\nSet-Cookie: x":            "is not a URL",
		"http://grafana.example:port":          "is not a URL",
		"http://grafana.example:0":             "has a port that is not valid",
		"http://grafana.example:70000":         "has a port that is not valid",
		"http://admin:secret@grafana.example/": "must have no user and no password",
		"%":                                    "is not a URL",
	} {
		var g GrafanaURL
		err := g.UnmarshalText([]byte(address))
		if err == nil || !strings.Contains(err.Error(), want) || g != (GrafanaURL{}) {
			t.Errorf("%q: %v, %+v, want %q", address, err, g, want)
		}
		t.Setenv("GRAFANA_URL", address)
		t.Setenv("EVENT_KEYS", "k:Zm9yIGRldmVsb3BtZW50IG9ubHksIG5ldmVyIGVsc2V3aGVyZQ==")
		if err := function.ReadEnvironment(&Config{}); err == nil || !strings.Contains(err.Error(), "GRAFANA_URL") || !strings.Contains(err.Error(), want) {
			t.Errorf("the configuration %q: %v", address, err)
		}
	}
}

// Each panel on the page exists in one of the project's dashboards and has the same title there.
func TestPanelsAreOfTheDashboards(t *testing.T) {
	titles := map[string]string{}
	files, err := filepath.Glob("../../compose/grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var board struct {
			UID    string
			Panels []struct {
				ID    int
				Title string
			}
		}
		if err := json.Unmarshal(text, &board); err != nil {
			t.Fatal(err)
		}
		for _, panel := range board.Panels {
			titles[fmt.Sprintf("/d-solo/%s/%s?panelId=%d&", board.UID, board.UID, panel.ID)] = panel.Title
		}
	}
	index := html.UnescapeString(string(newPage(grafanaAt(t, "http://grafana"), "").indexes[0].body))
	for _, panel := range regexp.MustCompile(`<iframe data-src="http://grafana(.*?&)from[^"]*" title="([^"]+), a panel of Grafana"`).FindAllStringSubmatch(index, -1) {
		title, ok := titles[panel[1]]
		if !ok {
			t.Errorf("no dashboard has %s", panel[1])
		}
		if title != panel[2] && panel[1] != "/d-solo/pgw-ledger/pgw-ledger?panelId=1&" { // whose title is a formula
			t.Errorf("%s is called %q, and %q on the page", panel[1], title, panel[2])
		}
	}
}

// Every text key has words in each language, every key is used, and the page has no inline script
// or style.
func TestPageHasItsWords(t *testing.T) {
	p := newPage(GrafanaURL{}, "")
	var all []map[string]string
	for _, lang := range languages {
		var words map[string]string
		if err := json.Unmarshal(p.files["i18n/"+lang.String()+".json"].body, &words); err != nil {
			t.Fatal(err)
		}
		all = append(all, words)
	}
	english := slices.Sorted(maps.Keys(all[0]))
	parameters := regexp.MustCompile(`\{\w+\}`)
	inOrder := func(text string) []string { return slices.Sorted(slices.Values(parameters.FindAllString(text, -1))) }
	for i, words := range all[1:] {
		if others := slices.Sorted(maps.Keys(words)); !slices.Equal(english, others) {
			t.Errorf("English and %s differ in keys", languages[i+1])
		}
		for key, text := range words {
			if text == "" || !slices.Equal(inOrder(text), inOrder(all[0][key])) {
				t.Errorf("%s in %s: %q", key, languages[i+1], text)
			}
		}
	}
	for _, reason := range payment.Reasons {
		for _, key := range []string{"outcome." + string(reason), "outcome." + string(reason) + "_text"} {
			if all[0][key] == "" {
				t.Errorf("there are no words for %s", key)
			}
		}
	}

	index, err := pageFiles.ReadFile("page/index.html")
	if err != nil {
		t.Fatal(err)
	}
	said := string(index)
	for name, f := range p.files {
		if strings.HasSuffix(name, ".js") {
			said += string(f.body)
		}
	}
	// The page builds these keys from the gateway's answers.
	made := regexp.MustCompile(`^(outcome|state|stage|kind|view|part|health|dependency|verdict|delivery|attempt|disabled)\.`)
	for _, key := range english {
		if !made.MatchString(key) && !strings.Contains(said, `"`+key+`"`) && !strings.Contains(said, `'`+key+`'`) {
			t.Errorf("the key %s is not used", key)
		}
	}
	for _, within := range []string{"<style", "style=", "onclick=", "javascript:"} {
		if strings.Contains(string(index), within) {
			t.Errorf("the page contains %s", within)
		}
	}
	if scripts := regexp.MustCompile(`<script[^>]*>`).FindAllString(string(index), -1); len(scripts) != 1 || !strings.Contains(scripts[0], ` src="/page/app.js"`) {
		t.Errorf("scripts: %v", scripts)
	}
}

// A person who follows an unknown address gets the page with 404. Programs get JSON.
func TestPageAtAnUnknownAddress(t *testing.T) {
	for path, want := range map[string]bool{"/nothing": true, "/apis": true, "/api/nothing": false, "/api": false, "/page/nothing.js": false, "/docs/nothing": false} {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		if wantsPage(r) {
			t.Errorf("%s: a program gets the page", path)
		}
		r.Header.Set("Accept", "text/html,application/xhtml+xml")
		if wantsPage(r) != want {
			t.Errorf("%s: in a browser it is the page: %t", path, !want)
		}
	}
	w := httptest.NewRecorder()
	newPage(GrafanaURL{}, "").lost(w, httptest.NewRequest(http.MethodGet, "/nothing", nil))
	if got := w.Result(); got.StatusCode != http.StatusNotFound || got.Header.Get("Content-Security-Policy") != policy || bodyOf(t, got, `id="view-lost"`) == "" {
		t.Errorf("%s, %v", got.Status, got.Header)
	}
}
