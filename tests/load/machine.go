package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded"
	"pgw/shared/function"
	"pgw/shared/ledger"
)

// machine is shared by all scenarios of a run. Above all it is one Postgres, for pgbench and for
// pgw.
type machine struct {
	ctx      context.Context
	dir      string
	postgres *embedded.Postgres
	pgbench  string
	brokers  []string // of a real Kafka; empty without one
	profiles string   // folder of the profiles; empty: keep none
	prepared bool     // pgbench's tables exist
	given    int      // number of names that were used
	made     []string // databases made since the last rest
}

// serverSettings are the settings that a ledger's Postgres would have. The others are the defaults:
// fsync, full_page_writes and synchronous_commit are on.
var serverSettings = map[string]string{
	"shared_buffers": "2GB", "min_wal_size": "4GB", "max_wal_size": "8GB", "checkpoint_timeout": "15min", "max_connections": "200",
}

// walSegments of 16 MiB are made before anything is measured. A server that has run for a while
// reuses its old segments. A new server first fills each segment with zeros, and every commit waits
// for that.
const walSegments = 200

func newMachine(ctx context.Context) (*machine, error) {
	function.CollectLess() // as the functions do, because db runs in this process
	m := &machine{ctx: ctx}
	if given := os.Getenv("PGW_TEST_KAFKA_BROKERS"); given != "" {
		m.brokers = strings.Split(given, ",")
	}
	var err error
	if m.pgbench, err = findPgbench(); err != nil {
		return nil, err
	}
	if m.dir, err = os.MkdirTemp("", "pgw-bench-"); err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	m.postgres, err = embedded.StartPostgres(ctx, embedded.PostgresConfig{Dir: m.postgresDir(), Settings: serverSettings, Log: log})
	if err != nil {
		os.RemoveAll(m.dir)
		return nil, err
	}
	if err := m.age(); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// age gives the server the WAL files of a server that has run for a while.
func (m *machine) age() error {
	conn, err := pgx.Connect(m.ctx, m.postgres.URL())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(m.ctx))
	for range walSegments {
		if _, err := conn.Exec(m.ctx, `SELECT pg_logical_emit_message(false, 'age', ''); SELECT pg_switch_wal()`); err != nil {
			return fmt.Errorf("age the server: %w", err)
		}
	}
	_, err = conn.Exec(m.ctx, `CHECKPOINT`)
	return err
}

// rest ends the effects of earlier scenarios. It drops their databases, so that no vacuum runs on
// them, and makes a checkpoint: then dirty pages are written, and WAL files are free for use.
func (m *machine) rest() error {
	var statements []string
	for _, name := range m.made {
		statements = append(statements, "DROP DATABASE "+name+" WITH (FORCE)")
	}
	m.made = nil
	return m.exec(m.postgres.URL(), append(statements, `CHECKPOINT`)...)
}

func (m *machine) postgresDir() string { return filepath.Join(m.dir, "postgres") }

func (m *machine) close() {
	m.postgres.Stop()
	embedded.RemovePostgres(m.postgresDir())
	os.RemoveAll(m.dir)
}

// name returns a new name for each thing of a run.
func (m *machine) name(kind string) string {
	m.given++
	return fmt.Sprintf("%s%d", strings.ReplaceAll(kind, "-", "_"), m.given)
}

func (m *machine) databaseURL(name string) (string, error) {
	u, err := url.Parse(m.postgres.URL())
	if err != nil {
		return "", err
	}
	u.Path = "/" + name
	return u.String(), nil
}

// database makes a database with the ledger's schema.
func (m *machine) database(kind string) (string, error) {
	name := m.name(kind)
	if err := m.exec(m.postgres.URL(), "CREATE DATABASE "+name); err != nil {
		return "", err
	}
	m.made = append(m.made, name)
	target, err := m.databaseURL(name)
	if err != nil {
		return "", err
	}
	return target, ledger.Migrate(m.ctx, target)
}

func (m *machine) exec(database string, statements ...string) error {
	conn, err := pgx.Connect(m.ctx, database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(m.ctx))
	for _, sql := range statements {
		if _, err := conn.Exec(m.ctx, sql); err != nil {
			return fmt.Errorf("%.60s: %w", sql, err)
		}
	}
	return nil
}

// settled is the longest time that abandoned payments may still be under way.
const settled = 2 * time.Minute

// sum waits until nothing is pending, and checks that the ledger adds up.
func (m *machine) sum(database string) error {
	conn, err := pgx.Connect(m.ctx, database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(m.ctx))
	for deadline := time.Now().Add(settled); ; time.Sleep(time.Second) {
		sum, err := ledger.ReadSum(m.ctx, conn)
		switch {
		case err != nil:
			return err
		case sum.Pending == 0:
			return sum.Err()
		case time.Now().After(deadline):
			return fmt.Errorf("%d reservations are still pending", sum.Pending)
		}
	}
}

// transferScript is one transaction that moves money between two accounts, the least work of a
// ledger.
const transferScript = `\set a random(1, 50000)
\set b random(50001, 100000)
\set m random(1, 1000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance - :m WHERE aid = :a;
UPDATE pgbench_accounts SET abalance = abalance + :m WHERE aid = :b;
END;
`

// floor returns pgbench's transfers per second: 32 clients, prepared statements.
func (m *machine) floor(during time.Duration) (float64, error) {
	perSecond, _, err := m.transfers("-c", "32", "-j", "2", "-T", seconds(during))
	return perSecond, err
}

// loneTransfers measures transfers one after another.
func (m *machine) loneTransfers(n int) (*hdrhistogram.Histogram, error) {
	_, h, err := m.transfers("-c", "1", "-t", strconv.Itoa(n))
	return h, err
}

// pacedTransfers starts transfers at a rate, at random times. It measures each latency from the
// planned start.
func (m *machine) pacedTransfers(perSecond float64, during time.Duration) (*hdrhistogram.Histogram, error) {
	_, h, err := m.transfers("-c", "32", "-j", "2", "-R", strconv.FormatFloat(perSecond, 'f', 0, 64), "-T", seconds(during))
	return h, err
}

func seconds(d time.Duration) string { return strconv.Itoa(max(1, int(d.Seconds()))) }

var tpsLine = regexp.MustCompile(`tps = ([\d.]+)`)

// transfers runs pgbench in a database of its own. The histogram is in microseconds.
func (m *machine) transfers(args ...string) (perSecond float64, latencies *hdrhistogram.Histogram, err error) {
	target, err := m.databaseURL("postgres")
	if err != nil {
		return 0, nil, err
	}
	script := filepath.Join(m.dir, "transfer.sql")
	if !m.prepared {
		if err := os.WriteFile(script, []byte(transferScript), 0o644); err != nil {
			return 0, nil, err
		}
		if out, err := exec.CommandContext(m.ctx, m.pgbench, "-i", "-q", target).CombinedOutput(); err != nil {
			return 0, nil, fmt.Errorf("pgbench -i: %w: %s", err, out)
		}
		m.prepared = true
	}
	logs := filepath.Join(m.dir, "transfers")
	args = append([]string{"-n", "-M", "prepared", "-f", script, "-l", "--log-prefix", logs}, append(args, target)...)
	out, err := exec.CommandContext(m.ctx, m.pgbench, args...).CombinedOutput()
	if err != nil {
		return 0, nil, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	found := tpsLine.FindSubmatch(out)
	if found == nil {
		return 0, nil, fmt.Errorf("pgbench did not say how fast it was: %s", bytes.TrimSpace(out))
	}
	if perSecond, err = strconv.ParseFloat(string(found[1]), 64); err != nil {
		return 0, nil, err
	}
	latencies, err = readTransferLogs(logs)
	return perSecond, latencies, err
}

// readTransferLogs reads pgbench's log of each transaction and deletes it. The third field is the
// microseconds since the planned start.
func readTransferLogs(prefix string) (*hdrhistogram.Histogram, error) {
	paths, err := filepath.Glob(prefix + ".*")
	if err != nil {
		return nil, err
	}
	h := newHistogram()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) < 3 {
				continue
			}
			micros, err := strconv.ParseInt(fields[2], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			h.RecordValue(micros)
		}
		f.Close()
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	if h.TotalCount() == 0 {
		return nil, errors.New("pgbench logged no transaction")
	}
	return h, nil
}

// newHistogram makes a histogram of microseconds, up to a minute.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, 60_000_000, 3) }

func millis(h *hdrhistogram.Histogram, percent float64) float64 {
	return float64(h.ValueAtQuantile(percent)) / 1000
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
