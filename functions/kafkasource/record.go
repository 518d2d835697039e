package kafkasource

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/IBM/sarama"
	"github.com/cloudevents/sdk-go/v2/binding"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/go-json-experiment/json/jsontext"

	"pgw/shared/event"
)

const (
	headerPrefix      = "ce_"
	contentTypeHeader = "content-type"
	// maxAttributes is the maximum size of an event's attributes, names included. Many HTTP servers
	// accept longer headers than pgw's functions do, but refuse or close the connection for much
	// longer ones.
	maxAttributes = 64 << 10
)

// message is an event in HTTP's binary mode.
type message struct {
	header http.Header
	body   []byte
	record *sarama.ConsumerMessage // the event's record; nil if there is none
	// refused replaces the sink's response if no sink could accept the event; nil otherwise.
	refused *failure
}

// set sets an attribute. Names of attributes are in lower case; http.Header changes the case.
func (m message) set(attribute, value string) {
	name, usual := usualHeaders[attribute]
	if !usual {
		name = headerOf(attribute)
	}
	m.header[name] = []string{value}
}

func headerOf(attribute string) string { return textproto.CanonicalMIMEHeaderKey("Ce-" + attribute) }

// usualHeaders has the headers of the attributes that every event of pgw has, so that they are not made
// for each event.
var usualHeaders = func() map[string]string {
	headers := map[string]string{}
	for _, attribute := range []string{
		"specversion", "id", "type", "source", "subject", "time", event.ExtPartitionKey, event.ExtSignature, event.ExtKafkaPartition, event.ExtKafkaOffset,
	} {
		headers[attribute] = headerOf(attribute)
	}
	return headers
}()

// positionHeaders is the number of headers that setPosition sets.
const positionHeaders = 2

// setPosition sets the partition and the offset of the event's record.
func (m message) setPosition() {
	m.set(event.ExtKafkaPartition, strconv.Itoa(int(m.record.Partition)))
	m.set(event.ExtKafkaOffset, strconv.FormatInt(m.record.Offset, 10))
}

// ReadRecord returns the event that a source of this name would deliver for a record, without the
// attributes that the source adds. It is always a valid event.
func ReadRecord(_ context.Context, source string, m *sarama.ConsumerMessage) cloudevents.Event {
	s := kafkaSource{typeMeta: typeMeta{Metadata: metadata{Name: source}}}
	if e, err := toEvent(read(s, m)); err == nil {
		return described(e)
	}
	wrapped := wrap(s, m)
	wrapped.header.Del(contentTypeHeader) // with "structured" here the value would be parsed as an event again
	for name, values := range wrapped.header {
		if len(values[0]) > maxKept {
			wrapped.header.Del(name)
		}
	}
	e, err := toEvent(wrapped)
	if err != nil { // not known to happen: leave out the record's own attributes
		e = cloudevents.New()
		e.SetType(event.TypeKafkaRecord)
		e.SetID(wrapped.header.Get("Ce-Id"))
		e.SetSource("/kafkasources")
		e.DataEncoded = m.Value
	}
	return described(e)
}

// described sets the content type if the record has none, or claims JSON although the data is not.
// An event in JSON format needs a correct content type, and one broken event must not end a command
// that lists many.
func described(e cloudevents.Event) cloudevents.Event {
	switch {
	case isJSON(e.DataContentType()) && len(e.Data()) > 0 && !json.Valid(e.Data()):
		e.SetDataContentType("application/octet-stream")
	case e.Type() == event.TypeKafkaRecord && e.DataContentType() == "":
		e.SetDataContentType(guessType(e.Data()))
	}
	return e
}

func guessType(data []byte) string {
	if json.Valid(data) {
		return cloudevents.ApplicationJSON
	}
	return "application/octet-stream"
}

// toEvent parses a message as a sink does.
func toEvent(m message) (cloudevents.Event, error) {
	e, err := event.Foreign(func() (*cloudevents.Event, error) {
		return binding.ToEvent(context.Background(), cehttp.NewMessage(m.header, io.NopCloser(bytes.NewReader(m.body))))
	})
	if err != nil {
		return cloudevents.Event{}, err
	}
	if err := e.Validate(); err != nil {
		return cloudevents.Event{}, fmt.Errorf("%w: %w", event.ErrMalformed, err)
	}
	return *e, nil
}

// fromEvent returns an event as a message. An error means that the event cannot be sent to any
// sink.
func fromEvent(ctx context.Context, e cloudevents.Event) (message, error) {
	req, err := event.Foreign(func() (*http.Request, error) { return cehttp.NewHTTPRequestFromEvent(ctx, "http://sink", e) })
	if err != nil {
		return message{}, fmt.Errorf("%w: %w", event.ErrMalformed, err)
	}
	out := message{header: req.Header}
	if req.Body != nil {
		out.body, _ = io.ReadAll(req.Body) // cannot fail, because the body is in memory
	}
	out.refused = unwritable(out.header)
	return out, nil
}

// readRecord returns the event of a record as KafkaSource delivers it.
func readRecord(s kafkaSource, m *sarama.ConsumerMessage) message {
	out := read(s, m)
	out.setPosition()
	if out.refused == nil {
		out.refused = unwritable(out.header)
	}
	return out
}

// read returns the CloudEvent of a record, or the wrapped record if it is not a valid CloudEvent. A
// broken CloudEvent is also wrapped: it settles if plain records may settle, and otherwise the sink
// can say what is wrong with it.
func read(s kafkaSource, m *sarama.ConsumerMessage) message {
	out, err := event.Foreign(func() (message, error) { return cloudEvent(m) })
	if err != nil {
		return wrap(s, m)
	}
	out.record = m
	return out
}

// unwritable returns the failure of an event whose attributes no HTTP header can carry. KafkaSource
// still tries to send such an event until its retries end, and then drops it, because its dead
// letter cannot be sent either.
func unwritable(h http.Header) *failure {
	size := 0
	for name, values := range h {
		for _, value := range values {
			if !writable(value) {
				text := fmt.Sprintf("the attribute %s has a control character, which no HTTP header can carry", attributeOf(name))
				return &failure{code: http.StatusBadRequest, body: []byte(text)}
			}
			size += len(name) + len(value)
		}
	}
	if size > maxAttributes {
		text := fmt.Sprintf("the event's attributes are %d bytes long; at most %d", size, maxAttributes)
		return &failure{code: http.StatusRequestHeaderFieldsTooLarge, body: []byte(text)}
	}
	return nil
}

func attributeOf(headerName string) string {
	name := strings.ToLower(headerName)
	if name == contentTypeHeader {
		return "datacontenttype"
	}
	return strings.TrimPrefix(name, "ce-")
}

// writable reports whether text can be the value of an HTTP header.
func writable(text string) bool {
	for _, c := range []byte(text) {
		if (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return true
}

// errNoEvent means that a record is not a valid CloudEvent.
var errNoEvent = errors.New("not a CloudEvent")

// lastHeader returns the value of the last header with this name. The Kafka binding uses lower-case
// names.
func lastHeader(m *sarama.ConsumerMessage, name string) (value []byte, there bool) {
	for _, h := range m.Headers {
		if h != nil && string(h.Key) == name {
			value, there = h.Value, true
		}
	}
	return value, there
}

// cloudEvent parses a record by the Kafka protocol binding of CloudEvents.
func cloudEvent(m *sarama.ConsumerMessage) (message, error) {
	if contentType, ok := lastHeader(m, contentTypeHeader); ok {
		mediaType, _, _ := strings.Cut(string(contentType), ";")
		switch mediaType = strings.TrimSpace(mediaType); {
		case contentType == nil:
			return message{}, fmt.Errorf("%w: the content type is null", errNoEvent)
		case mediaType == cloudevents.ApplicationCloudEventsJSON:
			return structured(m)
		case strings.HasPrefix(mediaType, "application/cloudevents"):
			return message{}, fmt.Errorf("%w: the format %s is not known", errNoEvent, mediaType)
		}
	}
	version, _ := lastHeader(m, headerPrefix+"specversion")
	if v := string(version); v != cloudevents.CloudEventsVersionV1 && v != cloudevents.CloudEventsVersionV03 {
		return message{}, fmt.Errorf("%w: specversion %q", errNoEvent, v)
	}
	out := message{header: make(http.Header, len(m.Headers)+positionHeaders), body: m.Value}
	out.set("specversion", string(version))
	for _, h := range m.Headers {
		if h == nil || h.Value == nil {
			continue // a null value counts as absent
		}
		name, value := "datacontenttype", string(h.Value)
		if key := string(h.Key); key != contentTypeHeader {
			var ok bool
			// A header "ce_" without a name is not an attribute.
			if name, ok = strings.CutPrefix(key, headerPrefix); !ok || name == "" {
				continue
			}
			name = strings.ToLower(name)
		}
		if err := out.read(name, value); err != nil {
			return message{}, err
		}
	}
	for _, needed := range []string{"Ce-Id", "Ce-Source", "Ce-Type"} {
		if out.header[needed] == nil {
			return message{}, fmt.Errorf("%w: %s is missing", errNoEvent, needed)
		}
	}
	return out, nil
}

// read sets one attribute of an event in binary mode.
func (m message) read(name, value string) (err error) {
	switch name {
	case "specversion":
		return nil
	case "datacontenttype":
		m.header.Set("Content-Type", value)
		return nil
	case "source", "dataschema", "schemaurl":
		err = checkURI(value)
	case "subject":
		if value == "" {
			err = errors.New("is empty")
		}
	case "time":
		value, err = rewriteTime(value)
	default:
		if !event.AttributeName(name) {
			err = errors.New("is not a name of an attribute")
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %q: %w", errNoEvent, name, err)
	}
	m.set(name, value)
	return nil
}

// checkURI refuses text that is not a URI by RFC 2396; url.Parse alone accepts some of it.
func checkURI(text string) error {
	if strings.ContainsAny(text, " \"<>\\^`{|}") || !writable(text) {
		return errors.New("is not a URI")
	}
	_, err := url.Parse(text)
	return err
}

// javaTime matches the times that java.time parses, except for years of more than four digits:
// CloudEvents' times are RFC 3339.
var javaTime = regexp.MustCompile(`^(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d)(?::(\d\d)(?:\.(\d{0,9}))?)?(?:([Zz])|([+-])(\d\d)(?::(\d\d)(?::(\d\d))?)?)$`)

// rewriteTime returns the same instant with the same offset in KafkaSource's format: with seconds,
// without zeros at the end of the fraction, and Z for a zero offset.
func rewriteTime(text string) (string, error) {
	// pgw's own events have that format already.
	var usual [len(time.RFC3339Nano)]byte
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil && at.Location() == time.UTC && string(at.AppendFormat(usual[:0], time.RFC3339Nano)) == text {
		return text, nil
	}
	part := javaTime.FindStringSubmatch(text)
	if part == nil {
		return "", errors.New("is not a time")
	}
	day, minutes, seconds, fraction, utc, sign, hours := part[1], part[2], part[3], strings.TrimRight(part[4], "0"), part[5], part[6], part[7]
	if seconds == "" {
		seconds = "00"
	}
	written := day + "T" + minutes + ":" + seconds
	if _, err := time.Parse("2006-01-02T15:04:05", written); err != nil {
		return "", errors.New("is not a time")
	}
	if fraction != "" {
		written += "." + fraction
	}
	if utc != "" {
		return written + "Z", nil
	}
	offset := [3]int{}
	for i, digits := range []string{hours, part[8], part[9]} {
		offset[i], _ = strconv.Atoi(digits)
	}
	total := offset[0]*3600 + offset[1]*60 + offset[2]
	if offset[1] > 59 || offset[2] > 59 || total > 18*3600 {
		return "", errors.New("is not a time: its offset is not valid")
	}
	if total == 0 {
		return written + "Z", nil
	}
	written += fmt.Sprintf("%s%02d:%02d", sign, offset[0], offset[1])
	if offset[2] > 0 {
		written += fmt.Sprintf(":%02d", offset[2])
	}
	return written, nil
}

// structured parses an event in JSON. It encodes the data again as KafkaSource does: without
// spaces, and without escapes that JSON does not need. Numbers stay as they are, although
// KafkaSource may format them differently.
func structured(m *sarama.ConsumerMessage) (message, error) {
	e := cloudevents.New()
	var raw struct {
		Time *string `json:"time"`
	}
	if err := errors.Join(e.UnmarshalJSON(m.Value), json.Unmarshal(m.Value, &raw)); err != nil {
		return message{}, fmt.Errorf("%w: %w", errNoEvent, err)
	}
	if err := e.Validate(); err != nil {
		return message{}, fmt.Errorf("%w: %w", errNoEvent, err)
	}
	if isJSON(e.DataContentType()) && !e.DataBase64 && len(e.DataEncoded) > 0 {
		data := jsontext.Value(bytes.Clone(e.DataEncoded))
		if err := data.Format(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)); err != nil {
			return message{}, fmt.Errorf("%w: data: %w", errNoEvent, err)
		}
		e.DataEncoded = data
	}
	out, err := fromEvent(context.Background(), e)
	if err != nil {
		return message{}, fmt.Errorf("%w: %w", errNoEvent, err)
	}
	if raw.Time != nil {
		written, err := rewriteTime(*raw.Time)
		if err != nil {
			return message{}, fmt.Errorf("%w: time: %w", errNoEvent, err)
		}
		out.set("time", written)
	}
	// KafkaSource delivers such an event, and the sink refuses its signature, unless the data
	// already had KafkaSource's encoding. Here the event is always refused with the reason, so the
	// producer learns of the mistake.
	if e.Extensions()[event.ExtSignature] != nil {
		out.refused = &failure{code: http.StatusForbidden, body: []byte(event.SignedStructured(e.Type(), e.ID()).Error())}
	}
	return out, nil
}

func isJSON(contentType string) bool {
	mediaType, _, _ := strings.Cut(contentType, ";")
	mediaType = strings.ToLower(strings.TrimSpace(mediaType))
	return mediaType == "" || strings.HasSuffix(mediaType, "/json") || strings.HasSuffix(mediaType, "+json")
}

// wrap makes an event from a record that is not a CloudEvent, as KafkaSource does.
func wrap(s kafkaSource, m *sarama.ConsumerMessage) message {
	out := message{header: http.Header{}, body: m.Value, record: m}
	out.set("specversion", cloudevents.CloudEventsVersionV1)
	out.set("id", fmt.Sprintf("partition:%d/offset:%d", m.Partition, m.Offset))
	out.set("type", event.TypeKafkaRecord)
	out.set("source", fmt.Sprintf("/apis/v1/namespaces/%s/kafkasources/%s#%s", s.Metadata.namespace(), s.Metadata.Name, m.Topic))
	out.set("subject", fmt.Sprintf("partition:%d#%d", m.Partition, m.Offset))
	if !m.Timestamp.IsZero() {
		out.set("time", m.Timestamp.UTC().Truncate(time.Millisecond).Format(time.RFC3339Nano))
	}
	// KafkaSource uses every key as text. With a key that no HTTP header can carry, it tries for 38
	// s and then loses the record. Here such a key is left out, and the record is delivered. The
	// same is true for the values of headers.
	if key := string(m.Key); key != "" && utf8.ValidString(key) && writable(key) {
		out.set("partitionkey", key)
		out.set("key", key)
	}
	for _, h := range m.Headers {
		// With a null value KafkaSource fails, and loses this record and all plain records of the
		// same poll. Here the header is left out.
		if h == nil || h.Value == nil {
			continue
		}
		value := string(h.Value)
		if strings.EqualFold(string(h.Key), contentTypeHeader) {
			if writable(value) {
				out.header.Set("Content-Type", strings.ToLower(value))
			}
			continue
		}
		out.set("kafkaheader"+lettersAndDigits(string(h.Key)), escaped(value))
	}
	return out
}

// lettersAndDigits returns the lower-case letters and digits of a name, which are the characters of
// an attribute's name.
func lettersAndDigits(name string) string {
	return strings.Map(func(c rune) rune {
		if (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') {
			return c
		}
		return -1
	}, strings.ToLower(name))
}

// escaped writes %XX for the bytes that no HTTP header can carry.
func escaped(text string) string {
	if writable(text) && utf8.ValidString(text) {
		return text
	}
	var out strings.Builder
	for i := 0; i < len(text); {
		_, size := utf8.DecodeRuneInString(text[i:])
		if one := text[i : i+size]; writable(one) && utf8.ValidString(one) {
			out.WriteString(one)
		} else {
			for _, c := range []byte(one) {
				fmt.Fprintf(&out, "%%%02X", c)
			}
		}
		i += size
	}
	return out.String()
}
