// Command pgw has all functions and all operators' commands in one binary, and so in one image.
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

	"pgw/functions/kafkasource"
	"pgw/functions/pgw/reconcile"
	"pgw/functions/pgw/table"
	"pgw/shared/function"
	"pgw/shared/ledger"
	"pgw/shared/postgres"
	"pgw/shared/secret"
)

type commands struct {
	Run        runCommand        `cmd:"" help:"Run everything in one process, with an embedded Postgres and Kafka by default."`
	Migrate    migrateCommand    `cmd:"" help:"Update the ledger's schema (DATABASE_URL)."`
	Topics     topicsCommand     `cmd:"" help:"Make the missing topics, or show each topic's records and the lag of its consumer groups."`
	Seed       seedCommand       `cmd:"" help:"Add the seeds to a system (apply), or print generated accounts and transactions: the same seed number gives the same."`
	Load       loadCommand       `cmd:"" help:"Make payments on a running system, and compare every answer with the ledger."`
	Replay     replayCommand     `cmd:"" help:"Send events again, from a topic or a file to a function, a topic or a file."`
	Restore    restoreCommand    `cmd:"" help:"Record again the outcomes that a ledger has forgotten because its database was restored to a point in time. Exit code 1: something does not fit."`
	Sign       signCommand       `cmd:"" help:"Print the signed event of a payment, or a line for curl, kcat, kn or func that sends it. fx prices it as for the gateway; wallet and risk are not asked."`
	Reconcile  reconcileCommand  `cmd:"" help:"Check that the ledger adds up, and that events and ledger agree. Exit code 0: they agree; 1: they do not; 2: the check could not be completed."`
	Trial      trialCommand      `cmd:"" name:"trial-balance" help:"Add up the balances of each currency, with the house's accounts. Exit code 0: each currency sums to zero; 1: one does not; 2: the balances could not be read."`
	Metrics    metricsCommand    `cmd:"" help:"Print the catalogue of the metrics that all processes expose: as Markdown, or as JSON."`
	APIKey     apiKeyCommand     `cmd:"" name:"apikey" help:"Make an API key."`
	Payment    paymentCommand    `cmd:"" help:"Show a payment, refund it, capture or void its hold, cancel it."`
	Account    accountCommand    `cmd:"" help:"Open, fund, block and show accounts."`
	Rate       rateCommand       `cmd:"" help:"List and set rates."`
	Rules      rulesCommand      `cmd:"" help:"Show and set the rules by which risk judges payments."`
	Liquidity  liquidityCommand  `cmd:"" help:"Set what the house has to exchange in one currency."`
	Changes    changesCommand    `cmd:"" help:"List what operators have changed: accounts, fundings, rates, rules and liquidity, with who and why."`
	Webhook    webhookCommand    `cmd:"" help:"Add, list, change and test the webhooks by which clients are told of their payments, and send events again."`
	DeadLetter deadLetterCommand `cmd:"" name:"deadletter" help:"List, send again or discard events that could not be delivered."`
	Ready      readyCommand      `cmd:"" help:"Check whether a function is ready. Exit code 0: it is ready."`
	Completion completionCommand `cmd:"" help:"Print the script with which a shell completes pgw's commands and flags."`
	Version    versionCommand    `cmd:"" help:"Print the commit, its date and the version of Go."`
	Help       helpCommand       `cmd:"" help:"Print the help of a command."`

	VersionFlag versionFlag `name:"version" help:"Print the commit, its date and the version of Go."`
}

// functionCommand runs a function. Environment variables configure it.
type functionCommand struct{}

func (functionCommand) Run(ctx context.Context, k *kong.Context) error {
	f, _ := table.Functions.Find(k.Selected().Name)
	return table.Functions.Run(ctx, f)
}

// sourcesCommand also accepts the flags that earlier versions of kafkasource had. Today environment
// variables configure it.
type sourcesCommand struct {
	functionCommand
	Manifests string `hidden:"" help:"MANIFESTS_DIR"`
	Sinks     string `hidden:"" help:"SINKS"`
	Group     string `hidden:"" name:"group-prefix" help:"KAFKA_GROUP_PREFIX"`
	Parity    bool   `hidden:"" help:"PARITY"`
}

func (c sourcesCommand) Run(ctx context.Context, k *kong.Context) error {
	for name, value := range map[string]string{
		"MANIFESTS_DIR": c.Manifests, "SINKS": c.Sinks, "KAFKA_GROUP_PREFIX": c.Group,
	} {
		if value != "" {
			os.Setenv(name, value)
		}
	}
	if c.Parity {
		os.Setenv("PARITY", "true")
	}
	return c.functionCommand.Run(ctx, k)
}

type migrateCommand struct {
	DatabaseURL string          `env:"DATABASE_URL" required:"" help:"Postgres, with the right to create tables, and with --roles to create roles."`
	Schema      postgres.Schema `name:"ledger-schema" env:"LEDGER_SCHEMA" help:"The ledger's schema, if several ledgers share the database. It is made if it is missing. With --roles the ledger has roles of its own, such as pgw_ledger_of_SCHEMA, and must have logins of its own."`
	Contract    bool            `help:"Also take away what only earlier releases use. No earlier release may run any more, and none can work with the schema afterwards."`
	Distribute  bool            `xor:"distribute" help:"Also move the ledger of --ledger-schema to one node of Citus. It implies --contract. The ledger can't be used meanwhile. Where there is no Citus, nothing is changed."`
	Rows        bool            `name:"distribute-rows" xor:"distribute" help:"Also spread the rows of one large ledger over all nodes of Citus. It implies --contract. The ledger can't be used meanwhile, and functions are started again afterwards. More nodes then hold more rows; they do not make payments faster, and pgw restore was not tried there (shared/ledger/CITUS.md). Where there is no Citus, nothing is changed."`
	Roles       bool            `help:"Also make the roles pgw_owner, pgw_ledger, pgw_reader and pgw_webhooks, and grant their rights."`
	Ledger      string          `name:"ledger-url" env:"LEDGER_DATABASE_URL" help:"With --roles: the DATABASE_URL of db. Its user is made, or gets this password."`
	Reader      string          `name:"reader-url" env:"READER_DATABASE_URL" help:"With --roles: the DATABASE_URL of fx, wallet and risk."`
	Webhooks    string          `name:"webhooks-url" env:"WEBHOOKS_DATABASE_URL" help:"With --roles: the DATABASE_URL of webhooks."`
}

func (c migrateCommand) Run(ctx context.Context) error {
	migrate := ledger.Migrate
	switch {
	case c.Distribute:
		migrate = ledger.Distribute
	case c.Rows:
		migrate = ledger.DistributeRows
	case c.Contract:
		migrate = ledger.Contract
	}
	database := c.Schema.In(c.DatabaseURL)
	if err := migrate(ctx, database); err != nil || !c.Roles {
		return err
	}
	var logins []ledger.Login
	if c.Ledger != "" {
		logins = append(logins, ledger.Login{URL: c.Ledger, Role: ledger.LedgerRole})
	}
	if c.Reader != "" {
		logins = append(logins, ledger.Login{URL: c.Reader, Role: ledger.ReaderRole})
	}
	if c.Webhooks != "" {
		logins = append(logins, ledger.Login{URL: c.Webhooks, Role: ledger.WebhooksRole})
	}
	return ledger.Roles(ctx, database, logins...)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := secret.FromFiles(os.Getenv, os.Setenv); err != nil {
		os.Exit(report(os.Stderr, fmt.Errorf("configuration: %w", err)))
	}
	// The first signal drains. A second one ends the process at once.
	context.AfterFunc(ctx, stop)
	name, run, err := command(ctx)
	if err == nil {
		err = profiled(name, run)
	}
	if stopped(ctx, err) {
		err = ended(name)
	}
	os.Exit(report(os.Stderr, err))
}

// ended is the error of a command that a signal has ended. A function and pgw run end in this way.
func ended(name string) error {
	if _, function := table.Functions.Find(name); function || name == "run" {
		return nil
	}
	return interrupted{}
}

// command returns the command that the arguments name. A function without further arguments is
// started without the grammar of all commands. Building the grammar takes 3 ms of the 20 ms until
// the function is ready.
func command(ctx context.Context) (name string, run func() error, err error) {
	if len(os.Args) == 2 {
		if f, ok := table.Functions.Find(os.Args[1]); ok {
			return f.Name, func() error { return table.Functions.Run(ctx, f) }, nil
		}
	}
	parser, err := kong.New(newCommands(), append(grammar(), kong.BindTo(ctx, (*context.Context)(nil)))...)
	if err != nil {
		return "", nil, err
	}
	complete(parser)
	k, err := parser.Parse(os.Args[1:])
	if err != nil {
		return "", nil, asUsage(err)
	}
	return k.Selected().Name, func() error { return k.Run() }, nil
}

func newCommands() *commands { return &commands{Run: runCommand{Ports: portFlags()}} }

// grammar returns the options of the argument parser. Each function of the table is a command.
func grammar() []kong.Option {
	options := []kong.Option{
		kong.Name("pgw"),
		kong.Description("A real-time multi-currency payment gateway.\n\n" + exitCodes),
		kong.Help(printHelp),
		kong.Vars{"partitions": strconv.Itoa(partitions), "grace": reconcile.DefaultGrace.String(), "worker_url": workerURL,
			"kafka_port": defaultKafkaPort},
	}
	for _, f := range table.Functions {
		var command any = &functionCommand{}
		if f.Name == kafkasource.Function.Name {
			command = &sourcesCommand{}
		}
		options = append(options, kong.DynamicCommand(f.Name, "Run the function "+f.Name+", which "+f.About+".", "", command))
	}
	return options
}

// printHelp adds the function's environment variables to its help.
func printHelp(options kong.HelpOptions, k *kong.Context) error {
	if err := kong.DefaultHelpPrinter(options, k); err != nil {
		return err
	}
	selected := k.Selected()
	if selected == nil {
		return nil
	}
	f, ok := table.Functions.Find(selected.Name)
	if !ok {
		return nil
	}
	fmt.Fprintln(k.Stdout)
	return table.Functions.Help(k.Stdout, f)
}

// profiled runs a command. If PROFILE_DIR is set, profiles are stored in that directory.
func profiled(name string, run func() error) error {
	stop, err := function.Profile(os.Getenv("PROFILE_DIR"), name)
	if err != nil {
		return err
	}
	return errors.Join(run(), stop())
}
