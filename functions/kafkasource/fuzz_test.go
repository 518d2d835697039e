package kafkasource

import (
	"errors"
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/IBM/sarama"

	"pgw/knative"
)

// Every record becomes a valid event with the record's own bytes or with the bytes of its data.
func FuzzReadRecord(f *testing.F) {
	f.Add("ce_specversion", "1.0", "ce_id", "1", "application/json", []byte("k"), []byte(`{"n":1}`))
	f.Add("ce_type", "t", "ce_source", "/s", "application/cloudevents+json", []byte(nil), []byte(`{"specversion":"1.0","id":"1","type":"t","source":"/s","data":1}`))
	f.Add("", "", "", "", "", []byte("\x00"), []byte("\xff"))
	f.Add("ce_specversion", "1.0", "ce_", "x", "", []byte("k"), []byte("{}"))
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2, contentType string, key, value []byte) {
		m := &sarama.ConsumerMessage{Topic: "t", Partition: 3, Offset: 7, Key: key, Value: value}
		for name, value := range map[string]string{name1: value1, name2: value2, "content-type": contentType} {
			m.Headers = append(m.Headers, &sarama.RecordHeader{Key: []byte(name), Value: []byte(value)})
		}
		e := ReadRecord(t.Context(), "src", m)
		if err := e.Validate(); err != nil {
			t.Fatalf("%v: %s", err, e)
		}
		if _, err := e.MarshalJSON(); err != nil {
			t.Fatalf("%v: %s", err, e)
		}
		// Every event can be sent or is refused with a reason, and has a dead letter.
		got := readRecord(kafkaSource{}, m)
		if got.header == nil || (got.refused == nil && unwritable(got.header) != nil) {
			t.Fatalf("%v", got)
		}
		for _, mode := range []string{"binary", "structured"} {
			for _, limit := range []int{maxLetter, minLetter} {
				l, err := deadLetter{mode: mode}.compose(kafkaSource{}, got, reasonsOf("http://sink", errors.New("why")), limit)
				if err != nil {
					t.Fatal(err)
				}
				if err := l.event.Validate(); err != nil || (l.size(mode) > limit && len(l.body) > 0) {
					t.Fatalf("%d bytes, %v: %s", l.size(mode), err, l.event)
				}
			}
		}
	})
}

// Every text is either refused as manifests, or becomes manifests that Sources can use.
func FuzzManifests(f *testing.F) {
	fs.WalkDir(knative.Base, ".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			if text, err := fs.ReadFile(knative.Base, path); err == nil {
				f.Add(text)
			}
		}
		return err
	})
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Load(fstest.MapFS{"m.yaml": {Data: text}})
		if err != nil {
			return
		}
		for _, topic := range m.Topics() {
			m.Groups(topic)
		}
		for _, p := range m.pings {
			if _, err := p.schedule(); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range m.sources {
			if s.Spec.Delivery == nil || s.Spec.Delivery.Retry == nil || len(s.Spec.Topics) == 0 {
				t.Fatalf("%+v", s)
			}
			newPolicy(s.Spec.Delivery).wait(1)
		}
	})
}
