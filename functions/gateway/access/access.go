// Package access decides which requests the gateway admits. It identifies clients by an API key
// (keys.go) or by a token of an OpenID provider (oidc.go), limits their rate, and knows their
// accounts.
package access

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pgw/shared/function"
	"pgw/shared/secret"
)

// Config of the access checks. If Mode is off, every request is admitted.
type Config struct {
	Mode       string  `envconfig:"AUTH" default:"off" desc:"off: everyone who reaches the port may pay; required: requests need an API key or a token"`
	KeysFile   string  `envconfig:"API_KEYS_FILE" desc:"file of API keys, one a line, read again when it changes; pgw apikey new makes the lines"`
	Keys       string  `envconfig:"API_KEYS" desc:"the same lines, separated by semicolons; a change needs a restart"`
	Issuer     string  `envconfig:"OIDC_ISSUER" desc:"URL of the OpenID provider whose JWTs are accepted"`
	Audience   string  `envconfig:"OIDC_AUDIENCE" desc:"the audience that the JWT's aud must contain"`
	JWKSURL    string  `envconfig:"OIDC_JWKS_URL" desc:"URL of the provider's keys; empty: the provider's discovery document gives it"`
	Scope      string  `envconfig:"OIDC_SCOPE" desc:"a scope that tokens must have; empty: none"`
	SendersIn  string  `envconfig:"OIDC_SENDERS_CLAIM" default:"pgw_senders" desc:"claim with the accounts that the bearer may send from"`
	TokenRate  float64 `envconfig:"OIDC_RATE" default:"100" desc:"requests per second of each subject"`
	TokenBurst int     `envconfig:"OIDC_BURST" default:"200" desc:"the most requests in one burst of each subject"`

	Hosts []string `envconfig:"HOSTS" desc:"host names under which clients may call while AUTH is off, in addition to localhost and IP addresses: pay.example.com, *.example.com, or * if a proxy in front checks the host"`

	AddressRate float64        `envconfig:"ADDRESS_RATE" default:"0" desc:"requests per second of each client address, checked before everything else; 0: no limit"`
	Proxies     []netip.Prefix `envconfig:"TRUSTED_PROXIES" desc:"networks of proxies whose X-Forwarded-For is trusted"`
}

// Modes.
const (
	Off      = "off"
	Required = "required"
)

// Principal is the client that makes a request.
type Principal struct {
	Name string // of the key or of the token's subject, for limits and logs
	// Client is whose payments and idempotency keys are the principal's: the key's owner, or the
	// token's subject. Several keys may have one owner.
	Client  string
	senders accounts
	rate    float64
	burst   int
}

// Owns reports whether the principal may send from the account.
func (p *Principal) Owns(account string) bool { return p.senders.match(account) }

// OwnsAll reports whether the principal may send from every account.
func (p *Principal) OwnsAll() bool { return p.senders.all() }

// Accounts returns the accounts that the principal may send from: ids, and prefixes of ids that end
// in *.
func (p *Principal) Accounts() []string { return slices.Clone(p.senders) }

// accounts are account ids, or prefixes of ids that end in *.
type accounts []string

func (as accounts) match(id string) bool {
	for _, a := range as {
		if start, cut := strings.CutSuffix(a, "*"); a == id || cut && strings.HasPrefix(id, start) {
			return true
		}
	}
	return false
}

func (as accounts) all() bool {
	for _, a := range as {
		if a == "*" {
			return true
		}
	}
	return false
}

// Denied is the error of a request that is not admitted, as the client gets it.
type Denied struct {
	Code          int
	Title, Detail string
	Challenge     string        // for WWW-Authenticate
	RetryAfter    time.Duration // for Retry-After
	outcome       string
}

func (d *Denied) Error() string { return d.Title + ": " + d.Detail }

// Access decides which requests are admitted.
type Access struct {
	keys      func() keys  // nil: API keys are not accepted
	tokens    *tokens      // nil: tokens are not accepted
	limits    limiters     // by principal
	addresses *addressRate // nil: addresses have no rate limit
	outcomes  *prometheus.CounterVec
	now       func() time.Time
}

// Open checks the configuration and reads the keys. It returns nil if there is nothing to check.
func Open(cfg Config, r prometheus.Registerer, now func() time.Time, log *slog.Logger) (*Access, error) {
	a := &Access{now: now, outcomes: function.NewCounters(r, "pgw_gateway_access_total", "API requests, by outcome of the access check: let_in means admitted.", "outcome",
		"let_in", "no_credentials", "bad_key", "bad_token", "provider_unavailable", "not_allowed", "too_many", "foreign_account")}
	configured := cfg.KeysFile != "" || cfg.Keys != "" || cfg.Issuer != ""
	switch cfg.Mode {
	case Off, "":
		if configured {
			return nil, errors.New("AUTH is off, but API_KEYS_FILE, API_KEYS or OIDC_ISSUER is set: set AUTH=required, or unset them")
		}
		if cfg.AddressRate == 0 {
			return nil, nil
		}
	case Required:
		if !configured {
			return nil, errors.New("AUTH is required, but no client could be admitted: set API_KEYS_FILE, API_KEYS or OIDC_ISSUER")
		}
	default:
		return nil, fmt.Errorf("AUTH: is %q; must be off or required", cfg.Mode)
	}
	var err error
	readLines := func(text []byte) (keys, error) { return readKeys(string(text)) }
	a.keys, err = secret.Variable("API_KEYS", strings.ReplaceAll(cfg.Keys, ";", "\n"), cfg.KeysFile, readLines, log)
	if err != nil {
		return nil, err
	}
	if a.tokens, err = openTokens(cfg, now, log); err != nil {
		return nil, err
	}
	if a.addresses, err = openAddressRate(cfg); err != nil {
		return nil, err
	}
	return a, nil
}

// KeyHeader is the header of an API key.
const KeyHeader = "X-API-Key"

// Check returns the client that makes a request, or why the request is denied. The principal is nil
// if requests are not authenticated.
func (a *Access) Check(r *http.Request) (*Principal, *Denied) {
	p, _, denied := a.Charge(r, 1)
	return p, denied
}

// Charge is like Check for a request that counts as cost requests. It also returns what the client
// may still send under each rate limit that was asked.
func (a *Access) Charge(r *http.Request, cost int) (*Principal, []Quota, *Denied) {
	p, quotas, denied := a.check(r, cost)
	if denied != nil {
		a.outcomes.WithLabelValues(denied.outcome).Inc()
	} else {
		a.outcomes.WithLabelValues("let_in").Inc()
	}
	return p, quotas, denied
}

func (a *Access) check(r *http.Request, cost int) (_ *Principal, quotas []Quota, _ *Denied) {
	if a.addresses != nil {
		wait, left := a.addresses.take(r, cost, a.now())
		quotas = append(quotas, left)
		if wait > 0 {
			return nil, quotas, tooMany(wait, "requests from this address")
		}
	}
	if a.keys == nil && a.tokens == nil {
		return nil, quotas, nil
	}
	p, denied := a.identify(r)
	if denied != nil {
		return nil, quotas, denied
	}
	wait, left := a.limits.take(p.Name, p.rate, p.burst, cost, a.now())
	left.Name = "client"
	quotas = append(quotas, left)
	if wait > 0 {
		return nil, quotas, tooMany(wait, "requests of "+p.Name)
	}
	return p, quotas, nil
}

func (a *Access) identify(r *http.Request) (*Principal, *Denied) {
	given, authorization := r.Header.Values(KeyHeader), r.Header.Values("Authorization")
	switch {
	case len(given)+len(authorization) > 1:
		return nil, a.unauthorized("no_credentials", "Who are you?", "Give one "+KeyHeader+" or one Authorization, and not both.")
	case len(given) == 1 && a.keys != nil:
		k := a.keys().find(given[0], a.now())
		if k == nil {
			// The response is the same for an unknown, wrong, withdrawn or expired key.
			return nil, a.unauthorized("bad_key", "The API key is not valid", "It is wrong, has expired, or was withdrawn.")
		}
		return &k.Principal, nil
	case len(authorization) == 1 && a.tokens != nil:
		scheme, token, _ := strings.Cut(authorization[0], " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return nil, a.unauthorized("no_credentials", "Who are you?", "Authorization must be: Bearer, and a JWT.")
		}
		return a.bearer(r, strings.TrimSpace(token))
	}
	return nil, a.unauthorized("no_credentials", "Who are you?", "Requests need "+a.wants()+".")
}

func (a *Access) wants() string {
	var ways []string
	if a.keys != nil {
		ways = append(ways, "an API key in the header "+KeyHeader)
	}
	if a.tokens != nil {
		ways = append(ways, "a JWT in the header Authorization, after Bearer")
	}
	return strings.Join(ways, " or ")
}

func (a *Access) unauthorized(outcome, title, detail string) *Denied {
	var challenges []string
	if a.tokens != nil {
		bearer := `Bearer realm="pgw"`
		if outcome == "bad_token" {
			bearer += `, error="invalid_token"`
		}
		challenges = append(challenges, bearer)
	}
	if a.keys != nil {
		challenges = append(challenges, `ApiKey realm="pgw", header="`+KeyHeader+`"`)
	}
	return &Denied{Code: http.StatusUnauthorized, Title: title, Detail: detail, Challenge: strings.Join(challenges, ", "), outcome: outcome}
}

func tooMany(wait time.Duration, of string) *Denied {
	return &Denied{
		Code: http.StatusTooManyRequests, Title: "Too many requests", RetryAfter: wait, outcome: "too_many",
		Detail: "There are too many " + of + "; see Retry-After.",
	}
}

// MaySend denies a payment from another client's account. p is nil if requests are not
// authenticated.
func (a *Access) MaySend(p *Principal, account string) *Denied {
	return a.mayUse(p, account, "sender_id: %s may not send from %q.")
}

// MayOperate denies an operation on a payment to another client's account. A refund takes money from
// that account, and a void takes away what its owner relies on. p is nil if requests are not
// authenticated.
func (a *Access) MayOperate(p *Principal, receiver string) *Denied {
	return a.mayUse(p, receiver, "%s may not send from %q, which gets the payment.")
}

// mayUse denies the use of another client's account. detail has the places of the client and the account.
func (a *Access) mayUse(p *Principal, account, detail string) *Denied {
	if p == nil || p.Owns(account) {
		return nil
	}
	a.outcomes.WithLabelValues("foreign_account").Inc()
	return &Denied{
		Code: http.StatusForbidden, Title: "Not your account", Detail: fmt.Sprintf(detail, p.Name, account), outcome: "foreign_account",
	}
}

// Seconds formats RetryAfter for the header, in whole seconds.
func (d *Denied) Seconds() string { return strconv.Itoa(int(math.Ceil(d.RetryAfter.Seconds()))) }
