package processes

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Sleeper is a proxy for a function that is scaled to zero, as Knative's activator is. The first
// connection starts the function, and waits until it is ready.
type Sleeper struct {
	system   *System
	name     string
	listener net.Listener
	wake     func() error
	copying  sync.WaitGroup

	mu           sync.Mutex
	knocked      time.Time     // the time of the first connection
	ready        time.Time     // the time at which the function was ready
	startToReady time.Duration // the time that its process took
}

// Sleep puts a sleeper before a function that does not run. Its callers must be started after that.
func (s *System) Sleep(ctx context.Context, name string) (*Sleeper, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	z := &Sleeper{system: s, name: name, listener: l}
	z.wake = sync.OnceValue(func() error {
		z.mu.Lock()
		z.knocked = time.Now()
		z.mu.Unlock()
		took, err := s.Start(ctx, name)
		z.mu.Lock()
		z.ready, z.startToReady = time.Now(), took
		z.mu.Unlock()
		return err
	})
	s.SetFront(name, l.Addr().String())
	z.copying.Go(z.serve)
	return z, nil
}

// Awake returns the time of the first connection, and the time at which the function was ready. The
// times are zero if it has not been woken.
func (z *Sleeper) Awake() (knocked, ready time.Time, startToReady time.Duration) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.knocked, z.ready, z.startToReady
}

// Close closes the proxy. The function continues.
func (z *Sleeper) Close() error {
	err := z.listener.Close()
	z.copying.Wait()
	return err
}

func (z *Sleeper) serve() {
	for {
		in, err := z.listener.Accept()
		if err != nil {
			return
		}
		go z.forward(in)
	}
}

func (z *Sleeper) forward(in net.Conn) {
	defer in.Close()
	if err := z.wake(); err != nil {
		fmt.Fprintln(z.system.cfg.Log, "wake:", err)
		return
	}
	out, err := net.Dial("tcp", z.system.Addr(z.name))
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{}, 2)
	pipe := func(to, from net.Conn) {
		io.Copy(to, from)
		done <- struct{}{}
	}
	go pipe(in, out)
	go pipe(out, in)
	<-done
}
