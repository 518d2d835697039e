package gateway

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// GrafanaURL is the address at which browsers reach a Grafana with the project's dashboards. The
// page links to it and shows its panels. The zero value means that there is no Grafana.
type GrafanaURL struct {
	link   string // the configured text
	origin string // the only origin that the page may frame
	base   string // the origin and the path under which Grafana is served
}

var (
	// Hosts that a Content-Security-Policy can name, without wildcards.
	frameHost = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
	// What may follow Grafana's base path: the link may point to one dashboard or to their list.
	withinGrafana = regexp.MustCompile(`/(d|dashboards)(/.*)?$`)
)

// UnmarshalText parses the address strictly, because a part of it becomes a part of the page's
// Content-Security-Policy.
func (g *GrafanaURL) UnmarshalText(text []byte) error {
	*g = GrafanaURL{}
	if len(text) == 0 {
		return nil
	}
	u, err := url.Parse(string(text))
	if err != nil {
		return errors.New("is not a URL; an example is http://127.0.0.1:3000")
	}
	host := strings.ToLower(u.Hostname())
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("must begin with http:// or https://")
	case u.User != nil:
		return errors.New("must have no user and no password: everybody who opens the page could read them")
	case !frameHost.MatchString(host) || strings.HasPrefix(u.Host, "["):
		return errors.New("must have a host that is a name or an IPv4 address")
	}
	g.origin = u.Scheme + "://" + host
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			*g = GrafanaURL{}
			return errors.New("has a port that is not valid")
		}
		g.origin += ":" + port
	}
	g.link = string(text)
	g.base = g.origin + strings.TrimRight(withinGrafana.ReplaceAllString(u.EscapedPath(), ""), "/")
	return nil
}

// panel returns the address of a single panel that shows the last 15 minutes. The browser adds the
// theme.
func (g GrafanaURL) panel(dashboard string, id int) string {
	return fmt.Sprintf("%s/d-solo/%s/%s?panelId=%d&from=now-15m&to=now&refresh=5s", g.base, dashboard, dashboard, id)
}
