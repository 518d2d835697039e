package reconcile

import (
	"net"
	"strings"
	"testing"

	"github.com/IBM/sarama"

	"pgw/shared/embedded/embeddedtest"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
)

func TestMain(m *testing.M) { embeddedtest.Main(m) }

// migrated is a database with the schema; on Citus a distributed schema.
var migrated = embeddedtest.Template{Prepare: ledger.Migrate, Distribute: ledger.Distribute, DistributeRows: ledger.DistributeRows}

// A reconciliation ends even if a topic ends in a transaction marker or another gap.
func TestTopicsThatEndInAMarker(t *testing.T) {
	database := migrated.Postgres(t)
	names := []string{"payments.request", "payments.result", "payments.deadletter", "payments.parked", "ledger.accounts"}
	var topics []kafka.Topic
	for _, name := range names {
		topics = append(topics, kafka.Topic{Name: name, Partitions: 1})
	}
	broker := embeddedtest.Kafka(t, topics...)
	settings := broker.Client(t)
	settings.Producer.Transaction.ID = broker.Prefix + "test"
	p, err := sarama.NewSyncProducer(broker.Brokers, settings)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, commit := range []bool{true, false} {
		if err := p.BeginTxn(); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if _, _, err := p.SendMessage(&sarama.ProducerMessage{Topic: broker.Prefix + name, Value: sarama.StringEncoder("no request")}); err != nil {
				t.Fatal(err)
			}
		}
		end := p.AbortTxn
		if commit {
			end = p.CommitTxn
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	report, err := Run(t.Context(), Config{Database: database, Kafka: broker.Config, Keys: &event.Keyring{}, Grace: DefaultGrace})
	if err != nil {
		t.Fatal(err)
	}
	if !report.Clean() || report.Foreign != 6 {
		t.Errorf("%+v", report)
	}
}

// A host that accepts connections and never answers ends the reconciliation with an error.
func TestASilentPostgresIsGivenUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Run(t.Context(), Config{Database: "postgres://pgw@" + l.Addr().String() + "/pgw?sslmode=disable"})
	if err == nil || !strings.Contains(err.Error(), "DATABASE_URL") {
		t.Errorf("%v", err)
	}
}
