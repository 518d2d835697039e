// Command load measures pgw and pgbench on the same Postgres in the same run. It keeps profiles of
// its measurements, and shows what happens at more load than the system can serve. It does not
// report a run whose ledger does not add up, or whose answers differ from the ledger.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"

	"github.com/alecthomas/kong"
)

const outDir = "tests/load/out"

type commands struct {
	Bench    benchCommand    `cmd:"" help:"The table of goals: each figure a ratio to pgbench's, measured before and after it."`
	Grow     growCommand     `cmd:"" help:"Cost as work grows: connections, accounts, past payments, replicas, and what a replacement costs."`
	Profile  profileCommand  `cmd:"" help:"Keep CPU, allocation, mutex and block profiles of each scenario."`
	Overload overloadCommand `cmd:"" help:"Three times the capacity for a minute, and then half of it."`
	Limit    limitCommand    `cmd:"" hidden:"" help:"Serve one of the limits that the flow is compared with."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var c commands
	k := kong.Parse(&c, kong.Name("load"), kong.BindTo(ctx, (*context.Context)(nil)))
	if err := k.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// part is measured on its own: no other part runs at the same time.
type part struct {
	name    string
	measure func() error
}

// measure measures the parts that only names, or all if it names none.
func measure(all []part, only []string) error {
	for _, name := range only {
		if !slices.ContainsFunc(all, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("--only: there is no scenario %s", name)
		}
	}
	for _, p := range all {
		if len(only) > 0 && !slices.Contains(only, p.name) {
			continue
		}
		if err := p.measure(); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func write(name string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(outDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(outDir, name), append(text, '\n'), 0o644)
}

var errNoKafka = errors.New("no real Kafka: run this with tests/kafka/with-kafka, or set KAFKA_BROKERS")
