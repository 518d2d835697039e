// Command fault runs pgw as separate processes on a real Kafka and a real Postgres, under load, and
// makes every kind of fault. Then it heals the system, and compares the clients' answers with the
// ledger.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/payment"
	"pgw/tests/processes"
)

type options struct {
	Seed        uint64        `default:"1" help:"The same seed makes the same faults at the same times."`
	Duration    time.Duration `default:"2m" help:"How long faults happen."`
	Faults      int           `help:"How many; one in five seconds when not said. With --cluster: the most."`
	Rate        float64       `default:"300" help:"Payments a second that are offered."`
	Cluster     bool          `help:"Several machines, of which any one is broken at a time."`
	Connections int           `default:"256" help:"Clients at the same time."`
	Binary      string        `default:"bin/pgw" type:"existingfile"`
	Out         string        `default:"tests/fault/out" help:"Where the report and the logs go."`
}

func (o options) Validate() error {
	if o.Duration < 10*time.Second || o.Duration > 24*time.Hour {
		return errors.New("--duration must be between 10s and 24h")
	}
	if o.Faults < 0 || o.Faults > 100_000 || o.Rate <= 0 || o.Connections < 1 {
		return errors.New("--faults must be between 0 and 100000, --rate and --connections positive")
	}
	return nil
}

const (
	eventKeys = "chaos:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	accounts  = 1000
	// restartAfter is the time after which a process that ended is started again, as a cluster
	// does.
	restartAfter = 500 * time.Millisecond
	// holdFor is how long an authorized payment holds its money.
	holdFor = payment.MinAuthorize
	// healWithin is the time limit until payments succeed again without help.
	healWithin = 2 * time.Minute
)

// settings are further variables of all processes. Holds that nobody ends expire during the run. A webhook
// whose process was killed is sent again soon.
var settings = []string{"AUTHORIZE_FOR=" + holdFor.String(), "WEBHOOK_TIMEOUT=2s"}

func main() {
	var o options
	kong.Parse(&o, kong.Name("fault"), kong.Description("Break pgw in every way, under load, and judge what is left."))
	if o.Faults == 0 && !o.Cluster {
		o.Faults = max(1, int(o.Duration/(5*time.Second)))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "fault:", err)
		os.Exit(1)
	}
}

// stage is what pgw runs on, and what can be broken there.
type stage interface {
	// start starts everything. The processes are started again until keep ends.
	start(ctx, keep context.Context) error
	// breakThings makes the faults, and returns those that it made when each is undone, and what it found
	// wrong meanwhile.
	breakThings(ctx context.Context, begun time.Time) (made []fault, wrong []string)
	heal() // undoes the faults that are still active; starts no process
	stop() error

	gateway() string  // host:port for clients
	database() string // the ledger's URL for the judge
	skipped() []string
}

// world is everything that runs.
type world struct {
	stage
	o        options
	dir      string
	shop     *shop
	hook     string // the shop's id as an endpoint
	kafka    kafka.Config
	keys     event.Keyring
	logs     io.Writer // gets the output of the processes
	log      *slog.Logger
	keepers  sync.WaitGroup
	stopKeep context.CancelFunc
	mu       sync.Mutex
	restarts map[string]int
	copied   map[string]int // standbys that a person would have had to copy anew
}

func run(ctx context.Context, o options) (err error) {
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return err
	}
	w, err := build(ctx, o)
	if w != nil {
		defer func() { err = errors.Join(err, w.close()) }()
	}
	if err != nil {
		return err
	}
	clients := newClients(o, "http://"+w.gateway())
	begun := time.Now()
	paying, stopPaying := context.WithCancel(ctx)
	defer stopPaying()
	done := make(chan struct{})
	go func() { defer close(done); clients.run(paying) }()
	faults, wrong := w.breakThings(ctx, begun)
	if wait := time.Until(begun.Add(o.Duration)); wait > 0 {
		sleep(ctx, wait)
	}
	w.heal()
	fmt.Println("healed; the load continues until payments succeed again")
	healed := time.Now()
	again, err := clients.recovered(ctx, healed, healWithin)
	stopPaying()
	<-done
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	return w.judge(ctx, o, faults, wrong, clients, healed, again)
}

func build(ctx context.Context, o options) (*world, error) {
	dir, err := os.MkdirTemp("", "pgw-fault-")
	if err != nil {
		return nil, err
	}
	os.Chmod(dir, 0o755) // Postgres may run as another user
	logs, err := os.Create(filepath.Join(o.Out, "processes.log"))
	if err != nil {
		return nil, err
	}
	w := &world{o: o, dir: dir, restarts: map[string]int{}, copied: map[string]int{}, logs: logs, log: slog.New(slog.NewTextHandler(logs, nil))}
	if err := w.keys.Decode(eventKeys); err != nil {
		return w, err
	}
	host := "127.0.0.1"
	if o.Cluster {
		w.stage, host = &cluster{world: w}, gateAddr
	} else {
		w.stage = &single{world: w}
	}
	keep, stop := context.WithCancel(context.Background())
	w.stopKeep = stop
	if err := w.start(ctx, keep); err != nil {
		return w, err
	}
	bounded, cancel := context.WithTimeout(ctx, healWithin)
	defer cancel()
	return w, w.openShop(bounded, host)
}

// seed gives the system accounts and money.
func seed(ctx context.Context, sys *processes.System) error {
	bounded, cancel := context.WithTimeout(ctx, healWithin)
	defer cancel()
	if err := eventually(bounded, func() error { return sys.Seed(bounded, accounts) }); err != nil {
		return err
	}
	return eventually(bounded, func() error { return sys.SeedExchange(bounded, accounts) })
}

// openShop makes the clients' endpoint. A new webhook may miss what happens in its first two seconds.
func (w *world) openShop(ctx context.Context, host string) (err error) {
	if w.shop, err = openShop(host); err != nil {
		return err
	}
	err = eventually(ctx, func() (err error) {
		w.hook, err = w.shop.register(ctx, "http://"+w.gateway())
		return err
	})
	sleep(ctx, 2*time.Second)
	return err
}

// keep starts a process again whenever it ends, as a cluster does. Nothing else restarts a process.
func (w *world) keep(ctx context.Context, name string, launch func() (<-chan struct{}, error)) {
	w.keepers.Go(func() {
		for starts := 0; ctx.Err() == nil; starts++ {
			if starts > 0 {
				w.mu.Lock()
				w.restarts[name]++
				w.mu.Unlock()
				sleep(ctx, restartAfter)
				if ctx.Err() != nil {
					return
				}
			}
			ended, err := launch()
			if err != nil {
				w.log.Warn("not started", "process", name, "error", err)
				continue
			}
			select {
			case <-ended:
			case <-ctx.Done():
				return
			}
		}
	})
}

// close ends everything that was started, however the run ended.
func (w *world) close() error {
	if w.stopKeep != nil {
		w.heal()
		w.stopKeep()
		w.keepers.Wait()
	}
	var errs []error
	if w.stage != nil {
		errs = append(errs, w.stop())
	}
	if w.shop != nil {
		w.shop.close()
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func eventually(ctx context.Context, check func() error) error {
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}
