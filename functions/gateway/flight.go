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

// flightID identifies a request under way by its client's key and its fingerprint.
type flightID struct {
	key         payment.ScopedKey
	fingerprint payment.Fingerprint
}

// flight is one request under way at this replica. All clients that wait for its result share it. R is
// the data of the result event.
type flight[R any] struct {
	attempt   string    // the attempt id of the leader
	published time.Time // taken just before publishing
	done      chan struct{}
	result    R   // set before done is closed
	waiters   int // guarded by flights.mu
}

// flights are all requests of one sort under way at this replica.
type flights[R any] struct {
	mu sync.Mutex
	by map[flightID]*flight[R]
}

func newFlights[R any]() *flights[R] { return &flights[R]{by: map[flightID]*flight[R]{}} }

// join adds a waiter to an existing flight. It returns nil if there is none.
func (fs *flights[R]) join(id flightID) *flight[R] {
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
func (fs *flights[R]) start(id flightID, attempt string) (f *flight[R], leads bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f = fs.by[id]
	if f == nil {
		f, leads = &flight[R]{attempt: attempt, published: time.Now(), done: make(chan struct{})}, true
		fs.by[id] = f
	}
	f.waiters++
	return f, leads
}

// leave removes a waiter. The last waiter removes the flight.
func (fs *flights[R]) leave(id flightID, f *flight[R]) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.waiters--
	if f.waiters == 0 && fs.by[id] == f {
		delete(fs.by, id)
	}
}

// finish gives all waiters the result. It reports whether there was a flight.
func (fs *flights[R]) finish(id flightID, result R) bool {
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
	if event.IsOperationResult(e) {
		result, err := event.ReadOperationResult(e, &g.cfg.Keys)
		if err != nil {
			return "refused", err
		}
		return g.hand(ctx, e, result.ReplyTo, func() bool { return g.asked.finish(operationFlight(result), result) })
	}
	result, err := event.ReadResult(e, &g.cfg.Keys)
	if err != nil {
		return "refused", err
	}
	id := flightID{result.Scoped(), result.Fingerprint}
	return g.hand(ctx, e, result.ReplyTo, func() bool { return g.flights.finish(id, result) })
}

// hand gives a result to those who wait for it here, or relays its event to the replica replyTo. finish
// reports whether anybody waits here.
func (g *Gateway) hand(ctx context.Context, e cloudevents.Event, replyTo string, finish func() bool) (outcome string, err error) {
	// A result belongs to the replica in replyTo, even if the same request is under way here too.
	// Each request gets its own result, and the client of this result waits at the other replica.
	elsewhere := replyTo != "" && replyTo != g.cfg.ReplicaURL
	if elsewhere && event.Header(ctx).Get(relayedHeader) == "" {
		err := g.relayResult(ctx, replyTo, e)
		if g.relaying.Note(ctx, err); err != nil {
			// There is no retry: the other replica may be gone, and its client with it.
			return "relay_failed", nil
		}
		return "relayed", nil
	}
	if finish() {
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
