package kafka

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/IBM/sarama"
	"github.com/xdg-go/scram"

	"pgw/shared/secret"
)

// Security is the access to a Kafka that requires TLS or a login. Its files are read when a client
// is made. The client's own certificate and key are read again when they change.
type Security struct {
	TLS           bool   `envconfig:"KAFKA_TLS" default:"false" desc:"connect with TLS"`
	CAFile        string `envconfig:"KAFKA_CA_FILE" desc:"PEM of the authorities that sign the brokers' certificates; empty: the system's"`
	CertFile      string `envconfig:"KAFKA_CERT_FILE" desc:"PEM of the client's own certificate, with KAFKA_KEY_FILE; read again when it changes"`
	KeyFile       string `envconfig:"KAFKA_KEY_FILE" desc:"PEM of the client's own key"`
	SASLMechanism string `envconfig:"KAFKA_SASL_MECHANISM" desc:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty means none"`
	SASLUser      string `envconfig:"KAFKA_SASL_USER"`
	SASLPassword  string `envconfig:"KAFKA_SASL_PASSWORD"`
}

func (c Security) secure(settings *sarama.Config) error {
	if err := c.secureTLS(settings); err != nil {
		return err
	}
	if c.SASLMechanism == "" {
		if c.SASLUser != "" || c.SASLPassword != "" {
			return errors.New("KAFKA_SASL_MECHANISM is missing beside KAFKA_SASL_USER and KAFKA_SASL_PASSWORD")
		}
		return nil
	}
	if c.SASLUser == "" || c.SASLPassword == "" {
		return errors.New("KAFKA_SASL_MECHANISM needs KAFKA_SASL_USER and KAFKA_SASL_PASSWORD")
	}
	sasl := &settings.Net.SASL
	sasl.Enable, sasl.Mechanism = true, sarama.SASLMechanism(c.SASLMechanism)
	sasl.User, sasl.Password = c.SASLUser, c.SASLPassword
	switch sasl.Mechanism {
	case sarama.SASLTypePlaintext:
		if !c.TLS {
			return errors.New("KAFKA_SASL_MECHANISM PLAIN sends the password in plain text: it needs KAFKA_TLS")
		}
	case sarama.SASLTypeSCRAMSHA256:
		sasl.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return &scramClient{hash: scram.SHA256} }
	case sarama.SASLTypeSCRAMSHA512:
		sasl.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return &scramClient{hash: scram.SHA512} }
	default:
		return fmt.Errorf("KAFKA_SASL_MECHANISM: %q; one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512", c.SASLMechanism)
	}
	return nil
}

func (c Security) secureTLS(settings *sarama.Config) error {
	if !c.TLS {
		if c.CAFile != "" || c.CertFile != "" || c.KeyFile != "" {
			return errors.New("KAFKA_CA_FILE, KAFKA_CERT_FILE and KAFKA_KEY_FILE need KAFKA_TLS")
		}
		return nil
	}
	settings.Net.TLS.Enable = true
	settings.Net.TLS.Config = &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return fmt.Errorf("KAFKA_CA_FILE: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("KAFKA_CA_FILE: %s holds no PEM certificate", c.CAFile)
		}
		settings.Net.TLS.Config.RootCAs = pool
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return errors.New("KAFKA_CERT_FILE and KAFKA_KEY_FILE go together")
	}
	if c.CertFile != "" {
		read := func(cert []byte) (tls.Certificate, error) { return secret.KeyPair(cert, "KAFKA_KEY_FILE", c.KeyFile) }
		own, err := secret.Open(c.CertFile, read, slog.Default())
		if err != nil {
			return fmt.Errorf("KAFKA_CERT_FILE: %w", err)
		}
		settings.Net.TLS.Config.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if pair := own.Get(); asked.SupportsCertificate(&pair) == nil {
				return &pair, nil
			}
			return &tls.Certificate{}, nil // none: the broker would refuse it, and may not need it
		}
	}
	return nil
}

// scramClient is one SCRAM conversation, with the methods that sarama needs.
type scramClient struct {
	hash scram.HashGeneratorFcn
	talk *scram.ClientConversation
}

func (c *scramClient) Begin(user, password, authorization string) error {
	client, err := c.hash.NewClient(user, password, authorization)
	if err != nil {
		return err
	}
	c.talk = client.NewConversation()
	return nil
}

func (c *scramClient) Step(challenge string) (string, error) { return c.talk.Step(challenge) }

func (c *scramClient) Done() bool { return c.talk.Done() }
