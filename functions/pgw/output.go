package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The exit codes of all commands. exitCodes describes them in the help.
const (
	exitFailed      = 1
	exitUsage       = 2 // also: a check could not be completed
	exitInterrupted = 130

	exitCodes = `Exit codes: 0: done. 1: it failed, or a check found something wrong. 2: the command line is wrong, or a check ` +
		`could not be completed. 130: interrupted; the error says what had been done.`
)

// dataFlags are the flags of a command whose output is data.
type dataFlags struct {
	JSON bool `name:"json" help:"Print JSON instead of text."`
}

// print writes data to standard output: as JSON, or as the text that a person reads.
func (f dataFlags) print(data any, text func(io.Writer) error) error {
	out := bufio.NewWriter(os.Stdout)
	write := text
	if f.JSON {
		write = func(to io.Writer) error { return writeJSON(to, data) }
	}
	return errors.Join(write(out), out.Flush())
}

func writeJSON(to io.Writer, data any) error {
	out := json.NewEncoder(to)
	out.SetEscapeHTML(false)
	out.SetIndent("", "  ")
	return out.Encode(data)
}

// usageError is an error in the command line.
type usageError struct {
	error
	command string // the command that it is about; empty: pgw itself
}

func (e usageError) Unwrap() error { return e.error }
func (usageError) ExitCode() int   { return exitUsage }

func (e usageError) Error() string {
	return fmt.Sprintf("%v (%s)", e.error, strings.TrimSpace("see pgw help "+e.command))
}

// asUsage makes the parser's error a usageError of the command that it belongs to.
func asUsage(err error) error {
	var wrong *kong.ParseError
	if !errors.As(err, &wrong) {
		return err
	}
	return usageError{err, strings.Join(commandPath(wrong.Context), " ")}
}

// commandPath has the names of the command that was parsed, without pgw itself.
func commandPath(k *kong.Context) (names []string) {
	for _, step := range k.Path {
		if step.Command != nil {
			names = append(names, step.Command.Name)
		}
	}
	return names
}

// interrupted is the error of a command that a signal ended.
type interrupted struct {
	after string // what it had done; empty: it is not known
}

func (interrupted) ExitCode() int { return exitInterrupted }

func (e interrupted) Error() string {
	return strings.TrimSpace("interrupted " + e.after)
}

// stopped reports whether an error means that a signal has ended ctx.
func stopped(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled)
}

// progressBar shows on standard error how much of total is done, if that is a terminal. total is -1 if
// it is not known.
func progressBar(total int64, unit string) *progressbar.ProgressBar {
	return progressbar.NewOptions64(total, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetVisibility(term.IsTerminal(int(os.Stderr.Fd()))),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString(unit),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
}

// report writes an error to standard error as one line, and returns the exit code.
func report(to io.Writer, err error) int {
	if err == nil {
		return 0
	}
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	fmt.Fprintln(to, "pgw:", strings.Join(lines, "; "))
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return exitFailed
}
