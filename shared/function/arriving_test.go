package function

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	callsv1 "pgw/proto/gen/calls/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	"pgw/shared/rpc"
)

// untilEnd is a body of some bytes that does not end until its client closes it.
type untilEnd struct {
	*bytes.Reader
	end chan struct{}
}

func (u untilEnd) Read(p []byte) (int, error) {
	if n, err := u.Reader.Read(p); err == nil {
		return n, nil
	}
	<-u.end
	return 0, errors.New("the client has closed it")
}

// h2Client returns a client with one HTTP/2 connection without TLS.
func h2Client(t *testing.T) *http.Client {
	t.Helper()
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols, TLSClientConfig: &tls.Config{}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// beginning returns the start of a gRPC message whose frame announces this length.
func beginning(length uint32, sent int) []byte {
	text := make([]byte, 5+sent)
	binary.BigEndian.PutUint32(text[1:], length)
	return text
}

const evaluate = "/risk.v1.RiskService/Evaluate"

func post(ctx context.Context, t *testing.T, url, contentType string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("TE", "trailers")
	return req
}

// A caller without the right to call is refused as soon as its header is read, before its message
// arrives.
func TestStrangersAreAnsweredBeforeTheirMessages(t *testing.T) {
	overEach(t, func(t *testing.T, over Transport) {
		c := callers(t, rpc.Security{Mode: "required", Tokens: oneToken})
		addr := serveAll(t, over, c, func(r grpc.ServiceRegistrar) { riskv1.RegisterRiskServiceServer(r, service{evaluate: allow}) })
		end := make(chan struct{})
		defer close(end)
		client := h2Client(t)
		for i := range 200 {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			resp, err := client.Do(post(ctx, t, "http://"+addr+evaluate, "application/grpc", untilEnd{bytes.NewReader(beginning(4<<20, 10)), end}))
			if err != nil {
				t.Fatalf("stream %d: %v", i, err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			got := resp.Header.Get("Grpc-Status") + resp.Trailer.Get("Grpc-Status")
			if resp.StatusCode != http.StatusOK || got != "16" {
				t.Fatalf("stream %d: %s, gRPC status %q", i, resp.Status, got)
			}
		}
	})
}

// Only an operator's messages may be large.
func TestOrdinaryMessagesAreSmall(t *testing.T) {
	addr := serveAll(t, Mixed, nil, func(r grpc.ServiceRegistrar) {
		riskv1.RegisterRiskServiceServer(r, service{evaluate: allow})
		riskv1.RegisterAdminServer(r, riskv1.UnimplementedAdminServer{})
	})
	end := make(chan struct{})
	defer close(end)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := h2Client(t).Do(post(ctx, t, "http://"+addr+evaluate, "application/grpc", untilEnd{bytes.NewReader(beginning(rpc.MaxOrdinary+1, 10)), end}))
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	if got := resp.Header.Get("Grpc-Status") + resp.Trailer.Get("Grpc-Status"); got != "8" { // RESOURCE_EXHAUSTED
		t.Errorf("an ordinary RPC: gRPC status %q", got)
	}
	conn := dial(t, callers(t, rpc.Security{}), addr)
	_, err = riskv1.NewAdminClient(conn).SeedRules(t.Context(), &riskv1.SeedRulesRequest{BlockedAccounts: []string{strings.Repeat("x", 1<<20)}})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("an operator's: %v", err)
	}
}

// A message whose rest does not arrive is aborted in time, over both transports.
func TestAMessageThatDoesNotEndIsGivenUp(t *testing.T) {
	overEach(t, func(t *testing.T, over Transport) {
		wait := usualTimeouts
		wait.request = 300 * time.Millisecond
		addr, stop := serve(t, &Port{Transport: over, timeouts: wait}, service{evaluate: allow})
		for _, method := range []string{evaluate, callsv1.CallsService_Make_FullMethodName} {
			end := make(chan struct{})
			defer close(end)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			resp, err := h2Client(t).Do(post(ctx, t, "http://"+addr+method, "application/grpc", untilEnd{bytes.NewReader(beginning(1000, 10)), end}))
			if ctx.Err() != nil {
				t.Errorf("%s was not aborted", method)
			}
			if err == nil {
				io.Copy(io.Discard, resp.Body)
				if got := resp.Header.Get("Grpc-Status") + resp.Trailer.Get("Grpc-Status"); ctx.Err() != nil || got == "0" {
					t.Errorf("%s: got %s, gRPC status %q, %v", method, resp.Status, got, ctx.Err())
				}
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// One connection sends hundreds of bodies that never end. The bytes that are held for them are
// limited, and a client that sends its whole body is served.
func TestBodiesThatNeverEndAreBounded(t *testing.T) {
	const streams, each = 150, 240 << 10
	for name, tc := range map[string]struct {
		path, contentType string
		body              []byte
	}{
		"events": {"/", "application/cloudevents+json", bytes.Repeat([]byte(" "), each)},
		"gRPC":   {"/risk.v1.Admin/SeedRules", "application/grpc", beginning(1<<20, each)},
	} {
		t.Run(name, func(t *testing.T) {
			f := &Port{
				Name: "test", Log: slog.New(slog.DiscardHandler), Registry: NewRegistry(), timeouts: timeouts{header: time.Hour, request: time.Hour, answer: time.Hour, idle: time.Hour}, Service: Service{
					GRPC: func(r grpc.ServiceRegistrar) {
						riskv1.RegisterRiskServiceServer(r, service{evaluate: allow})
						riskv1.RegisterAdminServer(r, riskv1.UnimplementedAdminServer{})
					},
					Events: func(context.Context, cloudevents.Event) error { return nil },
				},
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			serving, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- f.Serve(serving, l, 10*time.Second) }()
			url, client := "http://"+l.Addr().String(), h2Client(t)
			resp, err := client.Get(url + "/healthz") // the client then knows the maximum number of streams, and needs no other connection
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			end := make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			var given atomic.Int64
			ended := make(chan struct{}, streams)
			for range streams {
				req := post(ctx, t, url+tc.path, tc.contentType, untilEnd{bytes.NewReader(tc.body), end})
				go func() {
					defer func() { ended <- struct{}{} }()
					resp, err := client.Do(req)
					if err != nil {
						return
					}
					defer resp.Body.Close()
					io.Copy(io.Discard, resp.Body)
					if ctx.Err() == nil {
						given.Add(1)
						if name == "events" && resp.StatusCode != http.StatusRequestTimeout {
							t.Errorf("answered %s", resp.Status)
						}
					}
				}()
			}
			const most = maxArrivingOn/each + 1
			eventually(t, "most are given up", func() error {
				if n := given.Load(); n < streams-most {
					return fmt.Errorf("%d are", n)
				}
				return nil
			})
			f.connections.arriving.mu.Lock()
			if held := f.connections.arriving.bytes; held > maxArrivingOn {
				t.Errorf("%d bytes are held", held)
			}
			f.connections.arriving.mu.Unlock()
			for range 20 {
				resp, err := client.Do(post(t.Context(), t, url+evaluate, "application/grpc", bytes.NewReader(make([]byte, 5))))
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.Trailer.Get("Grpc-Status") != "0" {
					t.Errorf("a client that sends its whole message: %s %v", resp.Status, resp.Trailer)
				}
			}
			cancel()
			close(end)
			for range streams {
				<-ended
			}
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
			f.connections.arriving.mu.Lock()
			defer f.connections.arriving.mu.Unlock()
			if n := len(f.connections.arriving.bodies); n != 0 || f.connections.arriving.bytes != 0 {
				t.Errorf("%d bodies of %d bytes are still counted", n, f.connections.arriving.bytes)
			}
		})
	}
}

// At the port's limit, the connection with the most bytes loses bodies, its oldest first.
func TestWhoHoldsMostGivesWay(t *testing.T) {
	a := newArriving(prometheus.NewRegistry())
	greedy, modest := &connection{}, &connection{}
	var given []string
	body := func(name string, on *connection) *receiving {
		return &receiving{on: on, giveUp: func() { given = append(given, name) }}
	}
	a.more(body("modest", modest), 1<<20)
	for i := range 8 {
		a.more(body(fmt.Sprint("greedy ", i), greedy), 1<<20)
	}
	for len(given) == 0 {
		on := &connection{}
		for range 3 {
			a.more(body("of another", on), 1<<20)
		}
	}
	if a.bytes > maxArriving {
		t.Fatalf("%d bytes are held, and %v were aborted", a.bytes, given)
	}
	for i, name := range given {
		if name != fmt.Sprint("greedy ", i) {
			t.Errorf("%v gave way", given)
		}
	}
}

const patience = 3 * time.Minute

func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
