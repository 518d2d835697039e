package webhooks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"pgw/shared/ledger"
)

// The results of an attempt. They are labels of a metric, and clients see them.
const (
	resultDelivered   = "delivered"
	resultRedirect    = "redirect" // redirects are not followed
	resultGone        = "gone"     // 410: the endpoint wants no more events
	resultClientError = "client_error"
	resultServerError = "server_error"
	resultTimeout     = "timeout"
	resultUnreachable = "unreachable"
	resultForbidden   = "forbidden" // its address is not allowed
	resultUnsigned    = "unsigned"  // its secret can't be decrypted
)

var results = []string{
	resultDelivered, resultRedirect, resultGone, resultClientError, resultServerError, resultTimeout, resultUnreachable, resultForbidden, resultUnsigned,
}

const (
	// maxAnswer is how much of an answer is kept, in bytes.
	maxAnswer = 512
	// maxDrained is how much of an answer is read, in bytes, so that its connection can be used again.
	maxDrained = 16 << 10
	// slowAfter is how long an attempt at a good endpoint may take before it counts as slow.
	slowAfter = 2 * time.Second
	// recordWithin is the time limit of recording an attempt.
	recordWithin = 5 * time.Second
)

// begin sends a delivery in the background. It takes over the slot. done, if not nil, waits for it.
// While the function closes, the delivery is left to whoever runs when its lease ends.
func (w *Webhooks) begin(d ledger.Delivery, s *slot, done *sync.WaitGroup) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		s.done(unknown)
		return
	}
	if done != nil {
		done.Add(1)
	}
	w.sending.Go(func() {
		h := unhealthy
		defer func() {
			s.done(h)
			w.poke()
			if done != nil {
				done.Done()
			}
		}()
		slow := time.AfterFunc(slowAfter, s.slow)
		h = w.attempt(w.ending, d)
		slow.Stop()
	})
}

// poke makes run look for due deliveries soon.
func (w *Webhooks) poke() {
	select {
	case w.freed <- struct{}{}:
	default:
	}
}

// attempt sends a delivery once, and records what became of it.
func (w *Webhooks) attempt(ctx context.Context, d ledger.Delivery) health {
	known := w.known()
	var to *endpoint
	if known != nil {
		to = known.all[d.Endpoint]
	}
	if to == nil || to.Status != ledger.EndpointEnabled {
		return unknown // it was deleted or disabled since
	}
	at := w.now().UTC()
	begun := time.Now()
	a, retry := w.request(ctx, to, d.Event, at)
	a.Endpoint, a.Event, a.At, a.Took = d.Endpoint, d.Event.ID, at, time.Since(begun)
	a.Delivered = a.Result == resultDelivered
	if ctx.Err() != nil && !a.Delivered {
		return unknown // pgw was stopped, which says nothing about the endpoint
	}
	if !a.Delivered {
		a.Retry = nextDelay(w.schedule, d.Tries+1, w.random(), retry)
	}
	w.metrics.attempts.WithLabelValues(a.Result).Inc()
	w.metrics.seconds.Observe(a.Took.Seconds())

	// What was sent is recorded even if pgw is being stopped.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	failing, err := w.store.Finish(ctx, a, failingTooLong)
	switch {
	case err != nil:
	case a.Result == resultGone:
		err = w.disable(ctx, to, ledger.DisabledGone)
	case failing:
		err = w.disable(ctx, to, ledger.DisabledFailing)
	}
	w.storing.Note(ctx, err)
	if a.Delivered {
		return healthy
	}
	return unhealthy
}

// disable disables an endpoint, and tells it to the client's other endpoints, the log and a metric.
func (w *Webhooks) disable(ctx context.Context, e *endpoint, reason string) error {
	id := "msg_" + uuid.Must(uuid.NewV7()).String()
	disabled, err := w.store.Disable(ctx, e.ID, reason, w.cfg.terms(), func(e ledger.Endpoint) ledger.WebhookEvent {
		return disabledEvent(e, id, w.now().UTC())
	})
	if disabled {
		w.metrics.disabled.WithLabelValues(reason).Inc()
		w.log.WarnContext(ctx, "a webhook endpoint is disabled", "endpoint", e.ID.String(), "client", e.Client, "reason", reason)
		err = errors.Join(err, w.endpoints.Refresh(ctx))
	}
	return err
}

// request sends an event to an endpoint. retry is how long the endpoint asks to wait.
func (w *Webhooks) request(ctx context.Context, to *endpoint, e ledger.WebhookEvent, at time.Time) (a ledger.Attempt, retry time.Duration) {
	secrets := to.signing(at)
	if len(secrets) == 0 {
		a.Result, a.Answer = resultUnsigned, "no secret of the endpoint can be used"
		return a, 0
	}
	text, media, err := body(e, to.Format, to.Thin)
	if err != nil {
		a.Result, a.Answer = resultUnsigned, err.Error()
		return a, 0
	}
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	// The settings may have become narrower since the URL was checked.
	if err := w.guard.checkURL(to.URL); err != nil {
		a.Result, a.Answer = resultForbidden, "the URL "+err.Error()
		return a, 0
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to.URL, bytes.NewReader(text))
	if err != nil {
		a.Result, a.Answer = resultForbidden, "the URL can't be used"
		return a, 0
	}
	r.Header = signedHeader(e.ID, at, text, secrets)
	r.Header.Set("Content-Type", media)
	r.Header.Set("User-Agent", "pgw-webhooks/1")
	answer, err := w.send.RoundTrip(r)
	if err != nil {
		a.Result, a.Answer = failure(ctx, err)
		return a, 0
	}
	defer answer.Body.Close()
	a.Code, a.Result = answer.StatusCode, resultOf(answer.StatusCode)
	retry = retryAfter(answer.Header, at)
	first, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err == nil {
		_, err = io.CopyN(io.Discard, answer.Body, maxDrained)
	}
	a.Answer = printable(first)
	// The whole answer is asked for: an endpoint whose answer hangs is not one that works.
	if err != nil && !errors.Is(err, io.EOF) {
		a.Result, _ = failure(ctx, err)
	}
	return a, retry
}

// resultOf returns the result of an attempt by the answer's status. Only 2xx is a success.
func resultOf(code int) string {
	switch {
	case code >= 200 && code < 300:
		return resultDelivered
	case code == http.StatusGone:
		return resultGone
	case code >= 300 && code < 400:
		return resultRedirect
	case code >= 400 && code < 500:
		return resultClientError
	}
	return resultServerError
}

// failure returns the result of an attempt without an answer. The text tells the client what is wrong
// at its end, and nothing about pgw's network.
func failure(ctx context.Context, err error) (result, text string) {
	var timeout net.Error
	var name *net.DNSError
	switch {
	case errors.Is(err, errForbidden):
		return resultForbidden, "the endpoint's name has an address that is not public"
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return resultTimeout, "there was no answer in time"
	case errors.As(err, &name):
		return resultUnreachable, fmt.Sprintf("DNS does not know %.100q", name.Name)
	}
	return resultUnreachable, printable([]byte(err.Error()))
}

// printable returns the beginning of a text from outside, as Postgres can store it.
func printable(text []byte) string {
	s := strings.ToValidUTF8(string(text[:min(len(text), maxAnswer)]), "�")
	return strings.ReplaceAll(s, "\x00", "�")
}

const (
	// lookEvery is the time between two looks for due deliveries.
	lookEvery = time.Second
	// lookSoon is the shortest such time, after an attempt has ended.
	lookSoon = 50 * time.Millisecond
	// minuteWithin bounds the work for one ping.
	minuteWithin = 8 * time.Second
	// tidyAtOnce is the most events that are deleted by one statement.
	tidyAtOnce = 5000
)

// run keeps the endpoints in memory, and sends what is due, until ctx ends.
func (w *Webhooks) run(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- w.endpoints.Run(ctx) }()
	for ctx.Err() == nil {
		w.look(ctx) // what it could not take is due later; the pool's outage says that the server is away
		for _, wait := range []time.Duration{lookSoon, lookEvery} {
			changed := w.freed
			if wait == lookSoon {
				changed = nil
			}
			select {
			case <-ctx.Done():
			case <-changed:
			case <-time.After(wait):
			}
		}
	}
	return <-ended
}

// look takes due deliveries as far as the bounds allow, and begins to send them. It returns how many
// endpoints have due deliveries.
func (w *Webhooks) look(ctx context.Context) (due int, err error) {
	known := w.known()
	if known == nil || len(known.all) == 0 {
		return 0, nil
	}
	waiting, err := w.store.Due(ctx)
	if err != nil || len(waiting) == 0 {
		return 0, err
	}
	var ids []uuid.UUID
	var most []int32
	slots := map[uuid.UUID][]*slot{}
	for _, id := range waiting {
		if e := known.all[id]; e == nil || e.Status != ledger.EndpointEnabled {
			continue
		}
		for s := w.bounds.take(id); s != nil; s = w.bounds.take(id) {
			slots[id] = append(slots[id], s)
		}
		if n := len(slots[id]); n > 0 {
			ids, most = append(ids, id), append(most, int32(n))
		}
	}
	var taken []ledger.Delivery
	if len(ids) > 0 {
		taken, err = w.store.Take(ctx, ids, most, w.cfg.terms().Lease)
	}
	for _, d := range taken {
		free := slots[d.Endpoint]
		slots[d.Endpoint] = free[1:]
		w.begin(d, free[0], nil)
	}
	for _, free := range slots {
		for _, s := range free {
			s.done(unknown)
		}
	}
	return len(waiting), err
}

// minute does the work of the minute's ping: it sends what is due, as long as there is any and time is
// left. Meanwhile the platform keeps the function running. Then it tidies up.
func (w *Webhooks) minute(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, minuteWithin)
	defer cancel()
	if _, err := w.endpoints.Get(limited); err != nil {
		return err
	}
	for limited.Err() == nil {
		due, err := w.look(limited)
		if err != nil && limited.Err() == nil {
			return err
		}
		if due == 0 && w.bounds.underWay(good)+w.bounds.underWay(bad) == 0 {
			break
		}
		select {
		case <-limited.Done():
		case <-w.freed:
		case <-time.After(lookEvery):
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ctx, cancel = context.WithTimeout(ctx, recordWithin)
	defer cancel()
	b, err := w.keeper.Backlog(ctx)
	if err != nil {
		return err
	}
	w.metrics.pending.Set(float64(b.Pending))
	w.metrics.behind.Set(b.Behind.Seconds())
	for state, n := range map[string]int64{"enabled": b.Enabled, "failing": b.Failing, "disabled": b.Disabled} {
		w.metrics.endpoints.WithLabelValues(state).Set(float64(n))
	}
	if _, err := w.keeper.Tidy(ctx, w.cfg.Keep, tidyAtOnce); err != nil {
		return err
	}
	n, err := w.keeper.Reseal(ctx, w.cfg.SecretKeys.sealing, func(endpoint uuid.UUID, s ledger.SealedSecret) ([]byte, error) {
		plain, err := w.cfg.SecretKeys.open(endpoint, s)
		if err != nil {
			return nil, err
		}
		anew, err := w.cfg.SecretKeys.seal(endpoint, s.ID, plain, w.secrets)
		return anew.Sealed, err
	})
	if n > 0 {
		w.log.InfoContext(ctx, "encrypted endpoints' secrets by the first of WEBHOOK_SECRET_KEYS", "secrets", n)
	}
	return err
}
