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
)

// pages are the documents whose commands a reader is told to run while make run runs, in the order in
// which they are read.
var pages = []string{"README.md", "README.id.md", "seeds/README.md", "functions/gateway/README.md", "functions/gateway/docs/afterwards.md",
	"functions/webhooks/README.md", "functions/pgw/README.md", "functions/pgw/SECURITY.md"}

// elsewhere are the beginnings of commands that TestEveryCommandOfThePages does not run, and what runs
// them.
var elsewhere = map[string]string{
	"git clone":     "the reader has the repository already",
	"make run":      "the test starts the same command, pgw run",
	"AUTH=required": "TestTheAPIIsForThoseWithAKey starts a gateway with keys",
}

var shellBlock = regexp.MustCompile("(?ms)^```sh\\n(.*?)^```$")

// Every command of the README and of the pages for readers succeeds, one after the other, with the
// pgw run that the README starts.
func TestEveryCommandOfThePages(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("not run: curl is not on PATH")
	}
	p := build(t).onGivenServer()
	cmd, out := p.run()
	defer p.stop(cmd, out)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	// The reader's folder has bin/pgw, the seeds, and what go run builds from.
	folder := t.TempDir()
	links := map[string]string{"bin/pgw": p.path}
	for _, name := range []string{"seeds", "shared", "go.mod", "go.sum"} {
		links[name] = filepath.Join(root, name)
	}
	for link, target := range links {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(folder, link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(folder, link)); err != nil {
			t.Fatal(err)
		}
	}
	ports := map[string]string{
		"18080": "GATEWAY", "19091": "WORKER", "19093": "WALLET", "19094": "RISK", "19095": "DB", "19096": "PAYMENTS", "19099": "WEBHOOKS", "19102": "FX",
	}
	address := regexp.MustCompile(`127\.0\.0\.1:(\d{5})`)
	for _, page := range pages {
		text, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			t.Fatal(err)
		}
		ran := 0
		for _, m := range shellBlock.FindAllStringSubmatch(string(text), -1) {
			script := "set -euo pipefail\n"
			for line := range strings.Lines(m[1]) {
				if !runsElsewhere(line) && !lacksNode(t, line) {
					script += address.ReplaceAllStringFunc(line, func(at string) string {
						return "127.0.0.1:" + p.ports[ports[at[len("127.0.0.1:"):]]]
					})
					ran++
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			run := exec.CommandContext(ctx, "bash", "-c", script)
			run.Dir, run.Env = folder, p.env
			got, err := run.CombinedOutput()
			cancel()
			if err != nil {
				t.Errorf("%s: %v\n%s\nprints\n%s", page, err, m[1], got)
			}
			if strings.Contains(string(got), "not found") {
				t.Errorf("%s: a program or a path is missing\n%s\nprints\n%s", page, m[1], got)
			}
		}
		if ran == 0 {
			t.Errorf("%s has no command", page)
		}
	}
}

// lacksNode reports whether a command needs Node, and there is none.
func lacksNode(t *testing.T, line string) bool {
	if !strings.HasPrefix(line, "node ") {
		return false
	}
	_, err := exec.LookPath("node")
	if err != nil {
		t.Logf("not run: node is not on PATH: %s", line)
	}
	return err != nil
}

func runsElsewhere(line string) bool {
	for begins := range elsewhere {
		if strings.HasPrefix(line, begins) {
			return true
		}
	}
	return false
}
