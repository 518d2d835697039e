package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"

	"pgw/compose/kafkasource"
	"pgw/functions/db"
	"pgw/functions/fx"
	"pgw/functions/gateway"
	"pgw/functions/payments"
	"pgw/functions/pgw/allinone"
	"pgw/functions/risk"
	"pgw/functions/wallet"
	"pgw/functions/worker"
	"pgw/shared/function"
	"pgw/shared/kafka"
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

// registries of all processes, built and not run: they tell the same names and labels as when they run.
func registries() (map[string]*prometheus.Registry, error) {
	log := slog.New(slog.DiscardHandler)
	const nowhere = "postgres://nowhere.invalid/"
	var none grpc.ClientConnInterface
	ledger, err1 := db.New(db.Config{DatabaseURL: nowhere, BatchMax: 1, BatchLanes: 1, QueueMax: 1}, nil, time.Now, log)
	rates, err2 := fx.New(fx.Config{DatabaseURL: nowhere}, none, nil, log)
	accounts, err3 := wallet.New(wallet.Config{DatabaseURL: nowhere, QueueMax: 1}, none, none, time.Now, log)
	rules, err4 := risk.New(risk.Config{DatabaseURL: nowhere, Secret: "of no use to anybody"}, none, time.Now, log)
	door, err5 := gateway.New(gateway.Config{}, gateway.Clients{}, nil, time.Now, log)
	manifests, err6 := allinone.Manifests()
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		return nil, err
	}
	sources := &function.Function{Name: "kafkasource", Log: log, Registry: function.NewRegistry()}
	if _, err := kafkasource.New(manifests, kafkasource.Config{
		Kafka: kafka.Config{ParkedTopic: "payments.parked"}, Log: log, Registerer: sources.Registry, SinkURL: func(service string) (string, error) { return "http://" + service, nil },
	}); err != nil {
		return nil, err
	}
	books := &function.Function{Name: "reconcile", Log: log, Registry: function.NewRegistry()}
	newWatch(books.Registry)

	all := map[string]*prometheus.Registry{}
	for _, f := range []*function.Function{
		worker.New(worker.Config{}, none, nil, time.Now, log),
		payments.New(payments.Config{}, none, none, nil, nil, time.Now, log),
		door, ledger, rates, accounts, rules, sources, books,
	} {
		f.Handler() // registers what serving is measured by
		all[f.Name] = f.Registry
	}
	return all, nil
}

// metric is one name, with all that expose it.
type metric struct {
	name, kind, help string
	labels           map[string]map[string]bool // values by label
	by               []string
}

// readMetrics gathers what the registries tell. A metric that is described and not told is an error: what has never
// happened should be 0, so that a query for it has an answer.
func readMetrics(registries map[string]*prometheus.Registry) ([]*metric, error) {
	all := map[string]*metric{}
	for _, process := range slices.Sorted(maps.Keys(registries)) {
		families, err := registries[process].Gather()
		if err != nil {
			return nil, fmt.Errorf("metrics of %s: %w", process, err)
		}
		told := map[string]bool{}
		for _, family := range families {
			m := all[family.GetName()]
			if m == nil {
				m = &metric{name: family.GetName(), kind: strings.ToLower(family.GetType().String()), help: family.GetHelp(), labels: map[string]map[string]bool{}}
				all[m.name] = m
			}
			m.by = append(m.by, process)
			m.addLabels(family)
			told[m.name] = true
		}
		for _, name := range described(registries[process]) {
			if !told[name] {
				return nil, fmt.Errorf("%s describes %s, and does not tell it from the start", process, name)
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

// described lists the names of a registry's descriptors, which have no other way to be read than as a text.
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

// values lists a label's, where they are the code's own closed set and few.
func (m *metric) values(label string) string {
	values := slices.Sorted(maps.Keys(m.labels[label]))
	if len(values) > maxValues || strings.HasSuffix(m.name, "_info") || strings.HasPrefix(m.name, "grpc_") {
		return "`" + label + "`"
	}
	return "`" + label + "` (" + strings.Join(values, ", ") + ")"
}

// ofRuntime tells a metric of the Go runtime, the process or the endpoint itself: those are client_golang's.
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
