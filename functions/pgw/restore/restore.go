// Package restore records again what a ledger has forgotten because its database was restored to a point in
// time. What was told stands in the signed events in Kafka.
package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/IBM/sarama"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/functions/kafkasource"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
)

const (
	// maxListed is the most problems that a report lists.
	maxListed = 1000
	// margin is how much earlier than the ledger's newest payment the reading of events begins. A payment is
	// decided within payment.DecideWithin, and the clocks of functions differ a little.
	margin = 10 * time.Minute
)

// Config of a run.
type Config struct {
	Database      string // of db's login
	Kafka         kafka.Config
	Keys          *event.Keyring
	AllowUnsigned bool
	Since, Until  time.Time // of the events; a zero Since is a little before the ledger's newest payment
	Max           int       // the most events that are kept in memory
}

// Problem is an outcome that was not restored.
type Problem struct {
	Result  ledger.RestoreResult `json:"result"`
	Payment string               `json:"payment"` // the idempotency key
	Client  string               `json:"client,omitempty"`
	What    string               `json:"what"` // payment, refund, capture, void or cancel
	Told    string               `json:"told"`
	Problem string               `json:"problem"`
}

// Report is the result of a run.
type Report struct {
	Since    time.Time                      `json:"since"`
	Events   int                            `json:"events"`
	Foreign  int                            `json:"foreign"` // events that are not from pgw: unsigned, malformed or of another type
	Results  map[ledger.RestoreResult]int64 `json:"results"`
	Problems []Problem                      `json:"problems,omitempty"` // at most 1,000
}

// Clean reports whether the ledger says everything that was told.
func (r Report) Clean() bool {
	return r.Results[ledger.Contradicted]+r.Results[ledger.Unfit] == 0
}

// Run reads the events and restores. It may be run again: what the ledger remembers stays as it is.
func Run(ctx context.Context, cfg Config) (Report, error) {
	to, err := ledger.OpenRestorer(cfg.Database)
	if err != nil {
		return Report{}, err
	}
	defer to.Close()
	newest, err := to.Newest(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("read the ledger: %w", err)
	}
	report := Report{Since: cfg.Since, Results: map[ledger.RestoreResult]int64{}}
	if report.Since.IsZero() && !newest.IsZero() {
		report.Since = newest.Add(-margin)
	}
	told := events{
		cfg: cfg, requests: map[payment.ScopedKey][]payment.Payment{}, operations: map[asked]payment.Operation{},
		payments: map[asked]*outcomes{},
	}
	if err := told.read(ctx, report.Since); err != nil {
		return report, err
	}
	report.Events, report.Foreign = told.count, told.foreign
	list := told.list(&report)
	results, err := to.Restore(ctx, list)
	for i, got := range results {
		if got.Result == "" {
			continue // not reached
		}
		report.note(got, list[i])
	}
	return report, err
}

func (r *Report) note(got ledger.Restoration, t ledger.Told) {
	r.Results[got.Result]++
	if got.Problem == "" || len(r.Problems) == maxListed {
		return
	}
	p := Problem{
		Result: got.Result, Payment: t.Payment.Key, Client: t.Payment.Client, What: "payment",
		Told: fmt.Sprintf("%s %s %s", t.Outcome.Status, t.Outcome.Reason, t.Outcome.Ref), Problem: got.Problem,
	}
	if op := t.Operation; op != nil {
		p.What, p.Payment, p.Client = string(op.Kind), op.Of().Key, op.Of().Client
	}
	r.Problems = append(r.Problems, p)
}

// asked names a request.
type asked struct {
	payment.ScopedKey
	fingerprint payment.Fingerprint
}

// outcomes are what the results of one request tell, the first of each kind.
type outcomes struct {
	authorized, success, replay, failed *event.PaymentResult
}

// events are what the topics tell.
type events struct {
	cfg        Config
	requests   map[payment.ScopedKey][]payment.Payment // all attempts
	operations map[asked]payment.Operation
	payments   map[asked]*outcomes
	ended      []event.OperationResult

	count, foreign int
}

var errTooMany = errors.New("more events than are kept in memory: set --until to an earlier time, and run again until all are restored")

func (e *events) read(ctx context.Context, since time.Time) error {
	from := since
	if !from.IsZero() {
		from = from.Add(-2 * payment.DecideWithin) // a request is older than its result
	}
	for _, topic := range []struct {
		kafka.Range
		take func(cloudevents.Event) error
	}{
		{kafka.Range{Topic: e.cfg.Kafka.RequestTopic, Since: from, Until: e.cfg.Until}, e.takeRequest},
		{kafka.Range{Topic: e.cfg.Kafka.ResultTopic, Since: since, Until: e.cfg.Until}, e.takeResult},
	} {
		err := kafka.Read(ctx, e.cfg.Kafka, "restore", topic.Range, func(m *sarama.ConsumerMessage) error {
			if e.count++; e.cfg.Max > 0 && e.count > e.cfg.Max {
				return errTooMany
			}
			if err := topic.take(kafkasource.ReadRecord(ctx, "restore", m)); err != nil {
				e.foreign++
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read %s: %w", topic.Topic, err)
		}
	}
	return nil
}

func (e *events) takeRequest(from cloudevents.Event) error {
	if event.IsOperationRequest(from) {
		got, err := event.ReadOperation(from, e.cfg.Keys)
		if err == nil {
			o := got.Operation
			e.operations[asked{payment.ScopedKey{Client: o.Client, Key: o.Key}, o.Fingerprint()}] = o
		}
		return err
	}
	got, err := event.ReadRequest(from, e.cfg.Keys, e.cfg.AllowUnsigned)
	if err == nil {
		e.requests[got.Scoped()] = append(e.requests[got.Scoped()], got.Payment)
	}
	return err
}

func (e *events) takeResult(from cloudevents.Event) error {
	if event.IsOperationResult(from) {
		got, err := event.ReadOperationResult(from, e.cfg.Keys)
		if err == nil && got.Reason.Recorded() && got.Reason != payment.IdempotencyMismatch {
			got.SettledAt = decidedAt(got.SettledAt, from)
			e.ended = append(e.ended, got)
		}
		return err
	}
	got, err := event.ReadResult(from, e.cfg.Keys)
	if err != nil || !got.Reason.Recorded() || got.Reason == payment.IdempotencyMismatch {
		return err
	}
	got.SettledAt = decidedAt(got.SettledAt, from)
	key := asked{got.Scoped(), got.Fingerprint}
	if e.payments[key] == nil {
		e.payments[key] = &outcomes{}
	}
	e.payments[key].take(&got)
	return nil
}

// decidedAt is when an outcome was told. The sweep does not say when it decided.
func decidedAt(settled time.Time, e cloudevents.Event) time.Time {
	if settled.IsZero() {
		settled = e.Time()
	}
	return settled.UTC().Truncate(time.Microsecond)
}

func (o *outcomes) take(got *event.PaymentResult) {
	into := &o.failed
	switch {
	case got.Status == payment.Failed:
	case got.Reason == payment.Authorized:
		into = &o.authorized
	case got.Status == payment.SuccessReplay:
		into = &o.replay
	default:
		into = &o.success
	}
	if *into == nil || got.SettledAt.Before((*into).SettledAt) {
		*into = got
	}
}

// list returns what was told, in the order in which it was decided.
func (e *events) list(report *Report) (list []ledger.Told) {
	paid := map[payment.ScopedKey]time.Time{}
	for key, o := range e.payments {
		for _, t := range e.told(key, o, report) {
			list = append(list, t)
			if at := paid[key.ScopedKey]; at.IsZero() || t.At.Before(at) {
				paid[key.ScopedKey] = t.At
			}
		}
	}
	seen := map[asked]bool{}
	for _, got := range e.ended {
		key := asked{payment.ScopedKey{Client: got.Client, Key: got.Key}, got.Fingerprint}
		if seen[key] {
			continue // told again
		}
		seen[key] = true
		t := ledger.Told{Outcome: got.Outcome, At: got.SettledAt}
		o, found := e.operations[key]
		t.Operation = &ledger.ToldOperation{
			Operation: o, SenderMinor: got.SenderMinor, ReceiverMinor: got.ReceiverMinor, RefundKey: got.RefundKey, MidMinor: midOf(got),
		}
		if !found {
			t.Operation.Operation = payment.Operation{Kind: got.Kind, Key: got.Key, Client: got.Client, Payment: got.Payment, PaymentClient: got.PaymentClient}
			report.note(ledger.Restoration{Result: ledger.Unfit, Problem: noRequest}, t)
			continue
		}
		if of := e.requests[got.Of()]; len(of) > 0 {
			t.Payment = of[0]
		}
		// An operation follows its payment, whatever the clocks of the functions say.
		if at := paid[got.Of()]; !at.Before(t.At) {
			t.At = at.Add(time.Microsecond)
		}
		list = append(list, t)
	}
	slices.SortStableFunc(list, func(a, b ledger.Told) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Payment.Key, b.Payment.Key))
	})
	return list
}

const noRequest = "its request event is not in Kafka, or is older than what was read: set --since"

// midOf returns what LIQUIDITY paid for a refund.
func midOf(got event.OperationResult) int64 {
	for _, l := range got.Entries {
		if l.Kind == payment.KindExchange && l.AccountID == payment.LiquidityAccount && l.Currency == got.SenderCurrency && l.Minor < 0 {
			return -l.Minor
		}
	}
	return 0
}

// told returns the outcomes of a payment, one after the other: an authorized payment may have two.
func (e *events) told(key asked, o *outcomes, report *Report) (all []ledger.Told) {
	first := cmp.Or(o.authorized, o.success, o.replay, o.failed)
	p, problem := e.request(key, first)
	add := func(got *event.PaymentResult, outcome payment.Outcome) {
		t := ledger.Told{Payment: p, Outcome: outcome, At: got.SettledAt}
		if problem != "" {
			t.Payment.Key, t.Payment.Client = key.Key, key.Client
			report.note(ledger.Restoration{Result: ledger.Unfit, Problem: problem}, t)
			return
		}
		all = append(all, t)
	}
	paid := cmp.Or(o.authorized, o.success, o.replay)
	switch {
	case paid != nil && p.Manual():
		add(paid, payment.Outcome{Status: payment.Success, Reason: payment.Authorized, Ref: paid.Ref})
		if o.failed != nil {
			add(o.failed, o.failed.Outcome)
		}
	case paid != nil:
		add(paid, payment.Outcome{Status: payment.Success, Reason: payment.ReasonCommitted, Ref: paid.Ref})
	default:
		add(o.failed, o.failed.Outcome)
	}
	return all
}

// request returns the payment that a result is about, with the amounts that were told.
func (e *events) request(key asked, got *event.PaymentResult) (p payment.Payment, problem string) {
	found, exact := 0, false
	for _, attempt := range e.requests[key.ScopedKey] {
		if attempt.Fingerprint() != key.fingerprint || exact {
			continue
		}
		exact = got.Status != payment.SuccessReplay && attempt.AttemptID == got.AttemptID
		if found++; found > 1 && !exact && attempt.AmountIDR != p.AmountIDR {
			problem = "several attempts with different prices were made, and none is known to have decided it"
		}
		if found == 1 || exact {
			p = attempt
		}
	}
	switch {
	case found == 0:
		return p, noRequest
	case exact:
		problem = ""
	}
	none := money.Currency{}
	if m := got.Moved; m.DebitCurrency != none && (!p.Manual() || got.Reason == payment.Authorized) {
		p.DebitCurrency, p.DebitMinor, p.CreditCurrency, p.CreditMinor, p.Exchange = m.DebitCurrency, m.DebitMinor, m.CreditCurrency, m.CreditMinor, m.Exchange
		problem = ""
	}
	return p, problem
}
