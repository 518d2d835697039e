package kafka

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// avoidFor is how long a silent broker is avoided.
const avoidFor = 10 * time.Second

var errSilent = errors.New("the broker did not answer, and others do")

// silentAvoider connects to brokers. A broker is silent if it cannot be reached in time, or if it
// does not answer the first request on a new connection in time. Such a broker is avoided: for
// avoidFor, connecting to it fails at once, so that the client asks another broker.
//
// Without this, sarama chooses a broker that is frozen or cut off again and again. It then waits
// three times for the same answer, and the whole client waits with it.
//
// A broker is avoided only while another one answers. A client that reaches no broker tries all of
// them.
type silentAvoider struct {
	to plainDialer

	avoiding atomic.Bool // silent is not empty
	mu       sync.Mutex
	silent   map[string]*silentBroker // by address
}

type silentBroker struct {
	since  time.Time
	others bool // another broker has answered since, and connecting has not failed since that
}

// plainDialer is the proxy.Dialer of sarama's settings.
type plainDialer interface {
	Dial(network, addr string) (net.Conn, error)
}

// Dial implements proxy.Dialer of sarama's settings.
func (a *silentAvoider) Dial(network, addr string) (net.Conn, error) {
	if err := a.avoid(addr); err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	conn, err := a.to.Dial(network, addr)
	if err != nil {
		a.failed(addr, err)
		return nil, err
	}
	return &brokerConn{Conn: conn, avoider: a, addr: addr}, nil
}

func (a *silentAvoider) avoid(addr string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.silent[addr]
	if s == nil || !s.others || time.Since(s.since) >= avoidFor {
		return nil
	}
	return fmt.Errorf("%s: %w", addr, errSilent)
}

// failed notes that a broker can't be reached. The others may be gone, too.
func (a *silentAvoider) failed(addr string, err error) {
	a.mu.Lock()
	for _, s := range a.silent {
		s.others = false
	}
	a.mu.Unlock()
	if timedOut(err) {
		a.fellSilent(addr)
	}
}

func (a *silentAvoider) fellSilent(addr string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.silent == nil {
		a.silent = map[string]*silentBroker{}
	}
	a.silent[addr] = &silentBroker{since: time.Now()}
	a.avoiding.Store(true)
}

func (a *silentAvoider) answered(addr string) {
	if !a.avoiding.Load() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.silent, func(silent string, s *silentBroker) bool {
		s.others = true
		return silent == addr || time.Since(s.since) >= avoidFor
	})
	a.avoiding.Store(len(a.silent) > 0)
}

// brokerConn tells its avoider whether the broker answers.
type brokerConn struct {
	net.Conn
	avoider *silentAvoider
	addr    string
	heard   atomic.Bool // the broker has answered on this connection
}

// Read closes a connection on which the broker has not answered in time, because sarama would send
// another request on it and wait again. A connection that has answered before may wait for longer:
// the answer to a join of a group takes as long as its slowest member.
func (c *brokerConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	switch {
	case n > 0:
		c.heard.Store(true)
		c.avoider.answered(c.addr)
	case timedOut(err) && !c.heard.Load():
		c.avoider.fellSilent(c.addr)
		_ = c.Close()
	}
	return n, err
}

func timedOut(err error) bool {
	var failed net.Error
	return errors.As(err, &failed) && failed.Timeout()
}
