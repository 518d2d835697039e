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

	"pgw/shared/trace"
)

const (
	askTimeout = 3 * time.Second
	askEvery   = 10 * time.Second // in the long run
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

func openTokens(cfg Config, now func() time.Time, log *slog.Logger) (*tokens, error) {
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
	set := &keySet{
		issuer: cfg.Issuer, url: cfg.JWKSURL, asking: http.DefaultTransport, now: now,
		outage:   trace.NewOutage(log, now, "the OpenID provider's keys can't be had"),
		renewals: rate.NewLimiter(rate.Every(askEvery), 3), unknown: rate.NewLimiter(rate.Every(askEvery), 5),
	}
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

// keySet is the provider's keys: one oidc.RemoteKeySet, shared by all requests. It fetches a key that it does not know, once for
// all who wait for it. What is added here is that keys do not live for ever, and that the provider is asked seldom.
type keySet struct {
	issuer, url string
	asking      http.RoundTripper
	now         func() time.Time
	outage      *trace.Outage
	renewals    *rate.Limiter // however many tokens there are to be judged
	unknown     *rate.Limiter // fetches for tokens that name a key which is not known: strangers can write such tokens

	renewing singleflight.Group
	mu       sync.Mutex
	current  *oidc.RemoteKeySet
	since    time.Time
	failed   bool // the latest renewal
}

// VerifySignature implements oidc.KeySet.
func (s *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	set, err := s.keys(ctx, token)
	var payload []byte
	if err == nil {
		payload, err = set.VerifySignature(ctx, token)
	}
	// The verifier makes all errors text, so this one is handed to bearer past it.
	if at, ok := ctx.Value(askedKey{}).(*error); ok && unasked(err) {
		*at = err
	}
	return payload, err
}

// keys gives those to judge by. Who comes while they are being renewed shares the renewal.
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
		return set, nil // nobody waits each time for a provider that is away
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

var errOften = fmt.Errorf("%w: it has been asked often enough for now", errProvider)

// renew fetches the keys anew. One permission is for the whole of it: were it for each request, the first of them could use
// up every one that comes, and the keys would never be fetched.
func (s *keySet) renew(ctx context.Context, old *oidc.RemoteKeySet, token string) (*oidc.RemoteKeySet, error) {
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	if current != old {
		return current, nil // renewed since it was looked at
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
	// The set fetches its keys when it is first asked about a token. Whatever it says of this one, they are there then.
	if _, err := set.VerifySignature(ctx, token); unasked(err) {
		return nil, err
	}
	return set, nil
}

// errProvider means that the provider can't be asked.
var errProvider = errors.New("the OpenID provider can't be asked")

// unasked tells that an error is about asking the provider, and not about the token.
func unasked(err error) bool {
	var asking *url.Error
	return errors.As(err, &asking) || errors.Is(err, errProvider) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// careful takes nothing from the provider but JSON of the right kind and size.
type careful struct {
	asking http.RoundTripper
	keys   bool          // a key set is asked for
	again  *rate.Limiter // bounds all requests but the first; nil: there is but one
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
	// A page that says that the provider is being repaired must not take its keys' place.
	if resp.StatusCode != http.StatusOK || !json.Valid(text) {
		return nil, fmt.Errorf("the provider answers %s, and no JSON of at most %d bytes", resp.Status, maxAnswer)
	}
	if c.keys {
		var set struct {
			Keys []json.RawMessage `json:"keys"`
		}
		if err := json.Unmarshal(text, &set); err != nil || len(set.Keys) == 0 {
			return nil, errors.New("the provider answers with JSON that holds no keys")
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return resp, nil
}
