package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	dbv1 "pgw/proto/gen/db/v1"
	riskv1 "pgw/proto/gen/risk/v1"
)

type rulesCommand struct {
	Show showRules `cmd:"" help:"Show the rules by which risk judges payments, and who set them."`
	Set  setRules  `cmd:"" help:"Change rules. Those that are not named stay as they are. The new rules are in force within 2 s."`
}

type showRules struct {
	operatorFlags
	dataFlags
}

// rulesView are the rules in force. Amounts are in whole rupiah.
type rulesView struct {
	RuleSet          string      `json:"rule_set"`
	MinAmountIDR     int64       `json:"min_amount_idr"`
	MaxAmountIDR     int64       `json:"max_amount_idr"`    // 0: no maximum
	VelocityPerMin   uint32      `json:"velocity_per_min"`  // 0: no limit
	RandomRejectPPM  uint32      `json:"random_reject_ppm"` // payments in a million
	BlockedAccounts  []string    `json:"blocked_accounts"`
	BlockedCountries []string    `json:"blocked_countries"`
	Set              *changeView `json:"set,omitempty"` // nil: it is not known who set them
}

func (c showRules) Run(ctx context.Context) error {
	conns, done, err := c.connect("risk", "db")
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	got, err := riskv1.NewAdminClient(conns["risk"]).GetRules(ctx, &riskv1.GetRulesRequest{})
	if err != nil {
		return said("risk", err)
	}
	page, err := dbv1.NewAdminClient(conns["db"]).ListChanges(ctx, &dbv1.ListChangesRequest{Kind: "rules", Subject: got.RuleSet, Limit: 1})
	if err != nil {
		return said("db", err)
	}
	rules := rulesView{
		RuleSet: got.RuleSet, MinAmountIDR: got.MinAmountIdr, MaxAmountIDR: got.MaxAmountIdr, VelocityPerMin: got.VelocityPerMin,
		RandomRejectPPM: got.RandomRejectPpm, BlockedAccounts: append([]string{}, got.BlockedAccounts...),
		BlockedCountries: append([]string{}, got.BlockedCountries...),
	}
	if by := newChangeViews(page.Changes); len(by) > 0 {
		rules.Set = &by[0]
	}
	return c.print(rules, rules.text)
}

func (r rulesView) text(to io.Writer) error {
	list := func(names []string) string {
		if len(names) == 0 {
			return "none"
		}
		return strings.Join(names, ", ")
	}
	fmt.Fprintf(to, "rule set %s\n", r.RuleSet)
	if r.Set != nil {
		fmt.Fprintf(to, "set at %s by %s", r.Set.At.Format(time.RFC3339), r.Set.By)
		if r.Set.Note != "" {
			fmt.Fprintf(to, ": %s", r.Set.Note)
		}
		fmt.Fprintln(to)
	}
	maximum, velocity := "no maximum", "no limit"
	if r.MaxAmountIDR > 0 {
		maximum = fmt.Sprint(r.MaxAmountIDR, " IDR")
	}
	if r.VelocityPerMin > 0 {
		velocity = fmt.Sprint(r.VelocityPerMin)
	}
	_, err := fmt.Fprintf(to, `least amount             %d IDR
greatest amount          %s
payments a minute        %s
refused at random        %d of a million
blocked accounts         %s
blocked countries        %s
`, r.MinAmountIDR, maximum, velocity, r.RandomRejectPPM, list(r.BlockedAccounts), list(r.BlockedCountries))
	return err
}

type setRules struct {
	operatorFlags
	changeFlags
	MinAmount *int64   `name:"min-amount-idr" help:"The least amount of a payment, in whole rupiah."`
	MaxAmount *int64   `name:"max-amount-idr" help:"The greatest amount of a payment, in whole rupiah; 0: no maximum."`
	Velocity  *uint32  `name:"velocity-per-min" help:"Payments that one sender may start in a clock minute; 0: no limit."`
	Reject    *uint32  `name:"random-reject-ppm" help:"Payments in a million that are refused at random; 0: none."`
	Block     []string `help:"Accounts to add to the blocked ones."`
	Unblock   []string `help:"Accounts to remove from the blocked ones."`
}

func (c setRules) Validate() error {
	if c.MinAmount == nil && c.MaxAmount == nil && c.Velocity == nil && c.Reject == nil && len(c.Block)+len(c.Unblock) == 0 {
		return errors.New("name a rule to change, such as --random-reject-ppm 0")
	}
	return c.changeFlags.check()
}

func (c setRules) Run(ctx context.Context) error {
	return c.call(ctx, "risk", func(ctx context.Context, risk grpc.ClientConnInterface) error {
		admin := riskv1.NewAdminClient(risk)
		now, err := admin.GetRules(ctx, &riskv1.GetRulesRequest{})
		if err != nil {
			return err
		}
		got, err := admin.SeedRules(ctx, c.request(now))
		if err == nil {
			_, err = fmt.Printf("rule set %s is in force\n", got.RuleSet)
		}
		return err
	})
}

// request makes the whole new rule set from the one in force. Another one that is set meanwhile is not
// overwritten.
func (c setRules) request(now *riskv1.GetRulesResponse) *riskv1.SeedRulesRequest {
	in := &riskv1.SeedRulesRequest{
		MinAmountIdr: &now.MinAmountIdr, MaxAmountIdr: &now.MaxAmountIdr, VelocityPerMin: now.VelocityPerMin, RandomRejectPpm: &now.RandomRejectPpm,
		BlockedCountries: now.BlockedCountries, By: c.who(), Note: c.Note, ExpectedRuleSet: now.RuleSet,
	}
	if c.MinAmount != nil {
		in.MinAmountIdr = c.MinAmount
	}
	if c.MaxAmount != nil {
		in.MaxAmountIdr = c.MaxAmount
	}
	if c.Velocity != nil {
		in.VelocityPerMin = *c.Velocity
	}
	if c.Reject != nil {
		in.RandomRejectPpm = c.Reject
	}
	for _, account := range slices.Concat(now.BlockedAccounts, c.Block) {
		if !slices.Contains(c.Unblock, account) && !slices.Contains(in.BlockedAccounts, account) {
			in.BlockedAccounts = append(in.BlockedAccounts, account)
		}
	}
	return in
}
