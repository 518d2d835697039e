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

	"github.com/pb33f/jsonschema/v6"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	invalid "github.com/pb33f/libopenapi-validator/errors"
	"sigs.k8s.io/yaml"

	"pgw/functions/gateway/docs"
	"pgw/shared/payment"
)

// checked is the HTTP transport of these tests. It checks requests and answers against
// openapi.yaml, and a difference fails the exchange.
type checked struct {
	next http.RoundTripper
	// Clients may send unknown fields; the gateway may not.
	requests, answers validator.Validator
	document          httpDocument
	events            map[string]*jsonschema.Schema // the events of a payment's stream, by name
	operationEvents   map[string]*jsonschema.Schema // those of a refund's, a capture's, a void's and a cancellation's
}

// httpDocument is the part of the document that no validator knows.
type httpDocument struct {
	Paths map[string]map[string]struct {
		Responses map[string]struct {
			Reasons []payment.Reason `json:"x-reasons"`
		}
	}
}

// everywhere are headers that any answer may have. The document does not list them for each answer.
var everywhere = []string{
	"X-Content-Type-Options", "Referrer-Policy", "Cross-Origin-Opener-Policy", "Cross-Origin-Resource-Policy", "Strict-Transport-Security",
	"Vary", "Etag", "Accept-Ranges", "X-Accel-Buffering", "X-Request-Id", "Ratelimit", "Ratelimit-Policy",
	"Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Access-Control-Expose-Headers", "Access-Control-Max-Age",
}

func newChecked(next http.RoundTripper) (*checked, error) {
	c := &checked{next: next}
	for into, more := range map[*validator.Validator][]config.Option{
		&c.requests: nil,
		&c.answers:  {config.WithStrictMode(), config.WithStrictIgnoredHeadersExtra(everywhere...)},
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
			return nil, fmt.Errorf("openapi.yaml is not valid OpenAPI: %w", joined(errs))
		}
		*into = v
	}
	if err := yaml.Unmarshal(docs.OpenAPI, &c.document); err != nil {
		return nil, err
	}
	var err error
	if c.events, err = streamEvents("~1api~1payments"); err == nil {
		c.operationEvents, err = streamEvents("~1api~1payments~1%7Bidempotency_key%7D~1refunds")
	}
	return c, err
}

// streamEvents returns the document's schemas of the events of a path's stream. A pointer escapes the
// slashes of a path.
func streamEvents(path string) (map[string]*jsonschema.Schema, error) {
	return schemasAt("/paths/"+path+"/post/responses/200/content/text~1event-stream/x-events/", "stage", "answer")
}

// schemasAt returns schemas of the document, which allow no field that the document lacks.
func schemasAt(place string, names ...string) (map[string]*jsonschema.Schema, error) {
	text, err := yaml.YAMLToJSON(docs.OpenAPI)
	if err != nil {
		return nil, err
	}
	root, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	forbidMore(lookUp(root, "#/components/schemas"))
	const url = "openapi.yaml"
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource(url, root); err != nil {
		return nil, err
	}
	found := map[string]*jsonschema.Schema{}
	for _, name := range names {
		if found[name], err = compiler.Compile(url + "#" + place + name); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// checkedStream checks server-sent events against the document while they are read. The answer must
// be the last event.
type checkedStream struct {
	io.ReadCloser
	events map[string]*jsonschema.Schema
	read   []byte
	last   string
}

// Read implements io.Reader.
func (s *checkedStream) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.read = append(s.read, p[:n]...)
	for {
		one, rest, ok := bytes.Cut(s.read, []byte("\n\n"))
		if !ok {
			break
		}
		s.read = rest
		if err := s.check(string(one)); err != nil {
			return n, fmt.Errorf("a stream, against openapi.yaml: %w: %s", err, one)
		}
	}
	if err == io.EOF && (s.last != "answer" || len(s.read) > 0) {
		return n, fmt.Errorf("a stream ended with %q and %q", s.last, s.read)
	}
	return n, err
}

func (s *checkedStream) check(text string) error {
	name, data, ok := strings.Cut(text, "\ndata: ")
	s.last = strings.TrimPrefix(name, "event: ")
	schema := s.events[s.last]
	if !ok || schema == nil {
		return errors.New("not an event of a payment")
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(data))
	if err != nil {
		return err
	}
	return schema.Validate(value)
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
	if resp.Header.Get("Content-Type") == "text/event-stream" {
		events := c.events
		if r.URL.Path != "/api/payments" {
			events = c.operationEvents
		}
		resp.Body = &checkedStream{ReadCloser: resp.Body, events: events}
		return resp, nil
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	if strings.HasPrefix(r.URL.Path, "/api/") && !strings.HasPrefix(r.URL.Path, "/api/v1/") && resp.Header.Get("X-Request-Id") == "" {
		return nil, fmt.Errorf("%s %s: the answer has no X-Request-Id", r.Method, r.URL.Path)
	}
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
	// The tests say which requests are refused, and how. Here, no request may be accepted that the
	// document forbids.
	if !valid && resp.StatusCode < 400 {
		return joined(wrong)
	}
	if ok, wrong := c.answers.ValidateHttpResponse(sent, resp); !ok {
		return joined(wrong)
	}
	if r.Method != http.MethodPost || r.URL.Path != "/api/payments" || resp.Header.Get("Content-Type") != "application/json" {
		return nil
	}
	var answer struct{ Reason payment.Reason }
	if err := json.Unmarshal(text, &answer); err != nil {
		return err
	}
	if !slices.Contains(c.document.Paths[r.URL.Path]["post"].Responses[strconv.Itoa(resp.StatusCode)].Reasons, answer.Reason) {
		return fmt.Errorf("the reason %s does not come with this status", answer.Reason)
	}
	return nil
}

// checkUnknown wants a problem document for paths that the gateway does not have or does not show
// to everybody. It ignores paths that only other servers have, and browsers' preflight requests.
func checkUnknown(r *http.Request, resp *http.Response) error {
	prometheus := strings.HasPrefix(r.URL.Path, "/api/v1/")
	if !strings.HasPrefix(r.URL.Path, "/api") || prometheus || r.Method == http.MethodOptions {
		return nil
	}
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests:
	default:
		return errors.New("a route that is not documented")
	}
	if r.Method == http.MethodHead {
		return nil
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

// pageViews are addresses of the page for a person. The document has only its first view.
var pageViews = map[string]bool{
	"GET /payments": true, "GET /payments/{idempotency_key}": true, "GET /accounts": true, "GET /accounts/{id}": true, "GET /webhooks": true,
	"GET /webhooks/{id}": true, "GET /operations": true,
}

// The gateway routes exactly what is documented, apart from the page's further views.
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
			t.Errorf("%s is documented, but is not a route", route)
		}
	}
	for route := range routed {
		if !documented[route] && !pageViews[route] {
			t.Errorf("%s is a route, but is not documented", route)
		}
	}
}

var (
	countedRoute = regexp.MustCompile(`pgw_http_requests_total\{code="2xx",route="([^"]+)"\}`)
	restOfPath   = regexp.MustCompile(`\{(\w+)\.\.\.\}`)
)

// routes returns the gateway's routes in OpenAPI's form. The metrics count each route by its
// pattern, also before its first request. Routes that every function has are left out.
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
		s.t.Fatalf("the metrics have %d routes: %s", len(found), text)
	}
	return found
}

// No path of the API accepts a parameter that it does not have. The answer names it.
func TestUnknownParametersAreNamed(t *testing.T) {
	s := start(t, options{})
	for path, operations := range http.DefaultClient.Transport.(*checked).document.Paths {
		if !strings.HasPrefix(path, "/api/") {
			continue
		}
		for method := range operations {
			for query, want := range map[string]string{"currencyy=USD": "currencyy", "x=1&x=2&y=": "x y", "%zz": "query", "a;b": "query"} {
				path := strings.NewReplacer("{", "", "}", "").Replace(path)
				resp, text := client{s, ""}.do(strings.ToUpper(method), path+"?"+query, body("k", "A", "B", "USD", 1))
				var problem struct {
					Status, Reason any
					Errors         []struct{ Field, Detail string }
				}
				if err := json.Unmarshal([]byte(text), &problem); err != nil {
					t.Fatal(err)
				}
				var named []string
				for _, e := range problem.Errors {
					named = append(named, e.Field)
				}
				if resp.StatusCode != http.StatusBadRequest || strings.Join(named, " ") != want {
					t.Errorf("%s %s?%s: %s %s", method, path, query, resp.Status, text)
				}
				if pays := path == "/api/payments" && method == "post"; pays && (problem.Status != "FAILED" || problem.Reason != "invalid_input") {
					t.Errorf("%s %s?%s: %s", method, path, query, text)
				}
			}
		}
	}
	if n := s.count(`SELECT count(*) FROM reservations`); n != 0 {
		t.Errorf("%d payments were made", n)
	}
}

// A payment that is requested as a stream is answered stage by stage, and then with its outcome.
func TestAStreamIsAsDocumented(t *testing.T) {
	s := start(t, options{})
	stream := func(accept, body string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequest(http.MethodPost, s.url+"/api/payments", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Accept", accept)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(text)
	}
	for _, tc := range []struct{ body, want string }{
		{body("streamed", "A", "B", "USD", 1), `"http_status":200,"status":"SUCCESS"`},
		{body("streamed", "A", "B", "USD", 1), `"http_status":200,"status":"SUCCESS_REPLAY"`},
		{body("streamed", "A", "B", "USD", 2), `"http_status":422,"status":"FAILED"`},
	} {
		if resp, text := stream("text/event-stream", tc.body); resp.StatusCode != http.StatusOK || !strings.Contains(text, tc.want) || strings.Count(text, "event: stage") < 3 {
			t.Errorf("%s is streamed as %s: %s", tc.body, resp.Status, text)
		}
	}
}

// The page's other reads are as documented, and so are the answers when there is nothing to read.
func TestWhatThePageReads(t *testing.T) {
	s := start(t, options{})
	s.expect(s.pay("listed", "A", "B", "USD", 1), "200 SUCCESS committed")
	for path, want := range map[string]int{
		"/api/payments": 200, "/api/payments?limit=1&account=A&status=SUCCESS": 200, "/api/payments?status=PENDING": 200,
		"/api/payments?limit=0": 400, "/api/payments?status=DONE": 400, "/api/payments?before=then": 400,
		"/api/payments/listed": 200, "/api/accounts/A": 200, "/api/accounts/NOBODY": 404,
		"/api/quotes?currency=USD&amount=10.25": 200, "/api/quotes?currency=SEK&amount=1": 404, "/api/quotes?currency=USD&amount=0": 400,
		"/api/quotes": 400, "/api/currencies": 200, "/page/app.js": 200, "/page/i18n/id.json": 200, "/page/nothing.js": 404,
	} {
		resp, err := http.Get(s.url + path)
		if err != nil {
			t.Error(err)
			continue
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s %s", path, resp.Status, text)
		}
	}
}

// A path that is not a route is answered with a problem document. For a wrong method it names the
// allowed methods.
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

// JSON is accepted under every name that clients use for it, and nothing else is.
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
		// The document has what clients should send; here they send what real clients send.
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
