package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"pgw/functions/pgw/table"
	"pgw/shared/function"
)

// metricsCommand prints compose/prometheus/METRICS.md.
type metricsCommand struct{ dataFlags }

func (c metricsCommand) Run() error {
	registries, err := registries()
	if err != nil {
		return err
	}
	metrics, err := readMetrics(registries)
	if err != nil {
		return err
	}
	return c.print(catalogue(metrics), func(to io.Writer) error { return writeCatalogue(to, metrics, len(registries)) })
}

// metricJSON is a metric of the catalogue.
type metricJSON struct {
	Name   string   `json:"name"`
	Type   string   `json:"type"`
	Help   string   `json:"help"`
	Labels []string `json:"labels"`
	By     []string `json:"by"`
}

// catalogue lists the metrics that are pgw's own.
func catalogue(metrics []*metric) []metricJSON {
	all := []metricJSON{}
	for _, m := range metrics {
		if !m.ofRuntime() {
			labels := slices.AppendSeq([]string{}, maps.Keys(m.labels))
			slices.Sort(labels)
			all = append(all, metricJSON{m.name, m.kind, m.help, labels, m.by})
		}
	}
	return all
}

// registries returns the registries of all processes. The processes are built and not run. Their
// metrics have the same names and labels as in a running process.
func registries() (map[string]*prometheus.Registry, error) {
	ports, err := table.Unconnected()
	if err != nil {
		return nil, err
	}
	ports["reconcile"] = &function.Port{Name: "reconcile", Registry: function.NewRegistry()}
	newWatch(ports["reconcile"].Registry)
	all := map[string]*prometheus.Registry{}
	for name, port := range ports {
		port.Handler() // registers the port's metrics
		all[name] = port.Registry
	}
	return all, nil
}

// metric is one metric name with all processes that expose it.
type metric struct {
	name, kind, help string
	labels           map[string]map[string]bool // values by label
	by               []string
}

// readMetrics reads the metrics of the registries. It returns an error for a metric that is
// described but has no series. An event that has never happened should have the count 0, so that a
// query returns a result.
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
				return nil, fmt.Errorf("%s describes %s, but does not expose it from the start", process, name)
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

// described lists the names of a registry's descriptors. The names are only available as text.
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

// maxValues is the most values of a label that the catalogue lists.
const maxValues = 10

// values lists a label's values if there are few, and the code defines all of them.
func (m *metric) values(label string) string {
	values := slices.Sorted(maps.Keys(m.labels[label]))
	if len(values) > maxValues || strings.HasSuffix(m.name, "_info") || strings.HasPrefix(m.name, "grpc_") {
		return "`" + label + "`"
	}
	return "`" + label + "` (" + strings.Join(values, ", ") + ")"
}

// ofRuntime reports whether a metric describes the Go runtime, the process or the endpoint itself.
// Those come from client_golang.
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
