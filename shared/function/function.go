// Package function is the common part of pgw's functions:
//
//   - function.go: the description of a function: its name, the functions that it calls, its
//     constructor.
//   - service.go: the result of building a function: its RPCs, events and routes.
//   - port.go: the requests that one port serves; serve.go: how it serves, and drains.
//   - process.go: a function in its own process.
//   - environment.go: a function's configuration.
//   - outages.go: what is logged when a dependency is away.
package function

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"pgw/shared/event"
	"pgw/shared/trace"
)

// Function describes a function. Describe makes one; a Table lists them.
type Function struct {
	Name  string
	About string // one line for the help

	// Port is the port that callers use when the function runs by itself. It is empty if the
	// function has no callers.
	Port string
	// Calls names the functions that it calls over gRPC, with a reason for the help.
	Calls map[string]string
	// Publishes is how often it publishes events.
	Publishes Publishing
	// Events is the path at which it receives events. It is empty if it receives none.
	Events string
	// HTTP makes the transport for its calls over plain HTTP. It is nil if there are none.
	HTTP func() *http.Transport

	config func() any // a pointer to a new configuration
	build  func(config any, on Dependencies) (*Service, error)
}

// Publishing is how often a function publishes.
type Publishing int

const (
	// Never is the zero value.
	Never Publishing = iota
	// Rarely is for a function that seldom publishes. It connects at its first publish.
	Rarely
	// Always is for a function that publishes for each payment. It connects at its start.
	Always
)

// Dependencies are the inputs for building a function. A test sets the ones that it needs. For the
// others, Make uses the real clock and randomness, a new registry and no log.
type Dependencies struct {
	Conns     map[string]grpc.ClientConnInterface // by the name of the called function
	Publisher event.Publisher
	HTTP      http.RoundTripper
	// Receivers are the functions of this process that receive events, by the hosts of their URLs. nil: events
	// are sent by HTTP.
	Receivers map[string]event.Receive
	Now       func() time.Time
	Random    func() float64 // in [0, 1)
	Log       *slog.Logger
	Registry  *prometheus.Registry

	// Outages note whether the dependencies work: by the name of a called function, and Kafka. Make
	// sets them.
	Outages map[string]*trace.Outage
}

func (on Dependencies) withDefaults() Dependencies {
	if on.Now == nil {
		on.Now = time.Now
	}
	if on.Random == nil {
		on.Random = rand.Float64
	}
	if on.Log == nil {
		on.Log = slog.New(slog.DiscardHandler)
	}
	if on.Registry == nil {
		on.Registry = NewRegistry()
	}
	return on
}

// Describe completes a description with the function's constructor and its configuration type C.
func Describe[C any](f Function, build func(C, Dependencies) (*Service, error)) Function {
	f.config = func() any { return new(C) }
	f.build = func(config any, on Dependencies) (*Service, error) {
		switch config := config.(type) {
		case C:
			return build(config, on)
		case *C:
			return build(*config, on)
		default:
			return nil, fmt.Errorf("%s: its configuration is a %T, not a %T", f.Name, *new(C), config)
		}
	}
	return f
}

// Configure reads the function's configuration, for Make.
func (f Function) Configure(from Settings) (config any, err error) {
	config = f.config()
	return config, from.Read(config)
}

// Make builds the function. Its port does not serve yet.
func (f Function) Make(config any, on Dependencies) (*Port, error) {
	on = on.withDefaults().watched()
	service, err := f.build(config, on)
	if err != nil {
		return nil, err
	}
	if (service.Events != nil) != (f.Events != "") {
		return nil, fmt.Errorf("%s: receives events: %t; but its description has the path %q", f.Name, service.Events != nil, f.Events)
	}
	return &Port{Name: f.Name, EventsPath: f.Events, Log: on.Log, Registry: on.Registry, Service: *service}, nil
}

// Table lists functions in the order in which they drain: a function comes after its callers.
type Table []Function

// Find returns the function with a name.
func (t Table) Find(name string) (Function, bool) {
	i := slices.IndexFunc(t, func(f Function) bool { return f.Name == name })
	if i < 0 {
		return Function{}, false
	}
	return t[i], true
}

// Address returns the variable with the function's address for its callers.
func (t Table) Address(name string) Variable {
	f, _ := t.Find(name)
	return Variable{Name: strings.ToUpper(name) + "_ADDR", Default: "localhost:" + f.Port, About: "gRPC address of " + name}
}
