# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up what they need.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHONPATH := $(CURDIR)/plugins:$(CURDIR)
PYTEST := $(BIN)/python -m pytest -q
# These tests wait for processes or compute little: side by side they fit two cores.
SIDE_BY_SIDE := -n 2 --dist
# So do two stacks, as a run mostly waits. Tests come in the order of tests/e2e/conftest.py.
STACKS := $(SIDE_BY_SIDE) loadfile --no-loadscope-reorder
# They start a sandbox of their own and no Airflow.
HELM_SUITES := tests/e2e/test_helm_engine.py tests/e2e/test_helm_faults.py tests/e2e/test_helm_gone_kinds.py
STACK_SUITES := tests/e2e $(addprefix --ignore=,$(HELM_SUITES))
# An API server of the user's for demo and tests, in the place of the sandbox's own: see docs/guides/sandbox.md.
BORROWED = $(if $(KUBECONFIG_FILE),--kubeconfig "$(abspath $(KUBECONFIG_FILE))")
TOOLS := eval "$$($(BIN)/python tools/toolchain.py --export)"

.PHONY: help setup demo demo-clean up down test test-fast test-full test-real lint unit helm sandbox e2e soak requirements docs schema clean

help: ## what can be made
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## virtual environment with the pinned requirements

$(VENV)/.installed: requirements-dev.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or name it with PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing the pinned requirements into $(VENV): once, about a minute"
	@# One that was interrupted has a python and no pip, and would fail for ever. Any other folder is not emptied.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(if $(wildcard $(VENV)/pyvenv.cfg),--clear) $(VENV)
	@# uv itself, from its entry with its hashes.
	@sed -n '/^uv==/,/[^\\]$$/p' requirements-dev.txt > $(VENV)/uv.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(VENV)/uv.txt || { echo "installing uv failed: is there a network, and an index of Python packages (PIP_INDEX_URL)?"; exit 1; }
	@# Like pip, trust the authorities that the system trusts: many companies have one of their own. Compiled here once, as
	@# many environments forbid Python to do it later, and dozens of short processes would each pay for it.
	@$(BIN)/uv pip sync --quiet --compile-bytecode --system-certs --python $(BIN)/python --require-hashes requirements-dev.txt || { echo "installing the requirements failed: is there a network, and disk space?"; exit 1; }
	@touch $@

demo: setup ## the main job end to end on the embedded sandbox (FAULT=broken-plugin|spot-interruption, KEEP=1, KUBECONFIG_FILE=…)
	@$(TOOLS) && $(BIN)/python -m demo run $(if $(FAULT),--fault $(FAULT)) $(if $(filter-out 0,$(KEEP)),--keep) $(BORROWED)

demo-clean: setup ## remove what a demo that was killed left on the API server of KUBECONFIG_FILE
	@$(TOOLS) && $(BIN)/python -m demo clean $(or $(BORROWED),$(error name the server with KUBECONFIG_FILE=FILE))

up: setup ## sandbox and Airflow, kept running to look around (KUBECONFIG_FILE=…)
	@$(TOOLS) && $(BIN)/python -m demo up $(BORROWED)

down: setup ## stop what `make up` or `make demo KEEP=1` left running
	@$(BIN)/python -m demo down

lint: setup ## ruff, mypy, import contracts, the CloudFormation template, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy plugins dags sandbox demo tools
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/cfn-lint include/cloudformation/*.yaml
	@$(BIN)/python -m tools.reference --check
	@$(BIN)/python tools/reason_docs.py --check

unit: setup ## unit, DAG and deployment tests
	@$(TOOLS) && $(PYTEST) $(SIDE_BY_SIDE) loadfile -m "not real_helm and not slow and not full" tests/dags tests/unit tests/deployment

helm: setup ## the operators with real helm, and tests with processes or nodes that run pods; without Airflow
	@$(TOOLS) && $(PYTEST) $(SIDE_BY_SIDE) loadfile -m "(real_helm or slow) and not full" tests/unit tests/dags

sandbox: setup ## contract tests of the sandbox
	@$(TOOLS) && $(PYTEST) $(SIDE_BY_SIDE) loadfile -m "not full" tests/sandbox

e2e: setup ## real Airflow, helm, kubectl and clients against the sandbox
	@$(TOOLS) && $(PYTEST) $(SIDE_BY_SIDE) load -m "not full" $(HELM_SUITES)
	@$(TOOLS) && $(PYTEST) $(STACKS) -m "not full" $(STACK_SUITES)

test-fast: lint unit ## lint, types, unit and DAG tests (under 2 minutes)

test: lint unit helm sandbox e2e ## everything that CI runs (under 25 minutes)

test-full: lint unit helm ## also every fault and every kill (under 75 minutes)
	@$(TOOLS) && $(PYTEST) $(SIDE_BY_SIDE) loadfile -m full tests/unit
	@$(TOOLS) && $(PYTEST) $(SIDE_BY_SIDE) loadfile tests/sandbox
	@$(TOOLS) && $(PYTEST) $(SIDE_BY_SIDE) load $(HELM_SUITES)
	@$(TOOLS) && $(PYTEST) $(STACKS) --durations=30 $(STACK_SUITES)

test-real: setup ## the contract and end-to-end tests that make sense on the API server of KUBECONFIG_FILE
	@$(TOOLS) && E2E_KUBECONFIG="$(abspath $(or $(KUBECONFIG_FILE),$(error name the server with KUBECONFIG_FILE=FILE)))" \
	  $(PYTEST) -m real_api tests/sandbox/apiserver tests/e2e

soak: setup ## kill helm, workers, triggerers and connections at random moments (KILLS=100, SEED=…, HELM=3)
	@$(TOOLS) && $(BIN)/python -m bench.soak --kills $(or $(KILLS),100) $(if $(SEED),--seed $(SEED)) $(if $(HELM),--helm $(HELM))

requirements: ## compile requirements*.txt from requirements*.in
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header --generate-hashes requirements.in -o requirements.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header --generate-hashes requirements-dev.in -o requirements-dev.txt

docs: setup ## generated files: docs/reference, the tables of reasons in docs/guides, and the JSON schema
	@$(BIN)/python -m tools.reference
	@$(BIN)/python tools/reason_docs.py

schema: setup ## generated JSON schema of the cluster spec
	@$(BIN)/python -m gpu_fleet schema > include/schema/cluster.schema.json

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache
