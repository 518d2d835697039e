package flow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"pgw/shared/event"
	"pgw/shared/kafka"
	"pgw/tests/processes"
)

// observed is the folder with the files for Prometheus and Grafana.
const observed = "../../compose"

// expression is one query of a dashboard or a rule.
type expression struct{ where, query string }

// dashboardQueries returns every panel's expressions, with Grafana's variables filled in.
func dashboardQueries(t *testing.T) (all []expression) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(observed, "grafana/dashboards/*.json"))
	if err != nil || len(files) != 4 {
		t.Fatalf("%d dashboards, want 4: %v", len(files), err)
	}
	uids := map[string]bool{}
	for _, file := range files {
		var board struct {
			UID    string
			Panels []struct {
				Title, Description string
				Targets            []struct{ Expr string }
			}
		}
		text, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(text, &board)
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if board.UID == "" || uids[board.UID] {
			t.Errorf("%s: uid %q is empty, or another dashboard's", file, board.UID)
		}
		uids[board.UID] = true
		for _, panel := range board.Panels {
			where := strings.TrimSuffix(filepath.Base(file), ".json") + ", " + panel.Title
			if !strings.Contains(panel.Description, "?") && !strings.Contains(panel.Description, ".") || len(panel.Targets) == 0 {
				t.Errorf("%s: has no description of its question, or no query", where)
			}
			for _, target := range panel.Targets {
				query := strings.NewReplacer("$__rate_interval", "1m", "$function", ".+").Replace(target.Expr)
				if strings.Contains(query, "$") && !strings.Contains(query, "[$]") {
					t.Errorf("%s: a variable is left in %s", where, query)
				}
				all = append(all, expression{where, query})
			}
		}
	}
	return all
}

// ruleQueries returns the results of recording rules, and each selector of an alert. A whole alert
// has no result while the system is healthy, but the series that it selects must exist.
func ruleQueries(t *testing.T) (all []expression) {
	t.Helper()
	selector := regexp.MustCompile(`(?:pgw[_:][\w:]+|up)(?:\{[^}]*\})?`)
	for _, name := range []string{"recording.yaml", "alerts.yaml"} {
		var file struct {
			Groups []struct {
				Rules []struct{ Record, Alert, Expr string }
			}
		}
		text, err := os.ReadFile(filepath.Join(observed, "prometheus", name))
		if err == nil {
			err = yaml.Unmarshal(text, &file)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, group := range file.Groups {
			for _, rule := range group.Rules {
				if rule.Record != "" {
					all = append(all, expression{"rule " + rule.Record, rule.Record})
				}
				for _, s := range selector.FindAllString(rule.Expr, -1) {
					all = append(all, expression{"rule " + rule.Record + rule.Alert, s})
				}
			}
		}
	}
	return all
}

// prometheus is a real Prometheus.
type prometheus struct {
	t    *testing.T
	addr string
}

// startPrometheus starts it with the project's own rules. The targets have the labels that the
// project's scrape configuration would set.
func startPrometheus(t *testing.T, targets map[string]string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	for _, rules := range []string{"recording.yaml", "alerts.yaml"} {
		text, err := os.ReadFile(filepath.Join(observed, "prometheus", rules))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, rules), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	config := "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [recording.yaml, alerts.yaml]\n" +
		"scrape_configs:\n  - job_name: pgw\n    static_configs:\n"
	for function, addr := range targets {
		config += fmt.Sprintf("      - {targets: [%q], labels: {function: %s}}\n", addr, function)
	}
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	port, err := processes.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	p := &prometheus{t: t, addr: fmt.Sprintf("127.0.0.1:%d", port)}
	out := &processes.Output{}
	cmd := exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+p.addr, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			t.Logf("prometheus: %s", out)
		}
	})
	return p
}

// get reads the data of an answer. An error that Prometheus itself reports is about the query, so
// waiting does not help.
func (p *prometheus) get(path string, query url.Values, into any) error {
	resp, err := http.Get("http://" + p.addr + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	answer := struct {
		Status, Error string
		Data          any
	}{Data: into}
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("%s: %.200s", resp.Status, text)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%w: %s", errQuery, answer.Error)
	}
	return nil
}

var (
	errQuery   = errors.New("the query is wrong")
	errNothing = errors.New("returns nothing")
)

func (p *prometheus) ask(query string) error {
	var data struct{ Result []json.RawMessage }
	if err := p.get("/api/v1/query", url.Values{"query": {query}}, &data); err != nil {
		return err
	}
	if len(data.Result) == 0 {
		return errNothing
	}
	return nil
}

// Every expression of every dashboard and rule has a result in a Prometheus that watched a real
// run. The run has payments that succeed, that are repeated, and that each function refuses, one
// that becomes a dead letter, and a sweep.
func TestDashboardsAndRulesHaveAnswers(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Skip("prometheus is not on PATH; .ci/run installs it")
	}
	queries := append(dashboardQueries(t), ruleQueries(t)...)
	log := &processes.Output{}
	s := separate(t, log)
	if err := s.StartSeeded(t.Context(), 3); err != nil {
		t.Fatalf("%v: %s", err, log)
	}
	targets := map[string]string{}
	for _, name := range processes.All {
		targets[name] = s.Addr(name)
	}
	if _, err := s.Start(t.Context(), "reconcile", "--every", "1s"); err != nil {
		t.Fatalf("%v: %s", err, log)
	}
	t.Cleanup(func() {
		if err := s.Stop("reconcile"); err != nil {
			t.Error(err)
		}
	})
	targets["reconcile"] = s.Addr("reconcile")
	p := startPrometheus(t, targets)

	gateway := "http://" + s.Addr("gateway")
	pay := func(text string) {
		resp, err := http.Post(gateway+"/api/payments", "application/json", strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	live := func(round int) {
		for i := range 5 {
			key := fmt.Sprintf("live-%d-%d", round, i)
			for range 2 { // the second is a replay
				pay(body(key, "A0", "A1", "USD", 1))
			}
			pay(body(key+"-poor", "A0", "A1", "USD", 1_000_000))
			pay(body(key+"-self", "A0", "A0", "USD", 1))
			pay(body(key+"-bad", "A0", "A1", "XXX", 1))
		}
		ping(t, s.Addr("db"))
	}
	producer, err := kafka.NewProducer(s.Kafka(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { producer.Close(context.Background()) })
	// Unsigned: it becomes a dead letter, is refused there too, and is parked.
	forged, err := event.Requested("/pgw/gateway", request("forged", "A0", "A1", 1000), "", time.Now())
	if err == nil {
		err = producer.Publish(t.Context(), s.Kafka().RequestTopic, "forged", forged)
	}
	if err != nil {
		t.Fatal(err)
	}
	left := queries
	for round, deadline := 0, time.Now().Add(2*patience); len(left) > 0; round++ {
		live(round)
		var still []expression
		for _, q := range left {
			switch err := p.ask(q.query); {
			case errors.Is(err, errQuery):
				t.Errorf("%s: %s: %v", q.where, q.query, err)
			case err != nil && time.Now().After(deadline):
				t.Errorf("%s: %s: %v", q.where, q.query, err)
			case err != nil:
				still = append(still, q)
			}
		}
		left = still
	}
	// The check finds a query that has no result.
	if err := p.ask(`pgw_payments_total{reason="none_such"}`); !errors.Is(err, errNothing) {
		t.Errorf("a reason that does not exist: %v", err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	if err := p.get("/api/v1/rules", nil, &rules); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			n++
			if rule.Health != "ok" {
				t.Errorf("rule %s is %s: %s", rule.Name, rule.Health, rule.LastError)
			}
		}
	}
	t.Logf("%d expressions and %d rules", len(queries), n)
}
