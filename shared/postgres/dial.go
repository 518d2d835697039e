package postgres

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// Bounds of a connection. Each is a part of the next: a server that is alive ends a statement before its silence is taken for
// its end, and a silent server is left well within 10 s.
const (
	connectTimeout   = 2 * time.Second // to dial, to agree on TLS and to log in
	pingTimeout      = time.Second     // of an idle connection, before it is used
	acquireTimeout   = 5 * time.Second // to wait for one that others use
	statementTimeout = 3 * time.Second // by the server
	silenceTimeout   = 4 * time.Second // without a byte from a server that is awaited
	closeTimeout     = time.Second
)

// dialer makes connections that notice by themselves when the other end is gone.
type dialer struct {
	net.Dialer
	silence func() // called when a server that was asked said nothing; it must not block
}

func newDialer(silence func()) *dialer {
	return &dialer{
		Dialer: net.Dialer{
			Timeout:         connectTimeout,
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silenceTimeout, Interval: time.Second, Count: 3},
			Control:         setUserTimeout,
		},
		silence: silence,
	}
}

// dial implements pgconn.DialFunc.
func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &watched{Conn: conn, silence: d.silence}, nil
}

// watched is a connection that no read and no write waits on for ever, whatever context its user has. One that was silent for
// too long is dead: what pgx still does to close it fails at once, so that its place in the pool is free for the next.
type watched struct {
	net.Conn
	silence func()

	mu       sync.Mutex
	deadline time.Time // of reads, as pgx has set it; zero: none
	own      time.Time // of the read under way; zero: none
	asked    bool      // something was written since the last byte came
	dead     bool
}

// errSilent is what a dead connection says. It is a timeout, as pgx knows them.
type errSilent struct{}

func (errSilent) Error() string   { return fmt.Sprintf("the server said nothing for %s", silenceTimeout) }
func (errSilent) Timeout() bool   { return true }
func (errSilent) Temporary() bool { return false }

// Read implements net.Conn.
func (c *watched) Read(p []byte) (int, error) {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return 0, errSilent{}
	}
	c.own = time.Now().Add(silenceTimeout)
	c.Conn.SetReadDeadline(earlier(c.deadline, c.own))
	c.mu.Unlock()
	n, err := c.Conn.Read(p)

	c.mu.Lock()
	defer c.mu.Unlock()
	own := c.own
	c.own = time.Time{}
	if n > 0 {
		c.asked = false
	}
	if n == 0 && isTimeout(err) && !time.Now().Before(own) {
		c.dead, err = true, errSilent{}
		if c.asked {
			c.silence()
		}
	}
	return n, err
}

// written is how much is written at a time. Thousands of statements may be sent at once, and a server that takes them one by
// one is not silent.
const written = 64 << 10

// Write implements net.Conn.
func (c *watched) Write(p []byte) (n int, err error) {
	for {
		c.mu.Lock()
		if c.dead {
			c.mu.Unlock()
			return n, errSilent{}
		}
		c.asked = true
		c.Conn.SetWriteDeadline(earlier(c.deadline, time.Now().Add(silenceTimeout)))
		c.mu.Unlock()
		now, err := c.Conn.Write(p[n:min(len(p), n+written)])
		if n += now; err != nil || n == len(p) {
			return n, err
		}
	}
}

// SetDeadline implements net.Conn.
func (c *watched) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return c.Conn.SetDeadline(earlier(t, c.own))
}

// SetReadDeadline implements net.Conn.
func (c *watched) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return c.Conn.SetReadDeadline(earlier(t, c.own))
}

// earlier of two deadlines, of which zero means none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

func isTimeout(err error) bool {
	timeout, ok := err.(interface{ Timeout() bool })
	return ok && timeout.Timeout() || os.IsTimeout(err)
}
