package gateway

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestRequestIDs(t *testing.T) {
	for name, tc := range map[string]struct {
		given []string
		taken bool
	}{
		"a UUID":         {[]string{"0199e0a7-2c7e-7d4a-9c43-5d2f3c1f8a10"}, true},
		"another form":   {[]string{"a-b_c.d:e+f/g=h@i"}, true},
		"the longest":    {[]string{strings.Repeat("x", 128)}, true},
		"none":           {nil, false},
		"an empty one":   {[]string{""}, false},
		"one too long":   {[]string{strings.Repeat("x", 129)}, false},
		"two":            {[]string{"a", "b"}, false},
		"a line of logs": {[]string{`x" level=ERROR msg="y`}, false},
		"not ASCII":      {[]string{"Søren"}, false},
	} {
		r := httptest.NewRequest(http.MethodGet, "/api/payments", nil)
		r.Header["X-Request-Id"] = tc.given
		w := httptest.NewRecorder()
		withRequestID(w, r)
		got := w.Header().Get("X-Request-Id")
		if taken := len(tc.given) > 0 && got == tc.given[0]; taken != tc.taken || !usableID(got) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
