package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"pgw/shared/embedded/embeddedtest"
)

// asCommand makes this test binary behave as pgw.
const asCommand = "PGW_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Unsetenv(asCommand)
		main()
		return
	}
	embeddedtest.Main(m)
}

// command prepares a process of pgw with no settings from this process's environment.
func pgw(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), binary, args...)
	c.Dir = t.TempDir()
	c.Env = []string{asCommand + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + c.Dir, "TMPDIR=" + os.TempDir()}
	return c
}

// outcome runs a process to its end.
func outcome(t *testing.T, c *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// A wrong command line is told in one line, which says where to find help. Nothing is on standard
// output, where a program may read data.
func TestUsageErrors(t *testing.T) {
	for args, want := range map[string]string{
		"":                                   "see pgw help)",
		"bogus":                              "unexpected argument bogus (see pgw help)",
		"account":                            "(see pgw help account)",
		"account open":                       "--owner=STRING (see pgw help account open)",
		"account open A --owner x --bogus":   "unknown flag --bogus (see pgw help account open)",
		"load --payments x":                  "--payments: ",
		"load --payments 0":                  "--payments must be between 1 and 10000000",
		"db --bogus":                         "unknown flag --bogus (see pgw help db)",
		"help bogus":                         "there is no command bogus (see pgw help)",
		"help account bogus":                 "there is no command account bogus",
		"completion tcsh":                    "must be one of",
		"replay topic:a":                     "name the target of the events",
		"reconcile --every 1ms --data-dir x": "--every at least 1s",
	} {
		stdout, stderr, code := outcome(t, pgw(t, strings.Fields(args)...))
		if code != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "pgw: ") || !strings.Contains(stderr, want) {
			t.Errorf("pgw %s: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}

// Other errors are one line too, and have other exit codes.
func TestErrorsAreOneLine(t *testing.T) {
	for args, want := range map[string]int{
		"topics":        1,
		"fx":            1,
		"reconcile":     2,
		"trial-balance": 2,
		"ready x:x":     1,
	} {
		stdout, stderr, code := outcome(t, pgw(t, strings.Fields(args)...))
		if code != want || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "pgw: ") {
			t.Errorf("pgw %s: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
	var out bytes.Buffer
	if code := report(&out, errors.Join(errors.New("one"), unknown{errors.New("two\nthree")})); code != 2 || out.String() != "pgw: one; two; three\n" {
		t.Errorf("%d %q", code, out.String())
	}
}

func TestHelpAndVersion(t *testing.T) {
	for args, want := range map[string]string{
		"help":              "Exit codes: 0: done. 1: ",
		"--help":            "Commands:",
		"help account open": "Usage: pgw account open ",
		"help account":      "Usage: pgw account ",
		"help db":           "DATABASE_URL",
		"help help":         "Usage: pgw help ",
		"version":           "commit ",
		"--version":         "go1.",
	} {
		stdout, stderr, code := outcome(t, pgw(t, strings.Fields(args)...))
		if code != 0 || stderr != "" || !strings.Contains(stdout, want) {
			t.Errorf("pgw %s: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
	stdout, _, _ := outcome(t, pgw(t, "version", "--json"))
	var b build
	if err := json.Unmarshal([]byte(stdout), &b); err != nil || !strings.HasPrefix(b.Go, "go1.") || b.Platform == "" {
		t.Errorf("%q: %v", stdout, err)
	}
}
