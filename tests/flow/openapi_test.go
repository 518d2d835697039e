package flow

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	invalid "github.com/pb33f/libopenapi-validator/errors"
	"sigs.k8s.io/yaml"

	"pgw/functions/gateway/docs"
	"pgw/shared/payment"
)

// checked is the transport of all that these tests say to the gateway: requests and answers are held against
// openapi.yaml, and what does not fit fails the exchange.
type checked struct {
	next http.RoundTripper
	// What clients send may have more fields than are known; what they get may not.
	requests, answers validator.Validator
	document          httpDocument
}

// httpDocument is what no validator knows of.
type httpDocument struct {
	Paths map[string]map[string]struct {
		Responses map[string]struct {
			Reasons []payment.Reason `json:"x-reasons"`
		}
	}
}

func newChecked(next http.RoundTripper) (*checked, error) {
	c := &checked{next: next}
	for into, more := range map[*validator.Validator][]config.Option{
		&c.requests: nil,
		// What every answer may have, whatever it is about, is not listed with each.
		&c.answers: {config.WithStrictMode(), config.WithStrictIgnoredHeadersExtra("X-Content-Type-Options")},
	} {
		document, err := libopenapi.NewDocument(docs.OpenAPI)
		if err != nil {
			return nil, err
		}
		v, errs := validator.NewValidator(document, append(more, config.WithFormatAssertions())...)
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
		if ok, errs := v.ValidateDocument(); !ok {
			return nil, fmt.Errorf("openapi.yaml is no OpenAPI: %w", joined(errs))
		}
		*into = v
	}
	return c, yaml.Unmarshal(docs.OpenAPI, &c.document)
}

func joined(errs []*invalid.ValidationError) error {
	all := make([]error, len(errs))
	for i, err := range errs {
		all[i] = err
	}
	return errors.Join(all...)
}

// RoundTrip implements http.RoundTripper.
func (c *checked) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	if err := c.check(r, resp, text); err != nil {
		return nil, fmt.Errorf("%s %s: answered %d, against openapi.yaml: %w: %s", r.Method, r.URL.Path, resp.StatusCode, err, text)
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return resp, nil
}

func (c *checked) check(r *http.Request, resp *http.Response, text []byte) error {
	sent := r.Clone(r.Context())
	if r.GetBody != nil {
		var err error
		if sent.Body, err = r.GetBody(); err != nil {
			return err
		}
	}
	valid, wrong := c.requests.ValidateHttpRequestSync(sent)
	for _, err := range wrong {
		if err.IsPathMissingError() || err.IsOperationMissingError() {
			return checkUnknown(r, resp)
		}
	}
	// Which requests are refused, and how, is for the tests to say: here none may be taken that the document forbids.
	if !valid && resp.StatusCode < 400 {
		return joined(wrong)
	}
	if ok, wrong := c.answers.ValidateHttpResponse(sent, resp); !ok {
		return joined(wrong)
	}
	if r.Method != http.MethodPost || r.URL.Path != "/api/payments" || resp.Header.Get("Content-Type") != "application/json" {
		return nil
	}
	var told struct{ Reason payment.Reason }
	if err := json.Unmarshal(text, &told); err != nil {
		return err
	}
	if !slices.Contains(c.document.Paths[r.URL.Path]["post"].Responses[strconv.Itoa(resp.StatusCode)].Reasons, told.Reason) {
		return fmt.Errorf("the reason %s does not come with this status", told.Reason)
	}
	return nil
}

// checkUnknown wants a problem document for what the gateway does not have. The other functions' own paths are not looked at.
func checkUnknown(r *http.Request, resp *http.Response) error {
	if !strings.HasPrefix(r.URL.Path, "/api") {
		return nil
	}
	if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusMethodNotAllowed {
		return errors.New("a route that is not documented")
	}
	var problem struct {
		Type, Title, Detail string
		Status              int
	}
	if err := json.NewDecoder(resp.Body).Decode(&problem); err != nil {
		return err
	}
	if resp.Header.Get("Content-Type") != "application/problem+json" || problem.Status != resp.StatusCode || problem.Title == "" || problem.Detail == "" {
		return errors.New("not a problem document")
	}
	return nil
}

// Whatever the gateway routes is documented, and whatever is documented is routed.
func TestRoutesAreThoseOfTheDocument(t *testing.T) {
	documented := map[string]bool{}
	for path, operations := range http.DefaultClient.Transport.(*checked).document.Paths {
		for method := range operations {
			documented[strings.ToUpper(method)+" "+path] = true
		}
	}
	s := start(t, options{})
	routed := s.routes()
	for route := range documented {
		if !routed[route] {
			t.Errorf("%s is documented, and no route", route)
		}
	}
	for route := range routed {
		if !documented[route] {
			t.Errorf("%s is a route, and not documented", route)
		}
	}
}

var (
	countedRoute = regexp.MustCompile(`pgw_http_requests_total\{code="2xx",route="([^"]+)"\}`)
	restOfPath   = regexp.MustCompile(`\{(\w+)\.\.\.\}`)
)

// routes of the gateway, as OpenAPI writes them. Each is counted by its pattern, from before it is first asked for; those of
// every function are not.
func (s *system) routes() map[string]bool {
	s.t.Helper()
	resp, err := http.Get(s.url + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	found := map[string]bool{"GET /healthz": true, "GET /readyz": true, "GET /metrics": true}
	for _, m := range countedRoute.FindAllSubmatch(text, -1) {
		pattern := strings.ReplaceAll(string(m[1]), "{$}", "")
		found[strings.ReplaceAll(restOfPath.ReplaceAllString(pattern, "{$1}"), "{key}", "{idempotency_key}")] = true
	}
	if len(found) < 6 {
		s.t.Fatalf("the metrics tell of %d routes: %s", len(found), text)
	}
	return found
}

// What is no route is answered with a problem document, which names the methods that a path takes.
func TestUnknownRoutes(t *testing.T) {
	s := start(t, options{})
	for _, tc := range []struct {
		method, path, body string
		code               int
		header, value      string
	}{
		{"GET", "/api", "", 404, "", ""},
		{"GET", "/api/payment", "", 404, "", ""},
		{"POST", "/api/payments/k", "{}", 405, "Allow", "GET, HEAD"},
		{"DELETE", "/api/payments/k", "", 405, "Allow", "GET, HEAD"},
		{"PUT", "/api/random-accounts", "{}", 405, "Allow", "GET, HEAD"},
		{"GET", "/events", "", 405, "Allow", "POST"},
		{"POST", "/", "{}", 405, "Allow", "GET, HEAD"},
		{"POST", "/wp-login.php", "{}", 404, "", ""},
	} {
		r, err := http.NewRequest(tc.method, s.url+tc.path, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		var problem struct {
			Status int
			Detail string
		}
		if err := json.Unmarshal(text, &problem); err != nil || resp.StatusCode != tc.code || problem.Status != tc.code ||
			!strings.Contains(problem.Detail, tc.path) || resp.Header.Get("Content-Type") != "application/problem+json" || resp.Header.Get(tc.header) != tc.value {
			t.Errorf("%s %s: %s %v %s", tc.method, tc.path, resp.Status, resp.Header, text)
		}
	}
}

// JSON is taken by any name that clients give it, and nothing else is.
func TestMediaTypes(t *testing.T) {
	s := start(t, options{})
	for i, tc := range []struct {
		header, value string
		code          int
	}{
		{"Content-Type", "", 200},
		{"Content-Type", "application/json; charset=utf-8", 200},
		{"Content-Type", "application/vnd.api+json", 200},
		{"Content-Type", "application/x-www-form-urlencoded", 200},
		{"Content-Type", "text/plain;charset=UTF-8", 200},
		{"Content-Type", "application/xml", 415},
		{"Content-Type", "multipart/form-data; boundary=x", 415},
		{"Content-Type", "json", 415},
		{"Content-Encoding", "identity", 200},
		{"Content-Encoding", "gzip", 415},
	} {
		r, err := http.NewRequest(http.MethodPost, s.url+"/api/payments", strings.NewReader(body(fmt.Sprint("media-", i), "A", "B", "USD", 1)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set(tc.header, tc.value)
		// The document has what clients should send; here they send what they do send.
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tc.code || (tc.code == 415) != (resp.Header.Get("Content-Type") == "application/problem+json") ||
			(tc.code == 415) != bytes.Contains(text, []byte(tc.header)) {
			t.Errorf("%s %q: %s %v %s", tc.header, tc.value, resp.Status, resp.Header, text)
		}
	}
}
