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

SHORT_CHAOS := tests/chaos/test_nodes.py::test_killed tests/chaos/test_nodes.py::test_frozen
.PHONY: test
test: .venv/.installed-dev node_modules/.installed ## Runs all tests, the whole stack included.
	$(BIN)/pytest tests/unit tests/contract tests/e2e $(SHORT_CHAOS)

.PHONY: bench
bench: .venv/.installed-dev ## Measures what the mesh adds to an engine (needs wrk); a few minutes.
	$(BIN)/python tests/bench/bench.py

.PHONY: bench-routing
bench-routing: .venv/.installed-dev ## Compares routing policies where prompts share prefixes; half an hour.
	$(BIN)/python tests/bench/bench_routing.py

.PHONY: bench-decisions
bench-decisions: .venv/.installed-dev ## Measures what one routing decision costs; a minute.
	$(BIN)/python tests/bench/decisions.py

.PHONY: bench-auth
bench-auth: .venv/.installed-dev ## Measures what 100,000 keys cost auth; a minute.
	$(BIN)/python tests/bench/auth_keys.py

.PHONY: bench-grpc
bench-grpc: .venv/.installed-dev ## Measures what a call costs our gRPC server and grpc.aio's; half a minute.
	$(BIN)/python tests/bench/grpc_server.py

.PHONY: bench-prefix
bench-prefix: .venv/.installed-dev ## Compares what two llama.cpp nodes have cached by policy; three minutes.
	$(BIN)/python tests/bench/prefix_llamacpp.py

.PHONY: chaos
chaos: .venv/.installed-dev ## Breaks nodes and services under load; eight minutes.
	$(BIN)/pytest tests/chaos -s

.PHONY: clean
clean: ## Removes what these targets have made here; models stay in the user's cache folder.
	rm -rf .venv node_modules .infermesh bench-results
