package function

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"pgw/shared/kafka"
	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// settled is the time after which a process has served its first requests.
const settled = time.Second

// gcPercent lets the heap grow to five times the live memory. A function keeps little memory, so
// the heap is still small. Collections at every few megabytes used a tenth of a busy function's
// time.
const gcPercent = 400

// CollectLess applies gcPercent, unless the environment configures the garbage collector.
func CollectLess() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// Run runs a function in its own process. It reads the environment, connects to Kafka and to the
// functions that it calls, and serves until ctx ends. Then it drains.
func (t Table) Run(ctx context.Context, f Function) error {
	CollectLess() // no collection before it is ready: the start needs less than the smallest heap
	var base Config
	config := f.config()
	read := []any{&base, config}
	var events kafka.Config
	if f.Publishes != Never {
		read = append(read, &events)
	}
	if err := ReadEnvironment(read...); err != nil {
		return err
	}
	log := base.Log.Logger().With("function", f.Name)
	slog.SetDefault(log)
	stop, err := trace.Setup(ctx, f.Name, log)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	defer stop()
	callers, err := base.RPC.Open(log)
	if err != nil {
		return err
	}
	port, err := t.connect(f, config, events, callers, base.HTTP2, log)
	if err != nil {
		return err
	}
	port.MaxConnections, port.Transport, port.Callers, port.Ledger = base.Conns, base.HTTP2, callers, base.Ledger
	l, err := net.Listen("tcp", base.Addr(f))
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	if addr := base.adminAddr(); addr != "" {
		if port.Admin, err = net.Listen("tcp", addr); err != nil {
			return fmt.Errorf("%s: ADMIN_PORT: %w", f.Name, errors.Join(err, l.Close()))
		}
		log = log.With("admin_addr", port.Admin.Addr().String())
	}
	log.Info("serving", "addr", l.Addr().String())
	// The memory of the start is not needed again, and an idle function should be small.
	defer time.AfterFunc(settled, debug.FreeOSMemory).Stop()
	return port.Serve(ctx, l, base.Drain)
}

// connect builds the function on its own connections. Its port closes them last.
func (t Table) connect(f Function, config any, events kafka.Config, callers *rpc.Callers, http2 Transport, log *slog.Logger) (*Port, error) {
	on := Dependencies{
		Conns: map[string]grpc.ClientConnInterface{}, Now: time.Now, Random: rand.Float64, Log: log, Registry: NewRegistry(),
	}
	if f.HTTP != nil {
		on.HTTP = callers.Transport(f.HTTP())
	}
	var closers []func(context.Context) error
	for callee := range f.Calls {
		address := t.Address(callee)
		conn, err := callers.Dial(address.From(os.LookupEnv))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", address.Name, err)
		}
		on.Conns[callee] = conn
		// Knative's autoscaler counts the requests that its proxies see, and there each call should count.
		if http2 == GRPCOnly {
			on.Conns[callee] = rpc.Together(conn)
		}
		closers = append(closers, func(context.Context) error { return conn.Close() })
	}
	var producer *kafka.Producer
	if f.Publishes != Never {
		var err error
		if producer, err = kafka.NewProducer(events, f.Name); err != nil {
			return nil, err
		}
		on.Publisher = producer
		closers = append([]func(context.Context) error{producer.Close}, closers...)
	}
	port, err := f.Make(config, on)
	if err != nil {
		return nil, err
	}
	if f.Publishes == Always {
		port.Background = both(port.Background, producer.Connect)
	}
	if port.Close != nil {
		closers = append([]func(context.Context) error{port.Close}, closers...)
	}
	port.Close = func(ctx context.Context) error {
		var errs []error
		for _, end := range closers {
			errs = append(errs, end(ctx))
		}
		return errors.Join(errs...)
	}
	return port, nil
}

// both runs two functions at the same time. The first may be nil.
func both(first, second func(context.Context) error) func(context.Context) error {
	if first == nil {
		return second
	}
	return func(ctx context.Context) error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return first(ctx) })
		group.Go(func() error { return second(ctx) })
		return group.Wait()
	}
}

// Variables lists the variables that a process of this function reads.
func (t Table) Variables(f Function) []Variable {
	var addresses []Variable
	for _, callee := range slices.Sorted(maps.Keys(f.Calls)) {
		address := t.Address(callee)
		address.About += ", which " + f.Calls[callee]
		addresses = append(addresses, address)
	}
	all := slices.Concat(Variables(f.config()), addresses)
	if f.Publishes != Never {
		all = append(all, Variables(&kafka.Config{})...)
	}
	all = append(all, Variables(&Config{})...)
	seen := map[string]bool{}
	return slices.DeleteFunc(all, func(v Variable) bool {
		twice := seen[v.Name]
		seen[v.Name] = true
		return twice
	})
}

// Help writes these variables as a table.
func (t Table) Help(to io.Writer, f Function) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VARIABLE\tREQUIRED\tDEFAULT\tMEANING")
	for _, v := range t.Variables(f) {
		required := ""
		if v.Required {
			required = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", v.Name, required, v.Default, v.About)
	}
	return w.Flush()
}
