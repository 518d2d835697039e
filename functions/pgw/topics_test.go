package main

import (
	"strings"
	"testing"

	"pgw/shared/kafka"
)

func TestWeakTopicsAreNamed(t *testing.T) {
	got := warning([]kafka.Durability{
		{Topic: "safe", Replication: 3, MinInSync: 2}, {Topic: "single", Replication: 1, MinInSync: 1}, {Topic: "hasty", Replication: 3, MinInSync: 1},
	})
	if !strings.Contains(got, "single (1, 1), hasty (3, 1)") || strings.Contains(got, "safe (") {
		t.Errorf("%q", got)
	}
	if got := warning([]kafka.Durability{{Topic: "safe", Replication: 5, MinInSync: 4}}); got != "" {
		t.Errorf("%q", got)
	}
	for replication, want := range map[int16]int{1: 1, 2: 1, 3: 2, 5: 4} {
		if got := minInSync(replication); got != want {
			t.Errorf("of %d replicas, %d must have a record; want %d", replication, got, want)
		}
	}
}
