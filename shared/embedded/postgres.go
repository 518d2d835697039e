// Package embedded starts the Postgres and the Kafka that pgw uses when it is given none. They are
// a private Postgres server that uses the machine's own binaries, and a Kafka broker in the
// process.
package embedded

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	startTimeout = 60 * time.Second // includes recovery after a crash
	stopTimeout  = 20 * time.Second
	startTries   = 3 // a free port may be taken by another process a moment later
	minVersion   = 13
)

// PostgresConfig is the configuration of a private server.
type PostgresConfig struct {
	Dir      string            // the folder of data, password and log; made when missing
	Settings map[string]string // further server settings
	Log      *slog.Logger

	Repository string    // the Maven repository to download a PostgreSQL from, if none is installed; empty: Maven Central
	Progress   io.Writer // gets a line about such a download; nil: nothing does
	Abort      *Abort    // ends the server at once; nil: nothing does
}

// Abort ends a server without a shutdown, also while StartPostgres still waits for it. The next start
// of the server recovers. The zero Abort is ready for use.
type Abort struct {
	mu     sync.Mutex
	server *os.Process
	now    bool
}

// Now ends the server, and every server that is started later.
func (a *Abort) Now() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = true
	if a.server != nil {
		a.server.Signal(syscall.SIGQUIT)
	}
}

func (a *Abort) watch(server *os.Process) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server = server; a.now {
		server.Signal(syscall.SIGQUIT)
	}
}

// Postgres is a private server with its own data and one superuser. It listens on loopback only.
type Postgres struct {
	cmd    *exec.Cmd
	of     server
	url    string
	exited chan struct{}
	err    error // set before exited is closed
}

// StartPostgres starts the server of a folder, and first makes the folder if it does not exist. If
// an earlier process was killed and left its server running there, StartPostgres stops that server
// first.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	as, err := unprivileged()
	if err != nil {
		return nil, err
	}
	bin, err := findBinaries(ctx, as, cfg)
	if err != nil {
		return nil, err
	}
	dir, err := instanceDir(cfg.Dir, as)
	if err != nil {
		return nil, fmt.Errorf("postgres in %s: %w", cfg.Dir, err)
	}
	s := server{bin: bin, dir: dir, as: as, settings: cfg.Settings, abort: cfg.Abort}
	if err := s.init(ctx); err != nil {
		return nil, fmt.Errorf("postgres in %s: %w", dir, err)
	}
	if err := s.stopOrphan(cfg.Log); err != nil {
		return nil, fmt.Errorf("postgres in %s: %w", dir, err)
	}
	for try := 1; ; try++ {
		p, err := s.start(ctx)
		if err == nil {
			cfg.Log.Info("postgres started", "dir", dir, "binaries", bin)
			return p, nil
		}
		if try == startTries || ctx.Err() != nil {
			return nil, fmt.Errorf("postgres in %s: %w", dir, err)
		}
	}
}

// URL is the superuser's connection URL for the database pgw.
func (p *Postgres) URL() string { return p.url }

// Exited is closed when the server has ended, by Stop or on its own.
func (p *Postgres) Exited() <-chan struct{} { return p.exited }

// Stop closes the connections and ends the server. What was committed is on disk.
func (p *Postgres) Stop() error {
	select {
	case <-p.exited:
		return p.err
	default:
	}
	p.cmd.Process.Signal(syscall.SIGINT) // fast shutdown
	select {
	case <-p.exited:
		return nil
	case <-time.After(stopTimeout):
		p.cmd.Process.Signal(syscall.SIGQUIT) // immediate shutdown: the next start recovers
		<-p.exited
		return errors.New("postgres did not stop in time and was ended at once")
	}
}

// RemovePostgres deletes the instance in a folder. The instance must not be running.
func RemovePostgres(dir string) error {
	moved, err := os.Readlink(dir)
	if err == nil && moved == elsewhere(dir) {
		if err := os.RemoveAll(moved); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// findBinaries returns the folder of initdb and postgres.
func findBinaries(ctx context.Context, as *account, cfg PostgresConfig) (string, error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		if usable(filepath.Dir(path)) {
			return filepath.Dir(path), nil
		}
	}
	installed, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(installed, func(a, b string) int { return versionOf(b) - versionOf(a) })
	for _, dir := range installed {
		if usable(dir) {
			return dir, nil
		}
	}
	return download(ctx, as, cfg)
}

func versionOf(binDir string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(binDir)))
	return n
}

func usable(dir string) bool {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return false
	}
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return false
	}
	major, err := majorVersion(string(out))
	return err == nil && major >= minVersion
}

// majorVersion reads "postgres (PostgreSQL) 15.18 (Debian …)".
func majorVersion(text string) (int, error) {
	_, after, ok := strings.Cut(text, "(PostgreSQL) ")
	if !ok {
		return 0, fmt.Errorf("not a version: %q", text)
	}
	digits := after
	if i := strings.IndexFunc(after, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = after[:i]
	}
	return strconv.Atoi(digits)
}

// account is the account that runs the server. nil means the account of this process.
type account struct{ uid, gid int }

// unprivileged returns the account for the server when root starts it, because postgres refuses to
// run as root.
func unprivileged() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(u.Uid)
		gid, gidErr := strconv.Atoi(u.Gid)
		if uidErr == nil && gidErr == nil {
			return &account{uid, gid}, nil
		}
	}
	return nil, errors.New("postgres does not run as root, and there is no user postgres or nobody to run it as")
}

// instanceDir makes or finds the folder. If a parent folder is closed to the server's account, the
// instance is in /var/tmp, and dir is a link to it.
func instanceDir(dir string, as *account) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if target, err := os.Readlink(dir); err == nil {
		if target != elsewhere(dir) {
			return "", fmt.Errorf("is a link to %s, which pgw did not make", target)
		}
		return target, prepare(target, as)
	}
	if as == nil || reachable(filepath.Dir(dir)) {
		return dir, prepare(dir, as)
	}
	target := elsewhere(dir)
	if err := prepare(target, as); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	return target, os.Symlink(target, dir)
}

func elsewhere(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	sum := sha256.Sum256([]byte(dir))
	return "/var/tmp/pgw-postgres-" + hex.EncodeToString(sum[:6])
}

// reachable says whether every account may pass through all folders of a path. Missing folders
// count as open, because pgw makes them so.
func reachable(path string) bool {
	for ; path != "/"; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || info.Mode()&0o001 == 0 {
			return false
		}
	}
	return true
}

// prepare makes the folder. If it exists, prepare checks its owner, because everybody can write to
// /var/tmp.
func prepare(dir string, as *account) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if err == nil && as != nil {
		return os.Chown(dir, as.uid, as.gid)
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner := os.Geteuid()
	if as != nil {
		owner = as.uid
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(stat.Uid) != owner {
		return fmt.Errorf("%s exists and belongs to someone else", dir)
	}
	return nil
}

// server is one instance on disk.
type server struct {
	bin      string
	dir      string
	as       *account
	settings map[string]string
	abort    *Abort
}

func (s server) data() string         { return filepath.Join(s.dir, "data") }
func (s server) passwordFile() string { return filepath.Join(s.dir, "password") }
func (s server) logFile() string      { return filepath.Join(s.dir, "postgres.log") }

func (s server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	cmd.Dir = "/"
	// The server gets its own process group. A terminal's interrupt is for pgw, which finishes its
	// work and then stops the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.as != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.as.uid), Gid: uint32(s.as.gid)}
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	return cmd
}

// init makes the instance, once. It makes the data in a temporary folder and then renames it, so
// that a process that is killed meanwhile leaves no incomplete data.
func (s server) init(ctx context.Context) error {
	version, err := os.ReadFile(filepath.Join(s.data(), "PG_VERSION"))
	if err == nil {
		return s.checkVersion(strings.TrimSpace(string(version)))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	secret := make([]byte, 24)
	rand.Read(secret)
	if err := s.write(s.passwordFile(), hex.EncodeToString(secret)); err != nil {
		return err
	}
	half := s.data() + ".new"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	out, err := s.command(ctx, "initdb", "--pgdata", half, "--username", "pgw", "--pwfile", s.passwordFile(),
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--data-checksums").CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, lastLines(string(out)))
	}
	return os.Rename(half, s.data())
}

func (s server) checkVersion(data string) error {
	out, err := exec.Command(filepath.Join(s.bin, "postgres"), "--version").Output()
	if err != nil {
		return err
	}
	major, err := majorVersion(string(out))
	if err != nil {
		return err
	}
	if data != strconv.Itoa(major) {
		return fmt.Errorf("the data is of PostgreSQL %s, the server in %s is %d: install %s, or start over with pgw run --fresh", data, s.bin, major, data)
	}
	return nil
}

func (s server) write(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	if s.as == nil {
		return nil
	}
	return os.Chown(path, s.as.uid, s.as.gid)
}

// stopOrphan stops a server that a killed process left running on this data.
func (s server) stopOrphan(log *slog.Logger) error {
	text, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
	if err != nil {
		return nil
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 || !s.isOurs(pid) {
		return nil // a stale file: postgres handles it
	}
	log.Info("stopping the postgres that an earlier process left running", "pid", pid)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} {
		syscall.Kill(pid, signal)
		for until := time.Now().Add(stopTimeout / 2); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
			if syscall.Kill(pid, 0) != nil {
				return nil
			}
		}
	}
	return fmt.Errorf("the server that runs on it (pid %d) does not stop", pid)
}

// isOurs checks that the pid is a server of this data. The system may have given the pid to another
// process since.
func (s server) isOurs(pid int) bool {
	out, err := exec.Command("ps", "-o", "args=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		raw, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // a container may have no ps
		if readErr != nil {
			return false
		}
		out = raw
	}
	return strings.Contains(string(out), s.data())
}

func (s server) start(ctx context.Context) (*Postgres, error) {
	password, err := os.ReadFile(s.passwordFile())
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	if err := s.write(s.logFile(), ""); err != nil {
		return nil, err
	}
	logFile, err := os.OpenFile(s.logFile(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	args := []string{"-D", s.data(), "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-c", "unix_socket_directories="}
	for name, value := range s.settings {
		args = append(args, "-c", name+"="+value)
	}
	// The server is not bound to ctx. Stop ends it, after everything else has finished.
	cmd := s.command(context.WithoutCancel(ctx), "postgres", args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.abort.watch(cmd.Process)
	p := &Postgres{cmd: cmd, of: s, exited: make(chan struct{})}
	go func() { p.err = cmd.Wait(); close(p.exited) }()

	address := func(database string) string {
		return fmt.Sprintf("postgres://pgw:%s@127.0.0.1:%d/%s?sslmode=disable", password, port, database)
	}
	p.url = address("pgw")
	if err := p.awaitReady(ctx, address("postgres")); err != nil {
		p.Stop()
		log, _ := os.ReadFile(s.logFile())
		return nil, fmt.Errorf("%w; its log ends: %s", err, lastLines(string(log)))
	}
	return p, nil
}

func (p *Postgres) awaitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	poll := time.NewTicker(25 * time.Millisecond)
	defer poll.Stop()
	for {
		conn, err := pgx.Connect(ctx, url)
		if err == nil {
			defer conn.Close(ctx)
			return ensureDatabase(ctx, conn)
		}
		select {
		case <-p.exited:
			return fmt.Errorf("the server ended: %w", p.err)
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready: %w", err)
		case <-poll.C:
		}
	}
}

func ensureDatabase(ctx context.Context, conn *pgx.Conn) error {
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'pgw')`).Scan(&exists); err != nil || exists {
		return err
	}
	_, err := conn.Exec(ctx, `CREATE DATABASE pgw`)
	return err
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// lastLines returns the end of a log, enough to see what went wrong.
func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}
