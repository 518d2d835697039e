package function

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"

	"pgw/shared/rpc"
	"pgw/shared/trace"
)

// Config is what every function reads from its environment.
type Config struct {
	Host  string        `envconfig:"HOST" desc:"address to listen on; empty means all"`
	Port  string        `envconfig:"PORT" desc:"the one port; 8080, or for a function of a payment the port at which callers look for it by default, such as 18080 for gateway"`
	Drain time.Duration `envconfig:"DRAIN_TIMEOUT" default:"25s" desc:"how long a drain may take after SIGTERM"`
	Conns int           `envconfig:"MAX_CONNECTIONS" default:"8192" desc:"connections open at once; when there are more, waiting ones make room"`
	HTTP2 Transport     `envconfig:"HTTP2" default:"mixed" desc:"what connections of HTTP/2 carry: mixed: gRPC and all else, as behind Knative's proxies; alone: gRPC, for half the processor time a call, and all else comes by HTTP/1.1"`
	Log   LogConfig
	RPC   rpc.Security
}

// ports are where callers look for a function that runs by itself. In a container PORT says 8080.
var ports = map[string]string{
	"gateway": "18080", "worker": "19091", "wallet": "19093", "risk": "19094", "db": "19095", "payments": "19096", "fx": "19102",
}

// addr is where the named function listens.
func (c Config) addr(name string) string {
	return net.JoinHostPort(c.Host, cmp.Or(c.Port, ports[name], "8080"))
}

// LogConfig says how a process logs.
type LogConfig struct {
	Level  slog.Level `envconfig:"LOG_LEVEL" default:"info" desc:"debug, info, warn or error"`
	Format string     `envconfig:"LOG_FORMAT" default:"json" desc:"json or text"`
}

// Logger makes the process's logger, on standard error.
func (c LogConfig) Logger() *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.Level}
	var h slog.Handler = slog.NewJSONHandler(os.Stderr, opts)
	if strings.EqualFold(c.Format, "text") {
		h = slog.NewTextHandler(os.Stderr, opts)
	}
	return slog.New(trace.Handler(h))
}

// settled is when a start is over, and the first requests with it.
const settled = time.Second

// gcPercent lets the heap grow to five times what is alive. A function keeps next to nothing, so that is still small, and
// collecting at every few megabytes cost a tenth of a busy function's time.
const gcPercent = 400

// CollectLess applies gcPercent, unless the environment says how garbage is to be collected.
func CollectLess() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// ReadEnvironment fills a configuration from the environment. An error names the variable and what is wrong with it, and
// never repeats its value, which may be a secret.
func ReadEnvironment(into any) error {
	err := envconfig.Process("", into)
	var wrong *envconfig.ParseError
	if errors.As(err, &wrong) {
		var number *strconv.NumError // repeats the value
		if errors.As(wrong.Err, &number) {
			return fmt.Errorf("configuration: %s: not a %s: %w", wrong.KeyName, wrong.TypeName, number.Err)
		}
		return fmt.Errorf("configuration: %s: %w", wrong.KeyName, wrong.Err)
	}
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return nil
}

// Main is a function's whole main: it reads the configuration C from the environment, builds, and runs
// until ctx ends.
func Main[C any](ctx context.Context, name string, build func(C, *slog.Logger) (*Function, error)) error {
	CollectLess() // and not at all until it is ready: that takes less than the least heap there is
	var base Config
	if err := ReadEnvironment(&base); err != nil {
		return err
	}
	var cfg C
	if err := ReadEnvironment(&cfg); err != nil {
		return err
	}
	log := base.Log.Logger().With("function", name)
	slog.SetDefault(log)
	stop, err := trace.Setup(ctx, name, log)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	defer stop()
	f, err := build(cfg, log)
	if err != nil {
		return err
	}
	f.MaxConnections, f.Transport = base.Conns, base.HTTP2
	if f.Callers, err = base.RPC.Open(log); err != nil {
		return err
	}
	l, err := net.Listen("tcp", base.addr(name))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	log.Info("serving", "addr", l.Addr().String())
	// What starting took is not needed again, and a function at rest should be small.
	defer time.AfterFunc(settled, debug.FreeOSMemory).Stop()
	return f.Serve(ctx, l, base.Drain)
}
