package flow

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"pgw/functions/pgw/reconcile"
	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/tests/processes"
)

// step is one step of the runbook: all functions are replaced by those of its options, and the old ones run
// until the new ones do.
type step struct {
	options
	before func(old *system) // what the operator waits for before the step
	beside func(new *system) // what happens while the old functions still run
	after  func(new *system) // and when they have ended
}

// rotate makes the steps while clients pay, and returns the last system when no client pays any more. Every
// payment has to succeed at once.
func rotate(t *testing.T, first options, steps ...step) *system {
	t.Helper()
	first.serial = true
	now := start(t, first)
	var at atomic.Pointer[system]
	at.Store(now)
	var paid, failed atomic.Int64
	done := make(chan struct{})
	var clients sync.WaitGroup
	for client := range 4 {
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				resp, err := http.Post(at.Load().url+"/api/payments", "application/json",
					strings.NewReader(body(fmt.Sprintf("rotate-%d-%d", client, n), "A", "B", "IDR", 1000)))
				if err != nil {
					t.Error(err)
					return
				}
				got := read(t, resp)
				if paid.Add(1); got.outcome() != "200 SUCCESS committed" {
					failed.Add(1)
					t.Errorf("%d-%d: %s", client, n, got)
				}
			}
		})
	}
	defer clients.Wait()
	defer close(done)
	for _, step := range steps {
		if step.before != nil {
			step.before(now)
		}
		step.serial, step.database = true, now.conn.Config().ConnString()
		if step.kafka == nil {
			step.kafka = &now.kafka
		}
		next := start(t, step.options)
		at.Store(next)
		before := paid.Load()
		next.eventually("payments are made by the new functions", func() error {
			if paid.Load() < before+20 {
				return fmt.Errorf("%d payments", paid.Load()-before)
			}
			return nil
		})
		if step.beside != nil {
			step.beside(next)
		}
		now.stop()
		if now = next; step.after != nil {
			step.after(now)
		}
	}
	t.Logf("%d payments, %d not settled at once", paid.Load(), failed.Load())
	return now
}

// The event keys are rotated as the runbook says, while clients pay: append the new key, put it first, remove the
// old one.
func TestEventKeysAreRotatedUnderLoad(t *testing.T) {
	t.Parallel()
	const first, second = testKeys + ":v2", "k2:YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY=:v2"
	// The old key is removed when no event of it is under way any more.
	delivered := func(now *system) {
		published, err := processes.ReadPublished(now.kafka.Config)
		if err != nil {
			t.Fatal(err)
		}
		now.eventually("what the old key has signed is delivered", func() error { return published.Delivered(now.kafka.Config, now.kafka.Prefix) })
	}
	now := rotate(t, options{keys: first},
		step{options: options{keys: first + "," + second}},
		step{options: options{keys: second + "," + first}},
		step{options: options{keys: second}, before: delivered})
	now.drain()
	// Old events are signed by the old key. Who reads them keeps it.
	cfg := now.books()
	cfg.Direct = true
	var both event.Keyring
	if err := both.Decode(second + "," + first); err != nil {
		t.Fatal(err)
	}
	cfg.Keys = &both
	if report, err := reconcile.Run(t.Context(), cfg); err != nil || !report.Clean() {
		t.Errorf("%+v, %v", report.Breaches, err)
	}
}

// The keys that encrypt the secrets of webhooks are rotated as the runbook says, while clients pay: append the
// new key, put it first, remove the old one when all secrets are encrypted anew. Each refund is told to each
// webhook that was there, also to one that was added while functions of two steps run.
func TestKeysOfWebhooksAreRotatedUnderLoad(t *testing.T) {
	t.Parallel()
	const first, second = "s1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "s2:YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY="
	var shops []*shop
	open := func(s *system) {
		there := newShop(t)
		var made struct{ Secret string }
		there.mu.Lock() // until it knows the secret
		defer there.mu.Unlock()
		call(t, client{s, ""}, http.MethodPost, "/api/webhooks", `{"url":"`+there.URL+`","types":["payment.refunded"]}`, http.StatusCreated, &made)
		there.secret = made.Secret
		shops = append(shops, there)
	}
	// Each of some refunds goes to one of the functions that run. All webhooks are told of each.
	asked := 0
	told := func(s *system) {
		for range 8 {
			asked++
			key := fmt.Sprintf("told-%d", asked)
			s.expect(s.pay(key, "A", "C", "IDR", 1000), "200 SUCCESS committed")
			call(t, client{s, ""}, http.MethodPost, "/api/payments/"+key+"/refunds", `{"idempotency_key":"back-`+key+`","amount":"400"}`, http.StatusOK, nil)
			for i, there := range shops {
				s.eventually(fmt.Sprintf("webhook %d is told of %s", i, key), func() error {
					_, err := there.about(key)
					return err
				})
			}
		}
	}
	both := func(s *system) {
		open(s)
		told(s)
	}
	sealed := func(s *system) {
		s.eventually("all secrets are encrypted by the new key", func() error {
			ping(t, s.Addr("webhooks")) // the minute's, which does it
			if n := s.count(`SELECT count(*) FROM webhook_secrets WHERE key_id <> 's2'`); n > 0 {
				return fmt.Errorf("%d are not", n)
			}
			return nil
		})
	}
	now := rotate(t, options{seals: first},
		step{options: options{seals: first + "," + second}, beside: both, after: told},
		step{options: options{seals: second + "," + first}, beside: both, after: sealed},
		step{options: options{seals: second}, beside: both, after: told})
	for i, there := range shops {
		there.mu.Lock()
		if len(there.errs) > 0 {
			t.Errorf("webhook %d: %v", i, there.errs)
		}
		there.mu.Unlock()
	}
	now.drain()
}

// The database passwords are rotated as the runbook says, while clients pay: make second logins, replace the
// functions, drop the first ones.
func TestLoginsAreRotatedUnderLoad(t *testing.T) {
	t.Parallel()
	const first, second = "pgw_rotate_first", "pgw_rotate_second"
	drop := func(s *system) {
		for _, name := range []string{"_db", "_functions", "_webhooks"} {
			s.exec(`DROP ROLE ` + ledger.RoleOf(first+name, schemaOf(t, s.conn.Config().ConnString())))
		}
	}
	now := rotate(t, options{logins: first},
		step{options: options{logins: second}, after: drop},
		step{options: options{logins: second}}) // functions also start without the first ones
	now.drain()
}

// realKafka returns new topics in the real Kafka, a client that changes its users, and a function
// that changes settings of the broker until the test ends. The broker notices such a change a
// little later.
func realKafka(t *testing.T) (at embeddedtest.Broker, admin *kadm.Client, alter func(settings map[string]string)) {
	t.Helper()
	topics, err := processes.Topics(4)
	if err != nil {
		t.Fatal(err)
	}
	at = embeddedtest.Kafka(t, topics...)
	client, err := kgo.NewClient(kgo.SeedBrokers(at.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	admin = kadm.NewClient(client)
	apply := func(ctx context.Context, op kadm.IncrementalOp, settings map[string]string) {
		t.Helper()
		var configs []kadm.AlterConfig
		for name, value := range settings {
			configs = append(configs, kadm.AlterConfig{Op: op, Name: name, Value: &value})
		}
		responses, err := admin.AlterBrokerConfigs(ctx, configs, 1)
		for _, r := range responses {
			err = cmp.Or(err, r.Err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	altered := map[string]string{}
	t.Cleanup(func() { apply(context.Background(), kadm.DeleteConfig, altered) })
	return at, admin, func(settings map[string]string) {
		t.Helper()
		maps.Copy(altered, settings)
		apply(t.Context(), kadm.SetConfig, settings)
	}
}

// Kafka's user and the brokers' certificate are rotated as the runbook says, while clients pay. The
// user: make a second one, replace the functions, remove the first one. The certificate: give the
// functions both authorities, replace it at the brokers, give the functions only the new authority.
func TestAccessToKafkaIsRotatedUnderLoad(t *testing.T) {
	secure := os.Getenv("PGW_TEST_KAFKA_SECURE")
	if secure == "" {
		t.Skip("PGW_TEST_KAFKA_SECURE is not set: make test-kafka starts such a Kafka")
	}
	broker, admin, alter := realKafka(t)
	const first, second = "rotate-first", "rotate-second"
	add := func(user string) {
		t.Helper()
		made, err := admin.AlterUserSCRAMs(t.Context(), nil, []kadm.UpsertSCRAM{{User: user, Mechanism: kadm.ScramSha512, Iterations: 4096, Password: "of " + user}})
		if err := cmp.Or(err, made.Error()); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(user string) {
		t.Helper()
		removed, err := admin.AlterUserSCRAMs(t.Context(), []kadm.DeleteSCRAM{{User: user, Mechanism: kadm.ScramSha512}}, nil)
		if err := cmp.Or(err, removed.Error()); err != nil {
			t.Fatal(err)
		}
	}
	oldAuthority, err := os.ReadFile(os.Getenv("PGW_TEST_KAFKA_CA"))
	if err != nil {
		t.Fatal(err)
	}
	// as is how functions reach Kafka as a user who trusts the authorities.
	as := func(user string, authorities ...[]byte) options {
		t.Helper()
		at := broker
		at.Brokers = []string{secure}
		at.Security = kafka.Security{
			TLS: true, CAFile: filepath.Join(t.TempDir(), "ca.pem"), SASLMechanism: "SCRAM-SHA-512", SASLUser: user, SASLPassword: "of " + user,
		}
		if err := os.WriteFile(at.Security.CAFile, bytes.Join(authorities, []byte("\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		return options{kafka: &at}
	}

	// The broker's new certificate is signed by itself, as its old one is.
	store, storePassword := filepath.Join(t.TempDir(), "broker.p12"), "pgw-secret"
	keytool := func(args ...string) []byte {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "keytool", append(args, "-alias", "broker", "-keystore", store, "-storepass", storePassword)...).Output()
		if err != nil {
			t.Fatalf("keytool: %v: %s", err, out)
		}
		return out
	}
	keytool("-genkeypair", "-keyalg", "EC", "-storetype", "PKCS12", "-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1", "-validity", "30")
	newAuthority := keytool("-exportcert", "-rfc")
	presented := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", secure, &tls.Config{InsecureSkipVerify: true}) // only its certificate is looked at
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := presented()
	add(first)

	// What a system has done is checked after its user is gone.
	plainly := func(s *system) { s.kafka = broker }
	now := rotate(t, as(first, oldAuthority),
		step{options: as(second, oldAuthority, newAuthority), before: func(old *system) {
			add(second)
			plainly(old)
		}, after: func(s *system) {
			remove(first)
			alter(map[string]string{
				"listener.name.secure.ssl.keystore.location": store, "listener.name.secure.ssl.keystore.password": storePassword,
				"listener.name.secure.ssl.keystore.type": "PKCS12",
			})
			s.eventually("the broker has its new certificate", func() error {
				if presented() == before {
					return errors.New("it has the old one")
				}
				return nil
			})
		}},
		step{options: as(second, newAuthority), before: plainly})
	now.drain() // as the second user
	now.stop()
	plainly(now)
	remove(second)
}

// The functions' own certificate for Kafka is rotated as the runbook says, while clients pay: let
// the broker trust both authorities, replace the files, take the old authority from the broker. No
// function is restarted. After each change all connections end, and the functions connect again.
func TestOwnCertificateForKafkaIsRotatedUnderLoad(t *testing.T) {
	mutual, found := os.Getenv("PGW_TEST_KAFKA_MUTUAL"), os.Getenv("PGW_TEST_KAFKA_MUTUAL_AS")
	if mutual == "" {
		t.Skip("PGW_TEST_KAFKA_MUTUAL is not set: make test-kafka starts such a Kafka")
	}
	broker, _, alter := realKafka(t)
	wire := embeddedtest.NewWireAt(t, found, mutual)
	broker.Brokers = []string{found}
	put := func(path string, text ...[]byte) {
		t.Helper()
		if err := os.WriteFile(path, bytes.Join(text, nil), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// with is how functions reach Kafka with a certificate of their own.
	with := func(certificate, key []byte) *embeddedtest.Broker {
		t.Helper()
		at, dir := broker, t.TempDir()
		at.Security = kafka.Security{
			TLS: true, CAFile: os.Getenv("PGW_TEST_KAFKA_CA"), CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"),
		}
		put(at.CertFile, certificate)
		put(at.KeyFile, key)
		return &at
	}
	connects := func(at *embeddedtest.Broker) error {
		client, err := sarama.NewClient(at.Brokers, at.Client(t))
		if err != nil {
			return err
		}
		return client.Close()
	}
	refuses := func(at *embeddedtest.Broker) error {
		if err := connects(at); err == nil || !strings.Contains(err.Error(), "certificate") {
			return fmt.Errorf("connecting ends with %v", err)
		}
		return nil
	}
	trust := func(authorities ...[]byte) {
		t.Helper()
		store := filepath.Join(t.TempDir(), "trusted.pem")
		put(store, authorities...)
		alter(map[string]string{"listener.name.mutual.ssl.truststore.location": store})
	}

	oldAuthority, newAuthority := embeddedtest.NewAuthority(t, "old"), embeddedtest.NewAuthority(t, "new")
	certificate, key := oldAuthority.Issue("pgw")
	functions, old := with(certificate, key), with(certificate, key)
	certificate, key = newAuthority.Issue("pgw")
	renewed := with(certificate, key)

	trust(oldAuthority.PEM())
	eventually(t, "the broker trusts the old authority", func() error { return connects(old) })
	eventually(t, "the broker does not trust the new one", func() error { return refuses(renewed) })
	paid := 0
	connectAgain := func(s *system) {
		wire.Cut()
		for range 8 {
			paid++
			s.expect(s.pay(fmt.Sprintf("connected-again-%d", paid), "A", "B", "IDR", 1000), "200 SUCCESS committed")
		}
	}
	now := rotate(t, options{kafka: functions}, step{before: func(s *system) {
		trust(oldAuthority.PEM(), newAuthority.PEM())
		s.eventually("the broker trusts both", func() error { return errors.Join(connects(old), connects(renewed)) })
		put(functions.CertFile, certificate)
		put(functions.KeyFile, key)
		connectAgain(s)
		trust(newAuthority.PEM())
		s.eventually("the broker refuses the old certificate", func() error { return refuses(old) })
		connectAgain(s)
	}}) // functions also start with the new files
	now.drain()
}
