package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/prometheus/common/version"
)

// build says what this binary was built from. What is not known is absent.
type build struct {
	Version  string `json:"version,omitempty"` // the name of a release
	Commit   string `json:"commit,omitempty"`
	Date     string `json:"date,omitempty"`     // of the commit
	Modified bool   `json:"modified,omitempty"` // there were changes that are not in the commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readBuild() build {
	b := build{Version: version.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Date = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (b build) String() string {
	text := "pgw " + b.Version
	if b.Version != "" {
		text += ", "
	}
	text += "commit " + cmp.Or(b.Commit, "unknown")
	if b.Modified {
		text += " with changes"
	}
	if b.Date != "" {
		text += ", " + b.Date
	}
	return text + ", " + b.Go + " " + b.Platform
}

type versionCommand struct{ dataFlags }

func (c versionCommand) Run() error {
	b := readBuild()
	return c.print(b, func(to io.Writer) error {
		_, err := fmt.Fprintln(to, b)
		return err
	})
}

// versionFlag prints the version and ends the process, like the flag --help.
type versionFlag bool

// BeforeReset runs before required arguments are missed. The parser wants the error.
func (versionFlag) BeforeReset(k *kong.Kong) error {
	_, err := fmt.Fprintln(k.Stdout, readBuild())
	k.Exit(0)
	return err
}

// helpCommand prints the help of a command.
type helpCommand struct {
	Command []string `arg:"" optional:"" help:"The command, such as account open."`
}

func (c helpCommand) Run(k *kong.Kong) error {
	if path, err := kong.Trace(k, c.Command); err != nil || path.Error != nil && len(commandPath(path)) < len(c.Command) {
		return usageError{error: fmt.Errorf("there is no command %s", strings.Join(c.Command, " "))}
	}
	_, err := k.Parse(append(c.Command, "--help")) // which ends the process
	return asUsage(err)
}
