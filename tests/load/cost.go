package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// tick is the unit of the kernel's accounts of processor time.
const tick = 10 * time.Millisecond

// spent is processor time by program. It is empty where the system has no /proc.
type spent map[string]time.Duration

// withKafka returns the pids of the functions and of Kafka, by name.
func (s *separate) withKafka() map[string]int {
	programs := s.Pids()
	if kafka, err := strconv.Atoi(os.Getenv("PGW_TEST_KAFKA_PID")); err == nil {
		programs["kafka"] = kafka
	}
	return programs
}

// spentBy returns the processor time of programs by their pids, of Postgres for each of the programs
// that asks it and for itself, and of the load generator, which is this process.
func (b *bench) spentBy(programs map[string]int) (spent, error) {
	conn, err := pgx.Connect(b.m.ctx, b.m.postgres.URL())
	if err != nil {
		return nil, err
	}
	defer conn.Close(b.m.ctx)
	rows, err := conn.Query(b.m.ctx, `SELECT pid, application_name FROM pg_stat_activity WHERE backend_type = 'client backend'`)
	if err != nil {
		return nil, err
	}
	asks := map[int]string{} // by the pid of the server's process for a connection
	var backend int
	var application string
	if _, err := pgx.ForEachRow(rows, []any{&backend, &application}, func() error {
		asks[backend] = application
		return nil
	}); err != nil {
		return nil, err
	}
	own := int(conn.PgConn().PID())
	processes := map[int]processAccounts{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		if of, err := readAccounts(path); err == nil {
			processes[of.pid] = of
		}
	}
	if len(processes) == 0 {
		return spent{}, nil
	}
	postmaster := processes[own].parent
	all := spent{"postgres": processes[postmaster].own + processes[postmaster].ended, "generator": processes[os.Getpid()].own}
	for _, of := range processes {
		switch application := strings.TrimPrefix(asks[of.pid], "pgw-"); {
		case of.parent != postmaster:
		case application == "" || of.pid == own:
			all["postgres"] += of.own
		default:
			all["postgres for "+application] += of.own
		}
	}
	for program, pid := range programs {
		all[program] = processes[pid].own
	}
	return all, nil
}

// processAccounts is what the kernel says of a process.
type processAccounts struct {
	pid, parent int
	own, ended  time.Duration // processor time of the process, and of its children that have ended
}

// readAccounts reads a file /proc/PID/stat.
func readAccounts(path string) (a processAccounts, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return a, err
	}
	// The second field is the program's name in parentheses, which may have spaces.
	number, rest, _ := strings.Cut(string(text), " ")
	fields := strings.Fields(rest[strings.LastIndex(rest, ")")+1:])
	const parent, own, ended, ofEach = 1, 11, 13, 2 // the places after the name; user and system time follow each other
	if len(fields) < ended+ofEach {
		return a, fmt.Errorf("%s has %d fields", path, len(fields))
	}
	if a.pid, err = strconv.Atoi(number); err != nil {
		return a, err
	}
	if a.parent, err = strconv.Atoi(fields[parent]); err != nil {
		return a, err
	}
	sum := func(from int) (d time.Duration) {
		for _, field := range fields[from : from+ofEach] {
			n, _ := strconv.ParseInt(field, 10, 64)
			d += time.Duration(n) * tick
		}
		return d
	}
	a.own, a.ended = sum(own), sum(ended)
	return a, nil
}

// each returns the microseconds of processor time of each of n payments, by program, since before.
func (s spent) each(before spent, n int) map[string]float64 {
	cost := map[string]float64{}
	for program, now := range s {
		cost[program] = round(float64((now - before[program]).Microseconds()) / float64(n))
	}
	return cost
}

// costOf returns what the n payments that run makes cost each program.
func (b *bench) costOf(programs map[string]int, run func() (n int, err error)) (map[string]float64, error) {
	before, err := b.spentBy(programs)
	if err != nil {
		return nil, err
	}
	n, err := run()
	if err != nil {
		return nil, err
	}
	after, err := b.spentBy(programs)
	return after.each(before, n), err
}

func costText(cost map[string]float64) string {
	var parts []string
	served := 0.0
	for _, program := range slices.Sorted(maps.Keys(cost)) {
		parts = append(parts, fmt.Sprintf("%s %g", program, cost[program]))
		if program != "generator" {
			served += cost[program]
		}
	}
	return fmt.Sprintf("%s; %g without the generator", strings.Join(parts, ", "), round(served))
}
