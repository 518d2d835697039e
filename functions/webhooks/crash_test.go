package webhooks

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	webhooksv1 "pgw/proto/gen/webhooks/v1"
	"pgw/shared/ledger"
)

// The steps of a delivery, before and after which a process dies.
const (
	stepRow     = "the row"
	stepTake    = "taking the row"
	stepSend    = "the send"
	stepRecord  = "the record"
	stepDisable = "disabling the endpoint"
)

// dying stands between a function and what it uses. At one step the function goes no further, as if
// its process had been killed there. Once it is killed, none of its calls has an effect.
type dying struct {
	store
	send    http.RoundTripper
	step    string
	after   bool // the process dies after the step, or else before it
	once    sync.Once
	reached chan struct{}
	killed  chan struct{}
}

var errKilled = errors.New("the process is killed")

// newDying makes a function die at a step.
func newDying(hooks *Webhooks, step string, after bool) *dying {
	d := &dying{store: hooks.store, send: hooks.send, step: step, after: after, reached: make(chan struct{}), killed: make(chan struct{})}
	hooks.store, hooks.send = d, d
	return d
}

func (d *dying) at(step string, do func() error) error {
	if d.step == step && !d.after {
		return d.die()
	}
	select {
	case <-d.killed:
		return errKilled
	default:
	}
	if err := do(); err != nil || d.step != step {
		return err
	}
	return d.die()
}

func (d *dying) die() error {
	d.once.Do(func() { close(d.reached) })
	<-d.killed
	return errKilled
}

func (d *dying) AddEvent(ctx context.Context, e ledger.WebhookEvent, mine []uuid.UUID, t ledger.Terms) (taken []ledger.Delivery, err error) {
	err = d.at(stepRow, func() error {
		taken, err = d.store.AddEvent(ctx, e, mine, t)
		return err
	})
	return taken, err
}

func (d *dying) Take(ctx context.Context, endpoints []uuid.UUID, most []int32, lease time.Duration) (taken []ledger.Delivery, err error) {
	err = d.at(stepTake, func() error {
		taken, err = d.store.Take(ctx, endpoints, most, lease)
		return err
	})
	return taken, err
}

func (d *dying) Finish(ctx context.Context, a ledger.Attempt, tooLong time.Duration) (failing bool, err error) {
	err = d.at(stepRecord, func() error {
		failing, err = d.store.Finish(ctx, a, tooLong)
		return err
	})
	return failing, err
}

func (d *dying) Disable(ctx context.Context, id uuid.UUID, reason string, t ledger.Terms, notice func(ledger.Endpoint) ledger.WebhookEvent) (disabled bool, err error) {
	err = d.at(stepDisable, func() error {
		disabled, err = d.store.Disable(ctx, id, reason, t, notice)
		return err
	})
	return disabled, err
}

func (d *dying) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	err = d.at(stepSend, func() error {
		resp, err = d.send.RoundTrip(r)
		return err
	})
	if err != nil && resp != nil {
		resp.Body.Close()
	}
	return resp, err
}

// A process dies at each step of a delivery. The source delivers the event again, because it was not
// acknowledged, and the next process tells it. The endpoint gets the event twice only if it had it and
// nothing said so.
func TestACrashAtEveryStepOfADelivery(t *testing.T) {
	w := newWorld(t)
	for i, c := range []struct {
		step    string
		after   bool
		later   bool // the process dies at a later attempt, which is made from the row
		gone    bool // the endpoint answers 410
		arrives int  // how often the endpoint gets the event
	}{
		{step: stepRow, arrives: 1},
		{step: stepRow, after: true, arrives: 1},
		{step: stepSend, arrives: 1},
		{step: stepSend, after: true, arrives: 2},
		{step: stepRecord, arrives: 2},
		{step: stepRecord, after: true, arrives: 1},
		{step: stepTake, later: true, arrives: 2}, // with the first attempt, which fails
		{step: stepTake, after: true, later: true, arrives: 2},
		{step: stepSend, after: true, later: true, arrives: 3},
		{step: stepRecord, later: true, arrives: 3},
		{step: stepRecord, after: true, later: true, arrives: 2},
		{step: stepDisable, gone: true, arrives: 2},
		{step: stepDisable, after: true, gone: true, arrives: 1},
	} {
		place := map[bool]string{false: "before ", true: "after "}[c.after] + c.step
		if c.later {
			place += ", of a later attempt"
		}
		t.Run(place, func(t *testing.T) {
			client, key := fmt.Sprint("client", i), fmt.Sprint("k", i)
			var mu sync.Mutex
			var ids []string
			shop := newReceiver(t, func(out http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				ids = append(ids, r.Header.Get("webhook-id"))
				switch {
				case c.gone:
					out.WriteHeader(http.StatusGone)
				case c.later && len(ids) == 1:
					out.WriteHeader(http.StatusInternalServerError)
				default:
					return false
				}
				return true
			})
			first := w.start(time.Hour)
			id := w.add(first, client, shop.URL).Endpoint.EndpointId
			e := w.settled(client, key)
			if c.later {
				if err := first.handle(t.Context(), e); err != nil {
					t.Fatal(err)
				}
				w.delivery(first, id, client, func(d *webhooksv1.Delivery) bool { return len(d.Attempts) == 1 })
			}
			first.stop(patience)

			doomed := w.open()
			d := newDying(doomed, c.step, c.after)
			doomed.schedule = []time.Duration{time.Hour}
			run := w.run(doomed)
			handled := make(chan error, 1)
			if c.later {
				w.exec(`UPDATE webhook_deliveries SET due_at = clock_timestamp() WHERE status = 'PENDING'`)
				handled <- nil // it was acknowledged before
			} else {
				go func() { handled <- doomed.handle(t.Context(), e) }()
			}
			select {
			case <-d.reached:
			case <-time.After(patience):
				t.Fatal("the step was never reached")
			}
			close(d.killed)
			run.stop(0)
			<-handled // a process that is killed answers nothing

			next := w.start(time.Hour)
			defer next.stop(patience)
			if !c.later {
				if err := next.handle(t.Context(), e); err != nil {
					t.Fatal(err)
				}
			}
			if c.step != stepRow || c.after { // else the attempt is the next process's own, and may be under way
				// The lease of the dead process ends, or the time of the next attempt comes.
				w.exec(`UPDATE webhook_deliveries SET due_at = clock_timestamp() WHERE status = 'PENDING'`)
				next.poke()
			}
			if c.gone {
				eventually(t, "the endpoint is disabled", func() error {
					found, err := next.ListEndpoints(t.Context(), &webhooksv1.ListEndpointsRequest{Scope: &webhooksv1.Scope{Client: client}, EndpointId: id})
					if err == nil && found.Endpoints[0].DisabledReason != ledger.DisabledGone {
						err = fmt.Errorf("it is %v", found.Endpoints[0])
					}
					return err
				})
			} else {
				w.delivery(next, id, client, func(d *webhooksv1.Delivery) bool { return d.Status == "delivered" })
			}
			mu.Lock()
			defer mu.Unlock()
			if len(ids) != c.arrives || len(slices.Compact(slices.Clone(ids))) != 1 {
				t.Errorf("the endpoint got %q; want one event %d times", ids, c.arrives)
			}
		})
	}
}

// What was delivered while the process ended is recorded: the next process does not send it again.
func TestADeliveryIsRecordedAtTheEnd(t *testing.T) {
	w := newWorld(t)
	hooks := w.start()
	shop := newReceiver(t, nil)
	id := w.add(hooks, "shop", shop.URL).Endpoint.EndpointId
	hooks.send = ends{hooks.send, hooks.end}
	if err := hooks.handle(t.Context(), w.settled("shop", "k1")); err != nil {
		t.Fatal(err)
	}
	w.delivery(hooks, id, "shop", func(d *webhooksv1.Delivery) bool { return d.Status == "delivered" })
}

// ends cuts attempts off as soon as one has its answer.
type ends struct {
	http.RoundTripper
	end func()
}

func (e ends) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := e.RoundTripper.RoundTrip(r)
	e.end()
	return resp, err
}
