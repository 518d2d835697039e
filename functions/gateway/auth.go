package gateway

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/rs/cors"

	"pgw/functions/gateway/access"
)

// Headers that every answer has. A handler may set others in their place, as the page does.
var (
	noSniff     = []string{"nosniff"}
	noReferrer  = []string{"no-referrer"}
	sameOrigin  = []string{"same-origin"}
	stayWithTLS = []string{"max-age=31536000; includeSubDomains"}
)

// guard stands before everything that the port serves over HTTP. What is under /api is for those who may come in, by
// its path alone: a route that is added there needs nothing done for it. Events are let through, since their signature
// says who sent them, and so are health, metrics and the page.
func (g *Gateway) guard() (func(http.Handler) http.Handler, error) {
	// Browsers say whether a page of another origin is behind a request. Without this, any page that somebody opens
	// could pay at a gateway that his machine reaches.
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
				writeProblem(w, http.StatusForbidden, "Another origin's page", "Pages of that origin may not use this API: CORS_ORIGINS does not name it.")
				return
			}
			if g.access != nil {
				p, denied := g.access.Charge(r, cost(r))
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
				AllowedOrigins: g.cfg.Origins, AllowedMethods: []string{http.MethodGet, http.MethodPost},
				AllowedHeaders: []string{"Content-Type", "Authorization", access.KeyHeader, "Idempotency-Key"},
				ExposedHeaders: []string{"Retry-After", "Server-Timing", "WWW-Authenticate"}, MaxAge: 600,
			}).Handler(api)
		}
		served := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// ServeMux matches decoded segments: whatever it takes for /api has a path that begins so.
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
			served.ServeHTTP(w, r)
		})
	}, nil
}

type principalKey struct{}

// principal tells who makes a request; nil where nobody was asked who he is.
func principal(r *http.Request) *access.Principal {
	p, _ := r.Context().Value(principalKey{}).(*access.Principal)
	return p
}

func (g *Gateway) deny(w http.ResponseWriter, r *http.Request, d *access.Denied) {
	if d.Challenge != "" {
		w.Header().Set("WWW-Authenticate", d.Challenge)
	}
	if d.RetryAfter > 0 {
		w.Header().Set("Retry-After", d.Seconds())
	}
	g.log.DebugContext(r.Context(), "not let in", "code", d.Code, "why", d.Title)
	writeProblem(w, d.Code, d.Title, d.Detail)
}
