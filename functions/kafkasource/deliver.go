package kafkasource

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	oteltrace "go.opentelemetry.io/otel/trace"

	"pgw/shared/event"
	"pgw/shared/trace"
)

const (
	maxReply     = 64 << 10 // the part of a reply that is read, which lets the connection be reused
	maxErrorData = 1024     // the part of a reply that is kept in a dead letter
	maxBackoff   = 10 * time.Minute
	maxHold      = 30 * time.Second // the longest wait before a dead-letter sink is tried again
	putWithin    = 30 * time.Second // the time limit of one write to a dead-letter topic
)

// policy is the delivery policy of a manifest.
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
	// Both can be parsed, because validate has checked them.
	delay, _ := parseDuration(d.BackoffDelay)
	timeout, _ := parseDuration(d.Timeout)
	return policy{retries: *d.Retry, exponential: d.BackoffPolicy == "exponential", delay: delay, timeout: timeout}
}

// wait returns the wait before the n-th retry, counted from 1. Knative doubles the delay before the
// first retry too: with PT0.3S it waits 0.6 s.
func (p policy) wait(n int) time.Duration {
	if !p.exponential {
		return min(time.Duration(n)*p.delay, maxBackoff)
	}
	return min(p.delay<<min(n, 20), maxBackoff)
}

// failure is the error of an event that was not delivered.
type failure struct {
	code   int // HTTP status; 0 if there was no response
	header http.Header
	body   []byte
	err    error
}

func (f *failure) Error() string {
	if f.err != nil {
		return f.err.Error()
	}
	return fmt.Sprintf("status %d: %.200s", f.code, bytes.TrimSpace(f.body))
}

// final reports whether a retry cannot succeed.
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
	transport http.RoundTripper // not a client, because redirects must not be followed and cookies must not be kept
	receivers map[string]event.Receive
	policy    policy
	sleep     func(context.Context, time.Duration) error
	retry     func() // called for each retry
}

// newPoster makes a poster. A nil transport means http.DefaultTransport.
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

// post sends an event until the sink accepts it or the policy has no more retries. If ctx ends
// first, it returns errAbandoned. code is the status of the last response, or 0 if there was none.
func (p poster) post(ctx context.Context, m message) (code int, err error) {
	if m.refused != nil {
		return m.refused.code, m.refused
	}
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

// errAbandoned means that the partition was revoked or the program ended before the event was
// settled.
var errAbandoned = errors.New("abandoned")

func (p poster) once(ctx context.Context, m message) (code int, _ *failure) {
	ctx, cancel := context.WithTimeout(ctx, p.policy.timeout)
	defer cancel()
	if p.receivers != nil {
		return p.hand(ctx, m)
	}
	body := func() (io.ReadCloser, error) {
		if len(m.body) == 0 {
			return http.NoBody, nil // any other empty body would be sent with chunked encoding
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
	// The reply is discarded, as in KafkaSource.
	if resp.StatusCode/100 == 2 {
		io.CopyN(io.Discard, resp.Body, maxReply)
		return resp.StatusCode, nil
	}
	reply, _ := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	return resp.StatusCode, &failure{code: resp.StatusCode, header: resp.Header, body: reply}
}

// hand gives an event to a sink in this process.
func (p poster) hand(ctx context.Context, m message) (code int, _ *failure) {
	receive, ok := p.receivers[p.url.Host]
	if !ok {
		return 0, &failure{err: fmt.Errorf("there is no function %s in this process", p.url.Host)}
	}
	answer := receive(ctx, m.header, m.body)
	if answer.Code/100 == 2 {
		return answer.Code, nil
	}
	return answer.Code, &failure{code: answer.Code, body: []byte(answer.Text + "\n")} // as over HTTP
}

// Sender delivers single events for operators' commands. It works like a source: binary mode,
// retries for the same statuses, and doubled waits.
type Sender struct{ poster poster }

// NewSender makes a Sender for a URL with the given number of retries. The first retry waits twice
// delay. timeout is the time limit of each attempt.
func NewSender(sinkURL string, transport http.RoundTripper, retries int, delay, timeout time.Duration) (Sender, error) {
	p, err := newPoster(sinkURL, transport, policy{retries: retries, exponential: true, delay: delay, timeout: timeout})
	return Sender{p}, err
}

// Send delivers an event and returns the status of the last response, or 0 if there was none.
func (s Sender) Send(ctx context.Context, e cloudevents.Event) (code int, err error) {
	m, err := fromEvent(ctx, e)
	if err != nil {
		return 0, err
	}
	return s.poster.post(ctx, m)
}

// Refused reports whether a delivery failed for good. A retry cannot succeed then.
func Refused(err error) bool {
	var failed *failure
	return errors.Is(err, event.ErrMalformed) || errors.As(err, &failed) && failed.final()
}

// deliverer settles each event of one source: the event is delivered, becomes a dead letter, or is
// abandoned.
type deliverer struct {
	source  kafkaSource
	poster  poster
	dead    deadLetter
	parity  bool
	log     *slog.Logger
	lost    *trace.Outage // events that become dead letters
	held    *trace.Outage // dead letters that can't be written
	metrics *sourceMetrics
}

// startTrace starts the span of a delivery. The event carries the trace in which it was made. The
// HTTP header gives the sink the span of the delivery, as in Knative.
func startTrace(ctx context.Context, m *message) (context.Context, oteltrace.Span) {
	made := http.Header{"Traceparent": m.header["Ce-Traceparent"], "Tracestate": m.header["Ce-Tracestate"]}
	ctx, span := trace.Start(trace.Extract(ctx, trace.Header(made)), "deliver "+m.header.Get("Ce-Type"), trace.Consumer)
	m.header = m.header.Clone()
	trace.InjectHeader(ctx, m.header)
	return ctx, span
}

// settle returns nil if the event's offset may be committed. It calls hold after each failed
// attempt to write the event's dead letter.
func (d *deliverer) settle(ctx context.Context, m message, hold func(error)) (err error) {
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
		d.lost.Note(ctx, nil)
		d.metrics.delivered.Inc()
		return nil
	}
	if errors.Is(err, errAbandoned) {
		return err
	}
	d.lost.Note(ctx, err, "type", m.header.Get("Ce-Type"), "id", m.header.Get("Ce-Id"))
	for wait := time.Second; ; wait = min(2*wait, maxHold) {
		cut, deadErr := d.putDead(ctx, m, err)
		switch {
		case deadErr == nil:
			d.held.Note(ctx, nil)
			d.metrics.deadLettered.Inc()
			if cut {
				d.metrics.cut.Inc()
			}
			return nil
		case ctx.Err() != nil:
			return errAbandoned
		case d.parity:
			d.log.ErrorContext(ctx, "an event is dropped, as by KafkaSource: its dead-letter sink failed", "id", m.header.Get("Ce-Id"), "error", deadErr)
			d.metrics.dropped.Inc()
			return nil
		}
		hold(deadErr)
		d.held.Note(ctx, deadErr, "id", m.header.Get("Ce-Id"))
		if d.poster.sleep(ctx, wait) != nil {
			return errAbandoned
		}
	}
}

// putDead makes one attempt to write the dead letter. It has a time limit, because a dead-letter
// sink that never answers has failed.
func (d *deliverer) putDead(ctx context.Context, m message, why error) (cut bool, err error) {
	if d.dead.http == nil { // an HTTP sink has the time limit of its policy
		bounded, cancel := context.WithTimeout(ctx, putWithin)
		defer cancel()
		ctx = bounded
	}
	return d.dead.put(ctx, d.source, m, d.poster.url.String(), why)
}
