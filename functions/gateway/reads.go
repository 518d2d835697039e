package gateway

import (
	"net/http"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pgw/functions/gateway/access"
	"pgw/shared/function"
)

// The cost of a request, charged to the rate limit of its key or address. A list examines hundreds
// of payments, and so do the reads of the books.
const (
	usualCost  = 1
	randomCost = 5
	listCost   = 10
)

func cost(r *http.Request) int {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return usualCost
	case r.URL.Path == "/api/payments", r.URL.Path == "/api/dead-letters", strings.HasPrefix(r.URL.Path, "/api/reports/"):
		return listCost
	case strings.HasPrefix(r.URL.Path, "/api/accounts/") && (strings.HasSuffix(r.URL.Path, "/statement") || r.FormValue("at") != ""):
		return listCost
	case r.URL.Path == "/api/random-accounts":
		return randomCost
	}
	return usualCost
}

const (
	maxReads = 128
	// maxReadsOfOne is the most reads under way of one key or subject. It leaves room for other
	// clients.
	maxReadsOfOne = maxReads / 4
)

// reads limits the reads under way. Reads and payments have separate limits, so neither waits for
// the other.
type reads struct {
	refused *prometheus.CounterVec
	mu      sync.Mutex
	all     int
	of      map[string]int // by the principal's name
}

func newReads(r prometheus.Registerer) *reads {
	rs := &reads{of: map[string]int{}, refused: function.NewCounters(r, "pgw_gateway_reads_refused_total",
		"Reads refused because too many were under way, by bound: of all clients, or of one client.", "bound", "all", "client")}
	promauto.With(r).NewGaugeFunc(prometheus.GaugeOpts{Name: "pgw_gateway_reads", Help: "Reads under way now."}, func() float64 {
		rs.mu.Lock()
		defer rs.mu.Unlock()
		return float64(rs.all)
	})
	return rs
}

// enter admits a read, or returns the name of the limit that refuses it. p is nil if requests are
// not authenticated.
func (rs *reads) enter(p *access.Principal) (leave func(), bound string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	switch {
	case p != nil && rs.of[p.Name] >= maxReadsOfOne:
		bound = "client"
	case rs.all >= maxReads:
		bound = "all"
	}
	if bound != "" {
		rs.refused.WithLabelValues(bound).Inc()
		return nil, bound
	}
	rs.all++
	if p == nil {
		return rs.leave, ""
	}
	rs.of[p.Name]++
	return func() { rs.leaveOf(p.Name) }, ""
}

func (rs *reads) leave() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.all--
}

func (rs *reads) leaveOf(name string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.all--
	if rs.of[name]--; rs.of[name] == 0 {
		delete(rs.of, name)
	}
}

// serve serves a read, or answers that there are too many.
func (rs *reads) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	leave, bound := rs.enter(principal(r))
	switch bound {
	case "client":
		tryAgain(w)
		writeProblem(w, http.StatusTooManyRequests, "Too many requests", "This client has too many reads under way. Wait for their responses.")
		return
	case "all":
		tryAgain(w)
		writeProblem(w, http.StatusServiceUnavailable, "Too many requests are waiting", "Too many reads are under way. Try again.")
		return
	}
	defer leave()
	next.ServeHTTP(w, r)
}
