package function

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// wait is the time limit for steps that take milliseconds.
const wait = 20 * time.Second

// raw opens a connection and writes text that no client library would write.
func raw(t *testing.T, addr, text string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(wait))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn
}

// answerOf reads the status of one answer. It returns 0 if the connection was closed without an
// answer.
func answerOf(t *testing.T, conn net.Conn) int {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection got no answer and was not closed")
	}
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// Slow connections are closed for new ones. Connections that are being answered and clients that
// send requests do not notice.
func TestSlowConnectionsKeepNobodyOut(t *testing.T) { overEach(t, slowConnectionsKeepNobodyOut) }

func slowConnectionsKeepNobodyOut(t *testing.T, over Transport) {
	const most = 32
	begun, release := make(chan struct{}), make(chan struct{})
	f := &Port{MaxConnections: most, Transport: over, Service: Service{Routes: func(mux *Mux) {
		mux.HandleFunc("POST /busy", func(w http.ResponseWriter, r *http.Request) {
			io.ReadAll(r.Body)
			begun <- struct{}{}
			<-release
		})
		mux.HandleFunc("POST /read", func(_ http.ResponseWriter, r *http.Request) { io.ReadAll(r.Body) })
	}}}
	addr, stop := serve(t, f, service{evaluate: allow})
	busy := raw(t, addr, "POST /busy HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
	<-begun
	for name, text := range map[string]string{
		"says nothing":       "",
		"half of a header":   "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ",
		"half of a body":     "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
		"idle after one":     "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
		"the preface of h2c": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		for range 4 * most {
			raw(t, addr, text)
		}
		for range 10 {
			client := &http.Client{Timeout: wait, Transport: &http.Transport{DisableKeepAlives: true}}
			resp, err := client.Get("http://" + addr + "/healthz")
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("beside %d of those whose client %s: %v %v", 4*most, name, resp, err)
			}
			resp.Body.Close()
		}
	}
	families, err := f.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, family := range families {
		for _, m := range family.Metric {
			name := family.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			found[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	if open, closed := found["pgw_connections"], found["pgw_connections_closed_total waiting"]; open < 1 || open > most || closed < 16*most {
		t.Errorf("%v are open, %v made room", open, closed)
	}
	close(release)
	if got := answerOf(t, busy); got != http.StatusOK {
		t.Errorf("the client that was being answered got %d", got)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A drain does not wait for a client that is slow to send. It waits for one that is being answered.
func TestSlowClientsDoNotHoldADrain(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	addr, stop := serve(t, &Port{Service: Service{Routes: func(mux *Mux) {
		mux.HandleFunc("POST /busy", func(w http.ResponseWriter, r *http.Request) {
			if text, _ := io.ReadAll(r.Body); len(text) == 2 {
				close(begun)
				<-release
			}
		})
	}}}, service{evaluate: allow})
	head := "POST /busy HTTP/1.1\r\nHost: x\r\nContent-Length: "
	busy, slow := raw(t, addr, head+"2\r\n\r\n{}"), raw(t, addr, head+"100\r\n\r\n{")
	<-begun
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	answerOf(t, slow) // fails if the connection got no answer and was not closed
	select {
	case err := <-stopped:
		t.Fatalf("the drain did not wait for the client that was being answered: %v", err)
	default:
	}
	close(release)
	if got := answerOf(t, busy); got != http.StatusOK {
		t.Errorf("the client that was being answered got %d", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// If all connections are being answered, none is closed for a new one. The new one is refused, and
// accepted later.
func TestNobodyIsCutOffForAnother(t *testing.T) {
	const most = 8
	begun, release := make(chan struct{}), make(chan struct{})
	addr, stop := serve(t, &Port{MaxConnections: most, Service: Service{Routes: func(mux *Mux) {
		mux.HandleFunc("GET /busy", func(http.ResponseWriter, *http.Request) { begun <- struct{}{}; <-release })
	}}}, service{evaluate: allow})
	var busy []net.Conn
	for range most {
		busy = append(busy, raw(t, addr, "GET /busy HTTP/1.1\r\nHost: x\r\n\r\n"))
		<-begun
	}
	if got := answerOf(t, raw(t, addr, "")); got != 0 {
		t.Errorf("one more got %d", got)
	}
	close(release)
	for _, conn := range busy {
		if got := answerOf(t, conn); got != http.StatusOK {
			t.Errorf("a client that was connected before got %d", got)
		}
	}
	if got := answerOf(t, raw(t, addr, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")); got != http.StatusOK {
		t.Errorf("later: %d", got)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// Each wait for a client has a time limit.
func TestSlowClientsAreGivenUp(t *testing.T) {
	short := 50 * time.Millisecond
	for name, tc := range map[string]struct {
		timeouts timeouts
		text     string
		want     int // 0: closed without an answer
	}{
		"header":          {timeouts{header: short, request: wait, answer: wait, idle: wait}, "GET /healthz HTTP/1.1\r\nX-Slow: ", 0},
		"body":            {timeouts{header: short, request: 2 * short, answer: wait, idle: wait}, "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{", http.StatusRequestTimeout},
		"idle after none": {timeouts{header: short, request: wait, answer: wait, idle: short}, "", 0},
	} {
		addr, stop := serve(t, &Port{timeouts: tc.timeouts, Service: Service{Routes: func(mux *Mux) {
			mux.HandleFunc("POST /read", func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.ReadAll(r.Body); err != nil {
					w.WriteHeader(http.StatusRequestTimeout)
				}
			})
		}}}, service{evaluate: allow})
		if got := answerOf(t, raw(t, addr, tc.text)); got != tc.want {
			t.Errorf("%s: %d; want %d", name, got, tc.want)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	// A client that sends requests and never reads the answers.
	addr, stop := serve(t, &Port{timeouts: timeouts{header: wait, request: wait, answer: short, idle: wait}, Service: Service{Routes: func(mux *Mux) {
		mux.HandleFunc("GET /much", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 64<<20)) })
	}}}, service{evaluate: allow})
	conn := raw(t, addr, "GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
	if err := stop(); err != nil { // waits for the requests under way
		t.Errorf("an answer that is not read delays the stop: %v", err)
	}
	if n, err := io.Copy(io.Discard, conn); n >= 64<<20 && err == nil {
		t.Error("all requests were sent")
	}
}

func TestHeadersAreBounded(t *testing.T) {
	addr, stop := serve(t, &Port{}, service{evaluate: allow})
	request := func(size int) string {
		head := "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: "
		return fmt.Sprintf("%s%s\r\n\r\n", head, strings.Repeat("x", size-len(head)-len("\r\n\r\n")))
	}
	if got := answerOf(t, raw(t, addr, request(maxHeader))); got != http.StatusOK {
		t.Errorf("%d bytes: %d", maxHeader, got)
	}
	// Go's server allows 4 KiB more for its buffer, and does not count the first line.
	if got := answerOf(t, raw(t, addr, request(maxHeader+8192))); got != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%d bytes: %d", maxHeader+8192, got)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Timeout: wait, Transport: &http.Transport{Protocols: &protocols}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodGet, "http://"+addr+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Long", strings.Repeat("x", 2*maxHeader))
	if resp, err := client.Do(req); err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("HTTP/2: %s", resp.Status)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
