package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/rpc"
)

type accountCommand struct {
	Open    openAccount    `cmd:"" help:"Open an account, or with --replace replace its whole profile: owner, currency, limit and status."`
	Fund    fundAccount    `cmd:"" help:"Add money that came in from outside to an account."`
	Block   blockAccount   `cmd:"" help:"Block an account: it can neither send nor receive."`
	Unblock unblockAccount `cmd:"" help:"Let a blocked account send and receive again."`
	Show    showAccount    `cmd:"" help:"Show an account's balances, limits and status, and its last entries and changes."`
}

// accountFlags are common to the commands that change one account.
type accountFlags struct {
	operatorFlags
	dataFlags
	Account string `arg:"" help:"The account's id."`
}

func (f accountFlags) check() error {
	if payment.IsHouse(f.Account) {
		return fmt.Errorf("account: %s is the house's own: pgw liquidity sets what the house has to exchange", f.Account)
	}
	return payment.CheckID("account", f.Account, payment.MaxAccountID)
}

// eventFlags are common to the commands whose event an operator may repeat.
type eventFlags struct {
	Currency string `default:"IDR" help:"The currency: its ISO 4217 code."`
	ID       string `name:"id" help:"The event's id, new by default. An id counts once: repeat a command whose result is unknown with the id that its error names."`
}

func (f eventFlags) check() error {
	if f.ID == "" {
		return nil
	}
	return payment.CheckID("id", f.ID, payment.MaxKey)
}

// accountChange is the result of a change.
type accountChange struct {
	Account string `json:"account"`
	Change  string `json:"change"`
	EventID string `json:"event_id"`
	Applied bool   `json:"applied"` // false: see later
	later   string
}

func (c accountChange) text(to io.Writer) error {
	result := "account " + c.Account + " is " + c.Change
	if !c.Applied {
		result = c.later
	}
	_, err := fmt.Fprintf(to, "%s (event %s)\n", result, c.EventID)
	return err
}

type openAccount struct {
	accountFlags
	eventFlags
	changeFlags
	Owner      string `required:"" help:"The owner's name."`
	DailyLimit int64  `name:"daily-limit-idr" help:"The most rupiah that the account may send in one UTC day; 0: no limit."`
	Blocked    bool   `help:"The account can neither send nor receive. Without this flag an account that was blocked is unblocked."`
	Replace    bool   `help:"Replace the profile of an account that is open already."`
}

func (c openAccount) Run(ctx context.Context) error {
	in, err := c.request(uuid.NewString())
	if err != nil {
		return err
	}
	if !c.Replace && c.ID == "" { // an id is a repetition of a command whose result is unknown
		if err := c.checkNew(ctx); err != nil {
			return err
		}
	}
	done := accountChange{Account: c.Account, Change: "open", later: "the account's profile is set as soon as Kafka delivers it"}
	err = c.call(ctx, "db", func(ctx context.Context, db grpc.ClientConnInterface) error {
		got, err := dbv1.NewAdminClient(db).OpenAccount(ctx, in)
		done.EventID, done.Applied = got.GetEventId(), got.GetApplied()
		return err
	})
	if err != nil {
		return orRepeat(err, in.EventId)
	}
	return c.print(done, done.text)
}

// checkNew returns an error if the account is open already.
func (c openAccount) checkNew(ctx context.Context) error {
	owner, found := "", false
	err := c.call(ctx, "db", func(ctx context.Context, db grpc.ClientConnInterface) error {
		got, err := dbv1.NewAdminClient(db).DescribeAccount(ctx, &dbv1.DescribeAccountRequest{AccountId: c.Account, Limit: 1})
		if status.Code(err) == codes.NotFound {
			return nil
		}
		owner, found = got.GetOwner(), err == nil
		return err
	})
	if err == nil && found {
		err = fmt.Errorf("account: %s is open already, and its owner is %q: --replace gives it another profile", c.Account, owner)
	}
	return err
}

// request makes the call. newID is the event's id if the operator gave none.
func (c openAccount) request(newID string) (*dbv1.OpenAccountRequest, error) {
	if err := cmp.Or(c.accountFlags.check(), c.eventFlags.check(), payment.CheckText("owner", c.Owner, payment.MaxOwner), c.changeFlags.check()); err != nil {
		return nil, err
	}
	currency, err := money.ParseCurrency(c.Currency)
	if err != nil {
		return nil, fmt.Errorf("currency: %w", err)
	}
	if c.DailyLimit < 0 || c.DailyLimit > money.MaxMinor {
		return nil, fmt.Errorf("--daily-limit-idr must be between 0 and %d", int64(money.MaxMinor))
	}
	status := payment.Active
	if c.Blocked {
		status = payment.Blocked
	}
	return &dbv1.OpenAccountRequest{
		AccountId: c.Account, Owner: c.Owner, Currency: currency.String(), DailyLimitIdr: c.DailyLimit, Status: string(status),
		EventId: cmp.Or(c.ID, newID), By: c.who(), Note: c.Note,
	}, nil
}

type fundAccount struct {
	accountFlags
	eventFlags
	Amount string `arg:"" help:"The amount in major units, such as 1000.50."`
	changeFlags
}

func (c fundAccount) Run(ctx context.Context) error {
	in, err := c.request(uuid.NewString())
	if err != nil {
		return err
	}
	done := accountChange{Account: c.Account, Change: "funded", later: "this funding has been counted before, or is counted as soon as Kafka delivers it"}
	err = c.call(ctx, "db", func(ctx context.Context, db grpc.ClientConnInterface) error {
		got, err := dbv1.NewAdminClient(db).FundAccount(ctx, in)
		done.EventID, done.Applied = got.GetEventId(), got.GetApplied()
		return err
	})
	if err != nil {
		return orRepeat(err, in.EventId)
	}
	return c.print(done, done.text)
}

// request makes the call. newID is the event's id if the operator gave none.
func (c fundAccount) request(newID string) (*dbv1.FundAccountRequest, error) {
	if err := cmp.Or(c.accountFlags.check(), c.eventFlags.check(), c.changeFlags.check()); err != nil {
		return nil, err
	}
	currency, err := money.ParseCurrency(c.Currency)
	if err != nil {
		return nil, fmt.Errorf("currency: %w", err)
	}
	amount, err := money.ParseAmount(c.Amount, currency)
	if err != nil {
		return nil, fmt.Errorf("amount: %w", err)
	}
	if amount.Minor <= 0 {
		return nil, fmt.Errorf("amount: %s; must be more than zero", amount)
	}
	return &dbv1.FundAccountRequest{
		AccountId: c.Account, Amount: &commonv1.Amount{Minor: amount.Minor, Currency: currency.String()}, EventId: cmp.Or(c.ID, newID), By: c.who(), Note: c.Note,
	}, nil
}

// statusFlags are those of block and unblock.
type statusFlags struct {
	accountFlags
	changeFlags
}

type blockAccount struct{ statusFlags }

func (c blockAccount) Run(ctx context.Context) error { return c.set(ctx, payment.Blocked, "blocked") }

type unblockAccount struct{ statusFlags }

func (c unblockAccount) Run(ctx context.Context) error { return c.set(ctx, payment.Active, "active") }

func (f statusFlags) set(ctx context.Context, to payment.AccountStatus, change string) error {
	if err := cmp.Or(f.accountFlags.check(), f.changeFlags.check()); err != nil {
		return err
	}
	done := accountChange{Account: f.Account, Change: change, later: "the status is set as soon as Kafka delivers it, unless a newer event has set the profile"}
	return f.call(ctx, "db", func(ctx context.Context, db grpc.ClientConnInterface) error {
		got, err := dbv1.NewAdminClient(db).SetAccountStatus(ctx, &dbv1.SetAccountStatusRequest{
			AccountId: f.Account, Status: string(to), By: f.who(), Note: f.Note,
		})
		if err != nil {
			return err
		}
		done.EventID, done.Applied = got.EventId, got.Applied
		return f.print(done, done.text)
	})
}

type showAccount struct {
	operatorFlags
	dataFlags
	Account string `arg:"" help:"The account's id."`
	Limit   uint32 `default:"10" help:"The most entries and the most changes to show; at most 100."`
}

func (c showAccount) Run(ctx context.Context) error {
	return c.call(ctx, "db", func(ctx context.Context, db grpc.ClientConnInterface) error {
		got, err := dbv1.NewAdminClient(db).DescribeAccount(ctx, &dbv1.DescribeAccountRequest{AccountId: c.Account, Limit: c.Limit})
		if err != nil {
			return err
		}
		a, err := newAccountView(got)
		if err != nil {
			return err
		}
		return c.print(a, a.text)
	})
}

// accountView is an account as an operator sees it. Amounts are in major units.
type accountView struct {
	Account   string         `json:"account"`
	Owner     string         `json:"owner"`
	Currency  string         `json:"currency"`
	Status    string         `json:"status"`
	ProfileAt time.Time      `json:"profile_at,omitzero"`
	Balances  []balanceView  `json:"balances"`
	Entries   []accountEntry `json:"entries"`
	Changes   []changeView   `json:"changes"`
}

type balanceView struct {
	Currency   string `json:"currency"`
	Available  string `json:"available"`
	Held       string `json:"held"`
	SpentToday string `json:"spent_today"`
	DailyLimit string `json:"daily_limit,omitempty"` // absent: there is no limit
}

type accountEntry struct {
	At          time.Time `json:"at"`
	Currency    string    `json:"currency"`
	Kind        string    `json:"kind"`
	Amount      string    `json:"amount"` // negative: the account pays
	Balance     string    `json:"balance"`
	Transaction string    `json:"transaction_id"`
}

func newAccountView(got *dbv1.DescribeAccountResponse) (accountView, error) {
	a := accountView{
		Account: got.AccountId, Owner: got.Owner, Currency: got.Currency, Status: got.Status, ProfileAt: rpc.Time(got.ProfileAt),
		Balances: []balanceView{}, Entries: []accountEntry{}, Changes: newChangeViews(got.Changes),
	}
	for _, b := range got.Balances {
		currency, err := money.ParseCurrency(b.Currency)
		if err != nil {
			return a, err
		}
		major := func(minor int64) string { return money.Amount{Minor: minor, Currency: currency}.String() }
		view := balanceView{Currency: b.Currency, Available: major(b.AvailableMinor), Held: major(b.HeldMinor), SpentToday: major(b.SpentTodayMinor)}
		if b.DailyLimitMinor > 0 {
			view.DailyLimit = major(b.DailyLimitMinor)
		}
		a.Balances = append(a.Balances, view)
	}
	for _, e := range got.Entries {
		currency, err := money.ParseCurrency(e.Currency)
		if err != nil {
			return a, err
		}
		major := func(minor int64) string { return money.Amount{Minor: minor, Currency: currency}.String() }
		a.Entries = append(a.Entries, accountEntry{
			At: rpc.Time(e.Entry.GetBookedAt()), Currency: e.Currency, Kind: e.Entry.GetKind(), Amount: major(e.Entry.GetAmountMinor()),
			Balance: major(e.Entry.GetBalanceMinor()), Transaction: e.Entry.GetTransactionId(),
		})
	}
	return a, nil
}

func (a accountView) text(to io.Writer) error {
	fmt.Fprintf(to, "account %s: %s; owner %s; currency %s", a.Account, a.Status, a.Owner, a.Currency)
	if !a.ProfileAt.IsZero() {
		fmt.Fprintf(to, "; profile of %s", a.ProfileAt.Format(time.RFC3339))
	}
	fmt.Fprint(to, "\n\n")
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "currency\tavailable\theld\tspent today\tdaily limit\t")
	for _, b := range a.Balances {
		limit := b.DailyLimit
		if limit == "" {
			limit = "none"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t\n", b.Currency, b.Available, b.Held, b.SpentToday, limit)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(a.Entries) > 0 {
		fmt.Fprintln(to, "\nlast entries:")
		fmt.Fprintln(w, "at\tkind\tcurrency\tamount\tbalance\ttransaction\t")
		for _, e := range a.Entries {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", e.At.Format(time.RFC3339), e.Kind, e.Currency, e.Amount, e.Balance, e.Transaction)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if len(a.Changes) > 0 {
		fmt.Fprintln(to, "\nlast changes by operators:")
		if err := writeChanges(to, a.Changes); err != nil {
			return err
		}
	}
	if a.Status == string(payment.Blocked) && !slices.ContainsFunc(a.Changes, changeView.ofAccount) {
		_, err := fmt.Fprintln(to, "\nno operator has blocked it: an event on the topic of accounts that names nobody has set its profile")
		return err
	}
	return nil
}
