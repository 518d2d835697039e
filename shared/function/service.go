package function

import (
	"context"
	"net/http"

	"google.golang.org/grpc"

	"pgw/shared/event"
)

// Service is what building a function gives. All of it is optional.
type Service struct {
	// GRPC registers the function's services. Health and reflection are added to them.
	GRPC func(grpc.ServiceRegistrar)
	// Events takes the CloudEvents that arrive by POST.
	Events event.Handler
	// Routes adds the public API.
	Routes func(*Mux)
	// Guard stands before all that is not gRPC; nil lets everything through.
	Guard func(http.Handler) http.Handler
	// Ready says why the function can't serve now.
	Ready func(context.Context) error
	// Background runs until its context ends.
	Background func(context.Context) error
	// BeforeDrain ends what needs the port to stay open, within its context. Until it returns the
	// port still takes connections, and says that it is not ready.
	BeforeDrain func(context.Context) error
	// Close gives back what the function holds, once nothing is being served.
	Close func(context.Context) error
}
