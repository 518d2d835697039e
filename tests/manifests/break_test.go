package manifests

import (
	"strings"
	"testing"
)

// Every check works: a mistake that is put into correct manifests is found and named.
func TestMistakesAreFound(t *testing.T) {
	base, production, servingOnly := render(t, "knative/base"), render(t, "knative/overlays/production"), render(t, "knative/overlays/serving-only")
	for name, tc := range map[string]struct {
		in             []byte
		from, to, want string
	}{
		"misspelt field of a Service":        {base, "containerConcurrency:", "containerConcurency:", "containerConcurency"},
		"misspelt field of a container":      {base, "readinessProbe:", "readynessProbe:", "readynessProbe"},
		"misspelt field of a KafkaSource":    {base, "consumerGroup:", "consumerGruop:", "consumerGruop"},
		"misspelt field of a PingSource":     {base, "schedule:", "shedule:", "shedule"},
		"misspelt field of a NetworkPolicy":  {base, "podSelector:", "podSelecter:", "podSelecter"},
		"misspelt field of a Job":            {base, "backoffLimit:", "backofLimit:", "backofLimit"},
		"misspelt field of a Secret's key":   {production, "caCert:", "cacert:", "cacert"},
		"a kind that nobody knows":           {base, "kind: NetworkPolicy", "kind: NetworkPolice", "NetworkPolice"},
		"no initial offset":                  {base, "  initialOffset: earliest\n", "", "initialOffset"},
		"latest as initial offset":           {base, "initialOffset: earliest", "initialOffset: latest", "earliest"},
		"ordering that is none":              {base, "ordering: unordered", "ordering: any", "ordering"},
		"policy that is none":                {base, "backoffPolicy: exponential", "backoffPolicy: quadratic", "backoffPolicy"},
		"delay that is not ISO 8601":         {base, "backoffDelay: PT0.3S", "backoffDelay: 300ms", "backoffDelay"},
		"no dead-letter sink":                {base, "    deadLetterSink:\n      ref:\n        apiVersion: eventing.knative.dev/v1alpha1\n        kind: KafkaSink\n        name: payments-deadletter\n", "", "deadLetterSink"},
		"a dead-letter sink that is missing": {base, "        kind: KafkaSink\n        name: payments-deadletter", "        kind: KafkaSink\n        name: payments-deadleter", "payments-deadleter"},
		"no sink":                            {base, "  sink:\n    ref:\n      apiVersion: serving.knative.dev/v1\n      kind: Service\n      name: worker\n", "", "spec.sink"},
		"a sink that is no function":         {base, "      kind: Service\n      name: worker", "      kind: Service\n      name: wroker", "wroker"},
		"the wrong function as sink":         {base, "      kind: Service\n      name: worker", "      kind: Service\n      name: db", "want worker"},
		"the wrong path at a sink":           {base, "uri: /events", "uri: /event", "takes events at"},
		"a topic that nobody knows":          {base, "  - payments.request", "  - payments.requests", "payments.requests"},
		"a KafkaSink's topic":                {base, "topic: payments.parked", "topic: payments.park", "payments.park"},
		"retries beyond the deadline":        {base, "retry: 6", "retry: 8", "beyond the payment's deadline"},
		"a bad cron line":                    {base, "'* * * * *'", "'61 * * * *'", "schedule"},
		"a port that is not h2c":             {base, "name: h2c", "name: http1", "want h2c"},
		"a port named grpc":                  {base, "name: h2c", "name: grpc", "grpc"},
		"an inner function made public":      {base, "    networking.knative.dev/visibility: cluster-local\n", "", "public"},
		"a variable that nobody reads":       {base, "name: WAKE_URLS", "name: WAKE_URL", "WAKE_URL is set and nobody reads it"},
		"a variable that is needed":          {base, "name: EVENT_KEYS", "name: EVENTS_KEYS", "EVENT_KEYS is not set"},
		"an address of another function":     {base, "value: wallet.pgw.svc.cluster.local:80", "value: walet.pgw.svc.cluster.local:80", "WALLET_ADDR"},
		"an address left out":                {base, "name: PAYMENTS_ADDR", "name: PAYMENT_ADDR", "PAYMENTS_ADDR"},
		"a key that no Secret has":           {base, "key: risk-secret", "key: risk-secrets", "risk-secrets"},
		"no way back to the replica":         {base, "http://$(POD_IP):8080", "http://$(POD_IP):8081", "REPLICA_URL"},
		"Kafka in two places":                {base, "bootstrapServers:\n  - kafka.pgw", "bootstrapServers:\n  - kafka.gpw", "more than one place"},
		"a queue in front of the function":   {base, "containerConcurrency: 1000", "containerConcurrency: 500", "queue-proxy would let requests wait"},
		"no bound on concurrency":            {base, "containerConcurrency: 256", "containerConcurrency: 0", "has no bound"},
		"a drain longer than the grace":      {base, "value: 25s", "value: 35s", "DRAIN_TIMEOUT"},
		"a timeout that Knative refuses":     {base, "timeoutSeconds: 30", "timeoutSeconds: 99999", "timeoutSeconds"},
		"a scale that is no number":          {base, `min-scale: "0"`, `min-scale: none`, "min-scale"},
		"no largest scale":                   {base, "autoscaling.knative.dev/max-scale:", "autoscaling.knative.dev/maximum:", "max-scale"},
		"the activator in the path":          {base, "autoscaling.knative.dev/target-burst-capacity:", "autoscaling.knative.dev/burst:", "activator"},
		"a container that may run as root":   {base, "runAsNonRoot: true", "runAsNonRoot: false", "securityContext"},
		"a root that can be written":         {base, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "securityContext"},
		"a container that may do more":       {base, "drop:\n            - ALL", "drop:\n            - KILL", "securityContext"},
		"no memory limit":                    {base, "          limits:\n            memory: 256Mi\n", "", "limits"},
		"the other function's command":       {base, "- gateway\n", "- worker\n", "runs worker"},
		"a probe of another path":            {base, "path: /readyz", "path: /ready", "probes"},
		"a certificate that is not mounted":  {production, "mountPath: /etc/pgw/trust", "mountPath: /etc/pgw/trusted", "nothing is mounted"},
		"keys that are not mounted":          {production, "mountPath: /etc/pgw/access", "mountPath: /etc/pgw/keys", "API_KEYS_FILE: nothing is mounted"},
		"tokens that no Secret has":          {production, "/etc/pgw/rpc/tokens", "/etc/pgw/rpc/token", "no key token in a Secret pgw-rpc"},
		"a gateway open to all":              {production, "name: AUTH\n", "name: AUTHS\n", "AUTHS is set and nobody reads it"},
		"the stand-in without a sink":        {servingOnly, "gateway=http://gateway.pgw.svc.cluster.local,", "", "SINKS lacks gateway"},
		"neither source nor stand-in":        {servingOnly, "kind: Deployment", "kind: ReplicaSet", "neither"},
	} {
		if !strings.Contains(string(tc.in), tc.from) {
			t.Errorf("%s: there is no %q to break", name, tc.from)
			continue
		}
		found := strings.Join(problems([]byte(strings.ReplaceAll(string(tc.in), tc.from, tc.to))), "\n")
		if found == "" || !strings.Contains(found, tc.want) {
			t.Errorf("%s: want a problem with %q, found:\n%s", name, tc.want, found)
		}
	}
}
