package manifests

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing/fstest"
	"time"

	"pgw/functions/kafkasource"
	"pgw/functions/pgw/table"
	"pgw/shared/function"
	"pgw/shared/kafka"
	"pgw/shared/payment"
)

// made is a function as built by the code, with the variables that its process reads.
type made struct {
	*function.Port
	reads map[string]function.Variable
}

// functions returns the functions of the table, including kafkasource.
func functions() (map[string]made, error) {
	ports, err := table.Unconnected()
	if err != nil {
		return nil, err
	}
	all := map[string]made{}
	for _, f := range table.Functions {
		reads := map[string]function.Variable{}
		for _, v := range table.Functions.Variables(f) {
			reads[v.Name] = v
		}
		all[f.Name] = made{ports[f.Name], reads}
	}
	return all, nil
}

// called returns the functions that others call. kafkasource runs only where there is no Knative
// Eventing.
func called(fns map[string]made) map[string]made {
	all := maps.Clone(fns)
	delete(all, standIn)
	return all
}

const standIn = "kafkasource"

// secrets are the secrets that the operator makes. The production overlay's comment and kind/deploy
// have the same ones.
var secrets = map[string][]string{
	"pgw-events":   {"event-keys", "risk-secret"},
	"pgw-webhooks": {"secret-keys"},
	"pgw-database": {"owner", "ledger", "reader", "webhooks", "ca.crt"},
	"pgw-kafka":    {"protocol", "sasl.mechanism", "user", "password", "ca.crt"},
	"pgw-postgres": {"password"},
	"pgw-access":   {"api-keys"},
	"pgw-rpc":      {"tokens", "admin-hashes"},
}

// againstEventing reads KafkaSources, KafkaSinks and PingSources as the kafkasource function does:
// strictly, and it also refuses values that their CRDs accept.
func againstEventing(all []object) []string {
	var joined []byte
	for _, o := range all {
		if o.kind == "KafkaSource" || o.kind == "KafkaSink" || o.kind == "PingSource" {
			joined = append(append(joined, o.text...), "\n---\n"...)
		}
	}
	if len(joined) == 0 {
		return nil // an overlay with kafkasource instead
	}
	if _, err := kafkasource.Load(fstest.MapFS{"m.yaml": {Data: joined}}); err != nil {
		return strings.Split(err.Error(), "\n")
	}
	return nil
}

// againstCode compares the manifests with each other and with the functions.
func againstCode(all []object) (found []string) {
	fns, err := functions()
	if err != nil {
		return []string{err.Error()}
	}
	bad := func(o object, format string, args ...any) {
		found = append(found, fmt.Sprintf("%s: %s", o, fmt.Sprintf(format, args...)))
	}
	brokers := map[string][]string{}
	var sources, pings int
	services := map[string]object{}
	for _, o := range all {
		if o.apiVersion == "serving.knative.dev/v1" {
			services[o.name] = o
		}
	}
	for name := range called(fns) {
		if _, ok := services[name]; !ok {
			found = append(found, "there is no Service for the function "+name)
		}
	}
	for _, o := range all {
		if ns := text(o.get("metadata", "namespace")); o.kind != "Namespace" && ns != "pgw" {
			bad(o, "namespace is %q", ns)
		}
		switch {
		case o.apiVersion == "serving.knative.dev/v1":
			fn, ok := called(fns)[o.name]
			if !ok {
				bad(o, "there is no such function")
				continue
			}
			found = append(found, serviceProblems(o, fn)...)
		case o.kind == "KafkaSource":
			sources++
			found = append(found, sourceProblems(o, fns)...)
		case o.kind == "PingSource":
			pings++
			wants := map[string]string{"sweep": "db", "webhooks": "webhooks"}
			if sink := text(o.get("spec", "sink", "ref", "name")); sink != wants[o.name] {
				bad(o, "goes to %s; want %s", sink, wants[o.name])
			}
		case o.kind == "KafkaSink":
			if topic := text(o.get("spec", "topic")); !isTopic(topic) {
				bad(o, "no function knows the topic %s", topic)
			}
			if o.get("spec", "contentMode") != "binary" {
				bad(o, "contentMode must be binary")
			}
		case o.kind == "Job" || o.kind == "Deployment":
			found = append(found, podProblems(o)...)
		}
		for _, b := range brokersOf(o) {
			brokers[b] = append(brokers[b], o.String())
		}
	}
	if len(brokers) != 1 {
		found = append(found, fmt.Sprintf("Kafka is in more than one place: %v", brokers))
	}
	if sources == 0 {
		found = append(found, standInProblems(all, fns)...)
	} else if sources != 5 || pings != 2 {
		found = append(found, fmt.Sprintf("%d KafkaSources and %d PingSources; want 5 and 2", sources, pings))
	}
	return found
}

func brokersOf(o object) (at []string) {
	for _, b := range list(o.get("spec", "bootstrapServers")) {
		at = append(at, text(b))
	}
	for _, c := range containers(o) {
		if b, ok := environment(c)["KAFKA_BROKERS"]; ok {
			at = append(at, b)
		}
	}
	return at
}

func containers(o object) []any {
	return append(list(o.get("spec", "template", "spec", "initContainers")), list(o.get("spec", "template", "spec", "containers"))...)
}

// environment returns the value of each variable. A variable whose value comes from elsewhere has
// the value "from".
func environment(container any) map[string]string {
	env := map[string]string{}
	for _, e := range list(lookUp(container, "env")) {
		value := text(lookUp(e, "value"))
		if lookUp(e, "valueFrom") != nil {
			value = "from"
		}
		env[text(lookUp(e, "name"))] = value
	}
	return env
}

// podProblems checks each of pgw's containers.
func podProblems(o object) (found []string) {
	bad := func(format string, args ...any) {
		found = append(found, fmt.Sprintf("%s: %s", o, fmt.Sprintf(format, args...)))
	}
	spec := o.get("spec", "template", "spec")
	if lookUp(spec, "automountServiceAccountToken") != false {
		bad("a token of Kubernetes is mounted, which no function needs")
	}
	mounted, volumes := map[string]bool{}, map[string]string{}
	for _, v := range list(lookUp(spec, "volumes")) {
		volumes[text(lookUp(v, "name"))] = text(lookUp(v, "secret", "secretName"))
	}
	for _, c := range containers(o) {
		security := lookUp(c, "securityContext")
		if lookUp(security, "runAsNonRoot") != true || lookUp(security, "readOnlyRootFilesystem") != true ||
			lookUp(security, "allowPrivilegeEscalation") != false || text(lookUp(security, "capabilities", "drop")) != "[ALL]" ||
			text(lookUp(security, "seccompProfile", "type")) != "RuntimeDefault" {
			bad("securityContext lets the container do more than it needs: %v", security)
		}
		for _, path := range [][]any{{"requests", "cpu"}, {"requests", "memory"}, {"limits", "memory"}} {
			if lookUp(c, append([]any{"resources"}, path...)...) == nil {
				bad("resources.%v is missing", path)
			}
		}
		for _, e := range list(lookUp(c, "env")) {
			if ref := lookUp(e, "valueFrom", "secretKeyRef"); ref != nil && !slices.Contains(secrets[text(lookUp(ref, "name"))], text(lookUp(ref, "key"))) {
				bad("%v: there is no key %v in a Secret %v", lookUp(e, "name"), lookUp(ref, "key"), lookUp(ref, "name"))
			}
		}
		env := environment(c)
		for _, m := range list(lookUp(c, "volumeMounts")) {
			path, secret := text(lookUp(m, "mountPath")), volumes[text(lookUp(m, "name"))]
			mounted[path] = true
			for name, file := range env {
				if key, in := strings.CutPrefix(file, path+"/"); in && secret != "" && !slices.Contains(secrets[secret], key) {
					bad("%s: there is no key %s in a Secret %s", name, key, secret)
				}
			}
		}
		for name, file := range env {
			if at := strings.LastIndex(file, "/"); strings.HasSuffix(name, "_FILE") && at > 0 && !mounted[file[:at]] {
				bad("%s: nothing is mounted at %s", name, file[:at])
			}
		}
	}
	return found
}

func serviceProblems(o object, fn made) (found []string) {
	bad := func(format string, args ...any) {
		found = append(found, fmt.Sprintf("%s: %s", o, fmt.Sprintf(format, args...)))
	}
	found = podProblems(o)
	spec := o.get("spec", "template", "spec")
	c := lookUp(spec, "containers", 0)

	local := text(o.get("metadata", "labels", "networking.knative.dev/visibility")) == "cluster-local"
	if public := o.name == "gateway"; public == local {
		bad("public: %t, cluster-local: %t", public, local)
	}
	if got := text(lookUp(c, "args", 0)); got != o.name {
		bad("args: runs %s", got)
	}
	wantPort := "http1"
	if fn.GRPC != nil {
		wantPort = "h2c"
	}
	if got := text(lookUp(c, "ports", 0, "name")); got != wantPort {
		bad("ports: is named %q; want %s, since gRPC is served: %t", got, wantPort, fn.GRPC != nil)
	}
	if ready, live := text(lookUp(c, "readinessProbe", "httpGet", "path")), text(lookUp(c, "livenessProbe", "httpGet", "path")); ready != "/readyz" || live != "/healthz" {
		bad("probes ask %q and %q", ready, live)
	}
	annotations := o.get("spec", "template", "metadata", "annotations")
	for _, name := range []string{"min-scale", "max-scale", "target", "metric", "window"} {
		if text(lookUp(annotations, "autoscaling.knative.dev/"+name)) == "" {
			bad("autoscaling.knative.dev/%s is not said", name)
		}
	}
	if text(lookUp(annotations, "autoscaling.knative.dev/target-burst-capacity")) != "0" {
		bad("autoscaling.knative.dev/target-burst-capacity is not 0: every request would pass through the activator")
	}

	env := environment(c)
	reads := fn.reads
	for name := range env {
		if _, ok := reads[name]; !ok && !readByGo(name) && !usedWithin(env, name) {
			bad("%s is set and nobody reads it", name)
		}
	}
	for name, v := range reads {
		value, set := env[name]
		switch {
		case v.Required && !set:
			bad("%s is not set", name)
		case strings.HasSuffix(name, "_ADDR"):
			callee := strings.ToLower(strings.TrimSuffix(name, "_ADDR"))
			if want := callee + ".pgw.svc.cluster.local:80"; value != want {
				bad("%s is %q; want %s", name, value, want)
			}
		case name == "RISK_SECRET" && value != "from":
			bad("RISK_SECRET must come from a Secret")
		}
	}
	if _, reads := reads["REPLICA_URL"]; reads && env["REPLICA_URL"] != "http://$(POD_IP):8080" {
		bad("REPLICA_URL: a result could not be handed to the replica where its client waits")
	}
	found = append(found, boundsProblems(o, env, reads, spec)...)
	return found
}

// usedWithin reports whether another variable's value contains this variable.
func usedWithin(env map[string]string, name string) bool {
	for _, value := range env {
		if strings.Contains(value, "$("+name+")") {
			return true
		}
	}
	return false
}

// boundsProblems checks time limits: the one that must end first must be the smaller.
func boundsProblems(o object, env map[string]string, reads map[string]function.Variable, spec any) (found []string) {
	bad := func(format string, args ...any) {
		found = append(found, fmt.Sprintf("%s: %s", o, fmt.Sprintf(format, args...)))
	}
	value := func(name string) string {
		if v, ok := env[name]; ok {
			return v
		}
		return reads[name].Default
	}
	var timeout, concurrency int
	fmt.Sscan(text(lookUp(spec, "timeoutSeconds")), &timeout)
	fmt.Sscan(text(lookUp(spec, "containerConcurrency")), &concurrency)
	if drain, err := time.ParseDuration(value("DRAIN_TIMEOUT")); err != nil || drain >= time.Duration(timeout)*time.Second {
		bad("DRAIN_TIMEOUT is %s, the pod's grace period %d s (%v)", drain, timeout, err)
	}
	for _, name := range []string{"MAX_WAITING", "QUEUE_MAX"} {
		if _, ok := reads[name]; !ok {
			continue
		}
		var bound int
		if fmt.Sscan(value(name), &bound); bound == 0 || bound >= concurrency {
			bad("%s is %d, containerConcurrency %d: queue-proxy would let requests wait before the function says no", name, bound, concurrency)
		}
	}
	if concurrency == 0 {
		bad("containerConcurrency has no bound")
	}
	return found
}

func isTopic(name string) bool {
	_, known := defaultNames().Renamed()[name]
	return known
}

func defaultNames() kafka.Config {
	return kafka.Config{
		RequestTopic: "payments.request", ResultTopic: "payments.result", DeadLetterTopic: "payments.deadletter",
		ParkedTopic: "payments.parked", AccountsTopic: "ledger.accounts",
	}
}

func sourceProblems(o object, fns map[string]made) (found []string) {
	bad := func(format string, args ...any) {
		found = append(found, fmt.Sprintf("%s: %s", o, fmt.Sprintf(format, args...)))
	}
	for _, topic := range list(o.get("spec", "topics")) {
		if !isTopic(text(topic)) {
			bad("no function knows the topic %v", topic)
		}
	}
	if o.get("spec", "initialOffset") != "earliest" {
		bad("initialOffset must be earliest: payments that came before the source are payments too")
	}
	sink := text(o.get("spec", "sink", "ref", "name"))
	fn, ok := fns[sink]
	switch uri := text(o.get("spec", "sink", "uri")); {
	case !ok:
		bad("the sink %q is no function", sink)
	case fn.Events == nil:
		bad("%s takes no events", sink)
	case cmp.Or(uri, "/") != fn.EventsPath:
		bad("%s takes events at %q, not at %q", sink, fn.EventsPath, uri)
	}
	wants := map[string]struct{ topic, sink string }{
		"payments-request": {"payments.request", "worker"}, "payments-result": {"payments.result", "gateway"}, "webhooks-result": {"payments.result", "webhooks"},
		"payments-deadletter": {"payments.deadletter", "payments"}, "ledger-accounts": {"ledger.accounts", "db"},
	}
	if topic, want := text(o.get("spec", "topics", 0)), wants[o.name]; topic != want.topic || sink != want.sink {
		bad("%s goes to %s; want %s, for %s", topic, sink, want.sink, want.topic)
	}
	if text(o.get("spec", "delivery", "deadLetterSink", "ref", "name")) == o.name {
		bad("its dead letters come back to it")
	}
	if o.name == "payments-request" {
		if waits := retryBudget(o); waits >= payment.DecideWithin {
			bad("retries wait for %s in all, beyond the payment's deadline of %s", waits, payment.DecideWithin)
		}
	}
	return found
}

// retryBudget returns the total wait of all retries. The n-th retry waits delay x 2^n.
func retryBudget(o object) (all time.Duration) {
	var n int
	var seconds float64
	fmt.Sscan(text(o.get("spec", "delivery", "retry")), &n)
	fmt.Sscanf(text(o.get("spec", "delivery", "backoffDelay")), "PT%fS", &seconds)
	for i := range n {
		all += time.Duration(seconds*float64(time.Second)) << (i + 1)
	}
	return all
}

// readByGo says that a variable configures Go's runtime.
func readByGo(name string) bool { return name == "GOMEMLIMIT" || name == "GOMAXPROCS" }

// standInProblems checks overlays without KafkaSource: kafkasource must find every function that
// receives events.
func standInProblems(all []object, fns map[string]made) (found []string) {
	for _, o := range all {
		if o.kind != "Deployment" || o.name != standIn {
			continue
		}
		c := lookUp(o.get("spec", "template", "spec", "containers"), 0)
		env := environment(c)
		for name := range env {
			if _, ok := fns[standIn].reads[name]; !ok && !readByGo(name) {
				found = append(found, fmt.Sprintf("%s: %s is set and nobody reads it", o, name))
			}
		}
		for name, fn := range fns {
			if want := name + "=http://" + name + ".pgw.svc.cluster.local"; fn.Events != nil && !slices.Contains(strings.Split(env["SINKS"], ","), want) {
				found = append(found, fmt.Sprintf("%s: SINKS lacks %s", o, want))
			}
		}
		return found
	}
	return []string{"there is neither a KafkaSource nor the stand-in"}
}
