// Package embeddedtest gives tests a real Postgres and a broker that uses Kafka's protocol.
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

	"github.com/IBM/sarama"
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

// Main runs a package's tests and then stops the server that they shared. Call it from TestMain.
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

// Postgres returns the URL of a new, empty database. The database is dropped when the test ends.
// The package's tests share one server; PGW_TEST_DATABASE_URL names another server.
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

// Broker is the Kafka of one test.
type Broker struct {
	kafka.Config        // every topic's name begins with Prefix
	Prefix       string // empty when the test has its own broker
}

// Client returns the settings for a client of the test.
func (b Broker) Client(tb testing.TB) *sarama.Config {
	tb.Helper()
	settings, err := b.Settings("test")
	if err != nil {
		tb.Fatal(err)
	}
	return settings
}

// Kafka returns a new broker with the topics. If PGW_TEST_KAFKA_BROKERS names a broker, Kafka uses
// that one, and gives the topics a prefix that no other test has.
func Kafka(tb testing.TB, topics ...kafka.Topic) Broker {
	tb.Helper()
	given := os.Getenv("PGW_TEST_KAFKA_BROKERS")
	if given == "" {
		k, err := embedded.StartKafka(embedded.KafkaConfig{Topics: topics, Log: quiet})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() {
			if err := k.Close(); err != nil {
				tb.Error(err)
			}
		})
		return named("", k.Addr())
	}
	b := named(fmt.Sprintf("t%d-%d.", os.Getpid(), serial.Add(1)), strings.Split(given, ",")...)
	var prefixed []kafka.Topic
	for _, t := range topics {
		t.Name = b.Prefix + t.Name
		prefixed = append(prefixed, t)
	}
	if err := kafka.EnsureTopics(b.Config, prefixed); err != nil {
		tb.Fatal(err)
	}
	return b
}

func named(prefix string, brokers ...string) Broker {
	return Broker{Prefix: prefix, Config: kafka.Config{
		Brokers: brokers, RequestTopic: prefix + "payments.request", ResultTopic: prefix + "payments.result",
		DeadLetterTopic: prefix + "payments.deadletter", ParkedTopic: prefix + "payments.parked", AccountsTopic: prefix + "ledger.accounts",
	}}
}
