package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"pgw/functions/pgw/table"
	"pgw/shared/function"
)

// metricsCommand prints what stands in compose/prometheus/METRICS.md.
type metricsCommand struct{}

func (metricsCommand) Run() error {
	registries, err := registries()
	if err != nil {
		return err
	}
	metrics, err := readMetrics(registries)
	if err != nil {
		return err
	}
	return writeCatalogue(os.Stdout, metrics, len(registries))
}

// registries of all processes, built and not run: they show the same names and labels as when they
// run.
func registries() (map[string]*prometheus.Registry, error) {
	ports, err := table.Unconnected()
	if err != nil {
		return nil, err
	}
	ports["reconcile"] = &function.Port{Name: "reconcile", Registry: function.NewRegistry()}
	newWatch(ports["reconcile"].Registry)
	all := map[string]*prometheus.Registry{}
	for name, port := range ports {
		port.Handler() // registers what serving is measured by
		all[name] = port.Registry
	}
	return all, nil
}

// metric is one name, with all that expose it.
type metric struct {
	name, kind, help string
	labels           map[string]map[string]bool // values by label
	by               []string
}

// readMetrics gathers what the registries show. A metric that is described and has no series is an
// error: what has never happened should be 0, so that a query for it has an answer.
func readMetrics(registries map[string]*prometheus.Registry) ([]*metric, error) {
	all := map[string]*metric{}
	for _, process := range slices.Sorted(maps.Keys(registries)) {
		families, err := registries[process].Gather()
		if err != nil {
			return nil, fmt.Errorf("metrics of %s: %w", process, err)
		}
		shown := map[string]bool{}
		for _, family := range families {
			m := all[family.GetName()]
			if m == nil {
				m = &metric{name: family.GetName(), kind: strings.ToLower(family.GetType().String()), help: family.GetHelp(), labels: map[string]map[string]bool{}}
				all[m.name] = m
			}
			m.by = append(m.by, process)
			m.addLabels(family)
			shown[m.name] = true
		}
		for _, name := range described(registries[process]) {
			if !shown[name] {
				return nil, fmt.Errorf("%s describes %s, and does not show it from the start", process, name)
			}
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b *metric) int { return cmp.Compare(a.name, b.name) }), nil
}

func (m *metric) addLabels(family *dto.MetricFamily) {
	for _, series := range family.Metric {
		for _, label := range series.Label {
			if m.labels[label.GetName()] == nil {
				m.labels[label.GetName()] = map[string]bool{}
			}
			m.labels[label.GetName()][label.GetValue()] = true
		}
	}
}

// described lists the names of a registry's descriptors. They can be read only as text.
func described(r *prometheus.Registry) (names []string) {
	descs := make(chan *prometheus.Desc)
	go func() {
		r.Describe(descs)
		close(descs)
	}()
	for d := range descs {
		var name string
		if _, err := fmt.Sscanf(d.String(), "Desc{fqName: %q,", &name); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// maxValues is how many values of a label the catalogue lists.
const maxValues = 10

// values lists a label's values, where these are few and a closed set of the code's own.
func (m *metric) values(label string) string {
	values := slices.Sorted(maps.Keys(m.labels[label]))
	if len(values) > maxValues || strings.HasSuffix(m.name, "_info") || strings.HasPrefix(m.name, "grpc_") {
		return "`" + label + "`"
	}
	return "`" + label + "` (" + strings.Join(values, ", ") + ")"
}

// ofRuntime says whether a metric is of the Go runtime, the process or the endpoint itself: those
// are client_golang's.
func (m *metric) ofRuntime() bool {
	for _, prefix := range []string{"go_", "process_", "promhttp_"} {
		if strings.HasPrefix(m.name, prefix) {
			return true
		}
	}
	return false
}

func writeCatalogue(w io.Writer, metrics []*metric, processes int) error {
	var b strings.Builder
	b.WriteString(`# Metrics

Made by ` + "`make generate`" + ` from the code (` + "`pgw metrics`" + `). Every process serves them at ` + "`/metrics`" + `; each value of a label is there from
the start, at 0. Beside these each process has the usual ` + "`go_*`, `process_*` and `promhttp_*`" + `. Where traces are on, the latencies
that a payment passes carry exemplars with its ` + "`trace_id`" + `.

| metric | type | labels | by | what it tells |
|---|---|---|---|---|
`)
	for _, m := range metrics {
		if m.ofRuntime() {
			continue
		}
		var labels []string
		for _, label := range slices.Sorted(maps.Keys(m.labels)) {
			labels = append(labels, m.values(label))
		}
		by := strings.Join(m.by, ", ")
		if len(m.by) == processes {
			by = "all"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", m.name, m.kind, strings.Join(labels, ", "), by, strings.ReplaceAll(m.help, "|", "\\|"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
