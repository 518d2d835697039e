package function

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"

	"pgw/shared/rpc"
)

// The limits of the port.
const (
	maxHeader  = 16 << 10
	maxStreams = 1024 // of one HTTP/2 connection
	// The bytes that an HTTP/2 peer may send before they are read.
	maxUnread, maxUnreadOfStream = 512 << 10, 64 << 10
)

// timeouts of a connection.
type timeouts struct {
	header  time.Duration // for the header of a request
	request time.Duration // for the whole request
	answer  time.Duration // from the request's header to the last byte of its answer; a client may read slowly, but not for ever
	idle    time.Duration // between two requests
}

var usualTimeouts = timeouts{header: 5 * time.Second, request: 30 * time.Second, answer: time.Minute, idle: 2 * time.Minute}

// Serve runs the function on a listener until ctx ends. Then it drains within the given time: it is
// not ready any more, completes the requests under way, and closes.
func (p *Port) Serve(ctx context.Context, l net.Listener, drain time.Duration) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	p.ask(background)
	wait := cmp.Or(p.timeouts, usualTimeouts)
	server := &http.Server{
		Protocols:         &http.Protocols{},
		ConnContext:       remember,
		ReadHeaderTimeout: wait.header,
		ReadTimeout:       wait.request,
		WriteTimeout:      wait.answer,
		IdleTimeout:       wait.idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(p.Log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: maxUnread, MaxReceiveBufferPerStream: maxUnreadOfStream,
			SendPingTimeout: rpc.Unseen, PingTimeout: rpc.Unanswered,
		},
	}
	failed := make(chan error, 4)
	defer p.serveAdmin(failed, wait)()
	server.Protocols.SetHTTP1(true)
	var calls *grpcListener
	if p.Transport == GRPCOnly && p.GRPC != nil {
		server.Handler = tracked(p.plain())
		calls = newGRPCListener(p.grpcServer(rpc.MaxMessage, append(wait.options(), grpc.InTapHandle(p.tap(wait.request)))...), l.Addr())
		calls.take(server)
		go func() { failed <- calls.server.Serve(calls) }()
	} else {
		server.Handler = tracked(p.Handler())
		server.Protocols.SetHTTP2(true)
		server.Protocols.SetUnencryptedHTTP2(true)
	}
	p.servingAfter.Store(int64(time.Since(processBegan)))
	p.connections.Listener = l
	go func() {
		if server.TLSConfig = p.Callers.ServerTLS(); server.TLSConfig != nil {
			failed <- server.ServeTLS(p.connections, "", "")
		} else {
			failed <- server.Serve(p.connections)
		}
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if p.Background == nil {
			return
		}
		if err := p.Background(background); err != nil && background.Err() == nil {
			failed <- err
		}
	}()

	var cause error
	select {
	case <-ctx.Done():
	case err := <-failed:
		cause = fmt.Errorf("%s: %w", p.Name, err)
	}
	p.draining.Store(true)
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	var err error
	if p.BeforeDrain != nil {
		err = p.BeforeDrain(limited)
	}
	go p.connections.giveUpSlow(limited)
	var calling sync.WaitGroup
	if calls != nil {
		calling.Go(func() { calls.drain(limited) })
	}
	if shutdown := server.Shutdown(limited); shutdown != nil {
		err = errors.Join(err, shutdown)
		server.Close()
	}
	calling.Wait()
	stop()
	<-ended
	if p.first != nil {
		<-p.first.done
	}
	if p.Close != nil {
		err = errors.Join(err, p.Close(limited))
	}
	if err != nil {
		err = fmt.Errorf("drain %s: %w", p.Name, err)
	}
	return errors.Join(cause, err)
}

// serveAdmin serves the operator's port, if there is one, until stop is called. That is after the
// drain, so that the drain can be watched.
func (p *Port) serveAdmin(failed chan<- error, wait timeouts) (stop func()) {
	if p.Admin == nil {
		return func() {}
	}
	mux := http.NewServeMux()
	p.health(mux)
	p.exposeMetrics(mux)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: wait.header, ReadTimeout: wait.request, WriteTimeout: wait.answer, IdleTimeout: wait.idle,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(p.Log.Handler(), slog.LevelDebug),
	}
	go func() { failed <- server.Serve(p.Admin) }()
	return func() { server.Close() }
}
