// Command pgw is every function and every operator's command in one binary: one image for all.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/alecthomas/kong"

	"pgw/functions/db"
	"pgw/functions/fx"
	"pgw/functions/gateway"
	"pgw/functions/payments"
	"pgw/functions/pgw/reconcile"
	"pgw/functions/risk"
	"pgw/functions/wallet"
	"pgw/functions/worker"
	"pgw/shared/function"
)

type commands struct {
	Run        runCommand        `cmd:"" help:"Run everything in one process, on embedded defaults."`
	Migrate    migrateCommand    `cmd:"" help:"Bring the ledger's schema up to date (DATABASE_URL)."`
	Topics     topicsCommand     `cmd:"" help:"Make the topics that are missing (KAFKA_BROKERS), or show what is waiting in them."`
	Seed       seedCommand       `cmd:"" help:"Make accounts and transactions: the same for the same seed number."`
	Load       loadCommand       `cmd:"" help:"Make payments against a running system, and hold every answer against the ledger."`
	Replay     replayCommand     `cmd:"" help:"Send events again: from a topic or a file to a function, a topic or a file."`
	Reconcile  reconcileCommand  `cmd:"" help:"Prove that the ledger adds up and that events and ledger agree. Exit code 0: all is well, 1: it is not, 2: could not tell."`
	Metrics    metricsCommand    `cmd:"" help:"Print the catalogue of the metrics that all processes expose, as Markdown."`
	APIKey     apiKeyCommand     `cmd:"" name:"apikey" help:"Make an API key."`
	DeadLetter deadLetterCommand `cmd:"" name:"deadletter" help:"See, send again or put aside the events that could not be delivered."`
	Ready      readyCommand      `cmd:"" help:"Ask a function whether it is ready. Exit code 0: it is."`

	Gateway  functionCommand `cmd:"" help:"Run the gateway function."`
	Worker   functionCommand `cmd:"" help:"Run the worker function."`
	Payments functionCommand `cmd:"" help:"Run the payments function."`
	DB       functionCommand `cmd:"" name:"db" help:"Run the db function."`
	FX       functionCommand `cmd:"" name:"fx" help:"Run the fx function."`
	Wallet   functionCommand `cmd:"" help:"Run the wallet function."`
	Risk     functionCommand `cmd:"" help:"Run the risk function."`

	KafkaSource sourcesCommand `cmd:"" name:"kafkasource" help:"Run the stand-in for Knative's KafkaSource, KafkaSink and PingSource."`
}

// functions by name. Each is configured by its environment alone.
var functions = map[string]func(context.Context) error{
	"gateway":  func(ctx context.Context) error { return function.Main(ctx, "gateway", gateway.Build) },
	"worker":   func(ctx context.Context) error { return function.Main(ctx, "worker", worker.Build) },
	"payments": func(ctx context.Context) error { return function.Main(ctx, "payments", payments.Build) },
	"db":       func(ctx context.Context) error { return function.Main(ctx, "db", db.Build) },
	"fx":       func(ctx context.Context) error { return function.Main(ctx, "fx", fx.Build) },
	"wallet":   func(ctx context.Context) error { return function.Main(ctx, "wallet", wallet.Build) },
	"risk":     func(ctx context.Context) error { return function.Main(ctx, "risk", risk.Build) },
}

// functionCommand runs one of them.
type functionCommand struct{}

func (functionCommand) Run(ctx context.Context, k *kong.Context) error {
	return functions[k.Selected().Name](ctx)
}

type migrateCommand struct {
	DatabaseURL string `env:"DATABASE_URL" required:"" help:"Postgres, with the right to create tables, and with --roles to create roles."`
	Roles       bool   `help:"Make the roles pgw_owner, pgw_ledger and pgw_reader too, and give them their rights."`
	Ledger      string `name:"ledger-url" env:"LEDGER_DATABASE_URL" help:"With --roles: what db's DATABASE_URL shall be; its user is made, or gets this password."`
	Reader      string `name:"reader-url" env:"READER_DATABASE_URL" help:"The same for fx, wallet and risk."`
}

func (c migrateCommand) Run(ctx context.Context) error {
	if err := db.Migrate(ctx, c.DatabaseURL); err != nil || !c.Roles {
		return err
	}
	var logins []db.Login
	if c.Ledger != "" {
		logins = append(logins, db.Login{URL: c.Ledger, Role: db.LedgerRole})
	}
	if c.Reader != "" {
		logins = append(logins, db.Login{URL: c.Reader, Role: db.ReaderRole})
	}
	return db.Roles(ctx, c.DatabaseURL, logins...)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	name, run := command(ctx)
	// Drain on the first signal; a second one ends the process at once.
	context.AfterFunc(ctx, stop)
	if err := profiled(name, run); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "pgw:", err)
		var coded interface{ ExitCode() int }
		if errors.As(err, &coded) {
			os.Exit(coded.ExitCode())
		}
		os.Exit(1)
	}
}

// command is what the arguments ask for. A function is started by its name alone, and soon: building the grammar of all
// commands takes 3 ms, of 20 until it is ready.
func command(ctx context.Context) (name string, run func() error) {
	if len(os.Args) == 2 {
		if run, ok := functions[os.Args[1]]; ok {
			return os.Args[1], func() error { return run(ctx) }
		}
	}
	k := kong.Parse(&commands{}, append(grammar, kong.BindTo(ctx, (*context.Context)(nil)))...)
	return k.Selected().Name, func() error { return k.Run() }
}

var grammar = []kong.Option{
	kong.Name("pgw"),
	kong.Description("A real-time multi-currency payment gateway."),
	kong.UsageOnError(),
	kong.Vars{"partitions": strconv.Itoa(partitions), "grace": reconcile.DefaultGrace.String()},
}

// profiled runs a command. Profiles are kept where PROFILE_DIR names a directory.
func profiled(name string, run func() error) error {
	stop, err := function.Profile(os.Getenv("PROFILE_DIR"), name)
	if err != nil {
		return err
	}
	return errors.Join(run(), stop())
}
