package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"pgw/functions/pgw/restore"
	"pgw/shared/ledger"
)

// restoreCommand records again what a restored database has forgotten.
type restoreCommand struct {
	operatorFlags
	Since     timeOrAge `help:"Events since this time (RFC 3339) or this long ago (such as 24h); by default since 10 minutes before the ledger's newest payment."`
	Until     timeOrAge `help:"Events before this time, or older than this."`
	MaxEvents int       `default:"2000000" help:"The most events that are read in one run; about 2 KB of memory each."`
	JSON      bool      `name:"json" help:"Print the report as JSON."`
}

// Help implements kong.HelpProvider.
func (restoreCommand) Help() string {
	return `Use it after Postgres was restored to a point in time, before worker, gateway and the sweep run again (functions/pgw/RUNBOOK.md). It reads ` +
		`the signed request and result events in Kafka, and records the outcomes that the ledger has forgotten as they were told: payments, refunds, ` +
		`captures, voids and cancellations, with the same ids and times. Fundings come from replaying ledger.accounts before. It needs the DATABASE_URL ` +
		`of db. It may be repeated. Exit code 1: something that was told could not be restored, and the report names it.`
}

func (c restoreCommand) Validate() error {
	if c.MaxEvents < 1 {
		return errors.New("--max-events must be positive")
	}
	return nil
}

func (c restoreCommand) Run(ctx context.Context) error {
	system, _, err := c.config()
	if err != nil {
		return err
	}
	database, err := system.Database.ledger()
	if err != nil {
		return err
	}
	report, err := restore.Run(ctx, restore.Config{
		Database: database, Kafka: system.Kafka, Keys: &system.Keys, AllowUnsigned: system.AllowUnsigned,
		Since: c.Since.Time, Until: c.Until.Time, Max: c.MaxEvents,
	})
	if stopped(ctx, err) {
		return interrupted{fmt.Sprintf("after %d outcomes were restored; the same command goes on", report.Results[ledger.Restored])}
	}
	if c.JSON {
		err = errors.Join(json.NewEncoder(os.Stdout).Encode(report), err)
	} else {
		printRestored(report)
	}
	if err == nil && !report.Clean() {
		err = errors.New("not everything that was told is in the ledger")
	}
	return err
}

func printRestored(r restore.Report) {
	since := "the beginning"
	if !r.Since.IsZero() {
		since = r.Since.UTC().Format(time.RFC3339)
	}
	fmt.Printf("%d events since %s; %d are not from pgw\n", r.Events, since, r.Foreign)
	for _, result := range []ledger.RestoreResult{ledger.Restored, ledger.Remembered, ledger.Contradicted, ledger.Unfit} {
		fmt.Printf("  %9d %s\n", r.Results[result], result)
	}
	for _, p := range r.Problems {
		fmt.Printf("%s: %s of %s was told as %s: %s\n", p.Result, p.What, p.Payment, p.Told, p.Problem)
	}
}
