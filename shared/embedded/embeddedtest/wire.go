package embeddedtest

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// Wire passes TCP connections on to a server, and can end them or make them silent. A silent
// connection is never closed at either end, as when a host loses its power or a firewall forgets
// its connections.
type Wire struct {
	tb       testing.TB
	listener net.Listener
	upstream string

	mu    sync.Mutex
	deaf  bool // accepts new connections and never answers them
	conns []*wireConn
}

type wireConn struct {
	in, out net.Conn
	silent  chan struct{} // closed when the connection becomes silent
}

// NewWire makes a wire to the server at upstream, and listens.
func NewWire(tb testing.TB, upstream string) *Wire {
	tb.Helper()
	return NewWireAt(tb, "127.0.0.1:0", upstream)
}

// NewWireAt makes a wire that listens at addr, because clients are told to come there.
func NewWireAt(tb testing.TB, addr, upstream string) *Wire {
	tb.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	w := &Wire{tb: tb, listener: l, upstream: upstream}
	go w.accept()
	tb.Cleanup(func() {
		l.Close()
		w.Cut()
	})
	return w
}

// Addr is the address where the wire listens.
func (w *Wire) Addr() string { return w.listener.Addr().String() }

// NewWireTo makes a wire to the server of a URL. It also returns the URL that reaches the server
// through the wire.
func NewWireTo(tb testing.TB, serverURL string) (*Wire, string) {
	tb.Helper()
	u, err := url.Parse(serverURL)
	if err != nil {
		tb.Fatal(err)
	}
	w := NewWire(tb, u.Host)
	u.Host = w.Addr()
	return w, u.String()
}

// Cut ends the present connections. New connections work.
func (w *Wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.in.Close()
		if c.out != nil {
			c.out.Close()
		}
	}
	w.conns = nil
}

// Silence makes the present connections silent for ever. New connections work.
func (w *Wire) Silence() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		select {
		case <-c.silent:
		default:
			close(c.silent)
		}
	}
}

// Deafen says whether the wire accepts new connections without ever answering them.
func (w *Wire) Deafen(deaf bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaf = deaf
}

func (w *Wire) accept() {
	for {
		in, err := w.listener.Accept()
		if err != nil {
			return
		}
		c := &wireConn{in: in, silent: make(chan struct{})}
		w.mu.Lock()
		w.conns = append(w.conns, c)
		deaf := w.deaf
		w.mu.Unlock()
		if deaf {
			continue
		}
		out, err := net.Dial("tcp", w.upstream)
		if err != nil {
			in.Close()
			continue
		}
		w.mu.Lock()
		c.out = out
		w.mu.Unlock()
		go c.copy(out, in)
		go c.copy(in, out)
	}
}

// copy passes on bytes and the end of the stream, until the connection is silent.
func (c *wireConn) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-c.silent:
			io.Copy(io.Discard, from) // the bytes are received and dropped
			return
		default:
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				from.Close()
				return
			}
		}
		if err != nil {
			to.Close()
			from.Close()
			return
		}
	}
}
