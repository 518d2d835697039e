package flow

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/ledger"
	"pgw/shared/postgres"
	"pgw/tests/processes"
)

// program is the pgw binary, with its own data folder and ports.
type program struct {
	t    testing.TB
	path string
	dir  string
	env  []string
	// given is the ledger that pgw run uses. If it is empty, pgw run starts a Postgres of its own.
	given string
	port  int // the gateway's
	// by function, as text
	ports map[string]string
}

func build(t testing.TB) *program {
	t.Helper()
	p := &program{t: t, dir: t.TempDir(), ports: map[string]string{}}
	var err error
	if p.path, err = processes.Build(embeddedtest.Dir(t)); err != nil {
		t.Fatal(err)
	}
	p.env = append(os.Environ(), "PGW_DATA_DIR="+filepath.Join(p.dir, "data"))
	for _, name := range []string{"GATEWAY", "WORKER", "KAFKA", "WALLET", "RISK", "DB", "PAYMENTS", "WEBHOOKS", "FX"} {
		port := freePort(t)
		p.env = append(p.env, fmt.Sprintf("PGW_%s_PORT=%d", name, port))
		p.ports[name] = strconv.Itoa(port)
		if name == "GATEWAY" {
			p.port = port
		}
	}
	return p
}

// onGivenServer makes pgw run use a ledger of the server that PGW_TEST_DATABASE_URL names, if it
// names one.
func (p *program) onGivenServer() *program {
	p.t.Helper()
	if embeddedtest.Given() {
		p.given = migrated.Postgres(p.t)
	}
	return p
}

// needsOwnPostgres skips a test of what pgw run does with its own Postgres, which would say nothing of
// another server.
func needsOwnPostgres(t *testing.T) {
	t.Helper()
	if embeddedtest.Given() {
		t.Skip("PGW_TEST_DATABASE_URL names a server, and this test is of the Postgres that pgw run starts itself")
	}
}

func freePort(t testing.TB) int {
	t.Helper()
	port, err := processes.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func (p *program) command(args ...string) (*exec.Cmd, *processes.Output) {
	cmd := exec.Command(p.path, args...)
	cmd.Env = p.env
	out := &processes.Output{}
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

// run starts pgw run and waits until it reports its addresses.
func (p *program) run() (*exec.Cmd, *processes.Output) {
	p.t.Helper()
	args := []string{"run"}
	if p.given != "" {
		args = append(args, "--database-url="+p.given)
	}
	cmd, out := p.command(args...)
	os.Remove(p.runFile())
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Signal(syscall.SIGINT)
			cmd.Wait()
		}
	})
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		// The last line of its output. run.json exists before the first line.
		if strings.Contains(out.String(), "Ctrl-C drains and stops") {
			return cmd, out
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			cmd.Wait()
			p.t.Fatalf("pgw run is not ready: %s", out)
		}
	}
}

func (p *program) runFile() string { return filepath.Join(p.dir, "data", "run.json") }

func (p *program) database() string {
	p.t.Helper()
	var at struct {
		Database string `json:"database_url"`
	}
	text, err := os.ReadFile(p.runFile())
	if err == nil {
		err = json.Unmarshal(text, &at)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return at.Database
}

func (p *program) stop(cmd *exec.Cmd, out *processes.Output) {
	p.t.Helper()
	cmd.Process.Signal(syscall.SIGINT)
	if err := cmd.Wait(); err != nil {
		p.t.Errorf("pgw run ended with %v: %s", err, out)
	}
	if _, err := os.Stat(p.runFile()); err == nil {
		p.t.Error("run.json is left behind")
	}
}

// kill -9 during a load, and a new start: every answer matches the ledger, nothing stays pending,
// and the ledger adds up. The clients ask again with the same key, as clients should.
func TestKillInTheMiddle(t *testing.T) {
	t.Parallel()
	p := build(t).onGivenServer()
	cmd, _ := p.run()
	load, result := p.command("load", "--payments", "4000", "--connections", "32", "--settle")
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := postgres.Connect(t.Context(), p.database(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 800; time.Sleep(10 * time.Millisecond) {
		if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM reservations`).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	conn.Close(t.Context())
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	cmd, out := p.run()
	if err := load.Wait(); err != nil {
		t.Errorf("load: %v: %s", err, result)
	}
	if !strings.Contains(result.String(), "holds 0, ") || !strings.Contains(result.String(), "; 0 answers contradict it") {
		t.Errorf("load says: %s", result)
	}
	if conn, err = postgres.Connect(t.Context(), p.database(), nil); err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	sum, err := ledger.ReadSum(t.Context(), conn)
	if err == nil {
		err = sum.Err()
	}
	if err != nil || sum.Pending != 0 {
		t.Errorf("%+v, %v", sum, err)
	}
	p.stop(cmd, out)
}

func TestRunKeepsItsDataAndItsPlace(t *testing.T) {
	needsOwnPostgres(t)
	t.Parallel()
	p := build(t)
	admin := freePort(t)
	p.env = append(p.env, fmt.Sprintf("ADMIN_PORT=%d", admin))
	pay := func(key string) string {
		t.Helper()
		resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/api/payments", p.port), "application/json", strings.NewReader(body(key, "ACC001", "ACC002", "USD", 10)))
		if err != nil {
			t.Fatal(err)
		}
		return read(t, resp).outcome()
	}
	expect := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	cmd, out := p.run()
	if !strings.Contains(out.String(), fmt.Sprintf("curl -s http://127.0.0.1:%d/api/payments", p.port)) {
		t.Errorf("it does not say what to try: %s", out)
	}
	var accounts int
	conn, err := postgres.Connect(t.Context(), p.database(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM accounts WHERE NOT internal`).Scan(&accounts); err != nil || accounts < 1000 {
		t.Errorf("%d accounts, %v", accounts, err)
	}
	conn.Close(t.Context())
	expect(pay("test-001"), "200 SUCCESS committed")
	// With ADMIN_PORT, the gateway's metrics are only there.
	for port, want := range map[int]int{admin: http.StatusOK, p.port: http.StatusNotFound} {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("port %d: %s", port, resp.Status)
		}
	}

	second, text := p.command("run")
	if err := second.Run(); err == nil || !strings.Contains(text.String(), "another pgw run uses the data directory") {
		t.Errorf("a second copy: %v: %s", err, text)
	}
	elsewhere, text := p.command("run")
	elsewhere.Env = append(p.env, "PGW_DATA_DIR="+filepath.Join(p.dir, "other"))
	if err := elsewhere.Run(); err == nil || !strings.Contains(text.String(), "needs port") || !strings.Contains(text.String(), "PGW_PORT_OFFSET") {
		t.Errorf("a busy port: %v: %s", err, text)
	}
	p.stop(cmd, out)

	cmd, out = p.run()
	expect(pay("test-001"), "200 SUCCESS_REPLAY duplicate_idempo")
	p.stop(cmd, out)

	fresh, out := p.command("run", "--fresh")
	if err := fresh.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if strings.Contains(out.String(), "Ctrl-C drains and stops") || time.Now().After(deadline) {
			break
		}
	}
	expect(pay("test-001"), "200 SUCCESS committed")
	p.stop(fresh, out)
}

// A signal during the first start stops it, with one plain line. A second signal does not wait. No
// Postgres is left behind.
func TestSignalsDuringTheStart(t *testing.T) {
	needsOwnPostgres(t)
	if _, err := os.Stat("/proc/self/cmdline"); err != nil {
		t.Skip("there is no /proc to find processes in")
	}
	p := build(t)
	var postgres string // of the subtest
	begun := func() bool { _, err := os.Lstat(postgres); return err == nil }
	// started is true once the server of this start has written its pid.
	started := func() bool {
		_, err := os.Stat(filepath.Join(postgres, "data", "postmaster.pid"))
		return err == nil
	}
	for name, c := range map[string]struct {
		when    func() bool
		signals int
		line    string
	}{
		"before Postgres runs":     {begun, 1, "before pgw was ready"},
		"while Postgres starts":    {started, 1, "before pgw was ready"},
		"twice before it runs":     {begun, 2, "pgw: interrupted"},
		"twice as Postgres starts": {started, 2, "pgw: interrupted"},
	} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			postgres = filepath.Join(data, "postgres")
			cmd, out := p.command("run")
			cmd.Env = append(cmd.Env, "PGW_DATA_DIR="+data)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			exited := make(chan error, 1)
			go func() { exited <- cmd.Wait() }()
			for deadline := time.Now().Add(patience); !c.when(); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					cmd.Process.Kill()
					t.Fatalf("it does not start: %s", out)
				}
			}
			for range c.signals {
				cmd.Process.Signal(syscall.SIGTERM)
				time.Sleep(10 * time.Millisecond) // two signals at the same moment are one
			}
			select {
			case <-exited:
			case <-time.After(patience):
				cmd.Process.Kill()
				t.Fatalf("it does not stop: %s", out)
			}
			if got := cmd.ProcessState.ExitCode(); got != 130 {
				t.Errorf("exit code %d", got)
			}
			if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, c.line) {
				t.Errorf("it says %q", text)
			}
			for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
				left := serversOf(t, postgres)
				if len(left) == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("left behind: %q", left)
				}
			}
		})
	}
}

// serversOf lists the processes that run on a folder.
func serversOf(t *testing.T, dir string) (found []string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil
	}
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), dir) {
			found = append(found, strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	return found
}

// expectMetrics runs reconcile repeatedly, and waits until its metrics have the lines.
func (p *program) expectMetrics(lines ...string) {
	p.t.Helper()
	port := freePort(p.t)
	cmd, out := p.command("reconcile", "--every", "1h")
	cmd.Env = append(p.env, "HOST=127.0.0.1", fmt.Sprintf("PORT=%d", port), "LOG_FORMAT=text")
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			p.t.Errorf("reconcile --every ended with %v: %s", err, out)
		}
	}()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
		missing := "an answer"
		if err == nil {
			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			missing = ""
			for _, line := range lines {
				if !strings.Contains(string(text), line) {
					missing = line
				}
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("/metrics never had %s: %s", missing, out)
		}
	}
}

// The operators' commands find the system that runs here, do what the README says, and report the
// result by their exit code.
func TestOperatorsCommands(t *testing.T) {
	t.Parallel()
	p := build(t).onGivenServer()
	cmd, out := p.run()
	sample, err := filepath.Abs("../../seeds/payments.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	do := func(code int, want string, args ...string) string {
		t.Helper()
		command, text := p.command(args...)
		command.Run()
		if got := command.ProcessState.ExitCode(); got != code || !strings.Contains(text.String(), want) {
			t.Errorf("pgw %s: exit code %d, want %d with %q: %s", strings.Join(args, " "), got, code, want, text)
		}
		return text.String()
	}
	if got := do(0, "seed-1-0000020", "replay", sample, "--dry-run"); strings.Count(got, "pgw.payment.requested.v1") != 20 {
		t.Errorf("a dry run of 20 events: %s", got)
	}
	do(2, "name the target of the events", "replay", sample)
	do(0, "ready", "ready", "127.0.0.1:"+p.ports["WORKER"])
	// Delivered events are committed once a second.
	taken := regexp.MustCompile(`ledger\.accounts +[1-9]\d{3} +pgw-db +0\n`)
	eventually(t, "nothing is left to take", func() error {
		command, text := p.command("topics", "--lag")
		if err := command.Run(); err != nil || !taken.MatchString(text.String()) {
			return fmt.Errorf("%v: %s", err, text)
		}
		return nil
	})
	do(1, "connection refused", "ready", fmt.Sprint("127.0.0.1:", freePort(t)))
	worker := "http://127.0.0.1:" + p.ports["WORKER"] + "/"
	do(1, "20 403", "replay", sample, worker) // without signatures
	do(0, "20 delivered", "replay", sample, "topic:payments.request", "--sign")
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/api/payments/seed-1-0000020", p.port))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the sample events are not settled")
		}
	}
	do(0, "20 202", "replay", sample, worker, "--sign")
	do(0, "result_true", "reconcile", "--grace", "0s")
	do(0, "OUTSIDE", "trial-balance")
	do(0, `"sum": "0"`, "trial-balance", "--json")
	do(0, "LETTER", "deadletter", "list")
	p.expectMetrics(`pgw_reconcile_breaches{check="account"} 0`, `pgw_reconcile_runs_total{result="clean"} 1`)

	conn, err := postgres.Connect(t.Context(), p.database(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `UPDATE balances SET available = available + 1 WHERE account_id = 'ACC002' AND currency = 'IDR'`); err != nil {
		t.Fatal(err)
	}
	do(1, "account ACC002 has", "reconcile")
	p.expectMetrics(`pgw_reconcile_breaches{check="account"} 1`, `pgw_reconcile_breaches{check="conservation"} 1`, `pgw_reconcile_runs_total{result="breach"}`)
	do(1, `"account": "ACC002"`, "reconcile", "--json")
	do(1, "the balances in IDR sum to 1, not to zero", "trial-balance")
	do(1, `"sum": "1"`, "trial-balance", "--json")
	if _, err := conn.Exec(t.Context(), `UPDATE balances SET available = available - 1 WHERE account_id = 'ACC002' AND currency = 'IDR'`); err != nil {
		t.Fatal(err)
	}
	p.env = append(p.env, "DATABASE_URL=postgres://nobody@127.0.0.1:1/none", "KAFKA_BROKERS=127.0.0.1:1")
	do(2, "connect", "reconcile")
	do(2, "connect", "trial-balance")
	p.stop(cmd, out)
}
