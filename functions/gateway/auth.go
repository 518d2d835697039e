package gateway

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/rs/cors"

	"pgw/functions/gateway/access"
	"pgw/shared/payment"
)

// Headers of every response. A handler may replace them, as the page does.
var (
	noSniff     = []string{"nosniff"}
	noReferrer  = []string{"no-referrer"}
	sameOrigin  = []string{"same-origin"}
	stayWithTLS = []string{"max-age=31536000; includeSubDomains"}
)

// guard wraps all handlers of the HTTP port. It checks every path under /api by the path itself, so
// a new route there needs no code for it. It does not check the senders of events, because events
// are signed. Health, metrics and the page need no credentials.
func (g *Gateway) guard() (func(http.Handler) http.Handler, error) {
	// Browsers report whether a page of another origin caused a request. Without this check, any
	// page that a user opens could pay at a gateway that the user's machine can reach.
	origins := http.NewCrossOriginProtection()
	for _, o := range g.cfg.Origins {
		if err := origins.AddTrustedOrigin(o); err != nil {
			return nil, fmt.Errorf("CORS_ORIGINS: %w", err)
		}
	}
	hosts, err := readHosts(g.cfg.Access.Hosts)
	if err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler {
		var api http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := origins.Check(r); err != nil {
				writeProblem(w, http.StatusForbidden, "Another origin's page", "Pages of that origin may not use this API: CORS_ORIGINS does not list it.")
				return
			}
			if g.access != nil {
				p, quotas, denied := g.access.Charge(r, cost(r))
				tellQuotas(w.Header(), quotas)
				if denied != nil {
					g.deny(w, r, denied)
					return
				}
				r = r.WithContext(context.WithValue(r.Context(), principalKey{}, p))
			}
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				g.reads.serve(w, r, next)
				return
			}
			next.ServeHTTP(w, r)
		})
		if len(g.cfg.Origins) > 0 {
			api = cors.New(cors.Options{
				AllowedOrigins: g.cfg.Origins, AllowedMethods: []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete},
				AllowedHeaders: []string{"Content-Type", "Authorization", access.KeyHeader, "Idempotency-Key", "Prefer", requestIDHeader},
				ExposedHeaders: []string{
					"Retry-After", "Server-Timing", "WWW-Authenticate", requestIDHeader, replayedHeader, "RateLimit", "RateLimit-Policy",
					unknownFieldsHeader, "Preference-Applied",
				},
				MaxAge: 600,
			}).Handler(api)
		}
		served := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// ServeMux matches decoded segments, so the path of every request that it routes to
			// /api starts with /api.
			if strings.HasPrefix(r.URL.Path, "/api/") || r.URL.Path == "/api" {
				api.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(w, r)
		}))
		if g.cfg.Access.Mode != access.Required {
			served = hosts.only(served)
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h["X-Content-Type-Options"], h["Referrer-Policy"] = noSniff, noReferrer
			h["Cross-Origin-Opener-Policy"], h["Cross-Origin-Resource-Policy"] = sameOrigin, sameOrigin
			if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
				h["Strict-Transport-Security"] = stayWithTLS
			}
			if !operation[r.URL.Path] {
				r = withRequestID(w, r)
			}
			served.ServeHTTP(w, r)
		})
	}, nil
}

// tellQuotas tells the client what it may still send (the IETF's draft of RateLimit and
// RateLimit-Policy). Quotas are counted in requests; some requests count as several.
func tellQuotas(h http.Header, quotas []access.Quota) {
	if len(quotas) == 0 {
		return
	}
	policies, limits := make([]string, len(quotas)), make([]string, len(quotas))
	for i, q := range quotas {
		policies[i] = fmt.Sprintf("%q;q=%d;w=%d", q.Name, q.Most, seconds(q.Refill))
		limits[i] = fmt.Sprintf("%q;r=%d;t=%d", q.Name, q.Left, seconds(q.Full))
	}
	h["Ratelimit-Policy"], h["Ratelimit"] = []string{strings.Join(policies, ", ")}, []string{strings.Join(limits, ", ")}
}

// seconds rounds up to whole seconds.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

type principalKey struct{}

// principal returns the client that makes the request, or nil if requests are not authenticated.
func principal(r *http.Request) *access.Principal {
	p, _ := r.Context().Value(principalKey{}).(*access.Principal)
	return p
}

// isOperator reports whether a client sees everything: it may send from all accounts, or requests are
// not authenticated.
func isOperator(client *access.Principal) bool { return client == nil || client.OwnsAll() }

// seesPayment reports whether a client may see a payment: its own, and those without a client, if it
// has one of the two accounts. Releases before clients took payments without the names of their
// clients.
func seesPayment(client *access.Principal, rec payment.Record) bool {
	return isOperator(client) ||
		(rec.Client == client.Client || rec.Client == "") && (sees(client, rec.Sender) || sees(client, rec.Receiver))
}

func (g *Gateway) deny(w http.ResponseWriter, r *http.Request, d *access.Denied) {
	if d.Challenge != "" {
		w.Header().Set("WWW-Authenticate", d.Challenge)
	}
	if d.RetryAfter > 0 {
		w.Header().Set("Retry-After", d.Seconds())
	}
	g.log.DebugContext(r.Context(), "request denied", "code", d.Code, "reason", d.Title)
	writeProblem(w, d.Code, d.Title, d.Detail)
}
