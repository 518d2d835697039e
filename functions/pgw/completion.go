package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/willabides/kongplete"
)

// completionCommand prints a script for a shell. On each tab the script runs pgw with the line in
// COMP_LINE, and pgw prints the candidates.
type completionCommand struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help implements kong.HelpProvider.
func (completionCommand) Help() string {
	return `To use it: in bash, source <(pgw completion bash); in zsh, after compinit, source <(pgw completion zsh); in fish, ` +
		`pgw completion fish | source. Put the line into the shell's startup file to have it in each new shell.`
}

// completionScripts run BINARY, whose path is quoted for the shell.
var completionScripts = map[string]string{
	"bash": "complete -o default -C BINARY pgw\n",
	"zsh":  "autoload -U +X bashcompinit && bashcompinit\ncomplete -o default -C BINARY pgw\n",
	"fish": `function __complete_pgw
    set -lx COMP_LINE (commandline -cp)
    test -z (commandline -ct)
    and set COMP_LINE "$COMP_LINE "
    BINARY
end
complete -c pgw -a "(__complete_pgw)"
`,
}

func (c completionCommand) Run(k *kong.Kong) error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	quoted := "'" + strings.ReplaceAll(binary, "'", `'\''`) + "'"
	if c.Shell != "fish" {
		// bash splits the command of complete -C once more.
		quoted = "'" + strings.ReplaceAll(quoted, "'", `'\''`) + "'"
	}
	_, err = fmt.Fprint(k.Stdout, strings.ReplaceAll(completionScripts[c.Shell], "BINARY", quoted))
	return err
}

// complete answers a shell that completes a command line. It ends the process if there is one.
func complete(parser *kong.Kong) {
	if os.Getenv("COMP_LINE") != "" {
		kongplete.Complete(parser)
	}
}
