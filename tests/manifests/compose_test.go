package manifests

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
)

// published has the host ports of each Compose service.
var published = map[string][]string{
	"ingress": {"18080", "19091", "19093", "19094", "19095", "19096", "19099", "19102"},
	"kafka":   {"19092"}, "grafana": {"3000"}, "kafka-ui": {"9081"}, "prometheus": {"19097"}, "jaeger": {"16686"},
}

// contract has the host ports that earlier callers use, with the service and the port behind each.
var contract = map[string]struct{ port, service, behind string }{
	"gateway":    {"18080", "ingress", "18080"},
	"fx":         {"19102", "ingress", "19102"},
	"wallet":     {"19093", "ingress", "19093"},
	"risk":       {"19094", "ingress", "19094"},
	"db":         {"19095", "ingress", "19095"},
	"payments":   {"19096", "ingress", "19096"},
	"webhooks":   {"19099", "ingress", "19099"},
	"Prometheus": {"19097", "prometheus", "9090"},
	"Grafana":    {"3000", "grafana", "3000"},
	"Kafka UI":   {"9081", "kafka-ui", "8080"},
}

// inIngress has each function's port in ingress, as in haproxy.cfg.
var inIngress = map[string]string{
	"gateway": "18080", "worker": "19091", "wallet": "19093", "risk": "19094", "db": "19095", "payments": "19096", "fx": "19102", "webhooks": "19099",
}

func readCompose(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(root + "/compose/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// composeProblems reads the files as Docker Compose does, each over those before it and with the defaults of
// .env, and compares them with the code.
func composeProblems(t *testing.T, texts ...string) (found []string) {
	t.Helper()
	var files []types.ConfigFile
	for i, text := range texts {
		files = append(files, types.ConfigFile{Filename: fmt.Sprintf("%s/compose/%d.yaml", root, i), Content: []byte(text)})
	}
	bad := func(service, format string, args ...any) {
		found = append(found, service+": "+fmt.Sprintf(format, args...))
	}
	env, err := dotenv.Read(root + "/compose/.env")
	if err != nil {
		t.Fatal(err)
	}
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: root + "/compose", Environment: env,
		ConfigFiles: files,
	}, func(o *loader.Options) { o.SetProjectName("pgw", true); o.Profiles = []string{"*"} })
	if err != nil {
		return []string{err.Error()}
	}
	fns, err := functions()
	if err != nil {
		t.Fatal(err)
	}
	for name, fn := range called(fns) {
		s, ok := project.Services[name]
		if !ok {
			bad(name, "is missing")
			continue
		}
		if !slices.Equal(s.Command, types.ShellCommand{name}) {
			bad(name, "runs %v", s.Command)
		}
		reads := fn.reads
		for variable, v := range reads {
			value := s.Environment[variable]
			switch {
			case value == nil && (v.Required || variable == "REPLICA_URL"):
				bad(name, "%s is not set", variable)
			case strings.HasSuffix(variable, "_ADDR"):
				callee := strings.ToLower(strings.TrimSuffix(variable, "_ADDR"))
				want := "ingress:" + inIngress[callee]
				if callee == "db" {
					want = "db:8080"
				}
				if value == nil || *value != want {
					bad(name, "%s is not %s", variable, want)
				}
			}
		}
		if port := s.Environment.ToMapping()["PORT"]; port != "8080" {
			bad(name, "listens on PORT %q, and not on 8080 where it is looked for", port)
		}
		if !strings.Contains(s.Environment.ToMapping()["REPLICA_URL"], "$HOSTNAME") && name == "gateway" {
			bad(name, "REPLICA_URL: replicas could not be told apart")
		}
		for variable := range s.Environment {
			if _, ok := reads[variable]; !ok && !readByGo(variable) && !strings.HasPrefix(variable, "OTEL_") {
				bad(name, "%s is set and nobody reads it", variable)
			}
		}
	}
	delivers := project.Services[standIn].Environment.ToMapping()
	for name, fn := range fns {
		want := name + "=http://ingress:" + inIngress[name]
		if name == "db" {
			want = "db=http://db:8080"
		}
		if fn.Events != nil && !slices.Contains(strings.Split(delivers["SINKS"], ","), want) {
			bad(standIn, "SINKS lacks %s", want)
		}
	}
	for variable := range delivers {
		if _, ok := fns[standIn].reads[variable]; !ok && !readByGo(variable) && !strings.HasPrefix(variable, "OTEL_") {
			bad(standIn, "%s is set and nobody reads it", variable)
		}
	}
	schema := project.Services["migrate"].Environment.ToMapping()["LEDGER_SCHEMA"]
	for name, s := range project.Services {
		found = append(found, containerProblems(name, s)...)
		env := s.Environment.ToMapping()
		if env["DATABASE_URL"] != "" && env["LEDGER_SCHEMA"] != schema {
			bad(name, "the ledger is in the schema %q, and not in %q, which migrate makes", env["LEDGER_SCHEMA"], schema)
		}
	}
	return append(append(found, portProblems(project)...), grafanaProblems(project)...)
}

// grafanaProblems compares Grafana with the page. The page shows its panels to every visitor
// without a login.
func grafanaProblems(project *types.Project) (found []string) {
	if at := project.Services["gateway"].Environment.ToMapping()["GRAFANA_URL"]; at != "http://127.0.0.1:"+contract["Grafana"].port {
		found = append(found, fmt.Sprintf("gateway: GRAFANA_URL is %q, and Grafana is at host port %s", at, contract["Grafana"].port))
	}
	grafana := project.Services["grafana"].Environment.ToMapping()
	for name, want := range map[string]string{
		"GF_SECURITY_ALLOW_EMBEDDING": "true", "GF_AUTH_ANONYMOUS_ENABLED": "true", "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
		"GF_SECURITY_COOKIE_SAMESITE": "lax",
	} {
		if grafana[name] != want {
			found = append(found, fmt.Sprintf("grafana: %s is %q, want %s", name, grafana[name], want))
		}
	}
	return found
}

// portProblems compares the host's ports with the contract: each port leads to the right service,
// and none is used twice.
func portProblems(project *types.Project) (found []string) {
	leadsTo := map[string]string{} // the service and port, by host port
	for _, name := range project.ServiceNames() {
		for _, p := range project.Services[name].Ports {
			if other, ok := leadsTo[p.Published]; ok {
				found = append(found, fmt.Sprintf("%s: host port %s is taken twice, by %s too", name, p.Published, other))
			}
			leadsTo[p.Published] = fmt.Sprintf("%s:%d", name, p.Target)
		}
	}
	for what, at := range contract {
		if want := at.service + ":" + at.behind; leadsTo[at.port] != want {
			found = append(found, fmt.Sprintf("%s: the contract has it at host port %s, which leads to %q and not to %s", what, at.port, leadsTo[at.port], want))
		}
	}
	// Clients on the host connect to the address that the broker advertises.
	for _, listener := range strings.Split(project.Services["kafka"].Environment.ToMapping()["KAFKA_ADVERTISED_LISTENERS"], ",") {
		if _, port, _ := strings.Cut(listener, "EXTERNAL://localhost:"); port != "" && leadsTo[port] != "kafka:"+port {
			found = append(found, fmt.Sprintf("kafka: advertises port %s on the host, which leads to %q", port, leadsTo[port]))
		}
	}
	return found
}

var pinned = regexp.MustCompile(`^[^:]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9.]+)?$`)

// containerProblems checks each container.
func containerProblems(name string, s types.ServiceConfig) (found []string) {
	bad := func(format string, args ...any) { found = append(found, name+": "+fmt.Sprintf(format, args...)) }
	if s.Image != "pgw:compose" && !pinned.MatchString(s.Image) {
		bad("image %s is not pinned", s.Image)
	}
	var ports []string
	for _, p := range s.Ports {
		ports = append(ports, p.Published)
		if p.HostIP != "127.0.0.1" {
			bad("port %s is published on %q", p.Published, p.HostIP)
		}
	}
	if !slices.Equal(slices.Sorted(slices.Values(ports)), slices.Sorted(slices.Values(published[name]))) {
		bad("publishes %v, want %v", ports, published[name])
	}
	if s.MemLimit <= 0 || s.CPUS <= 0 {
		bad("has no limit of memory or processors")
	}
	if !slices.Contains(s.SecurityOpt, "no-new-privileges:true") || !slices.Contains(s.CapDrop, "ALL") || s.Privileged {
		bad("may do more than it needs")
	}
	if s.Logging == nil || s.Logging.Options["max-size"] == "" {
		bad("its log has no bound")
	}
	once := slices.Contains([]string{"migrate", "topics", "seed", "pgw", "citus"}, name)
	if want := "unless-stopped"; s.Restart != want && !once {
		bad("restart: %q, want %s", s.Restart, want)
	}
	if s.HealthCheck == nil && !once && name != "jaeger" { // its image has no program for a health check
		bad("has no health check")
	}
	if s.Image == "pgw:compose" && !s.ReadOnly {
		bad("its root can be written")
	}
	return found
}

func TestComposeFitsTheCode(t *testing.T) {
	for _, files := range [][]string{{"compose.yaml"}, {"compose.yaml", "citus.yaml"}, {"compose.yaml", "citus.yaml", "citus-rows.yaml"}} {
		var texts []string
		for _, name := range files {
			texts = append(texts, readCompose(t, name))
		}
		for _, problem := range composeProblems(t, texts...) {
			t.Errorf("%v: %s", files, problem)
		}
	}
}

// mistake is a text of a file that is replaced, and what the problem with it says.
type mistake struct{ from, to, want string }

// mistakesAreFound makes each mistake in a file, which is read over those below it.
func mistakesAreFound(t *testing.T, file string, mistakes map[string]mistake, below ...string) {
	t.Helper()
	text := readCompose(t, file)
	for name, m := range mistakes {
		if !strings.Contains(text, m.from) {
			t.Errorf("%s: there is no %q to break", name, m.from)
			continue
		}
		found := strings.Join(composeProblems(t, append(slices.Clone(below), strings.ReplaceAll(text, m.from, m.to))...), "\n")
		if !strings.Contains(found, m.want) {
			t.Errorf("%s: want a problem with %q, found:\n%s", name, m.want, found)
		}
	}
}

func TestMistakesInComposeAreFound(t *testing.T) {
	mistakesAreFound(t, "compose.yaml", map[string]mistake{
		"a misspelt field":              {"depends_on: &prepared", "depend_on: &prepared", "depend_on"},
		"a service that is missing":     {"postgres: {condition: service_healthy}", "postgress: {condition: service_healthy}", "postgress"},
		"an image of any version":       {"haproxy:3.2.24-alpine", "haproxy:latest", "not pinned"},
		"a port for everyone":           {"127.0.0.1:18080:18080", "18080:18080", "published on"},
		"another port":                  {"127.0.0.1:19102:19102", "127.0.0.1:19103:19102", "publishes"},
		"a port off the contract":       {"127.0.0.1:19097:9090", "127.0.0.1:9090:9090", "Prometheus: the contract has it at host port 19097"},
		"a port that leads elsewhere":   {"127.0.0.1:9081:8080", "127.0.0.1:9081:8081", "Kafka UI: the contract has it at host port 9081"},
		"two ports that are exchanged":  {"127.0.0.1:19094:19094", "127.0.0.1:19094:19095", "risk: the contract has it at host port 19094"},
		"a port taken twice":            {"127.0.0.1:19092:19092", "127.0.0.1:19097:19092", "host port 19097 is taken twice"},
		"a broker advertised elsewhere": {"EXTERNAL://localhost:19092", "EXTERNAL://localhost:19098", "advertises port 19098"},
		"a Grafana nobody may frame":    {"GF_SECURITY_ALLOW_EMBEDDING: \"true\"", "GF_SECURITY_ALLOW_EMBEDDING: \"false\"", "GF_SECURITY_ALLOW_EMBEDDING"},
		"a page without its Grafana":    {"GRAFANA_URL-http://127.0.0.1:3000", "GRAFANA_URL-http://grafana:3000", "GRAFANA_URL is"},
		"a function at its own port":    {"  PORT: 8080\n", "", "listens on PORT"},
		"no bound on memory":            {"mem_limit: 256m", "mem_limit: 0", "no limit"},
		"a root that can be written":    {"read_only: true", "read_only: false", "can be written"},
		"privileges":                    {"cap_drop: [ALL]", "cap_drop: [KILL]", "more than it needs"},
		"a variable that nobody reads":  {"PAYMENTS_ADDR:", "PAYMENT_ADDR:", "PAYMENT_ADDR is set and nobody reads it"},
		"a variable that is needed":     {"  EVENT_KEYS:", "  EVENTS_KEYS:", "EVENT_KEYS is not set"},
		"another function's port":       {"FX_ADDR: ingress:19102", "FX_ADDR: ingress:19093", "FX_ADDR is not ingress:19102"},
		"replicas without a name":       {"http://$$HOSTNAME:8080", "http://gateway:8080", "told apart"},
		"a sink left out":               {",worker=http://ingress:19091", "", "SINKS lacks worker"},
		"the other function's command":  {"command: [gateway]", "command: [worker]", "runs [worker]"},
		"a container that stays down":   {"restart: unless-stopped", "restart: on-failure", "restart"},
		"a log that fills the disk":     {"max-size: 10m, ", "", "no bound"},
		"nobody asks whether it serves": {"    healthcheck:\n      test: [CMD, wget", "    x-healthcheck:\n      test: [CMD, wget", "no health check"},
	})
}

func TestMistakesInCitusAreFound(t *testing.T) {
	mistakesAreFound(t, "citus.yaml", map[string]mistake{
		"a function that looks elsewhere": {"  fx: *schema\n", "", `fx: the ledger is in the schema ""`},
		"an image of any version":         {"citus:13.2.0", "citus:latest", "not pinned"},
		"a node that nobody has":          {"      citus-2: {condition", "      citus-3: {condition", "citus-3"},
		"a node without bounds":           {"    extends: {file: compose.yaml, service: postgres}\n", "", "no limit"},
	}, readCompose(t, "compose.yaml"))
}

// By default, a function uses the contract's addresses of other functions.
func TestFunctionsLookWhereTheContractSays(t *testing.T) {
	fns, err := functions()
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for name, fn := range fns {
		for variable, v := range fn.reads {
			callee, ok := strings.CutSuffix(variable, "_ADDR")
			if !ok {
				continue
			}
			looked++
			if want := "localhost:" + contract[strings.ToLower(callee)].port; v.Default != want {
				t.Errorf("%s: %s is %q by default, want %s", name, variable, v.Default, want)
			}
		}
	}
	if looked < 8 {
		t.Errorf("only %d addresses were checked", looked)
	}
}

// ingress sends each port to its function.
func TestIngressKnowsEveryFunction(t *testing.T) {
	text, err := os.ReadFile(root + "/compose/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	for name, port := range inIngress {
		servers := fmt.Sprintf("    server-template %s 16 %s:8080 tcp-ut 5s", name, name)
		want := fmt.Sprintf("listen %s\n    bind :%s\n%s\n", name, port, servers)
		if name != "gateway" && name != "worker" { // gRPC connections use only HTTP/2
			want = fmt.Sprintf("listen %s\n    bind :%s\n    use_backend %s-grpc if { req.hdr(content-type) -m beg application/grpc }\n%s\nbackend %s-grpc\n%s proto h2 check-proto h1\n",
				name, port, name, servers, name, servers)
		}
		if !strings.Contains(string(text), want) {
			t.Errorf("haproxy.cfg lacks:\n%s", want)
		}
	}
}
