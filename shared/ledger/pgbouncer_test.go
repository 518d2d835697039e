package ledger

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/payment"
)

// behindPgBouncer starts a PgBouncer in front of a database. It returns the URL to use, as
// knative/README.md describes it.
func behindPgBouncer(t *testing.T, database string) string {
	t.Helper()
	if embeddedtest.Schemas(t) {
		t.Skip("the owner has no schema behind PgBouncer, and other tests use the database")
	}
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		path = "/usr/sbin/pgbouncer" // Debian's path, which PATH may not contain
		if _, err := os.Stat(path); err != nil {
			t.Skip("there is no pgbouncer: install Debian's package pgbouncer")
		}
	}
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	l.Close()
	password, _ := u.User.Password()
	dir := t.TempDir()
	settings := fmt.Sprintf(`[databases]
* = host=%s port=%s user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
%s
`, u.Hostname(), u.Port(), u.User.Username(), password, addr.Port, documented(t, "ignore_startup_parameters"))
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"-q", file}
	if os.Geteuid() == 0 { // it refuses to run as root
		args = append([]string{"-u", "nobody"}, args...)
		for at := dir; at != os.TempDir() && at != "/"; at = filepath.Dir(at) {
			if err := os.Chmod(at, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait()
	})
	for end := time.Now().Add(wait); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", addr.String()); err == nil {
			conn.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("pgbouncer does not listen within %s", wait)
		}
	}
	u.Host = addr.String()
	query := u.Query()
	query.Set("default_query_exec_mode", "exec")
	u.RawQuery = query.Encode()
	return u.String()
}

// documented returns the line of a setting from knative/README.md.
func documented(t *testing.T, setting string) string {
	t.Helper()
	text, err := os.ReadFile("../../knative/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, setting+" = ") {
			return strings.TrimSpace(line)
		}
	}
	t.Fatalf("knative/README.md does not name %s", setting)
	return ""
}

// Behind PgBouncer in transaction mode, no session setting reaches the server. The ledger is still
// right, and locks in the same order, with plans that it does not choose.
func TestBehindPgBouncer(t *testing.T) {
	for name, planner := range map[string]string{
		"the server's own plans": "on", "no nested loops": "off",
	} {
		t.Run(name, func(t *testing.T) {
			var setting string
			w := newWorldWith(t, func(cfg *Config) {
				conn := connect(t, cfg.URL)
				name := pgx.Identifier{conn.Config().Database}.Sanitize()
				// A plan that the planner was told to avoid seems so costly to it that it would be compiled.
				for _, setting := range []string{"enable_nestloop = " + planner, "jit = off"} {
					if _, err := conn.Exec(t.Context(), "ALTER DATABASE "+name+" SET "+setting); err != nil {
						t.Fatal(err)
					}
				}
				cfg.URL = behindPgBouncer(t, cfg.URL)
			})
			if err := w.pool.QueryRow(t.Context(), `SELECT current_setting('enable_hashjoin')`).Scan(&setting); err != nil || setting != "on" {
				t.Fatalf("enable_hashjoin is %s: %v", setting, err)
			}
			w.open(100, "payer", "payee")
			held := w.mustReserve(pay("settled", "payer", "payee", 10))
			if got := w.mustFinish(Finish{ReservationID: held.ReservationID, Key: "settled"}); !got.Done {
				t.Errorf("commit: %+v", got)
			}
			if again := w.mustReserve(pay("settled", "payer", "payee", 10)); again.Status != payment.Committed {
				t.Errorf("the same key again: %+v", again)
			}
			back := w.mustReserve(pay("back", "payer", "payee", 20))
			if got := w.mustFinish(Finish{ReservationID: back.ReservationID, RollBack: payment.CommitFailed}); !got.Done {
				t.Errorf("roll back: %+v", got)
			}
			w.expire(w.mustReserve(pay("late", "payer", "payee", 30)).ReservationID)
			if rolledBack, published, err := w.sweep(t.Context()); err != nil || rolledBack != 1 || published != 1 {
				t.Errorf("sweep: rolled back %d, published %d, %v", rolledBack, published, err)
			}
			if w.balance("payer") != 90 || w.balance("payee") != 110 {
				t.Errorf("payer %d, payee %d", w.balance("payer"), w.balance("payee"))
			}
			neverDeadlock(t, w)
		})
	}
}
