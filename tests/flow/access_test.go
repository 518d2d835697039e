package flow

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"pgw/functions/gateway/access"
)

// client makes requests with a key.
type client struct {
	s   *system
	key string
}

func (c client) do(method, path, body string, headers ...string) (*http.Response, string) {
	c.s.t.Helper()
	req, err := http.NewRequest(method, c.s.url+path, strings.NewReader(body))
	if err != nil {
		c.s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if c.key != "" {
		req.Header.Set(access.KeyHeader, c.key)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Transport.RoundTrip(req)
	if err != nil {
		c.s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.s.t.Fatal(err)
	}
	return resp, string(text)
}

// problem checks that an answer is a problem document of RFC 9457 with this code.
func problem(t *testing.T, what string, resp *http.Response, text string, code int) {
	t.Helper()
	var body struct {
		Title, Detail string
		Status        int
	}
	if err := json.Unmarshal([]byte(text), &body); err != nil || resp.StatusCode != code || body.Status != code || body.Title == "" || body.Detail == "" ||
		resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%s: %s %s (%v); want a problem of %d", what, resp.Status, text, err, code)
	}
}

// keyed returns a configuration with a file of keys, and the keys.
func keyed(t *testing.T, lines map[string][]string) (cfg access.Config, path string, keys map[string]string) {
	t.Helper()
	keys = map[string]string{}
	var file bytes.Buffer
	for id, options := range lines {
		given, line, err := access.NewKey(id, options...)
		if err != nil {
			t.Fatal(err)
		}
		keys[id] = given
		file.WriteString(line + "\n")
	}
	path = filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return access.Config{Mode: access.Required, KeysFile: path}, path, keys
}

// Without a key, every path of the API is refused. The other paths of the port work as before.
func TestTheAPIIsForThoseWithAKey(t *testing.T) {
	cfg, _, keys := keyed(t, map[string][]string{"a": {"senders=A"}, "b": {"senders=B"}, "c": {"senders=C"}, "all": {"senders=*"}})
	s := start(t, options{access: cfg})
	nobody, a, b, c, all := client{s, ""}, client{s, keys["a"]}, client{s, keys["b"]}, client{s, keys["c"]}, client{s, keys["all"]}

	for _, path := range []string{
		"/api", "/api/", "/api/payments", "/api/payments/k", "/api/random-accounts", "/api/accounts/A", "/api/quotes", "/api/whatever/is/added",
		"/%61pi/payments/k", "/api/payments/..%2f..%2fmetrics", "/api//payments", "/x/../api/payments/k",
	} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"} {
			resp, text := nobody.do(method, path, body("sneaky", "A", "B", "USD", 1))
			if method == "HEAD" {
				text = ""
			}
			// ServeMux redirects unclean paths to clean ones, where the same rule holds.
			if resp.StatusCode == http.StatusMovedPermanently || resp.StatusCode == http.StatusTemporaryRedirect || resp.StatusCode == http.StatusNotFound && path[:4] != "/api" {
				continue
			}
			if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s: %s %s", method, path, resp.Status, text)
			}
		}
	}
	for _, path := range []string{"/", "/healthz", "/readyz", "/metrics"} {
		if resp, _ := nobody.do("GET", path, ""); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}

	resp, text := a.do("POST", "/api/payments", body("mine", "A", "B", "USD", 1))
	if resp.StatusCode != http.StatusOK || !strings.Contains(text, "committed") {
		t.Fatalf("%s %s", resp.Status, text)
	}
	mine, before := text, s.balance("B")
	for what, text := range map[string]string{
		"another's account":                body("theirs", "B", "A", "USD", 1),
		"another's account and one's key":  body("mine", "B", "A", "USD", 1),
		"an account that nobody has":       body("none", "NOBODY", "A", "USD", 1),
		"another's, by a longer name":      body("long", "AB", "A", "USD", 1),
		"another's, with one's own beside": body("both", "B", "A", "USD", 1, "SENDER", "A"),
	} {
		resp, got := a.do("POST", "/api/payments", text)
		problem(t, what, resp, got, http.StatusForbidden)
	}
	if s.balance("B") != before {
		t.Error("a payment from B's account was made")
	}
	for name, who := range map[string]client{"its client": a, "who may all": all} {
		if resp, text := who.do("GET", "/api/payments/mine", ""); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s %s", name, resp.Status, text)
		}
	}
	// Another client's payment looks like one that does not exist, also to the client of its receiver.
	theirs, theirText := b.do("GET", "/api/payments/mine", "")
	problem(t, "a payment to one's account", theirs, theirText, http.StatusNotFound)
	theirs, theirText = c.do("GET", "/api/payments/mine", "")
	problem(t, "another's payment", theirs, theirText, http.StatusNotFound)
	if _, none := c.do("GET", "/api/payments/nothing", ""); none != theirText {
		t.Errorf("%s, but for one that does not exist %s", theirText, none)
	}
	theirs, theirText = c.do("GET", "/api/accounts/A", "")
	problem(t, "another's account", theirs, theirText, http.StatusNotFound)
	if _, none := all.do("GET", "/api/accounts/NOBODY", ""); strings.ReplaceAll(none, "NOBODY", "A") != theirText {
		t.Errorf("%s, but for one that does not exist %s", theirText, none)
	}
	if resp, text := a.do("GET", "/api/accounts/A", ""); resp.StatusCode != http.StatusOK || !strings.Contains(text, `"balance_idr"`) {
		t.Errorf("one's own account: %s %s", resp.Status, text)
	}
	// Without an account, the list is that of the key's accounts.
	list := map[string]int{"/api/payments": 200, "/api/payments?account=B": 403, "/api/payments?account=A": 200, "/api/payments?account=SETTLEMENT": 403}
	for path, code := range list {
		if resp, text := a.do("GET", path, ""); resp.StatusCode != code || strings.Contains(text, `"mine"`) != (code == 200) {
			t.Errorf("%s: %s %s", path, resp.Status, text)
		}
	}
	if resp, text := c.do("GET", "/api/payments", ""); resp.StatusCode != http.StatusOK || strings.Contains(text, `"mine"`) {
		t.Errorf("another's payments: %s %s", resp.Status, text)
	}
	ref := regexp.MustCompile(`"ref":"([^"]+)"`).FindStringSubmatch(mine)[1]
	if resp, text := a.do("GET", "/api/payments/"+ref, ""); resp.StatusCode != http.StatusOK || !strings.Contains(text, `"mine"`) {
		t.Errorf("by its ref: %s %s", resp.Status, text)
	}
	theirs, theirText = c.do("GET", "/api/payments/"+ref, "")
	problem(t, "another's payment by its ref", theirs, theirText, http.StatusNotFound)
	if resp, text := all.do("GET", "/api/payments", ""); resp.StatusCode != http.StatusOK || !strings.Contains(text, `"mine"`) {
		t.Errorf("all payments, with a key for all accounts: %s %s", resp.Status, text)
	}
	// As a stream, the refusal is a problem document too.
	resp, text = a.do("POST", "/api/payments", body("streamed", "B", "A", "USD", 1), "Accept", "text/event-stream")
	problem(t, "another's account, streamed", resp, text, http.StatusForbidden)
	resp, text = a.do("GET", "/api/random-accounts", "")
	problem(t, "others' accounts", resp, text, http.StatusForbidden)
	if resp, _ := all.do("GET", "/api/random-accounts", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("a key for all accounts: %s", resp.Status)
	}
}

func TestRateOfAClient(t *testing.T) {
	cfg, _, keys := keyed(t, map[string][]string{"few": {"senders=A", "rate=0.01", "burst=2"}, "many": {"senders=B"}})
	s := start(t, options{access: cfg})
	few, many := client{s, keys["few"]}, client{s, keys["many"]}
	for _, want := range []int{404, 404, 429, 429} {
		resp, text := few.do("GET", "/api/payments/nothing", "")
		problem(t, "the client with few", resp, text, want)
		if want == 429 && resp.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		if left, policy := resp.Header.Get("RateLimit"), resp.Header.Get("RateLimit-Policy"); !strings.HasPrefix(left, `"client";r=`) || policy != `"client";q=2;w=200` {
			t.Errorf("RateLimit %s, RateLimit-Policy %s", left, policy)
		}
		if resp, text := many.do("POST", "/api/payments", body("many", "B", "A", "USD", 1)); resp.StatusCode != 200 {
			t.Errorf("the other: %s %s", resp.Status, text)
		}
	}
}

// Pages of other origins may not pay, also when the API is open to everyone on this machine, which
// is the default.
func TestPagesOfOtherOrigins(t *testing.T) {
	s := start(t, options{origins: []string{"https://shop.example.com"}})
	page := func(key, origin, site string, more ...string) (*http.Response, string) {
		headers := append([]string{"Origin", origin, "Content-Type", "text/plain"}, more...)
		if site != "" {
			headers = append(headers, "Sec-Fetch-Site", site)
		}
		return client{s, ""}.do("POST", "/api/payments", body(key, "A", "B", "USD", 1), headers...)
	}
	for what, tc := range map[string]struct {
		origin, site string
		want         int
		allowed      string
	}{
		"a stranger":               {"https://evil.example.com", "cross-site", 403, ""},
		"one in an older browser":  {"https://evil.example.com", "", 403, ""},
		"one without an origin":    {"null", "cross-site", 403, ""},
		"one of the same site":     {"https://other.example.com", "same-site", 403, ""},
		"one that is named":        {"https://shop.example.com", "cross-site", 200, "https://shop.example.com"},
		"one whose name goes on":   {"https://shop.example.com.evil.org", "cross-site", 403, ""},
		"the gateway's own":        {s.url, "same-origin", 200, ""},
		"its own in older browser": {s.url, "", 200, ""},
	} {
		resp, text := page(strings.ReplaceAll(what, " ", "-"), tc.origin, tc.site)
		if resp.StatusCode != tc.want || resp.Header.Get("Access-Control-Allow-Origin") != tc.allowed {
			t.Errorf("%s: %s %s; allowed %q", what, resp.Status, text, resp.Header.Get("Access-Control-Allow-Origin"))
		}
		if tc.want == 403 {
			problem(t, what, resp, text, 403)
		}
	}
	ask := []string{"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type,x-api-key"}
	for origin, want := range map[string]string{"https://shop.example.com": "https://shop.example.com", "https://evil.example.com": ""} {
		resp, _ := client{s, ""}.do("OPTIONS", "/api/payments", "", append(ask, "Origin", origin)...)
		if got := resp.Header.Get("Access-Control-Allow-Origin"); got != want {
			t.Errorf("preflight of %s: %q", origin, got)
		}
		resp, _ = client{s, ""}.do("GET", "/metrics", "", "Origin", origin)
		if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "" {
			t.Errorf("/metrics allows %q", got)
		}
	}
	if n := s.count(`SELECT count(*) FROM payments`); n != 3 {
		t.Errorf("%d payments; want 3", n)
	}
	for _, path := range []string{"/", "/api/payments/nothing", "/nothing", "/metrics", "/events"} {
		resp, _ := client{s, ""}.do("GET", path, "")
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
			"Cross-Origin-Resource-Policy": "same-origin", "Strict-Transport-Security": "", "Server": "",
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: %s %q; want %q", path, name, got, want)
			}
		}
		if resp, _ := (client{s, ""}).do("GET", path, "", "X-Forwarded-Proto", "https"); resp.Header.Get("Strict-Transport-Security") == "" {
			t.Errorf("%s: TLS without Strict-Transport-Security", path)
		}
	}
}
