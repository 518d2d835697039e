package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/seeds"
	"pgw/shared/event"
	"pgw/shared/kafka"
)

// maxSeeded bounds what one call makes.
const maxSeeded = 10_000_000

type seedCommand struct {
	Accounts     seedAccounts     `cmd:"" help:"Accounts with owners, currencies, limits and funds."`
	Transactions seedTransactions `cmd:"" help:"Payments between the accounts of the same seed number."`
}

type seedFlags struct {
	Count int    `default:"1004" help:"How many."`
	Seed  uint64 `default:"1" help:"The seed number."`
	// EventKeys is text here: none means unsigned.
	EventKeys string `env:"EVENT_KEYS" help:"ID:BASE64 keys; events are signed by the first."`
}

func (f seedFlags) Validate() error {
	if f.Count < 1 || f.Count > maxSeeded {
		return fmt.Errorf("--count must be between 1 and %d", maxSeeded)
	}
	return nil
}

func (f seedFlags) writeEvents(w io.Writer, events []cloudevents.Event) error {
	var keys event.Keyring
	if f.EventKeys != "" {
		if err := keys.Decode(f.EventKeys); err != nil {
			return fmt.Errorf("EVENT_KEYS: %w", err)
		}
	}
	for _, e := range events {
		if f.EventKeys != "" {
			if err := keys.Sign(&e); err != nil {
				return err
			}
		}
		line, err := e.MarshalJSON()
		if err != nil {
			return err
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	return nil
}

type seedAccounts struct {
	seedFlags
	Format string `enum:"csv,cloudevents" default:"csv" help:"csv, or cloudevents: one JSON event a line."`
}

func (c seedAccounts) Run() error {
	out := bufio.NewWriter(os.Stdout)
	accounts := seeds.MakeAccounts(c.Seed, c.Count)
	if c.Format == "csv" {
		if err := seeds.WriteAccounts(out, accounts); err != nil {
			return err
		}
		return out.Flush()
	}
	for _, a := range accounts {
		events, err := seeds.AccountEvents(a, time.Now())
		if err != nil {
			return err
		}
		if err := c.writeEvents(out, events); err != nil {
			return err
		}
	}
	return out.Flush()
}

type seedTransactions struct {
	seedFlags
	AccountCount int    `name:"accounts" default:"1004" help:"How many accounts of this seed number take part."`
	Format       string `enum:"csv,cloudevents" default:"csv" help:"csv, or cloudevents: one JSON event a line."`
}

func (c seedTransactions) Run() error {
	if c.AccountCount < 2 || c.AccountCount > maxSeeded {
		return fmt.Errorf("--accounts must be between 2 and %d", maxSeeded)
	}
	txs, err := seeds.MakeTransactions(c.Seed, c.Count, seeds.MakeAccounts(c.Seed, c.AccountCount))
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	if c.Format == "csv" {
		if err := seeds.WriteTransactions(out, txs); err != nil {
			return err
		}
		return out.Flush()
	}
	for _, tx := range txs {
		e, err := tx.Event()
		if err != nil {
			return err
		}
		if err := c.writeEvents(out, []cloudevents.Event{e}); err != nil {
			return err
		}
	}
	return out.Flush()
}

// publishAccounts opens and funds the seeded accounts through the topic that operators use.
func publishAccounts(ctx context.Context, producer *kafka.Producer, topic string, keys *event.Keyring) (int, error) {
	accounts, err := seeds.Accounts()
	if err != nil {
		return 0, err
	}
	now := time.Now()
	for _, a := range accounts {
		events, err := seeds.AccountEvents(a, now)
		if err != nil {
			return 0, err
		}
		for _, e := range events {
			if err := keys.Sign(&e); err != nil {
				return 0, err
			}
			if err := producer.Publish(ctx, topic, a.ID, e); err != nil {
				return 0, err
			}
		}
	}
	return len(accounts), nil
}
