package kafkasource

import (
	"testing"

	"github.com/IBM/sarama"
)

// BenchmarkReadRecord turns a record in binary mode into the headers and the body of its delivery.
func BenchmarkReadRecord(b *testing.B) {
	m := &sarama.ConsumerMessage{Topic: "payments.request", Key: []byte("key-1"), Value: []byte(`{"idempotency_key":"key-1"}`)}
	for name, value := range map[string]string{
		"ce_specversion": "1.0", "ce_id": "1f0c", "ce_type": "pgw.payment.requested.v1", "ce_source": "/pgw/gateway", "ce_subject": "key-1",
		"ce_time": "2026-01-31T09:30:00Z", "ce_partitionkey": "key-1", "ce_pgwsignature": "k1.c2lnbmF0dXJl", "content-type": "application/json",
	} {
		m.Headers = append(m.Headers, &sarama.RecordHeader{Key: []byte(name), Value: []byte(value)})
	}
	b.ReportAllocs()
	for b.Loop() {
		if got := readRecord(kafkaSource{}, m); len(got.header) != len(m.Headers)+2 { // and its place in Kafka
			b.Fatal(got.header)
		}
	}
}
