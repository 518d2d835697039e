package kafkasource

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/IBM/sarama"
	"github.com/cloudevents/sdk-go/v2/binding"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/event"
	"pgw/shared/kafka"
)

// The extensions which say that a dead letter has only a part of its record.
const (
	ExtCutFrom = event.ExtCutFrom
	ExtLeftOut = "pgwleftout" // the number of headers that are left out
)

// The limits of a dead letter, in bytes.
const (
	// maxLetter is the default maximum size of pgw's producers, of KafkaSink's producer
	// (max.request.size) and of a topic, minus the size of a trace and of the batch around the
	// record. If a topic has a smaller limit it returns an error, and then half of the size is
	// tried.
	maxLetter = 1<<20 - 2048
	minLetter = 4 << 10
	maxKept   = 1 << 10 // of one header of a wrapped record
	maxAll    = 8 << 10 // of all headers of a wrapped record; functions accept 16 KiB, including HTTP's own headers
)

// deadLetter is the destination of events that cannot be delivered: an HTTP sink or a topic.
type deadLetter struct {
	http  *poster
	topic string
	mode  string
	kafka *kafka.Producer
}

// put adds the reasons to the event, as Knative does, and writes the dead letter. cut reports
// whether the letter was cut. An error is never caused by the record: some letter can be written
// for every record.
func (d deadLetter) put(ctx context.Context, s kafkaSource, m message, sinkURL string, why error) (cut bool, err error) {
	reasons := reasonsOf(sinkURL, why)
	for limit := maxLetter; ; limit /= 2 {
		l, err := d.compose(s, m, reasons, limit)
		if err != nil {
			return false, err
		}
		err = d.send(ctx, l)
		if !tooLarge(err) || limit/2 < minLetter {
			return l.cut(), err
		}
	}
}

func (d deadLetter) send(ctx context.Context, l letter) error {
	if d.http != nil {
		_, err := d.http.post(ctx, l.message)
		return err
	}
	if d.mode == "structured" {
		ctx = binding.WithForceStructured(ctx)
	}
	return d.kafka.Publish(ctx, d.topic, l.key(), l.event)
}

// tooLarge reports whether a smaller letter may be accepted.
func tooLarge(err error) bool {
	var settings sarama.ConfigurationError // the producer's own limit
	var failed *failure
	return errors.Is(err, sarama.ErrMessageSizeTooLarge) || errors.As(err, &settings) ||
		errors.As(err, &failed) && (failed.code == http.StatusRequestEntityTooLarge || failed.code == http.StatusRequestHeaderFieldsTooLarge)
}

// reasonsOf returns the attributes that say why an event could not be delivered.
func reasonsOf(sinkURL string, why error) map[string]string {
	reasons := map[string]string{}
	var failed *failure
	if errors.As(why, &failed) && failed.code != 0 {
		// A sink can add attributes with headers "kne-NAME".
		for name, values := range failed.header {
			extension, ok := strings.CutPrefix(strings.ToLower(name), "kne-")
			// The event's own attributes stay. In KafkaSource the reply overwrites them.
			if ok && event.AttributeName(extension) && !slices.Contains(contextAttributes, extension) && writable(values[0]) && len(values[0]) <= maxKept {
				reasons[extension] = values[0]
			}
		}
		reasons[event.ExtErrorCode] = strconv.Itoa(failed.code)
		if len(failed.body) > 0 {
			reasons[event.ExtErrorData] = base64.StdEncoding.EncodeToString(failed.body[:min(len(failed.body), maxErrorData)])
		}
	}
	reasons[event.ExtErrorDestination] = sinkURL
	return reasons
}

// The attributes that a reply cannot set: the event's own attributes, the signature and the
// partition key.
var contextAttributes = []string{"specversion", "id", "source", "type", "subject", "time", "dataschema", "schemaurl", "datacontenttype", event.ExtSignature, event.ExtPartitionKey}

// letter is a dead letter, both as a message and as an event.
type letter struct {
	message
	event cloudevents.Event
}

func (l letter) cut() bool {
	return l.header.Get("Ce-"+ExtCutFrom) != "" || l.header.Get("Ce-"+ExtLeftOut) != ""
}

// key returns the letter's key in Kafka. KafkaSink uses only the partitioning extension. For an
// event without it, this returns the record's key, which allows finding the letter by that key.
func (l letter) key() string {
	if key, ok := l.event.Extensions()[event.ExtPartitionKey].(string); ok {
		return key
	}
	if l.record != nil && len(l.record.Key) <= maxKept {
		return string(l.record.Key)
	}
	return ""
}

// size returns the size of the letter as a record, or slightly more.
func (l letter) size(mode string) int {
	const record, header = 36, 16
	size := record + len(l.key())
	if mode == "structured" {
		text, err := l.event.MarshalJSON()
		if err != nil {
			return maxLetter + 1
		}
		return size + len(text) + header + len(contentTypeHeader)
	}
	for name, values := range l.header {
		size += header + len(name) + len(values[0])
	}
	return size + len(l.body)
}

// compose makes the dead letter of an event. It is the event itself, if that can be written and is
// not larger than limit. Otherwise it is the wrapped raw record, cut to the limit. No reader can
// take a wrapped record for the event itself.
func (d deadLetter) compose(s kafkaSource, m message, reasons map[string]string, limit int) (letter, error) {
	made, err := addReasons(m, reasons)
	if err == nil && made.size(d.mode) <= limit {
		return made, nil
	}
	raw := m
	if m.record != nil && (err != nil || made.event.Type() != event.TypeKafkaRecord) {
		raw = wrap(s, m.record)
		raw.setPosition()
	}
	raw.header = raw.header.Clone()
	leaveOut(raw)
	body := raw.body
	for room := len(body); ; {
		raw.body = body[:room]
		if room < len(body) && raw.header.Get("Ce-"+ExtCutFrom) == "" {
			raw.set(ExtCutFrom, strconv.Itoa(len(body)))
		}
		raw.header.Set("Content-Type", letterType(raw.header.Get("Content-Type"), raw.body))
		made, err := addReasons(raw, reasons)
		if err != nil {
			return letter{}, fmt.Errorf("dead letter: %w", err)
		}
		size := made.size(d.mode)
		if size <= limit || room == 0 {
			return made, nil
		}
		if d.mode == "structured" { // one byte may need more than one byte here
			room = min(room-1, max(0, room*limit/size-len(ExtCutFrom)))
		} else {
			room = max(0, room-(size-limit))
		}
	}
}

// letterType returns the content type of a wrapped record's data. It is the record's own content
// type, unless that is invalid, claims to be an event, or claims to be JSON although the data is
// not.
func letterType(contentType string, data []byte) string {
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil || strings.HasPrefix(mediaType, "application/cloudevents") || (isJSON(mediaType) && !json.Valid(data)) {
		return guessType(data)
	}
	return contentType
}

func addReasons(m message, reasons map[string]string) (letter, error) {
	m.header, m.refused = m.header.Clone(), nil
	for name, value := range reasons {
		m.set(name, value)
	}
	if refused := unwritable(m.header); refused != nil {
		return letter{}, refused
	}
	e, err := toEvent(m)
	return letter{m, e}, err
}

// leaveOut removes the long headers of a wrapped record, and short ones if there are too many. It
// adds the number of removed headers to the message.
func leaveOut(m message) {
	var names []string
	for name := range m.header {
		if attribute := attributeOf(name); strings.HasPrefix(attribute, "kafkaheader") || attribute == "key" || attribute == event.ExtPartitionKey ||
			attribute == "datacontenttype" {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { // the shortest first
		return cmp.Or(cmp.Compare(len(m.header.Get(a)), len(m.header.Get(b))), cmp.Compare(a, b))
	})
	left, all := 0, 0
	for _, name := range names {
		if size := len(name) + len(m.header.Get(name)); size <= maxKept && all+size <= maxAll {
			all += size
			continue
		}
		m.header.Del(name)
		left++
	}
	if left > 0 {
		before, _ := strconv.Atoi(m.header.Get("Ce-" + ExtLeftOut))
		m.set(ExtLeftOut, strconv.Itoa(before+left))
	}
}
