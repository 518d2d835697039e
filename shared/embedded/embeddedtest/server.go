package embeddedtest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"pgw/shared/embedded"
)

// Server is a Postgres server of one test.
type Server struct{ *embedded.Postgres }

// NewServer starts a server of the test's own, with further settings. It is a copy of the server that the
// package's tests share: that takes less time than a new one.
func NewServer(tb testing.TB, settings map[string]string) Server {
	tb.Helper()
	if _, err := startNow(); err != nil {
		tb.Fatal(err)
	}
	if server == nil {
		tb.Skip("PGW_TEST_DATABASE_URL names a server, which may have no pg_basebackup")
	}
	dir := newServerDir(tb)
	if err := server.Backup(tb.Context(), dir, embedded.Alone); err != nil {
		tb.Fatal(err)
	}
	return startIn(tb, dir, settings)
}

// Standby starts a server that follows this one.
func (s Server) Standby(tb testing.TB) Server {
	tb.Helper()
	dir := newServerDir(tb)
	if err := s.Backup(tb.Context(), dir, embedded.AsStandby); err != nil {
		tb.Fatal(err)
	}
	return startIn(tb, dir, nil)
}

// BackUp makes a base backup from which Restored starts a server.
func (s Server) BackUp(tb testing.TB) (dir string) {
	tb.Helper()
	dir = newServerDir(tb)
	if err := s.Backup(tb.Context(), dir, embedded.ToRestore); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// Restored starts the server of a base backup, which recovers as the settings say.
func Restored(tb testing.TB, dir string, settings map[string]string) Server {
	tb.Helper()
	return startIn(tb, dir, settings)
}

func newServerDir(tb testing.TB) string {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("pgw-test-server-%d-%d", os.Getpid(), serial.Add(1)))
	tb.Cleanup(func() {
		if err := embedded.RemovePostgres(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

func startIn(tb testing.TB, dir string, settings map[string]string) Server {
	tb.Helper()
	all := map[string]string{"fsync": "off", "max_connections": "100"}
	for name, value := range settings {
		all[name] = value
	}
	p, err := embedded.StartPostgres(tb.Context(), embedded.PostgresConfig{Dir: dir, Settings: all, Log: quiet})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Stop() }) // a test may have stopped it before
	return Server{p}
}
