package kafka_test

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/kafka"
)

// A setting that would be ignored silently, or would fail only at the first payment, is refused at
// the start. The error names the setting.
func TestSecurityThatIsWrongIsRefused(t *testing.T) {
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		security kafka.Security
		want     string
	}{
		"mechanism without a user":     {kafka.Security{TLS: true, SASLMechanism: "PLAIN"}, "KAFKA_SASL_USER"},
		"user without a mechanism":     {kafka.Security{TLS: true, SASLUser: "u", SASLPassword: "p"}, "KAFKA_SASL_MECHANISM"},
		"unknown mechanism":            {kafka.Security{TLS: true, SASLMechanism: "SCRAM", SASLUser: "u", SASLPassword: "p"}, `"SCRAM"`},
		"a password in the clear":      {kafka.Security{SASLMechanism: "PLAIN", SASLUser: "u", SASLPassword: "p"}, "KAFKA_TLS"},
		"files without TLS":            {kafka.Security{CAFile: notPEM}, "KAFKA_TLS"},
		"a file that is not there":     {kafka.Security{TLS: true, CAFile: notPEM + ".not"}, "KAFKA_CA_FILE"},
		"a file that is no PEM":        {kafka.Security{TLS: true, CAFile: notPEM}, "no PEM"},
		"a certificate without a key":  {kafka.Security{TLS: true, CertFile: notPEM}, "KAFKA_KEY_FILE"},
		"a certificate that is no PEM": {kafka.Security{TLS: true, CertFile: notPEM, KeyFile: notPEM}, "KAFKA_CERT_FILE"},
	} {
		_, err := kafka.NewProducer(kafka.Config{Brokers: []string{"127.0.0.1:1"}, Security: tc.security}, "test")
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "password=") {
			t.Errorf("%s: the error contains the password: %v", name, err)
		}
	}
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		cfg := kafka.Config{Security: kafka.Security{TLS: true, SASLMechanism: mechanism, SASLUser: "u", SASLPassword: "p"}}
		if _, err := cfg.Settings("test"); err != nil {
			t.Errorf("%s: %v", mechanism, err)
		}
	}
}

// A client's certificate is replaced without a restart. The next connection presents the new one.
// As long as only one of its two files has changed, connections present the old one. Where a broker
// does not know the authority and needs no certificate, the client presents none.
func TestAClientsCertificateIsReplaced(t *testing.T) {
	brokers, old, next := embeddedtest.NewAuthority(t, "brokers"), embeddedtest.NewAuthority(t, "old"), embeddedtest.NewAuthority(t, "next")
	own, err := tls.X509KeyPair(brokers.Issue("broker"))
	if err != nil {
		t.Fatal(err)
	}
	var trusted atomic.Pointer[embeddedtest.Authority]
	trusted.Store(old)
	var optional atomic.Bool
	_, w, cfg := broker(t, kfake.TLS(&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		pool := x509.NewCertPool()
		pool.AddCert(trusted.Load().Certificate)
		wanted := tls.RequireAndVerifyClientCert
		if optional.Load() {
			wanted = tls.VerifyClientCertIfGiven
		}
		return &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: wanted, ClientCAs: pool}, nil
	}}))
	put := func(path string, text []byte) string {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	dir := t.TempDir()
	as := func(name string, by *embeddedtest.Authority) kafka.Security {
		cert, key := by.Issue(name)
		return kafka.Security{
			TLS: true, CAFile: put(filepath.Join(dir, "ca.pem"), brokers.PEM()),
			CertFile: put(filepath.Join(dir, name+".crt"), cert), KeyFile: put(filepath.Join(dir, name+".key"), key),
		}
	}
	logged := logs(t)
	cfg.Security = as("client", old)
	p := producer(t, cfg)
	defer ended(t, p)
	reconnects := func(key string) {
		t.Helper()
		w.away()
		w.back(t)
		until(t, p, key, succeeded)
	}
	until(t, p, "first", succeeded)

	cert, key := next.Issue("client")
	put(cfg.CertFile, cert)
	for begun := time.Now(); !strings.Contains(logged(), "KAFKA_KEY_FILE "+cfg.KeyFile); {
		if time.Since(begun) > patience {
			t.Fatalf("logged: %q", logged())
		}
		reconnects("with half of a pair")
	}

	put(cfg.KeyFile, key)
	trusted.Store(next)
	reconnects("renewed")
	if keys, err := read(t, cfg, kafka.Range{Topic: "t"}); err != nil || !slices.Contains(keys, "renewed") {
		t.Errorf("read %v, %v", keys, err)
	}

	cfg.Security = as("late", old)
	late := producer(t, cfg)
	defer ended(t, late)
	if err := within(t, patience, late, "late"); !notSent(err) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with a certificate that is not trusted any more: %v", err)
	}
	optional.Store(true)
	until(t, late, "late", succeeded)
}

// logs returns what the default logger has written since the call.
func logs(t *testing.T) func() string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(file, nil)))
	t.Cleanup(func() {
		slog.SetDefault(before)
		file.Close()
	})
	return func() string {
		t.Helper()
		text, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

// A Kafka that requires TLS and SASL, as in production. Only the real one supports this: make
// test-kafka.
func TestSecureKafka(t *testing.T) {
	addr := os.Getenv("PGW_TEST_KAFKA_SECURE")
	if addr == "" {
		t.Skip("PGW_TEST_KAFKA_SECURE is not set: make test-kafka starts such a Kafka")
	}
	at := embeddedtest.Kafka(t, kafka.Topic{Name: "t", Partitions: 1})
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		secure := kafka.Security{
			TLS: true, CAFile: os.Getenv("PGW_TEST_KAFKA_CA"), SASLMechanism: mechanism, SASLUser: "pgw", SASLPassword: "pgw-secret",
		}
		p := producer(t, kafka.Config{Brokers: []string{addr}, Security: secure})
		if err := p.Publish(t.Context(), at.Prefix+"t", "k", made(t, "k")); err != nil {
			t.Errorf("%s: %v", mechanism, err)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		secure.SASLPassword = "another"
		p = producer(t, kafka.Config{Brokers: []string{addr}, Security: secure})
		if err := p.Publish(t.Context(), at.Prefix+"t", "k", made(t, "k")); err == nil {
			t.Errorf("%s: a wrong password is accepted", mechanism)
		}
		p.Close(t.Context())
	}
	unknown := producer(t, kafka.Config{Brokers: []string{addr}, Security: kafka.Security{TLS: true, SASLMechanism: "PLAIN", SASLUser: "pgw", SASLPassword: "pgw-secret"}})
	if err := unknown.Publish(t.Context(), at.Prefix+"t", "k", made(t, "k")); err == nil {
		t.Error("a certificate of an unknown authority is trusted")
	}
}
