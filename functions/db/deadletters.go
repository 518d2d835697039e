package db

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"google.golang.org/protobuf/types/known/timestamppb"

	dbv1 "pgw/proto/gen/db/v1"
	"pgw/shared/payment"
)

// The actions that an operator may take on a dead letter.
const (
	Redriven  = "REDRIVEN"
	Discarded = "DISCARDED"
)

const (
	maxNote     = 500
	actionsPage = 1000
)

// RecordDeadLetterAction implements db.v1.Admin.
func (d *DB) RecordDeadLetterAction(ctx context.Context, in *dbv1.RecordDeadLetterActionRequest) (*dbv1.RecordDeadLetterActionResponse, error) {
	a := in.GetAction()
	if err := checkAction(a); err != nil {
		return nil, invalid(err)
	}
	_, err := d.pool.Exec(ctx, `
INSERT INTO dead_letter_actions (action_id, topic, partition, record_offset, event_id, event_key, action, operator, note)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		newID(), a.Topic, a.Partition, a.Offset, a.EventId, a.EventKey, a.Action, a.Operator, a.Note)
	if err != nil {
		return nil, unavailable(fmt.Errorf("record what was done about a dead letter: %w", err))
	}
	return &dbv1.RecordDeadLetterActionResponse{}, nil
}

func checkAction(a *dbv1.DeadLetterAction) error {
	bad := func(field, problem string) error { return &payment.FieldError{Field: field, Problem: problem} }
	switch {
	case a == nil:
		return bad("action", "is missing")
	case a.Topic == "" || len(a.Topic) > 249: // Kafka's own limit
		return bad("topic", "must have 1 to 249 characters")
	case a.Partition < 0:
		return bad("partition", "must not be negative")
	case a.Offset < 0:
		return bad("offset", "must not be negative")
	case a.Action != Redriven && a.Action != Discarded:
		return bad("action", "must be REDRIVEN or DISCARDED")
	case a.Operator == "" || len(a.Operator) > maxNote:
		return bad("operator", fmt.Sprintf("must have 1 to %d bytes", maxNote))
	case len(a.Note) > maxNote, len(a.EventId) > maxNote, len(a.EventKey) > maxNote:
		return bad("note, event_id, event_key", fmt.Sprintf("must have at most %d bytes", maxNote))
	}
	return nil
}

// ListDeadLetterActions implements db.v1.Admin.
func (d *DB) ListDeadLetterActions(ctx context.Context, in *dbv1.ListDeadLetterActionsRequest) (*dbv1.ListDeadLetterActionsResponse, error) {
	after := uuid.Nil
	if in.PageToken != "" {
		var err error
		if after, err = uuid.Parse(in.PageToken); err != nil {
			return nil, invalid(&payment.FieldError{Field: "page_token", Problem: "is none of this ledger"})
		}
	}
	rows, err := d.pool.Query(ctx, `
SELECT action_id, topic, partition, record_offset, event_id, event_key, action, operator, note, acted_at
FROM dead_letter_actions WHERE topic = $1 AND action_id > $2 ORDER BY action_id LIMIT $3`, in.Topic, after, actionsPage)
	if err != nil {
		return nil, unavailable(err)
	}
	out := &dbv1.ListDeadLetterActionsResponse{}
	var last uuid.UUID
	out.Actions, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*dbv1.DeadLetterAction, error) {
		a := &dbv1.DeadLetterAction{}
		var at pgtype.Timestamptz
		err := row.Scan(&last, &a.Topic, &a.Partition, &a.Offset, &a.EventId, &a.EventKey, &a.Action, &a.Operator, &a.Note, &at)
		a.ActedAt = timestamppb.New(at.Time)
		return a, err
	})
	if err != nil {
		return nil, unavailable(err)
	}
	if len(out.Actions) == actionsPage {
		out.NextPageToken = last.String()
	}
	return out, nil
}
