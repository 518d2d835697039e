// Package reconcile proves that money is neither lost nor made: the ledger adds up, account by account, and
// the request events, the ledger and the result events tell one story.
//
// The ledger is read in one snapshot. Kafka can't be read in the same snapshot, so what happened within the
// grace before it is added up but not compared: its events may still be under way.
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

// Check is one thing that is proved.
type Check string

// The checks.
const (
	Conservation   Check = "conservation"    // balances + holds = funding
	Account        Check = "account"         // a balance is what fundings, payments and holds make it
	Outcome        Check = "outcome"         // a claim and its outcome row agree
	Overdue        Check = "overdue"         // no hold outlives its deadline
	RequestDecided Check = "request_decided" // a request event is decided in the ledger
	RequestKept    Check = "request_kept"    // a payment of the ledger that came by an event has that event
	ResultTold     Check = "result_told"     // a request that is decided has its result event
	ResultTrue     Check = "result_true"     // a result event says what the ledger says
)

// Checks in the order in which they are reported.
var Checks = []Check{Conservation, Account, Outcome, Overdue, RequestDecided, RequestKept, ResultTold, ResultTrue}

// DefaultGrace covers a payment's deadline, the sweep behind it, and the telling of what was swept.
const DefaultGrace = payment.DecideWithin + 2*time.Minute

// MaxListed bounds the breaches that a report names; more are counted.
const MaxListed = 1000

// Config of one reconciliation.
type Config struct {
	Database      string
	Kafka         kafka.Config
	Keys          *event.Keyring
	AllowUnsigned bool // plain records are requests too
	// Since bounds what is compared with events: payments accepted since. The ledger is added up as a whole
	// in any case. Zero: as far back as the topics reach.
	Since time.Time
	Grace time.Duration // what is younger is not compared with events
}

// Breach is one thing that is not as it must be.
type Breach struct {
	Check   Check  `json:"check"`
	Payment string `json:"payment,omitempty"` // idempotency key
	Account string `json:"account,omitempty"`
	Problem string `json:"problem"`
}

// Result of one check.
type Result struct {
	Check    Check `json:"check"`
	Examined int64 `json:"examined"`
	Breaches int64 `json:"breaches"`
}

// Report is what a reconciliation found. Amounts are whole rupiah.
type Report struct {
	At       time.Time `json:"at"`             // of the ledger's snapshot
	Since    time.Time `json:"since,omitzero"` // from here on events were compared
	Balances int64     `json:"balances_idr"`
	Holds    int64     `json:"holds_idr"`
	Funded   int64     `json:"funded_idr"`
	Accounts int64     `json:"accounts"`
	Pending  int64     `json:"pending"`
	TooYoung int64     `json:"too_young"` // payments and requests within the grace
	Foreign  int64     `json:"foreign"`   // events that are not pgw's: unsigned, malformed, of another type
	Checks   []Result  `json:"checks"`
	Breaches []Breach  `json:"breaches"` // at most MaxListed
}

// Clean tells that nothing is wrong.
func (r Report) Clean() bool {
	return !slices.ContainsFunc(r.Checks, func(c Result) bool { return c.Breaches > 0 })
}

// The bounds of what is asked of Postgres. A question about a large ledger may take long, so it has none of its own; a
// host that is gone does not answer keepalives, and ends it.
const (
	connectWithin = 10 * time.Second
	endWithin     = 5 * time.Second
	aliveEvery    = 10 * time.Second
	aliveTries    = 3
)

// connect opens a connection on which a host that goes silent is noticed.
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

// Run reconciles. An error means that it could not be told whether all is well.
func Run(ctx context.Context, cfg Config) (Report, error) {
	conn, err := connect(ctx, cfg.Database)
	if err != nil {
		return Report{}, fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
		defer cancel()
		conn.Close(ctx) // which rolls the snapshot's transaction back
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

// reconciliation is one under way.
type reconciliation struct {
	cfg       Config
	tx        pgx.Tx
	report    Report
	judged    time.Time // what was accepted and decided before this is compared
	covered   time.Time // before this the topics may have forgotten events
	entries   map[keyHash]*entry
	undecided []undecided
	examined  map[Check]int64
	breaches  map[Check]int64
}

// keyHash stands for an idempotency key: with millions of payments the keys themselves would not fit.
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
	accepted    time.Time // zero where the caller did not say
	decided     time.Time // zero while PENDING
	requested   bool      // its request event is there
	told        bool      // its result event is there
}

// undecided is a request event that the ledger has no claim for.
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

// addUp proves the ledger by itself.
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
		r.breach(Breach{Check: Conservation, Problem: fmt.Sprintf("balances %d + holds %d are %+d off the %d that were funded",
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
		b := Breach{Check: Account, Account: a.ID, Problem: fmt.Sprintf("has %d, and should have %d: %+d", a.Balance, a.Should, a.Balance-a.Should)}
		if len(a.Payments) > 0 {
			b.Payment = a.Payments[0]
			b.Problem += ", as much as was moved by " + strings.Join(a.Payments, ", ")
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
		r.breach(Breach{Check: Overdue, Payment: o.Key, Problem: "is PENDING, and its deadline was " + o.Deadline.UTC().Format(time.RFC3339)})
	}
	return nil
}

// readLedger reads the claims that events may be compared with.
func (r *reconciliation) readLedger(ctx context.Context) error {
	// A request's event is older than its claim; what the events need is covered by twice the deadline.
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

// read gives the events of a topic, and notes where the topic begins to remember.
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
			r.report.Foreign++ // refused by the worker for the same reason
			return
		}
		known := r.entries[hashKey(request.Key)]
		if known != nil && known.fingerprint == request.Fingerprint() {
			known.requested = true
		}
		// A request that names no deadline has one from when it is reserved; the record's own time is older.
		if m.Timestamp.After(r.judged) || request.Deadline.After(r.judged) {
			r.report.TooYoung++
			return
		}
		r.examined[RequestDecided]++
		switch {
		case known == nil:
			r.undecided = append(r.undecided, undecided{request.Key, kafka.PlaceOf(m).String()})
		case known.status == payment.Pending:
			r.breach(Breach{Check: RequestDecided, Payment: request.Key, Problem: "was requested, and is still PENDING after its deadline and a sweep"})
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
			known.told = true
		}
		if problem := contradiction(known, result); problem != "" {
			r.breach(Breach{Check: ResultTrue, Payment: result.Key, Problem: fmt.Sprintf("was told %s %s %s (%s), and %s",
				result.Status, result.Reason, result.Ref, kafka.PlaceOf(m).String(), problem)})
		}
	})
}

// contradiction says in what a result differs from the ledger's entry.
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
			return "an attempt that was not the first was told SUCCESS"
		}
	case known.status != payment.RolledBack || known.reason != result.Reason:
		return fmt.Sprintf("the ledger says %s %s", known.status, known.reason)
	}
	return ""
}

// compare holds the ledger against the events that were seen.
func (r *reconciliation) compare(ctx context.Context) error {
	var untold, unasked []uuid.UUID
	for _, e := range r.entries {
		if e.decided.IsZero() || e.decided.After(r.judged) {
			r.report.TooYoung++
			continue
		}
		if e.accepted.IsZero() || !e.accepted.After(r.covered) {
			continue // the topics need not remember it
		}
		// Only the gateway names attempts, and it sends every payment through Kafka.
		if e.attempt != "" {
			if r.examined[RequestKept]++; !e.requested {
				unasked = append(unasked, e.id)
			}
		}
		// Who calls payments by gRPC has the answer, and no event.
		if e.requested {
			if r.examined[ResultTold]++; !e.told {
				untold = append(untold, e.id)
			}
		}
	}
	r.report.Since = r.covered
	if err := r.name(ctx, untold, Breach{Check: ResultTold, Problem: "is decided, and its result event is missing"}); err != nil {
		return err
	}
	return r.name(ctx, unasked, Breach{Check: RequestKept, Problem: "came through Kafka, and its request event is missing"})
}

// name finds the keys of reservations.
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

// excuse finds out why requests are undecided. One that an operator has put aside is no breach.
func (r *reconciliation) excuse(ctx context.Context) error {
	if len(r.undecided) == 0 {
		return nil
	}
	letters := map[string]string{} // by key: where the letter stands
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
		b := Breach{Check: RequestDecided, Payment: u.key, Problem: "was requested (" + u.place + "), and the ledger has no outcome"}
		if at := letters[u.key]; at != "" {
			b.Problem += "; it is a dead letter, " + at
		}
		r.breach(b)
	}
	return nil
}
