package postgres_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"pgw/shared/embedded"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/postgres"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// patience is the limit for steps that take seconds on an idle machine.
const patience = 60 * time.Second

// All connections of a pool become silent, both idle and busy ones, and none is ever closed. The
// pool's users continue on new connections, although their own contexts have no end.
func TestASilentServerIsLeft(t *testing.T) {
	wire, url := embeddedtest.NewWireTo(t, embeddedtest.Postgres(t))
	pool, err := postgres.Open(postgres.Config{URL: url, Name: "test", MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ask := func(sql string) error {
		var one int
		return pool.QueryRow(context.Background(), sql).Scan(&one)
	}
	// All four connections are open. When the silence begins, two are idle and two wait for their
	// answers.
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := ask(`SELECT 1 FROM pg_sleep(0.2)`); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	asked := make(chan error, 2)
	for range 2 {
		go func() { asked <- ask(`SELECT 1 FROM pg_sleep(0.5)`) }()
	}
	for pool.Stat().AcquiredConns() < 2 {
		time.Sleep(time.Millisecond)
	}
	wire.Silence()
	for range 2 {
		select {
		case err := <-asked:
			if err == nil {
				t.Error("an answer came through a silent wire")
			}
		case <-time.After(patience):
			t.Fatal("a statement waits for a silent server")
		}
	}
	again := make(chan error, 4)
	for range 4 {
		go func() {
			begun := time.Now()
			err := ask(`SELECT 1 FROM pg_sleep(0.2)`)
			for err != nil && time.Since(begun) < patience/2 { // on a busy machine a login may take too long
				err = ask(`SELECT 1 FROM pg_sleep(0.2)`)
			}
			again <- err
		}()
	}
	for range 4 {
		select {
		case err := <-again:
			if err != nil {
				t.Errorf("on a new connection: %v", err)
			}
		case <-time.After(patience):
			t.Fatal("no call uses a new connection")
		}
	}
}

// A server becomes silent for ever in the middle of an answer.
func TestAServerThatIsSilentInTheMiddleOfAnAnswer(t *testing.T) {
	t.Parallel()
	wire, url := embeddedtest.NewWireTo(t, embeddedtest.Postgres(t))
	pool, err := postgres.Open(postgres.Config{URL: url, Name: "test", MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	rows, err := pool.Query(context.Background(), `SELECT repeat('x', 1000) FROM generate_series(1, 100000)`)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; rows.Next(); n++ {
		if n == 1000 {
			wire.Silence()
		}
	}
	if rows.Err() == nil {
		t.Error("half an answer is taken for the whole")
	}
	if err := pool.Ping(t.Context()); err != nil {
		t.Errorf("on a new connection: %v", err)
	}
}

// The first server of a URL is frozen, as a virtual machine may be: it accepts connections and never answers,
// on old connections neither. Everybody who works with it goes on at the other server.
func TestAFrozenPrimaryIsLeft(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("pgw-test-frozen-%d", os.Getpid()))
	first, err := embedded.StartPostgres(t.Context(), embedded.PostgresConfig{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { first.Stop(); embedded.RemovePostgres(dir) })
	var hosts []string
	second := embeddedtest.Postgres(t)
	for _, server := range []string{first.URL(), second} {
		cfg, err := pgx.ParseConfig(server)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.Exec(t.Context(), `CREATE ROLE pgw_test_either LOGIN PASSWORD 'either'`); err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port))))
	}
	pool, err := postgres.Open(postgres.Config{
		URL: "postgres://pgw_test_either:either@" + strings.Join(hosts, ",") + "/postgres?sslmode=disable&target_session_attrs=primary", Name: "test", MaxConns: 4,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	// where says who has answered.
	where := func() (port string, err error) {
		err = pool.QueryRow(context.Background(), `SELECT current_setting('port') FROM pg_sleep(0.2)`).Scan(&port)
		return port, err
	}
	// On a busy machine a login may take too long, and then the other server is used.
	var all sync.WaitGroup
	begun := time.Now()
	for elsewhere := true; elsewhere; {
		pool.Reset()
		answered := make(chan string, 4)
		for range 4 {
			all.Go(func() {
				port, err := where()
				if err != nil && time.Since(begun) > patience {
					t.Error(err)
				}
				answered <- port
			})
		}
		all.Wait()
		elsewhere = false
		for range 4 {
			elsewhere = elsewhere || !strings.HasSuffix(hosts[0], ":"+<-answered)
		}
		if elsewhere && time.Since(begun) > patience {
			t.Fatal("the first server is not used")
		}
	}
	slow := time.Since(begun)
	frozen := processesOf(t, first.URL())
	each := func(sig syscall.Signal) {
		for _, pid := range frozen {
			if err := syscall.Kill(pid, sig); err != nil && sig == syscall.SIGSTOP {
				t.Error(err)
			}
		}
	}
	each(syscall.SIGSTOP)
	defer each(syscall.SIGCONT)
	begun = time.Now()
	for range 8 {
		all.Go(func() {
			for {
				port, err := where()
				if err == nil {
					if !strings.HasSuffix(hosts[1], ":"+port) {
						t.Errorf("port %s; want the second of %s", port, hosts)
					}
					return
				}
				if time.Since(begun) > patience {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if took := time.Since(begun); took > 11*time.Second+4*slow {
		t.Errorf("the frozen server was left after %s; want 10 s, and somewhat more on a busy machine", took)
	} else {
		t.Logf("left after %s", took)
	}
}

// processesOf returns the server's processes, its first one first.
func processesOf(t *testing.T, url string) (pids []int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var backend int
	if err := conn.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(&backend); err != nil {
		t.Fatal(err)
	}
	list, err := exec.Command("ps", "-axo", "pid=,ppid=").Output()
	if err != nil {
		t.Fatal(err)
	}
	parents := map[int]int{}
	for line := range strings.Lines(string(list)) {
		var pid, parent int
		if _, err := fmt.Sscan(line, &pid, &parent); err != nil {
			t.Fatal(err)
		}
		parents[pid] = parent
	}
	pids = []int{parents[backend]}
	for pid, parent := range parents {
		if parent == pids[0] && pid != backend {
			pids = append(pids, pid)
		}
	}
	return pids
}

// A server accepts connections and never answers. Callers get an error, with any context. When the
// server answers again, the next caller is served.
func TestADialIsBounded(t *testing.T) {
	wire, url := embeddedtest.NewWireTo(t, embeddedtest.Postgres(t))
	pool, err := postgres.Open(postgres.Config{URL: url, Name: "test", MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	wire.Deafen(true)
	pinged := make(chan error, 3)
	for range 3 { // two of them wait for the only connection
		go func() { pinged <- pool.Ping(context.Background()) }()
	}
	for range 3 {
		select {
		case err := <-pinged:
			if err == nil {
				t.Error("a server that never answers counts as alive")
			}
		case <-time.After(patience):
			t.Fatal("a dial or an acquire has no end")
		}
	}
	wire.Deafen(false)
	if err := pool.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// A slow statement is not a silent server: the server itself ends the statement.
func TestASlowStatementIsEndedByTheServer(t *testing.T) {
	pool, err := postgres.Open(postgres.Config{URL: embeddedtest.Postgres(t), Name: "test", MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	_, err = pool.Exec(t.Context(), `SELECT pg_sleep(60)`)
	if !postgres.TookTooLong(err) {
		t.Fatalf("a statement of a minute: %v", err)
	}
	if pool.Stat().TotalConns() != 1 || pool.Stat().NewConnsCount() != 1 {
		t.Error("its connection was closed")
	}
}

// A process's clock is compared with the database's.
func TestSkewIsMeasured(t *testing.T) {
	r := prometheus.NewRegistry()
	ahead := func() time.Time { return time.Now().Add(90 * time.Second) }
	pool, err := postgres.Open(postgres.Config{URL: embeddedtest.Postgres(t), Name: "test", MaxConns: 1, Registerer: r, Now: ahead})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := pool.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := testutil.GatherAndCount(r, "pgw_postgres_clock_skew_seconds")
	if err != nil || n != 1 {
		t.Fatalf("%d gauges, %v", n, err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "pgw_postgres_clock_skew_seconds" {
			if got := f.Metric[0].Gauge.GetValue(); got < 30 || got > 90 {
				t.Errorf("a clock that is 90 s ahead is measured as %g", got)
			}
		}
	}
}
