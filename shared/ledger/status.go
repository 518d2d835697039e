package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"pgw/shared/payment"
	"pgw/shared/postgres"
	"pgw/shared/trace"
)

// Finding says whether a reconciliation found that the books agree.
type Finding string

// The findings.
const (
	Agrees  Finding = "agrees"
	Differs Finding = "differs"
	Unknown Finding = "unknown" // the reconciliation could not be completed
)

// Verdict is the result of a reconciliation.
type Verdict struct {
	Finding  Finding
	Breaches int64
	Text     string    // for a person
	At       time.Time // when the ledger got it; RecordVerdict ignores it
	Since    time.Time // from when on payments were to be compared with their events; zero: as far back as the topics go
}

const (
	keptVerdicts = 100
	maxVerdict   = 2000 // bytes of a verdict's text
)

// Two reconciliations that end at the same time may take the same number. The later one stays.
var verdictSQL = fmt.Sprintf(`
WITH next AS (SELECT coalesce(max(number), 0) + 1 AS number FROM verdicts)
INSERT INTO verdicts (slot, number, verdict, breaches, words, since) SELECT number %% %d, number, $1, $2, $3, $4 FROM next
ON CONFLICT (slot) DO UPDATE SET number = excluded.number, told_at = excluded.told_at, verdict = excluded.verdict, breaches = excluded.breaches,
	words = excluded.words, since = excluded.since`, keptVerdicts)

// RecordVerdict keeps a verdict. The ledger keeps the latest hundred. An InvalidError names the
// invalid field.
func (l *Ledger) RecordVerdict(ctx context.Context, v Verdict) error {
	if err := v.check(); err != nil {
		return &InvalidError{err}
	}
	if _, err := l.pool.Exec(ctx, verdictSQL, v.Finding, v.Breaches, v.Text, timestamp(v.Since)); err != nil {
		return fmt.Errorf("record a verdict: %w", err)
	}
	return nil
}

func (v Verdict) check() error {
	switch v.Finding {
	case Agrees, Differs, Unknown:
	default:
		return &payment.FieldError{Field: "verdict", Problem: "must be agrees, differs or unknown"}
	}
	if v.Breaches < 0 || (v.Breaches > 0) != (v.Finding == Differs) {
		return &payment.FieldError{Field: "breaches", Problem: "must be positive if the books differ, and else 0"}
	}
	if v.Text == "" {
		return &payment.FieldError{Field: "text", Problem: "is missing"}
	}
	return payment.CheckText("text", v.Text, maxVerdict)
}

// Reachable returns whether the database answers, and since when.
func (l *Ledger) Reachable() trace.State { return l.outage.State() }

// Standby returns what is known of the standby that lists and reports are read from.
func (l *Ledger) Standby() postgres.StandbyState { return l.reads.from.State() }

// Standing is what operators want to know of the ledger. What is not known is zero.
type Standing struct {
	Schema    int
	LastSweep Swept // At, Pending, HeldIDR and Oldest of the latest completed sweep
	Verdict   Verdict
}

const ledgerStandingSQL = `
SELECT (SELECT max(version_id) FROM goose_db_version), s.swept_at, coalesce(s.pending, 0), coalesce(s.held_idr, 0), s.oldest_pending_at,
	v.told_at, coalesce(v.verdict, ''), coalesce(v.breaches, 0), coalesce(v.words, ''), v.since
FROM sweep_state s LEFT JOIN LATERAL (SELECT * FROM verdicts ORDER BY number DESC LIMIT 1) v ON true`

// Standing reads what the ledger keeps for operators. It reads a few rows.
func (l *Ledger) Standing(ctx context.Context) (s Standing, err error) {
	err = l.reads.rows.run(ctx, func(ctx context.Context) error {
		var swept, oldest, told, since pgtype.Timestamptz
		err := l.reads.pool.QueryRow(ctx, ledgerStandingSQL).Scan(&s.Schema, &swept, &s.LastSweep.Pending, &s.LastSweep.HeldIDR, &oldest,
			&told, &s.Verdict.Finding, &s.Verdict.Breaches, &s.Verdict.Text, &since)
		s.LastSweep.At, s.LastSweep.Oldest, s.Verdict.At = swept.Time, oldest.Time, told.Time
		s.Verdict.Since = since.Time
		return err
	})
	if err != nil {
		return Standing{}, fmt.Errorf("read the ledger's standing: %w", err)
	}
	return s, nil
}
