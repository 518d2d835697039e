package main

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// Names follow Prometheus's linter, and every described metric exists from the start.
func TestMetricsAreWellNamedAndComplete(t *testing.T) {
	all, err := registries()
	if err != nil {
		t.Fatal(err)
	}
	for process, registry := range all {
		problems, err := testutil.GatherAndLint(registry)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s: %s", process, p.Metric, p.Text)
		}
	}
	metrics, err := readMetrics(all)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range metrics {
		names[m.name] = true
		if m.help == "" {
			t.Errorf("%s has no help text", m.name)
		}
	}
	// The names of the contract, which other teams' dashboards use.
	for _, name := range []string{
		"pgw_fx_calls_total", "pgw_wallet_check_total", "pgw_risk_total", "pgw_kafka_publish_total", "pgw_kafka_wait_result_total",
		"pgw_stage_seconds", "pgw_payments_total", "pgw_db_reserve_total", "pgw_db_commit_total", "pgw_db_rollback_total",
	} {
		if !names[name] {
			t.Errorf("%s is missing", name)
		}
	}
}

// A metric without a series leaves a gap in a dashboard until the event first happens.
func TestAMetricThatIsNotToldIsSeen(t *testing.T) {
	r := prometheus.NewRegistry()
	r.MustRegister(prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pgw_silent_total", Help: "Has no series."}, []string{"why"}))
	if _, err := readMetrics(map[string]*prometheus.Registry{"gateway": r}); err == nil || !strings.Contains(err.Error(), "pgw_silent_total") {
		t.Errorf("%v", err)
	}
}
