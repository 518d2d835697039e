package function

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const readyTimeout = 2 * time.Second

// ready returns the reason why the function can't serve now.
func (p *Port) ready(ctx context.Context) error {
	if p.draining.Load() {
		return errors.New("draining")
	}
	if p.Ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if p.first != nil {
		select {
		case <-p.first.done: // usually closed long before
		default:
			return p.first.wait(ctx)
		}
	}
	return p.Ready(ctx)
}

// check is one call of Ready with its result.
type check struct {
	done chan struct{}
	err  error // set before done is closed
}

func (c *check) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask calls Ready before the first probe, so that connections, for example to the database, are
// made early. Probes that arrive meanwhile wait for this first result.
func (p *Port) ask(ctx context.Context) {
	if p.Ready == nil {
		return
	}
	p.first = &check{done: make(chan struct{})}
	go func() {
		defer close(p.first.done)
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		p.first.err = p.Ready(ctx)
	}()
}

func (p *Port) serveReady(w http.ResponseWriter, r *http.Request) {
	if err := p.ready(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

// healthServer answers gRPC's health checks with the same readiness as /readyz. It does not
// implement Watch, so clients poll.
type healthServer struct {
	healthpb.UnimplementedHealthServer
	port *Port
}

func (h healthServer) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if h.port.ready(ctx) != nil {
		return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}, nil
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}
