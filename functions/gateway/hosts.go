package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// hosts are the names by which a gateway that asks nobody who he is may be called. A page can have its own name lead to an
// address of its visitor's network (DNS rebinding). Its requests are then of the gateway's origin, for all that the browser
// knows, and only Host tells that they are not. An address can't be made to lead elsewhere, and nobody else can have the
// names of this machine. With keys or tokens there is no such danger: a browser does not send them by itself.
type hosts struct {
	any   bool
	names map[string]bool // in small letters
	below []string        // ".example.com": names that end so
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
			return h, fmt.Errorf("HOSTS: %q is no name of a host without a port, such as pay.example.com, *.example.com or *", entry)
		case wild:
			h.below = append(h.below, "."+rest)
		default:
			h.names[name] = true
		}
	}
	return h, nil
}

// ours tells that the gateway may be called so. A request without Host is not from a browser.
func (h hosts) ours(host string) bool {
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

// operation are the paths that are for whoever runs pgw. They are called by all kinds of names, and nothing is paid by them.
var operation = map[string]bool{"/healthz": true, "/readyz": true, "/metrics": true, "/events": true}

// only refuses what is not for us.
func (h hosts) only(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !operation[r.URL.Path] && !h.ours(r.Host) {
			writeProblem(w, http.StatusMisdirectedRequest, "Not a host of this gateway",
				fmt.Sprintf("%.100q is none of its names: HOSTS must list it, or AUTH be required.", r.Host))
			return
		}
		next.ServeHTTP(w, r)
	})
}
