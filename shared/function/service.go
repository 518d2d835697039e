package function

import (
	"context"
	"net/http"

	"google.golang.org/grpc"

	"pgw/shared/event"
)

// Service is the result of building a function. All fields are optional.
type Service struct {
	// GRPC registers the function's services. Health and reflection are added to them.
	GRPC func(grpc.ServiceRegistrar)
	// Events handles the CloudEvents that arrive by POST.
	Events event.Handler
	// Routes adds the public API.
	Routes func(*Mux)
	// Guard wraps the handler of all requests that are not gRPC; nil means none.
	Guard func(http.Handler) http.Handler
	// Ready returns the reason why the function can't serve now.
	Ready func(context.Context) error
	// Background runs until its context ends.
	Background func(context.Context) error
	// BeforeDrain completes work that needs an open port, until its context ends. Before it
	// returns, the port still accepts connections, but is not ready.
	BeforeDrain func(context.Context) error
	// Close releases the function's resources. It runs after the last request.
	Close func(context.Context) error
}
