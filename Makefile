# Everything runs in .venv of this checkout, made on first use. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A pip that is newer than the one of some Pythons, and no progress bars in logs.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -q

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-full check format wheel clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than 3.11 (make PYTHON=python3.12 ...)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(READY) ## Evolve the shipped small experts (a few minutes on two cores)
	$(BIN)/cqd-hub evolve quickstart

test: $(READY) ## Fast tests (under 10 minutes on two cores)
	$(BIN)/pytest -n 2 -m "not slow"

test-full: $(READY) ## All tests (under an hour)
	$(BIN)/pytest -n 2

check: $(READY) ## Formatting, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format and fix what can be fixed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

wheel: $(READY) ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## Remove what was built (not .venv, not runs/)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
