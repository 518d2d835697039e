package function

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// defaultConnections is twice the maximum number of payments that a gateway accepts at the same
// time.
const defaultConnections = 8192

// connections limits the connections of a port, so thousands of slow ones can't block other
// clients. At the limit, it closes connections that wait for a request or are still receiving one.
// It starts with the address that has most connections, and there with those that have waited
// longest. A connection whose request is being answered stays open.
type connections struct {
	net.Listener
	max    int
	closed *prometheus.CounterVec

	arriving *arriving

	mu  sync.Mutex
	all map[*connection]struct{}
}

// connection is one connection of the port.
type connection struct {
	net.Conn
	of     *connections
	from   netip.Prefix
	busy   atomic.Int32 // requests that have been received and are not answered yet
	since  atomic.Int64 // the start of the current wait for a request, in nanoseconds
	byGRPC atomic.Bool  // gRPC's own server serves it: busy is not known, and since is the time of the last bytes
	body   receiving    // of the current request; HTTP/1 has one at a time
	held   int64        // bytes of bodies that have not ended; guarded by arriving.mu
}

func newConnections(max int, r prometheus.Registerer) *connections {
	if max == 0 {
		max = defaultConnections
	}
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) == nil {
		max = min(max, int(min(files.Cur, 1<<20))/2)
	}
	c := &connections{max: max, arriving: newArriving(r), all: map[*connection]struct{}{}}
	c.closed = NewCounters(r, "pgw_connections_closed_total",
		"Connections closed because there were too many: waiting made room, refused found all others busy.", "reason", "waiting", "refused")
	promauto.With(r).NewGaugeFunc(prometheus.GaugeOpts{Name: "pgw_connections", Help: "Connections open now."}, func() float64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return float64(len(c.all))
	})
	return c
}

// Accept implements net.Listener.
func (cs *connections) Accept() (net.Conn, error) {
	for {
		conn, err := cs.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &connection{Conn: conn, of: cs, from: network(conn.RemoteAddr())}
		c.since.Store(time.Now().UnixNano())
		if cs.add(c) {
			return c, nil
		}
		cs.closed.WithLabelValues("refused").Inc()
		conn.Close()
	}
}

// network returns the prefix that counts as one address. An IPv6 host has a whole /64.
func network(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	prefix, _ := ip.Prefix(bits)
	return prefix
}

func (cs *connections) add(c *connection) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.all) >= cs.max {
		cs.makeRoom()
	}
	if len(cs.all) >= cs.max {
		return false
	}
	cs.all[c] = struct{}{}
	return true
}

// makeRoom closes a sixteenth of the connections at a time. A search through all of them for each
// new one would cost more than its request. cs.mu is held.
func (cs *connections) makeRoom() {
	type candidate struct {
		*connection
		since int64
	}
	var waiting []candidate
	from := map[netip.Prefix]int{}
	for c := range cs.all {
		from[c.from]++
		if c.busy.Load() == 0 {
			waiting = append(waiting, candidate{c, c.since.Load()})
		}
	}
	slices.SortFunc(waiting, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(from[b.from], from[a.from]), cmp.Compare(a.since, b.since))
	})
	for _, c := range waiting[:min(len(waiting), max(1, cs.max/16))] {
		delete(cs.all, c.connection)
		c.Conn.Close()
		cs.closed.WithLabelValues("waiting").Inc()
	}
}

// slowAfter is the time that a drain gives a client to complete its request.
const slowAfter = time.Second

// giveUpSlow closes connections whose clients are slow to send a request, until ctx ends. Otherwise
// a drain would wait for them in vain. http.Server itself closes the idle ones.
func (cs *connections) giveUpSlow(ctx context.Context) {
	tick := time.NewTicker(slowAfter / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		before := time.Now().Add(-slowAfter).UnixNano()
		cs.mu.Lock()
		for c := range cs.all {
			if c.busy.Load() == 0 && !c.byGRPC.Load() && c.since.Load() < before {
				delete(cs.all, c)
				c.Conn.Close()
			}
		}
		cs.mu.Unlock()
	}
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.of.mu.Lock()
	delete(c.of.all, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

func (c *connection) rest() {
	c.since.Store(time.Now().UnixNano())
	c.busy.Add(-1)
}

type connectionKey struct{}

// remember puts the connection into its requests' contexts. It is http.Server's ConnContext.
func remember(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, accepted(c))
}

// accepted returns the connection that the port accepted. It may be wrapped in a TLS connection.
func accepted(c net.Conn) *connection {
	if over, ok := c.(*tls.Conn); ok {
		c = over.NetConn()
	}
	return c.(*connection)
}

// tracked marks connections as busy while their requests are answered.
func tracked(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(connectionKey{}).(*connection)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		if r.Body == nil || r.Body == http.NoBody {
			c.busy.Add(1)
			defer c.rest()
			next.ServeHTTP(w, r)
			return
		}
		body := &c.body
		if r.ProtoMajor > 1 {
			body = &receiving{}
		}
		*body = receiving{ReadCloser: r.Body, on: c, giveUp: func() { http.NewResponseController(w).SetReadDeadline(longAgo) }}
		if isGRPC(r) {
			body.piece = grpcPieceHeld
		}
		r.Body = body
		defer body.answered()
		next.ServeHTTP(w, r)
	})
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// receiving is a request's body. Its connection is busy after the whole body has arrived.
type receiving struct {
	io.ReadCloser
	on       *connection
	received atomic.Bool // gRPC reads in its own goroutine
	piece    int         // the least memory of a piece that was read
	giveUp   func()      // ends a waiting Read and all later ones

	// guarded by arriving.mu
	number, held int64
	ended        bool // or aborted
}

func (b *receiving) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == nil:
		b.on.of.arriving.more(b, int64(max(n, b.piece)))
	case b.received.CompareAndSwap(false, true):
		b.on.of.arriving.end(b)
		b.on.busy.Add(1)
	}
	return n, err
}

func (b *receiving) answered() {
	if b.received.CompareAndSwap(false, true) {
		b.on.of.arriving.end(b)
	} else {
		b.on.rest()
	}
}
