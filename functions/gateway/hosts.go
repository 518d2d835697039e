package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// hosts are the host names under which a gateway without authentication may be called. They prevent
// DNS rebinding: a page can point its own name at an address in its visitor's network. For the
// browser, the page's requests then have the gateway's origin, and only the Host header shows the
// difference. An IP address cannot be pointed elsewhere, and no one else can own the names of this
// machine. With keys or tokens the attack fails, because a browser does not send them by itself.
type hosts struct {
	any   bool
	names map[string]bool // in lower case
	below []string        // suffixes of allowed names, such as ".example.com"
}

func readHosts(list []string) (hosts, error) {
	h := hosts{names: map[string]bool{"localhost": true}, below: []string{".localhost"}}
	for _, entry := range list {
		name := strings.ToLower(strings.TrimSpace(entry))
		switch rest, wild := strings.CutPrefix(name, "*."); {
		case name == "":
		case name == "*":
			h.any = true
		case rest == "" || strings.ContainsAny(rest, "*/:@ "):
			return h, fmt.Errorf("HOSTS: %q is not a host name without a port, such as pay.example.com, *.example.com or *", entry)
		case wild:
			h.below = append(h.below, "."+rest)
		default:
			h.names[name] = true
		}
	}
	return h, nil
}

// allowed reports whether the gateway may be called under this Host header. A request without Host
// does not come from a browser.
func (h hosts) allowed(host string) bool {
	if h.any || host == "" {
		return true
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil || h.names[host] {
		return true
	}
	for _, end := range h.below {
		if strings.HasSuffix(host, end) {
			return true
		}
	}
	return false
}

// operation are the paths for the operator of pgw. They are called under many names, and they
// cannot make payments.
var operation = map[string]bool{"/healthz": true, "/readyz": true, "/metrics": true, "/events": true}

// only refuses requests whose host is not one of h.
func (h hosts) only(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !operation[r.URL.Path] && !h.allowed(r.Host) {
			writeProblem(w, http.StatusMisdirectedRequest, "Not a host of this gateway",
				fmt.Sprintf("%.100q is not one of its names. List it in HOSTS, or set AUTH=required.", r.Host))
			return
		}
		next.ServeHTTP(w, r)
	})
}
