package main

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// Names are as Prometheus's linter wants them, and everything that is described is there from the
// start.
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
			t.Errorf("%s says nothing of what it tells", m.name)
		}
	}
	// The names of the contract, which dashboards of others read.
	for _, name := range []string{
		"pgw_fx_calls_total", "pgw_wallet_check_total", "pgw_risk_total", "pgw_kafka_publish_total", "pgw_kafka_wait_result_total",
		"pgw_stage_seconds", "pgw_payments_total", "pgw_db_reserve_total", "pgw_db_commit_total", "pgw_db_rollback_total",
	} {
		if !names[name] {
			t.Errorf("%s is gone", name)
		}
	}
}

// A metric without a series would leave a hole in a dashboard until it first happens.
func TestAMetricThatIsNotToldIsSeen(t *testing.T) {
	r := prometheus.NewRegistry()
	r.MustRegister(prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pgw_silent_total", Help: "Never told."}, []string{"why"}))
	if _, err := readMetrics(map[string]*prometheus.Registry{"gateway": r}); err == nil || !strings.Contains(err.Error(), "pgw_silent_total") {
		t.Errorf("%v", err)
	}
}
