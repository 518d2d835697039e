package function

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	riskv1 "pgw/proto/gen/risk/v1"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/rpc"
)

// Both sides leave a peer that becomes silent during a call, although no side has a deadline and no
// connection is closed. The call is repeated over a new connection.
func TestASilentPeerIsLeft(t *testing.T) {
	t.Parallel()
	overEach(t, func(t *testing.T, over Transport) {
		t.Parallel()
		begun, release := make(chan struct{}, 8), make(chan struct{})
		f := &Port{Transport: over, Name: "test", Log: slog.New(slog.DiscardHandler), Registry: NewRegistry()}
		f.GRPC = func(r grpc.ServiceRegistrar) {
			riskv1.RegisterRiskServiceServer(r, service{evaluate: func(ctx context.Context, in *riskv1.ScoreRequest) (*riskv1.EvaluateResponse, error) {
				begun <- struct{}{}
				select {
				case <-release:
				case <-ctx.Done():
				}
				return allow(ctx, in)
			}})
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		stopped := make(chan error, 1)
		go func() { stopped <- f.Serve(ctx, l, 10*time.Second) }()
		wire := embeddedtest.NewWire(t, l.Addr().String())
		conn := dial(t, &rpc.Callers{}, wire.Addr())
		answer := make(chan error, 1)
		go func() {
			_, err := riskv1.NewRiskServiceClient(conn).Evaluate(context.Background(), &riskv1.ScoreRequest{})
			answer <- err
		}()
		<-begun
		wire.Silence()
		// The client leaves, and tries again.
		select {
		case <-begun:
			close(release)
			if err := <-answer; err != nil {
				t.Errorf("over a new connection: %v", err)
			}
		case err := <-answer:
			close(release)
			if status.Code(err) != codes.Unavailable {
				t.Errorf("the call ended with %v", err)
			}
		case <-time.After(patience):
			t.Fatal("the client waits for a silent server")
		}
		conn.Close()
		// The server leaves too.
		for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			f.connections.mu.Lock()
			open := len(f.connections.all)
			f.connections.mu.Unlock()
			if open == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the server keeps %d connections of a silent client", open)
			}
		}
		stop()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

// Clients that send pings as often as allowed are not disconnected.
func TestKeepaliveIsPermitted(t *testing.T) {
	t.Parallel()
	overEach(t, func(t *testing.T, over Transport) {
		t.Parallel()
		addr, stop := serve(t, &Port{Transport: over}, service{evaluate: allow})
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
			t.Fatal(err)
		}
		framer := http2.NewFramer(conn, conn)
		if err := framer.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		// gRPC's own server tolerates two.
		for n := range 5 {
			time.Sleep(rpc.PingsApart + 100*time.Millisecond) // the minimum interval between two pings
			if err := framer.WritePing(false, [8]byte{byte(n)}); err != nil {
				t.Fatal(err)
			}
			for answered := false; !answered; {
				frame, err := framer.ReadFrame()
				if err != nil {
					t.Fatalf("ping %d: %v", n, err)
				}
				switch frame := frame.(type) {
				case *http2.PingFrame:
					answered = frame.IsAck() && frame.Data[0] == byte(n)
				case *http2.GoAwayFrame:
					t.Fatalf("ping %d: got GOAWAY: %s %s", n, frame.ErrCode, frame.DebugData())
				}
			}
		}
		conn.Close()
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
