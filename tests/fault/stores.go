package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"

	"pgw/shared/embedded"
)

// diskSize is the size of Postgres's disk when it can be filled.
const diskSize = 1500 << 20

// broker is one node of Apache Kafka, reached through a wire of the test.
type broker struct {
	classpath  string
	properties string
	log        *os.File

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{}
}

var advertised = regexp.MustCompile(`(?m)^advertised\.listeners=PLAINTEXT://[^,]*`)

// takeOver ends the broker that was started for this command and prepares to run it again, with the
// wire's address as the one that clients get.
func takeOver(dir, wire string) (*broker, error) {
	given := os.Getenv("PGW_TEST_KAFKA_PROPERTIES")
	pid, err := strconv.Atoi(os.Getenv("PGW_TEST_KAFKA_PID"))
	if given == "" || err != nil {
		return nil, errors.New("run this with make chaos and without KAFKA_BROKERS: it needs a Kafka that may be killed")
	}
	text, err := os.ReadFile(given)
	if err != nil {
		return nil, err
	}
	b := &broker{classpath: os.Getenv("PGW_TEST_KAFKA_CLASSPATH"), properties: filepath.Join(dir, "server.properties")}
	if err := os.WriteFile(b.properties, advertised.ReplaceAll(text, []byte("advertised.listeners=PLAINTEXT://"+wire)), 0o600); err != nil {
		return nil, err
	}
	if b.log, err = os.Create(filepath.Join(dir, "kafka.log")); err != nil {
		return nil, err
	}
	syscall.Kill(pid, syscall.SIGTERM)
	for deadline := time.Now().Add(30 * time.Second); syscall.Kill(pid, 0) == nil && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); strings.Contains(string(state), ") Z ") {
			break // it has ended; its parent will notice
		}
	}
	return b, nil
}

func (b *broker) launch() (<-chan struct{}, error) {
	cmd := exec.Command("java", "-Xmx1g", "-cp", b.classpath, "kafka.Kafka", b.properties)
	cmd.Stdout, cmd.Stderr = b.log, b.log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	gone := make(chan struct{})
	go func() { cmd.Wait(); close(gone) }()
	b.mu.Lock()
	b.cmd, b.ended = cmd, gone
	b.mu.Unlock()
	return gone, nil
}

// close ends the broker, and waits.
func (b *broker) close() {
	if b.signal(syscall.SIGTERM) != nil {
		return
	}
	select {
	case <-b.ended:
	case <-time.After(20 * time.Second):
		b.signal(syscall.SIGKILL)
		<-b.ended
	}
}

func (b *broker) signal(sig syscall.Signal) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd == nil {
		return errors.New("kafka does not run")
	}
	return b.cmd.Process.Signal(sig)
}

// server is Postgres. It is reached through a wire of the test, because it has another port after
// each start.
type server struct {
	dir  string
	wire *toxiproxy.Proxy
	log  *slog.Logger
	disk string // where its disk is mounted; empty when the disk cannot be filled

	mu      sync.Mutex
	current *embedded.Postgres
}

// newServer gives Postgres a small disk of its own where mounting is allowed.
func newServer(dir string, wire *toxiproxy.Proxy, log *slog.Logger) (*server, error) {
	s := &server{dir: filepath.Join(dir, "disk", "postgres"), wire: wire, log: log}
	disk := filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		return nil, err
	}
	if err := mount(disk, diskSize); err == nil {
		s.disk = disk
	} else {
		log.Warn("no disk can be mounted here, so none will be full", "error", err)
	}
	return s, nil
}

func (s *server) launch() (<-chan struct{}, error) {
	p, err := embedded.StartPostgres(context.Background(), embedded.PostgresConfig{
		Dir: s.dir, Settings: map[string]string{"max_connections": "100", "max_wal_size": "256MB", "min_wal_size": "64MB"}, Log: s.log,
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.current = p
	s.mu.Unlock()
	_, upstream, _ := strings.Cut(p.URL(), "@")
	upstream, _, _ = strings.Cut(upstream, "/")
	return p.Exited(), s.wire.Update(&toxiproxy.Proxy{Listen: s.wire.Listen, Upstream: upstream, Enabled: true})
}

// url is the clients' URL. It stays the same for every process.
func (s *server) url() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	head, tail, _ := strings.Cut(s.current.URL(), "@")
	_, tail, _ = strings.Cut(tail, "/")
	return head + "@" + s.wire.Listen + "/" + tail
}

// direct is the URL without the wire.
func (s *server) direct() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current.URL()
}

// pid is that of the server that runs or starts; 0 when there is none.
func (s *server) pid() int {
	dir, err := filepath.EvalSymlinks(s.dir)
	if err != nil {
		return 0
	}
	text, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, _ := strconv.Atoi(first)
	return pid
}

func (s *server) signal(sig syscall.Signal) error {
	pid := s.pid()
	if pid == 0 {
		return errors.New("postgres does not run")
	}
	return syscall.Kill(pid, sig)
}

// killInRecovery kills the server, and kills the next one while it recovers.
func (s *server) killInRecovery() error {
	first := s.pid()
	if err := s.signal(syscall.SIGKILL); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if next := s.pid(); next != 0 && next != first && syscall.Kill(next, 0) == nil {
			time.Sleep(40 * time.Millisecond)
			return syscall.Kill(next, syscall.SIGKILL)
		}
	}
	return errors.New("it did not come back within 10 s")
}

// fill uses all free space of the disk. undo frees it.
func (s *server) fill() (undo func(), err error) {
	ballast := filepath.Join(s.disk, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for size := len(block); size >= 4096; {
		if _, err := f.Write(block[:size]); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			return nil, err
		}
	}
	return func() { os.Remove(ballast) }, nil
}

func (s *server) close() error {
	s.mu.Lock()
	p := s.current
	s.mu.Unlock()
	var err error
	if p != nil {
		err = p.Stop()
	}
	if s.disk != "" {
		err = errors.Join(err, unmount(s.disk))
	}
	return err
}
