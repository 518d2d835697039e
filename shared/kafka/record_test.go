package kafka_test

import (
	"errors"
	"testing"

	"github.com/IBM/sarama"

	"pgw/shared/event"
	"pgw/shared/kafka"
)

// Attribute names are checked before the SDK sees them, and a panic of the SDK means a malformed
// event.
func TestARecordThatIsNoEventIsAnError(t *testing.T) {
	for name, h := range map[string]*sarama.RecordHeader{"no name": {Key: []byte("ce_")}, "hyphen": {Key: []byte("ce_a-b")}, "no header": nil} {
		m := &sarama.ConsumerMessage{Headers: []*sarama.RecordHeader{h}, Value: []byte("{}")}
		for key, value := range map[string]string{"ce_specversion": "1.0", "ce_id": "1", "ce_type": "t", "ce_source": "/s"} {
			m.Headers = append(m.Headers, &sarama.RecordHeader{Key: []byte(key), Value: []byte(value)})
		}
		if _, err := kafka.ReadRecord(t.Context(), m, nil); !errors.Is(err, event.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
