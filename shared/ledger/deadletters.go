package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgw/shared/payment"
	"pgw/shared/postgres"
)

// Action is an operator's action on a dead letter.
type Action string

// The actions.
const (
	Redriven  Action = "REDRIVEN"
	Discarded Action = "DISCARDED"
	// NotSent takes back a Redriven whose event was certainly not sent.
	NotSent Action = "NOT_SENT"
)

// DeadLetterAction is the record of an action. Kafka can't mark a letter, so the record identifies
// the letter.
type DeadLetterAction struct {
	ID uuid.UUID // uuid.Nil: RecordAction makes one
	// LetterID identifies the letter, and Ordinal numbers its actions from 1. Actions of earlier
	// releases have neither.
	LetterID string
	Ordinal  int32
	// The place of the letter's newest record at the time of the action.
	Topic     string
	Partition int32
	Offset    int64
	EventID   string // of the event in the letter, if it has one
	EventKey  string
	Action    Action
	Operator  string // the person who acted
	Note      string // the person's reason
	ActedAt   time.Time
}

const (
	maxNote     = 500
	actionsPage = 1000
)

// ErrActed means that another action on the letter was recorded first.
var ErrActed = errors.New("the letter has another action by now")

// RecordAction records an action. It ignores ActedAt. The error is ErrActed if the letter has an
// action of this ordinal. The same action again, with the same ID, is recorded once. An
// InvalidError names the invalid field.
func (l *Ledger) RecordAction(ctx context.Context, a DeadLetterAction) error {
	if err := a.check(); err != nil {
		return &InvalidError{err}
	}
	if a.ID == uuid.Nil {
		a.ID = newID()
	}
	done, err := l.pool.Exec(ctx, `
INSERT INTO dead_letter_actions (action_id, topic, partition, record_offset, event_id, event_key, action, operator, note, letter_id, ordinal)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING`,
		a.ID, a.Topic, a.Partition, a.Offset, a.EventID, a.EventKey, a.Action, a.Operator, a.Note, a.LetterID, a.Ordinal)
	if err != nil {
		return fmt.Errorf("record an action on a dead letter: %w", err)
	}
	if done.RowsAffected() == 1 {
		return nil
	}
	var mine bool
	var operator string
	var action Action
	var at time.Time
	err = l.pool.QueryRow(ctx, `
SELECT action_id = $1, action, operator, acted_at FROM dead_letter_actions WHERE letter_id = $2 AND ordinal = $3`,
		a.ID, a.LetterID, a.Ordinal).Scan(&mine, &action, &operator, &at)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return &InvalidError{&payment.FieldError{Field: "action_id", Problem: "belongs to another letter's action"}}
	case err != nil:
		return fmt.Errorf("record an action on a dead letter: %w", err)
	case !mine:
		return fmt.Errorf("%w: %s by %s at %s", ErrActed, action, operator, at.UTC().Format(time.RFC3339))
	}
	return nil
}

func (a DeadLetterAction) check() error {
	bad := func(field, problem string) error { return &payment.FieldError{Field: field, Problem: problem} }
	switch {
	case a.Topic == "" || len(a.Topic) > 249: // 249 is Kafka's own limit
		return bad("topic", "must have 1 to 249 characters")
	case a.Partition < 0:
		return bad("partition", "must not be negative")
	case a.Offset < 0:
		return bad("offset", "must not be negative")
	case a.Action != Redriven && a.Action != Discarded && a.Action != NotSent:
		return bad("action", "must be REDRIVEN, DISCARDED or NOT_SENT")
	case len(a.LetterID) > maxNote:
		return bad("letter_id", fmt.Sprintf("must have at most %d bytes", maxNote))
	case (a.LetterID == "") != (a.Ordinal == 0), a.Ordinal < 0:
		return bad("ordinal", "must be positive, with a letter_id")
	case a.Operator == "" || len(a.Operator) > maxNote:
		return bad("operator", fmt.Sprintf("must have 1 to %d bytes", maxNote))
	case len(a.Note) > maxNote, len(a.EventID) > maxNote, len(a.EventKey) > maxNote:
		return bad("note, event_id, event_key", fmt.Sprintf("must have at most %d bytes", maxNote))
	}
	return nil
}

// Actions reads a page of a topic's actions, the oldest first. It continues after the id that the
// previous page returned as next. The first page starts after uuid.Nil. A next of uuid.Nil means
// that there are no more.
func (l *Ledger) Actions(ctx context.Context, topic string, after uuid.UUID) (actions []DeadLetterAction, next uuid.UUID, err error) {
	rows, err := l.pool.Query(ctx, `
SELECT action_id, topic, partition, record_offset, event_id, event_key, action, operator, note, acted_at, letter_id, ordinal
FROM dead_letter_actions WHERE topic = $1 AND action_id > $2 ORDER BY action_id LIMIT $3`, topic, after, actionsPage)
	if err != nil {
		return nil, uuid.Nil, fmt.Errorf("read actions: %w", err)
	}
	actions, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (a DeadLetterAction, err error) {
		err = row.Scan(&a.ID, &a.Topic, &a.Partition, &a.Offset, &a.EventID, &a.EventKey, &a.Action, &a.Operator, &a.Note, &a.ActedAt, &a.LetterID, &a.Ordinal)
		return a, err
	})
	if err != nil {
		return nil, uuid.Nil, fmt.Errorf("read actions: %w", err)
	}
	if len(actions) == actionsPage {
		next = actions[actionsPage-1].ID
	}
	return actions, next, nil
}

// maxActed is the most letters that Acted returns.
const maxActed = 10_000

const actedSQL = `
SELECT partition, record_offset FROM (
	SELECT DISTINCT ON (a.partition, a.record_offset) a.partition, a.record_offset, a.action FROM dead_letter_actions a
	JOIN unnest($2::int[], $3::bigint[]) AS wanted (partition, first) ON a.partition = wanted.partition AND a.record_offset >= wanted.first
	WHERE a.topic = $1 ORDER BY a.partition, a.record_offset, a.ordinal DESC, a.acted_at DESC
) latest
WHERE action <> 'NOT_SENT' ORDER BY 1, 2 LIMIT $4`

// Acted returns the offsets of a topic's letters that have an action, by partition. A letter whose last
// action is that nothing was sent waits again, and is not among them. from has the first
// offset of each partition that the caller wants to know of.
func (l *Ledger) Acted(ctx context.Context, topic string, from map[int32]int64) (acted map[int32][]int64, err error) {
	partitions, first := make([]int32, 0, len(from)), make([]int64, 0, len(from))
	for p, offset := range from {
		partitions, first = append(partitions, p), append(first, offset)
	}
	acted = map[int32][]int64{}
	err = l.reads.rows.run(ctx, func(ctx context.Context) error {
		rows, err := l.reads.pool.Query(ctx, actedSQL, topic, partitions, first, maxActed)
		if err != nil {
			return err
		}
		var p int32
		var offset int64
		_, err = pgx.ForEachRow(rows, []any{&p, &offset}, func() error { acted[p] = append(acted[p], offset); return nil })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read which dead letters have an action: %w", err)
	}
	return acted, nil
}

// DiscardedEvents are the events that operators have discarded, by their ids and by their keys.
type DiscardedEvents struct{ Events, Keys map[string]bool }

// ReadDiscarded reads all events that operators have discarded.
func ReadDiscarded(ctx context.Context, q postgres.Querier) (DiscardedEvents, error) {
	d := DiscardedEvents{map[string]bool{}, map[string]bool{}}
	rows, err := q.Query(ctx, `SELECT DISTINCT event_id, event_key FROM dead_letter_actions WHERE action = $1`, Discarded)
	if err != nil {
		return d, fmt.Errorf("read the discarded events: %w", err)
	}
	var id, key string
	_, err = pgx.ForEachRow(rows, []any{&id, &key}, func() error {
		d.Events[id], d.Keys[key] = true, true
		return nil
	})
	if err != nil {
		return d, fmt.Errorf("read the discarded events: %w", err)
	}
	return d, nil
}
