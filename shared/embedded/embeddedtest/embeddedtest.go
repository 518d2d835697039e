// Package embeddedtest gives tests a real Postgres and a broker that speaks Kafka's protocol.
package embeddedtest

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"pgw/shared/embedded"
	"pgw/shared/kafka"
)

var (
	quiet    = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	serial   atomic.Int64
	server   *embedded.Postgres
	startNow = sync.OnceValues(start)
)

// Main runs a package's tests and then ends the server that they shared. Call it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if server != nil {
		server.Stop()
		embedded.RemovePostgres(serverDir())
	}
	os.Exit(code)
}

func serverDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("pgw-test-postgres-%d", os.Getpid()))
}

func start() (string, error) {
	if given := os.Getenv("PGW_TEST_DATABASE_URL"); given != "" {
		return given, nil
	}
	var err error
	server, err = embedded.StartPostgres(context.Background(), embedded.PostgresConfig{
		Dir: serverDir(), Settings: map[string]string{"max_connections": "200"}, Log: quiet,
	})
	if err != nil {
		return "", err
	}
	return server.URL(), nil
}

// Postgres gives the URL of a new, empty database, which is dropped when the test ends. The server is shared
// by the package's tests; PGW_TEST_DATABASE_URL names another one to use.
func Postgres(tb testing.TB) string {
	tb.Helper()
	admin, err := startNow()
	if err != nil {
		tb.Fatal(err)
	}
	name := fmt.Sprintf("test_%d_%d", os.Getpid(), serial.Add(1))
	run := func(sql string) {
		ctx := context.Background()
		conn, err := pgx.Connect(ctx, admin)
		if err != nil {
			tb.Fatal(err)
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, sql); err != nil {
			tb.Fatal(err)
		}
	}
	run("CREATE DATABASE " + name)
	tb.Cleanup(func() { run("DROP DATABASE " + name + " WITH (FORCE)") })
	u, err := url.Parse(admin)
	if err != nil {
		tb.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// Kafka gives the brokers of a new cluster with the topics, or, where PGW_TEST_KAFKA_BROKERS names one, of
// that one, with the topics made when missing.
func Kafka(tb testing.TB, topics ...kafka.Topic) []string {
	tb.Helper()
	if given := os.Getenv("PGW_TEST_KAFKA_BROKERS"); given != "" {
		brokers := strings.Split(given, ",")
		if err := kafka.EnsureTopics(brokers, topics); err != nil {
			tb.Fatal(err)
		}
		return brokers
	}
	k, err := embedded.StartKafka(embedded.KafkaConfig{Topics: topics, Log: quiet})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := k.Close(); err != nil {
			tb.Error(err)
		}
	})
	return []string{k.Addr()}
}
