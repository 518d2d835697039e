package flow

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/ledger"
	"pgw/shared/postgres"
	"pgw/tests/processes"
)

// separate returns a system of processes with a schema and topics. No process runs yet. At the end
// the ledger is added up.
func separate(t *testing.T, log *processes.Output) *processes.System {
	t.Helper()
	binary, err := processes.Build(embeddedtest.Dir(t))
	if err != nil {
		t.Fatal(err)
	}
	database := migrated.Postgres(t)
	topics, err := processes.Topics(4)
	if err != nil {
		t.Fatal(err)
	}
	broker := embeddedtest.Kafka(t, topics...)
	s, err := processes.New(processes.Config{
		Binary: binary, Database: database, Kafka: broker.Config, GroupPrefix: broker.Prefix, EventKeys: testKeys, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.StopAll(); err != nil {
			t.Errorf("%v: %s", err, log)
		}
		checkSumOf(t, database)
	})
	return s
}

// checkSumOf adds up the ledger of a database.
func checkSumOf(t *testing.T, database string) {
	t.Helper()
	conn, err := postgres.Connect(context.Background(), database, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	sum, err := ledger.ReadSum(context.Background(), conn)
	if err == nil {
		err = sum.Err()
	}
	if err != nil {
		t.Error(err)
	}
}

func payOver(t *testing.T, addr, key string) answer {
	t.Helper()
	resp, err := http.Post("http://"+addr+"/api/payments", "application/json", strings.NewReader(body(key, processes.Account(0), processes.Account(1), "USD", 10)))
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

// gateway, worker, payments and db are at zero. The first payment wakes the gateway, which wakes
// the other three at the same time, and the payment is answered.
func TestFunctionsWakeSideBySide(t *testing.T) {
	log := &processes.Output{}
	s := separate(t, log)
	if err := s.StartAll(t.Context(), "payments", "worker", "gateway", "kafkasource"); err != nil {
		t.Fatalf("%v: %s", err, log)
	}
	if err := s.Seed(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if err := s.StopAll(); err != nil {
		t.Fatal(err)
	}

	asleep := map[string]*processes.Sleeper{}
	for _, name := range []string{"gateway", "worker", "payments", "db"} {
		z, err := s.Sleep(context.WithoutCancel(t.Context()), name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { z.Close() })
		asleep[name] = z
	}
	var figures []string
	figure := func(name string, start time.Duration) {
		resident, err := s.Resident(name)
		if err != nil && !os.IsNotExist(err) { // there is no /proc
			t.Error(err)
		}
		figures = append(figures, fmt.Sprintf("%s ready %s after its start, %d MiB resident", name, start.Round(time.Millisecond), resident>>20))
	}
	for _, name := range []string{"fx", "wallet", "risk", "kafkasource"} {
		start, err := s.Start(t.Context(), name)
		if err != nil {
			t.Fatalf("%v: %s", err, log)
		}
		figure(name, start)
	}
	time.Sleep(time.Second) // a source that has just been started does not fetch all of its partitions at once
	for name, z := range asleep {
		// The sweep's ping may have reached db at the turn of a minute.
		if knocked, _, _ := z.Awake(); !knocked.IsZero() && name != "db" {
			t.Errorf("%s was woken before the first payment", name)
		}
	}
	begun := time.Now()
	got := payOver(t, s.Front("gateway"), "first")
	took := time.Since(begun)
	if got.outcome() != "200 SUCCESS committed" {
		t.Errorf("the first payment: %s: %s", got, log)
	}
	for name, z := range asleep {
		_, ready, start := z.Awake()
		if ready.IsZero() {
			t.Fatalf("%s was not woken", name)
		}
		figure(name, start)
	}
	// If only the payment woke it, db would be called only after payments was ready.
	dbKnocked, _, _ := asleep["db"].Awake()
	if _, paymentsReady, _ := asleep["payments"].Awake(); dbKnocked.After(paymentsReady) {
		t.Errorf("they were woken one after the other: db %s after payments was ready", dbKnocked.Sub(paymentsReady))
	}
	t.Logf("first request to its answer: %s; %s", took.Round(time.Millisecond), strings.Join(figures, "; "))
	if got := payOver(t, s.Front("gateway"), "first"); got.outcome() != "200 SUCCESS_REPLAY duplicate_idempo" {
		t.Errorf("again: %s", got)
	}
}
