package function

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/tap"

	"pgw/shared/rpc"
)

// Transport is what the HTTP/2 connections of the port carry.
type Transport string

const (
	// Mixed accepts gRPC and all other requests on one connection, and works everywhere. Knative's
	// proxies mix them.
	Mixed Transport = "mixed"
	// GRPCOnly is for connections that carry only gRPC. gRPC's own transport serves them, which
	// takes half the processor time per call. All other requests use HTTP/1.1 on the same port.
	GRPCOnly Transport = "alone"
)

// Decode reads the setting.
func (t *Transport) Decode(text string) error {
	switch *t = Transport(text); *t {
	case Mixed, GRPCOnly:
		return nil
	}
	return fmt.Errorf("is %q; must be %s or %s", text, Mixed, GRPCOnly)
}

// grpcListener is the listener of gRPC's own server. It gets the connections that turn out to be
// HTTP/2.
type grpcListener struct {
	server *grpc.Server
	addr   net.Addr
	found  chan net.Conn
	closed chan struct{}
	close  sync.Once
}

func newGRPCListener(server *grpc.Server, addr net.Addr) *grpcListener {
	return &grpcListener{server: server, addr: addr, found: make(chan net.Conn), closed: make(chan struct{})}
}

// options returns the options of a gRPC server that has its own connections.
func (t timeouts) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(knownPeer{insecure.NewCredentials()}),
		grpc.ConnectionTimeout(t.header),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: t.idle, Time: rpc.Unseen, Timeout: rpc.Unanswered}),
		// Clients may send pings too, also without a call. The server disconnects a client that
		// sends more.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: rpc.PingsApart, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	}
}

// messageKey is the context key of the timer that aborts an RPC whose message does not arrive.
type messageKey struct{}

// tap checks an RPC as soon as its header has arrived. It refuses callers without the right to
// call, and aborts an RPC whose message does not arrive.
func (p *Port) tap(within time.Duration) tap.ServerInHandle {
	return func(ctx context.Context, info *tap.Info) (context.Context, error) {
		ctx, err := p.Callers.Admit(ctx, info.FullMethodName)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		return context.WithValue(ctx, messageKey{}, time.AfterFunc(within, cancel)), nil
	}
}

// message is called when an RPC's message has arrived.
func message(ctx context.Context) {
	if timer, ok := ctx.Value(messageKey{}).(*time.Timer); ok {
		timer.Stop()
	}
}

func awaited(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	message(ctx)
	return next(ctx, req)
}

func awaitedStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return next(srv, arrivingStream{stream})
}

// arrivingStream is a stream whose first message may not have arrived.
type arrivingStream struct{ grpc.ServerStream }

func (s arrivingStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	message(s.Context())
	return err
}

// take makes an http.Server hand over its HTTP/2 connections. With TLS, the server recognises them
// by the negotiated protocol. Without TLS, it recognises them by their first line, which looks like
// a request of HTTP/1.
func (a *grpcListener) take(from *http.Server) {
	from.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
		"h2": func(_ *http.Server, conn *tls.Conn, _ http.Handler) {
			gone := make(chan struct{})
			a.give(&handedConn{Conn: conn, on: accepted(conn), gone: sync.OnceFunc(func() { close(gone) })})
			<-gone // http.Server closes the connection when this function returns
		},
	}
	next := from.Handler
	from.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "PRI" || r.ProtoMajor != 2 {
			next.ServeHTTP(w, r)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		read, _ := buffered.Reader.Peek(buffered.Reader.Buffered())
		a.give(&handedConn{Conn: conn, on: accepted(conn), unread: append([]byte("PRI * HTTP/2.0\r\n\r\n"), read...), gone: func() {}})
	})
}

func (a *grpcListener) give(c *handedConn) {
	select {
	case a.found <- c:
	case <-a.closed:
		c.Close()
	}
}

// drain waits for the calls under way, until ctx ends.
func (a *grpcListener) drain(ctx context.Context) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.server.GracefulStop()
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		a.server.Stop()
		<-ended
	}
}

// Accept implements net.Listener.
func (a *grpcListener) Accept() (net.Conn, error) {
	select {
	case c := <-a.found:
		return c, nil
	case <-a.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (a *grpcListener) Close() error {
	a.close.Do(func() { close(a.closed) })
	return nil
}

// Addr implements net.Listener.
func (a *grpcListener) Addr() net.Addr { return a.addr }

// handedConn is a connection that was handed over after some of its bytes had been read.
type handedConn struct {
	net.Conn
	on     *connection
	unread []byte
	gone   func()
}

func (s *handedConn) Read(p []byte) (n int, err error) {
	if len(s.unread) > 0 {
		n = copy(p, s.unread)
		s.unread = s.unread[n:]
		return n, nil
	}
	if n, err = s.Conn.Read(p); n > 0 {
		s.on.byGRPC.Store(true)
		s.on.since.Store(time.Now().UnixNano())
	}
	return n, err
}

// Close implements net.Conn.
func (s *handedConn) Close() error {
	defer s.gone()
	return s.Conn.Close()
}

// knownPeer gives gRPC the result of the connection's TLS handshake.
type knownPeer struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (h knownPeer) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if s, ok := conn.(*handedConn); ok {
		if secured, ok := s.Conn.(*tls.Conn); ok {
			return conn, credentials.TLSInfo{
				State:          secured.ConnectionState(),
				CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
			}, nil
		}
	}
	return h.TransportCredentials.ServerHandshake(conn)
}
