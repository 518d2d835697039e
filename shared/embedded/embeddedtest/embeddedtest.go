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
	"pgw/shared/postgres"
)

var (
	quiet    = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	serial   atomic.Int64
	server   *embedded.Postgres
	startNow = sync.OnceValues(start)
)

// Main runs a package's tests and then stops the server that they shared, and deletes their
// directory. Call it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if path, err := dir(); err == nil {
		os.RemoveAll(path)
	}
	if server != nil {
		server.Stop()
		embedded.RemovePostgres(serverDir())
	} else {
		dropTemplates()
	}
	os.Exit(code)
}

var dir = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "pgw-test-") })

// Dir returns a directory for what the package's tests make once and share. Main deletes it.
func Dir(tb testing.TB) string {
	tb.Helper()
	path, err := dir()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

func serverDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("pgw-test-postgres-%d", os.Getpid()))
}

func start() (string, error) {
	if given := os.Getenv("PGW_TEST_DATABASE_URL"); given != "" {
		return given, findLayout(given)
	}
	var err error
	server, err = embedded.StartPostgres(context.Background(), embedded.PostgresConfig{
		// The server's data need not survive the machine. A process that is killed loses nothing without
		// fsync either.
		Dir: serverDir(), Settings: map[string]string{"max_connections": "200", "fsync": "off"}, Log: quiet,
	})
	if err != nil {
		return "", err
	}
	return server.URL(), nil
}

// inSchemas says that a test gets a schema of the given database, and no database of its own.
// onCitus says that the database has Citus.
var inSchemas, onCitus bool

// findLayout sets inSchemas and onCitus. A new database has no Citus, also where the given one has
// it, so tests on Citus get schemas. PGW_TEST_SCHEMAS asks for schemas on any server.
func findLayout(given string) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, given)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	err = conn.QueryRow(ctx, postgres.HasCitusSQL).Scan(&onCitus)
	inSchemas = onCitus || os.Getenv("PGW_TEST_SCHEMAS") != ""
	return err
}

// Given says whether PGW_TEST_DATABASE_URL names a server for the tests.
func Given() bool { return os.Getenv("PGW_TEST_DATABASE_URL") != "" }

// Schemas says whether a test's database is a schema of one that it shares with other tests. Then it
// can't change the settings of the database or read the server's catalogues as if it were alone.
func Schemas(tb testing.TB) bool {
	tb.Helper()
	if _, err := startNow(); err != nil {
		tb.Fatal(err)
	}
	return inSchemas
}

// Citus says whether the tests' database has Citus. Schemas of a Template are then distributed.
func Citus(tb testing.TB) bool {
	tb.Helper()
	return Schemas(tb) && onCitus
}

// Rows says whether the rows of a Template's schema are distributed over the nodes of Citus, which
// PGW_TEST_ROWS asks for.
func Rows(tb testing.TB) bool {
	tb.Helper()
	return Citus(tb) && os.Getenv("PGW_TEST_ROWS") != ""
}

// Postgres returns the URL of a new, empty database. The database is dropped when the test ends.
// The package's tests share one server; PGW_TEST_DATABASE_URL names another server. There the database
// may be a schema: see Schemas.
func Postgres(tb testing.TB) string {
	tb.Helper()
	return database(tb, "")
}

// Template is a database that is prepared once for the package's tests. Each test gets a copy, which
// takes less time than to prepare its own.
type Template struct {
	Prepare func(ctx context.Context, url string) error
	// Distribute makes a distributed schema of a prepared one, on a server with Citus; nil: it
	// stays as it is.
	Distribute func(ctx context.Context, url string) error
	// DistributeRows distributes the rows instead, where Rows says so.
	DistributeRows func(ctx context.Context, url string) error

	once sync.Once
	name string
	err  error
}

// Postgres is like the function Postgres, with a prepared database.
func (m *Template) Postgres(tb testing.TB) string {
	tb.Helper()
	if Schemas(tb) { // a schema can't be copied
		url := Postgres(tb)
		if err := m.Prepare(context.Background(), url); err != nil {
			tb.Fatal(err)
		}
		distribute := m.Distribute
		if Rows(tb) {
			distribute = m.DistributeRows
		}
		if onCitus && distribute != nil {
			if err := distribute(context.Background(), url); err != nil {
				tb.Fatal(err)
			}
		}
		return url
	}
	m.once.Do(func() {
		var admin string
		if admin, m.err = startNow(); m.err != nil {
			return
		}
		m.name = newName()
		templates.Store(m.name, nil)
		if m.err = run(admin, "CREATE DATABASE "+m.name); m.err == nil {
			m.err = m.Prepare(context.Background(), at(admin, m.name))
		}
	})
	if m.err != nil {
		tb.Fatal(m.err)
	}
	return database(tb, " TEMPLATE "+m.name)
}

var templates sync.Map // has the names of all templates

// dropTemplates drops the templates from a server that goes on after the tests.
func dropTemplates() {
	templates.Range(func(name, _ any) bool {
		if err := run(os.Getenv("PGW_TEST_DATABASE_URL"), "DROP DATABASE IF EXISTS "+name.(string)+" WITH (FORCE)"); err != nil {
			quiet.Warn("a template of the tests is left", "database", name, "error", err)
		}
		return true
	})
}

func newName() string { return fmt.Sprintf("test_%d_%d", os.Getpid(), serial.Add(1)) }

func database(tb testing.TB, how string) string {
	tb.Helper()
	admin, err := startNow()
	if err != nil {
		tb.Fatal(err)
	}
	name := newName()
	if inSchemas {
		return schema(tb, admin, name)
	}
	if err := run(admin, "CREATE DATABASE "+name+how); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := run(admin, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			tb.Error(err)
		}
	})
	return at(admin, name)
}

// schema makes a schema, and returns the URL of the database with it. On Citus it is a plain
// schema, until a Template distributes it. The roles of the schema's ledger go with it.
func schema(tb testing.TB, admin, name string) string {
	tb.Helper()
	if err := run(admin, "SET citus.enable_schema_based_sharding = off; CREATE SCHEMA "+name); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := run(admin, fmt.Sprintf(dropSchemaSQL, name)); err != nil {
			tb.Error(err)
		}
	})
	return postgres.Schema(name).In(admin)
}

const dropSchemaSQL = `SET client_min_messages = warning;
DROP SCHEMA %[1]s CASCADE;
DO $$
DECLARE name text;
BEGIN
	FOR name IN SELECT rolname FROM pg_roles WHERE rolname LIKE 'pgw\_%%\_of\_%[1]s' LOOP
		EXECUTE format('DROP OWNED BY %%I', name);
		EXECUTE format('DROP ROLE %%I', name);
	END LOOP;
	-- A login that other tests use too is theirs again.
	FOR name IN SELECT rolname FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole JOIN pg_database d ON d.oid = s.setdatabase
		WHERE datname = current_database() AND setconfig @> ARRAY['search_path=%[1]s'] LOOP
		EXECUTE format('ALTER ROLE %%I IN DATABASE %%I RESET search_path', name, current_database());
	END LOOP;
END $$`

func run(admin, sql string) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

// at returns the URL of a database on the server of another URL.
func at(admin, database string) string {
	u, err := url.Parse(admin)
	if err != nil {
		panic(err) // startNow's URL is one
	}
	u.Path = "/" + database
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
