package embedded

import (
	"net"
	"sync"

	"google.golang.org/grpc/test/bufconn"
)

// inFlightBytes is how much one direction of a connection from inside holds until its reader takes it.
const inFlightBytes = 64 << 10

// entrance lets clients in by the network and from inside the process. To a client inside, the kernel's loopback is a
// detour: two system calls and a thread to be woken for each request and for each answer.
type entrance struct {
	net.Listener // the network's
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

func (e *entrance) watch(door net.Listener) {
	for {
		conn, err := door.Accept()
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
