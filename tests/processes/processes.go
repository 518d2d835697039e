// Package processes runs pgw as a cluster does: every function runs in its own process, environment
// variables configure it, and the kafkasource function delivers events over HTTP in place of
// Knative's KafkaSource. Tests and benchmarks start, stop, kill and wake the processes one by one.
package processes

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"pgw/functions/pgw/table"
	commonv1 "pgw/proto/gen/common/v1"
	dbv1 "pgw/proto/gen/db/v1"
	fxv1 "pgw/proto/gen/fx/v1"
	riskv1 "pgw/proto/gen/risk/v1"
	walletv1 "pgw/proto/gen/wallet/v1"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/rpc"
)

// Functions are in the order of their start: a function comes before its callers. StandIn is not
// among them.
var Functions = func() (names []string) {
	for _, f := range slices.Backward(table.Functions) {
		if f.Name != StandIn {
			names = append(names, f.Name)
		}
	}
	return names
}()

// StandIn is the process that delivers events.
const StandIn = "kafkasource"

// All are all processes, in that order.
var All = append(slices.Clone(Functions), StandIn)

// patience is the time limit for steps that take milliseconds on an idle machine.
const patience = 60 * time.Second

// Config configures a system. Schema and topics must already exist.
type Config struct {
	Binary      string // the pgw command
	Database    string
	Kafka       kafka.Config
	GroupPrefix string
	EventKeys   string
	Env         []string          // further variables of all processes
	Fronts      map[string]string // host:port that other processes use for a function, instead of its own
	Log         io.Writer         // gets the output of the processes
	// Place gives the address of a process, and the command that starts a command there; nil: loopback.
	Place func(name string) (addr string, start []string)
}

// System is a set of processes.
type System struct {
	cfg   Config
	addrs map[string]string // host:port
	mu    sync.Mutex
	procs map[string]*exec.Cmd
	ended map[string]chan struct{}
}

// New chooses the addresses. It starts no process.
func New(cfg Config) (*System, error) {
	s := &System{cfg: cfg, addrs: map[string]string{}, procs: map[string]*exec.Cmd{}, ended: map[string]chan struct{}{}}
	if s.cfg.Fronts == nil {
		s.cfg.Fronts = map[string]string{}
	}
	for _, name := range All {
		if err := s.place(name); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// place chooses the address of a process.
func (s *System) place(name string) error {
	if s.cfg.Place != nil {
		s.addrs[name], _ = s.cfg.Place(name)
		return nil
	}
	port, err := FreePort()
	s.addrs[name] = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	return err
}

var (
	givenMu sync.Mutex
	given   = map[int]bool{}
)

// FreePort returns a port on which no process listens, and which this process has not returned
// before. It is below the range of ports that systems assign to outgoing connections and to
// listeners without a fixed port. So a process that is restarted finds its port still free.
func FreePort() (int, error) {
	givenMu.Lock()
	defer givenMu.Unlock()
	for range 1000 {
		port := 20_000 + rand.IntN(10_000)
		if given[port] {
			continue
		}
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			l.Close()
			given[port] = true
			return port, nil
		}
	}
	return 0, errors.New("no port is free")
}

// Use sets the pgw command of processes that are started later.
func (s *System) Use(binary string) { s.cfg.Binary = binary }

// Kafka returns the configuration of Kafka.
func (s *System) Kafka() kafka.Config { return s.cfg.Kafka }

// Addr returns the address on which a function itself listens.
func (s *System) Addr(name string) string { return s.addrs[name] }

// Front returns the address that other processes use for a function.
func (s *System) Front(name string) string {
	if front, ok := s.cfg.Fronts[name]; ok {
		return front
	}
	return s.Addr(name)
}

// SetFront changes Front, for processes that are started later.
func (s *System) SetFront(name, addr string) { s.cfg.Fronts[name] = addr }

func (s *System) env(name string) []string {
	url := func(name string) string { return "http://" + s.Front(name) }
	c := s.cfg.Kafka
	host, port, _ := net.SplitHostPort(s.Addr(name))
	env := append(os.Environ(),
		"HOST="+host, "PORT="+port, "LOG_LEVEL=warn", "LOG_FORMAT=text", "DRAIN_TIMEOUT=20s", "HTTP2="+string(function.GRPCOnly),
		"GOMAXPROCS=1", // as deployed
		"DATABASE_URL="+s.cfg.Database, "EVENT_KEYS="+s.cfg.EventKeys, "RISK_SECRET=for the tests alone",
		"WEBHOOK_SECRET_KEYS=test:"+base64.StdEncoding.EncodeToString(make([]byte, 32)), "WEBHOOK_ALLOW_HTTP=true", "WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8",
		"KAFKA_BROKERS="+strings.Join(c.Brokers, ","), "KAFKA_REQ_TOPIC="+c.RequestTopic, "KAFKA_RES_TOPIC="+c.ResultTopic,
		"KAFKA_DEADLETTER_TOPIC="+c.DeadLetterTopic, "KAFKA_PARKED_TOPIC="+c.ParkedTopic, "KAFKA_ACCOUNTS_TOPIC="+c.AccountsTopic,
		"KAFKA_GROUP_PREFIX="+s.cfg.GroupPrefix, "REPLICA_URL=http://"+s.Addr("gateway"),
		"WAKE_URLS="+url("worker")+"/healthz,"+url("payments")+"/healthz,"+url("db")+"/healthz",
		"SINKS="+table.Sinks(url))
	for _, callee := range Functions {
		env = append(env, table.Functions.Address(callee).Name+"="+s.Front(callee))
	}
	return append(env, s.cfg.Env...)
}

// Launch starts a function, StandIn or another serving command, and does not wait. The channel is
// closed when the process ends.
func (s *System) Launch(name string, args ...string) (ended <-chan struct{}, err error) {
	if s.addrs[name] == "" {
		if err := s.place(name); err != nil {
			return nil, err
		}
	}
	line := append([]string{s.cfg.Binary, name}, args...)
	if s.cfg.Place != nil {
		_, start := s.cfg.Place(name)
		line = append(slices.Clone(start), line...)
	}
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env(name), s.cfg.Log, s.cfg.Log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	gone := make(chan struct{})
	go func() { cmd.Wait(); close(gone) }()
	s.mu.Lock()
	s.procs[name], s.ended[name] = cmd, gone
	s.mu.Unlock()
	return gone, nil
}

// Start does the same as Launch, and waits until the process is ready. It returns the time that
// this took.
func (s *System) Start(ctx context.Context, name string, args ...string) (time.Duration, error) {
	begun := time.Now()
	ended, err := s.Launch(name, args...)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := s.ready(ctx, name)
		if err == nil {
			return time.Since(begun), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s is not ready: %w", name, err)
		case <-ended:
			return 0, fmt.Errorf("%s ended unexpectedly", name)
		case <-time.After(time.Millisecond):
		}
	}
}

func (s *System) ready(ctx context.Context, name string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addr(name)+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	return nil
}

// StartAll starts all functions except the named ones, and then StandIn.
func (s *System) StartAll(ctx context.Context, but ...string) error {
	for _, name := range All {
		if slices.Contains(but, name) {
			continue
		}
		if _, err := s.Start(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// StartSeeded starts all functions except the named ones, and StandIn, with this number of
// accounts. The gateway is started last, because it is ready only when there are rates and
// accounts.
func (s *System) StartSeeded(ctx context.Context, accounts int, but ...string) error {
	if err := s.StartAll(ctx, append([]string{"gateway"}, but...)...); err != nil {
		return err
	}
	if err := s.Seed(ctx, accounts); err != nil {
		return err
	}
	_, err := s.Start(ctx, "gateway")
	return err
}

// SeedExchange gives the first accounts balances in dollars, Singapore dollars and yen, and the house
// money to exchange them and rupiah. The rates have a spread.
func (s *System) SeedExchange(ctx context.Context, n int) error {
	const each, liquidity = 10_000_000, 1_000_000_000_000 // minor units
	conn, err := rpc.Dial(s.Addr("db"))
	if err != nil {
		return err
	}
	defer conn.Close()
	admin, accounts := dbv1.NewAdminClient(conn), &dbv1.SeedAccountsRequest{}
	currencies := []string{"USD", "SGD", "JPY"}
	for i := range n {
		a := &dbv1.Account{AccountId: Account(i), Owner: Account(i), Currency: "IDR", Status: "ACTIVE", BalanceIdr: 1e9}
		for _, c := range currencies {
			a.Balances = append(a.Balances, &commonv1.Amount{Minor: each, Currency: c})
		}
		accounts.Accounts = append(accounts.Accounts, a)
	}
	if _, err := admin.SeedAccounts(ctx, accounts); err != nil {
		return fmt.Errorf("seed balances: %w", err)
	}
	for _, c := range append(currencies, "IDR") {
		if _, err := admin.SetLiquidity(ctx, &dbv1.SetLiquidityRequest{Currency: c, AvailableMinor: liquidity}); err != nil {
			return fmt.Errorf("seed liquidity: %w", err)
		}
	}
	// fx knows the rates that it has put at once. It reads those of others once a second.
	fx, err := rpc.Dial(s.Addr("fx"))
	if err != nil {
		return err
	}
	defer fx.Close()
	got, err := fxv1.NewFxServiceClient(fx).UpdateRates(ctx, &fxv1.UpdateRatesRequest{Rates: []*fxv1.Rate{
		{BaseCurrency: "USD", QuoteCurrency: "IDR", RateDecimal: "15500", Bid: "15490", Ask: "15510"},
		{BaseCurrency: "USD", QuoteCurrency: "SGD", RateDecimal: "1.34", Bid: "1.339", Ask: "1.341"},
		{BaseCurrency: "SGD", QuoteCurrency: "IDR", RateDecimal: "11600", Bid: "11590", Ask: "11610"},
		{BaseCurrency: "JPY", QuoteCurrency: "IDR", RateDecimal: "105", Bid: "104.5", Ask: "105.5"},
	}})
	if err == nil && !got.Success {
		err = errors.New(got.Message)
	}
	if err != nil {
		return fmt.Errorf("seed rates: %w", err)
	}
	return nil
}

// Signal sends a process a signal.
func (s *System) Signal(name string, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cmd := s.procs[name]; cmd != nil {
		return cmd.Process.Signal(sig)
	}
	return fmt.Errorf("%s does not run", name)
}

// Kill ends a process at once, without a drain, and waits until it has ended.
func (s *System) Kill(name string) error {
	s.mu.Lock()
	cmd, ended := s.procs[name], s.ended[name]
	delete(s.procs, name)
	s.mu.Unlock()
	if cmd == nil {
		return fmt.Errorf("%s does not run", name)
	}
	err := cmd.Process.Kill()
	<-ended
	return err
}

// Stop drains a process and waits for its end. An exit code other than 0 is an error.
func (s *System) Stop(name string) error {
	s.mu.Lock()
	cmd, ended := s.procs[name], s.ended[name]
	delete(s.procs, name)
	s.mu.Unlock()
	if cmd == nil {
		return nil
	}
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(patience):
		cmd.Process.Kill()
		<-ended
		return fmt.Errorf("%s did not end within %s", name, patience)
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with %s", name, cmd.ProcessState)
	}
	return nil
}

// StopAll stops the running processes, in the order in which functions drain.
func (s *System) StopAll() error {
	var errs []error
	for _, f := range table.Functions {
		errs = append(errs, s.Stop(f.Name))
	}
	return errors.Join(errs...)
}

// Pids returns the pids of the running processes by name.
func (s *System) Pids() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	pids := map[string]int{}
	for name, cmd := range s.procs {
		pids[name] = cmd.Process.Pid
	}
	return pids
}

// Resident returns a process's resident memory in bytes. It works only on Linux.
func (s *System) Resident(name string) (int64, error) {
	s.mu.Lock()
	cmd := s.procs[name]
	s.mu.Unlock()
	if cmd == nil {
		return 0, fmt.Errorf("%s does not run", name)
	}
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "statm"))
	if err != nil {
		return 0, err
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		return 0, err
	}
	return pages * int64(os.Getpagesize()), nil
}

// Account returns the name of the i-th account that Seed opens.
func Account(i int) string { return fmt.Sprintf("A%d", i) }

// Seed opens n accounts with a thousand million rupiah each. It sets the dollar's rate, and rules
// without random refusals. It uses the admin RPCs of wallet, fx and risk.
func (s *System) Seed(ctx context.Context, n int) error {
	accounts := &walletv1.SeedAccountsRequest{}
	for i := range n {
		accounts.Accounts = append(accounts.Accounts, &walletv1.AccountSeed{AccountId: Account(i), Owner: Account(i), Currency: "IDR", Balance: 1e9})
	}
	none, least := uint32(0), int64(1000)
	for name, seed := range map[string]func(*grpc.ClientConn) error{
		"wallet": func(conn *grpc.ClientConn) error {
			_, err := walletv1.NewAdminClient(conn).SeedAccounts(ctx, accounts)
			return err
		},
		"fx": func(conn *grpc.ClientConn) error {
			_, err := fxv1.NewFxServiceClient(conn).UpdateRates(ctx, &fxv1.UpdateRatesRequest{Rates: []*fxv1.Rate{{BaseCurrency: "USD", QuoteCurrency: "IDR", Rate: 15500}}})
			return err
		},
		"risk": func(conn *grpc.ClientConn) error {
			_, err := riskv1.NewAdminClient(conn).SeedRules(ctx, &riskv1.SeedRulesRequest{MaxAmount: 10_000_000, MinAmountIdr: &least, RandomRejectPpm: &none})
			return err
		},
	} {
		conn, err := rpc.Dial(s.Addr(name))
		if err == nil {
			err = seed(conn)
			conn.Close()
		}
		if err != nil {
			return fmt.Errorf("seed %s: %w", name, err)
		}
	}
	return nil
}
