package access

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxLimiters is the most limiters that are kept. A limiter that is full again equals a new one, so
// full ones are removed first.
const maxLimiters = 10_000

// limiters limit requests by name.
type limiters struct {
	mu sync.Mutex
	by map[string]*rate.Limiter
}

// Quota is what may still be sent under a rate limit.
type Quota struct {
	Name   string        // of the limit: address or client
	Most   int           // the requests of a full burst
	Refill time.Duration // in which a whole burst comes back
	Left   int           // the requests that may be sent now
	Full   time.Duration // until the burst is full again
}

func quotaOf(l *rate.Limiter, now time.Time) Quota {
	per := float64(time.Second) / float64(l.Limit())
	left := max(0, l.TokensAt(now))
	return Quota{
		Most: l.Burst(), Refill: time.Duration(per * float64(l.Burst())),
		Left: int(left), Full: time.Duration(per * (float64(l.Burst()) - left)),
	}
}

// take counts a request with its cost. It returns the time to wait if the rate is exceeded, else 0,
// and the quota that is left. A cost above the burst counts as the whole burst, so such a request is
// accepted only after a pause.
func (ls *limiters) take(name string, perSecond float64, burst, cost int, now time.Time) (wait time.Duration, left Quota) {
	cost = min(cost, burst)
	ls.mu.Lock()
	l := ls.by[name]
	if l == nil {
		ls.makeRoom(now)
		l = rate.NewLimiter(rate.Limit(perSecond), burst)
		ls.by[name] = l
	}
	ls.mu.Unlock()
	if l.Limit() != rate.Limit(perSecond) || l.Burst() != burst {
		l.SetLimitAt(now, rate.Limit(perSecond))
		l.SetBurstAt(now, burst)
	}
	if l.AllowN(now, cost) {
		return 0, quotaOf(l, now)
	}
	r := l.ReserveN(now, cost)
	wait = r.DelayFrom(now)
	r.CancelAt(now)
	return max(wait, time.Millisecond), quotaOf(l, now)
}

func (ls *limiters) makeRoom(now time.Time) {
	if ls.by == nil {
		ls.by = map[string]*rate.Limiter{}
	}
	if len(ls.by) < maxLimiters {
		return
	}
	for name, l := range ls.by {
		if l.TokensAt(now) >= float64(l.Burst()) {
			delete(ls.by, name)
		}
	}
	if len(ls.by) >= maxLimiters {
		clear(ls.by)
	}
}

// addressRate limits requests by client address.
type addressRate struct {
	limiters
	perSecond float64
	proxies   []netip.Prefix
}

func openAddressRate(cfg Config) (*addressRate, error) {
	if cfg.AddressRate < 0 {
		return nil, errors.New("ADDRESS_RATE must not be negative")
	}
	if cfg.AddressRate == 0 {
		return nil, nil
	}
	return &addressRate{perSecond: cfg.AddressRate, proxies: cfg.Proxies}, nil
}

func (a *addressRate) take(r *http.Request, cost int, now time.Time) (wait time.Duration, left Quota) {
	wait, left = a.limiters.take(a.client(r), a.perSecond, max(1, int(2*a.perSecond)), cost, now)
	left.Name = "address"
	return wait, left
}

// client returns the client's address: the last address on the path that is not one of our proxies.
// A client can write anything into X-Forwarded-For before that.
func (a *addressRate) client(r *http.Request) string {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	at, err := netip.ParseAddr(host)
	if err != nil {
		return ""
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && a.isProxy(at); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		at = hop
	}
	at = at.Unmap()
	if at.Is4() {
		return at.String()
	}
	network, _ := at.WithZone("").Prefix(64)
	return network.String()
}

func (a *addressRate) isProxy(at netip.Addr) bool {
	at = at.Unmap()
	for _, p := range a.proxies {
		if p.Contains(at) {
			return true
		}
	}
	return false
}
