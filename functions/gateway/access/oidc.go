package access

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/time/rate"
)

const (
	askTimeout = 3 * time.Second
	maxToken   = 8 << 10
	maxAnswer  = 1 << 20
	// The provider's keys are fetched anew this often, so that one it has withdrawn is not believed for ever; when it
	// can't be asked, the old ones hold for so long.
	freshFor = 15 * time.Minute
	staleFor = 2 * time.Hour
)

// signings are the algorithms taken: those with a public key. With HMAC, whoever knows that key could sign.
var signings = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA}

// tokens judges JWTs.
type tokens struct {
	cfg      Config
	verifier *oidc.IDTokenVerifier
}

func openTokens(cfg Config, now func() time.Time) (*tokens, error) {
	if cfg.Issuer == "" {
		return nil, nil
	}
	if cfg.Audience == "" {
		return nil, errors.New("OIDC_AUDIENCE is missing beside OIDC_ISSUER: tokens for others would be taken")
	}
	for name, text := range map[string]string{"OIDC_ISSUER": cfg.Issuer, "OIDC_JWKS_URL": cfg.JWKSURL} {
		u, err := url.Parse(text)
		ip := net.ParseIP(u.Hostname())
		if err != nil || text != "" && u.Scheme != "https" && !(u.Scheme == "http" && ip != nil && ip.IsLoopback()) {
			return nil, fmt.Errorf("%s: must be an https URL", name)
		}
	}
	if !(cfg.TokenRate > 0) || cfg.TokenBurst < 1 {
		return nil, errors.New("OIDC_RATE and OIDC_BURST must be positive")
	}
	set := &keySet{issuer: cfg.Issuer, url: cfg.JWKSURL, now: now, client: &http.Client{
		Timeout: askTimeout, Transport: &seldom{http.DefaultTransport, rate.NewLimiter(rate.Every(10*time.Second), 6)},
	}}
	return &tokens{cfg, oidc.NewVerifier(cfg.Issuer, set, &oidc.Config{ClientID: cfg.Audience, SupportedSigningAlgs: signings, Now: now})}, nil
}

// bearer tells who a token stands for.
func (a *Access) bearer(r *http.Request, token string) (*Principal, *Denied) {
	bad := func(why string) (*Principal, *Denied) {
		return nil, a.unauthorized("bad_token", "The token is not valid", why)
	}
	if len(token) > maxToken {
		return bad(fmt.Sprintf("It is longer than %d bytes.", maxToken))
	}
	var asked error // why the provider's keys could not be had
	got, err := a.tokens.verifier.Verify(context.WithValue(r.Context(), askedKey{}, &asked), token)
	var expired *oidc.TokenExpiredError
	switch {
	case asked != nil:
		return nil, &Denied{
			Code: http.StatusServiceUnavailable, Title: "The token can't be judged now", Detail: "The keys of the OpenID provider can't be had. Try again.",
			RetryAfter: 5 * time.Second, outcome: "provider_unavailable",
		}
	case errors.As(err, &expired):
		return bad("It has expired.")
	case err != nil:
		// What is wrong exactly would help a forger more than a client.
		return bad("It must be a JWT of " + a.tokens.cfg.Issuer + " for " + a.tokens.cfg.Audience + ", signed by one of the provider's keys.")
	}
	var claims map[string]json.RawMessage
	if err := got.Claims(&claims); err != nil || got.Subject == "" || len(got.Subject) > 255 {
		return bad("It has no subject.")
	}
	denied := func(detail string) (*Principal, *Denied) {
		return nil, &Denied{Code: http.StatusForbidden, Title: "The token does not allow this", Detail: detail, outcome: "not_allowed"}
	}
	if scope := a.tokens.cfg.Scope; scope != "" && !slices.Contains(words(claims["scope"]), scope) && !slices.Contains(words(claims["scp"]), scope) {
		return denied("It lacks the scope " + scope + ".")
	}
	senders, err := readAccounts(words(claims[a.tokens.cfg.SendersIn]))
	if err != nil {
		return denied("Its claim " + a.tokens.cfg.SendersIn + " must list accounts.")
	}
	return &Principal{Name: "oidc:" + got.Subject, senders: senders, rate: a.tokens.cfg.TokenRate, burst: a.tokens.cfg.TokenBurst}, nil
}

// words reads a claim that is a list, or words in a string.
func words(claim json.RawMessage) []string {
	var list []string
	if json.Unmarshal(claim, &list) == nil {
		return list
	}
	var text string
	if json.Unmarshal(claim, &text) != nil {
		return nil
	}
	return strings.Fields(text)
}

type askedKey struct{}

// keySet is the provider's keys, kept.
type keySet struct {
	issuer, url string
	client      *http.Client
	now         func() time.Time

	mu      sync.Mutex
	current *oidc.RemoteKeySet
	since   time.Time
}

// VerifySignature implements oidc.KeySet.
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	s.mu.Lock()
	set, age := s.current, s.now().Sub(s.since)
	s.mu.Unlock()
	if set == nil || age > freshFor {
		fresh, err := s.fetched(ctx)
		var payload []byte
		if err == nil {
			payload, err = fresh.VerifySignature(ctx, token)
		}
		// The keys are there, whatever they say of this token.
		if !unasked(err) {
			s.mu.Lock()
			s.current, s.since = fresh, s.now()
			s.mu.Unlock()
			return payload, err
		}
		if set == nil || age > staleFor {
			return nil, told(ctx, err)
		}
	}
	payload, err := set.VerifySignature(ctx, token)
	return payload, told(ctx, err)
}

// unasked tells that an error is about asking the provider, and not about the token.
func unasked(err error) bool {
	var asking *url.Error
	return errors.As(err, &asking)
}

// told hands such an error to bearer: the verifier makes all of them text.
func told(ctx context.Context, err error) error {
	if at, ok := ctx.Value(askedKey{}).(*error); ok && unasked(err) {
		*at = err
	}
	return err
}

func (s *keySet) fetched(ctx context.Context) (*oidc.RemoteKeySet, error) {
	ctx = oidc.ClientContext(ctx, s.client)
	at := s.url
	if at == "" {
		provider, err := oidc.NewProvider(ctx, s.issuer)
		if err != nil {
			return nil, err
		}
		var says struct {
			URL string `json:"jwks_uri"`
		}
		if err := provider.Claims(&says); err != nil {
			return nil, err
		}
		at = says.URL
	}
	return oidc.NewRemoteKeySet(ctx, at), nil
}

// seldom keeps strangers' tokens, which name keys that nobody has, from becoming as many requests to the provider.
type seldom struct {
	http.RoundTripper
	limit *rate.Limiter
}

func (s *seldom) RoundTrip(r *http.Request) (*http.Response, error) {
	if !s.limit.Allow() {
		return nil, errors.New("the provider has been asked often enough for now")
	}
	resp, err := s.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	// A page that says that the provider is being repaired must not take its keys' place.
	if resp.StatusCode != http.StatusOK || !json.Valid(text) {
		return nil, fmt.Errorf("the provider answers %s, and no JSON of at most %d bytes", resp.Status, maxAnswer)
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return resp, nil
}
