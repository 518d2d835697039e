package ledger

import (
	"errors"
	"sync"
	"testing"

	"github.com/google/uuid"
)

// Of operators who act on a letter at the same time, one succeeds. The others learn who it was. A
// call that is repeated, because its answer was lost, is recorded once.
func TestOneOfTwoOperatorsActs(t *testing.T) {
	w := newWorld(t)
	action := func(operator string, ordinal int32) DeadLetterAction {
		return DeadLetterAction{
			ID: newID(), LetterID: "letter", Ordinal: ordinal, Topic: "payments.parked", EventID: "e", EventKey: "k",
			Action: Redriven, Operator: operator, Note: "why",
		}
	}
	const operators = 8
	results := make([]error, operators)
	var acting sync.WaitGroup
	for i := range results {
		acting.Go(func() { results[i] = w.RecordAction(t.Context(), action("ayu", 1)) })
	}
	acting.Wait()
	acted := 0
	for _, err := range results {
		switch {
		case err == nil:
			acted++
		case !errors.Is(err, ErrActed):
			t.Error(err)
		}
	}
	if acted != 1 {
		t.Errorf("%d operators acted", acted)
	}
	again := action("bima", 2)
	for range 2 {
		if err := w.RecordAction(t.Context(), again); err != nil {
			t.Error(err)
		}
	}
	again.LetterID, again.Ordinal = "another", 1
	var invalid *InvalidError
	if err := w.RecordAction(t.Context(), again); !errors.As(err, &invalid) {
		t.Errorf("the id of another letter's action: %v", err)
	}
	// An action as earlier releases record it, and one that can't be.
	if err := w.RecordAction(t.Context(), DeadLetterAction{Topic: "payments.parked", Action: Discarded, Operator: "ayu"}); err != nil {
		t.Error(err)
	}
	if err := w.RecordAction(t.Context(), action("ayu", 0)); !errors.As(err, &invalid) {
		t.Errorf("without a number: %v", err)
	}
	all, next, err := w.Actions(t.Context(), "payments.parked", uuid.Nil)
	if err != nil || len(all) != 3 || next != uuid.Nil {
		t.Errorf("%+v, %s, %v", all, next, err)
	}
}
