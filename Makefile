# make help lists the targets.

# Tools run at a fixed version, from the module proxy or npm. Nothing is installed.
BUF         := go run github.com/bufbuild/buf/cmd/buf@v1.75.0
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.7.0
LINT        := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
CODEGEN     := go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2
CYCLONEDX   := go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
REDOCLY     := npx --yes @redocly/cli@2.30.0
SPECTRAL    := npx --yes @stoplight/spectral-cli@6.16.3
VULNCHECK   := go run golang.org/x/vuln/cmd/govulncheck@v1.9.0
REFLEX      := go run github.com/cespare/reflex@v0.3.2
AXE         := axe-core@4.14.1

# For docker-compose 1.29: COMPOSE="env DOCKER_BUILDKIT=1 docker-compose".
COMPOSE ?= docker compose
compose  = $(COMPOSE) -f compose/compose.yaml $(if $(CITUS),-f compose/citus.yaml) $(if $(filter rows,$(CITUS)),-f compose/citus-rows.yaml)

# The file that make run writes while it runs here. Without it, psql and topics use Compose.
RUNNING = $(wildcard $(or $(PGW_DATA_DIR),.pgw)/run.json)

# The race detector needs a C compiler. Without one the tests run without it, and say so.
ifneq ($(shell command -v $${CC:-cc} 2>/dev/null),)
RACE := -race
endif

.DEFAULT_GOAL := help
.PHONY: help run fresh dev build compose-up compose-down logs psql topics test test-units test-manifests test-broken test-ledger test-kafka test-webhooks test-queueproxy test-browser test-compose fuzz chaos chaos-ha \
	check lint vulncheck sbom licenses lint-docs generate check-generated bench bench-go profile grow overload clean \
	kind-demo kind-up knative-install image knative-deploy knative-demo kind-down

help: ## Show this.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Static and with -trimpath, as in the image: tests and measurements use the image's binary, and each package is compiled
# only once for all of them.
build: ## Build bin/pgw.
	@test -e bin/pgw || echo "Building bin/pgw. The first build downloads 130 MB of modules, and then prints nothing for about three minutes. Later builds take seconds."
	@CGO_ENABLED=0 go build -trimpath -o bin/pgw ./functions/pgw

run: build ## Run everything in one process, with embedded stores (Ctrl-C stops it).
	@exec bin/pgw run

fresh: build ## make run, with empty data.
	@exec bin/pgw run --fresh

# One reflex builds when a source file changes. The other restarts when there is a new binary, so the
# old process runs on while the source does not compile.
dev: build ## make run, rebuilt and restarted when a source file changes.
	@mkdir -p bin/dev && cp bin/pgw bin/dev/pgw
	@printf '%s\n' \
		"-r '\.(go|sql|html|css|js|yaml|csv|json)$$' -R '_test\.go$$' -R '^(\.pgw|\.git|bin|tests)/' -- sh -c 'CGO_ENABLED=0 go build -trimpath -o bin/dev/next ./functions/pgw && mv bin/dev/next bin/dev/pgw'" \
		"-s -t 30s -g bin/dev/pgw -- bin/dev/pgw run" | $(REFLEX) -d none -c /dev/stdin

compose-up: ## Run everything as containers, with Grafana, Kafka UI and Prometheus (docker; SCALE="--scale worker=3", CITUS=yes or rows).
	VERSION=$$(git describe --tags --always --dirty) $(compose) up -d --build $(SCALE)

compose-down: ## Stop the containers and keep the data (ARGS=-v: delete the data too).
	$(compose) down $(ARGS)

logs: ## Follow the containers' logs (SERVICE=worker: only of that one).
	$(compose) logs -f --tail 100 $(SERVICE)

psql: ## Open the ledger of make run while it runs here, or else of Compose (ARGS).
	@$(if $(RUNNING),exec psql "$$(sed -n 's/.*"database_url": "\(.*\)",/\1/p' $(RUNNING))",exec $(compose) exec postgres psql -U pgw pgw) $(ARGS)

topics: ## List the topics with their records and each consumer group's lag.
	@$(if $(RUNNING),go run ./functions/pgw,exec $(compose) run --rm pgw) topics --lag

# The test cache only tracks the packages of a test and the files that it opens within its module. So there are no cached
# results for tests/manifests, which is a module that reads files outside itself, and for tests/, whose tests run
# programs that they build.
test: ## Run all tests, with a real Postgres and the embedded broker: units, flows, then the manifests.
	@$(if $(RACE),,echo "no C compiler: the tests run without the race detector")
	go test $(RACE) -timeout 40m $(units)
	go test $(RACE) -count=1 -timeout 40m -parallel $(waiting) ./tests/...
	$(MAKE) --no-print-directory test-manifests

# Tests wait more than they compute, so this many run at the same time.
waiting = $$((2 * $$(getconf _NPROCESSORS_ONLN)))

units = $$(go list ./... | grep -v '^pgw/tests/')
test-units: ## Run the tests of packages on their own, without the slowest (-short) and without the race detector.
	go test -short -timeout 5m $(units)

check: lint test-units check-generated ## Check what can be checked in minutes: lint, units, generated files.

# With -trimpath, the copy that test-broken makes needs no other compilation.
test-manifests: ## Check the manifests against Knative's types and against the code.
	cd tests/manifests && go test -trimpath -count=1 ./...

test-broken: ## Break manifests, and check that test-manifests finds each mistake.
	tests/manifests/broken

# On a database with Citus each test gets a schema of it, which is distributed. ROWS=1 distributes its rows instead.
# SCHEMAS=1 gives each test a schema anywhere. The flows run one at a time: each is a whole system with many connections,
# and on Citus each of these has its own to every node.
ledger_tests = ./shared/ledger ./functions/db ./functions/pgw/reconcile
on_ledger    = PGW_TEST_DATABASE_URL='$(LEDGER_URL)' PGW_TEST_SCHEMAS=$(SCHEMAS) PGW_TEST_ROWS=$(ROWS)
test-ledger: ## Run the tests of the ledger and the flows on another engine (LEDGER_URL: a superuser's URL of a database; SCHEMAS=1, ROWS=1).
ifdef LEDGER_URL
	$(on_ledger) go test -count=1 -p 1 -timeout 40m $(ledger_tests)
	$(on_ledger) go test -count=1 -parallel 1 -timeout 90m ./tests/flow
else
	@echo "LEDGER_URL is not set: nothing was run"
endif

test-kafka: ## Test the flows, the stand-in and its soak on a real Apache Kafka (Java and Maven, or KAFKA_BROKERS).
	tests/kafka/with-kafka go test $(RACE) -count=1 -p 1 -timeout 40m -parallel $(waiting) ./shared/kafka ./functions/kafkasource ./tests/flow

WEBHOOK_LIBRARIES = bin/webhook-libraries
test-webhooks: ## Verify webhooks by Standard Webhooks' own libraries of npm and PyPI (npm, pip).
	npm install --silent --no-audit --no-fund --no-save --prefix $(WEBHOOK_LIBRARIES) standardwebhooks@1.1.1
	python3 -m pip install --quiet --disable-pip-version-check --upgrade --target $(WEBHOOK_LIBRARIES)/python standardwebhooks==1.1.0
	PGW_TEST_WEBHOOK_LIBRARIES=$(CURDIR)/$(WEBHOOK_LIBRARIES) go test -count=1 -run Libraries ./functions/webhooks

test-queueproxy: ## Test payments through functions behind Knative's own queue-proxy (Linux).
	cd tests/queueproxy && go build -o $(CURDIR)/bin/queue-proxy knative.dev/serving/cmd/queue
	PGW_TEST_QUEUE_PROXY=$(CURDIR)/bin/queue-proxy go test $(RACE) -count=1 -run TestBehindQueueProxy -exec $(CURDIR)/tests/queueproxy/in-namespace ./tests/flow

test-compose: bin/docker-compose ## Test Compose on a real Docker Engine, starting one if none runs: up, pay, restart, scale, down.
	tests/compose/with-docker tests/compose/check

bin/docker-compose: tests/compose/go.mod
	cd tests/compose && CGO_ENABLED=0 go build -o $(CURDIR)/$@ github.com/docker/compose/v2/cmd

test-browser: ## Test the web page in a real Chromium (and npm, for axe-core); pictures in tests/browser/out.
	npm install --silent --no-audit --no-fund --no-save --prefix bin/axe $(AXE)
	PGW_TEST_BROWSER=$(or $(CHROMIUM),$(shell command -v chromium)) PGW_TEST_AXE=$(CURDIR)/bin/axe/node_modules/axe-core/axe.min.js go test $(RACE) -count=1 ./tests/browser

fuzz: ## Fuzz every decoder of external input, each for FUZZTIME.
	@for package in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		for target in $$(grep -ho '^func Fuzz[A-Za-z]*' $$package/*_test.go | cut -c6-); do \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(or $(FUZZTIME),30s) $$package || exit 1; \
		done; \
	done

chaos: build ## Break everything under load on a real Kafka, heal it, and check the result (SEED, DURATION, FAULTS).
	tests/kafka/with-kafka go run ./tests/fault --seed $(or $(SEED),1) --duration $(or $(DURATION),2m) $(if $(FAULTS),--faults $(FAULTS))

chaos-ha: build ## Break any one machine of a cluster under load, and check the result: Patroni, three brokers, two of each function (root on Debian; SEED, DURATION, FAULTS).
	go build -o bin/fault ./tests/fault
	KAFKA_ALONE=no tests/kafka/with-kafka tests/fault/in-namespaces bin/fault --cluster --rate $(or $(RATE),20) --connections 64 \
		--seed $(or $(SEED),1) --duration $(or $(DURATION),2m) $(if $(FAULTS),--faults $(FAULTS))

lint: ## Check the Go code: formatting, go vet, staticcheck, the direction of imports and more (.golangci.yaml).
	@test -z "$$(gofmt -l .)" || { echo "not formatted:"; gofmt -l .; exit 1; }
	$(LINT) run ./...
	cd tests/manifests && go vet ./... && $(STATICCHECK) ./...

documents = functions/gateway/docs/openapi.yaml functions/gateway/docs/asyncapi.yaml
lint-docs: ## Check openapi.yaml and asyncapi.yaml with Redocly's and Spectral's rules (npx).
	REDOCLY_TELEMETRY=off $(REDOCLY) lint --extends=recommended $(documents)
	$(SPECTRAL) lint --ruleset functions/gateway/docs/spectral.yaml --fail-severity=warn $(documents)

# This scans the binary, not the source: commands are called by reflection, and a call graph of the source misses those.
vulncheck: build ## Look for known vulnerabilities in the binary (skipped when the database cannot be reached).
	@out=$$($(VULNCHECK) -mode binary bin/pgw 2>&1) && echo "$$out" || \
	{ echo "$$out"; echo "$$out" | grep -q '^govulncheck: fetching vulnerabilities' && echo "SKIPPED: nothing was checked: the vulnerability database can't be reached"; }

sbom: ## Write the binary's modules and their licenses to bin/pgw.cdx.json (CycloneDX).
	@mkdir -p bin
	@$(CYCLONEDX) app -json -licenses -std -main functions/pgw -output bin/pgw.cdx.json .

licenses: sbom ## Fail if the binary has code under a license that is not allowed (jq).
	@test "$$(jq '.components | length' bin/pgw.cdx.json)" -gt 1
	@not=$$(jq -r -f .ci/licenses.jq bin/pgw.cdx.json) && test -z "$$not" || { echo "not allowed:"; echo "$$not"; exit 1; }

generate: ## Generate proto/gen, the HTTP client, the page of the API documents, the seeds and the catalogue of metrics from their sources.
	cd proto && $(BUF) lint && $(BUF) generate
	sed '/^webhooks:/,/^components:/{/^components:/!d}' functions/gateway/docs/openapi.yaml | $(CODEGEN) --config shared/client/oapi-codegen.yaml /dev/stdin
	go run ./functions/gateway/docs/render functions/gateway/docs
	go run ./functions/pgw seed accounts --count 1004 --seed 1 > seeds/accounts.csv.new && mv seeds/accounts.csv.new seeds/accounts.csv
	EVENT_KEYS= go run ./functions/pgw seed transactions --count 20 --seed 1 --format cloudevents > seeds/payments.jsonl.new && mv seeds/payments.jsonl.new seeds/payments.jsonl
	go run ./functions/pgw metrics > compose/prometheus/METRICS.md.new && mv compose/prometheus/METRICS.md.new compose/prometheus/METRICS.md

# These compare the files before and after, so that files which are current and not yet committed pass.
generated = find proto/gen shared/client functions/gateway/docs seeds compose/prometheus go.mod go.sum -type f | sort | xargs sha256sum
check-generated: ## Fail if a generated file is not current.
	@before=$$(mktemp) && $(generated) > $$before && $(MAKE) --no-print-directory generate && \
	{ $(generated) | diff $$before - || { echo "not current: the files above; commit what make generate wrote"; rm $$before; exit 1; } } && rm $$before

kind-demo: kind-up knative-install image knative-deploy knative-demo ## Make a kind cluster with Knative and settle a payment in it.

kind-up: ## Make the kind cluster (docker, kind, kubectl).
	@kind/up

knative-install: ## Install Knative into the cluster of KUBECONFIG.
	@kind/install

image: ## Build the image with ko and load it into kind, or push it (IMAGE).
	@kind/image

knative-deploy: ## Deploy OVERLAY (knative/overlays/kind), schema, topics and seeds.
	@kind/deploy

knative-demo: ## Pay in the cluster: the functions start from zero, and go back to zero.
	@kind/demo

kind-down: ## Delete the kind cluster.
	@kind/down

bench: build ## Measure the table of goals, as ratios to pgbench's transfer on the same Postgres (BENCH: flags).
	tests/kafka/with-kafka go run ./tests/load bench $(BENCH)

bench-go: ## Run the Go benchmarks of the hot code, with output for benchstat.
	go test -run '^$$' -bench . -benchmem -count $(or $(COUNT),6) ./shared/... ./functions/...

profile: build ## Write CPU, allocation, mutex and block profiles of each scenario to tests/load/out/profiles.
	tests/kafka/with-kafka go run ./tests/load profile

grow: build ## Measure the cost as work grows: connections, accounts, past payments, replicas, and a replacement (GROW: flags).
	tests/kafka/with-kafka go run ./tests/load grow $(GROW)

overload: build ## Send three times the capacity for a minute, and then half of it (OVERLOAD="--times 1.7").
	go run ./tests/load overload $(OVERLOAD)

clean: ## Delete build results; the data in .pgw stays.
	rm -rf bin tests/*/out
