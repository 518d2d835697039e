package wallet

import (
	"context"
	"errors"
	"slices"
	"testing"

	"pgw/shared/ledger"
)

// servers are a primary and a standby that does not have the newest account yet.
type servers struct {
	standby, primary map[string]ledger.Account
	away             error // of the primary
	asked            []string
}

func (s *servers) Accounts(context.Context, []string) (map[string]ledger.Account, bool, error) {
	return s.standby, true, nil
}

func (s *servers) CurrentAccounts(_ context.Context, ids []string) (map[string]ledger.Account, error) {
	s.asked = append(s.asked, ids...)
	return s.primary, s.away
}

// That there is no account is only said by the primary, and what has to be current is read there.
func TestAccountsAtAStandby(t *testing.T) {
	away := errors.New("away")
	for name, tc := range map[string]struct {
		away error
		want []string // account and behind, or the error, of each call
	}{
		"the primary answers": {nil, []string{"old behind", "new", "none", "current"}},
		"the primary is away": {away, []string{"old behind", "away", "away", "away"}},
	} {
		s := &servers{
			standby: map[string]ledger.Account{"OLD": {ID: "old"}, "CURRENT": {ID: "stale"}},
			primary: map[string]ledger.Account{"OLD": {ID: "other"}, "NEW": {ID: "new"}, "CURRENT": {ID: "current"}},
			away:    tc.away,
		}
		var got []string
		for _, r := range readAll(t.Context(), s, []lookup{{id: "OLD"}, {id: "NEW"}, {id: "NONE"}, {id: "CURRENT", current: true}}) {
			text := "none"
			switch {
			case r.Err != nil:
				text = r.Err.Error()
			case r.Value.account != nil:
				text = r.Value.account.ID
			}
			if r.Value.behind {
				text += " behind"
			}
			got = append(got, text)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q; want %q", name, got, tc.want)
		}
		if slices.Sort(s.asked); !slices.Equal(s.asked, []string{"CURRENT", "NEW", "NONE"}) {
			t.Errorf("%s: the primary was asked for %q", name, s.asked)
		}
	}
}
