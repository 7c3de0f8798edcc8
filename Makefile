# Everything that people and CI do here, by name. `make` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
BUF := node_modules/.bin/buf

.PHONY: help
help: ## Lists the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "infermesh needs Python 3.11 or newer")'
	@echo "Installing what infermesh needs into .venv …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.lock
	@echo "Installing what the tests need into .venv …"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

node_modules/.installed: package-lock.json
	@npm ci --loglevel=error --no-audit --no-fund
	@touch $@

.PHONY: up
up: .venv/.installed ## Starts the whole mesh here; Ctrl-C stops it.
	@exec $(BIN)/infermesh up

.PHONY: generate
generate: .venv/.installed-dev ## Generates gen/ from protos/.
	@protos/generate.sh gen

.PHONY: baseline
baseline: node_modules/.installed ## Makes the contracts as they are the ones that later changes must not break.
	$(BUF) build protos --exclude-source-info --as-file-descriptor-set -o protos/baseline.binpb

.PHONY: lock
lock: .venv/.installed-dev ## Writes the requirement locks from pyproject.toml.
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --extra build pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --extra build --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

.PHONY: check
check: .venv/.installed-dev node_modules/.installed ## Lints code and contracts, checks types and that gen/ is fresh.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BUF) lint
	$(BUF) format --diff --exit-code protos
	$(BUF) breaking protos --against protos/baseline.binpb
	@tests/check_gen.sh

SHORT_CHAOS := tests/chaos/test_nodes.py::test_killed tests/chaos/test_nodes.py::test_frozen tests/chaos/test_limits_killed.py
.PHONY: test
test: .venv/.installed-dev node_modules/.installed ## Runs all tests, the whole stack included.
	$(BIN)/pytest tests/unit tests/contract tests/e2e tests/security $(SHORT_CHAOS)

PROPERTIES := $$(grep -lrE --include='*.py' '^@given' tests/unit tests/contract)
.PHONY: test-properties
test-properties: .venv/.installed-dev ## Looks for examples that break a property, other ones each time; run it often.
	$(BIN)/pytest --hypothesis-profile=search $(PROPERTIES)

.venv/.installed-peers: tests/bench/peers/requirements.lock tests/bench/peers/package-lock.json .venv/.installed-dev
	@echo "Installing the mesh's peers into .venv/peers …"
	@test -x .venv/peers/python/bin/python || $(PYTHON) -m venv .venv/peers/python
	@.venv/peers/python/bin/python -m pip install --quiet --require-hashes -r tests/bench/peers/requirements.lock
	@mkdir -p .venv/peers/node && cp tests/bench/peers/package.json tests/bench/peers/package-lock.json .venv/peers/node/
	@cd .venv/peers/node && npm ci --loglevel=error --no-audit --no-fund
	@touch $@

.venv/.installed-clients: tests/clients/requirements.lock .venv/.installed-dev
	@echo "Installing the clients that docs/clients.md shows into .venv/clients …"
	@test -x .venv/clients/bin/python || $(PYTHON) -m venv .venv/clients
	@.venv/clients/bin/python -m pip install --quiet --require-hashes -r tests/clients/requirements.lock
	@touch $@

.PHONY: test-clients
test-clients: .venv/.installed-clients node_modules/.installed ## Runs every example of docs/clients.md, those with large libraries too.
	$(BIN)/pytest tests/e2e/test_clients_docs.py

.PHONY: test-openapi
test-openapi: .venv/.installed-clients ## Calls a mesh of its own with 20,000 cases generated from /openapi.json; ten minutes.
	OPENAPI_CASES=20000 $(BIN)/pytest tests/e2e/test_openapi_cases.py -s --timeout 3600

.PHONY: test-security
test-security: .venv/.installed-dev ## Attacks a mesh of its own in ten ways, at random too; eight minutes at most.
	SECURITY_ROUNDS=1000 $(BIN)/pytest tests/security --timeout 300

.PHONY: bench
bench: .venv/.installed-peers ## Measures the mesh beside its peers, in one run (needs wrk); 35 minutes.
	$(BIN)/python tests/bench/bench.py --peers .venv/peers --document docs/performance.md

.PHONY: bench-check
bench-check: .venv/.installed-dev ## Fails where a request costs more CPU than its budget (needs wrk); a minute or two. RECORD=1 records it.
	$(BIN)/python tests/bench/bench_check.py $(if $(RECORD),--record)

.PHONY: profile
profile: .venv/.installed-dev ## Draws flame graphs of each service under load (needs wrk; perf for Envoy); three minutes.
	$(BIN)/python tests/bench/bench_profile.py

.PHONY: bench-routing
bench-routing: .venv/.installed-dev ## Compares routing policies where prompts share prefixes; half an hour.
	$(BIN)/python tests/bench/bench_routing.py

.PHONY: bench-decisions
bench-decisions: .venv/.installed-dev ## Measures what one routing decision costs; a minute.
	$(BIN)/python tests/bench/decisions.py

.PHONY: bench-auth
bench-auth: .venv/.installed-dev ## Measures what 100,000 keys cost auth; a minute.
	$(BIN)/python tests/bench/auth_keys.py

.PHONY: bench-envoy
bench-envoy: .venv/.installed-dev ## Measures what the parts of Envoy's configuration cost (needs wrk); two minutes.
	$(BIN)/python tests/bench/envoy_parts.py

.PHONY: bench-grpc
bench-grpc: .venv/.installed-dev ## Measures what a call costs our gRPC server and grpc.aio's; half a minute.
	$(BIN)/python tests/bench/grpc_server.py

.PHONY: bench-limits
bench-limits: .venv/.installed-dev ## Shows that limits are exact over three replicas, and what they cost; four minutes.
	$(BIN)/python tests/bench/limits.py

.PHONY: bench-cancellation
bench-cancellation: .venv/.installed-dev ## Measures how soon the engine stops when callers leave; four minutes.
	$(BIN)/python tests/bench/cancellation.py

.PHONY: bench-streams
bench-streams: .venv/.installed-dev ## Measures the time that the mesh adds to 100 streams at once; six minutes.
	$(BIN)/python tests/bench/added_latency.py

.PHONY: bench-tls
bench-tls: .venv/.installed-dev ## Compares a mesh with TLS to one without (needs wrk); three minutes.
	$(BIN)/python tests/bench/tls.py

.PHONY: bench-prefix
bench-prefix: .venv/.installed-dev ## Compares what two llama.cpp nodes have cached by policy; three minutes.
	$(BIN)/python tests/bench/prefix_llamacpp.py

.PHONY: chaos
chaos: .venv/.installed-dev ## Breaks nodes and services under load; eight minutes.
	$(BIN)/pytest tests/chaos -s

.PHONY: chaos-limits
chaos-limits: .venv/.installed-dev ## Kills auth or Redis 200 times under load; a quarter of an hour.
	CHAOS_LIMIT_KILLS=200 $(BIN)/pytest tests/chaos/test_limits_killed.py -s

.PHONY: clean
clean: ## Removes what these targets have made here; models stay in the user's cache folder.
	rm -rf .venv node_modules .infermesh bench-results
