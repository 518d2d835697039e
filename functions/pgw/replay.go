package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"pgw/functions/pgw/replay"
	"pgw/shared/kafka"
)

// replayCommand sends events again.
type replayCommand struct {
	operatorFlags
	From string `arg:"" help:"topic:NAME, or a file of JSON events (one after the other or an array, may be gzipped), or -."`
	To   string `arg:"" optional:"" help:"A function's URL, topic:NAME, a file to write (.gz compresses), or -. Required without --dry-run."`

	Partition  []int32   `help:"For a topic: only these partitions."`
	FromOffset int64     `help:"For a topic: from this offset in each partition."`
	ToOffset   int64     `help:"For a topic: records before this offset."`
	Since      timeOrAge `help:"For a topic: records since this time (RFC 3339), or this long ago (such as 90m)."`
	Until      timeOrAge `help:"For a topic: records before this time, or older than this."`
	Key        string    `help:"Only events with this partition key; a payment's key is its idempotency key."`
	Client     string    `help:"Only events of this client's payments."`
	Type       string    `help:"Only events of this type."`
	Subject    string    `help:"Only events with this subject."`
	Limit      int64     `help:"Stop after this number of matching events."`

	DryRun     bool    `help:"Print the events that would be sent, and send nothing."`
	Sign       bool    `help:"Sign each event again, with the first of EVENT_KEYS. pgw then trusts these events like its own."`
	Rate       float64 `help:"The most events per second; 0: no limit."`
	InFlight   int     `default:"32" help:"The most events under way at the same time; events with one key are sent in order."`
	Retries    int     `default:"6" help:"Retries of an event that may be accepted later."`
	Checkpoint string  `help:"Store the progress in this file, and continue from there if it exists."`
	KeepGoing  bool    `help:"Continue after an event that could not be delivered."`
	JSON       bool    `name:"json" help:"Print the summary as JSON."`
}

// timeOrAge is a time, given as a time or as an age.
type timeOrAge struct{ time.Time }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *timeOrAge) UnmarshalText(text []byte) error {
	if age, err := time.ParseDuration(string(text)); err == nil {
		if age < 0 {
			return fmt.Errorf("%s: must not be negative", text)
		}
		t.Time = time.Now().Add(-age)
		return nil
	}
	at, err := time.Parse(time.RFC3339, string(text))
	if err != nil {
		return fmt.Errorf("%q is neither a time such as 2026-01-31T09:30:00Z nor an age such as 90m", text)
	}
	t.Time = at
	return nil
}

func (c replayCommand) Validate() error {
	switch {
	case c.To == "" && !c.DryRun:
		return errors.New("name the target of the events, or set --dry-run")
	case c.FromOffset < 0, c.ToOffset < 0, c.Limit < 0, c.Rate < 0:
		return errors.New("--from-offset, --to-offset, --limit and --rate must not be negative")
	case c.InFlight < 1 || c.InFlight > 1024:
		return errors.New("--in-flight must be between 1 and 1024")
	case c.Retries < 0 || c.Retries > 20:
		return errors.New("--retries must be between 0 and 20")
	}
	return nil
}

func (c replayCommand) Run(ctx context.Context) error {
	cfg := replay.Config{
		From: c.From, To: c.To, Match: replay.Match{Key: c.Key, Client: c.Client, Type: c.Type, Subject: c.Subject},
		Range: kafka.Range{Partitions: c.Partition, FromOffset: c.FromOffset, ToOffset: c.ToOffset, Since: c.Since.Time, Until: c.Until.Time},
		Limit: c.Limit, Rate: rate.Limit(c.Rate), InFlight: c.InFlight, Retries: c.Retries, Checkpoint: c.Checkpoint, KeepGoing: c.KeepGoing,
		Stdin: os.Stdin, Stdout: os.Stdout,
	}
	if c.Sign || strings.HasPrefix(c.From, "topic:") || strings.HasPrefix(c.To, "topic:") {
		system, _, err := c.config()
		if err != nil {
			return err
		}
		cfg.Kafka = system.Kafka
		if c.Sign {
			cfg.Keys = &system.Keys
		}
	}
	if c.DryRun {
		cfg.To, cfg.Checkpoint = "", ""
		cfg.Tell = func(e replay.Event) {
			fmt.Printf("%d/%d\t%s\t%s\t%s\t%s\n", e.Partition, e.Offset, e.Time().Format(time.RFC3339Nano), e.Type(), e.ID(), e.Key)
		}
	}
	if !c.DryRun {
		bar := progressBar(-1, "events")
		defer bar.Finish()
		cfg.Progress = func(done, total int64) {
			if total > 0 && bar.GetMax64() != total {
				bar.ChangeMax64(total)
			}
			bar.Set64(done)
		}
	}
	summary, err := replay.Run(ctx, cfg)
	if stopped(ctx, err) {
		err = interrupted{fmt.Sprintf("after %d events were sent", sent(summary))}
	} else if err == nil && summary.Refused+summary.Failed > 0 {
		err = fmt.Errorf("%d events were refused, %d not delivered", summary.Refused, summary.Failed)
	}
	if c.JSON {
		return errors.Join(json.NewEncoder(os.Stderr).Encode(summary), err)
	}
	printReplay(summary)
	if err != nil && c.Checkpoint != "" {
		fmt.Fprintf(os.Stderr, "the same command goes on from %s\n", c.Checkpoint)
	}
	return err
}

// sent counts the events that have an outcome.
func sent(s replay.Summary) (n int64) {
	for _, count := range s.Outcomes {
		n += count
	}
	return n
}

// printReplay writes to standard error: standard output may be the target.
func printReplay(s replay.Summary) {
	fmt.Fprintf(os.Stderr, "%d events read, %d matched\n", s.Read, s.Matched)
	for _, outcome := range slices.Sorted(maps.Keys(s.Outcomes)) {
		fmt.Fprintf(os.Stderr, "  %9d %s\n", s.Outcomes[outcome], outcome)
	}
	if s.First != "" {
		fmt.Fprintf(os.Stderr, "first failure: %s\n", s.First)
	}
}
