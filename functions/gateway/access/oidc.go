package access

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"pgw/shared/payment"
	"pgw/shared/trace"
)

const (
	askTimeout = 3 * time.Second
	askEvery   = 10 * time.Second // the long-term average interval
	maxToken   = 8 << 10
	maxAnswer  = 1 << 20
	// The provider's keys are fetched again at this interval, so a withdrawn key is not accepted
	// for ever. While the provider is unavailable, the old keys stay valid for staleFor.
	freshFor = 15 * time.Minute
	staleFor = 2 * time.Hour
)

// signings are the accepted algorithms: those with a public key. With HMAC, every holder of the key
// could sign.
var signings = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA}

// tokens verifies JWTs.
type tokens struct {
	cfg      Config
	verifier *oidc.IDTokenVerifier
}

func openTokens(cfg Config, now func() time.Time, log *slog.Logger) (*tokens, error) {
	if cfg.Issuer == "" {
		return nil, nil
	}
	if cfg.Audience == "" {
		return nil, errors.New("OIDC_AUDIENCE is missing, but OIDC_ISSUER is set: tokens for other audiences would be accepted")
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
	set := &keySet{
		issuer: cfg.Issuer, url: cfg.JWKSURL, asking: http.DefaultTransport, now: now,
		outage:   trace.NewOutage(log, now, "the OpenID provider's keys can't be fetched"),
		renewals: rate.NewLimiter(rate.Every(askEvery), 3), unknown: rate.NewLimiter(rate.Every(askEvery), 5),
	}
	return &tokens{cfg, oidc.NewVerifier(cfg.Issuer, set, &oidc.Config{ClientID: cfg.Audience, SupportedSigningAlgs: signings, Now: now})}, nil
}

// bearer returns the principal of a token.
func (a *Access) bearer(r *http.Request, token string) (*Principal, *Denied) {
	bad := func(why string) (*Principal, *Denied) {
		return nil, a.unauthorized("bad_token", "The token is not valid", why)
	}
	if len(token) > maxToken {
		return bad(fmt.Sprintf("It is longer than %d bytes.", maxToken))
	}
	var asked error // the error of fetching the provider's keys
	got, err := a.tokens.verifier.Verify(context.WithValue(r.Context(), askedKey{}, &asked), token)
	var expired *oidc.TokenExpiredError
	switch {
	case asked != nil:
		return nil, &Denied{
			Code: http.StatusServiceUnavailable, Title: "The token can't be verified now", Detail: "The keys of the OpenID provider can't be fetched. Try again.",
			RetryAfter: 5 * time.Second, outcome: "provider_unavailable",
		}
	case errors.As(err, &expired):
		return bad("It has expired.")
	case err != nil:
		// The exact reason would help a forger more than a client.
		return bad("It must be a JWT of " + a.tokens.cfg.Issuer + " for " + a.tokens.cfg.Audience + ", signed by one of the provider's keys.")
	}
	var claims map[string]json.RawMessage
	if err := got.Claims(&claims); err != nil || got.Subject == "" || len(got.Subject) > 255 {
		return bad("It has no subject.")
	}
	client := "oidc:" + got.Subject // no key's owner has a colon
	if err := payment.CheckClient(client); err != nil {
		return bad("Its subject has characters that are not allowed.")
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
	return &Principal{Name: client, Client: client, senders: senders, rate: a.tokens.cfg.TokenRate, burst: a.tokens.cfg.TokenBurst}, nil
}

// words reads a claim that is a list or a string of words.
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

// keySet has the provider's keys in one oidc.RemoteKeySet, which all requests share. It fetches an
// unknown key once for all requests that wait for it. keySet adds two limits: keys expire, and the
// number of requests to the provider is limited.
type keySet struct {
	issuer, url string
	asking      http.RoundTripper
	now         func() time.Time
	outage      *trace.Outage
	renewals    *rate.Limiter // limits the renewals, however many tokens there are
	unknown     *rate.Limiter // limits the fetches for tokens with an unknown key: anyone can write such tokens

	renewing singleflight.Group
	mu       sync.Mutex
	current  *oidc.RemoteKeySet
	since    time.Time
	failed   bool // the latest renewal failed
}

// VerifySignature implements oidc.KeySet.
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	set, err := s.keys(ctx, token)
	var payload []byte
	if err == nil {
		payload, err = set.VerifySignature(ctx, token)
	}
	// The verifier turns all errors into text, so this error is passed to bearer through the
	// context.
	if at, ok := ctx.Value(askedKey{}).(*error); ok && unreachable(err) {
		*at = err
	}
	return payload, err
}

// keys returns the current keys. Requests that arrive during a renewal share it.
func (s *keySet) keys(ctx context.Context, token string) (*oidc.RemoteKeySet, error) {
	s.mu.Lock()
	set, age, failed := s.current, s.now().Sub(s.since), s.failed
	s.mu.Unlock()
	if set != nil && age <= freshFor {
		return set, nil
	}
	stale := set != nil && age <= staleFor
	renewal := s.renewing.DoChan("", func() (any, error) { return s.renew(context.WithoutCancel(ctx), set, token) })
	if stale && failed {
		return set, nil // requests do not wait each time for a provider that is unavailable
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case renewed := <-renewal:
		switch {
		case renewed.Err == nil:
			return renewed.Val.(*oidc.RemoteKeySet), nil
		case stale:
			return set, nil
		default:
			return nil, renewed.Err
		}
	}
}

var errOften = fmt.Errorf("%w: the limit of requests to it is reached", errProvider)

// renew fetches the keys again. It takes one permit for the whole renewal. If each request of the
// renewal took a permit, the first requests could use up all permits, and the keys would never be
// fetched.
func (s *keySet) renew(ctx context.Context, old *oidc.RemoteKeySet, token string) (*oidc.RemoteKeySet, error) {
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	if current != old {
		return current, nil // renewed meanwhile
	}
	if !s.renewals.AllowN(s.now(), 1) {
		return nil, errOften
	}
	fresh, err := s.fetched(ctx, token)
	s.outage.Note(ctx, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed = err != nil; s.failed {
		return nil, err
	}
	s.current, s.since = fresh, s.now()
	return fresh, nil
}

func (s *keySet) fetched(ctx context.Context, token string) (*oidc.RemoteKeySet, error) {
	at := s.url
	if at == "" {
		provider, err := oidc.NewProvider(oidc.ClientContext(ctx, &http.Client{Timeout: askTimeout, Transport: &careful{asking: s.asking}}), s.issuer)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errProvider, err)
		}
		var says struct {
			URL string `json:"jwks_uri"`
		}
		if err := provider.Claims(&says); err != nil {
			return nil, fmt.Errorf("%w: %w", errProvider, err)
		}
		at = says.URL
	}
	set := oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), &http.Client{
		Timeout: askTimeout, Transport: &careful{asking: s.asking, keys: true, again: s.unknown, now: s.now},
	}), at)
	// The set fetches its keys at its first verification. Whatever the result for this token, the
	// keys are present afterwards.
	if _, err := set.VerifySignature(ctx, token); unreachable(err) {
		return nil, err
	}
	return set, nil
}

// errProvider means that the provider can't be reached.
var errProvider = errors.New("the OpenID provider can't be reached")

// unreachable reports whether an error concerns the request to the provider, and not the token.
func unreachable(err error) bool {
	var asking *url.Error
	return errors.As(err, &asking) || errors.Is(err, errProvider) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// careful accepts only JSON of the right kind and size from the provider.
type careful struct {
	asking http.RoundTripper
	keys   bool          // the request is for a key set
	again  *rate.Limiter // limits all requests after the first; nil: there is only one
	now    func() time.Time
	asked  atomic.Bool
}

func (c *careful) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.asked.Swap(true) && c.again != nil && !c.again.AllowN(c.now(), 1) {
		return nil, errOften
	}
	resp, err := c.asking.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	// A maintenance page of the provider must not replace its keys.
	if resp.StatusCode != http.StatusOK || !json.Valid(text) {
		return nil, fmt.Errorf("the provider answered %s, which is not 200 with JSON of at most %d bytes", resp.Status, maxAnswer)
	}
	if c.keys {
		var set struct {
			Keys []json.RawMessage `json:"keys"`
		}
		if err := json.Unmarshal(text, &set); err != nil || len(set.Keys) == 0 {
			return nil, errors.New("the provider answered with JSON without keys")
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return resp, nil
}
