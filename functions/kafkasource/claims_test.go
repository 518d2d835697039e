package kafkasource

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// A source's lag counts all undelivered records, read or not.
func TestLag(t *testing.T) {
	release := make(chan struct{})
	r := newRig(t, 1, func(http.ResponseWriter, *http.Request) { <-release })
	done := sync.OnceFunc(func() { close(release) })
	t.Cleanup(done)
	for _, id := range []string{"one", "two", "three", "four", "five"} {
		r.sendEvent(id, id)
	}
	registry := prometheus.NewRegistry()
	// Ordered, and so one delivery at a time; it reads one more than it delivers.
	stop := r.start(manifest("ordering: unordered", "ordering: ordered"), func(c *Options) { c.Registerer = registry })
	expect := func(want string) {
		t.Helper()
		var err error
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if err = testutil.GatherAndCompare(registry, strings.NewReader(want), "pgw_source_lag", "pgw_source_in_flight"); err == nil {
				return
			}
		}
		t.Fatal(err)
	}
	metrics := func(lag, inFlight string) string {
		return `
# HELP pgw_source_in_flight Records that are read but not delivered yet.
# TYPE pgw_source_in_flight gauge
pgw_source_in_flight{source="src"} ` + inFlight + `
# HELP pgw_source_lag Records of this process's partitions that are not delivered yet.
# TYPE pgw_source_lag gauge
pgw_source_lag{source="src"} ` + lag + "\n"
	}
	expect(metrics("5", "2"))
	age, err := testutil.GatherAndCount(registry, "pgw_source_oldest_age_seconds")
	if age != 1 || err != nil {
		t.Errorf("%d ages, %v", age, err)
	}
	done()
	expect(metrics("0", "0"))
	r.sendEvent("six", "six")
	r.committed(6)
	stop()
	expect(metrics("0", "0"))
}
