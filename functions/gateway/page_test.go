package gateway

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgw/shared/payment"
)

func servePage(t *testing.T, method, url string, headers ...string) *http.Response {
	t.Helper()
	mux := http.NewServeMux()
	p := newPage("https://grafana.example/d/pgw", "https://traces.example/{trace}")
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

// bodyOf gives the body, or "" when it lacks a part.
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
	p := newPage("", "")
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
			h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Content-Security-Policy") != policy {
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
	// A link that would run as a script is made harmless.
	if text := string(newPage("javascript:alert(1)", "").indexes[0].body); strings.Contains(text, "javascript:") {
		t.Error("GRAFANA_URL may be a script")
	}
}

// Everything that is said has words in each language, every word is used, and no script or style stands in the page.
func TestPageHasItsWords(t *testing.T) {
	p := newPage("", "")
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
	// These are put together from what the gateway says.
	made := regexp.MustCompile(`^(outcome|state|stage|live)\.`)
	for _, key := range english {
		if !made.MatchString(key) && !strings.Contains(said, `"`+key+`"`) && !strings.Contains(said, `'`+key+`'`) {
			t.Errorf("nobody says %s", key)
		}
	}
	for _, within := range []string{"<style", "style=", "onclick=", "javascript:"} {
		if strings.Contains(string(index), within) {
			t.Errorf("%s stands in the page", within)
		}
	}
	if scripts := regexp.MustCompile(`<script[^>]*>`).FindAllString(string(index), -1); len(scripts) != 1 || !strings.Contains(scripts[0], ` src="/page/app.js"`) {
		t.Errorf("scripts: %v", scripts)
	}
}
