package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/postgres"
)

// trialCommand adds up the balances of each currency. Its exit code is 0 if every currency
// sums to zero, 1 if one does not, and 2 if the balances could not be read.
type trialCommand struct {
	operatorFlags
	dataFlags
}

func (c trialCommand) Run(ctx context.Context) error {
	system, _, err := c.config()
	var database string
	if err == nil {
		database, err = system.Database.ledger()
	}
	if err != nil {
		return unknown{err}
	}
	trial, err := readTrialBalance(ctx, database)
	if err == nil {
		err = c.print(trialJSON(trial), func(to io.Writer) error { return printTrial(to, trial) })
	}
	if err != nil {
		return unknown{err}
	}
	return trial.Err()
}

// readTrialBalance reads the trial balance in one snapshot.
func readTrialBalance(ctx context.Context, database string) (t ledger.TrialBalance, err error) {
	conn, err := postgres.Connect(ctx, database, nil)
	if err != nil {
		return t, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := ledger.BeginSnapshot(ctx, conn)
	if err != nil {
		return t, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	return ledger.ReadTrialBalance(ctx, tx)
}

func printTrial(to io.Writer, t ledger.TrialBalance) error {
	fmt.Fprintln(to, t.At.Format(time.RFC3339))
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "currency\taccount\tavailable\theld\tposition\tlimit\t")
	for _, c := range t.Currencies {
		major := func(minor int64) string { return money.Amount{Minor: minor, Currency: c.Currency}.String() }
		fmt.Fprintf(w, "%s\t%d of clients\t%s\t%s\t\t\t\n", c.Currency, c.Accounts, major(c.Available), major(c.Held))
		for _, h := range c.House {
			position, limit := "", ""
			if h.Position != 0 || h.PositionLimit != nil {
				position = major(h.Position)
			}
			if h.PositionLimit != nil {
				limit = major(*h.PositionLimit)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", c.Currency, h.Account, major(h.Available), major(h.Held), position, limit)
		}
		fmt.Fprintf(w, "%s\tsum\t%s\t\t\t\t\n", c.Currency, major(c.Sum))
	}
	return w.Flush()
}

// trialJSON is the report as the gateway's /api/reports/trial-balance has it.
func trialJSON(t ledger.TrialBalance) any {
	type house struct {
		ID            string `json:"account_id"`
		Available     string `json:"available"`
		Held          string `json:"held"`
		Position      string `json:"position"`
		PositionLimit string `json:"position_limit,omitempty"`
	}
	type currency struct {
		Currency  money.Currency `json:"currency"`
		Sum       string         `json:"sum"`
		Accounts  int64          `json:"accounts"`
		Available string         `json:"available"`
		Held      string         `json:"held"`
		House     []house        `json:"house"`
	}
	report := struct {
		At         time.Time  `json:"at"`
		Currencies []currency `json:"currencies"`
	}{t.At, []currency{}}
	for _, c := range t.Currencies {
		major := func(minor int64) string { return money.Amount{Minor: minor, Currency: c.Currency}.String() }
		of := currency{c.Currency, major(c.Sum), c.Accounts, major(c.Available), major(c.Held), []house{}}
		for _, h := range c.House {
			row := house{ID: h.Account, Available: major(h.Available), Held: major(h.Held), Position: major(h.Position)}
			if h.PositionLimit != nil {
				row.PositionLimit = major(*h.PositionLimit)
			}
			of.House = append(of.House, row)
		}
		report.Currencies = append(report.Currencies, of)
	}
	return report
}
