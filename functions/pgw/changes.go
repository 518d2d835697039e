package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/ledger"
	"pgw/shared/rpc"
)

// callWithin is the time limit of an operator's call.
const callWithin = 30 * time.Second

// changeFlags are common to the commands that change something: who orders it, and why.
type changeFlags struct {
	By   string `help:"Who orders the change; is recorded. By default the user on this machine."`
	Note string `help:"Why, or where money comes from; is recorded."`
}

func (f changeFlags) who() string {
	if f.By != "" {
		return f.By
	}
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return cmp.Or(os.Getenv("USER"), "unknown")
}

func (f changeFlags) check() error { return ledger.Order{By: f.who(), Note: f.Note}.Validate() }

// call calls a function of the system by its name.
func (f operatorFlags) call(ctx context.Context, name string, do func(context.Context, grpc.ClientConnInterface) error) error {
	conns, done, err := f.connect(name)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	return said(name, do(ctx, conns[name]))
}

// said is the error of a call of a function, in the function's own words if it has answered.
func said(function string, err error) error {
	var answer interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &answer) {
		return err
	}
	e := &callError{err: err, message: answer.GRPCStatus().Message()}
	// gRPC puts the address and the reason last.
	if _, reason, failed := strings.Cut(e.message, "Error while dialing: "); failed && status.Code(e) == codes.Unavailable {
		e.message, e.unsent = function+" can't be reached: "+strings.TrimSuffix(reason, `"`), true
	}
	return e
}

// callError is an error that a function has answered, or gRPC in its place.
type callError struct {
	err     error
	message string
	unsent  bool // the call has certainly not reached the function
}

func (e *callError) Error() string { return e.message }
func (e *callError) Unwrap() error { return e.err }

// orRepeat adds to an error how to repeat an order, unless it is certain that the order had no effect. An
// event id counts once.
func orRepeat(err error, id string) error {
	var call *callError
	if !errors.As(err, &call) || call.unsent {
		return err
	}
	switch status.Code(err) {
	case codes.OK, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented:
		return err
	}
	return fmt.Errorf("%w; it is not known whether this took effect: repeat the command with --id %s", err, id)
}

type changesCommand struct {
	operatorFlags
	dataFlags
	Kind    string `enum:",account,funding,rate,rules,liquidity" default:"" help:"Only changes of this kind: account, funding, rate, rules or liquidity."`
	Subject string `help:"Only changes of this account, pair (such as USD/IDR), rule set or currency."`
	Limit   int    `default:"20" help:"The most changes to show; the newest come first."`
}

func (c changesCommand) Validate() error {
	if c.Limit < 1 || c.Limit > 10_000 {
		return errors.New("--limit must be between 1 and 10000")
	}
	return nil
}

func (c changesCommand) Run(ctx context.Context) error {
	return c.call(ctx, "db", func(ctx context.Context, db grpc.ClientConnInterface) error {
		all, token := []changeView{}, ""
		for len(all) < c.Limit {
			page, err := dbv1.NewAdminClient(db).ListChanges(ctx, &dbv1.ListChangesRequest{
				Kind: c.Kind, Subject: c.Subject, Limit: uint32(min(c.Limit-len(all), ledger.MaxChanges)), PageToken: token,
			})
			if err != nil {
				return err
			}
			all = append(all, newChangeViews(page.Changes)...)
			if token = page.NextPageToken; token == "" {
				break
			}
		}
		return c.print(all, func(to io.Writer) error { return writeChanges(to, all) })
	})
}

// changeView is a change that an operator has ordered.
type changeView struct {
	At      time.Time       `json:"at"`
	Kind    string          `json:"kind"`
	Subject string          `json:"subject"`
	Detail  json.RawMessage `json:"detail"`
	By      string          `json:"by"`
	Note    string          `json:"note,omitempty"`
}

// ofAccount reports whether the change is of an account itself, and not of its money.
func (c changeView) ofAccount() bool { return c.Kind == string(ledger.AccountChange) }

func newChangeViews(changes []*dbv1.Change) []changeView {
	all := []changeView{}
	for _, c := range changes {
		all = append(all, changeView{rpc.Time(c.At), c.Kind, c.Subject, json.RawMessage(c.Detail), c.By, c.Note})
	}
	return all
}

func writeChanges(to io.Writer, changes []changeView) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "at\tkind\tsubject\tby\tnote\tto")
	for _, c := range changes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.At.Format(time.RFC3339), c.Kind, c.Subject, c.By, c.Note, c.Detail)
	}
	return w.Flush()
}
