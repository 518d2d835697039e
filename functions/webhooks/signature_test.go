package webhooks

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

func makeSecret(t *testing.T, scheme string) secret {
	t.Helper()
	s, err := newSecret(scheme, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The example of the specification.
func TestTheSpecificationsExample(t *testing.T) {
	raw, _ := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	h := signedHeader("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`), []secret{{schemeV1, raw}})
	if got, want := h.Get("webhook-signature"), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
	if h.Get("webhook-timestamp") != "1614265330" || h.Get("webhook-id") != "msg_p5jXN8AQM9LWM0D4loKWxJek" {
		t.Errorf("headers %v", h)
	}
}

// The specification's own library accepts what either secret has signed while they rotate, and
// nothing that was changed.
func TestStandardWebhooksOwnLibraryVerifies(t *testing.T) {
	old, current := makeSecret(t, schemeV1), makeSecret(t, schemeV1)
	text := []byte(`{"type":"payment.settled"}`)
	header := signedHeader("msg_1", time.Now(), text, []secret{current, old})
	for _, s := range []secret{old, current} {
		library, err := standardwebhooks.NewWebhook(s.text())
		if err != nil {
			t.Fatal(err)
		}
		if err := library.Verify(text, header); err != nil {
			t.Errorf("%v", err)
		}
		if library.Verify([]byte(`{"type":"payment.failed"}`), header) == nil {
			t.Error("another body is accepted")
		}
		otherID := header.Clone()
		otherID.Set("webhook-id", "msg_2")
		if library.Verify(text, otherID) == nil {
			t.Error("another id is accepted")
		}
		late := signedHeader("msg_1", time.Now().Add(-time.Hour), text, []secret{current, old})
		if library.Verify(text, late) == nil {
			t.Error("an old attempt is accepted")
		}
	}
	stranger, _ := standardwebhooks.NewWebhook(makeSecret(t, schemeV1).text())
	if stranger.Verify(text, header) == nil {
		t.Error("a stranger's secret verifies")
	}
}

// A receiver with the public key verifies v1a. It has no secret that could leak.
func TestASignatureOfV1aIsVerifiedByThePublicKey(t *testing.T) {
	s := makeSecret(t, schemeV1a)
	encoded, found := strings.CutPrefix(s.text(), "whpk_")
	public, err := base64.StdEncoding.DecodeString(encoded)
	if !found || err != nil || len(public) != ed25519.PublicKeySize {
		t.Fatalf("public key %q: %v", s.text(), err)
	}
	h := signedHeader("msg_1", time.Unix(1700000000, 0), []byte("body"), []secret{s})
	signature, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(h.Get("webhook-signature"), "v1a,"))
	if err != nil || !ed25519.Verify(public, []byte("msg_1.1700000000.body"), signature) {
		t.Errorf("header %v: %v", h, err)
	}
}

// libraries is the directory with the libraries of npm and PyPI; make test-webhooks fills it.
func libraries(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("PGW_TEST_WEBHOOK_LIBRARIES")
	if dir == "" {
		t.Skip("PGW_TEST_WEBHOOK_LIBRARIES is not set: make test-webhooks brings the libraries of npm and PyPI")
	}
	return dir
}

// The specification's libraries of npm and PyPI accept what pgw signs, and refuse what was changed.
func TestLibrariesOfOtherLanguagesVerify(t *testing.T) {
	dir := libraries(t)
	s := makeSecret(t, schemeV1)
	text := []byte(`{"type":"payment.settled","data":{"note":"Kopi é ✓"}}`)
	header := signedHeader("msg_1", time.Now(), text, []secret{makeSecret(t, schemeV1), s})
	type message struct {
		Secret  string            `json:"secret"`
		Body    string            `json:"body"`
		Headers map[string]string `json:"headers"`
	}
	plain := map[string]string{}
	for name := range header {
		plain[strings.ToLower(name)] = header.Get(name)
	}
	programs := map[string][]string{
		"npm": {"node", "-e", `const { Webhook } = require(process.env.LIBRARIES + "/node_modules/standardwebhooks");
const m = JSON.parse(require("fs").readFileSync(0, "utf8")); new Webhook(m.secret).verify(m.body, m.headers);`},
		"PyPI": {"python3", "-c", `import json, sys
from standardwebhooks import Webhook
m = json.load(sys.stdin)
Webhook(m["secret"]).verify(m["body"], m["headers"])`},
	}
	for name, command := range programs {
		for what, m := range map[string]message{
			"as sent": {s.text(), string(text), plain}, "changed": {s.text(), strings.Replace(string(text), "settled", "failed", 1), plain},
		} {
			in, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			run := exec.Command(command[0], command[1:]...)
			run.Stdin = bytes.NewReader(in)
			run.Env = append(os.Environ(), "LIBRARIES="+dir, "PYTHONPATH="+filepath.Join(dir, "python"))
			out, err := run.CombinedOutput()
			if accepted := err == nil; accepted != (what == "as sent") {
				t.Errorf("%s: %s: accepted %t: %v: %s", name, what, accepted, err, out)
			}
		}
	}
}

// Secrets are encrypted for one endpoint, by the first key, and decrypted by every key.
func TestSecretsAreSealed(t *testing.T) {
	keys := func(ids ...string) (s Sealer) {
		var all []string
		for _, id := range ids {
			all = append(all, id+":"+base64.StdEncoding.EncodeToString(bytes.Repeat([]byte(id[:1]), 32)))
		}
		if err := s.Decode(strings.Join(all, ",")); err != nil {
			t.Fatal(err)
		}
		return s
	}
	endpoint, id, plain := uuid.New(), uuid.New(), makeSecret(t, schemeV1)
	old := keys("a")
	sealed, err := old.seal(endpoint, id, plain, rand.Reader)
	if err != nil || bytes.Contains(sealed.Sealed, plain.bytes) {
		t.Fatalf("sealed %x: %v", sealed.Sealed, err)
	}
	both, other := keys("b", "a"), keys("b")
	if got, err := both.open(endpoint, sealed); err != nil || got.text() != plain.text() {
		t.Errorf("opened %v, %v", got, err)
	}
	if _, err := both.open(uuid.New(), sealed); err == nil {
		t.Error("another endpoint's secret is opened")
	}
	if _, err := other.open(endpoint, sealed); err == nil {
		t.Error("opened without its key")
	}
	if anew, err := both.seal(endpoint, id, plain, rand.Reader); err != nil || anew.KeyID != "b" {
		t.Errorf("sealed by %s, %v", anew.KeyID, err)
	}
	for _, bad := range []string{"", "a", "a:!", "a:YWJj", "a:" + strings.Repeat("A", 43) + "=,a:" + strings.Repeat("A", 43) + "="} {
		var s Sealer
		if err := s.Decode(bad); err == nil || len(bad) > 5 && strings.Contains(err.Error(), "AAAA") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTheSchedule(t *testing.T) {
	var sum time.Duration
	for tries := 1; tries <= 9; tries++ {
		least, most := nextDelay(schedule, tries, 0, 0), nextDelay(schedule, tries, .999, 0)
		if least != schedule[tries-1] || most <= least || most > least*6/5 {
			t.Errorf("after %d tries %s to %s", tries, least, most)
		}
		sum += least
	}
	if nextDelay(schedule, 10, 0, 0) != 0 || nextDelay(schedule, 10, 0, time.Hour) != 0 {
		t.Error("there is an eleventh attempt")
	}
	if sum.Round(time.Hour) != 76*time.Hour {
		t.Errorf("the last attempt comes after %s", sum)
	}
	for asked, want := range map[time.Duration]time.Duration{time.Second: 5 * time.Second, time.Minute: time.Minute, 1000 * time.Hour: 24 * time.Hour} {
		if got := nextDelay(schedule, 1, 0, asked); got != want {
			t.Errorf("asked to wait %s: %s, want %s", asked, got, want)
		}
	}
	now := time.Date(2026, 1, 31, 9, 30, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "120": 2 * time.Minute, "-1": 0, "soon": 0, "99999999999": 0, now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("Retry-After %q: %s, want %s", text, got, want)
		}
	}
}
