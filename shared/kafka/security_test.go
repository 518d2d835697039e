package kafka_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
