package gateway

import (
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"pgw/functions/gateway/access"
	"pgw/shared/function"
)

// What a request costs, of the rate of its key or address. A list looks through hundreds of payments.
const (
	usualCost  = 1
	randomCost = 5
	listCost   = 10
)

func cost(r *http.Request) int {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return usualCost
	case r.URL.Path == "/api/payments":
		return listCost
	case r.URL.Path == "/api/random-accounts":
		return randomCost
	}
	return usualCost
}

const (
	maxReads = 128
	// maxReadsOfOne is how many of them one key or subject may have, so that it leaves room for others.
	maxReadsOfOne = maxReads / 4
)

// reads bounds the reads under way. They have bounds of their own: payments have admission, and the two never wait for each
// other.
type reads struct {
	refused *prometheus.CounterVec
	mu      sync.Mutex
	all     int
	of      map[string]int // by principal
}

func newReads(r prometheus.Registerer) *reads {
	rs := &reads{of: map[string]int{}, refused: function.NewCounters(r, "pgw_gateway_reads_refused_total",
		"Reads that were not begun since as many were under way as may be: in all, or of one client.", "bound", "all", "client")}
	promauto.With(r).NewGaugeFunc(prometheus.GaugeOpts{Name: "pgw_gateway_reads", Help: "Reads under way now."}, func() float64 {
		rs.mu.Lock()
		defer rs.mu.Unlock()
		return float64(rs.all)
	})
	return rs
}

// enter lets a read in, or tells which bound keeps it out. A nil principal is one whom nobody asked who he is.
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

// serve answers a read, or says why it is not begun.
func (rs *reads) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	leave, bound := rs.enter(principal(r))
	switch bound {
	case "client":
		w.Header().Set("Retry-After", "1")
		writeProblem(w, http.StatusTooManyRequests, "Too many requests", "More reads of this client are under way than may be; wait for their answers.")
		return
	case "all":
		w.Header().Set("Retry-After", "1")
		writeProblem(w, http.StatusServiceUnavailable, "Too many requests are waiting", "As many reads are under way as may be. Try again.")
		return
	}
	defer leave()
	next.ServeHTTP(w, r)
}
