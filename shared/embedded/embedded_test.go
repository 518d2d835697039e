package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5"

	"pgw/shared/kafka"
)

var quiet = slog.New(slog.DiscardHandler)

// With this variable the test binary starts as a process that can be killed.
const childDir = "PGW_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

// child starts both stores, writes to them, reports that, and waits to be killed.
func child(dir string) {
	fail := func(err error) {
		fmt.Println("child:", err)
		os.Exit(1)
	}
	pg, err := StartPostgres(context.Background(), PostgresConfig{Dir: filepath.Join(dir, "postgres"), Log: quiet})
	if err != nil {
		fail(err)
	}
	if err := execute(pg.URL(), `CREATE TABLE kept (n int); INSERT INTO kept VALUES (42)`); err != nil {
		fail(err)
	}
	k, err := StartKafka(KafkaConfig{Dir: filepath.Join(dir, "kafka"), Topics: []kafka.Topic{{Name: "t", Partitions: 3}}, Log: quiet})
	if err != nil {
		fail(err)
	}
	if err := produce(k.Addr(), 100); err != nil {
		fail(err)
	}
	fmt.Println("ready")
	select {}
}

func execute(url, sql string) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

func client() *sarama.Config {
	settings, err := kafka.Config{}.Settings("test")
	if err != nil {
		panic(err)
	}
	return settings
}

func produce(addr string, n int) error {
	p, err := sarama.NewSyncProducer([]string{addr}, client())
	if err != nil {
		return err
	}
	defer p.Close()
	for i := range n {
		if _, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: "t", Key: sarama.StringEncoder(fmt.Sprint(i)), Value: sarama.StringEncoder("v")}); err != nil {
			return err
		}
	}
	return nil
}

func records(t *testing.T, addr string) (n int64) {
	t.Helper()
	c, err := sarama.NewClient([]string{addr}, client())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for p := range int32(3) {
		end, err := c.GetOffset("t", p, sarama.OffsetNewest)
		if err != nil {
			t.Fatal(err)
		}
		n += end
	}
	return n
}

// A killed process leaves its server running and its broker's files as they are. The next process
// takes over both, and has everything that was acknowledged.
func TestWhatIsAcknowledgedSurvivesAKill(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	n, _ := out.Read(line)
	cmd.Process.Signal(syscall.SIGKILL)
	cmd.Wait()
	if got := string(line[:n]); got != "ready\n" {
		t.Fatalf("the child says %q", got)
	}

	pg, err := StartPostgres(t.Context(), PostgresConfig{Dir: filepath.Join(dir, "postgres"), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	var kept int
	if err := conn.QueryRow(t.Context(), `SELECT n FROM kept`).Scan(&kept); err != nil || kept != 42 {
		t.Errorf("%d, %v", kept, err)
	}
	var fsync, commit string
	if err := conn.QueryRow(t.Context(), `SELECT current_setting('fsync'), current_setting('synchronous_commit')`).Scan(&fsync, &commit); err != nil || fsync != "on" || commit != "on" {
		t.Errorf("fsync %s, synchronous_commit %s, %v", fsync, commit, err)
	}
	conn.Close(t.Context())
	if err := pg.Stop(); err != nil {
		t.Error(err)
	}
	if err := RemovePostgres(filepath.Join(dir, "postgres")); err != nil {
		t.Error(err)
	}

	k, err := StartKafka(KafkaConfig{Dir: filepath.Join(dir, "kafka"), Topics: []kafka.Topic{{Name: "t", Partitions: 5}}, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if n := records(t, k.Addr()); n != 100 {
		t.Errorf("%d records, want 100", n)
	}
	if _, err := StartKafka(KafkaConfig{Dir: filepath.Join(dir, "kafka"), Log: quiet}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second broker on the directory: %v", err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

// If the server's account cannot enter the folder, the instance is in another folder, and is
// deleted from there.
func TestADirectoryThatIsClosedToOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root's server runs as someone else")
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(closed, "postgres")
	for range 2 {
		pg, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		if err := pg.Stop(); err != nil {
			t.Error(err)
		}
	}
	target, err := os.Readlink(dir)
	if err != nil || !strings.HasPrefix(target, "/var/tmp/pgw-postgres-") {
		t.Errorf("it lives in %q, %v", target, err)
	}
	if err := RemovePostgres(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(target); !os.IsNotExist(err) {
		t.Errorf("%s is left behind: %v", target, err)
	}
	if err := os.Symlink("/etc", dir); err != nil {
		t.Fatal(err)
	}
	if _, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir, Log: quiet}); err == nil {
		t.Error("StartPostgres followed a link that pgw did not make")
	}
}

func TestABusyKafkaPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	if _, err := StartKafka(KafkaConfig{Port: port, Log: quiet}); err == nil || !strings.Contains(err.Error(), fmt.Sprint(port)) {
		t.Errorf("got %v", err)
	}
}

// Records sent from inside the process can be read over the network. A broker that ends closes both
// kinds of connections.
func TestFromInside(t *testing.T) {
	k, err := StartKafka(KafkaConfig{Topics: []kafka.Topic{{Name: "t", Partitions: 3}}, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	p, err := kafka.NewProducer(kafka.Config{Brokers: []string{k.Addr()}, Dial: k.Dial}, "inside")
	if err != nil {
		t.Fatal(err)
	}
	// Longer than the buffer of a connection.
	m := &sarama.ProducerMessage{Topic: "t", Value: sarama.ByteEncoder(make([]byte, 3*inFlightBytes))}
	if err := p.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if n := records(t, k.Addr()); n != 1 {
		t.Errorf("%d records, want 1", n)
	}
	conn, err := k.Dial()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives its broker")
	}
	if _, err := k.Dial(); err == nil {
		t.Error("a broker that has ended accepts a connection")
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRetentionIsApplied(t *testing.T) {
	k, err := StartKafka(KafkaConfig{
		Topics: []kafka.Topic{{Name: "t", Partitions: 3, Config: map[string]string{"retention.ms": "1"}}}, Retention: 50 * time.Millisecond, Log: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := produce(k.Addr(), 10); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := int64(0)
		for _, p := range k.cluster.PartitionInfos("t") {
			left += p.HighWatermark - p.LogStartOffset
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d records are kept", left)
		}
	}
}

func TestMajorVersion(t *testing.T) {
	for text, want := range map[string]int{"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": 15, "postgres (PostgreSQL) 17beta1\n": 17} {
		if got, err := majorVersion(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	if _, err := majorVersion("psql 15"); err == nil {
		t.Error("a text that is not a version is accepted")
	}
}
