// Package reconcile checks that no money was lost or created. It checks that the ledger adds up,
// account by account, and that the request events, the ledger and the result events agree.
//
// It reads the ledger in one snapshot. Kafka cannot be read in the same snapshot. Payments that are
// younger than the grace are therefore added up but not compared, because their events may still be
// under way.
package reconcile

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/functions/kafkasource"
	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/payment"
)

// Check names one check.
type Check string

// The checks.
const (
	Conservation   Check = "conservation"    // balances + holds = funding
	Account        Check = "account"         // a balance is the sum of its fundings, payments and holds
	Outcome        Check = "outcome"         // a claim and its outcome row agree
	Overdue        Check = "overdue"         // no hold outlives its deadline
	RequestDecided Check = "request_decided" // the ledger has decided each request event
	RequestKept    Check = "request_kept"    // a payment that came from an event has that event
	ResultTold     Check = "result_told"     // each decided request has its result event
	ResultTrue     Check = "result_true"     // each result event agrees with the ledger
)

// Checks are all checks in the order of the report.
var Checks = []Check{Conservation, Account, Outcome, Overdue, RequestDecided, RequestKept, ResultTold, ResultTrue}

// DefaultGrace covers a payment's deadline, the sweep after it, and the publishing of the swept
// results.
const DefaultGrace = payment.DecideWithin + 2*time.Minute

// MaxListed is the most breaches that a report lists. Further breaches are only counted.
const MaxListed = 1000

// Config of one reconciliation.
type Config struct {
	Database      string
	Kafka         kafka.Config
	Keys          *event.Keyring
	AllowUnsigned bool // plain records also count as requests
	// Since limits the comparison with events to payments that were accepted since then. The ledger
	// is always added up as a whole. Zero means as far back as the topics go.
	Since time.Time
	Grace time.Duration // younger payments are not compared with events
}

// Breach is one violation of a check.
type Breach struct {
	Check   Check  `json:"check"`
	Payment string `json:"payment,omitempty"` // the idempotency key
	Account string `json:"account,omitempty"`
	Problem string `json:"problem"`
}

// Result is the result of one check.
type Result struct {
	Check    Check `json:"check"`
	Examined int64 `json:"examined"`
	Breaches int64 `json:"breaches"`
}

// Report is the result of a reconciliation. Amounts are in whole rupiah.
type Report struct {
	At       time.Time `json:"at"`             // the time of the ledger's snapshot
	Since    time.Time `json:"since,omitzero"` // the start of the comparison with events
	Balances int64     `json:"balances_idr"`
	Holds    int64     `json:"holds_idr"`
	Funded   int64     `json:"funded_idr"`
	Accounts int64     `json:"accounts"`
	Pending  int64     `json:"pending"`
	TooYoung int64     `json:"too_young"` // payments and requests within the grace
	Foreign  int64     `json:"foreign"`   // events that are not from pgw: unsigned, malformed or of another type
	Checks   []Result  `json:"checks"`
	Breaches []Breach  `json:"breaches"` // at most MaxListed
}

// Clean reports whether there are no breaches.
func (r Report) Clean() bool {
	return !slices.ContainsFunc(r.Checks, func(c Result) bool { return c.Breaches > 0 })
}

// The time limits of the connection to Postgres. A query has no time limit, because it may take
// long on a large ledger. If the host is gone, keepalives fail and end the query.
const (
	connectWithin = 10 * time.Second
	endWithin     = 5 * time.Second
	aliveEvery    = 10 * time.Second
	aliveTries    = 3
)

// connect opens a connection that detects a silent host.
func connect(ctx context.Context, url string) (*pgx.Conn, error) {
	settings, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	if settings.ConnectTimeout == 0 {
		settings.ConnectTimeout = connectWithin
	}
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: aliveEvery, Interval: aliveEvery, Count: aliveTries}}
	settings.DialFunc = dialer.DialContext
	return pgx.ConnectConfig(ctx, settings)
}

// Run reconciles. An error means that the checks could not be completed.
func Run(ctx context.Context, cfg Config) (Report, error) {
	conn, err := connect(ctx, cfg.Database)
	if err != nil {
		return Report{}, fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
		defer cancel()
		conn.Close(ctx) // this also rolls back the snapshot's transaction
	}()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return Report{}, fmt.Errorf("open a snapshot of the ledger: %w", err)
	}
	r := &reconciliation{cfg: cfg, tx: tx, entries: map[keyHash]*entry{}, examined: map[Check]int64{}, breaches: map[Check]int64{}}
	for _, step := range []func(context.Context) error{
		r.readClock, r.addUp, r.readLedger, r.readRequests, r.readResults, r.compare, r.excuse,
	} {
		if err := step(ctx); err != nil {
			return Report{}, err
		}
	}
	for _, c := range Checks {
		r.report.Checks = append(r.report.Checks, Result{c, r.examined[c], r.breaches[c]})
	}
	return r.report, nil
}

// reconciliation is the state of one run.
type reconciliation struct {
	cfg       Config
	tx        pgx.Tx
	report    Report
	judged    time.Time // payments accepted and decided before this time are compared
	covered   time.Time // the topics may have deleted events before this time
	entries   map[keyHash]*entry
	undecided []undecided
	examined  map[Check]int64
	breaches  map[Check]int64
}

// keyHash represents an idempotency key. The keys of millions of payments would not fit into
// memory.
type keyHash [16]byte

func hashKey(key string) (h keyHash) {
	sum := sha256.Sum256([]byte(key))
	copy(h[:], sum[:])
	return h
}

// entry is a claim of the ledger.
type entry struct {
	id          uuid.UUID
	fingerprint payment.Fingerprint
	attempt     string
	status      payment.ReservationStatus
	reason      payment.Reason
	accepted    time.Time // zero if the caller did not send it
	decided     time.Time // zero while PENDING
	requested   bool      // its request event was found
	published   bool      // its result event was found
}

// undecided is a request event without a claim in the ledger.
type undecided struct {
	key   string
	place string
}

func (r *reconciliation) breach(b Breach) {
	if r.breaches[b.Check]++; len(r.report.Breaches) < MaxListed {
		r.report.Breaches = append(r.report.Breaches, b)
	}
}

func (r *reconciliation) readClock(ctx context.Context) error {
	// The first statement takes the snapshot.
	if err := r.tx.QueryRow(ctx, `SELECT now()`).Scan(&r.report.At); err != nil {
		return fmt.Errorf("open a snapshot of the ledger: %w", err)
	}
	r.report.At = r.report.At.UTC()
	r.judged, r.covered = r.report.At.Add(-r.cfg.Grace), r.cfg.Since
	return nil
}

// addUp checks the ledger without events.
func (r *reconciliation) addUp(ctx context.Context) error {
	sum, err := ledger.ReadSum(ctx, r.tx)
	if err != nil {
		return err
	}
	n, err := ledger.ReadCounts(ctx, r.tx)
	if err != nil {
		return err
	}
	r.report.Accounts = n.Accounts
	r.report.Balances, r.report.Holds, r.report.Funded, r.report.Pending = sum.Balances, sum.Holds, sum.Funded, sum.Pending
	r.examined[Conservation], r.examined[Account], r.examined[Outcome], r.examined[Overdue] = 1, n.Accounts, n.Claims, sum.Pending
	if sum.Balances+sum.Holds != sum.Funded {
		r.breach(Breach{Check: Conservation, Problem: fmt.Sprintf("balances %d + holds %d differ by %+d from the %d that were funded",
			sum.Balances, sum.Holds, sum.Balances+sum.Holds-sum.Funded, sum.Funded)})
	}
	if err := r.listAccounts(ctx, sum); err != nil {
		return err
	}
	if err := r.listOutcomes(ctx, sum); err != nil {
		return err
	}
	return r.listOverdue(ctx)
}

func (r *reconciliation) listAccounts(ctx context.Context, sum ledger.Sum) error {
	if sum.AccountsOff == 0 {
		return nil
	}
	accounts, err := ledger.ReadAccountsOff(ctx, r.tx, MaxListed)
	if err != nil {
		return err
	}
	for _, a := range accounts {
		b := Breach{Check: Account, Account: a.ID, Problem: fmt.Sprintf("has %d, but should have %d: %+d", a.Balance, a.Should, a.Balance-a.Should)}
		if len(a.Payments) > 0 {
			b.Payment = a.Payments[0]
			b.Problem += ", which is the amount of " + strings.Join(a.Payments, ", ")
		}
		r.breach(b)
	}
	r.breaches[Account] = sum.AccountsOff
	return nil
}

func (r *reconciliation) listOutcomes(ctx context.Context, sum ledger.Sum) error {
	if sum.OutcomesOff+sum.KeysUnclaimed == 0 {
		return nil
	}
	outcomes, err := ledger.ReadOutcomesOff(ctx, r.tx, MaxListed)
	if err != nil {
		return err
	}
	for _, o := range outcomes {
		r.breach(Breach{Check: Outcome, Payment: o.Key, Problem: o.Problem})
	}
	r.breaches[Outcome] = sum.OutcomesOff + sum.KeysUnclaimed
	return nil
}

func (r *reconciliation) listOverdue(ctx context.Context) error {
	overdue, err := ledger.ReadOverdue(ctx, r.tx, r.judged)
	if err != nil {
		return err
	}
	for _, o := range overdue {
		r.breach(Breach{Check: Overdue, Payment: o.Key, Problem: "is PENDING, but its deadline was " + o.Deadline.UTC().Format(time.RFC3339)})
	}
	return nil
}

// readLedger reads the claims that are compared with events.
func (r *reconciliation) readLedger(ctx context.Context) error {
	// A request's event is older than its claim. Twice the deadline covers the claims of all
	// compared events.
	since := r.cfg.Since
	if !since.IsZero() {
		since = since.Add(-2 * payment.DecideWithin)
	}
	return ledger.EachClaim(ctx, r.tx, since, func(c ledger.DatedClaim) {
		r.entries[hashKey(c.Key)] = &entry{
			id: c.ReservationID, fingerprint: c.Fingerprint, attempt: c.AttemptID, status: c.Status, reason: c.Reason,
			accepted: c.Accepted, decided: c.Decided,
		}
	})
}

// read reads the records of a topic, and notes from which time on the topic still has all records.
func (r *reconciliation) read(ctx context.Context, topic string, take func(m *sarama.ConsumerMessage)) error {
	reader, err := kafka.OpenReader(r.cfg.Kafka, "reconcile", kafka.Range{Topic: topic, Since: r.cfg.Since})
	if err != nil {
		return err
	}
	defer reader.Close()
	trimmed := map[int32]bool{}
	for _, s := range reader.Spans() {
		trimmed[s.Partition] = s.Trimmed
	}
	return reader.Each(ctx, func(m *sarama.ConsumerMessage) error {
		if trimmed[m.Partition] {
			trimmed[m.Partition] = false
			if m.Timestamp.After(r.covered) {
				r.covered = m.Timestamp
			}
		}
		take(m)
		return nil
	})
}

func (r *reconciliation) readRequests(ctx context.Context) error {
	return r.read(ctx, r.cfg.Kafka.RequestTopic, func(m *sarama.ConsumerMessage) {
		e := kafkasource.ReadRecord(ctx, "reconcile", m)
		request, err := event.ReadRequest(e, r.cfg.Keys, r.cfg.AllowUnsigned)
		if err != nil {
			r.report.Foreign++ // worker refused it for the same reason
			return
		}
		known := r.entries[hashKey(request.Key)]
		if known != nil && known.fingerprint == request.Fingerprint() {
			known.requested = true
		}
		// A request without a deadline gets one when it is reserved. The time of its record is
		// earlier.
		if m.Timestamp.After(r.judged) || request.Deadline.After(r.judged) {
			r.report.TooYoung++
			return
		}
		r.examined[RequestDecided]++
		switch {
		case known == nil:
			r.undecided = append(r.undecided, undecided{request.Key, kafka.PlaceOf(m).String()})
		case known.status == payment.Pending:
			r.breach(Breach{Check: RequestDecided, Payment: request.Key, Problem: "was requested, but is still PENDING after its deadline and a sweep"})
		}
	})
}

func (r *reconciliation) readResults(ctx context.Context) error {
	return r.read(ctx, r.cfg.Kafka.ResultTopic, func(m *sarama.ConsumerMessage) {
		e := kafkasource.ReadRecord(ctx, "reconcile", m)
		result, err := event.ReadResult(e, r.cfg.Keys)
		if err != nil {
			r.report.Foreign++
			return
		}
		known := r.entries[hashKey(result.Key)]
		if known == nil && m.Timestamp.After(r.judged) {
			return // decided after the snapshot
		}
		r.examined[ResultTrue]++
		if known != nil && known.fingerprint == result.Fingerprint {
			known.published = true
		}
		if problem := contradiction(known, result); problem != "" {
			r.breach(Breach{Check: ResultTrue, Payment: result.Key, Problem: fmt.Sprintf("has the result %s %s %s (%s), but %s",
				result.Status, result.Reason, result.Ref, kafka.PlaceOf(m).String(), problem)})
		}
	})
}

// contradiction describes how a result differs from the ledger's entry; "" means that they agree.
func contradiction(known *entry, result event.PaymentResult) string {
	switch {
	case known == nil:
		return "the ledger does not know it"
	case known.fingerprint != result.Fingerprint:
		if result.Status != payment.Failed || result.Reason != payment.IdempotencyMismatch {
			return "the ledger has its key for another request"
		}
	case result.Status == payment.Success || result.Status == payment.SuccessReplay:
		if known.status != payment.Committed || known.id.String() != result.Ref {
			return fmt.Sprintf("the ledger says %s %s %s", known.status, known.reason, known.id)
		}
		if result.Status == payment.Success && known.attempt != "" && result.AttemptID != known.attempt {
			return "an attempt that was not the first got SUCCESS"
		}
	case known.status != payment.RolledBack || known.reason != result.Reason:
		return fmt.Sprintf("the ledger says %s %s", known.status, known.reason)
	}
	return ""
}

// compare compares the ledger with the events that were read.
func (r *reconciliation) compare(ctx context.Context) error {
	var unpublished, unrequested []uuid.UUID
	for _, e := range r.entries {
		if e.decided.IsZero() || e.decided.After(r.judged) {
			r.report.TooYoung++
			continue
		}
		if e.accepted.IsZero() || !e.accepted.After(r.covered) {
			continue // the topics may have deleted its events
		}
		// Only the gateway sets attempt ids, and it sends every payment through Kafka.
		if e.attempt != "" {
			if r.examined[RequestKept]++; !e.requested {
				unrequested = append(unrequested, e.id)
			}
		}
		// A caller of payments over gRPC gets the answer directly, without an event.
		if e.requested {
			if r.examined[ResultTold]++; !e.published {
				unpublished = append(unpublished, e.id)
			}
		}
	}
	r.report.Since = r.covered
	if err := r.name(ctx, unpublished, Breach{Check: ResultTold, Problem: "is decided, but its result event is missing"}); err != nil {
		return err
	}
	return r.name(ctx, unrequested, Breach{Check: RequestKept, Problem: "came through Kafka, but its request event is missing"})
}

// name reports a breach for each reservation, with its key.
func (r *reconciliation) name(ctx context.Context, ids []uuid.UUID, b Breach) error {
	listed := ids[:min(len(ids), MaxListed)]
	keys, err := ledger.ReadKeys(ctx, r.tx, listed)
	if err != nil {
		return err
	}
	for _, key := range keys {
		b.Payment = key
		r.breach(b)
	}
	r.breaches[b.Check] += int64(len(ids) - len(listed))
	return nil
}

// excuse reports the undecided requests as breaches, except those that an operator has discarded.
func (r *reconciliation) excuse(ctx context.Context) error {
	if len(r.undecided) == 0 {
		return nil
	}
	letters := map[string]string{} // the position of the dead letter, by key
	for _, topic := range []string{r.cfg.Kafka.DeadLetterTopic, r.cfg.Kafka.ParkedTopic} {
		err := r.read(ctx, topic, func(m *sarama.ConsumerMessage) {
			letters[string(m.Key)] = kafka.PlaceOf(m).String()
		})
		if err != nil {
			return err
		}
	}
	discarded, err := ledger.ReadDiscarded(ctx, r.tx)
	if err != nil {
		return err
	}
	for _, u := range r.undecided {
		if discarded[u.key] {
			continue
		}
		b := Breach{Check: RequestDecided, Payment: u.key, Problem: "was requested (" + u.place + "), but the ledger has no outcome"}
		if at := letters[u.key]; at != "" {
			b.Problem += "; it is a dead letter, " + at
		}
		r.breach(b)
	}
	return nil
}
