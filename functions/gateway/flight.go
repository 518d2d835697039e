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
	// relayTimeout is the time limit for relaying a result to the replica whose client waits for
	// it. There is one attempt.
	relayTimeout = 2 * time.Second
	// relayedHeader marks a result that another replica has relayed. It is not relayed again.
	relayedHeader = "Pgw-Relayed"
)

// flightID identifies a request under way by its key and its fingerprint.
type flightID struct {
	key         string
	fingerprint payment.Fingerprint
}

// flight is one request under way at this replica. All clients that wait for its result share it.
type flight struct {
	attempt   string    // the attempt id of the leader
	published time.Time // taken just before publishing
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

// join adds a waiter to an existing flight. It returns nil if there is none.
func (fs *flights) join(id flightID) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.by[id]
	if f != nil {
		f.waiters++
	}
	return f
}

// start joins the flight, and creates it if there is none. leads is true for the caller that
// created it.
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

// leave removes a waiter. The last waiter removes the flight.
func (fs *flights) leave(id flightID, f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.waiters--
	if f.waiters == 0 && fs.by[id] == f {
		delete(fs.by, id)
	}
}

// finish gives all waiters the result. It reports whether there was a flight.
func (fs *flights) finish(id flightID, result event.PaymentResult) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.by[id]
	if f == nil {
		return false
	}
	// A later request of the same payment starts a new flight, and its result is a replay.
	delete(fs.by, id)
	f.result = result
	close(f.done)
	return true
}

// takeResult takes a result event. It answers the clients that wait at this replica, or relays the
// event to the replica where they wait. If no client waits, it drops the result: GET returns its
// outcome.
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
	// A result belongs to the replica in ReplyTo, even if the same payment is under way here too.
	// Each request gets its own result, and the client of this result waits at the other replica.
	elsewhere := result.ReplyTo != "" && result.ReplyTo != g.cfg.ReplicaURL
	if elsewhere && event.Header(ctx).Get(relayedHeader) == "" {
		err := g.relayResult(ctx, result.ReplyTo, e)
		if g.relaying.Note(ctx, err); err != nil {
			// There is no retry: the other replica may be gone, and its client with it.
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

// waker wakes the functions that are scaled to zero, all at the same time. Otherwise the cold
// starts of worker, payments and db would add up for the first payment after a pause.
type waker struct {
	urls   []string
	client *http.Client
	mu     sync.Mutex
	last   time.Time
}

// asleepAfter is the pause after which functions are woken. It is shorter than any scale-to-zero
// grace period.
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
			// The response does not matter. If a function cannot be woken, the payment itself
			// fails.
			if resp, err := w.client.Get(url); err == nil {
				resp.Body.Close()
			}
		}()
	}
}
