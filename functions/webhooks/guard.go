package webhooks

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// guard decides which addresses events may be sent to. Clients name them, so without it they could
// make pgw call its own functions, its database or the cloud's metadata.
type guard struct {
	plainHTTP bool           // http is allowed, besides https
	networks  []netip.Prefix // are allowed in addition to public addresses
}

// errForbidden is wrapped by the errors of addresses that events may not be sent to.
var errForbidden = errors.New("this address is not allowed")

// special are networks that are not public, besides those that netip knows by name. Some hold
// addresses of IPv4 in another form.
var special = func() (all []netip.Prefix) {
	for _, text := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
	} {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}()

// checkAddress returns an error for an IP address that events may not be sent to.
func (g guard) checkAddress(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	for _, n := range g.networks {
		if n.Contains(ip) {
			return nil
		}
	}
	if !ip.IsGlobalUnicast() || ip.IsPrivate() {
		return fmt.Errorf("%w: %s is not a public address", errForbidden, ip)
	}
	for _, n := range special {
		if n.Contains(ip) {
			return fmt.Errorf("%w: %s is not a public address", errForbidden, ip)
		}
	}
	return nil
}

// maxURL is the longest URL of an endpoint, in bytes.
const maxURL = 2000

// checkURL returns the reason why a URL can't be an endpoint's. An address that only DNS knows is
// checked when pgw connects to it.
func (g guard) checkURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case len(text) > maxURL:
		return fmt.Errorf("is longer than %d bytes", maxURL)
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Opaque != "":
		return errors.New("is not an absolute URL")
	case u.Scheme != "https" && !g.plainHTTP:
		return errors.New("must begin with https://")
	case u.Scheme != "https" && u.Scheme != "http":
		return errors.New("must begin with https:// or http://")
	case u.User != nil:
		return errors.New("must not have a user or a password: the signature says who sends")
	case u.Fragment != "" || strings.HasSuffix(text, "#"):
		return errors.New("must not have a fragment")
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		return g.checkAddress(ip)
	}
	return nil
}

// The limits of a connection to an endpoint, and of its answer.
const (
	dialTimeout    = 5 * time.Second
	idleTimeout    = 30 * time.Second
	maxAnswerBytes = 16 << 10
)

// transport returns a transport that connects only to allowed addresses. The check is made after DNS
// has answered, at each connection, so a name can't be given another address in between. Proxies of
// the environment are not used: they would connect without a check.
func (g guard) transport() *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("%w: %s", errForbidden, address)
		}
		return g.checkAddress(to.Addr())
	}}
	return &http.Transport{
		DialContext: dialer.DialContext, TLSHandshakeTimeout: dialTimeout, IdleConnTimeout: idleTimeout,
		MaxIdleConns: 512, MaxIdleConnsPerHost: 16, MaxResponseHeaderBytes: maxAnswerBytes,
		DisableCompression: true, ForceAttemptHTTP2: true,
	}
}
