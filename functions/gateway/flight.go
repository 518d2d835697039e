package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"

	"pgw/shared/event"
	"pgw/shared/payment"
	"pgw/shared/trace"
)

const (
	// relayTimeout bounds the one try to hand a result to the replica at which its client waits.
	relayTimeout = 2 * time.Second
	// relayedHeader marks a result that another replica handed over: it is not handed on.
	relayedHeader = "Pgw-Relayed"
)

// flightID names a request under way: its key, and what it asks for.
type flightID struct {
	key         string
	fingerprint payment.Fingerprint
}

// flight is one request under way at this replica, and all clients who wait for it.
type flight struct {
	attempt   string    // the leader's
	published time.Time // about when: taken before publishing
	done      chan struct{}
	result    event.PaymentResult // set before done is closed
	waiters   int                 // guarded by flights.mu
}

// flights are all requests under way at this replica.
type flights struct {
	mu sync.Mutex
	by map[flightID]*flight
}

func newFlights() *flights { return &flights{by: map[flightID]*flight{}} }

// join waits with a flight that there is; nil when there is none.
func (fs *flights) join(id flightID) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.by[id]
	if f != nil {
		f.waiters++
	}
	return f
}

// start joins the flight, and makes it when there is none: then the caller leads.
func (fs *flights) start(id flightID, attempt string) (f *flight, leads bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f = fs.by[id]
	if f == nil {
		f, leads = &flight{attempt: attempt, published: time.Now(), done: make(chan struct{})}, true
		fs.by[id] = f
	}
	f.waiters++
	return f, leads
}

// leave ends a wait. The last one takes the flight away.
func (fs *flights) leave(id flightID, f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.waiters--
	if f.waiters == 0 && fs.by[id] == f {
		delete(fs.by, id)
	}
}

// finish gives everyone who waits the result. It tells whether anyone did.
func (fs *flights) finish(id flightID, result event.PaymentResult) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.by[id]
	if f == nil {
		return false
	}
	// A later request of the same payment starts a flight of its own, and hears of a replay.
	delete(fs.by, id)
	f.result = result
	close(f.done)
	return true
}

// takeResult takes a result event: it answers the clients who wait here, or hands the event to the replica
// where they wait. A result nobody waits for is done with: its outcome can be read by GET.
func (g *Gateway) takeResult(ctx context.Context, e cloudevents.Event) error {
	outcome, err := g.deliver(ctx, e)
	g.metrics.results.WithLabelValues(outcome).Inc()
	return err
}

func (g *Gateway) deliver(ctx context.Context, e cloudevents.Event) (outcome string, err error) {
	result, err := event.ReadResult(e, &g.cfg.Keys)
	if err != nil {
		return "refused", err
	}
	id := flightID{result.Key, result.Fingerprint}
	// A result belongs to the replica that asked, even while the same payment is under way here too: each
	// request has a result of its own coming, and this one's client waits there.
	elsewhere := result.ReplyTo != "" && result.ReplyTo != g.cfg.ReplicaURL
	if elsewhere && event.Header(ctx).Get(relayedHeader) == "" {
		err := g.relayResult(ctx, result.ReplyTo, e)
		if g.relaying.Note(ctx, err); err != nil {
			// One try: that replica may be gone, and its client with it.
			return "relay_failed", nil
		}
		return "relayed", nil
	}
	if g.flights.finish(id, result) {
		return "answered", nil
	}
	return "nobody_waits", nil
}

func (g *Gateway) relayResult(ctx context.Context, replica string, e cloudevents.Event) error {
	req, err := cehttp.NewHTTPRequestFromEvent(ctx, replica+"/events", e)
	if err != nil {
		return err
	}
	req.Header.Set(relayedHeader, "1")
	trace.InjectHeader(ctx, req.Header)
	resp, err := g.relay.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return nil
}

// waker starts functions at zero side by side: else the cold starts of worker, payments and db would add up
// behind the first payment after a pause.
type waker struct {
	urls   []string
	client *http.Client
	mu     sync.Mutex
	last   time.Time
}

// asleepAfter is shorter than any scale-to-zero grace.
const asleepAfter = 20 * time.Second

func newWaker(urls []string, by http.RoundTripper) *waker {
	return &waker{urls: urls, client: &http.Client{Timeout: 10 * time.Second, Transport: by}}
}

func (w *waker) wake() {
	if len(w.urls) == 0 {
		return
	}
	w.mu.Lock()
	asleep := time.Since(w.last) > asleepAfter
	w.last = time.Now()
	w.mu.Unlock()
	if !asleep {
		return
	}
	for _, url := range w.urls {
		go func() {
			// Only the knock matters: whoever can't be woken is missed by the payment itself.
			if resp, err := w.client.Get(url); err == nil {
				resp.Body.Close()
			}
		}()
	}
}
