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

// ready says why the function can't serve now.
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
		case <-p.first.done: // usually long ago
		default:
			return p.first.wait(ctx)
		}
	}
	return p.Ready(ctx)
}

// check is one call of Ready, and its answer.
type check struct {
	done chan struct{}
	err  error // once done is closed
}

func (c *check) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask calls Ready before any probe comes, so that what the function needs, such as a connection to
// the database, is under way early. Probes that arrive meanwhile wait for this first answer.
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
// implement watching: clients then poll.
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
