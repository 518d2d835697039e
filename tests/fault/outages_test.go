package main

import (
	"slices"
	"testing"
)

// A cluster's faults come from the seed alone, each part has each of its kinds, and each fault has a goal.
func TestOutagesAreDealt(t *testing.T) {
	const n = 100
	one, same, other := dealer(1), dealer(1), dealer(2)
	seen, differ := map[string]bool{}, false
	for range n {
		f := one()
		if f != same() {
			t.Fatal("the same seed deals other faults")
		}
		differ = differ || f != other()
		seen[f.Target+f.Kind] = true
		if !slices.ContainsFunc(goals, func(g goal) bool { return g.of(f) }) {
			t.Errorf("%s has no goal", f)
		}
	}
	for target, kinds := range outages {
		for _, kind := range kinds {
			if !seen[target+kind] {
				t.Errorf("%d faults, and none is %s of the %s", n, kind, target)
			}
		}
	}
	if !differ {
		t.Error("two seeds deal the same faults")
	}
}
