package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"pgw/functions/pgw/allinone"
	"pgw/shared/deadletter"
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
	Letters     []string  `arg:"" optional:"" help:"Letters by their ids, as list prints them, or by the ids of their events."`
	Key         string    `help:"Only letters with this key; a payment's key is its idempotency key."`
	Reason      string    `help:"Only letters with this reason (signature, refused, too_large, unavailable, no_answer) or code, or with this text in their message or outcome."`
	State       string    `enum:",waiting,closed_out,parked,open,redriven,discarded" default:"" help:"Only letters in this state: waiting, closed_out, parked (or open), redriven or discarded."`
	Since       timeOrAge `help:"Only letters that failed since this time (RFC 3339), or this long ago (such as 24h)."`
	Limit       int       `default:"0" help:"The most letters, the newest; 0: no limit."`
}

// errNoLetters means that no letter matches.
var errNoLetters = errors.New("no letter matches")

func (f letterFlags) Validate() error {
	if f.Limit < 0 {
		return errors.New("--limit must not be negative")
	}
	return nil
}

// filters reports whether the flags leave out some letters.
func (f letterFlags) filters() bool {
	return len(f.Letters) > 0 || f.Key != "" || f.Reason != "" || f.State != "" || !f.Since.IsZero()
}

// openBox is a box with the connections that it uses.
type openBox struct {
	*deadletter.Box
	close func() error
}

// open connects to the system.
func (f letterFlags) open() (box openBox, err error) {
	cfg, at, err := f.config()
	if err != nil {
		return box, err
	}
	manifests, err := allinone.Manifests()
	if err != nil {
		return box, err
	}
	conns, err := dial(at, cfg.RPC, "db")
	if err != nil {
		return box, err
	}
	var groups []string
	for name, as := range cfg.Kafka.Renamed() {
		if as == cfg.Kafka.DeadLetterTopic {
			for _, group := range manifests.Groups(name) {
				groups = append(groups, f.GroupPrefix+group)
			}
		}
	}
	return openBox{
		&deadletter.Box{Kafka: cfg.Kafka, Groups: groups, DB: conns["db"], Keys: &cfg.Keys, Attempts: manifests.Attempts}, conns["db"].Close,
	}, nil
}

// read reads the selected letters. It says so if there are more than --limit.
func (f letterFlags) read(ctx context.Context, box openBox) ([]deadletter.Letter, error) {
	state := deadletter.State(f.State)
	if state == "open" { // its name in earlier releases
		state = deadletter.Parked
	}
	letters, more, err := box.Read(ctx, deadletter.Filter{
		Names: f.Letters, Key: f.Key, Reason: f.Reason, State: state, Since: f.Since.Time, Limit: f.Limit,
	})
	if err != nil {
		return nil, err
	}
	if len(letters) == 0 && f.filters() {
		return nil, errNoLetters
	}
	if more {
		fmt.Fprintf(os.Stderr, "there are more: these are the newest %d (--limit)\n", f.Limit)
	}
	return letters, nil
}

type listLetters struct {
	letterFlags
	JSON bool `name:"json" help:"Print one JSON object per letter."`
}

func (c listLetters) Run(ctx context.Context) error {
	box, err := c.open()
	if err != nil {
		return err
	}
	defer box.close()
	letters, err := c.read(ctx, box)
	if err != nil {
		return err
	}
	if c.JSON {
		return printLettersJSON(os.Stdout, letters)
	}
	return printLetters(os.Stdout, letters)
}

func printLetters(out io.Writer, letters []deadletter.Letter) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LETTER\tAT\tTYPE\tKEY\tFUNCTION\tREASON\tCODE\tFAILED\tTRIES\tSTATE\tLEDGER\tMESSAGE")
	for _, l := range letters {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%.80s\n", l.ID, l.At.Format(time.RFC3339), l.Event.Type(), l.Key,
			l.Function, l.Reason, l.Code, l.Failures, l.Attempts, l.State, l.Outcome, strings.Join(strings.Fields(l.Message), " "))
	}
	return w.Flush()
}

type showLetters struct{ letterFlags }

func (c showLetters) Run(ctx context.Context) error {
	box, err := c.open()
	if err != nil {
		return err
	}
	defer box.close()
	letters, err := c.read(ctx, box)
	if err != nil {
		return err
	}
	return printLettersJSON(os.Stdout, letters)
}

func printLettersJSON(w io.Writer, letters []deadletter.Letter) error {
	out := json.NewEncoder(w)
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
	All    bool   `help:"Select all letters that are parked."`
	Again  bool   `help:"Also act on letters that are not parked, and on letters that were redriven or discarded before."`
	DryRun bool   `help:"Print what would be done, and do nothing."`
	By     string `aliases:"operator" help:"The person who acts; is recorded. By default the user on this machine."`
	Note   string `help:"The reason; is recorded."`
}

func (f actFlags) Validate() error {
	if len(f.Letters) == 0 && f.Key == "" && f.Reason == "" && !f.All {
		return errors.New("name letters, or select them with --key, --reason or --all")
	}
	for _, name := range f.Letters {
		if _, err := kafka.ParsePlace(name); err == nil {
			return fmt.Errorf("%s is a place in Kafka, which may have another record by now: name the letter by its id, as list prints it", name)
		}
	}
	return f.letterFlags.Validate()
}

func (f actFlags) order() deadletter.Order {
	return deadletter.Order{Operator: changeFlags{By: f.By}.who(), Note: f.Note}
}

// wants reports whether an action is for a letter.
func (f actFlags) wants(l deadletter.Letter) bool {
	named := len(f.Letters) > 0 && l.State != deadletter.Redriven && l.State != deadletter.Discarded
	return f.Again || named || l.State == deadletter.Parked
}

// check refuses a name that stands for several letters.
func (f actFlags) check(letters []deadletter.Letter) error {
	for _, name := range f.Letters {
		var ids []string
		for _, l := range letters {
			if l.Named(name) {
				ids = append(ids, l.ID)
			}
		}
		if len(ids) > 1 {
			return fmt.Errorf("%s is the event's id of several letters: name one of %s", name, strings.Join(ids, ", "))
		}
	}
	return nil
}

// each acts on the selected letters that still need it. If it fails for one letter, it continues
// with the others. It is an error if there is nothing to act on.
func (f actFlags) each(ctx context.Context, letters []deadletter.Letter, verb string, act func(deadletter.Letter) error) error {
	if len(letters) == 0 {
		return errNoLetters
	}
	if err := f.check(letters); err != nil {
		return err
	}
	var errs []error
	wanted, acted := 0, 0
	for _, l := range letters {
		if !f.wants(l) {
			continue
		}
		wanted++
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
		fmt.Printf("%s\t%s\t%s\t%s\n", verb, l.ID, l.Event.Type(), l.Key)
	}
	if wanted == 0 {
		return fmt.Errorf("%w that is parked; of those that match, the first is %s: --again acts on them too", errNoLetters, letters[0].State)
	}
	if f.DryRun {
		verb = "would be " + verb
	}
	fmt.Fprintf(os.Stderr, "%d of %d letters: %s\n", acted, len(letters), verb)
	return errors.Join(errs...)
}

type redriveLetters struct {
	actFlags
	Sign bool `help:"Sign an event anew whose signature is not valid, with the first of EVENT_KEYS. pgw then trusts it like its own, so find out first who made it."`
}

func (c redriveLetters) Run(ctx context.Context) error {
	box, err := c.open()
	if err != nil {
		return err
	}
	defer box.close()
	letters, err := c.read(ctx, box)
	if err != nil {
		return err
	}
	producer, err := kafka.NewProducer(box.Kafka, "deadletter")
	if err != nil {
		return err
	}
	defer producer.Close(context.WithoutCancel(ctx))
	order := c.order()
	order.Sign = c.Sign
	return c.each(ctx, letters, "redriven", func(l deadletter.Letter) error {
		why := box.Unsigned(l)
		err := box.Redrive(ctx, producer, l, order)
		if errors.Is(err, deadletter.ErrUnsigned) {
			err = fmt.Errorf("%w; see --sign", err)
		}
		if err == nil && why != nil {
			fmt.Fprintf(os.Stderr, "%s was signed anew: %v\n", l.ID, why)
		}
		return err
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
	box, err := c.open()
	if err != nil {
		return err
	}
	defer box.close()
	letters, err := c.read(ctx, box)
	if err != nil {
		return err
	}
	return c.each(ctx, letters, "discarded", func(l deadletter.Letter) error {
		return box.Discard(ctx, l, c.order())
	})
}
