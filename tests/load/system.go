package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
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
	"time"

	riskv1 "pgw/proto/gen/risk/v1"
	"pgw/shared/kafka"
	"pgw/shared/rpc"
	"pgw/tests/processes"
)

const (
	binary  = "bin/pgw"
	patient = 90 * time.Second
)

var eventKeys = "bench:" + base64.StdEncoding.EncodeToString([]byte("a secret that only benchmarks use"))

// system is a pgw that pgw load can find by the run.json in its data folder.
type system struct {
	m        *machine
	data     string
	programs func() map[string]int // the pids, by name: of pgw, or of each function and Kafka
	stop     func() error
	Gateway  string `json:"gateway_url"`
	Database string `json:"database_url"`
	Payments string `json:"payments_addr"`
	Risk     string `json:"risk_addr"`
}

// noChance removes the random refusals from the seeds' rules, because each payment must go the
// whole way.
func (s *system) noChance() error {
	conn, err := rpc.Dial(s.Risk)
	if err != nil {
		return err
	}
	defer conn.Close()
	none, least := uint32(0), int64(1000)
	_, err = riskv1.NewAdminClient(conn).SeedRules(s.m.ctx, &riskv1.SeedRulesRequest{MaxAmount: 10_000_000, MinAmountIdr: &least, RandomRejectPpm: &none})
	return err
}

// oneProcess starts pgw run on the machine's Postgres.
func (m *machine) oneProcess(scenario string) (*system, error) {
	database, err := m.database(scenario)
	if err != nil {
		return nil, err
	}
	s := &system{m: m, data: filepath.Join(m.dir, m.name("data"))}
	cmd := s.pgw("run", "--fresh", "--database-url", database)
	for _, name := range []string{"GATEWAY", "WORKER", "KAFKA", "WALLET", "RISK", "DB", "PAYMENTS", "WEBHOOKS", "FX"} {
		cmd.Env = append(cmd.Env, "PGW_"+name+"_PORT=0")
	}
	if m.profiles != "" {
		cmd.Env = append(cmd.Env, "PROFILE_DIR="+filepath.Join(m.profiles, scenario))
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.programs = func() map[string]int { return map[string]int{"pgw": cmd.Process.Pid} }
	s.stop = func() error {
		cmd.Process.Signal(syscall.SIGINT)
		return errors.Join(cmd.Wait(), os.RemoveAll(s.data))
	}
	for deadline := time.Now().Add(patient); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if text, err := os.ReadFile(filepath.Join(s.data, "run.json")); err == nil && json.Unmarshal(text, s) == nil {
			if err := s.noChance(); err != nil {
				return nil, errors.Join(err, s.stop())
			}
			return s, nil
		}
	}
	s.stop()
	return nil, fmt.Errorf("pgw run is not ready within %s", patient)
}

// separate is all functions as separate processes, with a schema, topics and seeds.
type separate struct {
	*system
	*processes.System
	cfg processes.Config
}

func (m *machine) separate(scenario string, partitions int32) (*separate, error) {
	if len(m.brokers) == 0 {
		return nil, errNoKafka
	}
	database, err := m.database(scenario)
	if err != nil {
		return nil, err
	}
	prefix := m.name(fmt.Sprintf("bench%d-%s", os.Getpid(), scenario)) + "."
	cfg := kafka.Config{
		Brokers: m.brokers, RequestTopic: prefix + "payments.request", ResultTopic: prefix + "payments.result",
		DeadLetterTopic: prefix + "payments.deadletter", ParkedTopic: prefix + "payments.parked", AccountsTopic: prefix + "ledger.accounts",
	}
	topics, err := processes.Topics(partitions)
	if err != nil {
		return nil, err
	}
	for i := range topics {
		topics[i].Name = prefix + topics[i].Name
	}
	if err := kafka.EnsureTopics(cfg, topics); err != nil {
		return nil, err
	}
	var env []string
	if m.profiles != "" {
		env = append(env, "PROFILE_DIR="+filepath.Join(m.profiles, scenario))
	}
	all := processes.Config{Binary: binary, Database: database, Kafka: cfg, GroupPrefix: prefix, EventKeys: eventKeys, Env: env, Log: os.Stderr}
	procs, err := processes.New(all)
	if err != nil {
		return nil, err
	}
	s := &separate{&system{m: m, data: filepath.Join(m.dir, m.name("data")), Gateway: "http://" + procs.Addr("gateway"), Database: database, Risk: procs.Addr("risk")}, procs, all}
	s.programs, s.stop = s.withKafka, procs.StopAll
	if err := s.start(cfg, prefix); err != nil {
		return nil, errors.Join(err, procs.StopAll())
	}
	return s, nil
}

func (s *separate) start(cfg kafka.Config, prefix string) error {
	// The gateway is ready only when there are rates and accounts.
	if err := s.StartAll(s.m.ctx, "gateway"); err != nil {
		return err
	}
	seed := s.pgw("seed", "apply")
	seed.Env = append(seed.Env, "KAFKA_BROKERS="+s.m.brokers[0], "KAFKA_ACCOUNTS_TOPIC="+cfg.AccountsTopic, "EVENT_KEYS="+eventKeys,
		"DB_ADDR="+s.Addr("db"), "FX_ADDR="+s.Addr("fx"), "RISK_ADDR="+s.Addr("risk"), "WALLET_ADDR="+s.Addr("wallet"))
	if err := seed.Run(); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	if err := s.noChance(); err != nil {
		return err
	}
	err := errors.New("nothing is delivered")
	for deadline := time.Now().Add(patient); err != nil && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		err = processes.Delivered(cfg, prefix)
	}
	if err != nil {
		return err
	}
	if _, err := s.Start(s.m.ctx, "gateway"); err != nil {
		return err
	}
	if err := os.MkdirAll(s.data, 0o755); err != nil {
		return err
	}
	text, err := json.Marshal(s.system)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.data, "run.json"), text, 0o644)
}

func (s *system) pgw(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.m.ctx, binary, args...)
	cmd.Env, cmd.Stderr = append(os.Environ(), "PGW_DATA_DIR="+s.data), os.Stderr
	return cmd
}

// addWebhook makes an endpoint that is told of all payments.
func (s *system) addWebhook(to string) error {
	ctx, cancel := context.WithTimeout(s.m.ctx, patient)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Gateway+"/api/webhooks", strings.NewReader(fmt.Sprintf(`{"url":%q}`, to)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusCreated {
		return errors.Join(err, fmt.Errorf("a webhook was not made: %s: %s", res.Status, body))
	}
	return nil
}

// spec describes a closed loop: each of the connections sends its next payment when it has its
// answer.
type spec struct{ payments, connections int }

// loaded is the result of a closed loop. Times are in milliseconds.
type loaded struct{ perSecond, p50, p95, p99 float64 }

var loadLine = regexp.MustCompile(`: ([\d.]+)/s; p50 ([\d.]+) ms, p95 ([\d.]+) ms, p99 ([\d.]+) ms`)

// load lets pgw load make payments, each with its own key, between accounts that are chosen evenly.
// It compares every answer with the ledger and adds the ledger up, or fails.
func (s *system) load(l spec) (loaded, error) {
	out, err := s.pgw("load", "--payments", strconv.Itoa(l.payments), "--connections", strconv.Itoa(l.connections),
		"--duplicates", "0", "--hot", "0", "--settle").Output()
	if err != nil {
		return loaded{}, fmt.Errorf("the run is not reported: %w: %s", err, out)
	}
	found := loadLine.FindSubmatch(out)
	if found == nil {
		return loaded{}, fmt.Errorf("pgw load did not say how fast it was: %s", out)
	}
	var numbers [4]float64
	for i := range numbers {
		if numbers[i], err = strconv.ParseFloat(string(found[i+1]), 64); err != nil {
			return loaded{}, err
		}
	}
	return loaded{numbers[0], numbers[1], numbers[2], numbers[3]}, nil
}
