package kafkasource

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/IBM/sarama"
	"github.com/cloudevents/sdk-go/v2/binding"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	oteltrace "go.opentelemetry.io/otel/trace"

	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/trace"
)

const (
	maxReply     = 64 << 10 // read so that the connection can be used again
	maxErrorData = 1024     // of a reply that goes with a dead letter
	maxBackoff   = 10 * time.Minute
	maxHold      = 30 * time.Second // between tries of a dead-letter sink that fails
)

// message is an event on its way, in HTTP's binary mode.
type message struct {
	header http.Header
	body   []byte
	key    string
}

// ReadRecord gives a record as the event that a source of this name would deliver.
func ReadRecord(ctx context.Context, source string, m *sarama.ConsumerMessage) cloudevents.Event {
	s := kafkaSource{typeMeta: typeMeta{Metadata: metadata{Name: source}}}
	read := readRecord(ctx, s, m)
	e, err := binding.ToEvent(ctx, cehttp.NewMessage(read.header, io.NopCloser(bytes.NewReader(read.body))))
	if err != nil || e.Validate() != nil {
		return wrap(s, m)
	}
	return *e
}

// readRecord turns a record into the event that it holds. A record that is no CloudEvent is wrapped; so is
// one that claims to be and is broken, since the sink can then say what is wrong with it.
func readRecord(ctx context.Context, s kafkaSource, m *sarama.ConsumerMessage) message {
	out := message{header: make(http.Header, len(m.Headers)+2), key: string(m.Key)}
	var contentType string
	binary := false
	for _, h := range m.Headers {
		name := strings.ToLower(string(h.Key))
		switch {
		case name == "content-type":
			contentType = string(h.Value)
		case strings.HasPrefix(name, "ce_"):
			binary = binary || name == "ce_specversion"
			out.header.Set("Ce-"+name[3:], string(h.Value))
		}
	}
	if mediaType, _, _ := mime.ParseMediaType(contentType); mediaType == cloudevents.ApplicationCloudEventsJSON {
		e, err := kafka.ReadRecord(ctx, m, func(m *sarama.ConsumerMessage) cloudevents.Event { return wrap(s, m) })
		if err != nil {
			e = wrap(s, m)
		}
		return fromEvent(ctx, e, m, s)
	}
	if !binary {
		return fromEvent(ctx, wrap(s, m), m, s)
	}
	if contentType != "" {
		out.header.Set("Content-Type", contentType)
	}
	out.body = m.Value
	return out
}

// positioned says on the event where its record stands, as KafkaSource does.
func positioned(out message, m *sarama.ConsumerMessage) message {
	out.header.Set("Ce-Knativekafkapartition", strconv.Itoa(int(m.Partition)))
	out.header.Set("Ce-Knativekafkaoffset", strconv.FormatInt(m.Offset, 10))
	return out
}

func fromEvent(ctx context.Context, e cloudevents.Event, m *sarama.ConsumerMessage, s kafkaSource) message {
	req, err := cehttp.NewHTTPRequestFromEvent(ctx, "http://sink", e)
	if err != nil { // an event that can't be written: a structured one that lacks a needed attribute
		req, _ = cehttp.NewHTTPRequestFromEvent(ctx, "http://sink", wrap(s, m))
	}
	out := message{header: req.Header, key: string(m.Key)}
	if req.Body != nil {
		out.body, _ = io.ReadAll(req.Body) // from memory
	}
	return out
}

// wrap makes an event of a record that is none, as KafkaSource does.
func wrap(s kafkaSource, m *sarama.ConsumerMessage) cloudevents.Event {
	e := cloudevents.New()
	e.SetID(fmt.Sprintf("partition:%d/offset:%d", m.Partition, m.Offset))
	e.SetType(event.TypeKafkaRecord)
	e.SetSource(fmt.Sprintf("/apis/v1/namespaces/%s/kafkasources/%s#%s", s.Metadata.namespace(), s.Metadata.Name, m.Topic))
	e.SetSubject(fmt.Sprintf("partition:%d#%d", m.Partition, m.Offset))
	e.SetTime(m.Timestamp)
	if len(m.Key) > 0 && printable(m.Key) {
		e.SetExtension("key", string(m.Key))
	}
	contentType := "application/octet-stream"
	if json.Valid(m.Value) {
		contentType = cloudevents.ApplicationJSON
	}
	e.SetDataContentType(contentType)
	e.DataEncoded = m.Value
	return e
}

func printable(text []byte) bool {
	if !utf8.Valid(text) {
		return false
	}
	for _, c := range text {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// policy is a delivery as it stands in a manifest.
type policy struct {
	retries     int
	exponential bool
	delay       time.Duration
	timeout     time.Duration
}

func newPolicy(d *delivery) policy {
	if d == nil {
		return policy{timeout: 30 * time.Second}
	}
	// Both parse: validate has seen them.
	delay, _ := parseDuration(d.BackoffDelay)
	timeout, _ := parseDuration(d.Timeout)
	return policy{retries: *d.Retry, exponential: d.BackoffPolicy == "exponential", delay: delay, timeout: timeout}
}

// wait before the n-th retry, from 1. Knative doubles before the first: PT0.3S waits 0.6 s.
func (p policy) wait(n int) time.Duration {
	if !p.exponential {
		return min(time.Duration(n)*p.delay, maxBackoff)
	}
	return min(p.delay<<min(n, 20), maxBackoff)
}

// failure is why an event was not delivered.
type failure struct {
	code int // HTTP status; 0 when there was no answer
	body []byte
	err  error
}

func (f *failure) Error() string {
	if f.err != nil {
		return f.err.Error()
	}
	return fmt.Sprintf("status %d: %.200s", f.code, bytes.TrimSpace(f.body))
}

// final tells that trying again is no use.
func (f *failure) final() bool {
	switch {
	case f.err != nil, f.code >= 500:
		return false
	case f.code == http.StatusNotFound, f.code == http.StatusRequestTimeout, f.code == http.StatusConflict, f.code == http.StatusTooManyRequests:
		return false
	}
	return true
}

// poster delivers events to one sink.
type poster struct {
	url       *url.URL
	transport http.RoundTripper // not a client: redirects are not followed, and cookies not kept
	policy    policy
	sleep     func(context.Context, time.Duration) error
	retry     func() // is told of each retry
}

// newPoster takes nil for the transport that http uses by default.
func newPoster(sinkURL string, transport http.RoundTripper, p policy) (poster, error) {
	target, err := url.Parse(sinkURL)
	if err != nil {
		return poster{}, fmt.Errorf("sink: %w", err)
	}
	if transport == nil {
		transport = http.DefaultTransport
	}
	return poster{url: target, transport: transport, policy: p, sleep: sleep, retry: func() {}}, nil
}

// post tries until the event is taken, the policy is used up, or ctx ends, which is errAbandoned. code is the
// status of the last answer; 0 when there was none.
func (p poster) post(ctx context.Context, m message) (code int, err error) {
	for try := 1; ; try++ {
		code, failed := p.once(ctx, m)
		if failed == nil {
			return code, nil
		}
		if ctx.Err() != nil {
			return code, errAbandoned
		}
		if failed.final() || try > p.policy.retries {
			return code, failed
		}
		p.retry()
		if p.sleep(ctx, p.policy.wait(try)) != nil {
			return code, errAbandoned
		}
	}
}

// errAbandoned means that the partition went away, or the program ends, before the event was settled.
var errAbandoned = errors.New("abandoned")

func (p poster) once(ctx context.Context, m message) (code int, _ *failure) {
	ctx, cancel := context.WithTimeout(ctx, p.policy.timeout)
	defer cancel()
	body := func() (io.ReadCloser, error) {
		if len(m.body) == 0 {
			return http.NoBody, nil // any other empty body would be sent in chunks
		}
		return io.NopCloser(bytes.NewReader(m.body)), nil
	}
	req := &http.Request{
		Method: http.MethodPost, URL: p.url, Host: p.url.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: m.header, GetBody: body, ContentLength: int64(len(m.body)),
	}
	req.Body, _ = body()
	resp, err := p.transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return 0, &failure{err: err}
	}
	defer resp.Body.Close()
	// The reply is discarded, as KafkaSource does.
	if resp.StatusCode/100 == 2 {
		io.CopyN(io.Discard, resp.Body, maxReply)
		return resp.StatusCode, nil
	}
	reply, _ := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	return resp.StatusCode, &failure{code: resp.StatusCode, body: reply}
}

// Sender delivers events by hand, the way that a source does: in binary mode, the same answers tried again,
// with waits that double.
type Sender struct{ poster poster }

// NewSender delivers to a URL, with so many retries, the first after twice delay, each try within timeout.
func NewSender(sinkURL string, transport http.RoundTripper, retries int, delay, timeout time.Duration) (Sender, error) {
	p, err := newPoster(sinkURL, transport, policy{retries: retries, exponential: true, delay: delay, timeout: timeout})
	return Sender{p}, err
}

// Send gives the status of the last answer, 0 when there was none.
func (s Sender) Send(ctx context.Context, e cloudevents.Event) (code int, err error) {
	return s.poster.post(ctx, fromEvent(ctx, e, &sarama.ConsumerMessage{}, kafkaSource{}))
}

// Refused tells that a delivery failed for good: trying again is no use.
func Refused(err error) bool {
	var failed *failure
	return errors.As(err, &failed) && failed.final()
}

// deadLetter is where events go that can't be delivered: an HTTP sink, or a topic.
type deadLetter struct {
	http  *poster
	topic string
	mode  string
	kafka *kafka.Producer
}

// put adds why the event is here, as Knative does, and hands it over.
func (d deadLetter) put(ctx context.Context, m message, sinkURL string, why error) error {
	m.header = m.header.Clone()
	m.header.Set("Ce-Knativeerrordest", sinkURL)
	var failed *failure
	if errors.As(why, &failed) && failed.code != 0 {
		m.header.Set("Ce-Knativeerrorcode", strconv.Itoa(failed.code))
		m.header.Set("Ce-Knativeerrordata", base64.StdEncoding.EncodeToString(failed.body[:min(len(failed.body), maxErrorData)]))
	}
	if d.http != nil {
		_, err := d.http.post(ctx, m)
		return err
	}
	e, err := binding.ToEvent(ctx, cehttp.NewMessage(m.header, io.NopCloser(bytes.NewReader(m.body))))
	if err != nil {
		return fmt.Errorf("dead letter: %w", err)
	}
	key, _ := e.Extensions()[event.ExtPartitionKey].(string)
	if key == "" {
		key = m.key
	}
	if d.mode == "structured" {
		ctx = binding.WithForceStructured(ctx)
	}
	return d.kafka.Publish(ctx, d.topic, key, *e)
}

// deliverer takes each event of one source to its end: delivered, in the dead letters, or abandoned.
type deliverer struct {
	poster  poster
	dead    deadLetter
	parity  bool
	log     *slog.Logger
	metrics *sourceMetrics
}

// startTrace begins the span of a delivery. The event carries the trace that it was made in; the sink is told of the
// delivery's own span by HTTP's header, as Knative does.
func startTrace(ctx context.Context, m *message) (context.Context, oteltrace.Span) {
	made := http.Header{"Traceparent": m.header["Ce-Traceparent"], "Tracestate": m.header["Ce-Tracestate"]}
	ctx, span := trace.Start(trace.Extract(ctx, trace.Header(made)), "deliver "+m.header.Get("Ce-Type"), trace.Consumer)
	m.header = m.header.Clone()
	trace.InjectHeader(ctx, m.header)
	return ctx, span
}

// settle returns nil when the event's offset may be committed.
func (d *deliverer) settle(ctx context.Context, m message) (err error) {
	if trace.On() {
		traced, span := startTrace(ctx, &m)
		defer func() { trace.End(span, err) }()
		ctx = traced
	}
	ctx = event.WithKey(ctx, m.header.Get("Ce-Type"), m.header.Get("Ce-Subject"))
	begun := time.Now()
	_, err = d.poster.post(ctx, m)
	d.metrics.seconds.Observe(time.Since(begun).Seconds())
	if err == nil {
		d.metrics.delivered.Inc()
		return nil
	}
	if errors.Is(err, errAbandoned) {
		return err
	}
	d.log.WarnContext(ctx, "an event goes to the dead letters", "type", m.header.Get("Ce-Type"), "id", m.header.Get("Ce-Id"), "error", err)
	for wait := time.Second; ; wait = min(2*wait, maxHold) {
		deadErr := d.dead.put(ctx, m, d.poster.url.String(), err)
		switch {
		case deadErr == nil:
			d.metrics.deadLettered.Inc()
			return nil
		case ctx.Err() != nil:
			return errAbandoned
		case d.parity:
			d.log.ErrorContext(ctx, "an event is dropped, as KafkaSource does: its dead-letter sink failed", "id", m.header.Get("Ce-Id"), "error", deadErr)
			d.metrics.dropped.Inc()
			return nil
		}
		d.log.ErrorContext(ctx, "the dead-letter sink failed; the offset is held", "id", m.header.Get("Ce-Id"), "error", deadErr)
		if d.poster.sleep(ctx, wait) != nil {
			return errAbandoned
		}
	}
}
