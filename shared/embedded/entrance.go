package embedded

import (
	"net"
	"sync"

	"google.golang.org/grpc/test/bufconn"
)

// inFlightBytes is the number of bytes that one direction of an in-process connection buffers until
// its reader takes them.
const inFlightBytes = 64 << 10

// entrance accepts clients over the network and from inside the process. An in-process client need
// not use the kernel's loopback, which costs two system calls and a thread wake-up for each request
// and each answer.
type entrance struct {
	net.Listener // over the network
	inside       *bufconn.Listener
	arrivals     chan arrival
	closed       chan struct{}
	closing      sync.Once
}

type arrival struct {
	conn net.Conn
	err  error
}

func newEntrance(network net.Listener) *entrance {
	e := &entrance{
		Listener: network, inside: bufconn.Listen(inFlightBytes), arrivals: make(chan arrival), closed: make(chan struct{}),
	}
	go e.watch(e.Listener)
	go e.watch(e.inside)
	return e
}

func (e *entrance) watch(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		select {
		case e.arrivals <- arrival{conn, err}:
		case <-e.closed:
			if conn != nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			return
		}
	}
}

// Accept implements net.Listener.
func (e *entrance) Accept() (net.Conn, error) {
	select {
	case a := <-e.arrivals:
		return a.conn, a.err
	case <-e.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (e *entrance) Close() (err error) {
	e.closing.Do(func() {
		close(e.closed)
		e.inside.Close()
		err = e.Listener.Close()
	})
	return err
}
