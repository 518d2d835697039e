package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// A point is a place in the flow of one payment, seen from outside: on the connection between a
// function and the process that it talks to. The functions do not know about it.
type point struct {
	// One of these is set: a request to a function, by its path; a statement to Postgres, by a part
	// of it; or a request to Kafka, by the client's id and the request's kind.
	function, path string
	sql            string
	client         string
	api            int16
	// after: at the answer, which the caller then does not get
	after bool
}

// The kinds of requests to Kafka.
const (
	produce      = 0
	offsetCommit = 8
)

// taps watch all connections. At the point for which they are armed, they run the action once and
// cut the connection.
type taps struct {
	mu     sync.Mutex
	at     *point
	strike func()
	// rpc, when set, may answer an RPC itself. It returns the gRPC status code of the answer, or 0
	// to let the RPC pass.
	rpc func(path string) int
}

func (t *taps) arm(p point, strike func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at, t.strike = &p, strike
}

func (t *taps) instead(rpc func(path string) int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rpc = rpc
}

// pass says whether the connection must be cut here. If so, it has run the action.
func (t *taps) pass(matches func(point) bool) (cut bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.at == nil || !matches(*t.at) {
		return false
	}
	t.at = nil
	t.strike()
	return true
}

// front is a proxy in front of a function, for events, gRPC and HTTP.
func (t *taps) front(tb testing.TB, function, addr string) string {
	var cleartext http.Protocols
	cleartext.SetUnencryptedHTTP2(true)
	here := func(r *http.Request, after bool) bool {
		return t.pass(func(p point) bool { return p.function == function && p.path == r.URL.Path && p.after == after })
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: addr}); r.Out.Host = r.In.Host },
		Transport:     &http.Transport{Protocols: &cleartext},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if errors.Is(err, errCut) {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusBadGateway)
		},
		ModifyResponse: func(r *http.Response) error {
			if here(r.Request, true) {
				return errCut
			}
			return nil
		},
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if here(r, false) {
			panic(http.ErrAbortHandler)
		}
		t.mu.Lock()
		rpc := t.rpc
		t.mu.Unlock()
		if rpc != nil && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			if code := rpc(r.URL.Path); code != 0 {
				w.Header().Set("Content-Type", "application/grpc")
				w.Header().Set("Grpc-Status", strconv.Itoa(code))
				return
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	var both http.Protocols
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	server.Config.Protocols = &both
	server.Start()
	tb.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

var errCut = errors.New("the wire is cut")

// postgres is a proxy in front of a server. It follows the protocol only as far as needed to know
// which statement runs.
func (t *taps) postgres(tb testing.TB, addr string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go t.postgresConn(in, addr)
		}
	}()
	return l.Addr().String()
}

func (t *taps) postgresConn(in net.Conn, addr string) {
	defer in.Close()
	out, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer out.Close()
	c := &postgresConn{taps: t, statements: map[string]string{}}
	go func() {
		c.copy(in, out, false, c.fromServer)
		in.Close()
		out.Close()
	}()
	c.copy(out, in, true, c.fromClient)
}

// postgresConn is the state of one connection.
type postgresConn struct {
	taps       *taps
	mu         sync.Mutex
	statements map[string]string // prepared statements, by name
	running    string            // the statements since the server was last ready
}

// copy passes on one message at a time. A startup message has no type.
func (c *postgresConn) copy(to io.Writer, from io.Reader, startup bool, look func(kind byte, body []byte) (cut bool)) {
	r := bufio.NewReader(from)
	for {
		var head [5]byte
		skip := 0
		if startup {
			skip = 1
		}
		if _, err := io.ReadFull(r, head[skip:]); err != nil {
			return
		}
		body := make([]byte, int(binary.BigEndian.Uint32(head[1:]))-4)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		if !startup && look(head[0], body) {
			return
		}
		startup = false
		if _, err := to.Write(append(head[skip:], body...)); err != nil {
			return
		}
	}
}

func (c *postgresConn) fromClient(kind byte, body []byte) bool {
	text := func() string {
		s, rest, _ := bytes.Cut(body, []byte{0})
		body = rest
		return string(s)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var sql string
	switch kind {
	case 'P': // Parse: name, statement
		name := text()
		c.statements[name] = text()
		return false
	case 'B': // Bind: portal, name
		text()
		sql = c.statements[text()]
	case 'Q':
		sql = text()
	default:
		return false
	}
	c.running += sql + "\n"
	return c.taps.pass(func(p point) bool { return p.sql != "" && !p.after && strings.Contains(sql+"\n", p.sql) })
}

func (c *postgresConn) fromServer(kind byte, _ []byte) bool {
	if kind != 'Z' { // ReadyForQuery: the statements are committed, or BEGIN left the transaction open
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ran := c.running
	c.running = ""
	return c.taps.pass(func(p point) bool { return p.sql != "" && p.after && strings.Contains(ran, p.sql) })
}

// listenKafka is the broker's listener. The taps are at the broker's end of the connection.
func (t *taps) listenKafka(network, addr string) (net.Listener, error) {
	l, err := net.Listen(network, addr)
	return kafkaListener{l, t}, err
}

type kafkaListener struct {
	net.Listener
	taps *taps
}

func (l kafkaListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &kafkaConn{Conn: conn, taps: l.taps}, nil
}

// kafkaConn gives the broker one request after the other.
type kafkaConn struct {
	net.Conn
	taps *taps
	left []byte
}

func (c *kafkaConn) Read(p []byte) (int, error) {
	if len(c.left) == 0 {
		var size [4]byte
		if _, err := io.ReadFull(c.Conn, size[:]); err != nil {
			return 0, err
		}
		request := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(c.Conn, request); err != nil {
			return 0, err
		}
		// The request's header: kind, version, correlation id, client id.
		api := int16(binary.BigEndian.Uint16(request))
		client := string(request[10 : 10+binary.BigEndian.Uint16(request[8:])])
		if c.taps.pass(func(p point) bool { return p.client != "" && p.client == client && p.api == api }) {
			c.Conn.Close()
			return 0, errCut
		}
		c.left = append(size[:], request...)
	}
	n := copy(p, c.left)
	c.left = c.left[n:]
	return n, nil
}
