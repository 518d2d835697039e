package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// The candidates are pgw's own commands, flags and values.
func TestCompletionCandidates(t *testing.T) {
	for line, want := range map[string]string{
		"pgw acc":                        "account",
		"pgw account ":                   "fund",
		"pgw account open --dai":         "--daily-limit-idr",
		"pgw seed accounts --format ":    "cloudevents",
		"pgw completion f":               "fish",
		"pgw trial-balance --":           "--json",
		"pgw wor":                        "worker",
		"pgw account fund A 5 --currenc": "--currency",
	} {
		c := pgw(t)
		c.Env = append(c.Env, "COMP_LINE="+line, fmt.Sprint("COMP_POINT=", len(line)))
		stdout, stderr, code := outcome(t, c)
		found := false
		for _, candidate := range strings.Fields(stdout) {
			found = found || candidate == want
		}
		if code != 0 || stderr != "" || !found {
			t.Errorf("%q: exit code %d, candidates %q, stderr %q", line, code, stdout, stderr)
		}
	}
}

// Each shell that is there accepts its script. bash is on every machine that runs the tests.
func TestCompletionScripts(t *testing.T) {
	for shell, ask := range map[string]string{
		"bash": "complete -p pgw",
		"zsh":  "autoload -Uz compinit && compinit -u && %s && echo $_comps[pgw]",
		"fish": "complete -C 'pgw acc'",
	} {
		script, stderr, code := outcome(t, pgw(t, "completion", shell))
		if code != 0 || stderr != "" || !strings.Contains(script, "pgw") {
			t.Fatalf("%s: exit code %d, %q, %q", shell, code, script, stderr)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("%s is not here", shell)
			continue
		}
		if shell == "zsh" {
			ask = fmt.Sprintf(ask, strings.TrimSpace(script))
		} else {
			ask = script + ask
		}
		// The shell runs the binary that the script names, which is this test.
		c := pgw(t)
		c.Path, c.Args = path, []string{shell, "-c", ask}
		stdout, stderr, code := outcome(t, c)
		want := map[string]string{"bash": "-C ", "zsh": "_bash_complete", "fish": "account"}[shell]
		if code != 0 || stderr != "" || !strings.Contains(stdout, want) {
			t.Errorf("%s: exit code %d, %q, stderr %q", shell, code, stdout, stderr)
		}
		if shell == "bash" {
			c := exec.CommandContext(t.Context(), path, "-n")
			c.Stdin = strings.NewReader(script)
			if out, err := c.CombinedOutput(); err != nil {
				t.Errorf("%s, %v", out, err)
			}
		}
	}
}
