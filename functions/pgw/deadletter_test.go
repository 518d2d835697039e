package main

import (
	"errors"
	"strings"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"pgw/shared/deadletter"
	"pgw/shared/kafka"
)

func letterOf(id, eventID string, state deadletter.State) deadletter.Letter {
	e := cloudevents.New()
	e.SetID(eventID)
	return deadletter.Letter{ID: id, Event: e, State: state, Copies: []deadletter.Copy{{Place: kafka.Place{Topic: "payments.parked"}}}}
}

// An action is for the letters that wait for an operator, unless the operator says otherwise. It is an
// error if there are none.
func TestActionsAreForParkedLetters(t *testing.T) {
	letters := []deadletter.Letter{
		letterOf("1", "a", deadletter.Parked), letterOf("2", "a", deadletter.Redriven), letterOf("3", "b", deadletter.ClosedOut),
		letterOf("4", "c", deadletter.Discarded),
	}
	for name, tc := range map[string]struct {
		flags   actFlags
		letters []deadletter.Letter
		want    string
		err     string
	}{
		"all":                      {actFlags{All: true}, letters, "1", ""},
		"again":                    {actFlags{All: true, Again: true}, letters, "1 2 3 4", ""},
		"a dry run":                {actFlags{All: true, DryRun: true}, letters, "", ""},
		"a named one":              {actFlags{letterFlags: letterFlags{Letters: []string{"3"}}}, letters[2:3], "3", ""},
		"one that was acted on":    {actFlags{letterFlags: letterFlags{Letters: []string{"2"}}}, letters[1:2], "", "no letter matches that is parked; of those that match, the first is redriven"},
		"an id of several letters": {actFlags{letterFlags: letterFlags{Letters: []string{"a"}}}, letters[:2], "", "several letters: name one of 1, 2"},
		"none":                     {actFlags{All: true}, nil, "", "no letter matches"},
	} {
		var acted []string
		err := tc.flags.each(t.Context(), tc.letters, "redriven", func(l deadletter.Letter) error {
			acted = append(acted, l.ID)
			return nil
		})
		if got := strings.Join(acted, " "); got != tc.want || (err == nil) != (tc.err == "") || (err != nil && !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: acted on %q, %v", name, got, err)
		}
	}
	// The others are still acted on if one fails.
	acted := 0
	err := actFlags{Again: true}.each(t.Context(), letters, "redriven", func(l deadletter.Letter) error {
		acted++
		return deadletter.ErrUnsigned
	})
	if acted != len(letters) || !errors.Is(err, deadletter.ErrUnsigned) {
		t.Errorf("%d, %v", acted, err)
	}
	if err := (actFlags{letterFlags: letterFlags{Letters: []string{"payments.parked/0/1"}}}).Validate(); err == nil || !strings.Contains(err.Error(), "by its id") {
		t.Errorf("a place: %v", err)
	}
}
