package reconcile

import (
	"context"
	"fmt"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"

	"pgw/functions/kafkasource"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/payment"
)

// lookups is how many keys one query looks up.
const lookups = 1000

// maxUndecided is the most requests without an outcome that are looked for among the dead letters. Further
// ones count as breaches at once.
const maxUndecided = 100_000

// entry is a payment of the ledger.
type entry struct {
	claim
	key     string
	attempt string
	reason  payment.Reason
	state   payment.ReservationStatus

	outside   bool       // of the part of the ledger that is compared
	requested bool       // a request event with its fingerprint was found
	published bool       // its result event was found
	nearest   difference // from the request event of its key that is most like it
	place     place      // of that event
}

// claim has the parts of an entry that have a fixed size. Times are in microseconds; 0 is none.
type claim struct {
	ID          [16]byte
	Fingerprint payment.Fingerprint
	Content     content
	Accepted    int64 // by the gateway's clock
	Reserved    int64
	Decided     int64 // 0 while PENDING
}

// place is the position of a record.
type place struct {
	Partition int32
	Offset    int64
}

func placeOf(m *sarama.ConsumerMessage) place { return place{m.Partition, m.Offset} }

func (p place) in(topic string) string {
	return kafka.Place{Topic: topic, Partition: p.Partition, Offset: p.Offset}.String()
}

// request is a request event.
type request struct {
	Fingerprint payment.Fingerprint
	Content     content
	Place       place
	Young       bool
}

// result is a result event.
type result struct {
	Fingerprint payment.Fingerprint
	Place       place
	Young       bool
}

// undecided is a request event without a claim in the ledger.
type undecided struct {
	key   string
	place place
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func entryOf(rec payment.Record) (*entry, error) {
	id, err := uuid.Parse(rec.Ref)
	return &entry{
		claim: claim{
			ID: id, Fingerprint: rec.Claimed, Content: contentOf(rec.Payment),
			Accepted: micros(rec.AcceptedAt), Reserved: micros(rec.ReservedAt), Decided: micros(rec.DecidedAt),
		},
		key: rec.Key, attempt: rec.AttemptID, reason: rec.Reason, state: rec.State, nearest: undefined,
	}, err
}

// readLedger reads the payments that are compared with events. It also checks each one's fingerprint.
func (r *reconciliation) readLedger(ctx context.Context) error {
	// A request's event is older than its claim. Twice the deadline covers the claims of all
	// compared events.
	since := r.since
	if !since.IsZero() {
		since = since.Add(-2 * payment.DecideWithin)
	}
	return ledger.EachRecord(ctx, r.tx, since, func(rec payment.Record) error {
		r.examined[ClaimTrue]++
		if rec.Payment.Fingerprint() != rec.Claimed {
			r.breach(Breach{Check: ClaimTrue, Payment: rec.Key, Problem: "its parties, amount, currencies, quote or metadata are not those that its fingerprint stands for"})
		}
		e, err := entryOf(rec)
		if err != nil {
			return err
		}
		record, err := pack(e.claim, e.key, e.attempt, string(e.reason), string(e.state))
		if err != nil {
			return err
		}
		return r.claims.add(e.key, record)
	})
}

func (r *reconciliation) readRequests(ctx context.Context) error {
	var err error
	r.covered, err = r.read(ctx, r.cfg.Kafka.RequestTopic, func(m *sarama.ConsumerMessage) error {
		e := kafkasource.ReadRecord(ctx, "reconcile", m)
		got, err := event.ReadRequest(e, r.cfg.Keys, r.cfg.AllowUnsigned)
		if err != nil {
			r.report.Foreign++ // worker refused it for the same reason
			return nil
		}
		// A request without a deadline gets one when it is reserved. The time of its record is
		// earlier.
		young := m.Timestamp.After(r.judged) || got.Deadline.After(r.judged)
		if young {
			r.report.TooYoung++
		} else {
			r.examined[RequestDecided]++
		}
		record, err := pack(request{got.Fingerprint(), contentOf(got.Payment), placeOf(m), young}, got.Key)
		if err != nil {
			return err
		}
		return r.requests.add(got.Key, record)
	})
	return err
}

func (r *reconciliation) readResults(ctx context.Context) error {
	covered, err := r.read(ctx, r.cfg.Kafka.ResultTopic, func(m *sarama.ConsumerMessage) error {
		e := kafkasource.ReadRecord(ctx, "reconcile", m)
		got, err := event.ReadResult(e, r.cfg.Keys)
		if err != nil {
			r.report.Foreign++
			return nil
		}
		record, err := pack(result{got.Fingerprint, placeOf(m), m.Timestamp.After(r.judged)},
			got.Key, string(got.Status), string(got.Reason), got.Ref, got.AttemptID)
		if err != nil {
			return err
		}
		return r.results.add(got.Key, record)
	})
	if covered.After(r.covered) {
		r.covered = covered
	}
	return err
}

// comparePayments compares the ledger with the events that were read, bucket by bucket.
func (r *reconciliation) comparePayments(ctx context.Context) error {
	for bucket := range buckets {
		entries, err := r.entriesOf(ctx, bucket)
		if err != nil {
			return err
		}
		if err := r.requests.each(bucket, func(record []byte) error { return r.judgeRequest(entries, record) }); err != nil {
			return err
		}
		if err := r.results.each(bucket, func(record []byte) error { return r.judgeResult(entries, record) }); err != nil {
			return err
		}
		for _, e := range entries {
			if !e.outside {
				r.judgePayment(e)
			}
		}
	}
	return r.reportUndecided(ctx)
}

// entriesOf returns a bucket's payments by their keys.
func (r *reconciliation) entriesOf(ctx context.Context, bucket int) (map[string]*entry, error) {
	entries := map[string]*entry{}
	err := r.claims.each(bucket, func(record []byte) error {
		e := &entry{nearest: undefined}
		var reason, state string
		if err := unpack(record, &e.claim, &e.key, &e.attempt, &reason, &state); err != nil {
			return err
		}
		e.reason, e.state = payment.Reason(reason), payment.ReservationStatus(state)
		entries[e.key] = e
		return nil
	})
	if err != nil || r.since.IsZero() {
		return entries, err
	}
	// A client may send the key of a payment that is older than what is compared.
	var unknown []string
	look := func() error {
		if len(unknown) == 0 {
			return nil
		}
		records, err := ledger.ReadRecords(ctx, r.tx, unknown)
		if err != nil {
			return err
		}
		for _, rec := range records {
			e, err := entryOf(rec)
			if err != nil {
				return err
			}
			e.outside = true
			entries[e.key] = e
		}
		unknown = unknown[:0]
		return nil
	}
	for _, events := range []struct {
		spill *spill
		into  any
	}{{&r.requests, &request{}}, {&r.results, &result{}}} {
		err := events.spill.each(bucket, func(record []byte) error {
			var key string
			if err := unpack(record, events.into, &key); err != nil {
				return err
			}
			if entries[key] == nil {
				unknown = append(unknown, key)
			}
			if len(unknown) == lookups {
				return look()
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return entries, look()
}

func (r *reconciliation) judgeRequest(entries map[string]*entry, record []byte) error {
	var q request
	var key string
	if err := unpack(record, &q, &key); err != nil {
		return err
	}
	known := entries[key]
	if known != nil {
		known.requested = known.requested || known.Fingerprint == q.Fingerprint
		if d := known.Content.difference(q.Content); known.nearest == undefined || d.count() < known.nearest.count() {
			known.nearest, known.place = d, q.Place
		}
	}
	switch {
	case q.Young:
	case known == nil:
		if len(r.undecided) == maxUndecided {
			r.breach(r.withoutOutcome(undecided{key, q.Place}))
			return nil
		}
		r.undecided = append(r.undecided, undecided{key, q.Place})
	case known.state == payment.Pending:
		r.breach(Breach{Check: RequestDecided, Payment: key, Problem: "was requested, but is still PENDING after its deadline and a sweep"})
	}
	return nil
}

func (r *reconciliation) judgeResult(entries map[string]*entry, record []byte) error {
	var q result
	var key, status, reason, ref, attempt string
	if err := unpack(record, &q, &key, &status, &reason, &ref, &attempt); err != nil {
		return err
	}
	known := entries[key]
	if known == nil && q.Young {
		return nil // decided after the snapshot
	}
	r.examined[ResultTrue]++
	if known != nil && known.Fingerprint == q.Fingerprint {
		known.published = true
	}
	told := event.PaymentResult{
		Key: key, Outcome: payment.Outcome{Status: payment.Status(status), Reason: payment.Reason(reason), Ref: ref},
		Fingerprint: q.Fingerprint, AttemptID: attempt,
	}
	if problem := contradiction(known, told); problem != "" {
		r.breach(Breach{Check: ResultTrue, Payment: key, Problem: fmt.Sprintf("has the result %s %s %s (%s), but %s",
			status, reason, ref, q.Place.in(r.cfg.Kafka.ResultTopic), problem)})
	}
	return nil
}

// contradiction describes how a result differs from the ledger's entry; "" means that they agree.
func contradiction(known *entry, result event.PaymentResult) string {
	switch {
	case known == nil:
		return "the ledger does not know it"
	case known.Fingerprint != result.Fingerprint:
		if result.Status != payment.Failed || result.Reason != payment.IdempotencyMismatch {
			return "the ledger has its key for another request"
		}
	case result.Status == payment.Success || result.Status == payment.SuccessReplay:
		if id := uuid.UUID(known.ID).String(); known.state != payment.Committed || id != result.Ref {
			return fmt.Sprintf("the ledger says %s %s %s", known.state, known.reason, id)
		}
		if result.Status == payment.Success && known.attempt != "" && result.AttemptID != known.attempt {
			return "an attempt that was not the first got SUCCESS"
		}
	case known.state != payment.RolledBack || known.reason != result.Reason:
		return fmt.Sprintf("the ledger says %s %s", known.state, known.reason)
	}
	return ""
}

// judgePayment checks that a payment has its events.
func (r *reconciliation) judgePayment(e *entry) {
	if e.Decided == 0 || e.Decided > r.judged.UnixMicro() {
		r.report.TooYoung++
		return
	}
	if e.state == payment.Committed && e.nearest != undefined {
		if r.examined[RequestTrue]++; e.nearest != 0 {
			r.breach(Breach{Check: RequestTrue, Payment: e.key,
				Problem: fmt.Sprintf("differs from its signed request (%s) in %s", e.place.in(r.cfg.Kafka.RequestTopic), e.nearest)})
		}
	}
	if !r.complete(e) {
		return // the topics may have deleted its events
	}
	r.judgeOrigin(e)
	// A caller of payments over gRPC gets the answer directly, without an event.
	if e.requested {
		if r.examined[ResultTold]++; !e.published {
			r.breach(Breach{Check: ResultTold, Payment: e.key, Problem: "is decided, but its result event is missing"})
		}
	}
}

// complete reports whether the topics still have all events of a payment. A payment that did not come
// through the gateway has no time of acceptance. Its event may be older than its claim.
func (r *reconciliation) complete(e *entry) bool {
	switch {
	case r.covered.IsZero():
		return true
	case e.Accepted != 0:
		return e.Accepted > r.covered.UnixMicro()
	}
	return e.Reserved > r.covered.Add(2*payment.DecideWithin).UnixMicro()
}

// judgeOrigin checks that somebody asked for a payment. Only the gateway sets attempt ids, and it sends
// every payment through Kafka. Calls over gRPC leave no trace that can be checked. Wallet holds only
// come over gRPC, and pay nobody but the house. Another payment without an attempt id may be an earlier
// caller's or an invented one. Nothing in the system can distinguish the two, so the operator has to
// say that there are such callers.
func (r *reconciliation) judgeOrigin(e *entry) {
	direct := e.attempt == "" && e.nearest == undefined
	switch {
	case e.attempt != "":
		if r.examined[RequestKept]++; !e.requested {
			r.breach(Breach{Check: RequestKept, Payment: e.key, Problem: "came through Kafka, but its request event is missing"})
		}
	case !direct, e.state != payment.Committed:
	case payment.Payment{Key: e.key}.IsHold(), r.cfg.Direct:
		r.report.Direct++
	default:
		r.examined[RequestKept]++
		r.breach(Breach{Check: RequestKept, Payment: e.key, Problem: "is committed, but nobody asked for it: it has no request event and no attempt id"})
	}
}

func (r *reconciliation) withoutOutcome(u undecided) Breach {
	return Breach{Check: RequestDecided, Payment: u.key,
		Problem: "was requested (" + u.place.in(r.cfg.Kafka.RequestTopic) + "), but the ledger has no outcome"}
}

// reportUndecided reports the undecided requests as breaches, except those that an operator has
// discarded.
func (r *reconciliation) reportUndecided(ctx context.Context) error {
	if len(r.undecided) == 0 {
		return nil
	}
	letters := make(map[string]string, len(r.undecided)) // the position of the dead letter, by key
	for _, u := range r.undecided {
		letters[u.key] = ""
	}
	err := r.readLetters(ctx, func(m *sarama.ConsumerMessage) {
		if _, wanted := letters[string(m.Key)]; wanted {
			letters[string(m.Key)] = kafka.PlaceOf(m).String()
		}
	})
	if err != nil {
		return err
	}
	discarded, err := ledger.ReadDiscarded(ctx, r.tx)
	if err != nil {
		return err
	}
	for _, u := range r.undecided {
		if discarded[u.key] {
			continue
		}
		b := r.withoutOutcome(u)
		if at := letters[u.key]; at != "" {
			b.Problem += "; it is a dead letter, " + at
		}
		r.breach(b)
	}
	return nil
}
