package reconcile

import (
	"errors"
	"testing"
	"time"
)

func TestVerdictsInWords(t *testing.T) {
	at := time.Date(2026, 1, 31, 9, 30, 0, 0, time.UTC)
	clean := Report{At: at, Accounts: 12, Checks: []Result{{Account, 12, 0}, {Funded, 4, 0}, {RequestDecided, 7, 0}}}
	since := clean
	since.Since, since.Asked = at.Add(-time.Hour), at.Add(-24*time.Hour) // the topics have deleted older events
	wrong := since
	wrong.Checks = []Result{{Account, 12, 2}, {Funded, 4, 1}, {RequestDecided, 7, 0}}
	for want, got := range map[Conclusion]Conclusion{
		{at, Agrees, 0, "The books agree. The whole ledger was added up (12 accounts), and 7 requested payments and 4 fundings were compared with their events, as far back as the topics go.", time.Time{}}:                                                      Conclude(clean, nil, at),
		{at, Agrees, 0, "The books agree. The whole ledger was added up (12 accounts), and 7 requested payments and 4 fundings were compared with their events, since 2026-01-31T08:30:00Z.", at.Add(-24 * time.Hour)}:                                            Conclude(since, nil, at),
		{at, Differs, 3, "The books do not agree: 3 breaches (account 2, funding 1). The whole ledger was added up (12 accounts), and 7 requested payments and 4 fundings were compared with their events, since 2026-01-31T08:30:00Z.", at.Add(-24 * time.Hour)}: Conclude(wrong, nil, at),
		{at, Unknown, 0, "It could not be checked whether the books agree: no ledger", time.Time{}}:                                                                                                                                                               Conclude(Report{}, errors.New("no ledger"), at),
	} {
		if got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}
