package postgres

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// The time limits of a connection. A server that is alive ends a slow statement before the client
// takes its silence for death. A client gives up a silent server well within 10 s.
const (
	connectTimeout   = 2 * time.Second // to dial, agree on TLS and log in
	pingTimeout      = time.Second     // to check an idle connection before it is used
	acquireTimeout   = 5 * time.Second // to wait for a connection while others use them all
	statementTimeout = 3 * time.Second // of a statement, enforced by the server
	silenceTimeout   = 4 * time.Second // without a byte from a server that has to answer
	closeTimeout     = time.Second
)

// dialer makes connections that notice when the other end is gone.
type dialer struct {
	net.Dialer
	silence func() // called when the server did not answer a request; it must not block
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
	within, silence := silenceTimeout, d.silence
	// A connection to log in has connectTimeout. What has longer only asks the server to cancel a statement. pgx
	// does so before it gives up a connection's place in the pool, and a silent server would keep the place.
	if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > connectTimeout {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, closeTimeout)
		defer cancel()
		within, silence = closeTimeout, func() {}
	}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &watched{Conn: conn, within: within, silence: silence}, nil
}

// watched is a connection whose reads and writes always end, with any context. After too long a
// silence it is dead. Then pgx's attempts to close it fail at once, so its place in the pool is
// free for the next connection.
type watched struct {
	net.Conn
	within  time.Duration // how long a silence may last
	silence func()

	mu       sync.Mutex
	deadline time.Time // the read deadline that pgx has set; zero means none
	own      time.Time // the deadline of the read under way; zero means none
	asked    bool      // something was written since the last byte arrived
	dead     bool
}

// errSilent is the error of a dead connection. pgx sees it as a timeout.
type errSilent struct{}

func (errSilent) Error() string   { return fmt.Sprintf("the server sent nothing for %s", silenceTimeout) }
func (errSilent) Timeout() bool   { return true }
func (errSilent) Temporary() bool { return false }

// Read implements net.Conn.
func (c *watched) Read(p []byte) (int, error) {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return 0, errSilent{}
	}
	c.own = time.Now().Add(c.within)
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

// writeChunk is the number of bytes in one write. Thousands of statements may be sent at once, and
// a server that reads them slowly is not silent.
const writeChunk = 64 << 10

// Write implements net.Conn.
func (c *watched) Write(p []byte) (n int, err error) {
	for {
		c.mu.Lock()
		if c.dead {
			c.mu.Unlock()
			return n, errSilent{}
		}
		c.asked = true
		c.Conn.SetWriteDeadline(earlier(c.deadline, time.Now().Add(c.within)))
		c.mu.Unlock()
		now, err := c.Conn.Write(p[n:min(len(p), n+writeChunk)])
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

// earlier returns the earlier of two deadlines. Zero means no deadline.
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
