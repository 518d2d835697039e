package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"pgw/functions/pgw/allinone"
	"pgw/functions/pgw/deadletter"
	"pgw/shared/kafka"
)

type deadLetterCommand struct {
	List    listLetters    `cmd:"" help:"List the events that could not be delivered, with the reasons."`
	Show    showLetters    `cmd:"" help:"Show all details of letters with their events, as JSON."`
	Redrive redriveLetters `cmd:"" help:"Send letters again to the topic where they entered the flow. A payment past its deadline is then recorded as FAILED expired, and its client gets that result."`
	Discard discardLetters `cmd:"" help:"Record that letters need no more action."`
}

// letterFlags select letters of a system.
type letterFlags struct {
	operatorFlags
	GroupPrefix string    `env:"KAFKA_GROUP_PREFIX" help:"The prefix of the consumer groups' names."`
	Letters     []string  `arg:"" optional:"" help:"TOPIC/PARTITION/OFFSET, as list prints them."`
	Key         string    `help:"Only letters with this key; a payment's key is its idempotency key."`
	Reason      string    `help:"Only letters with this code, or with this text in their message or outcome."`
	State       string    `enum:",waiting,closed_out,open,redriven,discarded" default:"" help:"Only letters in this state: waiting, closed_out, open, redriven or discarded."`
	Since       timeOrAge `help:"Only letters since this time (RFC 3339), or this long ago (such as 24h)."`
}

// open reads the selected letters.
func (f letterFlags) open(ctx context.Context) (box *deadletter.Box, letters []deadletter.Letter, done func(), err error) {
	filter := deadletter.Filter{Key: f.Key, Reason: f.Reason, State: deadletter.State(f.State), Since: f.Since.Time}
	for _, text := range f.Letters {
		place, err := kafka.ParsePlace(text)
		if err != nil {
			return nil, nil, nil, err
		}
		filter.Places = append(filter.Places, place)
	}
	cfg, at, err := f.config()
	if err != nil {
		return nil, nil, nil, err
	}
	manifests, err := allinone.Manifests()
	if err != nil {
		return nil, nil, nil, err
	}
	callers, err := cfg.RPC.Open(slog.Default())
	if err != nil {
		return nil, nil, nil, err
	}
	conns, err := dial(at, callers, "db")
	if err != nil {
		return nil, nil, nil, err
	}
	box = &deadletter.Box{Kafka: cfg.Kafka, Group: f.GroupPrefix, DB: conns["db"], Manifests: manifests}
	if letters, err = box.Read(ctx, filter); err != nil {
		conns["db"].Close()
		return nil, nil, nil, err
	}
	return box, letters, func() { conns["db"].Close() }, nil
}

type listLetters struct {
	letterFlags
	JSON bool `name:"json" help:"Print one JSON object per letter."`
}

func (c listLetters) Run(ctx context.Context) error {
	_, letters, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	if c.JSON {
		return printLettersJSON(letters)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LETTER\tAT\tTYPE\tKEY\tFUNCTION\tCODE\tTRIES\tSTATE\tLEDGER\tMESSAGE")
	for _, l := range letters {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%.80s\n", l.Place, l.At.Format(time.RFC3339), l.Event.Type(), l.Key,
			l.Function, l.Code, l.Attempts, l.State, l.Outcome, strings.Join(strings.Fields(l.Message), " "))
	}
	return w.Flush()
}

type showLetters struct{ letterFlags }

func (c showLetters) Run(ctx context.Context) error {
	_, letters, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	return printLettersJSON(letters)
}

func printLettersJSON(letters []deadletter.Letter) error {
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	for _, l := range letters {
		if err := out.Encode(l); err != nil {
			return err
		}
	}
	return nil
}

// actFlags are the flags of actions on letters.
type actFlags struct {
	letterFlags
	All      bool   `help:"Select all letters that are open."`
	Again    bool   `help:"Also act on letters that are not open, and on letters that were redriven or discarded before."`
	DryRun   bool   `help:"Print what would be done, and do nothing."`
	Operator string `env:"USER" default:"unknown" help:"The person who acts; is recorded."`
	Note     string `help:"The reason; is recorded."`
}

func (f actFlags) Validate() error {
	if len(f.Letters) == 0 && f.Key == "" && f.Reason == "" && !f.All {
		return errors.New("name letters, or select them with --key, --reason or --all")
	}
	return nil
}

// each acts on the selected letters that still need it. If it fails for one letter, it continues
// with the others.
func (f actFlags) each(ctx context.Context, letters []deadletter.Letter, verb string, act func(deadletter.Letter) error) error {
	var errs []error
	acted := 0
	for _, l := range letters {
		named := len(f.Letters) > 0 && l.State != deadletter.Redriven && l.State != deadletter.Discarded
		if !f.Again && !named && l.State != deadletter.Open {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !f.DryRun {
			if err := act(l); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		acted++
		fmt.Printf("%s\t%s\t%s\t%s\n", verb, l.Place, l.Event.Type(), l.Key)
	}
	if f.DryRun {
		verb = "would be " + verb
	}
	fmt.Fprintf(os.Stderr, "%d of %d letters: %s\n", acted, len(letters), verb)
	return errors.Join(errs...)
}

type redriveLetters struct{ actFlags }

func (c redriveLetters) Run(ctx context.Context) error {
	box, letters, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	producer, err := kafka.NewProducer(box.Kafka, "deadletter")
	if err != nil {
		return err
	}
	defer producer.Close(context.WithoutCancel(ctx))
	return c.each(ctx, letters, "redriven", func(l deadletter.Letter) error {
		return box.Redrive(ctx, producer, l, c.Operator, c.Note)
	})
}

type discardLetters struct{ actFlags }

func (c discardLetters) Validate() error {
	if c.Note == "" {
		return errors.New("--note: give the reason, because it is recorded")
	}
	return c.actFlags.Validate()
}

func (c discardLetters) Run(ctx context.Context) error {
	box, letters, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	return c.each(ctx, letters, "discarded", func(l deadletter.Letter) error {
		return box.Discard(ctx, l, c.Operator, c.Note)
	})
}
