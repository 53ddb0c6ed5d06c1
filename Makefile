# The one entry for people and CI. `make help` lists the targets.
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: help setup demo test unit check lint types protos protos-check bench bench-lab clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.installed ## make .venv/ with the daemon, its tools and the tests' needs

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dep2pd needs Python 3.11 or later: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup ## two peers talk through a relay, as real processes
	$(BIN)/python examples/relay/demo.py

test: setup ## all tests; what an absent tool makes impossible is skipped with the reason
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

unit: setup ## the fast tests only
	$(BIN)/python -m pytest --numprocesses 2 tests/unit

check: setup lint types protos-check ## linters, types, protos: what CI runs beside the tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

protos: setup ## regenerate the committed stubs from protos/
	cd protos && ../$(BIN)/buf format -w && ../$(BIN)/buf lint
	$(BIN)/python tools/gen_protos.py

protos-check: setup ## the stubs are current and the API only grew
	cd protos && ../$(BIN)/buf format -d --exit-code && ../$(BIN)/buf lint
	$(BIN)/python tools/gen_protos.py --check
	cd protos && if [ -f baseline.binpb ]; then ../$(BIN)/buf breaking --against baseline.binpb; fi

bench: setup ## measure; writes docs/benchmarks.md and the raw JSON beside it
	$(BIN)/python -m bench

bench-lab: setup ## measure lossy links in network namespaces (root); the table beside the others
	$(BIN)/python -m bench loss

clean: ## remove what setup and the tests made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
