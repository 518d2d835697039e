package access

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// provider is a fake OpenID provider.
type provider struct {
	*httptest.Server
	mu      sync.Mutex
	keys    []jose.JSONWebKey
	down    bool
	fetches int
	// discoveries counts the requests for the address of its keys.
	discoveries int
}

func newProvider(t *testing.T, keys ...jose.JSONWebKey) *provider {
	p := &provider{keys: keys}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		p.discoveries++
		p.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{"issuer": p.URL, "jwks_uri": p.URL + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.fetches++
		if p.down {
			http.Error(w, "being repaired", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: p.keys})
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// asked returns the number of requests to the provider.
func (p *provider) asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fetches + p.discoveries
}

func (p *provider) set(down bool, keys ...jose.JSONWebKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down, p.keys = down, keys
}

func sign(t *testing.T, alg jose.SignatureAlgorithm, key any, kid string, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(text)
	if err != nil {
		t.Fatal(err)
	}
	out, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func public(key any, kid string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key, KeyID: kid, Use: "sig"}
}

func tokenConfig(p *provider) Config {
	return Config{Mode: Required, Issuer: p.URL, Audience: "pgw", Scope: "payments", SendersIn: "pgw_senders", TokenRate: 100, TokenBurst: 100}
}

func TestTokens(t *testing.T) {
	good, stranger := rsaKey(t), rsaKey(t)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := newProvider(t, public(good.Public(), "k1"), public(curve.Public(), "k2"))
	a, _ := open(t, tokenConfig(p))
	claims := func(change ...any) map[string]any {
		c := map[string]any{
			"iss": p.URL, "aud": "pgw", "sub": "acme", "exp": noon.Add(time.Minute).Unix(), "iat": noon.Unix(),
			"scope": "openid payments", "pgw_senders": []string{"ACME-*"},
		}
		for i := 0; i < len(change); i += 2 {
			if c[change[i].(string)] = change[i+1]; change[i+1] == nil {
				delete(c, change[i].(string))
			}
		}
		return maps.Clone(c)
	}
	none := func(alg string) string {
		enc := base64.RawURLEncoding
		body, _ := json.Marshal(claims())
		return enc.EncodeToString([]byte(`{"alg":"`+alg+`","typ":"JWT"}`)) + "." + enc.EncodeToString(body) + "."
	}
	der, err := x509.MarshalPKIXPublicKey(good.Public())
	if err != nil {
		t.Fatal(err)
	}
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	right := sign(t, jose.RS256, good, "k1", claims())
	parts := strings.Split(right, ".")
	richer, _ := json.Marshal(claims("pgw_senders", "*"))

	for name, tc := range map[string]struct {
		token string
		want  int
	}{
		"right":                         {right, 200},
		"by the other key":              {sign(t, jose.ES256, curve, "k2", claims()), 200},
		"PSS":                           {sign(t, jose.PS256, good, "k1", claims()), 200},
		"without a key's id":            {sign(t, jose.RS256, good, "", claims()), 200},
		"for several, us among them":    {sign(t, jose.RS256, good, "k1", claims("aud", []string{"x", "pgw"})), 200},
		"accounts as words":             {sign(t, jose.RS256, good, "k1", claims("pgw_senders", "ACME-* JOINT")), 200},
		"alg none":                      {none("none"), 401},
		"alg None":                      {none("None"), 401},
		"no alg":                        {none(""), 401},
		"HS256 with the public key":     {sign(t, jose.HS256, asPEM, "k1", claims()), 401},
		"HS256 with its DER":            {sign(t, jose.HS256, der, "k1", claims()), 401},
		"HS256 with its modulus":        {sign(t, jose.HS256, good.N.Bytes(), "k1", claims()), 401},
		"a stranger's key":              {sign(t, jose.RS256, stranger, "k1", claims()), 401},
		"a stranger's key and id":       {sign(t, jose.RS256, stranger, "k9", claims()), 401},
		"other claims, same signature":  {parts[0] + "." + base64.RawURLEncoding.EncodeToString(richer) + "." + parts[2], 401},
		"no signature":                  {parts[0] + "." + parts[1] + ".", 401},
		"another audience":              {sign(t, jose.RS256, good, "k1", claims("aud", "other")), 401},
		"no audience":                   {sign(t, jose.RS256, good, "k1", claims("aud", nil)), 401},
		"another issuer":                {sign(t, jose.RS256, good, "k1", claims("iss", "https://id.example.com")), 401},
		"no issuer":                     {sign(t, jose.RS256, good, "k1", claims("iss", nil)), 401},
		"expired":                       {sign(t, jose.RS256, good, "k1", claims("exp", noon.Add(-time.Second).Unix())), 401},
		"no end":                        {sign(t, jose.RS256, good, "k1", claims("exp", nil)), 401},
		"not yet":                       {sign(t, jose.RS256, good, "k1", claims("nbf", noon.Add(time.Hour).Unix())), 401},
		"no subject":                    {sign(t, jose.RS256, good, "k1", claims("sub", nil)), 401},
		"too long":                      {sign(t, jose.RS256, good, "k1", claims("note", strings.Repeat("x", maxToken))), 401},
		"no token":                      {"", 401},
		"not a token":                   {"a.b.c", 401},
		"without the scope":             {sign(t, jose.RS256, good, "k1", claims("scope", "openid")), 403},
		"a scope that only begins so":   {sign(t, jose.RS256, good, "k1", claims("scope", "payments.read")), 403},
		"without accounts":              {sign(t, jose.RS256, good, "k1", claims("pgw_senders", nil)), 403},
		"accounts of no known shape":    {sign(t, jose.RS256, good, "k1", claims("pgw_senders", map[string]any{"*": true})), 403},
		"a star in an account's middle": {sign(t, jose.RS256, good, "k1", claims("pgw_senders", "A*B")), 403},
	} {
		got, denied := a.Check(request("Authorization", "Bearer "+tc.token))
		code := http.StatusOK
		if denied != nil {
			code = denied.Code
		}
		if code != tc.want {
			t.Errorf("%s: %d (%v); want %d", name, code, denied, tc.want)
		}
		if denied == nil && (got.Name != "oidc:acme" || !got.Owns("ACME-1") || got.Owns("OTHER")) {
			t.Errorf("%s: %+v", name, got)
		}
		if code == http.StatusUnauthorized && !strings.Contains(denied.Challenge, `error="invalid_token"`) {
			t.Errorf("%s: challenge %q", name, denied.Challenge)
		}
	}
}

// The number of requests to the provider is limited, however many forged tokens there are. Its keys
// stay valid while it is unavailable, but a withdrawn key does not stay valid for ever.
func TestProvidersKeysAreKept(t *testing.T) {
	first, second := rsaKey(t), rsaKey(t)
	p := newProvider(t, public(first.Public(), "k1"))
	a, clock := open(t, tokenConfig(p))
	token := func(key *rsa.PrivateKey, kid string) string {
		return "Bearer " + sign(t, jose.RS256, key, kid, map[string]any{
			"iss": p.URL, "aud": "pgw", "sub": "acme", "exp": clock.at.Add(time.Minute).Unix(), "scope": "payments", "pgw_senders": "*",
		})
	}
	code := func(authorization string) int {
		if _, denied := a.Check(request("Authorization", authorization)); denied != nil {
			return denied.Code
		}
		return http.StatusOK
	}
	p.set(true)
	if got := code(token(first, "k1")); got != http.StatusServiceUnavailable {
		t.Errorf("before the provider was ever available: %d", got)
	}
	p.set(false, public(first.Public(), "k1"))
	if got := code(token(first, "k1")); got != http.StatusOK {
		t.Fatalf("the provider is available: %d", got)
	}
	p.set(true)
	clock.at = clock.at.Add(freshFor + time.Second)
	if got := code(token(first, "k1")); got != http.StatusOK {
		t.Errorf("while it is unavailable: %d", got)
	}
	p.set(false, public(second.Public(), "k2"))
	clock.at = clock.at.Add(staleFor)
	a.tokens, _ = openTokens(tokenConfig(p), clock.now, slog.New(slog.DiscardHandler)) // the limit below has its own clock
	if got := code(token(second, "k2")); got != http.StatusOK {
		t.Errorf("the new key: %d", got)
	}
	if got := code(token(first, "k1")); got != http.StatusUnauthorized {
		t.Errorf("a key that was withdrawn: %d", got)
	}
	before := p.fetches
	for range 100 {
		if got := code(token(first, "k1")); got == http.StatusOK {
			t.Fatal("a forged token was accepted")
		}
	}
	if asked := p.fetches - before; asked > 6 {
		t.Errorf("100 forged tokens caused %d requests to the provider", asked)
	}
	if got := code(token(second, "k2")); got != http.StatusOK {
		t.Errorf("a valid token, after forged ones: %d", got)
	}
}

// Many valid tokens arrive while no keys are known and the provider is unavailable. The provider
// gets a few requests, not one for each token. All tokens are accepted as soon as it may be asked
// again and answers.
func TestAColdBurstOfTokens(t *testing.T) {
	key := rsaKey(t)
	p := newProvider(t, public(key.Public(), "k1"))
	a, clock := open(t, tokenConfig(p))
	token := "Bearer " + sign(t, jose.RS256, key, "k1", map[string]any{
		"iss": p.URL, "aud": "pgw", "sub": "acme", "exp": clock.at.Add(time.Hour).Unix(), "scope": "payments", "pgw_senders": "*",
	})
	burst := func() (codes map[int]int) {
		codes = map[int]int{}
		var mu sync.Mutex
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				code := http.StatusOK
				if _, denied := a.Check(request("Authorization", token)); denied != nil {
					code = denied.Code
				}
				mu.Lock()
				defer mu.Unlock()
				codes[code]++
			})
		}
		all.Wait()
		return codes
	}
	for range 4 { // the clients try again, and the provider is still unavailable
		p.set(true, public(key.Public(), "k1"))
		if got := burst(); got[http.StatusServiceUnavailable] != 50 {
			t.Fatalf("while the provider is unavailable: %v", got)
		}
	}
	if asked := p.asked(); asked > 12 {
		t.Errorf("200 tokens caused %d requests to the provider", asked)
	}
	p.set(false, public(key.Public(), "k1"))
	clock.at = clock.at.Add(10 * time.Second)
	if got := burst(); got[http.StatusOK] != 50 {
		t.Errorf("the provider is back: %v", got)
	}
	before := p.asked()
	if got := burst(); got[http.StatusOK] != 50 || p.asked() != before {
		t.Errorf("its keys are known: %v, %d requests", got, p.asked()-before)
	}
}

// Known keys are renewed even while forged tokens name unknown keys all the time.
func TestStrangersDoNotKeepKeysFromBeingRenewed(t *testing.T) {
	first, second, stranger := rsaKey(t), rsaKey(t), rsaKey(t)
	p := newProvider(t, public(first.Public(), "k1"))
	a, clock := open(t, tokenConfig(p))
	code := func(key *rsa.PrivateKey, kid string) int {
		_, denied := a.Check(request("Authorization", "Bearer "+sign(t, jose.RS256, key, kid, map[string]any{
			"iss": p.URL, "aud": "pgw", "sub": "acme", "exp": clock.at.Add(time.Hour).Unix(), "scope": "payments", "pgw_senders": "*",
		})))
		if denied != nil {
			return denied.Code
		}
		return http.StatusOK
	}
	if got := code(first, "k1"); got != http.StatusOK {
		t.Fatal(got)
	}
	p.set(false, public(second.Public(), "k2"))
	for range 20 {
		code(stranger, "k9")
	}
	clock.at = clock.at.Add(freshFor + time.Second)
	for range 20 {
		code(stranger, "k9")
	}
	if got := code(first, "k1"); got == http.StatusOK {
		t.Errorf("a key that was withdrawn: %d", got)
	}
	if got := code(second, "k2"); got != http.StatusOK {
		t.Errorf("the new key: %d", got)
	}
}

// An answer that is not a key set does not replace the keys. A wrong setting of the provider does
// not make the token invalid.
func TestAPageThatIsNoKeySet(t *testing.T) {
	key := rsaKey(t)
	p := newProvider(t, public(key.Public(), "k1"))
	cfg := tokenConfig(p)
	cfg.JWKSURL = p.URL + "/.well-known/openid-configuration"
	a, clock := open(t, cfg)
	_, denied := a.Check(request("Authorization", "Bearer "+sign(t, jose.RS256, key, "k1", map[string]any{
		"iss": p.URL, "aud": "pgw", "sub": "acme", "exp": clock.at.Add(time.Hour).Unix(), "scope": "payments", "pgw_senders": "*",
	})))
	if denied == nil || denied.Code != http.StatusServiceUnavailable {
		t.Errorf("got %v", denied)
	}
}
