package ledger

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Two origins stay different even if joining source and id gives the same text.
func TestOriginsAreUnambiguous(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.StringMatching(`[a0-9:#]{1,6}`)
		s1, i1, s2, i2 := part.Draw(t, "s1"), part.Draw(t, "i1"), part.Draw(t, "s2"), part.Draw(t, "i2")
		// No URI begins with a number and a colon, so no source does.
		if (Origin{Source: "/" + s1, ID: i1}).key() == (Origin{Source: "/" + s2, ID: i2}).key() && (s1 != s2 || i1 != i2) {
			t.Fatalf("/%s, %s and /%s, %s", s1, i1, s2, i2)
		}
	})
}

// Only active accounts of clients are picked, each once, and all of them where more are asked for.
func TestRandomAccounts(t *testing.T) {
	w := newWorld(t)
	w.open(1000, "A", "B", "C", "BLOCKED")
	w.exec(`UPDATE accounts SET status = 'BLOCKED' WHERE account_id = 'BLOCKED'`)
	for n, want := range map[int]int{1: 1, 2: 2, 3: 3, 100: 3} {
		got, err := w.RandomAccounts(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		if distinct := slices.Compact(slices.Clone(got)); len(distinct) != want || len(got) != want {
			t.Errorf("%d accounts: %v", n, got)
		}
		for _, id := range got {
			if !slices.Contains([]string{"A", "B", "C"}, id) {
				t.Errorf("%s is picked", id)
			}
		}
	}
}
