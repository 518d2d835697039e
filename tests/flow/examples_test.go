package flow

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgw/functions/gateway/docs"
)

// exampleRun is one block of code of examples.md, and its output.
type exampleRun struct{ title, language, code, prints string }

var codeBlock = regexp.MustCompile("(?ms)^(## .*?)$|^```(\\w+)\\n(.*?)^```$")

func exampleRuns(t *testing.T) (runs []exampleRun) {
	t.Helper()
	var title string
	for _, m := range codeBlock.FindAllStringSubmatch(string(docs.Examples), -1) {
		switch {
		case m[1] != "":
			title = m[1][3:]
		case m[2] == "text":
			runs[len(runs)-1].prints = m[3]
		default:
			runs = append(runs, exampleRun{title: title, language: m[2], code: m[3]})
		}
	}
	return runs
}

// The examples of examples.md work unchanged, except for the addresses, with a system that has the
// seeds' accounts.
func TestExamples(t *testing.T) {
	s := start(t, options{})
	s.open(1_000_000_000, "ACC002")
	s.openWith("ACC001", amountOf(1_000_000_000, "IDR"), amountOf(1000_00, "USD"))
	s.exchanges()
	at := strings.NewReplacer("127.0.0.1:18080", s.Addr("gateway"), "127.0.0.1:19102", s.Addr("fx"), "127.0.0.1:19093", s.Addr("wallet"),
		"127.0.0.1:19094", s.Addr("risk"), "127.0.0.1:19095", s.Addr("db"), "127.0.0.1:19096", s.Addr("payments"))
	languages := map[string]bool{}
	for _, run := range exampleRuns(t) {
		languages[run.title] = true
		t.Run(run.title, func(t *testing.T) {
			if run.prints == "" {
				t.Fatalf("the example has no expected output:\n%s", run.code)
			}
			got := execute(t, run.language, at.Replace(run.code))
			pattern := regexp.QuoteMeta(run.prints)
			pattern = strings.ReplaceAll(pattern, "<uuid>", "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
			pattern = strings.ReplaceAll(pattern, "<text>", "[^\"]+")
			if !regexp.MustCompile("^" + pattern + "$").MatchString(got) {
				t.Errorf("it should print\n%s\nbut prints\n%s", run.prints, got)
			}
		})
	}
	for _, want := range []string{"curl", "Go", "JavaScript", "grpcurl"} {
		if !languages[want] {
			t.Errorf("there is no example of %s", want)
		}
	}
}

func execute(t *testing.T, language, code string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // go run builds first
	defer cancel()
	var cmd *exec.Cmd
	switch language {
	case "sh":
		cmd = exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", code)
	case "go":
		file := filepath.Join(t.TempDir(), "main.go")
		if err := os.WriteFile(file, []byte(code), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd = exec.CommandContext(ctx, "go", "run", file)
	case "js":
		if _, err := exec.LookPath("node"); err != nil {
			t.Skip("not run: node is not on PATH")
		}
		cmd = exec.CommandContext(ctx, "node", "--input-type=module", "-e", code)
	default:
		t.Fatalf("the test cannot run %q", language)
	}
	var errs strings.Builder
	cmd.Dir, cmd.Stderr = "../..", &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, out, errs.String())
	}
	return string(out)
}
