package gateway

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// GrafanaURL is where browsers reach a Grafana that has the project's dashboards. The page links to it, and shows panels of
// it. The zero value is no Grafana.
type GrafanaURL struct {
	link   string // as it was given
	origin string // all that the page may frame
	base   string // the origin, and the path that Grafana is served under
}

var (
	// A Content-Security-Policy can name these hosts, and nothing that is more than one.
	frameHost = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
	// What may follow Grafana's own path: the link may lead to one dashboard, or to their list.
	withinGrafana = regexp.MustCompile(`/(d|dashboards)(/.*)?$`)
)

// UnmarshalText reads the address strictly: a part of it becomes a part of the page's policy.
func (g *GrafanaURL) UnmarshalText(text []byte) error {
	*g = GrafanaURL{}
	if len(text) == 0 {
		return nil
	}
	u, err := url.Parse(string(text))
	if err != nil {
		return errors.New("is no URL; an example is http://127.0.0.1:3000")
	}
	host := strings.ToLower(u.Hostname())
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("must begin with http:// or https://")
	case u.User != nil:
		return errors.New("must have no user and no password: everybody who opens the page would read them")
	case !frameHost.MatchString(host) || strings.HasPrefix(u.Host, "["):
		return errors.New("must have a host that is a name or an IPv4 address")
	}
	g.origin = u.Scheme + "://" + host
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			*g = GrafanaURL{}
			return errors.New("has a port that is none")
		}
		g.origin += ":" + port
	}
	g.link = string(text)
	g.base = g.origin + strings.TrimRight(withinGrafana.ReplaceAllString(u.EscapedPath(), ""), "/")
	return nil
}

// panel is the address of one panel by itself, of the last quarter of an hour. The browser adds the theme.
func (g GrafanaURL) panel(dashboard string, id int) string {
	return fmt.Sprintf("%s/d-solo/%s/%s?panelId=%d&from=now-15m&to=now&refresh=5s", g.base, dashboard, dashboard, id)
}
