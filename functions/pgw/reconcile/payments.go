package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	payment.ScopedKey
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
	Authorized  bool  // its money was held for a capture
	Part        bool  // of several amounts, because only a part was captured
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
	Cancels     bool // it is a cancellation's, as a whole
}

// undecided is a request event without a claim in the ledger.
type undecided struct {
	payment.ScopedKey
	letter string // the key of the event's record: an operation's is that of its payment
	id     string // the event's
	place  place
}

// entries are payments of the ledger by their keys. Several clients may have one key.
type entries map[string][]*entry

// find returns the entry that decides about a request; nil: there is none.
func (es entries) find(key payment.ScopedKey, content payment.Fingerprint) *entry {
	of := func(e *entry) payment.Identity { return payment.Identity{Client: e.Client, Fingerprint: e.Fingerprint} }
	e, _ := payment.Deciding(es[key.Key], of, payment.Identity{Client: key.Client, Fingerprint: content})
	return e
}

// breachOf is the breach of a check by a client's payment.
func breachOf(check Check, key payment.ScopedKey, problem string) Breach {
	if own, is := strings.CutPrefix(key.Key, operationMark); is {
		key.Key, problem = own, "the operation "+problem
	}
	return Breach{Check: check, Payment: key.Key, Client: key.Client, Problem: problem}
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func entryOf(rec payment.Record) (*entry, error) {
	id, err := uuid.Parse(rec.Ref)
	_, part := askedFor(rec)
	return &entry{
		claim: claim{
			ID: id, Fingerprint: rec.Claimed, Content: contentOfRecord(rec), Authorized: rec.AuthorizedMinor > 0, Part: part,
			Accepted: micros(rec.AcceptedAt), Reserved: micros(rec.ReservedAt), Decided: micros(rec.DecidedAt),
		},
		ScopedKey: comparedBy(rec), attempt: rec.AttemptID, reason: rec.Reason, state: rec.State, nearest: undefined,
	}, err
}

// askedFor returns the payment with the debit that its client asked for. If only a part of an authorized
// payment was captured, the ledger has the amounts of the part, and what was authorized. part reports that
// amounts besides the debit are those of the part too.
func askedFor(rec payment.Record) (_ payment.Payment, part bool) {
	p := rec.Payment
	switch {
	case rec.AuthorizedMinor == 0 || rec.AuthorizedMinor == p.Debit().Minor:
		return p, false
	case p.InRupiah():
		p.AmountIDR = rec.AuthorizedMinor
		return p, false
	}
	p.DebitMinor = rec.AuthorizedMinor
	return p, true
}

// readLedger reads the payments that are compared with events. It also checks each one's fingerprint.
func (r *reconciliation) readLedger(ctx context.Context) error {
	return ledger.EachRecord(ctx, r.tx, r.comparedSince(), func(rec payment.Record) error {
		r.examined[ClaimTrue]++
		if rec.Asked() != rec.Claimed {
			r.breach(breachOf(ClaimTrue, rec.Scoped(),
				"its parties, amount, currencies, quote or metadata are not those that its fingerprint stands for"))
		}
		return r.addClaim(entryOf(rec))
	})
}

// comparedSince is the time of the oldest claims that are compared with events. A request's event is older
// than its claim. Twice the deadline covers the claims of all compared events.
func (r *reconciliation) comparedSince() time.Time {
	if r.since.IsZero() {
		return r.since
	}
	return r.since.Add(-2 * payment.DecideWithin)
}

func (r *reconciliation) addClaim(e *entry, err error) error {
	if err != nil {
		return err
	}
	record, err := pack(e.claim, e.Key, e.Client, e.attempt, string(e.reason), string(e.state))
	if err != nil {
		return err
	}
	return r.claims.add(e.Key, record)
}

func (r *reconciliation) readRequests(ctx context.Context) error {
	var err error
	r.covered, err = r.read(ctx, r.cfg.Kafka.RequestTopic, func(m *sarama.ConsumerMessage) error {
		e := kafkasource.ReadRecord(ctx, "reconcile", m)
		if event.IsOperationRequest(e) {
			return r.readOperation(e, m)
		}
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
		record, err := pack(request{got.Fingerprint(), contentOf(got.Payment), placeOf(m), young}, got.Key, got.Client, string(m.Key), e.ID())
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
		if event.IsOperationResult(e) {
			return r.readOperationResult(e, m)
		}
		got, err := event.ReadResult(e, r.cfg.Keys)
		if err != nil {
			r.report.Foreign++
			return nil
		}
		record, err := pack(result{got.Fingerprint, placeOf(m), m.Timestamp.After(r.judged), false},
			got.Key, got.Client, string(got.Status), string(got.Reason), got.Ref, got.AttemptID)
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
		known, err := r.entriesOf(ctx, bucket)
		if err != nil {
			return err
		}
		if err := r.requests.each(bucket, func(record []byte) error { return r.judgeRequest(known, record) }); err != nil {
			return err
		}
		if err := r.results.each(bucket, func(record []byte) error { return r.judgeResult(known, record) }); err != nil {
			return err
		}
		for _, same := range known {
			for _, e := range same {
				if !e.outside {
					r.judgePayment(e)
				}
			}
		}
	}
	return r.reportUndecided(ctx)
}

// entriesOf returns a bucket's payments by their keys.
func (r *reconciliation) entriesOf(ctx context.Context, bucket int) (entries, error) {
	found := entries{}
	err := r.claims.each(bucket, func(record []byte) error {
		e := &entry{nearest: undefined}
		var reason, state string
		if err := unpack(record, &e.claim, &e.Key, &e.Client, &e.attempt, &reason, &state); err != nil {
			return err
		}
		e.reason, e.state = payment.Reason(reason), payment.ReservationStatus(state)
		found[e.Key] = append(found[e.Key], e)
		return nil
	})
	if err != nil || r.since.IsZero() {
		return found, err
	}
	// A client may send the key of a payment that is older than what is compared.
	var unknown []payment.ScopedKey
	looked := map[payment.ScopedKey]bool{}
	look := func() error {
		older, err := r.lookUp(ctx, unknown)
		for _, e := range older {
			e.outside = true
			if !slices.ContainsFunc(found[e.Key], func(other *entry) bool { return other.ID == e.ID && other.Client == e.Client }) {
				found[e.Key] = append(found[e.Key], e)
			}
		}
		unknown = unknown[:0]
		return err
	}
	var asked request
	var told result
	for _, events := range []struct {
		spill   *spill
		into    any
		content *payment.Fingerprint
	}{{&r.requests, &asked, &asked.Fingerprint}, {&r.results, &told, &told.Fingerprint}} {
		err := events.spill.each(bucket, func(record []byte) error {
			var key payment.ScopedKey
			if err := unpack(record, events.into, &key.Key, &key.Client); err != nil {
				return err
			}
			if !looked[key] && found.find(key, *events.content) == nil {
				looked[key], unknown = true, append(unknown, key)
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
	return found, look()
}

// lookUp reads the payments and operations of keys.
func (r *reconciliation) lookUp(ctx context.Context, keys []payment.ScopedKey) (found []*entry, err error) {
	var payments []string
	var operations []payment.ScopedKey
	for _, key := range keys {
		if own, is := strings.CutPrefix(key.Key, operationMark); is {
			operations = append(operations, payment.ScopedKey{Client: key.Client, Key: own})
		} else {
			payments = append(payments, key.Key)
		}
	}
	add := func(e *entry, err error) error {
		found = append(found, e)
		return err
	}
	if len(payments) > 0 {
		records, err := ledger.ReadRecords(ctx, r.tx, payments)
		for _, rec := range records {
			err = errors.Join(err, add(entryOf(rec)))
		}
		if err != nil {
			return nil, err
		}
	}
	if len(operations) > 0 {
		kept, err := ledger.ReadOperations(ctx, r.tx, operations)
		for _, o := range kept {
			err = errors.Join(err, add(entryOfOperation(o)))
		}
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (r *reconciliation) judgeRequest(of entries, record []byte) error {
	var q request
	var key payment.ScopedKey
	var letter, id string
	if err := unpack(record, &q, &key.Key, &key.Client, &letter, &id); err != nil {
		return err
	}
	known := of.find(key, q.Fingerprint)
	if known != nil {
		known.requested = known.requested || known.Fingerprint == q.Fingerprint
		d := known.Content.difference(q.Content)
		if known.Part {
			d &^= shares
		}
		if known.nearest == undefined || d.count() < known.nearest.count() {
			known.nearest, known.place = d, q.Place
		}
	}
	switch {
	case q.Young:
	case known == nil && forCancel(key.Key): // it refunded nothing
	case known == nil:
		u := undecided{key, letter, id, q.Place}
		if len(r.undecided) == maxUndecided {
			r.breach(r.withoutOutcome(u))
			return nil
		}
		r.undecided = append(r.undecided, u)
	case known.state == payment.Pending && !known.Authorized: // an authorized one has a deadline of its own
		r.breach(breachOf(RequestDecided, key, "was requested, but is still PENDING after its deadline and a sweep"))
	}
	return nil
}

func (r *reconciliation) judgeResult(of entries, record []byte) error {
	var q result
	var key payment.ScopedKey
	var status, reason, ref, attempt string
	if err := unpack(record, &q, &key.Key, &key.Client, &status, &reason, &ref, &attempt); err != nil {
		return err
	}
	known := of.find(key, q.Fingerprint)
	if known == nil && q.Young {
		return nil // decided after the snapshot
	}
	r.examined[ResultTrue]++
	// An expiry is told after the payment's first result.
	if known != nil && known.Fingerprint == q.Fingerprint && (known.reason != payment.AuthorizationExpired || string(known.reason) == reason) {
		known.published = true
	}
	if q.Cancels && known != nil && known.Fingerprint == q.Fingerprint && known.reason == payment.PaymentSettled {
		return nil // its refund decides, which has a result of its own, or an earlier cancellation's
	}
	told := event.PaymentResult{
		Key: key.Key, Client: key.Client, Outcome: payment.Outcome{Status: payment.Status(status), Reason: payment.Reason(reason), Ref: ref},
		Fingerprint: q.Fingerprint, AttemptID: attempt,
	}
	if problem := contradiction(known, told); problem != "" {
		r.breach(breachOf(ResultTrue, key, fmt.Sprintf("has the result %s %s %s (%s), but %s",
			status, reason, ref, q.Place.in(r.cfg.Kafka.ResultTopic), problem)))
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
	case result.Reason == payment.Authorized && !known.Authorized:
		return fmt.Sprintf("the ledger says %s %s, and never held it for a capture", known.state, known.reason)
	case result.Status == payment.Success || result.Status == payment.SuccessReplay:
		// That a payment is authorized stays true of its time, however the hold ended.
		held := known.Authorized && result.Reason != payment.ReasonCommitted
		if id := uuid.UUID(known.ID).String(); known.state != payment.Committed && !held || id != result.Ref {
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
			r.breach(breachOf(RequestTrue, e.ScopedKey,
				fmt.Sprintf("differs from its signed request (%s) in %s", e.place.in(r.cfg.Kafka.RequestTopic), e.nearest)))
		}
	}
	if !r.complete(e) {
		return // the topics may have deleted its events
	}
	r.judgeOrigin(e)
	// A caller of payments over gRPC gets the answer directly, without an event.
	if e.requested {
		if r.examined[ResultTold]++; !e.published {
			r.breach(breachOf(ResultTold, e.ScopedKey, "is decided, but its result event is missing"))
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
			r.breach(breachOf(RequestKept, e.ScopedKey, "came through Kafka, but its request event is missing"))
		}
	case !direct, e.state != payment.Committed:
	case payment.Payment{Key: e.Key}.IsHold(), r.cfg.Direct:
		r.report.Direct++
	default:
		r.examined[RequestKept]++
		r.breach(breachOf(RequestKept, e.ScopedKey, "is committed, but nobody asked for it: it has no request event and no attempt id"))
	}
}

func (r *reconciliation) withoutOutcome(u undecided) Breach {
	return breachOf(RequestDecided, u.ScopedKey, "was requested ("+u.place.in(r.cfg.Kafka.RequestTopic)+"), but the ledger has no outcome")
}

// reportUndecided reports the undecided requests as breaches, except those that an operator has
// discarded.
func (r *reconciliation) reportUndecided(ctx context.Context) error {
	if len(r.undecided) == 0 {
		return nil
	}
	letters := make(map[string]string, len(r.undecided)) // the position of the dead letter, by key
	for _, u := range r.undecided {
		letters[u.letter] = ""
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
		// Another client's event with the same key may be the one that was discarded. Events without a
		// client may be plain records, whose ids are those of their places.
		if u.Client == "" && discarded.Keys[u.letter] || discarded.Events[u.id] {
			continue
		}
		b := r.withoutOutcome(u)
		if at := letters[u.letter]; at != "" {
			b.Problem += "; it is a dead letter, " + at
		}
		r.breach(b)
	}
	return nil
}
