// Package function is what pgw's functions have in common:
//
//   - function.go: what a function is: its name, whom it calls, how it is built.
//   - service.go: what building one gives: its RPCs, events and routes.
//   - port.go: what one port answers; serve.go: how it serves, and drains.
//   - process.go: how a function runs as a process of its own.
//   - environment.go: how a function is configured.
package function

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
)

// Function describes a function. Describe makes one; a Table lists them.
type Function struct {
	Name  string
	About string // one line for the help

	// Port is where callers look for the function when it runs by itself. It is empty where nobody
	// calls it.
	Port string
	// Calls names the functions that it calls by gRPC. The reason is for the help.
	Calls map[string]string
	// Publishes says whether it publishes events.
	Publishes Publishing
	// Events is the path at which it takes events; empty when it takes none.
	Events string
	// HTTP makes the transport by which it calls others over plain HTTP; nil when it does not.
	HTTP func() *http.Transport

	config func() any // a pointer to a new configuration
	build  func(config any, on Dependencies) (*Service, error)
}

// Publishing says how much a function publishes.
type Publishing int

const (
	// Never is the zero value.
	Never Publishing = iota
	// Rarely is for a function that publishes now and then: it connects when it first does.
	Rarely
	// Always is for a function that publishes for each payment: it connects as soon as it starts.
	Always
)

// Publisher publishes events.
type Publisher interface {
	Publish(ctx context.Context, topic, key string, e cloudevents.Event) error
}

// Dependencies are what a function is built on. A test passes in the ones that it needs: Make takes
// the real clock and randomness, a new registry and no log for those that are missing.
type Dependencies struct {
	Conns     map[string]grpc.ClientConnInterface // by the name of the function that is called
	Publisher Publisher
	HTTP      http.RoundTripper
	Now       func() time.Time
	Random    func() float64 // in [0, 1)
	Log       *slog.Logger
	Registry  *prometheus.Registry
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

// Describe completes a description by the function's constructor, and by the configuration C that
// it takes.
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

// Make builds the function. Its port serves nothing yet.
func (f Function) Make(config any, on Dependencies) (*Port, error) {
	on = on.withDefaults()
	service, err := f.build(config, on)
	if err != nil {
		return nil, err
	}
	if (service.Events != nil) != (f.Events != "") {
		return nil, fmt.Errorf("%s: takes events: %t; described with the path %q", f.Name, service.Events != nil, f.Events)
	}
	return &Port{Name: f.Name, EventsPath: f.Events, Log: on.Log, Registry: on.Registry, Service: *service}, nil
}

// Table lists functions in the order in which they drain: a function that is called stands behind
// its callers.
type Table []Function

// Find gives the function of a name.
func (t Table) Find(name string) (Function, bool) {
	i := slices.IndexFunc(t, func(f Function) bool { return f.Name == name })
	if i < 0 {
		return Function{}, false
	}
	return t[i], true
}

// Address is the variable that says where a function is for those that call it.
func (t Table) Address(name string) Variable {
	f, _ := t.Find(name)
	return Variable{Name: strings.ToUpper(name) + "_ADDR", Default: "localhost:" + f.Port, About: "gRPC address of " + name}
}
