// Command load measures the whole flow in one process, from HTTP to HTTP, beside pgbench's transfer of one
// transaction on the same Postgres, in the same run: before and after, since machines are noisy. It refuses
// to report a run whose ledger does not add up, or whose answers are not all the ledger's.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

// floorScript is one transaction that moves money between two accounts: what a ledger does at the least.
const floorScript = `\set a random(1, 50000)
\set b random(50001, 100000)
\set m random(1, 1000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance - :m WHERE aid = :a;
UPDATE pgbench_accounts SET abalance = abalance + :m WHERE aid = :b;
END;
`

// figure is one line of bench.json.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Floor float64 `json:"floor"` // pgbench's transfers a second, the mean of before and after
	Ratio float64 `json:"ratio"`
}

func main() {
	measure := bench
	if len(os.Args) == 2 && os.Args[1] == "overload" {
		measure = overload
	}
	if err := measure(); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// system is pgw in one process, on data and ports of its own.
type system struct {
	dir      string
	env      []string
	process  *exec.Cmd
	capacity float64 // payments a second
	Gateway  string  `json:"gateway_url"`
	Database string  `json:"database_url"`
}

func start() (*system, error) {
	dir, err := os.MkdirTemp("", "pgw-bench-")
	if err != nil {
		return nil, err
	}
	s := &system{dir: dir, env: append(os.Environ(), "PGW_DATA_DIR="+filepath.Join(dir, "data"))}
	for _, name := range []string{"GATEWAY", "WORKER", "KAFKA", "WALLET", "RISK", "DB", "PAYMENTS", "FX"} {
		s.env = append(s.env, "PGW_"+name+"_PORT=0")
	}
	s.process = s.pgw("run", "--fresh")
	if err := s.process.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(dir, "data", "run.json"))
		if err == nil {
			err = json.Unmarshal(text, s)
		}
		if err == nil {
			return s, nil
		}
	}
	s.stop()
	return nil, errors.New("pgw run is not ready within 90 s")
}

func (s *system) pgw(args ...string) *exec.Cmd {
	cmd := exec.Command("bin/pgw", args...)
	cmd.Env, cmd.Stderr = s.env, os.Stderr
	return cmd
}

func (s *system) stop() {
	s.process.Process.Signal(syscall.SIGINT)
	s.process.Wait()
	os.RemoveAll(s.dir)
}

func bench() error {
	payments := envOr("LOAD_PAYMENTS", "20000")
	seconds := envOr("LOAD_SECONDS", "8")
	pgbench, err := findPgbench()
	if err != nil {
		return err
	}
	s, err := start()
	if err != nil {
		return err
	}
	defer s.stop()
	pgw, dir, database := s.pgw, s.dir, s.Database
	floor := func() (float64, error) { return measureFloor(pgbench, database, dir, seconds) }

	before, err := floor()
	if err != nil {
		return err
	}
	// The first run warms up: connections, statements, the heap's size.
	if out, err := pgw("load", "--payments", "2000").Output(); err != nil {
		return fmt.Errorf("warm up: %w: %s", err, out)
	}
	out, err := pgw("load", "--payments", payments, "--settle").Output()
	os.Stdout.Write(out)
	if err != nil {
		return fmt.Errorf("the run is not reported: %w", err)
	}
	lone, err := pgw("load", "--payments", "200", "--connections", "1", "--duplicates", "0").Output()
	if err != nil {
		return fmt.Errorf("lone payments: %w: %s", err, lone)
	}
	after, err := floor()
	if err != nil {
		return err
	}
	return report(out, lone, before, after)
}

var (
	loadLine = regexp.MustCompile(`: ([\d.]+)/s; p50 ([\d.]+) ms, p95 [\d.]+ ms, p99 ([\d.]+) ms`)
	tpsLine  = regexp.MustCompile(`tps = ([\d.]+)`)
)

func report(load, lone []byte, before, after float64) error {
	many, one := loadLine.FindSubmatch(load), loadLine.FindSubmatch(lone)
	if many == nil || one == nil {
		return errors.New("pgw load did not say how fast it was")
	}
	number := func(text []byte) float64 { f, _ := strconv.ParseFloat(string(text), 64); return f }
	floor := (before + after) / 2
	figures := []figure{
		{"flow-one-process", number(many[1]), "payments/s", floor, number(many[1]) / floor},
		{"flow-one-process-p50", number(many[2]), "ms", floor, 0},
		{"flow-one-process-p99", number(many[3]), "ms", floor, 0},
		{"lone-p50", number(one[2]), "ms", floor, 0},
	}
	fmt.Printf("pgbench, one-transaction transfer, 32 clients, prepared: %.0f/s before, %.0f/s after\n", before, after)
	fmt.Printf("pgw, HTTP to HTTP, 64 connections, load generator on the same machine: %.0f/s = %.2f x pgbench; p50 %.1f ms, p99 %.1f ms\n",
		figures[0].Value, figures[0].Ratio, figures[1].Value, figures[2].Value)
	fmt.Printf("pgw, one payment at a time: p50 %.1f ms\n", figures[3].Value)
	return write("bench.json", figures)
}

func write(name string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll("tests/load/out", 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join("tests/load/out", name), append(text, '\n'), 0o644)
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func findPgbench() (string, error) {
	if path, err := exec.LookPath("pgbench"); err == nil {
		return path, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench")
	if len(found) == 0 {
		return "", errors.New("pgbench is missing: it comes with PostgreSQL's server package")
	}
	return found[len(found)-1], nil
}

// measureFloor runs the transfer in a schema of its own, away from the ledger's tables.
func measureFloor(pgbench, database, dir, seconds string) (float64, error) {
	u, err := url.Parse(database)
	if err != nil {
		return 0, err
	}
	u.Path = "/postgres"
	script := filepath.Join(dir, "transfer.sql")
	if err := os.WriteFile(script, []byte(floorScript), 0o644); err != nil {
		return 0, err
	}
	if out, err := exec.Command(pgbench, "-i", "-q", u.String()).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("pgbench -i: %w: %s", err, out)
	}
	out, err := exec.Command(pgbench, "-n", "-M", "prepared", "-c", "32", "-j", "2", "-T", seconds, "-f", script, u.String()).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	found := tpsLine.FindSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("pgbench did not say how fast it was: %s", bytes.TrimSpace(out))
	}
	return strconv.ParseFloat(string(found[1]), 64)
}
