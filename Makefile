# What there is to do here: make help.

# Tools run by version, from the module proxy or npm; nothing is installed.
BUF         := go run github.com/bufbuild/buf/cmd/buf@v1.75.0
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.7.0
CODEGEN     := go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2
CYCLONEDX   := go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
REDOCLY     := npx --yes @redocly/cli@2.30.0
VULNCHECK   := go run golang.org/x/vuln/cmd/govulncheck@v1.9.0
REFLEX      := go run github.com/cespare/reflex@v0.3.2
AXE         := axe-core@4.14.1

# Or COMPOSE="env DOCKER_BUILDKIT=1 docker-compose", which is 1.29.
COMPOSE ?= docker compose
compose  = $(COMPOSE) -f compose/compose.yaml

# What make run wrote while it runs here; without it, psql and topics look at Compose.
RUNNING = $(wildcard $(or $(PGW_DATA_DIR),.pgw)/run.json)

# The race detector needs a C compiler. Without one the tests run all the same, and say so.
ifneq ($(shell command -v $${CC:-cc} 2>/dev/null),)
RACE := -race
endif

.DEFAULT_GOAL := help
.PHONY: help run fresh dev build compose-up compose-down logs psql topics test test-manifests test-broken test-kafka test-queueproxy test-browser test-compose fuzz chaos \
	lint vulncheck sbom licenses lint-docs generate check-generated bench bench-go profile grow overload clean \
	kind-demo kind-up knative-install image knative-deploy knative-demo kind-down

help: ## Show this.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Static, as in the image: what is tried and measured here is what runs there.
build: ## Build bin/pgw.
	@CGO_ENABLED=0 go build -o bin/pgw ./functions/pgw

run: build ## Run everything in one process, on embedded defaults (Ctrl-C stops it).
	@exec bin/pgw run

fresh: build ## The same, starting over.
	@exec bin/pgw run --fresh

dev: ## make run, built and started again when a source changes.
	@$(REFLEX) -d none -s -t 30s -r '\.(go|sql|html|yaml|csv|json)$$' -R '_test\.go$$' -R '^(\.pgw|\.git|bin|tests)/' -- \
		sh -c '$(MAKE) --no-print-directory build && exec bin/pgw run'

compose-up: ## Everything as containers, with Grafana, Kafka UI and Prometheus (docker; SCALE="--scale worker=3").
	VERSION=$$(git describe --tags --always --dirty) $(compose) up -d --build $(SCALE)

compose-down: ## Stop them; the data stays (ARGS=-v: it does not).
	$(compose) down $(ARGS)

logs: ## Follow the containers' logs (SERVICE=worker: of one).
	$(compose) logs -f --tail 100 $(SERVICE)

psql: ## The ledger of make run while it runs here, or else of Compose (ARGS).
	@$(if $(RUNNING),exec psql "$$(sed -n 's/.*"database_url": "\(.*\)",/\1/p' $(RUNNING))",exec $(compose) exec postgres psql -U pgw pgw) $(ARGS)

topics: ## Its topics: records, and what each consumer group has still to take.
	@$(if $(RUNNING),go run ./functions/pgw,exec $(compose) run --rm pgw) topics --lag

# The test cache knows of the packages that a test is made of and of the files that it opens within its module, and of
# nothing else. So no result is kept of tests/manifests, a module that reads outside itself, and of tests/, which run
# programs that they build.
test: test-manifests ## Run all tests, against a real Postgres and the embedded broker.
	@$(if $(RACE),,echo "no C compiler: the tests run without the race detector")
	go test $(RACE) -timeout 20m $$(go list ./... | grep -v '^pgw/tests/')
	go test $(RACE) -count=1 -timeout 20m ./tests/...

test-manifests: ## Hold the manifests against Knative's types and against the code.
	cd tests/manifests && go test -count=1 ./...

test-broken: ## Break manifests, and see that test-manifests finds each mistake.
	tests/manifests/broken

test-kafka: ## The flows, the stand-in and its soak against a real Apache Kafka (Java and Maven, or KAFKA_BROKERS).
	tests/kafka/with-kafka go test $(RACE) -count=1 -p 1 -timeout 20m ./shared/kafka ./compose/kafkasource ./tests/flow

test-queueproxy: ## Payments through functions behind Knative's own queue-proxy (Linux).
	cd tests/queueproxy && go build -o $(CURDIR)/bin/queue-proxy knative.dev/serving/cmd/queue
	PGW_TEST_QUEUE_PROXY=$(CURDIR)/bin/queue-proxy go test $(RACE) -count=1 -run TestBehindQueueProxy -exec $(CURDIR)/tests/queueproxy/alone ./tests/flow

test-compose: bin/docker-compose ## Compose on a real Docker Engine, one of its own when none answers: up, pay, restarts, scale, down.
	tests/compose/with-docker tests/compose/check

bin/docker-compose: tests/compose/go.mod
	cd tests/compose && CGO_ENABLED=0 go build -o $(CURDIR)/$@ github.com/docker/compose/v2/cmd

test-browser: ## The web page in a real Chromium (and npm, for axe-core); pictures in tests/browser/out.
	npm install --silent --no-audit --no-fund --no-save --prefix bin/axe $(AXE)
	PGW_TEST_BROWSER=$(or $(CHROMIUM),$(shell command -v chromium)) PGW_TEST_AXE=$(CURDIR)/bin/axe/node_modules/axe-core/axe.min.js go test $(RACE) -count=1 ./tests/browser

fuzz: ## Fuzz every decoder of outside bytes, each for FUZZTIME.
	@for package in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		for target in $$(grep -ho '^func Fuzz[A-Za-z]*' $$package/*_test.go | cut -c6-); do \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(or $(FUZZTIME),30s) $$package || exit 1; \
		done; \
	done

chaos: build ## Break everything under load on a real Kafka, heal, and judge (SEED, DURATION, FAULTS).
	tests/kafka/with-kafka go run ./tests/fault --seed $(or $(SEED),1) --duration $(or $(DURATION),2m) $(if $(FAULTS),--faults $(FAULTS))

lint: ## Check formatting, go vet and staticcheck.
	@test -z "$$(gofmt -l .)" || { echo "not formatted:"; gofmt -l .; exit 1; }
	go vet ./...
	$(STATICCHECK) ./...
	cd tests/manifests && go vet ./... && $(STATICCHECK) ./...

lint-docs: ## Hold openapi.yaml and asyncapi.yaml against their specifications (npx).
	REDOCLY_TELEMETRY=off $(REDOCLY) lint --extends=minimal --skip-rule=no-unused-components functions/gateway/docs/openapi.yaml functions/gateway/docs/asyncapi.yaml

# The binary is looked at, and not the source: commands are called by reflection, which no call graph of the source sees.
vulncheck: build ## Look for known vulnerabilities in the binary; says so when the database can't be reached.
	@out=$$($(VULNCHECK) -mode binary bin/pgw 2>&1) && echo "$$out" || \
	{ echo "$$out"; echo "$$out" | grep -q '^govulncheck: fetching vulnerabilities' && echo "SKIPPED: nothing was checked: the vulnerability database can't be reached"; }

sbom: ## Write what the binary is made of, and its licenses, to bin/pgw.cdx.json (CycloneDX).
	@mkdir -p bin
	@$(CYCLONEDX) app -json -licenses -std -main functions/pgw -output bin/pgw.cdx.json .

licenses: sbom ## Fail when the binary has code under a license that is not allowed (jq).
	@test "$$(jq '.components | length' bin/pgw.cdx.json)" -gt 1
	@not=$$(jq -r -f .ci/licenses.jq bin/pgw.cdx.json) && test -z "$$not" || { echo "not allowed:"; echo "$$not"; exit 1; }

generate: ## Make proto/gen, the HTTP client, the seeds and the catalogue of metrics anew from their sources.
	cd proto && $(BUF) lint && $(BUF) generate
	$(CODEGEN) --config shared/client/oapi-codegen.yaml functions/gateway/docs/openapi.yaml
	go run ./functions/pgw seed accounts --count 1004 --seed 1 > seeds/accounts.csv.new && mv seeds/accounts.csv.new seeds/accounts.csv
	EVENT_KEYS= go run ./functions/pgw seed transactions --count 20 --seed 1 --format cloudevents > seeds/payments.jsonl.new && mv seeds/payments.jsonl.new seeds/payments.jsonl
	go run ./functions/pgw metrics > compose/prometheus/METRICS.md.new && mv compose/prometheus/METRICS.md.new compose/prometheus/METRICS.md

check-generated: generate ## Fail when what is generated is not current.
	@test -z "$$(git status --porcelain proto/gen shared/client seeds compose/prometheus go.mod go.sum)" || { echo "not current:"; git status --short proto/gen shared/client seeds compose/prometheus go.mod go.sum; exit 1; }

kind-demo: kind-up knative-install image knative-deploy knative-demo ## From nothing to a settled payment on kind + Knative.

kind-up: ## Make the kind cluster (docker, kind, kubectl).
	@kind/up

knative-install: ## Install Knative into the cluster of KUBECONFIG.
	@kind/install

image: ## Build the image with ko and load it into kind, or push it (IMAGE).
	@kind/image

knative-deploy: ## Deploy OVERLAY (knative/overlays/kind), schema, topics and seeds.
	@kind/deploy

knative-demo: ## Pay in the cluster: functions at zero, up, and at zero again.
	@kind/demo

kind-down: ## Delete the kind cluster.
	@kind/down

bench: build ## The table of goals, each a ratio to pgbench's transfer on the same Postgres in the same run (BENCH: flags).
	tests/kafka/with-kafka go run ./tests/load bench $(BENCH)

bench-go: ## Go benchmarks of the hot pieces, ready for benchstat.
	go test -run '^$$' -bench . -benchmem -count $(or $(COUNT),6) ./shared/... ./functions/... ./compose/kafkasource

profile: build ## CPU, allocation, mutex and block profiles of each scenario, in tests/load/out/profiles.
	tests/kafka/with-kafka go run ./tests/load profile

grow: build ## Cost as work grows: connections, accounts, past payments, db replicas.
	go run ./tests/load grow

overload: build ## Three times the capacity for a minute, and then half of it (OVERLOAD="--times 1.7").
	go run ./tests/load overload $(OVERLOAD)

clean: ## Delete what was built; the data in .pgw stays.
	rm -rf bin tests/*/out
