package docs

import (
	"crypto/sha256"
	"encoding/base64"
	"regexp"
	"strings"
	"testing"
)

// The page has what the documents have. Nothing on it comes from elsewhere, and only its own script
// runs.
func TestPage(t *testing.T) {
	html := string(page)
	for _, part := range []*regexp.Regexp{
		regexp.MustCompile(`(?m)^  (/\S*):$`),                // paths
		regexp.MustCompile(`(?m)^\s+summary: ([A-Za-z ]+)$`), // operations
		regexp.MustCompile(`(?m)^    address: (\S+)$`),       // topics
		regexp.MustCompile(`(?m)^ +([a-z]+_[a-z_]+):\n`),     // fields
	} {
		found := part.FindAllStringSubmatch(string(OpenAPI)+string(AsyncAPI), -1)
		if len(found) < 5 {
			t.Errorf("%s finds %d in the documents", part, len(found))
		}
		for _, m := range found {
			if !strings.Contains(html, ">"+m[1]+"<") && !strings.Contains(html, "."+m[1]+"<") {
				t.Errorf("the page lacks %s", m[1])
			}
		}
	}
	for _, foreign := range []string{"<no value>", "ZgotmplZ", " style=", "src=", "@import"} {
		if strings.Contains(html, foreign) {
			t.Errorf("the page has %s", foreign)
		}
	}
	for _, link := range regexp.MustCompile(`href="#([^"]*)"`).FindAllStringSubmatch(html, -1) {
		if !strings.Contains(html, `id="`+link[1]+`"`) {
			t.Errorf("a link to %q leads nowhere", link[1])
		}
	}
	for _, left := range regexp.MustCompile("[^\n]*(?:\\*\\*|\\w\\]\\(\\w|`)[^\n]*").FindAllString(html[:strings.Index(html, "<script>")], -1) {
		t.Errorf("Markdown that is not made HTML: %s", left)
	}
	_, rest, _ := strings.Cut(html, "<script>")
	script, _, _ := strings.Cut(rest, "</script>")
	sum := sha256.Sum256([]byte(script))
	hash := "script-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "';"
	if n := strings.Count(html, "<script"); n != 1 || !strings.Contains(policy, hash) {
		t.Errorf("%d scripts; the policy %s does not allow only %s", n, policy, hash)
	}
	if !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
		t.Errorf("the policy is %s", policy)
	}
}
