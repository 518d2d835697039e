// Package access says who may come in: by an API key (keys.go) or by a token of an OpenID provider (oidc.go), how often,
// and with whose accounts.
package access

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pgw/shared/function"
	"pgw/shared/secret"
)

// Config of who may come in. With Mode off everybody may.
type Config struct {
	Mode       string  `envconfig:"AUTH" default:"off" desc:"off: everyone who reaches the port may pay; required: only with an API key or a token"`
	KeysFile   string  `envconfig:"API_KEYS_FILE" desc:"file of API keys, read again when it changes; pgw apikey new makes its lines"`
	Keys       string  `envconfig:"API_KEYS" desc:"the same lines, separated by semicolons; a change needs a restart"`
	Issuer     string  `envconfig:"OIDC_ISSUER" desc:"URL of the OpenID provider whose JWTs are taken"`
	Audience   string  `envconfig:"OIDC_AUDIENCE" desc:"what their aud must name"`
	JWKSURL    string  `envconfig:"OIDC_JWKS_URL" desc:"where the provider's keys are; asked of the provider when empty"`
	Scope      string  `envconfig:"OIDC_SCOPE" desc:"a scope that tokens must have; none when empty"`
	SendersIn  string  `envconfig:"OIDC_SENDERS_CLAIM" default:"pgw_senders" desc:"claim with the accounts that the bearer may send from"`
	TokenRate  float64 `envconfig:"OIDC_RATE" default:"100" desc:"requests a second for each subject"`
	TokenBurst int     `envconfig:"OIDC_BURST" default:"200" desc:"requests at once for each subject"`

	Hosts []string `envconfig:"HOSTS" desc:"names by which clients may call while AUTH is off, beside localhost and addresses: pay.example.com, *.example.com, or * where what stands before it decides"`

	AddressRate float64        `envconfig:"ADDRESS_RATE" default:"0" desc:"requests a second for each client address, before anything else is looked at; 0: no bound"`
	Proxies     []netip.Prefix `envconfig:"TRUSTED_PROXIES" desc:"networks whose X-Forwarded-For is believed"`
}

// Modes.
const (
	Off      = "off"
	Required = "required"
)

// Principal is who makes a request.
type Principal struct {
	Name    string
	senders accounts
	rate    float64
	burst   int
}

// Owns tells that the account is one of those the principal may send from.
func (p *Principal) Owns(account string) bool { return p.senders.match(account) }

// OwnsAll tells that every account is.
func (p *Principal) OwnsAll() bool { return p.senders.all() }

// accounts are names, and beginnings of names that end in *.
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

// Denied is why a request is not let in, as the client is told it.
type Denied struct {
	Code          int
	Title, Detail string
	Challenge     string        // for WWW-Authenticate
	RetryAfter    time.Duration // for Retry-After
	outcome       string
}

func (d *Denied) Error() string { return d.Title + ": " + d.Detail }

// Access decides who comes in.
type Access struct {
	keys      func() keys  // nil: none
	tokens    *tokens      // nil: none
	limits    limiters     // by principal
	addresses *addressRate // nil: none
	outcomes  *prometheus.CounterVec
	now       func() time.Time
}

// Open reads the configuration. It gives nil when there is nothing to be checked: then nothing is spent on it.
func Open(cfg Config, r prometheus.Registerer, now func() time.Time, log *slog.Logger) (*Access, error) {
	a := &Access{now: now, outcomes: function.NewCounters(r, "pgw_gateway_access_total", "API requests, by whether they were let in.", "outcome",
		"let_in", "no_credentials", "bad_key", "bad_token", "provider_unavailable", "not_allowed", "too_many", "foreign_account")}
	configured := cfg.KeysFile != "" || cfg.Keys != "" || cfg.Issuer != ""
	switch cfg.Mode {
	case Off, "":
		if configured {
			return nil, errors.New("AUTH is off, and yet there are API_KEYS_FILE, API_KEYS or OIDC_ISSUER: say AUTH=required, or take them away")
		}
		if cfg.AddressRate == 0 {
			return nil, nil
		}
	case Required:
		if !configured {
			return nil, errors.New("AUTH is required, and nobody could come in: set API_KEYS_FILE, API_KEYS or OIDC_ISSUER")
		}
	default:
		return nil, fmt.Errorf("AUTH: %q; off or required", cfg.Mode)
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

// KeyHeader carries an API key.
const KeyHeader = "X-API-Key"

// Check tells who makes a request, or why it is not let in. The principal is nil where nobody is asked who he is.
func (a *Access) Check(r *http.Request) (*Principal, *Denied) { return a.Charge(r, 1) }

// Charge is Check for a request that counts as several.
func (a *Access) Charge(r *http.Request, cost int) (*Principal, *Denied) {
	p, denied := a.check(r, cost)
	if denied != nil {
		a.outcomes.WithLabelValues(denied.outcome).Inc()
	} else {
		a.outcomes.WithLabelValues("let_in").Inc()
	}
	return p, denied
}

func (a *Access) check(r *http.Request, cost int) (*Principal, *Denied) {
	if a.addresses != nil {
		if wait := a.addresses.take(r, cost, a.now()); wait > 0 {
			return nil, tooMany(wait, "requests from this address")
		}
	}
	if a.keys == nil && a.tokens == nil {
		return nil, nil
	}
	p, denied := a.identify(r)
	if denied != nil {
		return nil, denied
	}
	if wait := a.limits.take(p.Name, p.rate, p.burst, cost, a.now()); wait > 0 {
		return nil, tooMany(wait, "requests of "+p.Name)
	}
	return p, nil
}

func (a *Access) identify(r *http.Request) (*Principal, *Denied) {
	given, authorization := r.Header.Values(KeyHeader), r.Header.Values("Authorization")
	switch {
	case len(given)+len(authorization) > 1:
		return nil, a.unauthorized("no_credentials", "Who are you?", "Give one "+KeyHeader+" or one Authorization, and not both.")
	case len(given) == 1 && a.keys != nil:
		k := a.keys().find(given[0], a.now())
		if k == nil {
			// Unknown, wrong, withdrawn and expired are told alike.
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
		Detail: "There are more " + of + " than may be; see Retry-After.",
	}
}

// MaySend denies money from an account that is another's. A nil principal is one whom nobody asked who he is.
func (a *Access) MaySend(p *Principal, account string) *Denied {
	if p == nil || p.Owns(account) {
		return nil
	}
	a.outcomes.WithLabelValues("foreign_account").Inc()
	return &Denied{
		Code: http.StatusForbidden, Title: "Not your account", Detail: "sender_id: " + p.Name + " may not send from " + strconv.Quote(account) + ".",
		outcome: "foreign_account",
	}
}

// Seconds writes RetryAfter as the header has it.
func (d *Denied) Seconds() string { return strconv.Itoa(int(math.Ceil(d.RetryAfter.Seconds()))) }
