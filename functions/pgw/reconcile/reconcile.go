// Package reconcile checks that no money was lost, created or moved otherwise than somebody asked for. It
// believes nobody: it checks that the ledger adds up, balance by balance, that every payment and funding
// is what its signed event says, and that the result events agree.
//
// It reads the ledger in one snapshot. Kafka cannot be read in the same snapshot. Payments that are
// younger than the grace are therefore added up but not compared, because their events may still be
// under way.
//
// Its memory does not grow with the ledger. The ledger and the topics are read once, into temporary files
// of buckets by the hash of the key, and compared bucket by bucket. README.md has figures.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5"

	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/shared/ledger"
	"pgw/shared/money"
	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// Check names one check.
type Check string

// The checks.
const (
	Conservation   Check = "conservation"    // balances + holds = funding, and each currency sums to zero
	Account        Check = "account"         // a balance is the sum of its entries, and its holds those of the payments
	Booking        Check = "booking"         // the entries of a payment or transfer are its own
	Outcome        Check = "outcome"         // a claim and its outcome row agree
	ClaimTrue      Check = "claim_true"      // a claim's columns agree with each other and with its fingerprint
	Deadline       Check = "deadline"        // a deadline is not later than the rules allow
	Overdue        Check = "overdue"         // no hold outlives its deadline
	Spent          Check = "spent"           // a balance has counted what was spent today
	Position       Check = "position"        // LIQUIDITY's positions are what was exchanged
	Refunded       Check = "refunded"        // a payment has counted its refunds, and they are between its parties
	Funded         Check = "funding"         // a funding is what its signed event says
	RequestDecided Check = "request_decided" // the ledger has decided each request event
	RequestKept    Check = "request_kept"    // somebody asked for each committed payment: it has its request event
	RequestTrue    Check = "request_true"    // a committed payment is what its signed request event says
	ResultTold     Check = "result_told"     // each decided request has its result event
	ResultTrue     Check = "result_true"     // each result event agrees with the ledger
)

// Checks are all checks in the order of the report.
var Checks = []Check{
	Conservation, Account, Booking, Outcome, ClaimTrue, Deadline, Overdue, Spent, Position, Refunded, Funded,
	RequestDecided, RequestKept, RequestTrue, ResultTold, ResultTrue,
}

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
	// Direct says that callers pay over gRPC, so a committed payment without an attempt id needs no
	// request event.
	Direct bool
	// Checkpoint is a file with the point at which the next run resumes. Empty means that every run
	// compares everything.
	Checkpoint string
	TempDir    string // for temporary files; empty: the system's
}

// Breach is one violation of a check.
type Breach struct {
	Check   Check  `json:"check"`
	Payment string `json:"payment,omitempty"` // the idempotency key
	Client  string `json:"client,omitempty"`  // whose payment it is, if the check knows it
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
	Asked    time.Time `json:"-"`              // like Since, but not later because topics have deleted events
	Balances int64     `json:"balances_idr"`
	Holds    int64     `json:"holds_idr"`
	Funded   int64     `json:"funded_idr"`
	Accounts int64     `json:"accounts"`
	Pending  int64     `json:"pending"`
	TooYoung int64     `json:"too_young"` // payments and requests within the grace
	Direct   int64     `json:"direct"`    // committed payments without an event, which callers over gRPC may have made
	Seeded   int64     `json:"seeded"`    // transfers without an event, with which an operator has set a balance
	Resumed  bool      `json:"resumed"`   // this run went on from a checkpoint
	Foreign  int64     `json:"foreign"`   // events that are not from pgw: unsigned, malformed or of another type
	Checks   []Result  `json:"checks"`
	Breaches []Breach  `json:"breaches"` // at most MaxListed
}

// Clean reports whether there are no breaches.
func (r Report) Clean() bool {
	return !slices.ContainsFunc(r.Checks, func(c Result) bool { return c.Breaches > 0 })
}

// endWithin is the time limit to close the connection to Postgres. A query has no time limit, because it
// may take long on a large ledger. If the host is gone, keepalives fail and end the query.
const endWithin = 5 * time.Second

// Run reconciles. An error means that the checks could not be completed. If a checkpoint does not fit the
// topics any more, Run compares everything.
func Run(ctx context.Context, cfg Config) (Report, error) {
	from, err := loadCheckpoint(cfg.Checkpoint)
	if err != nil {
		return Report{}, err
	}
	report, err := run(ctx, cfg, from)
	if errors.Is(err, kafka.ErrCannotResume) {
		return run(ctx, cfg, checkpoint{})
	}
	return report, err
}

func run(ctx context.Context, cfg Config, from checkpoint) (Report, error) {
	conn, err := postgres.Connect(ctx, cfg.Database, nil)
	if err != nil {
		return Report{}, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
		defer cancel()
		conn.Close(ctx) // this also rolls back the snapshot's transaction
	}()
	tx, err := ledger.BeginSnapshot(ctx, conn)
	if err != nil {
		return Report{}, fmt.Errorf("open a snapshot of the ledger: %w", err)
	}
	r := &reconciliation{cfg: cfg, tx: tx, from: from, to: checkpoint{Topics: map[string]progress{}}, examined: map[Check]int64{}, breaches: map[Check]int64{}}
	spills := []*spill{&r.claims, &r.requests, &r.results, &r.transfers, &r.funded}
	for _, s := range spills {
		s.dir = cfg.TempDir
		defer s.close()
	}
	for _, step := range []struct {
		while string
		run   func(context.Context) error
	}{
		{"reading the database's clock", r.readClock},
		{"adding up the ledger", r.addUp},
		{"reading the ledger's payments", r.readLedger},
		{"reading the ledger's operations", r.readOperations},
		{"reading the ledger's fundings", r.readTransfers},
		{"reading request events", r.readRequests},
		{"reading result events", r.readResults},
		{"reading events of fundings", r.readFundings},
		{"comparing payments with their events", r.comparePayments},
		{"comparing fundings with their events", r.compareFundings},
	} {
		err := step.run(ctx)
		if err != nil && ctx.Err() != nil {
			err = &InterruptedError{step.while, err}
		}
		if err != nil {
			return Report{}, err
		}
	}
	r.report.Since, r.report.Asked = r.covered, r.since
	for _, c := range Checks {
		r.report.Checks = append(r.report.Checks, Result{c, r.examined[c], r.breaches[c]})
	}
	return r.report, r.keepCheckpoint()
}

// keepCheckpoint writes the checkpoint. While an event is missing or wrong, the next run examines the same
// again, so the breach is reported until it is repaired.
func (r *reconciliation) keepCheckpoint() error {
	if r.cfg.Checkpoint == "" || !r.report.Clean() || !r.to.Since.After(r.since) {
		return nil
	}
	return r.to.write(r.cfg.Checkpoint)
}

// reconciliation is the state of one run.
type reconciliation struct {
	cfg      Config
	tx       pgx.Tx
	report   Report
	from, to checkpoint
	since    time.Time // payments since then are compared with events
	judged   time.Time // payments accepted and decided before this time are compared
	covered  time.Time // the topics may have deleted payments' events before this time

	fundingsCovered time.Time // the topic may have deleted fundings' events before this time

	claims, requests, results, transfers, funded spill

	undecided []undecided
	unbooked  []unbooked
	examined  map[Check]int64
	breaches  map[Check]int64
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
	r.judged, r.since = r.report.At.Add(-r.cfg.Grace), r.cfg.Since
	if r.from.Since.After(r.since) {
		r.since, r.report.Resumed = r.from.Since, true
	}
	// A payment that was too young for this run was decided after judged, and so accepted at most
	// DecideWithin before.
	r.to.Since = r.judged.Add(-2 * payment.DecideWithin)
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
	r.examined[Refunded] = n.Claims
	r.examined[Booking], r.examined[Deadline], r.examined[Spent], r.examined[Position] = n.Claims+n.Fundings, n.Claims, n.Accounts, n.Accounts
	for _, list := range []func(context.Context, ledger.Sum) error{
		r.listCurrencies, r.listAccounts, r.listBookings, r.listOutcomes, r.listClaims, r.listOverdue, r.listCounters, r.listRefunds,
	} {
		if err := list(ctx, sum); err != nil {
			return err
		}
	}
	return nil
}

func (r *reconciliation) listCurrencies(ctx context.Context, sum ledger.Sum) error {
	rupiah := money.IDR.String()
	if sum.Balances+sum.Holds != sum.Funded {
		r.breach(Breach{Check: Conservation, Problem: fmt.Sprintf("balances %d + holds %d differ by %+d from the %d that were funded",
			sum.Balances, sum.Holds, sum.Balances+sum.Holds-sum.Funded, sum.Funded)})
	}
	if sum.CurrenciesOff == 0 {
		return nil
	}
	currencies, err := ledger.ReadCurrenciesOff(ctx, r.tx, MaxListed)
	if err != nil {
		return err
	}
	for _, c := range currencies {
		if c.Currency == rupiah && sum.Balances+sum.Holds != sum.Funded {
			continue // reported above
		}
		r.breach(Breach{Check: Conservation, Problem: fmt.Sprintf("balances and holds in %s sum to %+d, with the world outside, instead of 0", c.Currency, c.Sum)})
	}
	return nil
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
		if a.Balance == a.Should {
			b.Problem = fmt.Sprintf("holds %d, but should hold %d", a.Held, a.ShouldHold)
		}
		if a.Currency != money.IDR.String() {
			b.Problem += " (in " + a.Currency + ")"
		}
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

func (r *reconciliation) listBookings(ctx context.Context, sum ledger.Sum) error {
	if sum.BookedOff == 0 {
		return nil
	}
	bookings, err := ledger.ReadBookingsOff(ctx, r.tx, MaxListed)
	if err != nil {
		return err
	}
	for _, o := range bookings {
		b := Breach{Check: Booking, Payment: o.Key, Account: o.Account, Problem: "has other entries than its own"}
		switch {
		case o.Key != "":
		case o.Transfer != "":
			b.Problem = "transfer " + o.Transfer + " has other entries than its own"
		default:
			b.Problem = "has entries of transaction " + o.Transaction.String() + ", which is no payment and no transfer"
		}
		r.breach(b)
	}
	r.breaches[Booking] = sum.BookedOff
	return nil
}

func (r *reconciliation) listClaims(ctx context.Context, _ ledger.Sum) error {
	claims, all, err := ledger.ReadClaimsOff(ctx, r.tx, MaxListed)
	if err != nil {
		return err
	}
	for _, c := range claims {
		b := Breach{Check: ClaimTrue, Payment: c.Key, Problem: "its amounts in rupiah, or its price, contradict each other"}
		if c.Late {
			b.Check = Deadline
			b.Problem = fmt.Sprintf("was reserved at %s, and its deadline, %s, is later than %s after that",
				c.Created.UTC().Format(time.RFC3339), c.Deadline.UTC().Format(time.RFC3339), payment.DecideWithin)
			if c.Pending {
				b.Problem += "; it holds money until then"
			}
		}
		r.breach(b)
	}
	if len(claims) > 0 {
		r.breaches[Deadline] += all - int64(len(claims))
	}
	return nil
}

func (r *reconciliation) listOverdue(ctx context.Context, _ ledger.Sum) error {
	overdue, all, err := ledger.ReadOverdue(ctx, r.tx, r.judged, MaxListed)
	if err != nil {
		return err
	}
	for _, o := range overdue {
		r.breach(Breach{Check: Overdue, Payment: o.Key, Problem: "is PENDING, but its deadline was " + o.Deadline.UTC().Format(time.RFC3339)})
	}
	r.breaches[Overdue] = all
	return nil
}

func (r *reconciliation) listCounters(ctx context.Context, _ ledger.Sum) error {
	spent, all, err := ledger.ReadSpentOff(ctx, r.tx, r.report.At, MaxListed)
	if err != nil {
		return err
	}
	for _, c := range spent {
		r.breach(Breach{Check: Spent, Account: c.Account, Problem: fmt.Sprintf("has counted %d %s as spent today, but its payments are %d", c.Is, c.Currency, c.Should)})
	}
	r.breaches[Spent] = all
	positions, all, err := ledger.ReadPositionsOff(ctx, r.tx, MaxListed)
	if err != nil {
		return err
	}
	for _, c := range positions {
		r.breach(Breach{Check: Position, Account: c.Account, Problem: fmt.Sprintf("has the position %d in %s, but its exchanges and holds are %d", c.Is, c.Currency, c.Should)})
	}
	r.breaches[Position] = all
	return nil
}

func (r *reconciliation) listRefunds(ctx context.Context, sum ledger.Sum) error {
	if sum.RefundsOff == 0 {
		return nil
	}
	off, err := ledger.ReadRefundsOff(ctx, r.tx, MaxListed)
	if err != nil {
		return err
	}
	for _, o := range off {
		b := Breach{Check: Refunded, Payment: o.Key, Problem: "has a refund between other parties, or in other currencies"}
		if o.Is != o.Should {
			b.Problem = fmt.Sprintf("has counted %d as refunded, %d as on its way and %d as returned, but its refunds are %d, %d and %d",
				o.Is.Refunded, o.Is.Refunding, o.Is.Returned, o.Should.Refunded, o.Should.Refunding, o.Should.Returned)
		}
		r.breach(b)
	}
	r.breaches[Refunded] = sum.RefundsOff
	return nil
}

// read reads the records of a topic. covered is the time from which on the topic has all records.
func (r *reconciliation) read(ctx context.Context, topic string, take func(m *sarama.ConsumerMessage) error) (covered time.Time, err error) {
	covered = r.since
	want := kafka.Range{Topic: topic, Since: r.since}
	if r.report.Resumed {
		want.Resume, want.ResumeID = r.from.Topics[topic].Next, r.from.Topics[topic].ID
	}
	reader, err := kafka.OpenReader(r.cfg.Kafka, "reconcile", want)
	if err != nil {
		return covered, err
	}
	defer reader.Close()
	at := progress{ID: reader.TopicID(), Next: map[int32]int64{}}
	r.to.Topics[topic] = at
	trimmed, ends := map[int32]bool{}, map[int32]int64{}
	for _, s := range reader.Spans() {
		trimmed[s.Partition], ends[s.Partition] = s.Trimmed, s.To
	}
	err = reader.Each(ctx, func(m *sarama.ConsumerMessage) error {
		if trimmed[m.Partition] {
			trimmed[m.Partition] = false
			if m.Timestamp.After(covered) {
				covered = m.Timestamp
			}
		}
		if _, found := at.Next[m.Partition]; !found && !m.Timestamp.Before(r.to.Since.Truncate(time.Millisecond)) {
			at.Next[m.Partition] = m.Offset
		}
		return take(m)
	})
	for partition, end := range ends {
		if _, found := at.Next[partition]; !found {
			at.Next[partition] = end
		}
	}
	return covered, err
}

// readLetters reads the dead letters.
func (r *reconciliation) readLetters(ctx context.Context, take func(m *sarama.ConsumerMessage)) error {
	for _, topic := range []string{r.cfg.Kafka.DeadLetterTopic, r.cfg.Kafka.ParkedTopic} {
		err := kafka.Read(ctx, r.cfg.Kafka, "reconcile", kafka.Range{Topic: topic, Since: r.since}, func(m *sarama.ConsumerMessage) error {
			take(m)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
