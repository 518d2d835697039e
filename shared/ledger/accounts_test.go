package ledger

import (
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
